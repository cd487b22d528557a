"""What lies around a command and is not its own: configuration of libraries, homes, packages. One guard tells what is wrong.

Prefect and Dask read variables and files when they are imported, and end in a traceback where one cannot be read. Where an
exception comes from there, it becomes an error that names the file or the variable, instead of a traceback.
"""

from __future__ import annotations

import os
import re
import tomllib
import traceback
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.places.credentials import redacted

EXTRAS_HINT = "Install Halotile again, with deploy/constraints.txt"

OURS = {
    "DASK_INTERNAL_INHERIT_CONFIG",
    "PREFECT_LOGGING_EXTRA_LOGGERS",
    "PREFECT_LOGGING_HANDLERS_API_LEVEL",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW",
    "PREFECT_SERVER_ANALYTICS_ENABLED",
}
"""Variables that a command sets itself."""

_DASK = re.compile(r"/(dask|distributed|dask_jobqueue|dask_kubernetes)/\S*$")
_DASK_CONFIG = re.compile(r"/dask/config\.py$")
_PREFECT = re.compile(r"/prefect/settings/|/pydantic_settings/")


def explain(error: Exception) -> ConfigError | None:
    """Turn an error into one for a user, where something around the command is to blame; None where it is not known to be."""
    files = [""] + [frame.filename.replace(os.sep, "/") for frame in traceback.extract_tb(error.__traceback__)]
    for look in (_home, _text, _packages):
        if message := look(error):
            return ConfigError(message)
    if any(map(_PREFECT.search, files)):
        return ConfigError(_prefect(error))
    if any(map(_DASK_CONFIG.search, files)) or (_DASK.search(files[-1]) and _is_of_values(error)):
        return ConfigError(_dask(error))
    return None


def _is_of_values(error: Exception) -> bool:
    """Whether Dask may have stumbled over a value that somebody set for it."""
    return isinstance(error, ValueError | TypeError | KeyError) and bool(
        _variables("DASK_") or any(map(_says_something, _dask_files()))
    )


def _home(error: Exception) -> str:
    if not (isinstance(error, RuntimeError) and "home directory" in str(error)):
        return ""
    return (
        "This user has no home directory: HOME is not set, and the system's list of users does not have them. Set HOME to a "
        "folder that can be written."
    )


def _text(error: Exception) -> str:
    if not (isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason):
        return ""
    return (
        f"The name {str(error.object)[:200]!a} is not UTF-8 text, and cannot stand in JSON, in a page or in a database. Rename the file "
        "or folder (convmv -f latin1 -t utf8 does many), or make a link to it of another name."
    )


def _packages(error: Exception) -> str:
    if not isinstance(error, ImportError):
        return ""
    variable = f"; PYTHONPATH is '{os.environ['PYTHONPATH']}'" if os.environ.get("PYTHONPATH") else ""
    return f"A package that Halotile needs cannot be imported: {error}{variable}. {EXTRAS_HINT}."


# --- Prefect ------------------------------------------------------------------------------------------------------------


def _prefect(error: Exception) -> str:
    of_pydantic = error.errors() if hasattr(error, "errors") else []
    entries = [e for e in of_pydantic if e.get("type") != "default_factory_not_called"]
    complaints = "; ".join(f"{_field(e)}: {e.get('msg')}, not {redacted(repr(e.get('input')))}" for e in entries)
    places = [f"'{path.resolve()}'" for path in prefect_files() if not _is_toml(path)]
    places = places or _culprits(entries, re.findall(r'field "(\w+)"', str(error)))
    return f"Prefect cannot read its settings: {complaints or _first_line(error)}. Correct or remove {_enumeration(places)}."


def _field(entry: dict[str, Any]) -> str:
    return ".".join(map(str, entry.get("loc", ())))


def _culprits(entries: list[dict[str, Any]], fields: list[str]) -> list[str]:
    """The variables and files that hold these values, or that are all there is."""
    values = [str(entry.get("input")).lower() for entry in entries if isinstance(entry.get("input"), str | int | float)]
    ends = tuple(f"_{field.replace('.', '_').upper()}" for field in [*fields, *map(_field, entries)] if field)
    variables = _variables("PREFECT_")
    named = [name for name in variables if os.environ[name].lower() in values]
    named = named or [name for name in variables if ends and name.endswith(ends)]
    named += [f"'{p.resolve()}'" for p in prefect_files() if any(v and v in _content(p).lower() for v in values)]
    return named or [*_variables("PREFECT_"), *(f"'{path.resolve()}'" for path in prefect_files() if path.exists())]


def prefect_files() -> list[Path]:
    """The files that Prefect reads, there or not."""
    home = Path(os.environ.get("PREFECT_HOME") or os.path.expanduser("~/.prefect"))  # noqa: PTH111 - never fails
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
    return [Path(".env"), Path("prefect.toml"), Path("pyproject.toml"), profiles]


def _is_toml(path: Path) -> bool:
    """Whether a file is what Prefect takes it for; one that is not there is."""
    try:
        text = path.read_bytes().decode("utf-8")
        if path.suffix == ".toml":
            tomllib.loads(text)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return True


# --- Dask ---------------------------------------------------------------------------------------------------------------


def _dask(error: Exception) -> str:
    message = _first_line(error)
    named = [*_variables("DASK_"), *(f"'{path}'" for path in _dask_files() if _says_something(path))]
    where = "that file" if any(str(path) in message for path in _dask_files()) else _enumeration(named)
    return (
        f"Dask cannot work with its configuration: {message}. Correct or remove {where}; a run of Halotile needs none."
    )


def _dask_files() -> list[Path]:
    home = os.path.expanduser("~/.config/dask")  # noqa: PTH111 - never fails
    files = []
    for root in map(
        Path, filter(None, [os.environ.get("DASK_ROOT_CONFIG", "/etc/dask"), home, os.environ.get("DASK_CONFIG")])
    ):
        files += (
            sorted(p for p in root.iterdir() if p.suffix in (".yaml", ".yml", ".json")) if root.is_dir() else [root]
        )
    return files


def _says_something(path: Path) -> bool:
    """Whether there is more in it than comments, as in the files that Dask itself puts into a home."""
    return any(line.strip() and not line.lstrip().startswith("#") for line in _content(path).splitlines())


# --- where it comes from --------------------------------------------------------------------------------------------------


def _variables(prefix: str) -> list[str]:
    return [name for name in sorted(os.environ) if name.startswith(prefix) and name not in OURS]


def _enumeration(places: list[str]) -> str:
    return ", ".join(dict.fromkeys(places)) or "what sets it"


def _content(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _first_line(error: Exception) -> str:
    lines = [" ".join(line.split()).rstrip(":") for line in str(error).splitlines() if line.strip()]
    return redacted(": ".join(lines[:3]))[:400].rstrip(".") or type(error).__name__

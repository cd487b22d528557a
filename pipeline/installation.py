"""How a package that is not installed here comes here: from this installation's own sources.

Never by the name `halotile` from a package index: there it is not ours, and whoever took it would be installed.
"""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

_HERE = Path(__file__).resolve().parents[1]


def how_to_install(extra: str) -> str:
    """What a person runs for an extra of Halotile, as the end of a sentence."""
    folder = _sources()
    if folder is None:
        return f"install the extra '{extra}' from the sources that Halotile was installed from: pip install '.[{extra}]' in their folder."
    pinned = "-c deploy/constraints.txt " if (folder / "deploy/constraints.txt").is_file() else ""
    return f"run: cd {shlex.quote(str(folder))} && pip install {pinned}-e '.[{extra}]'"


def _sources() -> Path | None:
    """The checkout that runs, or the one that was installed from; None where it is not there any more."""
    return next(
        (folder for folder in (_HERE, _installed_from()) if folder and (folder / "pyproject.toml").is_file()), None
    )


def _installed_from() -> Path | None:
    try:
        origin = json.loads(distribution("halotile").read_text("direct_url.json") or "{}")
        url = urlsplit(origin.get("url", ""))
    except (PackageNotFoundError, OSError, ValueError, AttributeError):
        return None
    return Path(unquote(url.path)) if url.scheme == "file" else None

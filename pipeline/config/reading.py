"""YAML in, checked objects out; all that is wrong with one is told at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml.error import YAMLError

from pipeline.config.problems import violations
from pipeline.config.section import Section, expanded
from pipeline.config.yaml_text import load_yaml
from pipeline.core.printable import one_line
from pipeline.errors import ConfigError
from pipeline.places.credentials import carried, shown

AnyConfig = TypeVar("AnyConfig", bound="Section")

TOLD = 30
"""Problems that one error tells at most: a file that is no configuration at all has hundreds."""


def read_config(cls: type[AnyConfig], path: str | Path, overrides: Sequence[str] = ()) -> AnyConfig:
    """Read one YAML into `cls`.

    Args:
        cls: The object wanted.
        path: The YAML; paths in it are relative to the working directory, `${NAME}` is taken from the environment.
        overrides: `key.key=value` each, applied in order; values are YAML.

    Raises:
        ConfigError: Everything that is wrong with it, at once.
    """
    return validated(cls, read_content(path, overrides), source=str(path))


def read_content(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What one YAML says, overridden, with nothing expanded or checked yet.

    Raises:
        ConfigError: It cannot be read, or is not keys and values.
    """
    content = _load_yaml(Path(path))
    for override in overrides:
        _override(content, override)
    return content


def validated(cls: type[AnyConfig], content: Any, *, source: str) -> AnyConfig:
    """`content` as a `cls`.

    Raises:
        ConfigError: Everything that is wrong with it, at once.
    """
    try:
        config = cls.model_validate(content)
    except ValidationError as error:
        problems = violations(cls, error.errors())
        title = f"Configuration '{source}' cannot be a run ({len(problems)} problem{'s'[: len(problems) > 1]}):"
        more = [f"and {len(problems) - TOLD} more"] if len(problems) > TOLD else []
        raise ConfigError("\n".join([title, *(f"  {p}" for p in [*problems[:TOLD], *more])])) from error
    if names := list(_no_text(config.model_dump())):
        raise ConfigError(
            f"Configuration '{one_line(source)}' names what is not UTF-8 text, and cannot stand in JSON, in a page or in a database: "
            f"{'; '.join(names)}. Rename the file or folder (convmv -f latin1 -t utf8 does many), or make a link to it."
        )
    return config


def _no_text(value: Any, key: str = "") -> Iterator[str]:
    """The keys whose values are file names that are no text: bytes of another encoding, which Python keeps as surrogates."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _no_text(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _no_text(part, f"{key}[{number}]")
    elif isinstance(value, str | Path) and any("\ud800" <= letter <= "\udfff" for letter in str(value)):
        yield f"{key}: {str(value)!a}"


def as_parameters(cls: type[AnyConfig], content: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """`content` for another process, which has another working directory: checked, and with local paths made absolute.

    `${NAME}` stays as written, so that what it stands for is kept nowhere.

    Raises:
        ConfigError: It is no `cls`.
    """
    placed: dict[str, Any] = _placed(content, validated(cls, content, source=source).model_dump(mode="json"))
    return placed


def _placed(written: Any, resolved: Any) -> Any:
    """What was written, with paths as they were found to be: the only texts that a configuration changes."""
    if isinstance(written, Mapping):
        # None is a section that says nothing; within the arguments of a class it is a value
        kept = {key: value for key, value in written.items() if value is not None or resolved.get(key, value) is None}
        return {key: _placed(value, resolved.get(key)) for key, value in kept.items()}
    if isinstance(written, list | tuple) and isinstance(resolved, list):
        return [_placed(value, other) for value, other in zip(written, resolved, strict=True)]
    if not isinstance(written, str) or not isinstance(resolved, str) or resolved == (meant := expanded(written)):
        return written
    if meant == written:
        return resolved
    return written if meant.startswith(("/", "~", "file://")) else f"{Path.cwd()}/{written}"


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        content = content_of_yaml(path.read_text(encoding="utf-8"), f"Configuration '{path}'")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"Configuration '{path}' cannot be read: it is no text in UTF-8 ({error}). Save it as UTF-8, or check the path."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: of a path with a zero byte
        raise ConfigError(f"Configuration '{path}' cannot be read ({error}). Check the path.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"Configuration '{path}' holds {type(content).__name__}, not keys. See configs/example.yaml.")
    return content


def content_of_yaml(text: str, what: str) -> Any:
    """What a YAML's text says.

    Args:
        text: Of the YAML.
        what: It is, for errors.

    Raises:
        ConfigError: It is no YAML.
    """
    try:
        return load_yaml(text)
    except (YAMLError, ValueError) as error:  # ValueError: what looks like a date and is none
        raise ConfigError(f"{what} is not YAML:\n  {_of_yaml(error, text)}") from error


def _of_yaml(error: Exception, text: str) -> str:
    """What an error says of a YAML; it quotes lines, so of one that carries credentials only where it is."""
    if not carried(text):
        return str(error)[:600]
    mark = getattr(error, "problem_mark", None)
    return f"{type(error).__name__}{f', line {mark.line + 1}' if mark else ''} {shown(text)}"


def _override(content: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    argument = shown(override)
    if not equals or not name.strip():
        raise ConfigError(f"--set '{argument}' is not key=value, such as tiles.core=[64, 128, 128].")
    try:
        value = load_yaml(text)
    except (YAMLError, ValueError) as error:
        why = _of_yaml(error, text).splitlines()[0]
        raise ConfigError(f"The value in --set '{argument}' is not YAML ({why}).") from error
    *parents, leaf = name.strip().split(".")
    for parent in parents:
        child = content[parent] = {} if content.get(parent) is None else content[parent]
        if not isinstance(child, dict):
            raise ConfigError(f"--set '{argument}': '{parent}' holds a value, not keys.")
        content = child
    content[leaf] = value

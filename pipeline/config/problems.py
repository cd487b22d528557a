"""What pydantic found wrong, for a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

from pipeline.places.credentials import shown


def violations(cls: type[BaseModel], errors: Sequence[Any]) -> list[str]:
    """What pydantic found wrong with a `cls`, for a person. One line a key: what was expected, and what came. A key of several possible types has several expectations."""
    expected: dict[str, list[str]] = {}
    inputs: dict[str, str] = {}
    for error in errors:
        name = shown(".".join(_keys(cls, error["loc"]))) or "the whole"
        expected.setdefault(name, []).append(_expectation(cls, error))
        if not isinstance(error["input"], dict | BaseModel) and error["type"] not in ("missing", "extra_forbidden"):
            inputs[name] = f" (found {_shortened(error['input'])})"
    return [f"{name}: {', or '.join(dict.fromkeys(texts))}{inputs.get(name, '')}" for name, texts in expected.items()]


def _shortened(value: Any) -> str:
    text = shown(repr(value))  # before it is cut: half a URL hides that it is one
    return text if len(text) <= 100 else f"{text[:100]}..."


def _expectation(cls: type[BaseModel], error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown key{_suggestion(cls, [str(part) for part in error['loc']])}"
    if error["type"] == "missing":
        whole = isinstance(error["loc"][-1], str)
        return "required, but not there" if whole else "three numbers, z, y, x"
    if error["type"] in ("tuple_type", "too_long"):
        return "three numbers, z, y, x"
    message: str = error["msg"]
    return message.removeprefix("Value error, ").replace("Input should", "should")


def _keys(cls: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The part of an error's location that the user wrote; what follows are names of types."""
    keys: list[str] = []
    owner: type[BaseModel] | None = cls
    for part in location:
        keys.append(str(part))
        if isinstance(part, int):  # of a list of sections
            continue
        field = owner.model_fields.get(part) if owner else None
        owner = next(_sections(field.annotation), None) if field else None
        if owner is None:
            break
    return keys


def _suggestion(cls: type[BaseModel], keys: list[str]) -> str:
    owner: Any = cls
    for key in (name for name in keys[:-1] if not name.isdigit()):
        field = owner.model_fields.get(key)
        owner = next(_sections(field.annotation), None) if field else None
        if owner is None:
            return ""
    known = list(owner.model_fields)
    close = get_close_matches(keys[-1], known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _sections(inner)

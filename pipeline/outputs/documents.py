"""JSON documents that we wrote and others may add to: what is not as we wrote it, what is theirs, and ours put back.

Viewers and people add keys to a store's metadata (`omero`, further levels, notes). So a document is compared key by key: ours
have our values, and whatever else there is, is named and left.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.core.strict_json import json_text
from pipeline.outputs.store import Store

GROWING = ("multiscales", "datasets")
"""Lists that others may append to; of all other lists every item is ours."""

_LONGEST = 80
"""Characters of a value in a message, at most."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a document is against ours.

    Args:
        differences: Keys that are not as we wrote them, a line each.
        others: Keys that we did not write.
    """

    differences: tuple[str, ...]
    others: tuple[str, ...]


def parsed(content: bytes) -> dict[str, Any] | None:
    """A document; None where it is none: empty, cut, zeros, another thing than an object."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def stored(store: Store, key: str) -> dict[str, Any] | None:
    """A document as it is stored; None where there is none, or something else."""
    content = store.get(key)
    return None if content is None else parsed(content)


def dumped(document: dict[str, Any]) -> bytes:
    """A document as it is put."""
    return json_text(document, indent=2).encode()


def compared(ours: dict[str, Any], stored: dict[str, Any]) -> Comparison:
    """What a stored document is against ours."""
    lines = list(_walk(ours, stored, ""))
    return Comparison(*(tuple(text for is_ours, text in lines if is_ours is wanted) for wanted in (True, False)))


def merged(ours: Any, stored: Any, key: str = "") -> Any:
    """Ours, with the keys of others that the stored one has."""
    if isinstance(ours, dict) and isinstance(stored, dict):
        mine = {name: merged(value, stored.get(name), name) for name, value in ours.items()}
        return mine | {name: value for name, value in stored.items() if name not in ours}
    if isinstance(ours, list) and isinstance(stored, list) and (key in GROWING or len(ours) == len(stored)):
        return [
            *(merged(*pair) for pair in zip(ours, stored, strict=False)),
            *ours[len(stored) :],
            *stored[len(ours) :],
        ]
    return ours


def _walk(ours: Any, stored: Any, place: str) -> Iterator[tuple[bool, str]]:
    """Lines, each with whether it is of what is ours."""
    if isinstance(ours, dict) and isinstance(stored, dict):
        for key, value in ours.items():
            below = _below(place, key)
            yield from _walk(value, stored[key], below) if key in stored else [(True, f"{below} is missing")]
        yield from ((False, _below(place, key)) for key in stored if key not in ours)
    elif isinstance(ours, list) and isinstance(stored, list) and _align(ours, stored, place):
        for number, pair in enumerate(zip(ours, stored, strict=False)):
            yield from _walk(*pair, f"{place}[{number}]")
        yield from ((False, f"{place}[{number}]") for number in range(len(ours), len(stored)))
    elif not same(ours, stored):
        yield True, f"{place} is {told(stored)}, written as {told(ours)}"


def _below(place: str, key: str) -> str:
    """The place of a key, in characters that every terminal shows."""
    shown = json.dumps(key)[1:-1]
    return f"{place}.{shown}" if place else shown


def _align(ours: list[Any], stored: list[Any], place: str) -> bool:
    if not any(isinstance(item, dict) for item in ours):
        return False  # a list of values is one value
    return len(ours) == len(stored) or (place.rpartition(".")[2] in GROWING and len(ours) < len(stored))


def same(ours: Any, stored: Any) -> bool:
    """Whether two values are one, to every key; 1 and 1.0 are, true is neither."""
    if isinstance(ours, dict) and isinstance(stored, dict):
        return ours.keys() == stored.keys() and all(same(value, stored[key]) for key, value in ours.items())
    if isinstance(ours, list) and isinstance(stored, list):
        return len(ours) == len(stored) and all(map(same, ours, stored))
    return isinstance(ours, bool) is isinstance(stored, bool) and ours == stored


def told(value: Any) -> str:
    """A value for a message, in characters that every terminal shows."""
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."

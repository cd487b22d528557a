"""The text of a YAML as plain values, no larger than it looks: bounded in depth, and in what its aliases stand for.

A YAML of ten lines may stand for 10^9 values, or for itself: what walks through it later would never end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent

MOST_CHARACTERS = 2**21
"""Of a YAML: some ten thousand volumes of a dataset, which take a minute to read."""

MOST_VALUES = 10**6
"""That a YAML with aliases stands for."""

DEEPEST = 64
"""Levels of values in values."""

MOST_OPEN = 256
"""Brackets that stand open at once in a text, in strings too: the parser's time grows with their square."""

MOST_BITS = 4096
"""Of an integer."""


def load_yaml(text: str) -> Any:
    """What it says.

    Raises:
        YAMLError: It is no YAML, too deep, or stands for more than its text.
        ValueError: It holds what looks like a date and is none.
    """
    if len(text) > MOST_CHARACTERS:
        raise YAMLError(f"it has {len(text):,} characters; at most {MOST_CHARACTERS:,} are read")
    if _most_open(text) > MOST_OPEN:
        raise YAMLError(_too_deep())
    try:
        if "&" in text and "*" in text:
            _check_aliases(text)
        content = YAML(typ="safe", pure=True).load(text)
    except RecursionError as error:
        raise YAMLError(_too_deep()) from error
    except (
        TypeError,
        AttributeError,
        KeyError,
        IndexError,
        OverflowError,
    ) as error:  # of tags that do not fit what follows
        raise YAMLError(f"a value does not fit its tag ({type(error).__name__}: {error})") from error
    _check_depth(content)
    return content


def _check_aliases(text: str) -> None:
    """Count what the aliases stand for, before anything is made of them."""
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []  # anchors, and values before them
    count = 0
    for event in _events(text):
        if isinstance(event, CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor:
                sizes[anchor] = count - before
        elif isinstance(event, AliasEvent):
            if any(anchor == event.anchor for anchor, _ in opened):
                raise YAMLError(f"'*{event.anchor}' stands for what it is in itself, line {event.start_mark.line + 1}")
            count += sizes.get(str(event.anchor), 1)
        elif isinstance(event, CollectionStartEvent):
            opened.append((event.anchor, count))
            count += 1
            if len(opened) > DEEPEST:
                raise YAMLError(_too_deep())
        elif isinstance(event, NodeEvent):
            count += 1
        if count > MOST_VALUES:
            raise YAMLError(f"its aliases stand for more than {MOST_VALUES:,} values")


def _events(text: str) -> Iterator[Any]:
    return iter(YAML(typ="safe", pure=True).parse(text))


def _most_open(text: str) -> int:
    """Brackets that stand open at once, at most."""
    if text.count("[") + text.count("{") <= MOST_OPEN:
        return 0
    return max(accumulate(1 if bracket in "[{" else -1 for bracket in re.findall(r"[][{}]", text)))


def _check_depth(content: Any) -> None:
    left = [(content, 0)]
    while left:
        value, depth = left.pop()
        if depth > DEEPEST:
            raise YAMLError(_too_deep())
        if isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise YAMLError(f"a number has {value.bit_length():,} bits")
        if isinstance(value, dict):
            left += [(child, depth + 1) for child in value.values()]
        elif isinstance(value, list | tuple | set):
            left += [(child, depth + 1) for child in value]


def _too_deep() -> str:
    return f"values stand in values more than {DEEPEST} levels deep"

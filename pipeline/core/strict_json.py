"""JSON as RFC 8259 has it: Python writes a bare `NaN` or `Infinity`, which is no JSON, and readers in other languages fail on it.

What is no number is written as `null`: a figure that has no value is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite


def json_text(content: object, *, indent: int | None = None, sort_keys: bool = False, ensure_ascii: bool = True) -> str:
    """`content` as JSON, NaN and infinities in it as `null`.

    Raises:
        TypeError: It holds something that JSON has not.
    """
    encoder = json.JSONEncoder(allow_nan=False, indent=indent, sort_keys=sort_keys, ensure_ascii=ensure_ascii)
    try:
        return encoder.encode(content)
    except ValueError:  # the common case costs no second walk
        return encoder.encode(without_nan(content))


def without_nan(content: object) -> object:
    """The same with None for each number that is not finite; tuples become lists."""
    if isinstance(content, float):
        return content if isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return content

"""Text of others' making, file names above all, as it may be shown: no sign in it acts on a terminal, or begins a line of a log."""

from __future__ import annotations

import re

_ACTING = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control signs, C0 and C1: ESC, CR, BEL, CSI
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"  # turn the direction of writing, or have no width
    "\u2028\u2029\ufff9-\ufffb"  # part lines and paragraphs
    "\ud800-\udfff"  # bytes of a file name that are no UTF-8: they cannot be written as such
    "\U000e0000-\U000e007f]"  # tags, which are not seen
)


def one_line(text: str) -> str:
    """The text with every sign escaped that acts instead of being seen, as in a Python literal: `a\\nb`, `\\x1b[2J`."""
    return _ACTING.sub(lambda match: _escaped(match[0]), text)


def lines(text: str, indent: str = "  ") -> str:
    """A message of several lines: escaped, and no line but the first begins at the margin, where messages begin."""
    first, *others = text.split("\n")
    return "\n".join([one_line(first), *(_indented(one_line(line), indent) for line in others)])


def json_escaped(document: str) -> str:
    """A JSON document, one line, with the same signs escaped as JSON does: what is read from it is what was written."""
    return _ACTING.sub(lambda match: _as_json(match[0]), document)


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")


def _as_json(sign: str) -> str:
    code = sign.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{code[i : i + 4]}" for i in range(0, len(code), 4))


def _indented(line: str, indent: str) -> str:
    return line if not line or line[0] == " " else f"{indent}{line}"

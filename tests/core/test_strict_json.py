"""JSON that every reader takes."""

import ast
import json
from pathlib import Path

import pytest

from pipeline.core.strict_json import json_text

ROOT = Path(__file__).parents[2]
NAN, INF = float("nan"), float("inf")

NOT_WRITTEN = {"ledger.py", "documents.py", "deployment.py", "preload.py"}
"""Texts for a person or of clocks and names alone: no figure of anybody's is in them."""


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            {"a": NAN, "b": [INF, -INF, 1.5], "c": {"d": (NAN, 2)}},
            '{"a": null, "b": [null, null, 1.5], "c": {"d": [null, 2]}}',
        ),
        ({"a": 1e300, "b": None, "c": True, "d": "NaN"}, '{"a": 1e+300, "b": null, "c": true, "d": "NaN"}'),
        (NAN, "null"),
    ],
)
def test_what_is_no_number_is_written_as_null(content, text):
    """A bare NaN is no JSON: viewers and other languages fail on the whole document."""
    assert json_text(content) == text


def test_what_is_finite_is_written_as_it_always_was():
    """Files of before stay the same bytes."""
    content = {"b": [1, 2.5, "é"], "a": None}
    for options in ({}, {"indent": 2}, {"sort_keys": True}, {"ensure_ascii": False}):
        assert json_text(content, **options) == json.dumps(content, **options)


def _unchecked(source: str) -> list[int]:
    """Lines of calls that may write a bare NaN: digests may, they are no JSON for anybody."""
    tree = ast.parse(source)
    hashed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and "sha256" in ast.unparse(node.func)
        for inner in ast.walk(node)
    }
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump")
    ]
    return [c.lineno for c in calls if id(c) not in hashed and not any(k.arg == "allow_nan" for k in c.keywords)]


def test_every_json_that_is_written_allows_no_bare_nan():
    """The next artifact, too."""
    files = [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "flows").rglob("*.py")]
    found = [
        f"{path.name}:{line}" for path in files if path.name not in NOT_WRITTEN for line in _unchecked(path.read_text())
    ]
    assert not found


def test_such_a_call_would_be_found():
    """The negative control."""
    assert _unchecked("json.dumps(x)\nsha256(json.dumps(y))\njson.dumps(z, allow_nan=False)") == [1]

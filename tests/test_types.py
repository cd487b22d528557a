import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SILENCED = 4
"""Complaints of mypy that are silenced today: whoever needs another takes one away, or raises this with a reason."""


def silenced(text):
    """The lines of a source that silence the type checker."""
    return [line for line in text.splitlines() if re.search(r"#\s*type:\s*ignore", line)]


def is_reasoned(line):
    """Whether a line names the error that it silences, and says why."""
    return re.search(r"# type: ignore\[[a-z-]+\]  # \S", line) is not None


def test_what_the_type_checker_says_is_rarely_silenced():
    """A complaint that is silenced may be a fault that nobody sees."""
    sources = [ROOT / "halotile.py", *(ROOT / "pipeline").rglob("*.py"), *(ROOT / "flows").rglob("*.py")]
    found = [line for source in sources for line in silenced(source.read_text(encoding="utf-8"))]
    assert len(found) <= SILENCED
    assert [line for line in found if not is_reasoned(line)] == []


@pytest.mark.parametrize("line", ["a = b  # type: ignore", "a = b  # type: ignore[arg-type]", "a = b #type:ignore"])
def test_a_silenced_line_without_a_reason_is_found(line):
    """The control of the above."""
    assert silenced(line) == [line]
    assert not is_reasoned(line)


@pytest.mark.parametrize("package", ["pipeline", "flows"])
def test_each_package_says_that_it_is_typed(package):
    """Without the mark, type checkers of those who import it take all of it for Any (PEP 561)."""
    assert (ROOT / package / "py.typed").is_file()

"""The ways of `docs/architecture.md`: what they name is there, and none goes back to a room that it has left."""

import re
from itertools import groupby
from pkgutil import resolve_name

import pytest

from tests.e2e.commands import ROOT


def ways() -> dict[str, list[str]]:
    """What passes, and the functions that it passes."""
    text = (ROOT / "docs/architecture.md").read_text().split("## Five ways through the house")[1].split("\n## ")[0]
    found: dict[str, list[str]] = {}
    for paragraph in text.split("\n\n"):
        if match := re.match(r"    (a [a-z' ]+?)  +(?=pipeline|flows)", paragraph):
            found[match[1]] = re.findall(r"(?:pipeline|flows)(?:\.\w+)+", paragraph)
    return found


def rooms(names: list[str]) -> list[str]:
    """In order; once for functions that follow each other in one."""
    return [room for room, _ in groupby(".".join(name.split(".")[:2]) for name in names)]


def test_there_are_five():
    """None is lost by how the page is set."""
    assert list(ways()) == ["a configuration key", "a statistic", "a tile", "a checkpoint", "a dataset's volume"]


@pytest.mark.parametrize("way", ways().values(), ids=ways())
def test_a_way_leads_through_what_is_there(way):
    """Each name can be imported."""
    assert len(way) > 5
    assert [name for name in way if not callable(resolve_name(name))] == []


@pytest.mark.parametrize("way", ways().values(), ids=ways())
def test_no_room_comes_twice(way):
    """Data flows one way."""
    assert len(set(rooms(way))) == len(rooms(way)), rooms(way)


def test_a_name_that_is_gone_and_a_way_that_goes_back_would_be_found():
    """The negative control."""
    with pytest.raises((ImportError, AttributeError)):
        resolve_name("pipeline.engine.no_such_function")
    assert rooms(["pipeline.core.a", "pipeline.core.b", "flows.c.d", "pipeline.core.a"]) == [
        "pipeline.core",
        "flows.c",
        "pipeline.core",
    ]

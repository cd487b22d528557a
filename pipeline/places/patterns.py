"""Locations with wildcards, on paths and in stores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pipeline.core.locations import is_url
from pipeline.places.listing import Item, children, item_at

STORE_FILES = frozenset({"zarr.json", ".zarray", ".zgroup"})
"""What makes a folder a Zarr store; `**` looks for nothing below one: there may be millions of chunks."""


@dataclass(frozen=True, slots=True)
class Matches:
    """What a pattern finds.

    Args:
        items: By location.
        stuck: Where nothing was found: the last folder that was there.
        part: And the part of the pattern that nothing in it fits.
    """

    items: list[Item]
    stuck: str = ""
    part: str = ""


def is_pattern(url: str) -> bool:
    """Whether a location holds `*`, `?` or `[`, and is not simply there under that name. A `?` in a URL of the web begins its query."""
    signs = "*[" if url.lower().startswith(("http://", "https://")) else "*?["
    return any(sign in url for sign in signs) and (is_url(url) or not os.path.lexists(url))


def matching(pattern: str) -> Matches:
    """What fits a pattern: `*`, `?` and `[...]` in one component, `**` for any number of folders.

    Wildcards leave hidden names out, and `**` follows no links and looks for nothing below a Zarr store. So its cost is that of
    the folders, not that of the chunks.

    Raises:
        StorageError: A folder cannot be listed.
    """
    scheme, sign, rest = pattern.partition("://") if is_url(pattern) else ("", "", pattern)
    parts = rest.split("/")
    literal = next(i for i, part in enumerate(parts) if any(mark in part for mark in "*?["))
    start = scheme + sign + "/".join(parts[:literal])
    items = [Item(start or "/", True)]
    for part in _patterns(parts[literal:]):
        deeper = [item for folder in items if folder.folder for item in _fitting(folder, part)]
        if not deeper:
            return _stuck(items[0].url, part)
        items = deeper
    return Matches(sorted({item.url: item for item in items}.values(), key=lambda item: item.url))


def _patterns(parts: list[str]) -> list[str]:
    """The components of a pattern: no empty ones, and a `**` at the end means what is in those folders."""
    components = [part for part in parts if part]
    return [*components, "*"] if components[-1] == "**" else components


def _fitting(folder: Item, part: str) -> Iterator[Item]:
    if part == "**":
        yield from _folders(folder)
    elif any(mark in part for mark in "*?["):
        hidden = part.startswith(".")
        for item in children(folder.url) or ():
            if fnmatchcase(item.name, part) and (hidden or not item.name.startswith(".")):
                yield item
    elif (child := item_at(f"{folder.url.rstrip('/')}/{part}")) is not None:
        yield child


def _folders(folder: Item) -> Iterator[Item]:
    """A folder and those below it."""
    waiting = [folder]
    while waiting:
        item = waiting.pop()
        inside = children(item.url) or []
        if STORE_FILES.isdisjoint(child.name for child in inside):
            yield item
            waiting += [child for child in inside if child.folder and not child.link and not child.name.startswith(".")]


def _stuck(url: str, part: str) -> Matches:
    """Where a pattern leads to nothing: the last folder that is there, and what it has not got."""
    scheme, sign, rest = url.rpartition("://")
    while rest.strip("/") and children(f"{scheme}{sign}{rest}") is None:
        rest, _, part = rest.rstrip("/").rpartition("/")
    return Matches([], f"{scheme}{sign}{rest}" or "/", part)

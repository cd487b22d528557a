"""Names of a dataset's volumes: one path component each, unique, and the same whatever the order they are found in.

A name is of letters, digits, `.`, `_` and `-`, and begins with a letter or a digit. Two that differ only in case count as the same:
some file systems have one folder for both.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.core.locations import is_url

STORES = (".ome.zarr", ".zarr")
SUFFIXES = (*STORES, ".ome.tiff", ".ome.tif", ".tiff", ".tif", ".hdf5", ".hdf", ".h5")

LONGEST = 120
"""Characters of a name that is made here; file systems take 255, and folders beside the volume's have longer names."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RUN = re.compile(r"\.run$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a volume lies, for its name.

    Args:
        url: Its own.
        store: Of the store, file, plate or collection that it is or lies in.
        named: The name that was given, if any: of the volume, or where it is one of several in a store, of the store.
        alone: The store is all that there is, so that what lies in it needs no more than its place there.
    """

    url: str
    store: str
    named: str | None = None
    alone: bool = False

    @property
    def inner(self) -> tuple[str, ...]:
        """Its place in the store."""
        return tuple(part for part in self.url.removeprefix(self.store).split("/") if part)


def why_no_name(text: str) -> str | None:
    """What is wrong with a name that was given; None where nothing is."""
    if not _NAME.fullmatch(text):
        return f"'{text}' is no name: letters, digits, '.', '_' and '-', the first a letter or a digit; such as '{cleaned(text)}'"
    if _RUN.search(text):
        return f"'{text}' ends as run directories do (.run); name it '{cleaned(text)}'"
    if len(text) > LONGEST:
        return f"'{text[:20]}...' has {len(text)} characters, more than {LONGEST}"
    return None


def cleaned(text: str) -> str:
    """Any text as a name: what cannot be in one becomes `-`."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
    return _RUN.sub("-run", name) or "volume"


def bare(component: str) -> str:
    """The last component of a location without the suffixes of stores and files."""
    low = component.lower()
    suffix = next((suffix for suffix in SUFFIXES if low.endswith(suffix) and low != suffix), "")
    return component[: len(component) - len(suffix)]


def distinct_names(places: Sequence[Place]) -> list[str]:
    """A name for each place, no two the same.

    A name depends on the place alone, unless others would have the same. All of those get longer ones: with their folders, from
    the nearest on, as many as it takes; then with the file's suffix; then with a digest of the location. One that was given stays.
    Nothing depends on the order of the places.

    Raises:
        ValueError: Two were given the same name; the text says which.
    """
    ways = [list(_ways(place)) for place in places]
    at = [0] * len(places)
    while clash := [group for group in _groups(way[n] for way, n in zip(ways, at, strict=True)) if len(group) > 1]:
        for group in clash:
            movable = [i for i in group if at[i] + 1 < len(ways[i])]
            if not movable:
                one, other = (places[i].url for i in group[:2])
                raise ValueError(f"'{one}' and '{other}' have the same name, '{ways[group[0]][at[group[0]]]}'")
            for i in movable:
                at[i] += 1
    return [way[n] for way, n in zip(ways, at, strict=True)]


def _groups(names: Iterable[str]) -> list[list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        groups[name.lower()].append(i)
    return list(groups.values())


def _ways(place: Place) -> Iterator[str]:
    """Names that a place may have, the shortest first."""
    *folders, last = [part for part in place.store.partition("://")[2 if is_url(place.store) else 0].split("/") if part]
    if place.named is not None:
        yield _short("-".join((place.named, *map(cleaned, place.inner))), place.url)
        return
    inner = [cleaned(part) for part in place.inner]
    parts = [cleaned(bare(last)), *inner]
    if place.alone and inner:
        yield _short("-".join(inner), place.url)
    yield _short("-".join(parts), place.url)
    for depth in range(1, len(folders) + 1):
        yield _short("-".join([*map(cleaned, folders[-depth:]), *parts]), place.url)
    yield _short("-".join([cleaned(last), *inner]), place.url)
    yield _digested("-".join(parts), place.url)


def _short(name: str, url: str) -> str:
    return name if len(name) <= LONGEST else _digested(name, url)


def _digested(name: str, url: str) -> str:
    digest = hashlib.sha256(url.encode(errors="surrogateescape")).hexdigest()[:12]
    return f"{name[: LONGEST - 13]}-{digest}"

"""A dataset's volumes: found from what a person wrote of them, each with a name that is its folder's.

    read_catalogue("s3://bucket/study/*.ome.zarr")
    read_catalogue("plate.ome.zarr")                     # each field of each well
    read_catalogue(["first/", "second.csv", {"url": "/data/x.zarr", "name": "x", "level": 1}])

**What is named, and what is found.** A location that is named, one by one, is a volume whatever lies there: where nothing does, its
run fails by its name and stops no other. What a folder or a pattern finds is a volume where it looks like one; what does not is
left out, and told with the reason. So are wells and fields of a plate named by the plate.

**Names.** A name that was given stays. Another is made from the volume's location alone, and does not change as the dataset grows,
with two exceptions, both told here: volumes that would have the same name all get longer ones (with their folders: `a-x`, `b-x`), so a
volume that comes later may lengthen an earlier one's; and a plate that is given alone, as one text, calls its fields `A-1-0`,
in any list `PLATE-A-1-0`. Who needs more gives names, or lists plates as `[plate.zarr]` from the start.

Only metadata of groups is read; no voxel is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from pipeline.core.locations import is_url
from pipeline.core.names import Place, distinct_names
from pipeline.dataset.rows import Source, rows_of
from pipeline.dataset.search import NAMED, LeftOut, Volume, search
from pipeline.errors import ConfigError, StorageError


@dataclass(frozen=True, slots=True)
class Entry:
    """A volume of a dataset.

    Args:
        name: Unique in it, one path component; the folder of its output.
        url: Where it lies: an absolute path, or a URL.
        reading: Keys of `input` that were given for it, in place of the dataset's.
        store: What it is, or lies in: a store, a file, a plate or a collection.
    """

    name: str
    url: str
    reading: Mapping[str, Any] = field(default_factory=dict, hash=False)
    store: str = ""


@dataclass(frozen=True, slots=True)
class Catalogue(Sequence[Entry]):
    """The volumes of a dataset, in the order of the source, and of a folder by name.

    Args:
        entries: The volumes.
        left_out: What is none.
    """

    entries: tuple[Entry, ...]
    left_out: tuple[LeftOut, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Entry, ...]: ...
    def __getitem__(self, index: int | slice) -> Entry | tuple[Entry, ...]:
        return self.entries[index]


def read_catalogue(source: Source, *, may_be_empty: bool = False, without: Sequence[str] = ()) -> Catalogue:
    """The volumes that a source names or leads to.

    Args:
        source: A Zarr array, an OME-Zarr image, plate or collection, HDF5 or TIFF; a folder or a prefix of a store, for all that lie
            directly in it; a pattern (`*`, `?`, `[...]`, `**`); a YAML or CSV; or a list of these and of mappings with the keys
            `url`, `name`, `level` and `axes`.
        without: Folders or prefixes where nothing is a volume: the set's own outputs. Links on the way there are followed.
        may_be_empty: A folder or pattern without volumes is none, not an error; nor is a prefix that is not there yet.

    Raises:
        ConfigError: It cannot be understood, two names are the same, or a volume is in it twice.
        StorageError: There is nothing, or it cannot be listed.
    """
    parts = search(rows_of(source))
    problems = [part.problem for part in parts if part.problem and not (part.may_come and may_be_empty)]
    if problems:
        raise StorageError("\n".join(problems[:NAMED]))
    everything = [volume for part in parts for volume in part.volumes]
    inside = _inside(everything, without)
    volumes = [volume for volume in everything if volume.url not in inside]
    if everything and not volumes and not may_be_empty:
        raise StorageError(
            f"The catalogue finds {len(everything)} volumes, such as '{everything[0].url}', and all of them are outputs of this dataset "
            f"itself ({', '.join(without)}). Name its inputs."
        )
    _check_once(volumes)
    own = [LeftOut(volume.url, "an output of this dataset") for volume in everything if volume.url in inside]
    return Catalogue(_entries(volumes), (*(one for part in parts for one in part.left_out), *_some(own)))


def _inside(volumes: Sequence[Volume], folders: Sequence[str]) -> frozenset[str]:
    """Locations of those that lie in such folders, by whatever links. Each folder is resolved once, and no volume: that one is a
    link itself says nothing of where it lies."""
    if not folders:
        return frozenset()
    roots = {_real_path(folder).rstrip("/") for folder in folders}
    parents = {url: url.rpartition("/")[0] for url in (volume.url for volume in volumes)}
    real = {parent: _real_path(parent) for parent in set(parents.values())}
    places = {url: f"{real[parent]}/{url.rpartition('/')[2]}" for url, parent in parents.items()}
    return frozenset(
        url
        for url, place in places.items()
        if any(place == folder or place.startswith(f"{folder}/") for folder in roots)
    )


def _real_path(url: str) -> str:
    return url if is_url(url) else os.path.realpath(url)  # not `Path.resolve`, which fails at links that go round


def _some(own: Sequence[LeftOut]) -> Sequence[LeftOut]:
    """There may be hundreds: they are told by the first."""
    if len(own) < 2:
        return own
    return [LeftOut(own[0].url, f"an output of this dataset, as are {len(own) - 1} more")]


def _check_once(volumes: Sequence[Volume]) -> None:
    first: dict[str, Volume] = {}
    twice = []
    for volume in volumes:
        other = first.setdefault(volume.url, volume)
        if other is not volume:
            twice.append(f"'{volume.url}', by {_by(other)} and by {_by(volume)}")
    if twice:
        more = f"; and {len(twice) - NAMED} more" if len(twice) > NAMED else ""
        raise ConfigError(f"The catalogue has volumes twice: {'; '.join(twice[:NAMED])}{more}. Leave one of them out.")


def _by(volume: Volume) -> str:
    at = volume.row.values.url
    return volume.row.place if at == volume.url else f"{volume.row.place} ({at})"


def _entries(volumes: Sequence[Volume]) -> tuple[Entry, ...]:
    places = [Place(one.url, one.store, one.row.values.name, one.alone) for one in volumes]
    try:
        names = distinct_names(places)
    except ValueError as error:
        raise ConfigError(
            f"The catalogue cannot name its volumes apart: {error}. Give each a name of its own."
        ) from error
    return tuple(
        Entry(name, one.url, one.row.values.reading, one.store) for name, one in zip(names, volumes, strict=True)
    )

"""From the locations that a person named to the volumes there.

Whatever is named is looked at all at once, then whatever lies in that: a store is asked a few times for many volumes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from pipeline.core.locations import is_url
from pipeline.core.names import STORES
from pipeline.dataset.rows import Row
from pipeline.errors import ConfigError
from pipeline.places.listing import Item, children
from pipeline.places.patterns import STORE_FILES, Matches, is_pattern, matching
from pipeline.volumes.contents import HOLDERS, VOLUMES, Content, classify, members
from pipeline.volumes.foreign import foreign_place

NAMED = 8
"""Things that an error names at most."""

NO_VOLUME = {
    "group": "a Zarr group without OME-Zarr metadata: name the array or image in it",
    "folder": "a folder, no volume: name what is in it",
    "plate": "a plate without wells",
    "well": "a well without images",
    "collection": "a collection without images",
}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that a folder or a pattern found, and that is no volume."""

    url: str
    why: str


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume that was found.

    Args:
        row: By which it was.
        url: Where it lies.
        store: What it is, or lies in.
        alone: Its store is a plate that is all of the source.
    """

    row: Row
    url: str
    store: str
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """What one row comes to.

    Args:
        volumes: In order.
        left_out: What else was found.
        problem: Why there is no volume, where there is none.
        may_come: It is a folder or a pattern, which may have volumes later.
    """

    volumes: tuple[Volume, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    problem: str = ""
    may_come: bool = True


def search(rows: Sequence[Row]) -> list[Part]:
    """Find the volumes of each row.

    Raises:
        ConfigError: One gives a name to what is many volumes.
        StorageError: Something cannot be listed.
    """
    patterns = {i: matching(row.values.url) for i, row in enumerate(rows) if is_pattern(row.values.url)}
    named = [i for i in range(len(rows)) if i not in patterns]
    contents = dict(zip(named, classify([rows[i].values.url for i in named]), strict=True))
    folders = {i: children(content.url) or [] for i, content in contents.items() if content.kind in ("folder", "group")}
    listed = {i: _visible(items) for i, items in folders.items()} | {i: within.items for i, within in patterns.items()}
    inside = iter(classify([item for items in listed.values() for item in items]))
    within = {i: list(islice(inside, len(items))) for i, items in listed.items()}
    held = _members([*contents.values(), *(content for one in within.values() for content in one)])
    parts = []
    for i, row in enumerate(rows):
        if i in within:
            parts.append(_of_many(row, within[i], held, patterns.get(i)))
        else:
            parts.append(_of_one(row, contents[i], held))
    return parts


def _visible(items: Iterable[Item]) -> list[Item]:
    """Without hidden ones, run directories, and a store's own documents."""
    return [
        item
        for item in items
        if not (item.name.startswith(".") or item.name in STORE_FILES or (item.folder and item.name.endswith(".run")))
    ]


def _members(contents: Sequence[Content]) -> dict[str, list[str]]:
    """What lies in each that holds volumes."""
    holders = list({content.url: content for content in contents if content.kind in HOLDERS}.values())
    return dict(zip((content.url for content in holders), members(holders), strict=True))


# --- a location that was named ------------------------------------------------------------------------------------------


def _of_one(row: Row, content: Content, held: Mapping[str, list[str]]) -> Part:
    url = content.url
    inside = held.get(url, [])
    if content.kind == "hdf5":
        if row.alone and len(inside) != 1:
            return Part(problem=f"'{url}' is an HDF5 file, and {_datasets(url, inside)}", may_come=False)
        inside = inside if len(inside) == 1 else [url]
    elif content.kind in HOLDERS and not inside:
        return Part(problem=f"'{url}' is {NO_VOLUME[content.kind]}. Check the location, or copy it again.")
    elif row.alone and content.kind == "nothing":
        return Part(
            problem=f"There is nothing at '{url}'. Check the location; for a store, its endpoint too.",
            may_come=is_url(url),  # a prefix without objects is not there
        )
    elif row.alone and content.kind == "file":
        return Part(problem=f"'{url}' is no volume, and no catalogue (.yaml, .csv): {content.why}.", may_come=False)
    return Part(_volumes(row, content, inside or [url], alone=row.alone and content.kind == "plate"))


def _volumes(row: Row, content: Content, urls: Sequence[str], *, alone: bool = False) -> tuple[Volume, ...]:
    store = content.url if content.kind in ("plate", "collection") else _store(content.url)
    return tuple(Volume(row, url, store, alone) for url in urls)


def _store(url: str) -> str:
    """The file or store that a volume lies in, by their names; itself where there is none."""
    place = foreign_place(url)
    if place is not None:
        return str(place.path)
    inner, outer = url, url.rpartition("/")[0]
    while not inner.lower().endswith(STORES) and outer.strip("/") and not outer.endswith(":/"):
        inner, outer = outer, outer.rpartition("/")[0]
    return inner if inner.lower().endswith(STORES) else url


# --- what a folder or a pattern found -----------------------------------------------------------------------------------


def _of_many(row: Row, contents: Sequence[Content], held: Mapping[str, list[str]], pattern: Matches | None) -> Part:
    volumes: list[Volume] = []
    left_out: list[LeftOut] = []
    for content in contents:
        inside = held.get(content.url, [content.url] if content.kind in VOLUMES else [])
        if content.kind == "folder" and "**" in row.values.url:
            continue  # it was looked into
        if not inside or (content.kind == "hdf5" and len(inside) > 1):
            left_out.append(LeftOut(content.url, _why_not(content, inside)))
        else:
            volumes += _volumes(row, content, inside)
    if row.values.name is not None:
        raise ConfigError(
            f"{row.place}: name is '{row.values.name}', but '{row.values.url}' is not one volume; {len(volumes)} were found. Leave the "
            "name out, or list the volumes one by one."
        )
    problem = "" if volumes else _none(row.values.url, left_out, pattern)
    return Part(tuple(volumes), tuple(left_out), problem)


def _why_not(content: Content, inside: Sequence[str]) -> str:
    if content.kind == "hdf5":
        return _datasets(content.url, inside)
    return content.why or NO_VOLUME.get(content.kind, "gone meanwhile")


def _datasets(url: str, datasets: Sequence[str]) -> str:
    if not datasets:
        return "it has no dataset of two axes or more"
    names = [name.removeprefix(f"{url}/") for name in datasets]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"it has {len(names)} datasets ({', '.join(names[:NAMED])}{more}): name one, such as {datasets[0]}"


def _none(url: str, left_out: Sequence[LeftOut], pattern: Matches | None) -> str:
    named = "; ".join(f"'{one.url.rpartition('/')[2]}' ({one.why})" for one in left_out[:NAMED])
    more = f"; and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
    if left_out:
        what = f"No volume fits the pattern '{url}'" if pattern else f"'{url}' holds no volume"
        return f"{what}. {len(left_out)} thing{'s'[: len(left_out) > 1]} left out: {named}{more}."
    if pattern is None:
        return f"'{url}' holds no volume: it is empty. Check the location."
    things = [item.name for item in children(pattern.stuck) or ()]
    such = f", such as {', '.join(things[:NAMED])}" if things else ""
    return (
        f"Nothing fits the pattern '{url}': of {len(things)} thing{'s'[: len(things) != 1]} in '{pattern.stuck}'{such}, none fits "
        f"'{pattern.part}'. Check the pattern."
    )

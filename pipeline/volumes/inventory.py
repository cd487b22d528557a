"""What is stored of a volume, counted; what nothing is stored of, refused; and the count on disk, for those that read later.

Whoever reads a volume for its voxels opens it by `open_counted`, or counts it himself: a Zarr array reads as fill wherever it has
no chunk, whether nobody wrote one or the disk was unplugged.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from math import prod
from typing import Literal

import numpy as np
from zarr.core.chunk_key_encodings import DefaultChunkKeyEncoding, V2ChunkKeyEncoding

from pipeline.core.locations import UNLISTED, protocol
from pipeline.core.stored import (
    FORMS,
    MOST_OBJECTS,
    Inventory,
    Stored,
    digest,
    objects,
    place_of,
    sample,
)
from pipeline.core.strict_json import json_text
from pipeline.core.volume import FINEST, Selection
from pipeline.errors import StorageError
from pipeline.places.listing import Look, looks, looks_at, signature
from pipeline.volumes.counted import counted
from pipeline.volumes.foreign import ForeignArray
from pipeline.volumes.volume import Volume, open_volume

Missing = Literal["fail", "fill"]

FEW = 16
"""Absent chunks that are looked for under other names, where a store cannot be listed."""


def open_counted(
    url: str,
    selection: Selection = FINEST,
    *,
    missing: Missing = "fail",
    on_holes: Callable[[str, str], None] | None = None,
) -> Volume:
    """Open a volume as `open_volume` does, and count what is stored of it; what was counted and is absent at reading is an error.

    Args:
        url: As of `open_volume`.
        selection: As of `open_volume`.
        missing: `fail` refuses an array of which nothing is stored, or whose chunks lie under other names; `fill` takes it.
        on_holes: Called with `url` and each warning of what is not stored, and is read as fill.

    Raises:
        StorageError: It cannot be opened, or is refused.
    """
    volume = open_volume(url, selection)
    inventory = take_inventory(volume, missing)
    if on_holes:
        for warning in inventory.stored.warnings:
            on_holes(url, warning)
    return counted(volume, inventory)


def take_inventory(volume: Volume, missing: Missing = "fail") -> Inventory:
    """Count the objects that hold a volume's voxels: all, or a sample where they are too many or cannot be listed.

    Raises:
        StorageError: They may not be looked at; or nothing is stored, or it lies under other names, and `missing` is `fail`.
    """
    inventory, elsewhere = _looked_for(volume, missing)
    if missing == "fail":
        _refuse_elsewhere(volume, inventory, elsewhere)
        _refuse_nothing(volume, inventory)
    stored = inventory.stored
    strict = missing == "fail" and stored.sampled and stored.count == stored.total
    lenient = missing == "fill" and stored.sampled
    return replace(inventory, stored=replace(stored, strict=strict, lenient=lenient))


def _looked_for(volume: Volume, missing: Missing) -> tuple[Inventory, dict[str, int]]:
    """The inventory; and how many objects that are absent lie under names of another form, by an example."""
    if isinstance(volume.array, ForeignArray):
        return _of_file(volume, volume.array), {}
    extent = tuple(volume.shards or volume.stored.chunks)
    grid = objects(volume.array.shape, extent)
    if protocol(volume.place) in UNLISTED or prod(grid) > MOST_OBJECTS:
        return _sampled(volume, grid, extent, missing)
    try:
        listing = looks(volume.place)
    except StorageError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        return _sampled(volume, grid, extent, missing)  # a store that lets nobody list it
    return _listed(volume, grid, extent, listing)


# --- kinds of stores ----------------------------------------------------------------------------------------------------


def _listed(
    volume: Volume, grid: tuple[int, ...], extent: tuple[int, ...], listing: list[Look]
) -> tuple[Inventory, dict[str, int]]:
    start, separator = _form(volume)
    by_place = {place: look for look in listing if (place := place_of(look.name, grid, start, separator)) is not None}
    stored = Stored(len(by_place), prod(grid), volume.unit, signature(listing))
    whole = len(by_place) == prod(grid)
    elsewhere = {} if whole else _elsewhere([look.name for look in listing], by_place, grid, (start, separator))
    return _inventory(volume, stored, grid, extent, by_place), elsewhere


def _sampled(
    volume: Volume, grid: tuple[int, ...], extent: tuple[int, ...], missing: Missing
) -> tuple[Inventory, dict[str, int]]:
    """Where nobody may list, what is not there is refused as what may not be read: absent where `missing` is `fill`, else an error."""
    lenient = missing == "fill"
    looked = sample(prod(grid))
    start, separator = _form(volume)
    names = {int(place): _name(place, grid, start, separator) for place in looked}
    look_of = dict(zip(names, looks_at(volume.place, list(names.values()), lenient=lenient), strict=True))
    by_place = {place: look for place, look in look_of.items() if look}
    metadata = Look(("", "", volume.description.metadata_sha256), ())
    stored = Stored(len(by_place), len(looked), volume.unit, signature([metadata, *by_place.values()]), sampled=True)
    absent = [place for place, look in look_of.items() if look is None][:FEW]
    others = [_name(place, grid, *form) for form in FORMS if form != (start, separator) for place in absent]
    other_names = [look.name for look in looks_at(volume.place, others, lenient=True) if look] if others else []
    elsewhere = _elsewhere(other_names, by_place, grid, (start, separator))
    return _inventory(volume, stored, grid, extent, by_place, looked), elsewhere


def _of_file(volume: Volume, array: ForeignArray) -> Inventory:
    """Of a file that holds all: it is what changes, and its own format says how many chunks are in it."""
    count, total = array.stored
    listing = [look for path in array.files for look in looks(path)]
    stored = Stored(count, total, "chunk", signature(listing))
    return _coarse(volume, stored, listing)


def _coarse(volume: Volume, stored: Stored, listing: list[Look]) -> Inventory:
    by_place = dict(enumerate(listing))
    name = volume.place.rpartition("/")[2]
    axes = volume.description.axes
    extents = dict(zip(volume.stored_axes, volume.array.shape, strict=True))
    shape = tuple(extents[axis] for axis in axes)
    inventory = _inventory(volume, stored, (len(listing), *(1,) * (len(shape) - 1)), shape, by_place)
    return replace(inventory, axes=axes, start=name, coarse=True)


def _inventory(
    volume: Volume,
    stored: Stored,
    grid: tuple[int, ...],
    extent: tuple[int, ...],
    by_place: dict[int, Look],
    looked: np.ndarray | None = None,
) -> Inventory:
    start, separator = ("", "/") if isinstance(volume.array, ForeignArray) else _form(volume)
    places = sorted(by_place)
    return Inventory(
        stored,
        grid,
        tuple(extent),
        volume.stored_axes,
        start,
        separator,
        np.array(places, dtype=np.int64),
        np.array([by_place[place].size for place in places], dtype=np.int64),
        np.array([digest(by_place[place].row[1:]) for place in places], dtype=np.uint64),
        np.array([digest(by_place[place].mark) for place in places], dtype=np.uint64),
        looked,
    )


# --- names --------------------------------------------------------------------------------------------------------------


def _form(volume: Volume) -> tuple[str, str]:
    """How the array's metadata says that its chunks are named."""
    metadata = volume.stored.metadata
    if metadata.zarr_format == 2:
        return "", metadata.dimension_separator
    encoding = metadata.chunk_key_encoding
    if not isinstance(encoding, DefaultChunkKeyEncoding | V2ChunkKeyEncoding):
        raise StorageError(
            f"Input '{volume.description.url}' names its chunks by '{encoding.name}', which is not known here: its chunks "
            "cannot be counted. Known are 'default' and 'v2'."
        )
    return (f"c{encoding.separator}" if encoding.name == "default" else ""), encoding.separator


def _name(place: int, grid: tuple[int, ...], start: str, separator: str) -> str:
    return start + separator.join(map(str, np.unravel_index(int(place), grid)))


def _elsewhere(
    names: list[str], by_place: Mapping[int, Look], grid: tuple[int, ...], form: tuple[str, str]
) -> dict[str, int]:
    """How many objects lie under names of each other form and not where the metadata says; by an example of the name."""
    counts: dict[str, int] = {}
    for start, separator in FORMS:
        if (start, separator) == form:
            continue
        matching = [
            name for name in names if (p := place_of(name, grid, start, separator)) is not None and p not in by_place
        ]
        if matching:
            counts[min(matching)] = len(matching)
    return counts


# --- refusals -----------------------------------------------------------------------------------------------------------


def _refuse_elsewhere(volume: Volume, inventory: Inventory, elsewhere: dict[str, int]) -> None:
    if not elsewhere:
        return
    name, count = max(elsewhere.items(), key=lambda item: item[1])
    raise StorageError(
        f"Input '{volume.description.url}' says that its {inventory.stored.unit}s are named as '{inventory.name(0)}', but {count:,} lie as "
        f"'{name}' in '{volume.place}', and would be read as fill (stored: {inventory.stored}). Its metadata lost how they are named: put "
        "dimension_separator (.zarray) or chunk_key_encoding (zarr.json) right. To read what is not where the metadata says as its fill value, set "
        "input.missing to 'fill' (`--missing fill` of convert and evaluate)."
    )


def _refuse_nothing(volume: Volume, inventory: Inventory) -> None:
    if inventory.stored.count:
        return
    raise StorageError(
        f"Input '{volume.description.url}' has a header and no voxels (stored: {inventory.stored}, in '{volume.place}'): all of it would be read "
        "as its fill value. The copy is incomplete, or it was never written: copy it again, or check input.url and input.level. If "
        "that is what is meant, set input.missing to 'fill' (`--missing fill` of convert and evaluate)."
    )


# --- on disk ------------------------------------------------------------------------------------------------------------

_ARRAYS = ("places", "sizes", "stamps", "marks")


def to_bytes(inventory: Inventory) -> bytes:
    """The inventory as a file's content (NPZ)."""
    about = asdict(inventory.stored) | {
        name: getattr(inventory, name) for name in ("grid", "extent", "axes", "start", "separator", "coarse")
    }
    arrays = {name: getattr(inventory, name) for name in _ARRAYS}
    if inventory.looked is not None:
        arrays["looked"] = inventory.looked
    file = io.BytesIO()
    np.savez_compressed(file, about=np.frombuffer(json_text(about).encode(), dtype=np.uint8), **arrays)
    return file.getvalue()


def from_bytes(content: bytes) -> Inventory | None:
    """What `to_bytes` made; None where it is damaged."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            about = json.loads(archive["about"].tobytes())
            arrays = {name: archive[name] for name in (*_ARRAYS, "looked") if name in archive}
        grid, extent = (tuple(about.pop(name)) for name in ("grid", "extent"))
        rest = {name: about.pop(name) for name in ("axes", "start", "separator", "coarse")}
        return Inventory(Stored.from_dict(about), grid, extent, **rest, **arrays)
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return None

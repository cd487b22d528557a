"""Any volume that can be opened, written again as an OME-Zarr 0.5 image: box by box, never the whole in memory.

Why an interrupted conversion is never taken for a whole one: the image is written beside its place, as `TARGET.part`, every
object of it is made durable, and it is renamed once it is complete. Why no unit is read back: boxes are whole write units.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TextIO

import numpy as np

from pipeline.core.geometry.box import Box, Triple, per_axis, round_up, widened
from pipeline.core.locations import is_url, without_file_scheme
from pipeline.core.stored import Inventory, compare
from pipeline.core.tiles.tiling import LARGEST_CHUNK_EXTENT, LARGEST_PLANE_CHUNK_EXTENT, LARGEST_SHARD
from pipeline.core.volume import Description, Selection, Space
from pipeline.errors import StorageError
from pipeline.outputs.documents import dumped
from pipeline.outputs.level import DOCUMENT, Level
from pipeline.outputs.metadata import FINEST, image_name
from pipeline.outputs.store import FolderStore, Store
from pipeline.places.durable import PARTS, sync
from pipeline.places.locks import taken
from pipeline.volumes.counted import counted
from pipeline.volumes.foreign import foreign_place
from pipeline.volumes.inventory import Missing, take_inventory
from pipeline.volumes.ome import image_attributes
from pipeline.volumes.volume import Volume, open_volume

BOX_BYTES = 2**27
"""About how much is read at once, one write unit at least; with what is encoded, some three times as much is held."""

LARGEST_PLANE_SHARD = (1, 2048, 2048)
"""Voxels an axis of an automatic shard, where the volume is a single slice."""

LOCK = "convert.lock"
"""Held by the one process that writes an unfinished image; removed before it gets its name."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How an image is stored: extents along z, y, x of its chunks, and of its shards where there are any."""

    chunks: Triple
    shards: Triple | None


def convert(
    source: str,
    target: str,
    *,
    axes: str = "auto",
    chunks: Triple | None = None,
    shards: Triple | None = None,
    voxel_size_nm: tuple[float, float, float] | None = None,
    missing: Missing = "fail",
    on_advance: Callable[[int, int], None] = lambda done, total: None,  # noqa: ARG005 - names say what is reported
) -> Description:
    """Write a volume as an OME-Zarr 0.5 image: same voxels, dtype, axes and place.

    Args:
        source: Anything that `open_volume` opens; its level 0.
        target: Folder to make. Nothing is ever overwritten.
        axes: Axes of the source as stored, or `auto`.
        chunks: Of the image, z, y, x; some 64 voxels an axis where None.
        shards: Of the image, whole chunks; large ones where None, and none where equal to `chunks`.
        voxel_size_nm: Size of a voxel along z, y, x; the source's size and units where None.
        missing: `fail` refuses a source of which nothing is stored, or whose chunks lie under other names; `fill` takes it.
        on_advance: Called with voxels done and voxels in all, after each box.

    Returns:
        What was written.

    Raises:
        StorageError: The source cannot be opened or read, the target cannot be made, or something lies there already.
    """
    source, target = without_file_scheme(source), without_file_scheme(target)
    volume = open_volume(source, Selection(axes=axes))
    inventory = take_inventory(volume, missing)
    volume = counted(volume, inventory)
    layout = _layout(volume.shape, chunks, shards)
    space = _space(volume.description, voxel_size_nm)
    final = Path(os.path.abspath(target))  # noqa: PTH100 - `resolve` would follow a link that lies at the target
    part = final.with_name(f"{final.name}.part")
    _check_target(source, target, final, part)
    try:
        with _claimed(part):
            level = _empty(FolderStore(part), volume.description, image_name(final), layout, space)
            _write(volume, level, on_advance)
            _refuse_changed(source, axes, inventory)
            _publish(part, final, target)
    except OSError as error:
        raise StorageError(
            f"Converting '{source}' to '{target}' stopped: {error}. Nothing of it is left. See that there is room and "
            "permission, then convert again."
        ) from error
    return open_volume(target).description


def _refuse_changed(source: str, axes: str, before: Inventory) -> None:
    """Refuse to name an image that was made of two states of its source.

    Raises:
        StorageError: It is.
    """
    change = compare(before, take_inventory(open_volume(source, Selection(axes=axes)), "fill"))
    if change:
        raise StorageError(
            f"Source '{source}' changed while it was converted: {change}. Nothing of it is left; convert it again."
        )


# --- what is written ----------------------------------------------------------------------------------------------------


def _layout(shape: Triple, chunks: Triple | None, shards: Triple | None) -> Layout:
    """Chunks and shards as asked for, or fitting.

    Raises:
        StorageError: They cannot be.
    """
    plane = shape[0] == 1
    most = LARGEST_PLANE_CHUNK_EXTENT if plane else LARGEST_CHUNK_EXTENT
    chunks = chunks or per_axis(lambda n: min(most, n), shape)
    if any(c < 1 for c in chunks):
        raise StorageError(f"Chunks of {chunks} voxels (z, y, x) were asked for; each extent must be 1 at least.")
    if shards is None:
        largest = LARGEST_PLANE_SHARD if plane else LARGEST_SHARD
        shards = per_axis(lambda c, most, n: min(c * max(most // c, 1), round_up(n, c)), chunks, largest, shape)
    if any(per_axis(lambda s, c: s < 1 or s % c > 0, shards, chunks)):
        good = per_axis(lambda s, c: round_up(max(s, 1), c), shards, chunks)
        raise StorageError(
            f"Shards of {shards} voxels (z, y, x) were asked for, chunks of {chunks}: a shard holds whole chunks. "
            f"Ask for shards of {good}."
        )
    return Layout(chunks, None if shards == chunks else shards)


def _space(description: Description, voxel_size_nm: tuple[float, float, float] | None) -> Space:
    """The source's place, or one of voxels of another size, its origin shifted by as many voxels.

    Raises:
        StorageError: A size is not positive.
    """
    if voxel_size_nm is None:
        return description.space
    if any(not (isfinite(size) and size > 0) for size in voxel_size_nm):
        raise StorageError(f"A voxel size of {voxel_size_nm} nm (z, y, x) was asked for; each must be more than 0.")
    scale = tuple(map(float, voxel_size_nm))[-len(description.space.scale) :]
    moved = zip(description.space.translation, description.space.scale, scale, strict=True)
    return Space(scale, tuple(t / old * new for t, old, new in moved), ("nanometer",) * len(scale))


def _empty(store: Store, description: Description, name: str, layout: Layout, space: Space) -> Level:
    """The image's one level, with all documents and no voxel."""
    level = Level(
        store,
        FINEST,
        axes=description.axes,
        channels=description.channels,
        shape=description.shape,
        dtype=description.dtype,
        chunks=layout.chunks,
        shards=layout.shards,
    )
    ome = image_attributes(name=name, axes=description.axes, space=space, path=level.name)
    store.put(DOCUMENT, dumped({"attributes": {"ome": ome}, "zarr_format": 3, "node_type": "group"}))
    store.put(level.document_key, level.document)
    return level


def _write(volume: Volume, level: Level, on_advance: Callable[[int, int], None]) -> None:
    voxel_bytes = level.channels * np.dtype(level.dtype).itemsize
    whole, done = Box.of_shape(level.shape), 0
    for box in whole.split(widened(level.write_unit, level.shape, voxel_bytes, BOX_BYTES)):
        level.write(box, volume.read(box))
        done += box.voxels
        on_advance(done, whole.voxels)


# --- where it is written ------------------------------------------------------------------------------------------------


def _check_target(source: str, target: str, final: Path, part: Path) -> None:
    """Refuse a target that would overwrite anything, or lie in what is read.

    Raises:
        StorageError: It would.
    """
    if is_url(target):
        raise StorageError(f"Target '{target}' is remote; conversions are written to a file system. Name a folder.")
    if final.exists() or final.is_symlink():
        raise StorageError(
            f"Target '{target}' is there already, and nothing is ever overwritten. Choose another, or delete it."
        )
    if is_url(source):
        return
    root = _store_root(source)
    if Path(os.path.realpath(final)).is_relative_to(root) or root.is_relative_to(Path(os.path.realpath(part))):
        raise StorageError(
            f"Target '{target}' (written as '{part.name}' until it is whole) and source '{source}' lie in one another, and "
            "the source is never written to. Choose a target beside it."
        )


def _store_root(source: str) -> Path:
    """The file, or the outermost Zarr group, that a source is part of."""
    place = foreign_place(source)
    if place is not None:
        return Path(os.path.realpath(place.path))
    root = Path(os.path.realpath(source))
    while any((root.parent / name).is_file() for name in ("zarr.json", ".zgroup")):
        root = root.parent
    return root


@contextmanager
def _claimed(part: Path) -> Iterator[None]:
    """An empty folder to write to, of this process alone; what is in it is deleted if anything goes wrong.

    Raises:
        StorageError: Another process converts to the same target, or something else lies there.
    """
    if part.exists() or part.is_symlink():
        _remove_left_over(part)
    part.mkdir(parents=True)
    with (part / LOCK).open("a+") as lock:
        _lock_or_refuse(lock, part)
        try:
            yield
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def _lock_or_refuse(lock: TextIO, part: Path) -> None:
    if not taken(lock):
        raise StorageError(
            f"Another process is writing '{part}' now. Wait until it ends, end it, or choose another target."
        )


def _remove_left_over(part: Path) -> None:
    """Delete what a conversion that was killed left, and nothing else."""
    known = part.is_dir() and not part.is_symlink()
    names = [path.name for path in part.iterdir() if path.suffix not in PARTS] if known else []
    strange = sorted(set(names) - {FINEST, LOCK, DOCUMENT})
    if not known or strange:
        raise StorageError(
            f"'{part}' is where an unfinished conversion is kept, but what lies there is none"
            f"{f' (it holds {strange[0]!r})' if strange else ''}. Move it away, or choose another target."
        )
    with (part / LOCK).open("a+") as lock:
        _lock_or_refuse(lock, part)
        shutil.rmtree(part)


def _publish(part: Path, final: Path, target: str) -> None:
    (part / LOCK).unlink()
    sync(part)
    if final.exists() or final.is_symlink():
        raise StorageError(f"Target '{target}' was made by somebody else meanwhile, and nothing is ever overwritten.")
    part.rename(final)
    sync(final)
    sync(final.parent)

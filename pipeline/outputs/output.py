"""The output: an OME-Zarr 0.5 image whose array `0` is written in whole write units, each by one writer.

Why no lock is needed: cores partition the volume, a core is whole write units, and a unit is one stored object. A tile that
runs twice writes the same bytes. A unit is encoded in memory, so that nothing stored is read or merged, and its object is
replaced by a rename: whatever ends a writer, the old object is there or the new one. All-fill units leave no object: only the
ledger says what is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store as ZarrStore
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore, MemoryStore, WrapperStore
from zarr.types import AnyArray

from pipeline.core.geometry.box import Box, Triple, per_axis
from pipeline.core.ledger import TileRecord, Units
from pipeline.core.plan import Plan
from pipeline.errors import StorageError
from pipeline.outputs.documents import Comparison
from pipeline.outputs.metadata import ARRAY, DOCUMENT, Metadata, stored, stored_fingerprint
from pipeline.outputs.rundir import RunDirectory
from pipeline.outputs.store import Entry, checksum, store_at
from pipeline.places import durable
from pipeline.places.durable import in_words

_EVIDENCE = 8
"""Objects of which one must be as the ledger says, to know a store whose metadata do not name their plan any more."""


class RecordingStore(WrapperStore[LocalStore]):
    """A local store that makes each object durable and keeps the checksum of what it stored."""

    def __init__(self, store: LocalStore) -> None:
        super().__init__(store)
        self.checksums: dict[str, str] = {}

    async def set(self, key: str, value: Buffer) -> None:
        await super().set(key, value)
        synced(self._store.root / key)
        self.checksums[key] = checksum(value.to_bytes())


def synced(path: Path) -> None:
    """Flush a file and its folder."""
    durable.sync(path)
    durable.sync(path.parent)


@dataclass(slots=True)
class Contents:
    """What lies in the store beside our documents and objects.

    Args:
        strays: Keys of objects that no write unit has, though readers take them for the array's; and of folders in place of one.
        parts: Keys of what killed writers left half-written.
        others: Names that are not ours; they are left.
    """

    strays: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


class Output:
    """The output of one plan, opened."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.store = store_at(plan.output.url)
        self._encoded: dict[str, Buffer] = {}

    # --- life of the store ------------------------------------------------------------------------------------------

    def state(self) -> str:
        """`absent`, `ours` (this plan's), or `foreign`: anything else that lies at its place."""
        if not self.store.is_occupied():
            return "absent"
        found = stored_fingerprint(self.store)
        if found is None:
            return "ours" if self._is_ours_by_evidence() else "foreign"
        return "ours" if found == self.plan.fingerprint else "foreign"

    def _is_ours_by_evidence(self) -> bool:
        """Whether a store that names no plan was made by ours, whose run directory lies beside it.

        A power cut leaves documents empty, and nothing else; damage leaves objects that the ledger vouches for.
        """
        directory = RunDirectory(self.plan.output.url)
        try:
            plan = directory.load_plan()
        except StorageError:
            return False
        if plan is None or plan.fingerprint != self.plan.fingerprint:
            return False
        names = {entry.name for entry in self.store.children() if not entry.is_part}
        is_bare = bool(names) and names <= {ARRAY, DOCUMENT}
        return (is_bare and stored(self.store, DOCUMENT) is None) or self._is_vouched_for(directory)

    def _is_vouched_for(self, directory: RunDirectory) -> bool:
        looked = 0
        for record in directory.records():
            if (
                not isinstance(record, TileRecord)
                or record.state != "done"
                or record.fingerprint != self.plan.fingerprint
            ):
                continue
            vouched = {key: digest for key, digest in record.units.items() if digest}
            if any(self.store.checksum(key) == digest for key, digest in vouched.items()):
                return True
            looked += len(vouched)
            if looked >= _EVIDENCE:
                return False
        return False

    def create(self) -> list[str]:
        """Make the group and the empty array, or put back what is damaged of their metadata; gives what was.

        A crash half-way is made good, and keys of others stay. Until it is published, the group names no image.
        """
        with in_words():
            self.store.make_folder(ARRAY)
            return self._metadata.put(complete=self._metadata.is_complete())

    def reopen(self, plan: Plan) -> None:
        """Take the image from readers, which tiles of another input are to replace; from now on it is `plan`'s."""
        if self.state() == "ours":
            with in_words():
                self._metadata.reopen(plan.fingerprint)

    def publish(self) -> list[str]:
        """Name the array in the group's metadata: from now on readers of OME-Zarr find the image. Gives what was otherwise."""
        with in_words():
            return self._metadata.put(complete=True)

    def drop_units(self) -> None:
        """Remove units that an earlier plan of the same output wrote and this one does not have."""
        with in_words():
            self._metadata.drop_units()

    def metadata(self, *, complete: bool, names: tuple[str, ...] = ()) -> Comparison:
        """What the stored metadata, which readers go by, are against the plan's; see `Metadata.compared`."""
        with in_words():
            return self._metadata.compared(complete=complete or self._metadata.is_complete(), names=names)

    @cached_property
    def _metadata(self) -> Metadata:
        self._array  # noqa: B018 - makes the document
        return Metadata(self.store, self.plan, self._encoded[f"{ARRAY}/{DOCUMENT}"].to_bytes())

    @cached_property
    def _array(self) -> AnyArray:
        """The array in memory, where units are encoded; there are only the units of the present write."""
        output = self.plan.output
        return create_array(
            MemoryStore(self._encoded),
            axes=output.axes,
            channels=self.plan.model.architecture.out_channels,
            shape=self.plan.source.shape,
            dtype=output.dtype,
            chunks=output.chunks,
            shards=output.shards,
        )

    # --- what else lies there ---------------------------------------------------------------------------------------

    def contents(self) -> Contents:
        """What lies in the store beside our documents and objects; lists every folder of ours."""
        found = Contents()
        with in_words():
            for folder, ours in (("", {ARRAY, DOCUMENT}), (ARRAY, {"c", DOCUMENT})):
                for entry in self.store.children(folder):
                    if entry.name not in ours:
                        self._sort(found, entry)
            for entry in self.store.walk(f"{ARRAY}/c"):
                if not entry.is_folder:
                    self._sort(found, entry)
                elif self._is_unit(entry.key):
                    found.strays.append(entry.key)
        return found

    def _sort(self, found: Contents, entry: Entry) -> None:
        if entry.is_part:
            found.parts.append(entry.key)
        elif _place(entry.key) is None:
            found.others.append(entry.key)
        elif not self._is_unit(entry.key):
            found.strays.append(entry.key)

    def _is_unit(self, key: str) -> bool:
        """Whether a write unit has its object there."""
        place = _place(key)
        if place is None:
            return False
        output = self.plan.output
        channels = 1 if output.shards else self.plan.model.architecture.out_channels
        counts = per_axis(lambda n, unit: ceil(n / unit), self.plan.source.shape, output.write_unit)
        bounds = self._stored(channels, counts)
        return len(place) == len(bounds) and all(a < b for a, b in zip(place, bounds, strict=True))

    def sweep(self) -> list[str]:
        """Remove what killed writers left, and objects that no write unit has. Nobody may be writing. Gives the latter's keys."""
        found = self.contents()
        with in_words():
            for key in (*found.parts, *found.strays):
                self.store.remove(key)
        return found.strays

    # --- write units ------------------------------------------------------------------------------------------------

    def units(self, core: Box) -> Iterator[Box]:
        """The write units of a core, z slowest."""
        return core.split(self.plan.output.write_unit)

    def keys(self, unit: Box) -> list[str]:
        """The stored objects of a write unit: one, or without shards one a channel."""
        place = self._stored(0, per_axis(lambda a, extent: a // extent, unit.start, self.plan.output.write_unit))
        if self.plan.output.shards or "c" not in self.plan.output.axes:
            return [self._key(place)]
        return [self._key((c, *place[1:])) for c in range(self.plan.model.architecture.out_channels)]

    def _key(self, place: tuple[int, ...]) -> str:
        return "/".join([ARRAY, "c", *map(str, place)])

    def write(self, unit: Box, array: np.ndarray, permit: Callable[[], None] = lambda: None) -> Units:
        """Write one whole unit, durably: it, its name, and every folder above, before this returns.

        Args:
            unit: Voxels of the unit.
            array: Its values, (C, Z, Y, X), the output's dtype.
            permit: Called right before each object is replaced; what it raises leaves the old one.

        Returns:
            The checksum of each stored object; None where all values are fill and nothing is stored.

        Raises:
            FileError: The system refuses.
        """
        region = self._stored(slice(None), per_axis(slice, unit.start, unit.stop))
        self._array[region] = in_stored_axes(self.plan.output.axes, array)
        encoded = {key: self._encoded.pop(key, None) for key in self.keys(unit)}
        with in_words(doing="be written"):
            return {key: self._put(key, found, permit) for key, found in encoded.items()}

    def _put(self, key: str, encoded: Buffer | None, permit: Callable[[], None]) -> str | None:
        if encoded is None:
            self.store.remove(key, permit)
            return None
        return self.store.put(key, encoded.to_bytes(), permit)

    def read(self, box: Box) -> np.ndarray:
        """Voxels of a box as written, (C, Z, Y, X).

        Raises:
            StorageError: They cannot be read.
        """
        try:
            array = zarr.open_array(self.store.as_zarr(), path=ARRAY, mode="r")
            found = np.asarray(array[self._stored(slice(None), tuple(map(slice, box.start, box.stop)))])
            return found.reshape(self.plan.model.architecture.out_channels, *box.shape)
        except OSError as error:
            raise durable.file_error(f"{self.store.place}/{ARRAY}", error, "be read") from error
        except Exception as error:  # damaged objects raise whatever they happen to meet
            raise StorageError(
                f"Output array '{self.store.place}/{ARRAY}' cannot be read ({type(error).__name__}: {error}). `halotile verify` says what is "
                "damaged, and `halotile run` mends it."
            ) from error

    # --- axes -------------------------------------------------------------------------------------------------------

    def _stored(self, channel: Any, spatial: Any) -> tuple[Any, ...]:
        return by_stored_axis(self.plan.output.axes, channel, spatial)


def _place(key: str) -> tuple[int, ...] | None:
    """The numbers of a chunk's key; None where it is none."""
    parts = key.split("/")[2:]
    if key.startswith(f"{ARRAY}/c/") and all(
        part.isascii() and part.isdigit() and str(int(part)) == part for part in parts
    ):
        return tuple(map(int, parts))
    return None


def create_array(
    store: ZarrStore,
    *,
    axes: str,
    channels: int,
    shape: Triple,
    dtype: str,
    chunks: Triple,
    shards: Triple | None,
) -> AnyArray:
    """The empty array `0` of an image: a chunk is of one channel, a shard of all; every object has a checksum."""
    return zarr.create_array(
        store,
        name=ARRAY,
        shape=by_stored_axis(axes, channels, shape),
        chunks=by_stored_axis(axes, 1, chunks),
        shards=by_stored_axis(axes, channels, shards) if shards else None,
        dtype=dtype,
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        fill_value=0,
        zarr_format=3,
        dimension_names=list(axes),
        overwrite=False,
    )


def by_stored_axis(axes: str, channel: Any, spatial: Any) -> tuple[Any, ...]:
    """Values by axis, of the channel's and those along z, y, x, for the axes that a stored array has."""
    by_axis = dict(zip("zyx", spatial, strict=True)) | {"c": channel}
    return tuple(by_axis[axis] for axis in axes)


def in_stored_axes(axes: str, array: np.ndarray) -> np.ndarray:
    """Values (C, Z, Y, X) without the axes that a stored array lacks; those have an extent of 1."""
    return array[tuple(slice(None) if axis in axes else 0 for axis in "czyx")]

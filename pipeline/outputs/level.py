"""One level of an image: an array that is written in whole write units, each by one writer.

Why no lock is needed: cores partition the volume, a core is whole write units, and a unit is one stored object. A tile that
runs twice writes the same bytes. A unit is encoded in memory, so that nothing stored is read or merged, and its object takes
its place at once: whatever ends a writer, the old object is there or the new one. All-fill units leave no object: only the
ledger says what is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil
from typing import TypeVar

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore
from zarr.types import AnyArray

from pipeline.core.geometry.box import Box, Triple, per_axis
from pipeline.core.ledger import Units
from pipeline.errors import StorageError
from pipeline.outputs.store import Entry, Store
from pipeline.places.durable import file_error

DOCUMENT = "zarr.json"
"""Name of the metadata of an array, or of a group."""

CHUNKS = "c"
"""What the keys of an array's objects have after its own."""

Each = TypeVar("Each")


@dataclass(slots=True)
class Contents:
    """What lies in a store beside our documents and objects, by key.

    Args:
        strays: Objects that no write unit has, though readers take them for an array's; and folders in place of one.
        parts: What killed writers left half-written.
        others: Names that are not ours; they are left.
    """

    strays: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Level:
    """One array of an image, in a store.

    Args:
        store: Where it lies.
        name: Its key, by which the image names it.
        axes: As it is stored, slowest first; of c, z, y, x.
        channels: Extent along c, 1 where there is no such axis.
        shape: Extent along z, y, x; 1 where there is no such axis.
        dtype: Of its values.
        chunks: Extent along z, y, x of what is encoded at once, of one channel.
        shards: Extent along z, y, x of a stored object, of all channels; None where each chunk is one.
    """

    store: Store
    name: str
    axes: str
    channels: int
    shape: Triple
    dtype: str
    chunks: Triple
    shards: Triple | None
    _encoded: dict[str, Buffer] = field(default_factory=dict, init=False, repr=False)

    @property
    def place(self) -> str:
        """Where it lies, for people."""
        return f"{self.store.place}/{self.name}"

    @cached_property
    def _array(self) -> AnyArray:
        """The array in memory, where units are encoded; there are only the units of the present write."""
        return zarr.create_array(
            MemoryStore(self._encoded),
            name=self.name,
            shape=self._stored(self.channels, self.shape),
            chunks=self._stored(1, self.chunks),
            shards=self._stored(self.channels, self.shards) if self.shards else None,
            dtype=self.dtype,
            compressors=[ZstdCodec(level=1), Crc32cCodec()],  # the checksum guards the data, not only a shard's index
            fill_value=0,
            zarr_format=3,
            dimension_names=list(self.axes),
            overwrite=False,
        )

    @property
    def document_key(self) -> str:
        """Key of its metadata."""
        return f"{self.name}/{DOCUMENT}"

    @cached_property
    def document(self) -> bytes:
        """Its metadata, as they are first written."""
        self._array  # noqa: B018 - makes the document
        return self._encoded[self.document_key].to_bytes()

    # --- write units ------------------------------------------------------------------------------------------------

    @property
    def write_unit(self) -> Triple:
        """Extent along z, y, x that is written as one object, by one writer."""
        return self.shards or self.chunks

    def units(self, box: Box) -> Iterator[Box]:
        """The write units of a box of whole ones, z slowest."""
        return box.split(self.write_unit)

    def keys(self, unit: Box) -> list[str]:
        """The stored objects of a write unit: one, or without shards one a channel."""
        place = per_axis(lambda a, extent: a // extent, unit.start, self.write_unit)
        objects = 1 if self.shards or "c" not in self.axes else self.channels
        return ["/".join([self.name, CHUNKS, *map(str, self._stored(c, place))]) for c in range(objects)]

    def write(self, box: Box, array: np.ndarray, permit: Callable[[], None] = lambda: None) -> Units:
        """Write whole units, durably: each object, its name, and every folder above, before this returns.

        Args:
            box: Voxels of the units, whole ones.
            array: Its values, (C, Z, Y, X), the level's dtype.
            permit: Called right before each object is replaced; what it raises leaves the old one.

        Returns:
            The checksum of each stored object; None where all values are fill and nothing is stored.

        Raises:
            OSError: The system refuses.
        """
        region = self._stored(slice(None), per_axis(slice, box.start, box.stop))
        self._array[region] = array[tuple(slice(None) if axis in self.axes else 0 for axis in "czyx")]
        keys = [key for unit in self.units(box) for key in self.keys(unit)]
        encoded = {key: self._encoded.pop(key, None) for key in keys}
        return {key: self._put(key, data, permit) for key, data in encoded.items()}

    def _put(self, key: str, encoded: Buffer | None, permit: Callable[[], None]) -> str | None:
        if encoded is None:
            self.store.remove(key, permit)
            return None
        return self.store.put(key, encoded.to_bytes(), permit)

    def read(self, box: Box) -> np.ndarray:
        """Voxels of a box as written, (C, Z, Y, X).

        Raises:
            FileError: The system refuses to read them.
            StorageError: They cannot be read.
        """
        try:
            array = zarr.open_array(self.store.as_zarr(), path=self.name, mode="r")
            voxels = np.asarray(array[self._stored(slice(None), tuple(map(slice, box.start, box.stop)))])
            return voxels.reshape(self.channels, *box.shape)
        except OSError as error:
            raise file_error(self.place, error, "be read") from error
        except Exception as error:  # damaged objects raise whatever they happen to meet
            raise StorageError(
                f"Output array '{self.place}' cannot be read ({type(error).__name__}: {error}). `halotile verify` says what is "
                "damaged, and `halotile run` mends it."
            ) from error

    def _stored(self, channel: Each, spatial: tuple[Each, ...]) -> tuple[Each, ...]:
        """Values by axis, of the channel's and those along z, y, x, for the axes that the array has."""
        by_axis = dict(zip("zyx", spatial, strict=True)) | {"c": channel}
        return tuple(by_axis[axis] for axis in self.axes)

    # --- what else lies there ---------------------------------------------------------------------------------------

    def sort(self, contents: Contents) -> None:
        """Add what lies below the level's key beside its document and its units' objects; lists every folder of it."""
        for entry in self.store.children(self.name):
            if entry.name not in (CHUNKS, DOCUMENT):
                self._sort(entry, contents)
        for entry in self.store.walk(f"{self.name}/{CHUNKS}"):
            if not entry.is_folder:
                self._sort(entry, contents)
            elif self.is_unit(entry.key):
                contents.strays.append(entry.key)

    def _sort(self, entry: Entry, contents: Contents) -> None:
        if entry.is_part:
            contents.parts.append(entry.key)
        elif self._place(entry.key) is None:
            contents.others.append(entry.key)
        elif not self.is_unit(entry.key):
            contents.strays.append(entry.key)

    def is_unit(self, key: str) -> bool:
        """Whether an object of a write unit has this key."""
        place = self._place(key)
        counts = per_axis(lambda n, unit: ceil(n / unit), self.shape, self.write_unit)
        bounds = self._stored(1 if self.shards else self.channels, counts)
        return (
            place is not None and len(place) == len(bounds) and all(a < b for a, b in zip(place, bounds, strict=True))
        )

    def _place(self, key: str) -> tuple[int, ...] | None:
        """The numbers of a chunk's key; None where it is none."""
        below = f"{self.name}/{CHUNKS}/"
        parts = key.removeprefix(below).split("/")
        if key.startswith(below) and all(
            part.isascii() and part.isdigit() and str(int(part)) == part for part in parts
        ):
            return tuple(map(int, parts))
        return None

"""A Zarr array of which is known what is stored: an object that was counted and is absent at reading is an error, never fill."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.array import AsyncArray
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import StorePath, WrapperStore

from pipeline.core.stored import Inventory, place_of
from pipeline.errors import ForbiddenError, StorageError
from pipeline.volumes.foreign import ForeignArray
from pipeline.volumes.volume import Volume


def counted(volume: Volume, inventory: Inventory) -> Volume:
    """The volume, which refuses to read as fill what was counted as stored."""
    if isinstance(volume.array, ForeignArray) or inventory.coarse:
        return volume
    array = volume.stored.async_array
    store = CountedStore(array.store_path.store, _Count.of(volume, inventory))
    path = StorePath(store, array.store_path.path)
    async_array = AsyncArray(metadata=array.metadata, store_path=path, config=array.config)
    object.__setattr__(async_array, "codec_pipeline", array.codec_pipeline)  # whose chunks are checked
    return replace(volume, array=zarr.Array(async_array))


@dataclass(frozen=True, eq=False)
class _Count:
    """What was counted, as reading asks for it.

    Args:
        url: For errors.
        prefix: Of the array in its store.
        document: The array's own metadata.
        inventory: Which objects are there.
        sizes: Bytes of each object of the grid, -1 where none is there; None where only some were looked for.
    """

    url: str
    prefix: str
    document: str
    inventory: Inventory
    sizes: np.ndarray | None

    @classmethod
    def of(cls, volume: Volume, inventory: Inventory) -> _Count:
        array = volume.stored
        prefix = f"{array.path}/" if array.path else ""
        document = "zarr.json" if array.metadata.zarr_format == 3 else ".zarray"
        sizes = None
        if inventory.looked is None:
            sizes = np.full(int(np.prod(inventory.grid)), -2, dtype=np.int64)
            sizes[inventory.places] = inventory.sizes
        return cls(volume.description.url, prefix, f"{prefix}{document}", inventory, sizes)

    def place(self, key: str) -> int | None:
        """The object's index in the grid; None for what is no object of the array."""
        inventory = self.inventory
        name = key.removeprefix(self.prefix)
        return (
            place_of(name, inventory.grid, inventory.start, inventory.separator)
            if key.startswith(self.prefix)
            else None
        )

    def size(self, place: int) -> int:
        """Bytes that were counted; -1 where it was there and they are not known, -2 where it was not there or not looked for."""
        if self.sizes is not None:
            return int(self.sizes[place])
        at = int(np.searchsorted(self.inventory.places, place))
        is_there = at < len(self.inventory.places) and self.inventory.places[at] == place
        return int(self.inventory.sizes[at]) if is_there else -2

    def refusal(self, key: str, fault: str) -> StorageError:
        return StorageError(
            f"{self.inventory.stored.unit.title()} '{key}' of '{self.url}' {fault}. The input was moved, deleted, cut or replaced since it was "
            "counted: nothing is taken for fill. Put it back, then run again: finished tiles are kept."
        )


class CountedStore(WrapperStore[Store]):
    """A store that says so where an object is absent, or has another length, that was counted as stored."""

    def __init__(self, store: Store, count: _Count) -> None:
        super().__init__(store)
        self._count = count

    def _with_store(self, store: Store) -> CountedStore:
        return type(self)(store, self._count)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        try:
            buffer = await self._store.get(key, prototype or default_buffer_prototype(), byte_range)
        except ForbiddenError:
            if not self._count.inventory.stored.lenient:
                raise
            buffer = None
        if (place := self._count.place(key)) is not None:
            await self._check(key, place, buffer, whole=byte_range is None)
        return buffer

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def _check(self, key: str, place: int, buffer: Buffer | None, *, whole: bool) -> None:
        size = self._count.size(place)
        if buffer is None:
            await self._check_absent(key, size)
        elif whole and size >= 0 and len(buffer) != size:
            raise self._count.refusal(key, f"had {size:,} bytes when it was counted, and has {len(buffer):,}")

    async def _check_absent(self, key: str, size: int) -> None:
        stored = self._count.inventory.stored
        if size >= -1:
            raise self._count.refusal(key, f"was there when it was counted (stored: {stored}), and is absent")
        if not stored.sampled:
            return
        if stored.strict:
            raise self._count.refusal(
                key,
                f"is absent, though all that were sampled are there (stored: {stored}); where a volume has holes, set input.missing to 'fill'",
            )
        # it was not looked for; at least its array must be there still
        if not await self._store.exists(self._count.document):
            raise self._count.refusal(key, f"is absent, and so is the array's own '{self._count.document}'")

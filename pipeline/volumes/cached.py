"""A volume on an object store, of which a worker keeps what neighbouring tiles read: their windows overlap by twice the halo.

Kept is what the store sent, and not yet decoded: it is smaller, and the checks of `counted.py` and `decoding.py` see each of it each time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace

import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.array import AsyncArray
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import StorePath, WrapperStore

from pipeline.core.locations import is_url
from pipeline.volumes.foreign import ForeignArray
from pipeline.volumes.volume import Volume


def cached(volume: Volume, most_bytes: int) -> Volume:
    """The volume, which keeps what it reads of an object store, up to so many bytes; on a file system the kernel does."""
    if not most_bytes or isinstance(volume.array, ForeignArray) or not is_url(volume.description.url):
        return volume
    array = volume.stored.async_array
    path = StorePath(CachedStore(array.store_path.store, most_bytes), array.store_path.path)
    async_array = AsyncArray(metadata=array.metadata, store_path=path, config=array.config)
    object.__setattr__(async_array, "codec_pipeline", array.codec_pipeline)  # whose chunks are checked
    return replace(volume, array=zarr.Array(async_array))


class CachedStore(WrapperStore[Store]):
    """A store that keeps what was read last, whole objects and parts of them. What is not there is asked for each time.

    Only the event loop of zarr reads, in one thread; so what is kept needs no lock.

    Args:
        store: What is read.
        most_bytes: That are kept.

    Attributes:
        kept_bytes: That are kept now.
    """

    def __init__(self, store: Store, most_bytes: int) -> None:
        super().__init__(store)
        self._most_bytes = most_bytes
        self.kept_bytes = 0
        self._kept: OrderedDict[tuple[str, ByteRequest | None], Buffer] = OrderedDict()

    def _with_store(self, store: Store) -> CachedStore:
        return type(self)(store, self._most_bytes)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        kept = self._kept.get((key, byte_range))
        if kept is not None:
            self._kept.move_to_end((key, byte_range))
            return kept
        buffer = await self._store.get(key, prototype or default_buffer_prototype(), byte_range)
        if buffer is not None:
            self._keep((key, byte_range), buffer)
        return buffer

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    def _keep(self, name: tuple[str, ByteRequest | None], buffer: Buffer) -> None:
        if name in self._kept or len(buffer) > self._most_bytes:
            return
        self._kept[name] = buffer
        self.kept_bytes += len(buffer)
        while self.kept_bytes > self._most_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.kept_bytes -= len(oldest)

"""Arrays whose chunks are checked before they are decoded: cut or damaged input is an error or the right voxels.

Zarr's own pipeline believes what codecs return, and some C decoders believe a chunk's header. Here every codec of an array
is wrapped when the array is opened: the sizes of all stages follow from shape and data type, each stage is undone within
its size, and a codec that cannot be checked is refused by name before any chunk is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
from zarr.abc.codec import ArrayArrayCodec, BytesBytesCodec, Codec
from zarr.abc.store import ByteGetter, ByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec
from zarr.codecs._v2 import V2Codec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.registry import get_numcodec
from zarr.types import AnyArray

from pipeline.errors import StorageError
from pipeline.volumes.frames import (
    BloscRule,
    ChunkError,
    Size,
    undo_base64,
    undo_blosc,
    undo_bz2,
    undo_checksum,
    undo_gzip,
    undo_lz4,
    undo_lzma,
    undo_zlib,
    undo_zstd,
)

CHECKSUMS = frozenset({"crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3"})

SAME_SIZE = frozenset({"shuffle", "bitround"})
"""Codecs that write as many bytes as they read."""

CAST = {"delta": "astype", "fixedscaleoffset": "astype", "quantize": "astype", "astype": "encode_dtype"}
"""Codecs that write values of another type, by the attribute that names it."""

READABLE = "raw, blosc, zstd, gzip, zlib, lz4, bz2, lzma, sharding and the filters of numcodecs for numbers"


def checked(array: AnyArray, url: str) -> AnyArray:
    """An array whose chunks are checked; the same object.

    Raises:
        StorageError: It has a codec whose damage cannot be detected, or that runs what it reads (`pickle`).
    """
    async_array = array.async_array
    spec = _spec(array)
    stored = async_array.codec_pipeline
    if not isinstance(stored, Iterable):
        raise _unknown(type(stored).__name__, url)
    codecs = _checked_codecs(stored, spec, url)
    object.__setattr__(async_array, "codec_pipeline", CheckedPipeline.from_codecs(codecs))
    return array


def _spec(array: AnyArray) -> ArraySpec:
    """Of one stored chunk, or of one shard."""
    return ArraySpec(
        shape=array.shards or array.chunks,
        dtype=array.metadata.dtype,
        fill_value=array.metadata.fill_value,
        config=array.async_array.config,
        prototype=default_buffer_prototype(),
    )


class CheckedPipeline(BatchedCodecPipeline):
    """Zarr's pipeline, whose errors name the chunk."""

    async def read_batch(self, batch_info: Iterable[Any], out: Any, drop_axes: tuple[int, ...] = ()) -> Any:
        batch = list(batch_info)
        try:
            return await super().read_batch(batch, out, drop_axes)  # nothing before zarr 3.2
        except ValueError as error:  # ours, or of a shape that does not fit
            names = ", ".join(str(getter) for getter, *_ in batch if "/" in str(getter))
            message = f"chunk {names}: {error}" if names and "chunk " not in str(error) else str(error)
            raise ChunkError(message) from error


@dataclass(frozen=True)
class Stage:
    """One codec of a chunk, undone within its size.

    Args:
        name: Of the codec.
        undo: Returns the bytes before it, of a view of those after it.
        size: Of what it returns.
    """

    name: str
    undo: Callable[[np.ndarray], Any]
    size: Size

    def decode(self, data: Any) -> Any:
        """Raises:
        ChunkError: They are not what the codec wrote of so many bytes.
        """
        try:
            decoded = self.undo(_bytes_of(data))
            count = memoryview(decoded).nbytes
        except ChunkError:
            raise
        except Exception as error:  # codecs raise whatever their libraries do
            raise ChunkError(f"{self.name} cannot decode it ({type(error).__name__}: {error})") from error
        self.size.check(count, f"decoded by {self.name} it has")
        return decoded


def _bytes_of(data: Any) -> np.ndarray:
    array = data if isinstance(data, np.ndarray) else np.frombuffer(data, "u1")
    return array.reshape(-1, order="A").view("u1")


@dataclass(frozen=True)
class CheckedCodec(BytesBytesCodec):
    """A codec of version 3 that is undone within its size."""

    inner: Any
    stage: Stage

    @property
    def is_fixed_size(self) -> bool:  # type: ignore[override]  # an attribute there, of a class
        return bool(getattr(self.inner, "is_fixed_size", False))

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        decoded = await asyncio.to_thread(self.stage.decode, chunk_data.as_numpy_array())
        return chunk_spec.prototype.buffer.from_array_like(_bytes_of(decoded))

    async def _encode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer | None:
        encoded: Buffer | None = await self.inner._encode_single(chunk_data, chunk_spec)
        return encoded

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        size: int = self.inner.compute_encoded_size(input_byte_length, chunk_spec)
        return size


# --- sharding -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExactGetter:
    """Gives as many bytes as were asked for: a shard that was cut ends early, and Zarr takes what is not there for fill.

    Args:
        getter: Of the shard.
        asked: Ranges that were there, from the first on: the index is asked for first.
    """

    getter: ByteGetter
    asked: list[ByteRequest]

    async def get(self, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        buffer = await self.getter.get(prototype, byte_range)
        if buffer is None and not self.asked:
            return None
        count = len(buffer) if buffer is not None else 0
        if byte_range is not None:
            self.asked.append(byte_range)
        wanted = _length(byte_range)
        if count != wanted if wanted is not None else count == 0:
            raise ChunkError(f"chunk {self.getter}: it ends early: {count:,} bytes where {wanted or 'some'} should be")
        return buffer

    def __str__(self) -> str:
        return str(self.getter)


def _length(byte_range: ByteRequest | None) -> int | None:
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.end - byte_range.start
    return byte_range.suffix if isinstance(byte_range, SuffixByteRequest) else None


class CheckedSharding(ShardingCodec):
    """Sharding whose index fits its shard, and whose shards end where they should."""

    async def _decode_single(self, shard_bytes: Buffer, shard_spec: ArraySpec) -> Any:
        self._check_room(len(shard_bytes), self._get_chunks_per_shard(shard_spec))
        return await super()._decode_single(shard_bytes, shard_spec)

    async def _decode_partial_single(self, byte_getter: ByteGetter, selection: Any, shard_spec: ArraySpec) -> Any:
        return await super()._decode_partial_single(ExactGetter(byte_getter, []), selection, shard_spec)

    async def _load_full_shard_maybe(self, byte_getter: ByteGetter, prototype: Any, chunks_per_shard: Any) -> Any:
        shard = await super()._load_full_shard_maybe(byte_getter, prototype, chunks_per_shard)
        if shard is not None:
            self._check_room(len(shard.buf), chunks_per_shard)
            starts, lengths = _extents(shard.index.offsets_and_lengths)
            if starts.size and int((starts + lengths).max()) > len(shard.buf):
                raise ChunkError(f"its index names bytes behind its end ({len(shard.buf):,} bytes)")
        return shard

    def _check_room(self, count: int, chunks_per_shard: tuple[int, ...]) -> None:
        least = self._shard_index_size(chunks_per_shard)
        if count < least:
            raise ChunkError(f"it has {count:,} bytes, less than a shard's index of {least:,}")

    async def _decode_shard_index(self, index_bytes: Buffer, chunks_per_shard: tuple[int, ...]) -> Any:
        index = await super()._decode_shard_index(index_bytes, chunks_per_shard)
        starts, lengths = _extents(index.offsets_and_lengths)
        order = np.argsort(starts, kind="stable")
        ends = (starts + lengths)[order]
        if (starts[order][1:] < ends[:-1]).any():
            raise ChunkError("the inner chunks of its index overlap")
        return index


def _extents(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of the inner chunks that a shard holds.

    Raises:
        ChunkError: They are no extents.
    """
    starts, lengths = index.reshape(-1, 2).T
    none = np.uint64(2**64 - 1)
    absent = starts == none
    if (absent != (lengths == none)).any() or (starts[~absent] >= 2**62).any() or (lengths[~absent] >= 2**62).any():
        raise ChunkError("its shard index holds impossible extents")
    if (lengths[~absent] == 0).any():
        raise ChunkError("its shard index holds inner chunks of no bytes")
    return starts[~absent].astype(np.int64), lengths[~absent].astype(np.int64)


# --- the codecs of an array -------------------------------------------------------------------------------------------------


def _checked_codecs(codecs: Iterable[Codec], spec: ArraySpec, url: str) -> list[Codec]:
    checked_codecs: list[Codec] = []
    size, itemsize = _size_of(spec), _itemsize(spec)
    for codec in codecs:
        if isinstance(codec, V2Codec):
            checked_codecs.append(_checked_v2(codec, spec, url))
        elif isinstance(codec, ShardingCodec):
            checked_codecs.append(_checked_sharding(codec, spec, url))
            size, itemsize = size.compressed(), 1
        elif isinstance(codec, ArrayArrayCodec):
            checked_codecs.append(_known_filter(codec, url))
            spec = codec.resolve_metadata(spec)
            size, itemsize = _size_of(spec), _itemsize(spec)
        elif isinstance(codec, BytesCodec):
            checked_codecs.append(codec)
        elif isinstance(codec, BytesBytesCodec):
            checked_codec, size = _checked_bytes(codec, size, itemsize, url)
            checked_codecs.append(checked_codec)
            itemsize = itemsize if isinstance(codec, Crc32cCodec) else 1
        else:
            raise _unknown(type(codec).__name__, url)
    return checked_codecs


def _size_of(spec: ArraySpec) -> Size:
    return Size.of(prod(spec.shape) * _itemsize(spec))


def _itemsize(spec: ArraySpec) -> int:
    return spec.dtype.to_native_dtype().itemsize


def _known_filter(codec: ArrayArrayCodec, url: str) -> ArrayArrayCodec:
    name = _numcodecs_name(codec)
    if not isinstance(codec, TransposeCodec) and name not in {*SAME_SIZE, *CAST, "packbits"}:
        raise _unknown(name or type(codec).__name__, url)
    return codec


def _checked_bytes(codec: BytesBytesCodec, size: Size, itemsize: int, url: str) -> tuple[CheckedCodec, Size]:
    if isinstance(codec, Crc32cCodec):
        return CheckedCodec(codec, _stage(get_numcodec({"id": "crc32c"}), size, itemsize, url)), size.plus(4)
    numcodec = _numcodec(codec)
    if numcodec is None:
        raise _unknown(type(codec).__name__, url)
    typesize = codec.typesize or itemsize if isinstance(codec, BloscCodec) else itemsize
    name = numcodec.codec_id
    return CheckedCodec(codec, _stage(numcodec, size, typesize, url)), _written(name, size)


def _numcodecs_name(codec: Any) -> str:
    name = str(getattr(codec, "codec_name", ""))
    return name.removeprefix("numcodecs.") if name.startswith("numcodecs.") else ""


def _numcodec(codec: Any) -> Any:
    """The numcodecs' codec behind one of version 3; None where it is not known."""
    if isinstance(codec, BloscCodec):
        return codec._blosc_codec
    if isinstance(codec, ZstdCodec):
        return codec._zstd_codec
    if isinstance(codec, GzipCodec):
        return codec._gzip_codec
    return codec._codec if _numcodecs_name(codec) else None


def _checked_sharding(codec: ShardingCodec, spec: ArraySpec, url: str) -> CheckedSharding:
    index = codec._get_index_chunk_spec(codec._get_chunks_per_shard(spec))
    return CheckedSharding(
        chunk_shape=codec.chunk_shape,
        codecs=_checked_codecs(codec.codecs, replace(spec, shape=codec.chunk_shape), url),
        index_codecs=_checked_codecs(codec.index_codecs, index, url),
        index_location=codec.index_location,
    )


def _checked_v2(codec: V2Codec, spec: ArraySpec, url: str) -> V2Codec:
    dtype, count = spec.dtype.to_native_dtype(), prod(spec.shape)
    size, itemsize = Size.of(count * dtype.itemsize), dtype.itemsize
    stages: list[Any] = []
    written = [*(codec.filters or ()), *([codec.compressor] if codec.compressor else [])]
    for numcodec in written:
        name = numcodec.codec_id
        if name in CAST or name == "packbits":
            encoded = np.dtype(getattr(numcodec, CAST[name])) if name in CAST else np.dtype("u1")
            stages.append(Stage(name, partial(_undo_filter, numcodec), size))
            count = count if name in CAST else 1 + -(-count // 8)
            size, itemsize = Size.of(count * encoded.itemsize), encoded.itemsize
            continue
        stages.append(_stage(numcodec, size, itemsize, url))
        size = _written(name, size)
        itemsize = itemsize if name == "bitround" else 1
    filters = tuple(stages[: len(codec.filters or ())])
    return V2Codec(filters=filters or None, compressor=stages[-1] if codec.compressor else None)


def _undo_filter(codec: Any, data: np.ndarray) -> Any:
    return codec.decode(data)


def _stage(codec: Any, size: Size, itemsize: int, url: str) -> Stage:
    undo = _undo(codec.codec_id, codec, size, itemsize)
    if undo is None:
        raise _unknown(codec.codec_id, url)
    return Stage(codec.codec_id, undo, size)


def _undo(name: str, codec: Any, size: Size, itemsize: int) -> Callable[[np.ndarray], Any] | None:
    if name == "blosc":
        cname = codec.cname.decode() if isinstance(codec.cname, bytes) else str(codec.cname)
        rule = BloscRule(cname, int(codec.shuffle), itemsize, set())
        return partial(undo_blosc, codec, size=size, rule=rule)
    if name in CHECKSUMS:
        return partial(undo_checksum, codec)
    if name in SAME_SIZE:
        decode: Callable[[np.ndarray], Any] = codec.decode
        return decode
    rest: dict[str, Callable[[np.ndarray], Any]] = {
        "zstd": partial(undo_zstd, codec, size=size),
        "lz4": partial(undo_lz4, codec, size=size),
        "zlib": partial(undo_zlib, size=size),
        "gzip": partial(undo_gzip, size=size),
        "bz2": partial(undo_bz2, size=size),
        "lzma": partial(undo_lzma, codec, size=size),
        "base64": undo_base64,
    }
    return rest.get(name)


def _written(name: str, size: Size) -> Size:
    """How many bytes a codec makes of so many."""
    if name in SAME_SIZE:
        return size
    if name in CHECKSUMS:
        return size.plus(4)
    if name == "base64":
        return Size(-(-size.least // 3) * 4, -(-size.most // 3) * 4)
    return size.compressed()


def _unknown(name: str, url: str) -> StorageError:
    return StorageError(
        f"Input '{url}' is stored with the codec '{name}', of which damage could not be told, or which runs what it reads. "
        f"Read are {READABLE}. Write the volume anew with one of them."
    )

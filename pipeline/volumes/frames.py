"""Stored bytes against what they claim to hold: each compressed format is checked for cuts before a C library sees it.

A stage of a chunk is undone with a bound: the chunk's own shape says how many bytes may come out, so that a few kilobytes
never expand to fill the memory. What cannot be known: a format without a checksum (raw, Blosc, LZ4, zstd as Zarr writes
it) does not show that bits inside its payload were flipped.

Sources: c-blosc `README_CHUNK_FORMAT.rst` (header, block starts, streams); RFC 1950, 1952 (zlib, gzip); RFC 8878 (zstd).
"""

from __future__ import annotations

import base64
import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

BLOSC_FORMATS = {"blosclz": 0, "lz4": 1, "lz4hc": 1, "snappy": 2, "zlib": 3, "zstd": 4}
"""By compressor, what bits 5 to 7 of a Blosc header's flags say."""

LZMA_MEMORY_BYTES = 2**30
"""That a decoder may take for its dictionary; presets need 65 MB at most, a damaged header asks for 4 GB."""

BLOSC_HEADER = struct.Struct("<4B3I")
"""Version, the compressor's version, flags, type size; bytes that it holds, bytes of a block, bytes of the chunk."""

BLOSC_LENGTH = struct.Struct("<I")

AUTOSHUFFLE = -1


class ChunkError(ValueError):
    """A chunk is not what its format and its array's shape demand: cut, damaged, too long, or of another array."""


@dataclass(frozen=True)
class Size:
    """How many bytes a stage has: exact, or a range where a compressor wrote them.

    Args:
        least: At least.
        most: At most.
    """

    least: int
    most: int

    @classmethod
    def of(cls, count: int) -> Size:
        return cls(count, count)

    @property
    def exact(self) -> bool:
        return self.least == self.most

    def compressed(self) -> Size:
        """Of what any compressor makes of so many bytes: none here grows by a quarter, but for its header."""
        return Size(0, self.most + self.most // 4 + 2**16)

    def plus(self, count: int) -> Size:
        return Size(self.least + count, self.most + count)

    def check(self, count: int, what: str) -> None:
        """Raises:
        ChunkError: So many are too few or too many.
        """
        if not self.least <= count <= self.most:
            wanted = f"{self.least:,}" if self.exact else f"{self.least:,} to {self.most:,}"
            raise ChunkError(f"{what} {count:,} bytes, and its shape and data type need {wanted}")


@dataclass(frozen=True)
class BloscRule:
    """What an array's metadata say of its Blosc chunks.

    Args:
        cname: The compressor inside; empty where the metadata name none.
        shuffle: 0 none, 1 bytes, 2 bits, -1 by the type's size.
        typesize: Of what was compressed.
        seen: Type sizes in the headers of chunks; some writers put 1 for any type, but then in all chunks.
    """

    cname: str
    shuffle: int
    typesize: int
    seen: set[int]

    def check_flags(self, flags: int, typesize: int, copied: bool) -> None:
        """Raises:
        ChunkError: A chunk names another compressor, shuffle or type size than its array.
        """
        if flags & 8 or (flags & 1 and flags & 4):
            raise ChunkError(f"its Blosc header has impossible flags ({flags:#04x})")
        if self.cname in BLOSC_FORMATS and flags >> 5 != BLOSC_FORMATS[self.cname]:
            raise ChunkError(
                f"its Blosc header names another compressor than '{self.cname}', which the array's metadata do"
            )
        if typesize not in (self.typesize, 1):
            raise ChunkError(f"its Blosc header tells {typesize} bytes a value instead of {self.typesize}")
        self.seen.add(typesize)
        if len(self.seen) > 1:
            raise ChunkError(f"Blosc headers of this array tell both 1 and {self.typesize} bytes a value")
        if copied:
            return
        wanted = self.shuffle if self.shuffle != AUTOSHUFFLE else 2 if typesize == 1 else 1
        if _effect(flags & 1 or (flags & 4) >> 1, typesize) != _effect(wanted, typesize):
            raise ChunkError("its Blosc header tells another shuffle than the array's metadata")


def _effect(shuffle: int, typesize: int) -> int:
    """Of a shuffle: that of bytes does nothing to values of one byte."""
    return 0 if shuffle == 1 and typesize == 1 else shuffle


def check_blosc(data: np.ndarray, size: Size, rule: BloscRule) -> None:
    """Compare a Blosc chunk with its own header: all lengths and offsets lie inside it, and leave no byte out.

    c-blosc believes the header's length, and reads behind a chunk that was cut. Costs a few operations a block.

    Raises:
        ChunkError: They do not fit.
    """
    if len(data) < 16:
        raise ChunkError(f"it has {len(data)} bytes, less than a Blosc header")
    version, inner_version, flags, typesize, count, blocksize, length = BLOSC_HEADER.unpack_from(data.data)
    if (version, inner_version) != (2, 1):
        raise ChunkError(f"its Blosc header has the version {version}, {inner_version} instead of 2, 1")
    if length != len(data):
        raise ChunkError(f"it has {len(data):,} bytes, and its Blosc header tells {length:,}")
    size.check(count, "its Blosc header tells")
    copied = bool(flags & 2)
    rule.check_flags(flags, typesize, copied)
    if copied:
        if length != count + 16:
            raise ChunkError(f"its Blosc header tells a copy of {count:,} bytes in {length:,}")
    elif not 0 < blocksize <= max(count, 1):
        raise ChunkError(f"its Blosc header tells blocks of {blocksize:,} bytes")
    elif count:
        _check_blocks(data, count, blocksize, _streams(flags, typesize, blocksize))


def _streams(flags: int, typesize: int, blocksize: int) -> int:
    """Streams that a whole block is split into, as c-blosc's `blosc_d` counts them."""
    split = not flags & 16 and typesize <= 16 and blocksize // typesize >= 128
    return typesize if split else 1


def _check_blocks(data: np.ndarray, count: int, blocksize: int, streams: int) -> None:
    """Whether the streams of all blocks, one after another, are the rest of the chunk."""
    blocks = -(-count // blocksize)
    first = BLOSC_HEADER.size + 4 * blocks
    if first > len(data):
        raise ChunkError(f"its Blosc header tells {blocks:,} blocks, more than it has room for")
    starts = struct.unpack_from(f"<{blocks}I", data.data, BLOSC_HEADER.size)
    whole = blocks if count % blocksize == 0 else blocks - 1
    extents = sorted((start, _end(data, start, streams if n < whole else 1)) for n, start in enumerate(starts))
    at = first
    for start, end in extents:
        if start != at:
            raise ChunkError("its Blosc blocks do not fill it, or overlap")
        at = end
    if at != len(data):
        raise ChunkError("its Blosc blocks do not fill it, or overlap")


def _end(data: np.ndarray, start: int, streams: int) -> int:
    """Where a block ends: each stream is its length and so many bytes."""
    for _ in range(streams):
        if start > len(data) - 4:
            raise ChunkError("its Blosc blocks end outside of it")
        start += 4 + BLOSC_LENGTH.unpack_from(data.data, start)[0]
    return start


def undo_blosc(codec: Any, data: np.ndarray, size: Size, rule: BloscRule) -> Any:
    """Blosc, after its header was checked."""
    check_blosc(data, size, rule)
    return codec.decode(data, np.empty(size.most, "u1")) if size.exact and size.most else codec.decode(data)


def undo_lz4(codec: Any, data: np.ndarray, size: Size) -> Any:
    """LZ4 as numcodecs writes it: four bytes of length, and one block, which its decoder takes whole or refuses."""
    if len(data) < 4:
        raise ChunkError(f"it has {len(data)} bytes, less than an LZ4 header")
    size.check(int(np.frombuffer(data[:4].tobytes(), "<u4")[0]), "its LZ4 header tells")
    return codec.decode(data)


def undo_zstd(codec: Any, data: np.ndarray, size: Size) -> Any:
    """Frames that end where the chunk ends, into a place of the size that they must have."""
    if size.exact:
        return codec.decode(data, np.empty(size.most, "u1"))
    count = zstd_content(data)
    if count is None:
        raise ChunkError("its zstd frame does not tell how much it holds, nor does its array")
    size.check(count, "its zstd header tells")
    return codec.decode(data, np.empty(count, "u1"))


def zstd_content(data: np.ndarray) -> int | None:
    """Number of bytes that a zstd frame's header states; None where it states none.

    Raises:
        ChunkError: It is no zstd frame.
    """
    if len(data) < 6 or data[:4].tobytes() != b"\x28\xb5\x2f\xfd":
        raise ChunkError("it does not begin as zstd")
    descriptor = int(data[4])
    single = descriptor >> 5 & 1
    width = (single, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    count = int.from_bytes(data[start : start + width].tobytes(), "little")
    return count + 256 * (width == 2) if width else None


def undo_zlib(data: np.ndarray, size: Size) -> bytes:
    """One stream, and nothing behind it."""
    decoder = zlib.decompressobj()
    return _ended(decoder.decompress(data.data, size.most + 1), decoder, size, "zlib")


def undo_gzip(data: np.ndarray, size: Size) -> bytes:
    """All members; zeros may follow the last, as gzip says of tapes."""
    return _members(lambda: zlib.decompressobj(wbits=31), data, size, "gzip", padding=True)


def undo_bz2(data: np.ndarray, size: Size) -> bytes:
    """All streams."""
    return _members(bz2.BZ2Decompressor, data, size, "bz2")


def undo_lzma(codec: Any, data: np.ndarray, size: Size) -> bytes:
    """All streams of xz or lzma, or a raw one by the filters of its array."""
    if codec.format == lzma.FORMAT_RAW:  # LZMA1 has no mark of its end there: the size alone tells
        decoder = lzma.LZMADecompressor(format=codec.format, filters=codec.filters)
        content = decoder.decompress(data.data, size.most + 1)
        if decoder.eof and decoder.unused_data:
            raise ChunkError("something follows its lzma stream")
        return content
    return _members(
        lambda: lzma.LZMADecompressor(format=codec.format, memlimit=LZMA_MEMORY_BYTES), data, size, "lzma", padding=True
    )


def _members(make: Callable[[], Any], data: np.ndarray, size: Size, name: str, padding: bool = False) -> bytes:
    """What streams one after another hold, no more than the size allows."""
    pieces: list[bytes] = []
    rest: Any = data.data
    while True:
        decoder = make()
        room = size.most + 1 - sum(map(len, pieces))
        pieces.append(decoder.decompress(rest, room))
        rest = decoder.unused_data if decoder.eof else b""
        if padding and not rest.strip(b"\0"):
            rest = b""
        if not rest:
            _ended(b"", decoder, size, name, sum(map(len, pieces)))
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _ended(content: bytes, decoder: Any, size: Size, name: str, count: int | None = None) -> bytes:
    count = len(content) if count is None else count
    if count > size.most:
        raise ChunkError(f"its {name} stream holds more than the {size.most:,} bytes of its shape and data type")
    if not decoder.eof:
        raise ChunkError(f"its {name} stream is cut")
    if name == "zlib" and decoder.unused_data:
        raise ChunkError("something follows its zlib stream")
    return content


def undo_base64(data: np.ndarray) -> bytes:
    """Base64 of its own letters alone: numcodecs' decoder drops all others."""
    return base64.b64decode(data.tobytes(), validate=True)


def undo_checksum(codec: Any, data: np.ndarray) -> Any:
    """A checksum of 32 bits, compared and taken off."""
    if len(data) < 4:
        raise ChunkError(f"it has {len(data)} bytes, less than a checksum")
    return codec.decode(data)

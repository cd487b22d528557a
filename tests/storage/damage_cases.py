"""Chunks of every codec, damaged one way after another and read: each must raise a StorageError or give the right voxels.

A script of its own: a decoder that trusts a header may end the process, and the suite shall outlive it. Prints, a line a
failure, what was read wrongly, and at last how many damages were tried.
"""

from __future__ import annotations

import random
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from numcodecs import lzma as xz
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec
from zarr.codecs import numcodecs as n3

from pipeline.core.geometry.box import Box
from pipeline.errors import StorageError
from pipeline.volumes.volume import open_volume

SHAPE = (16, 16, 16)
BLOSC_HEADER = [0, 1, 2, 3, 4, 8, 12, 16, 20]
PLAIN_HEADER = [0, 1, 2, 4, 6, 8, 10, 12, 18]


def pictures() -> dict[str, np.ndarray]:
    """Smooth values, which compress; and noise, which Blosc stores as it is."""
    z, y, x = np.indices(SHAPE)
    noise = np.random.default_rng(5).integers(0, 2**16, SHAPE, dtype="uint16")
    return {"smooth": (z * 300 + y * 7 + x + noise % 5).astype("uint16"), "noise": noise}


def version_2() -> Iterator[tuple[str, dict[str, Any]]]:
    """Codecs of Zarr v2 by a name, as `create_array` takes them."""
    yield "raw", {"compressors": None}
    for cname in ("blosclz", "lz4", "lz4hc", "zlib", "zstd"):
        for shuffle in (0, 1, 2, -1):
            yield f"blosc-{cname}-{shuffle}", {"compressors": numcodecs.Blosc(cname, 5, shuffle)}
    yield "blosc-blocks", {"compressors": numcodecs.Blosc("lz4", 5, 1, blocksize=2048)}
    yield "blosc-copied", {"compressors": numcodecs.Blosc("lz4", 0, 1)}
    for codec in (numcodecs.Zlib(1), numcodecs.GZip(1), numcodecs.BZ2(1), numcodecs.LZ4(), numcodecs.Zstd(1)):
        yield codec.codec_id, {"compressors": codec}
    yield "zstd-checksum", {"compressors": numcodecs.Zstd(1, checksum=True)}
    yield "lzma", {"compressors": numcodecs.LZMA()}
    yield "lzma-unchecked", {"compressors": numcodecs.LZMA(check=0)}
    yield "lzma-alone", {"compressors": numcodecs.LZMA(format=2)}
    lzma1 = [{"id": xz._lzma.FILTER_LZMA1, "preset": 1}]
    yield "lzma-raw", {"compressors": numcodecs.LZMA(format=3, filters=lzma1)}
    filters: dict[str, list[Any]] = {
        "delta": [numcodecs.Delta("<u2")],
        "delta-wide": [numcodecs.Delta("<u2", "<i4")],
        "offset": [numcodecs.FixedScaleOffset(0, 1, "<u2", "<u4")],
        "shuffle": [numcodecs.Shuffle(2)],
        "astype": [numcodecs.AsType("<u4", "<u2")],
        "base64": [numcodecs.Base64()],
        "fletcher32": [numcodecs.Fletcher32()],
        "crc32": [numcodecs.CRC32()],
        "crc32c": [numcodecs.CRC32C()],
        "adler32": [numcodecs.Adler32()],
        "jenkins": [numcodecs.JenkinsLookup3()],
        "two": [numcodecs.Delta("<u2"), numcodecs.Shuffle(2), numcodecs.CRC32()],
        "zlib-inside": [numcodecs.Zlib(1)],
    }
    for name, given in filters.items():
        yield f"{name}-raw", {"filters": given, "compressors": None}
        yield f"{name}-blosc", {"filters": given, "compressors": numcodecs.Blosc("lz4", 5, 1)}


def version_3() -> Iterator[tuple[str, dict[str, Any]]]:
    """Codecs of Zarr v3 by a name, as `create_array` takes them."""
    chosen = {
        "raw": [],
        "gzip": [GzipCodec()],
        "zstd": [ZstdCodec()],
        "zstd-checksum": [ZstdCodec(checksum=True)],
        "blosc": [BloscCodec(typesize=2, cname="zstd", shuffle="bitshuffle")],
        "blosc-lz4": [BloscCodec(typesize=2, cname="lz4", shuffle="shuffle", blocksize=2048)],
        "crc32c": [Crc32cCodec()],
        "blosc-crc32c": [BloscCodec(typesize=2), Crc32cCodec()],
        "n-zlib": [n3.Zlib(level=1)],
        "n-lz4": [n3.LZ4()],
        "n-blosc": [n3.Blosc()],
        "n-lzma": [n3.LZMA()],
        "n-bz2": [n3.BZ2()],
        "n-gzip": [n3.GZip()],
        "n-zstd": [n3.Zstd()],
        "n-shuffle": [n3.Shuffle(elementsize=2), n3.CRC32()],
        "n-fletcher": [n3.Fletcher32()],
        "n-adler": [n3.Adler32()],
        "n-jenkins": [n3.JenkinsLookup3()],
    }
    for name, compressors in chosen.items():
        yield f"v3-{name}", {"compressors": compressors}
        yield f"v3-shard-{name}", {"compressors": compressors, "chunks": (8, 8, 8), "shards": SHAPE}
    yield "v3-transpose", {"filters": [TransposeCodec(order=(2, 1, 0))], "compressors": [ZstdCodec()]}
    yield "v3-delta", {"filters": [n3.Delta(dtype="<u2", astype="<i4")], "compressors": [ZstdCodec()]}
    for name, index in (("plain", []), ("crc", [Crc32cCodec()])):
        sharding = ShardingCodec(
            chunk_shape=(8, 8, 8),
            codecs=[zarr.codecs.BytesCodec(), ZstdCodec()],
            index_codecs=[zarr.codecs.BytesCodec(), *index],
            index_location="start",
        )
        yield f"v3-start-{name}", {"serializer": sharding, "compressors": None}


def cuts(data: bytes, header: list[int], seed: int, every: bool) -> Iterator[tuple[str, bytes]]:
    """Cut at each field of the header, at half, before the last bytes, and anywhere; and too long."""
    chance = random.Random(seed)
    places = {*header, len(data) // 2, len(data) - 1, len(data) - 4, *(chance.randrange(len(data)) for _ in range(2))}
    if every:
        places |= {*range(64), *range(len(data) - 64, len(data)), *range(0, len(data), 37)}
    for place in sorted(p for p in places if 0 <= p < len(data)):
        yield f"cut at {place} of {len(data)}", data[:place]
    yield "a zero too long", data + b"\0"
    yield "too long", data + data[: len(data) // 2]
    yield "twice", data + data


def header_flips(data: bytes, end: int, seed: int, every: bool) -> Iterator[tuple[str, bytes]]:
    """Other values in each of the first bytes."""
    chance = random.Random(seed)
    for place in range(min(end, len(data))):
        values = {1 << chance.randrange(8)}
        if every:
            values = {1 << bit for bit in range(8)} | {chance.randrange(1, 256) for _ in range(16)} | values
        for value in values:
            flipped = bytearray(data)
            flipped[place] ^= value
            yield f"byte {place} is {flipped[place]} instead of {data[place]}", bytes(flipped)


def payload_flips(data: bytes, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """One bit anywhere."""
    chance = random.Random(seed)
    for _ in range(count):
        flipped = bytearray(data)
        place = chance.randrange(len(data))
        flipped[place] ^= 1 << chance.randrange(8)
        yield f"bit flipped in byte {place}", bytes(flipped)


CHECKED = ("gzip", "zlib", "bz2", "lzma", "crc", "adler", "jenkins", "fletcher", "checksum", "two", "n-shuffle")
"""Parts of names of codecs whose checksum covers all; of the others a flipped bit in the payload cannot be known."""


def is_covered(name: str) -> bool:
    """Whether a flipped bit anywhere in a chunk must be seen."""
    if "unchecked" in name or "alone" in name or "lzma-raw" in name or "start" in name:
        return False
    return any(word in name for word in CHECKED) and not ("blosc" in name and "zlib" in name)


def header_of(name: str, data: bytes) -> int:
    """Bytes in front that no damage may change unseen."""
    if "shard" in name or "start" in name:
        return 0
    if "blosc" in name and "crc" not in name:
        return 16
    return {"lz4": 4, "n-lz4": 4}.get(name.removeprefix("v3-"), 8 if "zstd" in name else 0)


def main(seed: int, every: bool) -> None:
    """Play all damages of all codecs."""
    warnings.simplefilter("ignore")
    tried = 0
    with tempfile.TemporaryDirectory() as folder:
        for picture, voxels in pictures().items():
            for name, options in (*version_2(), *version_3()):
                if (
                    not every
                    and picture == "noise"
                    and ("shard" in name or (name.count("-") == 1 and "filters" in options))
                ):
                    continue
                store = Path(folder) / f"{picture}-{name}.zarr"
                version = 3 if name.startswith("v3") else 2
                array = zarr.create_array(
                    str(store), **{"shape": SHAPE, "dtype": "<u2", "chunks": SHAPE, "zarr_format": version, **options}
                )
                array[:] = voxels
                for problem in tries(store, name, voxels, seed, every):
                    tried += 1
                    if problem:
                        print(f"{picture} {name}: {problem}", flush=True)
    print(f"tried {tried}", flush=True)


def tries(store: Path, name: str, voxels: np.ndarray, seed: int, every: bool) -> Iterator[str]:
    """What was read wrongly of each damage of one array; empty where nothing was."""
    chunk = store / "c/0/0/0" if name.startswith("v3") else store / "0.0.0"
    data = chunk.read_bytes()
    volume = open_volume(str(store))
    box = Box((0, 0, 0), SHAPE)
    yield "" if np.array_equal(volume.read(box)[0], voxels) else "whole, and read wrongly"
    damages = [
        *cuts(data, BLOSC_HEADER if "blosc" in name else PLAIN_HEADER, seed, every),
        *header_flips(data, header_of(name, data), seed, every),
    ]
    damages += payload_flips(data, seed, 200 if every else 2)
    for what, content in damages:
        chunk.write_bytes(content)
        try:
            found = volume.read(box)[0]
        except StorageError:
            yield ""
            continue
        wrong = int((found != voxels).sum())
        hidden = what.startswith("bit") and not is_covered(name)
        yield f"{what}: {wrong} voxels wrong" if wrong and not hidden else ""
    chunk.write_bytes(data)


if __name__ == "__main__":
    main(int(sys.argv[1]), "every" in sys.argv[2:])

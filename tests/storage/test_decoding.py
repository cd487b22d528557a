"""Cut, damaged, stale and oversized input: an error in words or the right voxels, never others."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr

from pipeline.core.geometry.box import Box
from pipeline.core.volume import Selection
from pipeline.errors import StorageError
from pipeline.volumes.volume import open_volume, store_levels

SHAPE = (16, 16, 16)


def damages(*arguments: str, limit: float = 300) -> None:
    """Play the damages in a process of their own, and expect that it lives and read nothing wrongly."""
    command = [sys.executable, "-m", "tests.storage.damage_cases", *arguments]
    found = subprocess.run(command, check=False, capture_output=True, text=True, timeout=limit)
    *wrong, told = found.stdout.splitlines() or [""]
    assert (found.returncode, wrong) == (0, []), found.stderr[-2000:]
    assert told.startswith("tried ")
    assert int(told.split()[1]) > 3000


def test_every_codec_tells_cut_and_damaged_chunks_from_whole_ones():
    """A Blosc chunk cut to half gave garbage, and then the driver's end by SIGSEGV."""
    damages("7")


def stored(folder: Path, compressor: object, content: bytes | None = None, *, zarr_format: int = 2) -> str:
    """An array of one chunk of 8 KiB; its chunk replaced by `content`."""
    url = folder / "v.zarr"
    array = zarr.create_array(
        str(url),
        shape=SHAPE,
        dtype="<u2",
        chunks=SHAPE,
        compressors=compressor,
        zarr_format=zarr_format,
        overwrite=True,
    )
    array[:] = np.arange(4096, dtype="<u2").reshape(SHAPE)
    if content is not None:
        (url / ("0.0.0" if zarr_format == 2 else "c/0/0/0")).write_bytes(content)
    return str(url)


def read(url: str) -> np.ndarray:
    """All voxels."""
    return open_volume(url).read(Box((0, 0, 0), SHAPE))[0]


def test_the_error_names_the_chunk_and_both_lengths(tmp_path):
    """Who has a million chunks must know which one to copy again."""
    url = stored(tmp_path, numcodecs.Blosc("lz4", 0, 1))
    chunk = Path(url) / "0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:4000])
    with pytest.raises(StorageError, match=r"0\.0\.0.*4,000 bytes, and its Blosc header tells 8,208"):
        read(url)


ZEROS = bytes(2**26)


def unsized_zstd(blocks: int) -> bytes:
    """Runs of 128 KiB in a frame that tells no size."""
    heads = [(2**17 << 3 | 1 << 1 | (n == blocks - 1)).to_bytes(3, "little") + b"\0" for n in range(blocks)]
    return b"\x28\xb5\x2f\xfd\x00\x58" + b"".join(heads)


BOMBS = {
    "gzip": (numcodecs.GZip(1), lambda: gzip.compress(ZEROS, 1)),
    "gzip of many": (numcodecs.GZip(1), lambda: gzip.compress(bytes(8192), 1) * 2000),
    "zlib": (numcodecs.Zlib(1), lambda: zlib.compress(ZEROS, 1)),
    "bz2": (numcodecs.BZ2(1), lambda: bz2.compress(ZEROS, 1)),
    "lzma": (numcodecs.LZMA(), lambda: lzma.compress(ZEROS, preset=0)),
    "zstd": (numcodecs.Zstd(1), lambda: numcodecs.Zstd(1).encode(ZEROS)),
    "zstd without a size": (numcodecs.Zstd(1), lambda: unsized_zstd(2000)),
    "lz4": (numcodecs.LZ4(), lambda: numcodecs.LZ4().encode(ZEROS)),
    "blosc": (numcodecs.Blosc("zstd", 1, 1), lambda: numcodecs.Blosc("zstd", 1, 1, typesize=2).encode(ZEROS)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_chunk_never_expands_beyond_its_own_shape(tmp_path, name):
    """A gzip of 64 kB filled the memory, once an attempt."""
    compressor, content = BOMBS[name]
    url = stored(tmp_path, compressor, content())
    tracemalloc.start()
    try:
        with pytest.raises(StorageError, match=r"0\.0\.0"):
            read(url)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("codec", "told"),
    [
        ({"id": "pickle", "protocol": 5}, "pickle"),
        ({"id": "categorize", "labels": ["a"], "dtype": "<U1"}, "codec 'categorize'"),
    ],
)
def test_a_codec_that_runs_what_it_reads_or_is_of_no_numbers_is_refused(tmp_path, codec, told):
    """numcodecs' pickle makes a chunk a program."""
    url = stored(tmp_path, None)
    path = Path(url) / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"filters": [codec]}))
    with pytest.raises(StorageError, match=told):
        open_volume(url)


def test_blosc_chunks_of_writers_that_tell_one_byte_a_value_are_read(tmp_path):
    """JZarr and bioformats2raw do so in every chunk; one among others would be damage."""
    values = np.arange(4096, dtype="<u2")
    content = numcodecs.Blosc("lz4", 5, 1).encode(values.view("u1"))
    assert content[3] == 1
    url = stored(tmp_path, numcodecs.Blosc("lz4", 5, 1), content)
    np.testing.assert_array_equal(read(url).ravel(), values)


def test_an_index_that_names_bytes_of_another_chunk_twice_is_refused(tmp_path):
    """Without a checksum an index is believed as far as its extents are possible."""
    sharding = zarr.codecs.ShardingCodec(
        chunk_shape=(8, 16, 16), codecs=[zarr.codecs.BytesCodec()], index_codecs=[zarr.codecs.BytesCodec()]
    )
    url = tmp_path / "v.zarr"
    array = zarr.create_array(str(url), shape=SHAPE, dtype="<u2", chunks=SHAPE, serializer=sharding, compressors=None)
    array[:] = np.arange(4096, dtype="<u2").reshape(SHAPE)
    shard = url / "c/0/0/0"
    content = shard.read_bytes()
    shard.write_bytes(content[:-32] + struct.pack("<4Q", 0, 4096, 100, 4096))
    with pytest.raises(StorageError, match="overlap"):
        read(str(url))


# --- consolidated metadata -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_array_that_grew_after_consolidation_is_read_whole(tmp_path, zarr_format):
    """A stale copy of the metadata left half of the volume out, with status 0."""
    url = image(tmp_path, zarr_format)
    zarr.consolidate_metadata(url, zarr_format=zarr_format)
    zarr.open_array(f"{url}/s0", mode="r+").resize((20, 8, 8))
    assert open_volume(url).shape == (20, 8, 8)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_level_that_was_added_after_consolidation_is_there(tmp_path, zarr_format):
    """A level not yet in `.zmetadata` was said to be missing."""
    url = image(tmp_path, zarr_format)
    zarr.consolidate_metadata(url, zarr_format=zarr_format)
    zarr.open_group(url, mode="r+", use_consolidated=False).create_array(
        "s1", shape=(5, 4, 4), dtype="u1", chunks=(5, 4, 4)
    )
    metadata = Path(url) / (".zattrs" if zarr_format == 2 else "zarr.json")
    metadata.write_text(metadata.read_text().replace("s9", "s1"))
    assert open_volume(url, Selection(level=1)).shape == (5, 4, 4)
    assert store_levels(url) == 2


def image(folder: Path, zarr_format: int) -> str:
    """An image of 10 slices, whose second level is not there."""
    url = str(folder / "v.zarr")
    group = zarr.create_group(url, zarr_format=zarr_format)
    group.create_array("s0", shape=(10, 8, 8), dtype="u1", chunks=(10, 8, 8))[:] = 1
    scales = [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    levels = [
        {"path": path, "coordinateTransformations": [{"type": "scale", "scale": scale}]}
        for path, scale in zip(("s0", "s9"), scales, strict=True)
    ]
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    told = {"multiscales": [{"axes": axes, "datasets": levels, "version": "0.4"}]}
    group.attrs.update(told if zarr_format == 2 else {"ome": told})
    return url

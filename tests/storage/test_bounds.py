"""Sizes that metadata tell: refused in words before anything is made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.volumes.bounds import LONGEST
from pipeline.volumes.volume import open_volume

VERSION_2 = {
    "zarr_format": 2,
    "shape": [16, 64, 64],
    "chunks": [16, 64, 64],
    "dtype": "<u2",
    "compressor": None,
    "fill_value": 0,
    "order": "C",
    "filters": None,
}
VERSION_3 = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [16, 64, 64],
    "data_type": "uint16",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [16, 64, 64]}},
    "chunk_key_encoding": {"name": "default"},
    "fill_value": 0,
    "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    "attributes": {},
}

SIZES = {
    "chunk 0": {"chunks": [0, 64, 64]},
    "chunk negative": {"chunks": [-1, 64, 64]},
    "chunk of a half": {"chunks": [1.5, 64, 64]},
    "chunk of a word": {"chunks": ["a", 64, 64]},
    "chunk of two axes": {"chunks": [64, 64]},
    "chunk of 2 TB": {"chunks": [2**40, 1, 1]},
    "10^18": {"shape": [10**18, 64, 64]},
    "2^63": {"shape": [2**63, 64, 64]},
    "2^70 everywhere": {"shape": [2**70] * 3},
    "one more than the longest": {"shape": [LONGEST + 1, 64, 64]},
    "longest everywhere": {"shape": [LONGEST] * 3},
    "negative": {"shape": [-5, 64, 64]},
    "float": {"shape": [16.0, 64, 64]},
    "none": {"shape": None},
    "65 axes": {"shape": [1] * 65, "chunks": [1] * 65},
    "object": {"dtype": "|O"},
    "text": {"dtype": "<U5", "fill_value": ""},
    "complex": {"dtype": "<c8", "fill_value": [0.0, 0.0]},
    "fill of a word": {"fill_value": "zebra"},
}


def document(zarr_format: int, **changes: object) -> tuple[str, str]:
    """Name and text of an array's metadata."""
    if zarr_format == 2:
        return ".zarray", json.dumps(VERSION_2 | changes)
    chunks = {"name": "regular", "configuration": {"chunk_shape": changes.pop("chunks", [16, 64, 64])}}
    if "dtype" in changes:
        changes["data_type"] = {"|O": "object", "<U5": "string", "<c8": "complex64"}[str(changes.pop("dtype"))]
    return "zarr.json", json.dumps({**VERSION_3, "chunk_grid": chunks, **changes})


def refused(folder: Path, name: str, text: str | bytes) -> str:
    """What is said of an array with such metadata."""
    (folder / "v.zarr").mkdir()
    (folder / "v.zarr" / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StorageError) as error:
        open_volume(str(folder / "v.zarr"))
    return str(error.value)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("name", SIZES)
def test_impossible_sizes_are_refused_when_the_volume_is_opened(tmp_path, name, zarr_format):
    """They ended in tracebacks of a division, of an overflow, or of the memory."""
    assert "v.zarr" in refused(tmp_path, *document(zarr_format, **SIZES[name]))


def test_the_error_of_a_large_chunk_says_what_it_would_take(tmp_path):
    """Bytes are what a person can compare with a machine."""
    assert "2,199,023,255,552 bytes" in refused(tmp_path, *document(2, chunks=[2**40, 1, 1]))


def test_a_chunk_longer_than_its_array_is_read(tmp_path):
    """Zarr allows it, and writers do it."""
    (tmp_path / "v.zarr").mkdir()
    (tmp_path / "v.zarr/.zarray").write_text(document(2, chunks=[64, 64, 64])[1])
    assert open_volume(str(tmp_path / "v.zarr")).shape == (16, 64, 64)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "null",
        "{",
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000,
        '{"shape": [' + "9" * 10_000 + "]}",
        "\0",
        b"\xff\xfe\xfa",
    ],
    ids=["empty", "list", "null", "cut", "deep list", "deep keys", "digits", "zero", "no text"],
)
@pytest.mark.parametrize("name", ["zarr.json", ".zarray"])
def test_metadata_that_are_none_are_refused(tmp_path, name, text):
    """Whatever a parser raises of them."""
    assert "v.zarr" in refused(tmp_path, name, text)

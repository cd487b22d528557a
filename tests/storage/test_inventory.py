"""What is stored of a volume is counted, and what was counted and is absent is an error: never fill that nobody wrote."""

import json
import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from pipeline.core.geometry.box import Box
from pipeline.core.stored import compare
from pipeline.errors import StorageError
from pipeline.places.stores import s3
from pipeline.volumes.counted import counted
from pipeline.volumes.decoding import CheckedPipeline
from pipeline.volumes.inventory import from_bytes, open_counted, take_inventory, to_bytes
from pipeline.volumes.volume import Volume, open_volume
from tests.pipeline_cases import random_volume, save_array

SHAPE = (20, 24, 28)
CHUNKS = (8, 8, 8)

FORMATS = {
    "v2, flat": {"zarr_format": 2},
    "v2, nested": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "v3, nested": {},
    "v3, flat": {"chunk_key_encoding": {"name": "default", "separator": "."}},
    "v3, as v2": {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
}


def whole(volume: Volume) -> np.ndarray:
    """All of its voxels."""
    return volume.read(Box.of_shape(volume.shape))


@pytest.fixture(params=FORMATS.values(), ids=FORMATS.keys())
def path(request, tmp_path) -> Path:
    """A volume of 36 chunks, none of them fill."""
    return save_array(tmp_path / "v.zarr", random_volume(SHAPE) | 1, CHUNKS, **request.param)


def test_a_chunk_that_was_counted_is_never_read_as_fill(path):
    """Zarr reads an absent chunk as fill, whoever deleted it and when."""
    volume = open_counted(str(path))
    inventory = take_inventory(volume)
    assert str(inventory.stored) == "36 of 36 chunks"
    assert isinstance(volume.array.async_array.codec_pipeline, CheckedPipeline)  # damage is still told
    expected = whole(volume)
    (path / inventory.name(17)).unlink()
    with pytest.raises(StorageError, match=r"Chunk '.*' of '.*' was there when it was counted .*, and is absent"):
        whole(volume)
    assert volume.read(Box((0, 0, 0), CHUNKS)).shape == (1, *CHUNKS)  # another one
    now = open_counted(str(path))  # the negative control: one that was absent when it was counted is fill
    assert "1 of the 36 chunks of the input is absent" in take_inventory(now).stored.warnings[0]
    hole = inventory.box(17).clipped(Box.of_shape(SHAPE))
    assert not now.read(hole).any()
    assert expected[(slice(None), *hole.within(Box.of_shape(SHAPE)))].all()


@pytest.mark.parametrize("becomes", ["moved", "emptied", "cut"])
def test_a_volume_that_goes_while_it_is_read_is_an_error(path, becomes):
    """A cable, a `mv`, an `rm -r`: the first chunk that is asked for afterwards tells."""
    volume = open_counted(str(path))
    if becomes == "moved":
        path.rename(path.with_name("elsewhere.zarr"))
    elif becomes == "emptied":
        shutil.rmtree(path)
        path.mkdir()
    else:
        chunk = path / take_inventory(volume).name(0)
        chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(
        StorageError, match="bytes when it was counted, and has 100" if becomes == "cut" else "and is absent"
    ):
        whole(volume)


def test_a_shard_that_was_counted_is_never_read_as_fill(tmp_path):
    """Stored objects are shards; parts of one are read by ranges."""
    path = save_array(tmp_path / "v.zarr", random_volume(SHAPE) | 1, (4, 4, 4), shards=(8, 8, 16))
    volume = open_counted(str(path))
    inventory = take_inventory(volume)
    assert str(inventory.stored) == "18 of 18 shards"
    (path / inventory.name(0)).unlink()
    with pytest.raises(StorageError, match="Shard 'c/0/0/0'"):
        volume.read(Box((0, 0, 0), (2, 2, 2)))


def test_a_header_without_voxels_is_refused(path):
    """A copy that broke off after its first file; who means it says so."""
    for chunk in [p for p in path.rglob("*") if p.is_file() and not p.name.startswith((".z", "zarr.json"))]:
        chunk.unlink()
    with pytest.raises(StorageError, match=r"has a header and no voxels \(stored: 0 of 36 chunks"):
        open_counted(str(path))
    assert not whole(open_counted(str(path), missing="fill")).any()


@pytest.mark.parametrize("dataset", ["chunked", "contiguous"])
def test_an_hdf5_dataset_that_was_never_written_is_refused(tmp_path, dataset):
    """HDF5 reads fill as well."""
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("chunked", shape=SHAPE, chunks=CHUNKS, dtype="u1")
        file.create_dataset("contiguous", shape=SHAPE, dtype="u1")
        file.create_dataset("written", data=random_volume(SHAPE), chunks=CHUNKS)
    with pytest.raises(StorageError, match=r"has a header and no voxels \(stored: 0 of"):
        open_counted(f"{tmp_path}/v.h5/{dataset}")
    assert str(take_inventory(open_volume(f"{tmp_path}/v.h5/written")).stored) == "36 of 36 chunks"


def rename_chunks(path: Path) -> None:
    """Store the chunks under another separator than the metadata says."""
    if (path / ".zarray").is_file():
        content = json.loads((path / ".zarray").read_text())
        content["dimension_separator"] = {"/": ".", ".": "/"}[content.get("dimension_separator", ".")]
        (path / ".zarray").write_text(json.dumps(content))
        return
    content = json.loads((path / "zarr.json").read_text())
    encoding = content["chunk_key_encoding"]
    encoding["configuration"]["separator"] = {"/": ".", ".": "/"}[encoding["configuration"]["separator"]]
    (path / "zarr.json").write_text(json.dumps(content))


def test_chunks_under_the_other_separator_are_refused(path):
    """`dimension_separator` is lost easily, and then all reads as fill."""
    rename_chunks(path)
    with pytest.raises(StorageError, match="but 36 lie as"):
        open_counted(str(path))
    assert not whole(open_counted(str(path), missing="fill")).any()


def test_one_chunk_under_the_other_separator_is_refused_too(tmp_path):
    """Two writers, of which one knew the separator: what both wrote is there twice, what one wrote would be a hole."""
    path = save_array(tmp_path / "v.zarr", random_volume(SHAPE), CHUNKS, zarr_format=2)
    (path / "0/0").mkdir(parents=True)
    shutil.copy(path / "0.0.1", path / "0/0/1")
    assert str(take_inventory(open_volume(str(path))).stored) == "36 of 36 chunks"  # a copy harms nobody
    (path / "0.0.1").unlink()
    with pytest.raises(StorageError, match="but 1 lie as '0/0/1'"):
        open_counted(str(path))


# --- two looks ----------------------------------------------------------------------------------------------------------


def test_what_changed_between_two_looks_is_named(path):
    """Gone, new, written again; and nothing where nothing is."""
    before = take_inventory(open_volume(str(path)))
    assert not compare(before, take_inventory(open_volume(str(path))))
    (path / before.name(0)).unlink()
    os.utime(path / before.name(9))
    change = compare(from_bytes(to_bytes(before)), take_inventory(open_volume(str(path))))
    assert (change.gone.tolist(), change.new.tolist(), change.written.tolist()) == ([0], [], [9])
    assert (
        str(change)
        == f"1 chunk is gone: {before.name(0)}; 1 chunk is written again (another size, time or ETag): {before.name(9)}"
    )
    back = compare(change.now, before)
    assert back.new.tolist() == [0]


def test_a_copy_that_keeps_its_times_is_the_same_and_another_is_not(path, tmp_path):
    """`cp -a`, `rsync -t`: only the time of the inode differs, which no copy keeps. A plain `cp` cannot be told from new voxels."""
    before = take_inventory(open_volume(str(path)))
    shutil.copytree(path, tmp_path / "copy.zarr")
    now = take_inventory(open_volume(str(tmp_path / "copy.zarr")))
    assert not compare(before, now, copied=True)
    assert len(compare(before, now).written) == 36  # the negative control: at the same place they were written again
    shutil.copytree(path, tmp_path / "plain.zarr", copy_function=shutil.copyfile)
    assert len(compare(before, take_inventory(open_volume(str(tmp_path / "plain.zarr"))), copied=True).written) == 36


def test_what_holds_no_voxel_may_change(path):
    """Attributes, notes beside the chunks: the plan's fingerprint knows of the metadata what matters."""
    before = take_inventory(open_volume(str(path)))
    (path / "notes.txt").write_text("looked at")
    zarr.open_array(str(path), mode="r+").attrs["seen"] = True
    now = take_inventory(open_volume(str(path)))
    assert now.stored.signature != before.stored.signature
    assert not compare(before, now)


def test_a_damaged_inventory_is_none(path):
    """Then all may have changed."""
    content = to_bytes(take_inventory(open_volume(str(path))))
    assert from_bytes(content[: len(content) // 2]) is None
    assert from_bytes(b"") is None
    assert compare(None, take_inventory(open_volume(str(path)))).is_coarse


# --- samples ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch) -> None:
    """Stores of more than ten objects are not listed, and eight are looked at."""
    monkeypatch.setattr("pipeline.volumes.inventory.MOST_OBJECTS", 10)
    monkeypatch.setattr("pipeline.core.stored.SAMPLE", 8)


def test_what_cannot_be_listed_is_sampled(path, few):
    """Counting a hundred million chunks takes hours."""
    volume = open_counted(str(path))
    inventory = take_inventory(volume)
    assert str(inventory.stored) == "8 of 8 sampled"
    places = inventory.places.tolist()
    assert len({place // 12 for place in places}) == 3  # spread over all
    other = next(place for place in range(36) if place not in places)
    (path / inventory.name(other)).unlink()
    with pytest.raises(StorageError, match="though all that were sampled are there"):
        whole(volume)
    assert not compare(inventory, take_inventory(volume))
    filling = open_counted(str(path), missing="fill")
    assert not filling.read(inventory.box(other).clipped(Box.of_shape(SHAPE))).any()
    path.rename(path.with_name("elsewhere.zarr"))
    with pytest.raises(StorageError, match="and so is the array's own"):
        filling.read(inventory.box(other).clipped(Box.of_shape(SHAPE)))
    path.with_name("elsewhere.zarr").rename(path)
    (path / inventory.name(places[3])).unlink()
    assert compare(inventory, take_inventory(volume)).gone.tolist() == [places[3]]
    with pytest.raises(StorageError, match="was there when it was counted"):
        filling.read(inventory.box(places[3]).clipped(Box.of_shape(SHAPE)))


def test_a_sample_of_a_header_or_of_other_names_is_refused(path, few):
    """As a listing is."""
    rename_chunks(path)
    with pytest.raises(StorageError, match="lie as"):
        open_counted(str(path))


def test_counting_keeps_the_volume(path):
    """Whoever counts and reads has the same voxels as one who does not."""
    volume = open_volume(str(path))
    np.testing.assert_array_equal(whole(counted(volume, take_inventory(volume))), whole(volume))


# --- object stores ------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(bucket, tmp_path) -> str:
    """The same volume in a bucket."""
    path = save_array(tmp_path / "v.zarr", random_volume(SHAPE) | 1, CHUNKS)
    s3().put(str(path), f"{bucket}/v.zarr", recursive=True)
    return f"{bucket}/v.zarr"


def test_objects_of_a_store_are_counted_and_compared_by_their_etags(stored, bucket):
    """Deleted and replaced in mid-run, header only: as on a file system."""
    volume = open_counted(stored)
    before = take_inventory(volume)
    assert str(before.stored) == "36 of 36 chunks"
    assert not compare(before, take_inventory(open_volume(stored)))
    s3().copy(stored, f"{bucket}/copy.zarr", recursive=True)
    assert not compare(before, take_inventory(open_volume(f"{bucket}/copy.zarr")), copied=True)
    s3().pipe_file(f"{stored}/c/0/0/1", bytes(512))
    s3().rm_file(f"{stored}/c/0/0/0")
    change = compare(before, take_inventory(volume))
    assert (change.gone.tolist(), change.written.tolist()) == ([0], [1])
    with pytest.raises(StorageError, match=r"Chunk 'c/0/0/0' of 's3://.*' was there when it was counted"):
        volume.read(Box((0, 0, 0), CHUNKS))
    for name in s3().find(f"{stored}/c"):
        s3().rm_file(name)
    with pytest.raises(StorageError, match="has a header and no voxels"):
        open_counted(stored)


def test_a_bucket_that_nobody_may_list_is_sampled(stored, monkeypatch):
    """Public data are often read by name alone."""

    def refused(url: str) -> None:
        raise StorageError("the store refuses it") from PermissionError("AccessDenied")

    whole_count = take_inventory(open_volume(stored))
    monkeypatch.setattr("pipeline.volumes.inventory.looks", refused)
    sampled = take_inventory(open_volume(stored))
    assert str(sampled.stored) == "36 of 36 sampled"
    assert not compare(sampled, take_inventory(open_volume(stored)))
    assert sampled.marks.tolist() == whole_count.marks.tolist()


def test_a_volume_of_a_web_server_is_sampled(tmp_path):
    """It answers for names and lists nothing that can be relied on."""
    path = save_array(tmp_path / "v.zarr", random_volume((8, 8, 64)) | 1, CHUNKS)
    handler = partial(SimpleHTTPRequestHandler, directory=str(path.parent))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{path.name}"
        volume = open_counted(url)
        inventory = take_inventory(volume)
        assert str(inventory.stored) == "8 of 8 sampled"
        np.testing.assert_array_equal(whole(volume), whole(open_volume(str(path))))
        (path / inventory.name(7)).unlink()
        with pytest.raises(StorageError, match="and is absent"):
            whole(volume)
        assert compare(inventory, take_inventory(open_volume(url))).gone.tolist() == [7]
        server.shutdown()

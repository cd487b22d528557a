"""Stores, and levels and images over them: objects by key, and no path above."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.core.geometry.box import Box
from pipeline.core.ledger import TileRecord
from pipeline.errors import FileError, StorageError
from pipeline.outputs.image import Image
from pipeline.outputs.level import Contents, Level
from pipeline.outputs.metadata import Metadata
from pipeline.outputs.rundir import RunDirectory
from pipeline.outputs.sink import UnitSink
from pipeline.outputs.store import Entry, FolderStore, Store
from pipeline.stages.verify import verify_output
from tests.pipeline_cases import output_plan, random_volume
from tests.storage.store_cases import MemoryObjects


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path) -> Store:
    """Each kind, empty; the one in memory is held to what the real one does."""
    return FolderStore(tmp_path / "o.zarr") if request.param == "folder" else MemoryObjects()


# --- stores -------------------------------------------------------------------------------------------------------------


def test_what_was_put_is_got_with_its_checksum(store):
    """The checksum is what the ledger vouches with, and anybody can print it by `sha256sum`."""
    assert not store.is_occupied()
    assert (store.get("0/c/1"), store.checksum("0/c/1")) == (None, None)
    for content in (b"one", b"other"):
        digest = hashlib.sha256(content).hexdigest()
        assert store.put("0/c/1", content) == digest == store.checksum("0/c/1")
        assert store.get("0/c/1") == content
    assert store.is_occupied()
    store.remove("0/c/1")
    store.remove("0/c/1")  # it is removed already
    assert store.get("0/c/1") is None


def test_what_is_not_permitted_changes_nothing(store):
    """A worker that wakes late neither replaces an object nor removes one."""

    def refuse():
        raise StorageError("void")

    store.put("0/c/1", b"old")
    for late in (lambda: store.put("0/c/1", b"new", refuse), lambda: store.remove("0/c/1", refuse)):
        with pytest.raises(StorageError, match="void"):
            late()
    assert store.get("0/c/1") == b"old"
    assert [entry.key for entry in store.walk("0") if not entry.is_folder] == ["0/c/1"]


def test_what_lies_in_a_store_is_listed_by_key(store):
    """Strays and parts are found by these, whatever the kind of store."""
    for key in ("zarr.json", "0/zarr.json", "0/c/0/0", "0/c/0/1", "labels/x"):
        store.put(key, b"x")
    assert {(e.key, e.is_folder) for e in store.children()} == {("zarr.json", False), ("0", True), ("labels", True)}
    assert {(e.key, e.is_folder) for e in store.children("0")} == {("0/zarr.json", False), ("0/c", True)}
    assert {e.key for e in store.walk("0/c") if not e.is_folder} == {"0/c/0/0", "0/c/0/1"}
    assert not [*store.children("1")]
    assert not [*store.walk("1/c")]


def test_parts_are_what_a_writer_leaves_and_folders_are_none():
    """A person's folder of such a name is not swept."""
    assert [Entry("0/a.part").is_part, Entry("a.partial").is_part] == [True, True]
    assert [Entry("a.part", is_folder=True).is_part, Entry("0/part").is_part] == [False, False]


def test_an_object_takes_its_place_after_it_and_each_folder_above_is_on_disk(tmp_path, monkeypatch):
    """Else a power cut leaves a ledger that vouches for objects that no folder names."""
    events = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(handle):
        events.append(Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)

    def noted_replace(path, target):
        events.append(("replace", target))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    root = tmp_path / "o.zarr"
    store = FolderStore(root)
    store.put("0/c/1", b"x")
    moved = events.index(("replace", root / "0/c/1"))
    assert {tmp_path, root, root / "0"} <= {place for place in events[:moved] if isinstance(place, Path)}
    assert str(events[moved - 1]).endswith(".part")
    assert events[moved + 1 :] == [root / "0/c"]
    del events[:]
    store.put("0/c/2", b"x")
    assert len(events) == 3  # the object, its place, its folder: those above were flushed by this process


def test_a_folder_in_an_objects_place_goes_only_if_it_is_empty(tmp_path):
    """What somebody keeps in it is theirs."""
    store = FolderStore(tmp_path)
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full/notes").write_text("notes")
    store.remove("empty")
    with pytest.raises(OSError, match="not empty"):
        store.remove("full")
    assert {entry.key for entry in store.children()} == {"full"}


# --- levels -------------------------------------------------------------------------------------------------------------


def level_of(store: Store, name: str, **other) -> Level:
    """A level of 6 x 12 x 9 voxels and two channels in shards of 4 x 8 x 8."""
    extents = {"shape": (6, 12, 9), "chunks": (4, 4, 4), "shards": (4, 8, 8)}
    return Level(store, name, **{"axes": "czyx", "channels": 2, "dtype": "uint8", **extents, **other})


@pytest.mark.parametrize("shards", [(4, 8, 8), None])
@pytest.mark.parametrize("name", ["0", "3", "cells/0"])
def test_a_level_lies_under_its_own_name(store, name, shards):
    """Pyramids and labels have others than `0`; what it writes is read back by that name, by zarr alone."""
    level, whole = level_of(store, name, shards=shards), Box.of_shape((6, 12, 9))
    array = random_volume((2, 6, 12, 9)) | 1
    store.put(level.document_key, level.document)
    written = level.write(whole, array)
    assert set(written) == {key for unit in level.units(whole) for key in level.keys(unit)}
    assert all(key.startswith(f"{name}/c/") and level.is_unit(key) for key in written)
    assert {key: store.checksum(key) for key in written} == written
    np.testing.assert_array_equal(level.read(whole), array)
    np.testing.assert_array_equal(zarr.open_array(store.as_zarr(), path=name, mode="r")[...], array)


@pytest.mark.parametrize("name", ["0", "3"])
def test_units_of_a_level_are_no_units_of_another(store, name):
    """Each looks after its own: a stray of one is not removed on the word of another."""
    level, other = level_of(store, name), level_of(store, "7")
    for key in level.keys(next(level.units(Box.of_shape((6, 12, 9))))):
        assert level.is_unit(key)
        assert not other.is_unit(key)
    for key in (f"{name}/c/0/9/0/0", f"{name}/c/5/0/0", f"{name}/c/0/0/0/0.part", f"{name}/c/note", "7/c/0/9/0/0"):
        store.put(key, b"x")
    found = Contents()
    level.sort(found)
    assert set(found.strays) == {f"{name}/c/0/9/0/0", f"{name}/c/5/0/0"}
    assert (found.parts, found.others) == ([f"{name}/c/0/0/0/0.part"], [f"{name}/c/note"])


def test_units_that_are_written_at_once_are_those_that_are_written_one_by_one(store):
    """A conversion writes boxes of many units, a run one at a time; the bytes are the same."""
    one, many = level_of(store, "0"), level_of(MemoryObjects(), "0")
    whole, array = Box.of_shape((6, 12, 9)), random_volume((2, 6, 12, 9)) | 1
    written = {}
    for unit in one.units(whole):
        written |= one.write(unit, array[(slice(None), *unit.within(whole))])
    assert many.write(whole, array) == written
    assert len(written) == 2 * 2 * 2


# --- images -------------------------------------------------------------------------------------------------------------


def test_an_image_needs_no_path(tmp_path):
    """From its first document to its verification it goes by keys, so that it may lie on an object store."""
    plan = output_plan(tmp_path / "o.zarr", channels=2)
    directory = RunDirectory(plan.output.url)
    directory.path.mkdir()
    image = Image(plan, store := MemoryObjects())
    whole = Box.of_shape(plan.source.shape)
    array = (random_volume((2, *plan.source.shape)) | 1).astype("float32")
    assert image.state() == "absent"
    assert image.create()
    with directory.ledger() as ledger:
        for tile in plan.grid:
            sink = UnitSink(image.finest, tile.core)
            sink.add(tile.core, array[(slice(None), *tile.core.within(whole))])
            ledger.append(TileRecord(tile.index, "done", plan.fingerprint, sink.finish()))
    image.publish()
    for key in ("0/c/9/9/9/9", "0/c/0/0/0/0.part", "notes"):
        store.objects[key] = b"x"
    found = verify_output(image, directory, mark=lambda _: None)
    assert (found.valid, found.metadata) == (found.tiles, ("object '0/c/9/9/9/9' is of no write unit",))
    assert found.others == ("notes",)
    assert image.sweep() == ["0/c/9/9/9/9"]
    assert verify_output(image, directory, mark=lambda _: None).complete
    np.testing.assert_array_equal(image.finest.read(whole), array)
    assert {path.name for path in tmp_path.iterdir()} == {"o.zarr.run"}
    other = Image(plan, FolderStore(tmp_path / "o.zarr"))
    other.create()
    other.publish()
    documents = {key: content for key, content in store.objects.items() if key.endswith("zarr.json")}
    assert documents == {key: other.store.get(key) for key in documents}


def test_what_the_system_refuses_is_told_by_the_file(tmp_path):
    """The store says it as the system does; whoever a person meets puts it in words."""
    plan = output_plan(tmp_path / "o.zarr")
    image, core = Image(plan), plan.grid.tile(0).core
    image.create()
    (tmp_path / "o.zarr/0/c").write_text("in the way")
    values = np.ones((1, *core.shape), "float32")
    with pytest.raises(OSError, match=r"exists|directory"):
        image.finest.write(core, values)
    with pytest.raises(FileError, match="cannot be written"):
        UnitSink(image.finest, core).add(core, values)


@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_the_document_of_every_level_is_looked_after(store, tmp_path, damage):
    """Readers go by each; one that is damaged is put back, and the others are left."""
    plan = output_plan(tmp_path / "o.zarr", channels=2)
    levels = [level_of(store, name, shape=shape) for name, shape in (("0", (6, 12, 9)), ("1", (3, 6, 5)))]
    metadata = Metadata(store, plan, levels)
    assert metadata.put(complete=False) == [
        f"{key}: is not there, or no document" for key in ("zarr.json", "0/zarr.json", "1/zarr.json")
    ]
    assert metadata.compared(complete=False).differences == ()
    before = store.get("1/zarr.json")
    store.remove("1/zarr.json") if damage is None else store.put("1/zarr.json", damage)
    found = metadata.compared(complete=False).differences
    assert found
    assert {line.partition(":")[0] for line in found} == {"1/zarr.json"}
    assert tuple(metadata.put(complete=False)) == found
    assert store.get("1/zarr.json") == before != store.get("0/zarr.json")

"""Volumes whose files change: tiles of old and new voxels are never mixed, and what is there is not taken for what it is not."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset import volume as volume_module
from pipeline.dataset.estimate import estimate
from pipeline.dataset.pass_ import volumes_of
from pipeline.outputs.rundir import RunDirectory
from tests.dataset.dataset_cases import DataSet, make_dataset
from tests.dataset.test_object_store import dataset as stored_dataset  # noqa: F401 - a fixture
from tests.dataset.test_reprocess import go
from tests.dataset.test_watch import QUIET, inbox, look
from tests.pipeline_cases import done_entries, sessions

SHAPE = (48, 24, 24)
TILES = {"core": [8, 24, 24]}


def half_done(folder: Path) -> DataSet:
    """A volume of six tiles whose last chunk is damaged: the first tiles were computed from what was there."""
    dataset = make_dataset(folder, volumes=0, tiles=TILES)
    dataset.add("v00", seed=0, shape=SHAPE)
    chunk = max(path for path in dataset.volume("v00").rglob("*") if path.is_file() and path.name != "zarr.json")
    chunk.write_bytes(b"\x00damaged")
    assert go(dataset) == {"v00": "failed"}
    (run,) = (dataset.output / "v00").glob("versions/*/*.run")
    assert 1 <= len(done_entries(RunDirectory(str(run).removesuffix(".run")))) < 6
    return dataset


def is_exact(dataset: DataSet, name: str) -> bool:
    """Whether readers see one pass over the volume as it is now."""
    expected = dataset.expected(name, seed=1)
    return bool(np.abs(dataset.array(name) - expected).max() <= 1e-5 * np.ptp(expected))


def reason(dataset: DataSet) -> str:
    """What the only volume's summary says."""
    return dataset.summary["outcomes"][0]["reason"]


def again(dataset: DataSet, seed: int) -> None:
    """The volume comes anew, with other voxels."""
    shutil.rmtree(dataset.volume("v00"))
    dataset.add("v00", seed=seed, shape=SHAPE)


def test_a_volume_that_comes_again_keeps_no_tile_of_the_broken_one(tmp_path, pooled):
    """An upload that broke off has holes beside its damage: what was computed from them must not be resumed."""
    dataset = half_done(tmp_path)
    again(dataset, seed=3)
    assert go(dataset) == {"v00": "done"}
    assert is_exact(dataset, "v00")
    assert [s.tiles for s in sessions(RunDirectory(dataset.current("v00")))] == [6]


def test_who_says_that_the_voxels_are_the_same_resumes(tmp_path, pooled):
    """The negative control of the one above, and what --moved promises: tiles are kept, whatever the files' times say."""
    dataset = half_done(tmp_path)
    again(dataset, seed=3)
    assert go(dataset, moved=True) == {"v00": "done"}
    assert not is_exact(dataset, "v00")


def test_a_run_that_was_only_interrupted_resumes(tmp_path, pooled):
    """The same files: only the tiles that failed are computed again, though the rest of the store was touched."""
    dataset = half_done(tmp_path)
    (dataset.volume("v00").with_name("v00.zarr.notes")).write_text("beside it")
    assert go(dataset) == {"v00": "failed"}
    (run,) = (dataset.output / "v00").glob("versions/*/*.run")
    first, second = sessions(RunDirectory(str(run).removesuffix(".run")))
    assert first.tiles > 0
    assert second.tiles == 0


def test_files_that_change_while_they_are_read_are_not_published(tmp_path, pooled, monkeypatch):
    """Some tiles would be of the old voxels, some of the new."""
    dataset = make_dataset(tmp_path, volumes=1)
    compute = volume_module._compute

    def meanwhile(*asked, **keys):
        found = compute(*asked, **keys)
        os.utime(next(path for path in dataset.volume("v00").rglob("*") if path.is_file()))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(volume_module, "_compute", meanwhile)
        assert go(dataset) == {"v00": "failed"}
    assert "changed while it was segmented" in reason(dataset)
    assert not (dataset.output / "v00" / "current").exists()
    assert go(dataset) == {"v00": "done"}
    assert dataset.summary["outcomes"][0]["tiles"] == 1  # anew


def test_a_version_of_other_files_that_readers_may_have_open_is_not_replaced(tmp_path, pooled):
    """Setting a model back finds what it made, unless the files have changed: that is nobody's to remove but a person's."""
    dataset = make_dataset(tmp_path, volumes=1)
    go(dataset)
    first = dataset.current("v00")
    dataset.register(seed=2)
    dataset.add_again("v00", seed=3)
    assert go(dataset) == {"v00": "done"}
    back = dataset.having(model={"version": 1})
    assert go(back) == {"v00": "failed"}
    assert "was published once, and made from files that have changed since" in reason(back)
    assert first.is_dir()
    assert go(back, moved=True) == {"v00": "done"}
    assert dataset.current("v00") == first


def test_a_path_that_is_mended_in_the_catalogue_is_another_try(tmp_path, pooled):
    """Nothing was made from the mistyped one, so there is nothing to protect."""
    dataset = make_dataset(tmp_path, volumes=1)
    right = str(dataset.volume("v00"))
    assert go(dataset.having(volumes=[{"url": f"{right}x", "name": "a"}])) == {"a": "failed"}
    mended = dataset.having(volumes=[{"url": right, "name": "a"}])
    assert go(mended) == {"a": "done"}
    assert go(dataset.having(volumes=[{"url": f"{right}x", "name": "a"}])) == {"a": "failed"}  # that is another one
    assert go(mended) == {"a": "skipped"}


def test_of_volumes_of_too_many_files_a_sample_is_compared(tmp_path, pooled, monkeypatch):
    """A listing of a hundred million chunks takes hours; what came anew is noticed by a thousand of them."""
    monkeypatch.setattr("pipeline.volumes.inventory.MOST_OBJECTS", 23)  # 6 x 2 x 2 chunks
    dataset = half_done(tmp_path)
    again(dataset, seed=3)
    assert go(dataset) == {"v00": "done"}
    assert is_exact(dataset, "v00")
    assert "stored: 24 of 24 sampled" in (RunDirectory(dataset.current("v00")).path / "report.html").read_text()


# --- an inbox -----------------------------------------------------------------------------------------------------------


def look_twice(dataset: DataSet) -> dict[str, str]:
    """Look until what is new counts as complete."""
    assert look(dataset) == {}
    return look(dataset, after=QUIET)


def test_every_change_of_a_volume_that_was_done_is_told(tmp_path, pooled):
    """The second must not be taken for done because the first was told."""
    dataset = inbox(tmp_path)
    assert look_twice(dataset) == {"v00": "done"}
    for seed in (3, 4):
        dataset.add_again("v00", seed=seed)
        assert look_twice(dataset) == {"v00": "failed"}
        assert "files have changed since its output was made" in reason(dataset)
        assert look(dataset) == {}
        assert go(dataset) == {"v00": "failed"}  # the files are looked at, since something was wrong
        assert estimate(dataset.config, volumes_of(dataset.config)[0]).refused.keys() == {"v00"}
    assert go(dataset, moved=True) == {"v00": "skipped"}  # somebody knows better
    assert go(dataset) == {"v00": "skipped"}
    assert look(dataset) == {}
    shutil.rmtree(dataset.output / "v00")  # as the reason says
    assert look(dataset) == {"v00": "done"}
    assert is_exact(dataset, "v00")


def test_what_reprocess_did_is_watched_too(tmp_path, pooled):
    """Both work on one dataset: a failure of one is tried again by the other, and a change after either is told."""
    dataset = inbox(tmp_path, volumes=2)
    dataset.corrupt("v00")
    assert Counter(go(dataset).values()) == {"failed": 1, "done": 1}
    assert look_twice(dataset) == {"v00": "failed", "v01": "skipped"}
    dataset.add_again("v00", seed=3)
    assert look_twice(dataset) == {"v00": "done"}
    dataset.register(seed=2)
    assert Counter(go(dataset).values()) == {"done": 2}
    assert look(dataset) == {}
    marks = {path: path.stat().st_ino for path in dataset.output.glob("*/outcome.json")}
    assert Counter(go(dataset).values()) == {"skipped": 2}
    assert {path: path.stat().st_ino for path in marks} == marks  # what tells nothing new is not written, nor locked
    dataset.add_again("v01", seed=4)
    assert look_twice(dataset) == {"v01": "failed"}


# --- an object store ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_store_knows_what_its_versions_were_made_from(stored_dataset, tmp_path):  # noqa: F811 - the fixture
    """A lost staging folder, or one that was deleted as an error said, must not make another volume count as done."""
    url = stored_dataset.content["volumes"]
    dataset = stored_dataset.having(volumes=[{"url": f"{url}/v00.zarr", "name": "a"}])
    assert go(dataset) == {"a": "done"}
    other = dataset.having(volumes=[{"url": f"{url}/v01.zarr", "name": "a"}])
    told = {}
    for _ in range(2):
        assert go(other) == {"a": "failed"}
        (mark,) = (tmp_path / "staging").glob("a/outcome.json")
        told = mark.read_text()
        assert f"{dataset.content['output']['url']}/a' and '{tmp_path / 'staging' / 'a'}'" in told
        shutil.rmtree(tmp_path / "staging")
    assert go(dataset) == {"a": "skipped"}

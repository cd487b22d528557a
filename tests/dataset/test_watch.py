"""Inboxes: what is complete is done once, by whichever watcher comes first; what still grows is left alone."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from flows.dataset import watch_plainly
from pipeline.dataset.outcome import Outcome, read_mark, write_mark
from pipeline.dataset.pass_ import Pass, volumes_of
from pipeline.dataset.summary import FILES, Summary
from pipeline.errors import DatasetError
from pipeline.outputs.rundir import RunDirectory
from tests.dataset.dataset_cases import SHAPE, DataSet, make_dataset
from tests.e2e.commands import wait_until
from tests.pipeline_cases import done_entries, random_volume

QUIET = 2.0


_clock = [0.0]


def look(dataset: DataSet, *, after: float = 0.0) -> dict[str, str]:
    """One look without Prefect, so many seconds after the last by a clock of our own; gives the states of what it did."""
    told: dict[str, str] = {}
    _clock[0] += after
    try:
        watch_plainly(dataset.config, lambda outcome, _: told.update({outcome.name: outcome.state}), now=_clock[0])
    except DatasetError:
        assert "failed" in told.values()
    return told


def inbox(folder: Path, *, volumes: int = 1, **watch) -> DataSet:
    """A dataset whose volumes are an inbox that is quiet after two seconds."""
    return make_dataset(folder, volumes=volumes, watch={"quiet_minutes": QUIET / 60, **watch})


def uploaded(path: Path, seed: int) -> Iterator[None]:
    """The metadata, then a chunk at a time; pauses wherever it yields."""
    array = zarr.create_array(str(path), shape=SHAPE, chunks=(8, 24, 24), dtype="uint8")
    volume = random_volume(SHAPE, seed=seed)
    for start in range(0, SHAPE[0], 8):
        yield
        array[start : start + 8] = volume[start : start + 8]


def upload_until(ended: threading.Event, path: Path, seed: int) -> None:
    """One whose last chunk is under way until then: the part of it that is there grows all the time."""
    for _ in uploaded(path, seed):
        pass
    last = max(path.glob("c/*/*/*"))
    whole = last.read_bytes()
    last.rename(part := last.with_suffix(".part"))
    with part.open("ab") as file:
        while not ended.wait(0.01):
            file.write(b"0")
            file.flush()
    part.unlink()
    last.write_bytes(whole)


def test_a_volume_is_taken_when_two_looks_saw_the_same_files(tmp_path, pooled):
    """The first look can know nothing; after the second it is done, and after that there is nothing to do."""
    dataset = inbox(tmp_path)
    assert look(dataset) == {}
    assert dataset.states() == {"v00": "waiting"}
    assert look(dataset, after=QUIET) == {"v00": "done"}
    assert look(dataset) == {}
    assert dataset.states() == {"v00": "done"}
    dataset.add("v01", seed=1)
    assert look(dataset) == {}
    assert dataset.states() == {"v00": "done", "v01": "waiting"}


def test_a_marker_is_the_only_rule_where_one_is_named(tmp_path, pooled):
    """The uploader's word: at once with it, never without."""
    dataset = make_dataset(tmp_path, volumes=2, watch={"marker": ".done"})
    (tmp_path / "volumes" / "v01.zarr.done").touch()
    assert look(dataset) == {"v01": "done"}
    assert dataset.states() == {"v00": "waiting", "v01": "done"}
    assert look(dataset) == {}


def test_a_volume_that_fails_is_tried_so_often_and_again_when_its_files_change(tmp_path, pooled):
    """A schedule of five minutes must not burn a cluster on one broken volume; a repaired one must not be forgotten."""
    dataset = inbox(tmp_path, attempts=2)
    dataset.corrupt("v00")
    look(dataset)
    assert look(dataset, after=QUIET) == {"v00": "failed"}
    assert look(dataset) == {"v00": "failed"}
    assert look(dataset) == {}
    assert read_mark(dataset.output / "v00").attempts == 2
    dataset.add_again("v00", seed=3)
    look(dataset)
    assert look(dataset, after=QUIET) == {"v00": "done"}


def test_a_volume_whose_name_is_no_text_keeps_no_other_waiting(tmp_path, pooled):
    """Its files are looked at as others' are; it fails, by name."""
    dataset = inbox(tmp_path, volumes=2)
    dataset.volume("v01").rename(dataset.volume(os.fsdecode(b"caf\xe9")))
    assert look(dataset) == {}
    assert sorted(look(dataset, after=QUIET).values()) == ["done", "failed"]
    assert dataset.states()["v00"] == "done"


def test_a_volume_that_changes_after_it_was_done_is_told_and_not_taken_for_done(tmp_path, pooled):
    """Its fingerprint is the same, its voxels are not: silence would show old membranes on new data."""
    dataset = inbox(tmp_path)
    look(dataset)
    look(dataset, after=QUIET)
    dataset.add_again("v00", seed=3)
    look(dataset)
    assert look(dataset, after=QUIET) == {"v00": "failed"}
    assert "files have changed since its output was made" in dataset.summary["outcomes"][0]["reason"]
    assert look(dataset) == {}  # it was told


def test_a_quiet_time_shorter_than_the_uploads_pauses_takes_it_early(tmp_path, pooled):
    """The negative control of the one below: what was taken early has other values, so it would be seen."""
    dataset = inbox(tmp_path, volumes=0)
    chunks = uploaded(dataset.volume("v00"), 0)
    next(chunks), next(chunks)  # the metadata and the first chunk are there, and the next one takes long
    assert look(dataset) == {}
    assert look(dataset, after=QUIET) == {"v00": "done"}
    assert not list(chunks)
    expected = dataset.expected("v00", seed=1)
    assert np.abs(dataset.array("v00") - expected).max() > 1e-2 * np.ptp(expected)


def test_the_folder_of_one_volume_does_not_end_the_look(tmp_path, pooled):
    """A file where an output's folder should be, and a name that the summary has: each is told, the rest is done."""
    dataset = make_dataset(tmp_path, volumes=2, watch={"marker": ".done"})
    dataset.add("summary.csv")
    for name in ("v00", "v01", "summary.csv"):
        (tmp_path / "volumes" / f"{name}.zarr.done").touch()
    dataset.output.mkdir()
    (dataset.output / "v00").write_text("in the way")
    assert look(dataset) == {"v00": "failed", "v01": "done"}
    assert dataset.states() == {"v00": "failed", "v01": "done"}
    (left,) = dataset.summary["left_out"]
    assert "summary.csv.zarr: its output would lie where the summary does" in left


def test_watchers_that_write_the_summary_at_once_leave_a_whole_one_that_knows_all(tmp_path):
    """The second must not tell of a volume what was before the first had done it; and no reader meets half a page."""
    dataset = make_dataset(tmp_path, volumes=2, watch={"marker": ".done"})
    volumes, _ = volumes_of(dataset.config)
    waiting = [volume.outcome("waiting", "no marker yet") for volume in volumes]
    passes = [Pass(dataset.config, [], known=waiting) for _ in range(2)]
    done = [write_mark(volume.folder, volume.outcome("done")) for volume in volumes]
    ended = threading.Event()

    def write(pass_: Pass, outcome: Outcome) -> None:
        pass_.tell(outcome)
        while not ended.is_set():
            pass_.close()

    writers = [threading.Thread(target=write, args=pair) for pair in zip(passes, done, strict=True)]
    for writer in writers:
        writer.start()
    wait_until((dataset.output / "summary.json").exists, 60)
    pages = set()
    seen = []
    while len(pages) < 50:  # the page was replaced so often
        seen.append(dataset.states())
        pages.add((dataset.output / "summary.json").stat().st_mtime_ns)
    ended.set()
    for writer in writers:
        writer.join()
    assert all(states == {"v00": "done", "v01": "done"} for states in seen)
    assert not list(dataset.output.glob("*.part"))


def test_a_summary_that_is_written_in_the_middle_of_another_spoils_neither(tmp_path, monkeypatch):
    """Two that wrote one part-file would rename it from under each other, or leave the end of the longer one behind the shorter."""
    first, second = (Summary(str(tmp_path), catalogue, "2026-01-01", 1) for catalogue in ("first", "second"))
    waiting, sync = [second], os.fsync

    def interrupted(handle: int) -> None:
        if waiting:
            waiting.pop().write(tmp_path)
        sync(handle)

    monkeypatch.setattr("pipeline.places.durable.os.fsync", interrupted)
    first.write(tmp_path)
    assert not waiting
    assert json.loads((tmp_path / "summary.json").read_text())["catalogue"] == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_watchers_at_once_on_growing_volumes_do_each_once_and_none_early(tmp_path, started):
    """Two machines' cron jobs, and uploads that go on meanwhile."""
    dataset = inbox(tmp_path, volumes=0, quiet_minutes=5 / 60)
    names = [f"v{number:02}" for number in range(3)]
    ends = [threading.Event() for _ in names]
    pairs = [(end, dataset.volume(name), number) for number, (end, name) in enumerate(zip(ends, names, strict=True))]
    uploads = [threading.Thread(target=upload_until, args=pair) for pair in pairs]
    for upload in uploads:
        upload.start()
    try:
        ends[0].set()
        uploads[0].join()
        for _ in range(12):  # while two grow, and twice for them
            pair = [started("watch", dataset.yaml, "--no-prefect") for _ in range(2)]
            assert [command.wait() for command in pair] == [0, 0], [command.error for command in pair]
            growing = [name for name, end in zip(names, ends, strict=True) if not end.is_set()]
            assert not [name for name in growing if (dataset.output / name / "current").exists()]
            for end, upload in zip(ends, uploads, strict=True):
                end.set()
                upload.join()
            if len(list(dataset.output.glob("*/current"))) == len(names):
                break
    finally:
        for end in ends:
            end.set()
    for name in names:
        expected = dataset.expected(name, seed=1)
        assert np.abs(dataset.array(name) - expected).max() <= 1e-5 * np.ptp(expected)  # of all its chunks
        assert len(list((dataset.output / name / "versions").iterdir())) == 1
        tiles = done_entries(RunDirectory(dataset.current(name)))
        assert sorted(set(tiles)) == sorted(tiles)
    # the other watcher was quicker, or still is at it
    assert set(dataset.states().values()) <= {"done", "skipped", "busy"}

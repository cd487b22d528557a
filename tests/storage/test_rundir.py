"""The run directory: one driver, no orphans beside it, a ledger that survives a kill, artifacts that are whole."""

import errno
import fcntl
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.core.ledger import Session, TileRecord
from pipeline.errors import FileError, InferenceError, PipelineError, StorageError
from pipeline.outputs import rundir
from pipeline.outputs.image import Image
from pipeline.outputs.rundir import STAGE_BYTES, LedgerWriter, RunDirectory, lock_byte
from tests.pipeline_cases import fill_up, mounted, output_plan, stored_objects

HOLD = """
import sys, time
from pipeline.outputs.rundir import RunDirectory
directory = RunDirectory(sys.argv[1])
{enter}
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""
DRIVER = HOLD.format(enter="context = directory.driver(); context.__enter__()")
WORKER = HOLD.format(enter="context = directory.tile(int(sys.argv[4]), sys.argv[3]); context.__enter__()")
PYRAMID = "from pipeline.outputs import rundir\nrundir.TILED = ('infer', 'pyramid')\n" + WORKER.replace(
    "sys.argv[3])", "sys.argv[3], stage='pyramid')"
)


def holding(script: str, *arguments: object) -> subprocess.Popen:
    """Another process that holds a lock, once it says so."""
    process = subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@contextmanager
def at_pause(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> Iterator[list[float]]:
    """Do something whenever whoever waits for a lock pauses; gives the pauses."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        act()
        time.sleep(seconds)

    with monkeypatch.context() as patch:
        patch.setattr(rundir, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
        yield pauses


@pytest.fixture
def processes():
    """Processes to end with the test."""
    started: list[subprocess.Popen] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def directory(tmp_path) -> RunDirectory:
    """A run directory that is there."""
    found = RunDirectory(tmp_path / "o.zarr")
    found.path.mkdir()
    return found


def record(tile: int, state: str = "done") -> TileRecord:
    """A line of the ledger."""
    return TileRecord(tile, state, "f", {f"0/c/{tile}": "ab", "0/c/x": None})


# --- one driver ---------------------------------------------------------------------------------------------------------


def test_a_second_driver_is_refused_at_once(directory, processes, monkeypatch):
    """Two drivers of one output would compute everything twice; the second must not wait for the first's hours."""
    processes.append(holding(DRIVER, directory.output, 60))
    refused = pytest.raises(StorageError)
    with at_pause(monkeypatch, lambda: pytest.fail("it waits")), refused as raised, directory.driver():
        pass
    assert f"is being written by another run (process {processes[0].pid}" in str(raised.value)


def test_a_killed_driver_leaves_no_lock(directory, processes):
    """`kill -9` must not need a hand to clean up after it."""
    processes.append(holding(DRIVER, directory.output, 60))
    processes[0].kill()
    processes[0].wait()
    with directory.driver() as driver:
        assert driver.token.startswith(f"{os.getpid()}-")


LOOK = """
import sys
from pipeline.outputs.rundir import RunDirectory
directory = RunDirectory(sys.argv[1])
print("held", flush=True)
while True:
    directory.is_driven()
"""


def test_whoever_only_looks_is_in_no_drivers_way(directory, processes):
    """Looks share the lock for an instant: a driver that begins just then was refused, 66 times of 892, though nobody drove."""
    with directory.driver():
        pass
    processes += [holding(LOOK, directory.output) for _ in range(2)]
    for _ in range(300):
        with directory.driver():
            assert directory.is_driven()


def test_a_driver_is_refused_by_a_driver_at_once_while_others_look(directory, processes):
    """The negative control of patience: it is for lookers alone."""
    processes += [holding(DRIVER, directory.output, 600), holding(LOOK, directory.output)]
    for _ in range(100):
        with pytest.raises(StorageError, match="is being written by another run"), directory.driver():
            pass
        assert directory.is_driven()


def test_looking_needs_no_right_to_write(directory):
    """Colleagues look at a run that is not theirs."""
    assert not directory.is_driven()
    with directory.driver():
        (directory.path / "driver.lock").chmod(0o444)
        assert directory.is_driven()
    assert not directory.is_driven()


def test_a_driver_excludes_another_of_its_own_process(directory):
    """Stages are handed the driver: one that took the lock beside it, in another thread, would compute everything twice."""
    with directory.driver() as first:
        refused = pytest.raises(StorageError, match=rf"is being written by another run \(process {os.getpid()} on ")
        with refused, RunDirectory(directory.output).driver():
            pass
        assert directory.driver_token() == first.token
        assert locked_for_others(directory)
    assert not locked_for_others(directory)
    with directory.driver() as second:
        assert second.token != first.token


def test_a_driver_knows_that_it_was_asked_to_end(directory):
    """The threads that give out tiles ask it; what was meant for an earlier one, which was killed, is swept away."""
    with directory.driver() as earlier:
        directory.ask_to_cancel()
    with directory.driver() as driver:
        assert not driver.heed()
        assert not directory.cancel.path.exists()
        assert not driver.is_cancelled()
        directory.ask_to_cancel()
        assert driver.heed()
        assert not driver.heed()
        assert driver.is_cancelled()
    assert not earlier.is_cancelled()


def locked_for_others(directory: RunDirectory) -> bool:
    """Whether another process would be refused."""
    script = DRIVER.replace("time.sleep(float(sys.argv[2]))", "")
    found = subprocess.run(
        [sys.executable, "-c", script, str(directory.output)], check=False, capture_output=True, text=True
    )
    assert found.returncode == 0 or "is being written by another run" in found.stderr
    return found.returncode != 0


def test_the_lock_makes_the_run_directory(tmp_path):
    """The first to drive an output makes its run directory, its parents included."""
    directory = RunDirectory(tmp_path / "deep/er/o.zarr")
    with directory.driver():
        assert (tmp_path / "deep/er/o.zarr.run/driver.lock").is_file()


# --- workers ------------------------------------------------------------------------------------------------------------


def test_a_driver_waits_until_the_last_orphan_is_gone(directory, processes, monkeypatch):
    """A worker that outlives its driver still writes; nobody may start beside it."""
    with directory.driver() as driver:
        token = driver.token
        processes.append(holding(WORKER, directory.output, 60, token, 7))
        with at_pause(monkeypatch, processes[0].kill) as pauses, directory.tiles_at_rest(60):
            pass
        assert pauses
        assert processes[0].wait() == -signal.SIGKILL


def test_an_orphan_that_does_not_end_is_told(directory, processes):
    """Waiting for ever would look like a hang; the message names the lock."""
    with directory.driver() as driver:
        token = driver.token
        processes.append(holding(WORKER, directory.output, 60, token, 7))
        told = pytest.raises(StorageError, match=r"Workers of an earlier run still write to .*tiles\.lock")
        with told, directory.tiles_at_rest(0.3):
            pass


def test_workers_of_one_driver_do_not_wait_for_one_another(directory, processes):
    """Each has its own tile."""
    with directory.driver() as driver:
        token = driver.token
        processes.append(holding(WORKER, directory.output, 60, token, 7))
        for tile in (6, 8, 10**10):
            with directory.tile(tile, token, seconds=0):
                pass


def test_a_tile_has_one_worker_at_a_time(directory, processes, monkeypatch):
    """A worker that was cut off from the scheduler still writes when its tile is given to another."""
    with directory.driver() as driver:
        token = driver.token
        processes.append(holding(WORKER, directory.output, 60, token, 7))
        lost = pytest.raises(StorageError, match="given up for lost, is still at tile 7")
        with lost, directory.tile(7, token, seconds=0.3):
            pass
        with at_pause(monkeypatch, processes[0].kill) as pauses, directory.tile(7, token):
            assert pauses
            assert processes[0].wait() == -signal.SIGKILL


def test_a_tile_is_let_go_at_its_end(directory, processes):
    """Else a worker's tiles could be mended by nobody else as long as it lives."""
    with directory.driver() as driver:
        token = driver.token
        with directory.tile(7, token):
            pass
        processes.append(holding(WORKER, directory.output, 60, token, 7))


def test_a_file_system_without_locks_is_refused(directory, monkeypatch):
    """Lustre mounted without `flock` says ENOSYS; to go on would be to hope."""

    def without(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    with directory.driver() as driver:
        token = driver.token
        monkeypatch.setattr(fcntl, "lockf", without)
        with pytest.raises(StorageError, match="has no locks between processes"), directory.tile(1, token):
            pass
        with pytest.raises(StorageError, match="has no locks between processes"), directory.tiles_at_rest(60):
            pass
    monkeypatch.setattr(fcntl, "flock", without)
    with pytest.raises(StorageError, match="has no locks between processes"), directory.driver():
        pass


def test_a_worker_of_an_earlier_driver_writes_nothing_more(directory):
    """It may begin a tile after another driver took over; then its token is old."""
    with directory.driver() as old:
        pass
    with directory.driver() as new:
        assert old.token != new.token
        with (
            pytest.raises(StorageError, match="Another driver has taken over"),
            directory.tile(3, old.token),
        ):
            pass
        with directory.tiles_at_rest(0):  # the refused worker holds nothing
            pass


def test_a_token_ends_with_its_driver(directory):
    """A worker that wakes when all is over finds nobody who gave it its tile."""
    with directory.driver() as driver:
        token = driver.token
    with pytest.raises(StorageError, match="this worker writes nothing more"), directory.tile(3, token):
        pass
    with pytest.raises(StorageError, match="this worker writes nothing more"):
        directory.refuse_late(token)


def test_closed_tiles_are_begun_by_nobody(directory):
    """Verification and report have the same driver as the infer stage; its workers must not write beneath them."""
    with directory.driver() as driver:
        token = driver.token
        driver.close_tiles()
        for late in (directory.tile(3, token).__enter__, lambda: directory.refuse_late(token)):
            with pytest.raises(StorageError, match="stage of this worker has ended"):
                late()
        assert directory.driver_token() == token
        driver.open_tiles()
        with directory.tile(3, token):
            directory.refuse_late(token)


def test_a_token_ends_with_its_driver_that_is_killed(directory, processes):
    """A driver that was killed could put nothing in order; its token still stands in the file, but nobody holds its lock."""
    processes.append(holding(DRIVER, directory.output, 60))
    token = directory.driver_token()
    processes[0].send_signal(signal.SIGSTOP)  # one that is slow is not dead
    with directory.tile(3, token):
        directory.refuse_late(token)
    processes[0].kill()
    processes[0].wait()
    assert directory.driver_token() == token
    for late in (directory.tile(3, token).__enter__, lambda: directory.refuse_late(token)):
        with pytest.raises(StorageError, match=r"driver of this worker was killed.*writes nothing more"):
            late()
    with directory.driver():
        pass
    with pytest.raises(StorageError, match=r"this worker writes nothing more"), directory.tile(3, token):
        pass


WAKE_LATE = """
import functools, sys
import numpy as np
from pipeline.outputs import rundir
from pipeline.outputs.image import Image
from pipeline.outputs.rundir import RunDirectory
from pipeline.outputs.sink import UnitSink
from tests.pipeline_cases import output_plan
url, token = sys.argv[1:3]
directory, output = RunDirectory(url), Image(output_plan(url))
directory.meet_driver(token)
core = output.plan.grid.tile(0).core
with directory.tile(0, token):
    sink = UnitSink(output.finest, core, functools.partial(directory.refuse_late, token))
    print("held", flush=True)
    sys.stdin.readline()
    sink.add(core, np.full((1, *core.shape), 7, "float32"))
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_worker_that_wakes_after_its_driver_was_killed_writes_nothing(directory, processes, killed):
    """People delete, move or read what a killed run left; a worker that was swapped out must not write into it hours later."""
    plan = output_plan(directory.output)
    Image(plan).create()
    processes.append(holding(DRIVER, directory.output, 60))
    worker = [sys.executable, "-c", WAKE_LATE, str(directory.output), directory.driver_token()]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes.append(subprocess.Popen(worker, text=True, **pipes))
    assert processes[1].stdout
    assert processes[1].stdout.readline() == "held\n"
    if killed:
        processes[0].kill()
        processes[0].wait()
    _, said = processes[1].communicate("go\n", timeout=60)
    assert ("driver of this worker was killed" in said) == killed
    written = [name for name in stored_objects(directory.output) if name.startswith("c/")]
    assert bool(written) != killed
    processes[0].kill()
    processes[0].wait()
    with directory.driver(), directory.tiles_at_rest(0):
        pass


def test_where_locks_do_not_reach_the_driver_a_worker_goes_by_the_token(directory, caplog):
    """Lustre with `localflock`, NFS with `local_lock`: no lock of another machine is seen, and no living driver is called dead."""
    lock = directory.path / "driver.lock"
    near, far = f"1-{socket.gethostname()}-ab", "1-another-machine-ab"
    for token in (near, far):
        lock.write_text(token)
        directory.meet_driver(token)
    directory.refuse_late(far)
    assert [message for message in caplog.messages if "driver on another-machine is not seen" in message]
    lock.write_text(f"{far}\nclosed")
    with pytest.raises(StorageError, match="stage of this worker has ended"):
        directory.refuse_late(far)

    lock.write_text(near)
    directory.meet_driver(near)
    assert len(caplog.messages) == 1
    with pytest.raises(StorageError, match="driver of this worker was killed"):
        directory.refuse_late(near)


def test_nobody_is_at_a_tile_while_all_are_held(directory, processes):
    """Verification reads what nobody writes."""
    with directory.driver() as driver, directory.tiles_at_rest(0):
        token = driver.token
        script = WORKER.replace("int(sys.argv[4])", "int(sys.argv[4]), seconds=0.2, token=sys.argv[3]").replace(
            ", sys.argv[3])", ")"
        )
        worker = [sys.executable, "-c", script, str(directory.output), "0", token, "7"]
        found = subprocess.run(worker, capture_output=True, text=True, check=False)
        assert "is still at tile 7" in found.stderr


def test_no_two_stages_have_a_byte_of_the_lock_in_common(monkeypatch):
    """A worker at tile 3 of a level must not keep another from tile 3 of the prediction; those of today's versions hold the first bytes."""
    assert [lock_byte(index) for index in (0, 7, 10**9)] == [0, 7, 10**9]
    with pytest.raises(ValueError, match="Tile 281474976710656 of stage 'infer' has no byte"):
        lock_byte(STAGE_BYTES)
    monkeypatch.setattr(rundir, "TILED", ("infer", "pyramid"))
    assert lock_byte(STAGE_BYTES - 1) < lock_byte(0, "pyramid") < lock_byte(3, "pyramid") < 2**63


def test_a_tile_of_one_stage_does_not_wait_for_that_of_another(directory, processes, monkeypatch):
    """On the lock itself, with a worker of another process; the negative control: the same stage waits."""
    monkeypatch.setattr(rundir, "TILED", ("infer", "pyramid"))
    with directory.driver() as driver:
        token = driver.token
        processes.append(holding(WORKER, directory.output, 60, token, 7))
        with directory.tile(7, token, seconds=0, stage="pyramid"):
            pass
        with pytest.raises(StorageError, match="is still at tile 7"), directory.tile(7, token, seconds=0):
            pass
        processes[0].kill()
        processes[0].wait()
        processes.append(holding(PYRAMID, directory.output, 60, token, 7))
        with directory.tile(7, token, seconds=0):
            pass
        with pytest.raises(StorageError, match="Workers of an earlier run still write"), directory.tiles_at_rest(0):
            pass


# --- the ledger ---------------------------------------------------------------------------------------------------------


def test_the_ledger_gives_back_what_was_appended(directory):
    """The ledger alone says what is done, so it must say what was told."""
    told = [record(3), record(4, "failed"), Session("f", 1, 2.0, 0.5, 0.5, 2, "2026-11-22T00:00:00+00:00"), record(3)]
    for part in (told[:2], told[2:]):
        with directory.ledger() as ledger:
            for line in part:
                ledger.append(line)
    assert list(directory.records()) == told


def test_a_line_reaches_the_system_at_once(directory):
    """A driver that is killed right after must not lose what it recorded."""
    with directory.ledger() as ledger:
        ledger.append(record(0))
        assert len(directory.ledger_path.read_text().splitlines()) == 1


@pytest.mark.parametrize("cut", [1, 20, 3_000_000], ids=["a byte", "some bytes", "megabytes"])
def test_a_tail_torn_by_a_kill_counts_for_nothing_and_is_cut(directory, cut):
    """Half a line vouches for nothing, and the next record must not be glued to it, however many units it names."""
    torn = TileRecord(1, "done", "f", {f"0/c/{number}": "ab" * 32 for number in range(40_000)}).to_line().encode()[:cut]
    with directory.ledger() as ledger:
        ledger.append(record(0))
    whole = directory.ledger_path.read_bytes()
    directory.ledger_path.write_bytes(whole + torn)
    assert list(directory.records()) == [record(0)]
    with directory.ledger() as ledger:
        assert directory.ledger_path.read_bytes() == whole
        ledger.append(record(2))
    assert list(directory.records()) == [record(0), record(2)]


def test_a_ledger_that_is_one_torn_line_is_emptied(directory):
    """The first write of all may be the torn one."""
    directory.ledger_path.write_bytes(b'{"tile": 0, "sta')
    with directory.ledger() as ledger:
        ledger.append(record(7))
    assert list(directory.records()) == [record(7)]


def test_damage_costs_its_line_and_is_told_once(directory, caplog):
    """Bytes that are no text, zeros, a line without end: each costs its tile and nothing else, and the log names the line."""
    damaged = [
        b"\xff\xfe\x00{}\n",
        b'{"tile": 1, "sta\n',
        b"\0" * 5000 + b"\n",
        record(5).to_line().replace("5", "73", 1).encode(),
    ]
    lines = [record(0).to_line().encode(), *damaged, record(2).to_line().encode()]
    directory.ledger_path.write_bytes(b"".join(lines))
    for _ in range(2):
        assert list(directory.records()) == [record(0), record(2)]
    told = [message for message in caplog.messages if "is damaged" in message]
    assert [message.split(" of ")[0] for message in told] == [f"line {number}" for number in (2, 3, 4, 5)]


def test_a_line_is_on_disk_a_second_later(directory, monkeypatch):
    """A tile takes hours: the last line of a burst must not wait for the next tile."""
    synced = threading.Event()
    fsync = os.fsync
    with directory.ledger() as ledger:
        monkeypatch.setattr(os, "fsync", lambda handle: (fsync(handle), synced.set()))
        ledger.append(record(0))
        assert not synced.is_set()
        assert synced.wait(60)


def test_after_a_flush_that_failed_nothing_more_is_appended(directory, monkeypatch):
    """The system may call written what it dropped; only what is read again can be trusted."""
    broken = OSError(errno.EIO, os.strerror(errno.EIO))
    tried = threading.Event()

    def fail(_):
        tried.set()
        raise broken

    with directory.ledger_path.open("ab+", buffering=0) as file:
        ledger = LedgerWriter(file)
        monkeypatch.setattr(os, "fsync", fail)
        ledger.append(record(0))
        assert tried.wait(60)
        monkeypatch.undo()
        for more in (functools.partial(ledger.append, record(1)), ledger.close):
            with pytest.raises(FileError, match=r"Ledger '.*ledger\.jsonl' cannot be written \(Input/output error\)"):
                more()
    assert list(directory.records()) == [record(0)]


def test_what_went_wrong_first_is_told(directory, monkeypatch):
    """A flush that fails at the end, as it will on a full disk, must not hide why the run ended."""

    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    ledger = directory.ledger()
    ledger.__enter__().append(record(0))
    monkeypatch.setattr(os, "fsync", fail)
    assert not ledger.__exit__(InferenceError, InferenceError("first"), None)


def test_a_full_disk_is_told_and_leaves_no_part_of_a_line(tmp_path):
    """The output fills the disk that the ledger lies on: the commonest way for a driver to fail in mid-run."""
    with mounted(tmp_path / "disk", "-o", "size=64k"):
        directory = RunDirectory(tmp_path / "disk/o.zarr")
        directory.path.mkdir()
        with directory.ledger() as ledger:
            ledger.append(record(0))
            filler = fill_up(tmp_path / "disk")
            with pytest.raises(PipelineError, match=r"Ledger '.*ledger\.jsonl' cannot be written .*No space left"):
                append_many(ledger)
            kept = list(directory.records())
            assert kept[0] == record(0)
            assert directory.ledger_path.read_bytes().endswith(b"\n")
            filler.unlink()
            ledger.append(record(1000))
        assert list(directory.records()) == [*kept, record(1000)]


def append_many(ledger: LedgerWriter) -> None:
    """More lines than a page of the file system takes."""
    for tile in range(1, 1000):
        ledger.append(record(tile))


def test_progress_is_that_of_one_plan(directory, tmp_path):
    """Records of another plan, or of tiles that the plan has not, count for nothing."""
    plan = output_plan(tmp_path / "o.zarr")
    lines = [
        TileRecord(0, "done", plan.fingerprint),
        TileRecord(1, "done", plan.fingerprint),
        TileRecord(1, "invalid", plan.fingerprint),
        TileRecord(2, "done", "of another plan"),
        TileRecord(10**6, "done", plan.fingerprint),
    ]
    with directory.ledger() as ledger:
        for line in lines:
            ledger.append(line)
    progress = directory.progress(plan)
    assert (progress.count("done"), progress.count("invalid"), progress.total) == (1, 1, len(plan.grid))
    assert progress.is_done(0)
    assert list(progress.to_do()) == list(range(1, len(plan.grid)))


# --- artifacts ----------------------------------------------------------------------------------------------------------


def test_artifacts_are_replaced_whole(directory, monkeypatch):
    """A reader sees the old one or the new one; a kill in between leaves the old."""
    directory.write_json(directory.report_path, {"n": 1})
    replace = Path.replace

    def killed(path, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        directory.write_json(directory.report_path, {"n": 2})
    assert directory.read_json(directory.report_path) == {"n": 1}
    monkeypatch.setattr(Path, "replace", replace)
    directory.write_json(directory.report_path, {"n": 3})
    assert directory.read_json(directory.report_path) == {"n": 3}


def test_an_artifact_that_was_not_made_is_none(directory):
    """Absence is an answer: the stage has not run yet."""
    assert directory.read_json(directory.verification_path) is None
    assert directory.load_plan() is None


def test_the_plan_comes_back_as_it_was_written(directory, tmp_path):
    """The plan governs: what is loaded must be what was confirmed."""
    plan = output_plan(tmp_path / "o.zarr")
    directory.write(directory.plan_path, plan.to_json())
    assert directory.load_plan() == plan


@pytest.mark.parametrize("change", ["a byte", "a value", "half"])
def test_a_plan_that_was_changed_by_hand_is_refused(directory, tmp_path, change):
    """A plan with another core than its fingerprint says would write other bytes under an old name."""
    text = output_plan(tmp_path / "o.zarr").to_json()
    content = json.loads(text)
    content["core"] = [8, 8, 8]
    damaged = {"a byte": text.replace("{", "[", 1), "a value": json.dumps(content), "half": text[: len(text) // 2]}
    directory.plan_path.write_text(damaged[change])
    with pytest.raises(StorageError, match=r"Plan '.*plan\.json' cannot be read .*Delete the run directory"):
        directory.load_plan()


def test_what_a_killed_driver_left_half_written_is_swept(directory):
    """Else a run directory collects a part for each kill."""
    (directory.path / "plan.json.0123456789abcdef.part").write_bytes(b"torn")
    with directory.driver():
        assert not list(directory.path.glob("*.part"))


def test_a_file_that_cannot_be_written_is_told_in_words_with_its_name(directory, monkeypatch):
    """Who reads `[Errno 28]` needs to know which disk, and what to do."""

    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(
        FileError,
        match=r"'.*report\.json' cannot be written \(No space left on device\)\. Make room there, then run again",
    ):
        directory.write_json(directory.report_path, {"n": 1})
    assert not list(directory.path.iterdir())

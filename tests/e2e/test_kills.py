"""Runs that are interrupted, killed and started again: the same bytes, nothing twice, and nothing left behind."""

import fcntl
import os
import random
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
import pytest

from pipeline import stages
from pipeline.core.assignments import TILES_AHEAD
from pipeline.core.ledger import TileRecord
from pipeline.core.network.unet import Architecture
from pipeline.errors import StorageError
from pipeline.outputs.rundir import LedgerWriter
from tests.e2e.commands import Command, alive, wait_until
from tests.pipeline_cases import Run, done_entries, make_run, sessions, stored_objects

WORKERS = 2
IN_FLIGHT = WORKERS * TILES_AHEAD


def slow(folder: Path, *, tiles: int, width: int = 32) -> Run:
    """So many tiles, in sixteens, of a tenth of a second and more where the network is as wide as this: `held_up` is in time."""
    keys = {"tiles": {"core": [16, 16, 16]}}
    return make_run(folder, architecture=Architecture(3, 2, width), shape=(tiles - 3, 59, 63), **keys)


@pytest.fixture
def started(halotile):
    """Start commands that end with the test, whatever becomes of it."""
    commands: list[Command] = []

    def start(*arguments: object) -> Command:
        commands.append(halotile(*arguments))
        return commands[-1]

    yield start
    for command in commands:
        if command.is_running():
            command.kill_all()


def computing(command: Command, run: Run, tiles: int) -> None:
    """Wait until so many tiles are done."""
    wait_until(lambda: len(done_entries(run.directory)) >= tiles or not command.is_running())
    assert command.is_running(), (command.wait(), command.error)


@contextmanager
def held_up(run: Run, tile: int) -> Iterator[None]:
    """Nobody gets at this tile and those behind it, so that the run does not end meanwhile, however fast the machine is."""
    with run.directory.tiles_lock_path.open("a+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 1000, tile)
        yield


def test_a_second_run_is_refused_and_an_interrupted_one_resumes(started, tmp_path, pooled):
    """Two drivers at once, then Ctrl-C, then the same command: what everybody does sooner or later."""
    run = slow(tmp_path, tiles=32)
    first = started("run", run.yaml)
    computing(first, run, tiles=1)
    with held_up(run, tile=12):
        second = started("run", run.yaml, "--no-prefect")
        assert second.wait() == 2
        assert f"is being written by another run (process {first.process.pid}" in second.error
        assert "Traceback" not in second.error
        assert first.is_running()
        ends_in_order(first, first.interrupt)
    kept = len(done_entries(run.directory))
    assert 1 <= kept < 24

    third = started("run", run.yaml)
    computing(third, run, tiles=kept + 1)
    with held_up(run, tile=28):
        ends_in_order(third, third.process.terminate)  # what a batch system does first
    more = len(done_entries(run.directory)) - kept
    assert 1 <= more < 32 - kept

    stages.plan(run.now)
    assert stages.infer(run.now).tiles == 32 - kept - more
    assert Counter(done_entries(run.directory)) == Counter(range(32))
    assert stages.verify(run.now).complete
    assert [s.tiles for s in sessions(run.directory)] == [kept, more, 32 - kept - more]


@pytest.mark.parametrize("written", [True, False], ids=["after its line", "before it"])
def test_an_interruption_at_a_line_of_the_ledger_leaves_what_was_done_counted_once(
    written, tmp_path, pooled, monkeypatch
):
    """A signal comes between any two steps of the driver: what the ledger has and what its session counts must not differ."""
    run = make_run(tmp_path, shape=(29, 13, 15), tiles={"core": [4, 16, 16]}, architecture=Architecture(3, 1, 2))
    append, lines = LedgerWriter.append, 0

    def interrupted(writer, record):
        nonlocal lines
        lines += isinstance(record, TileRecord)
        if lines == 3 and isinstance(record, TileRecord):
            if written:
                append(writer, record)
            raise KeyboardInterrupt
        append(writer, record)

    monkeypatch.setattr(LedgerWriter, "append", interrupted)
    stages.plan(run.now)
    with pytest.raises(KeyboardInterrupt):
        stages.infer(run.now)
    monkeypatch.undo()
    kept = 3 if written else 2
    assert len(done_entries(run.directory)) == kept
    assert stages.infer(run.now).tiles == 8 - kept
    assert [s.tiles for s in sessions(run.directory)] == [kept, 8 - kept]


def ends_in_order(command: Command, signalled: Callable[[], object]) -> None:
    """A signal ends a run with status 130, a word, no traceback, and no process left."""
    family = command.family()
    signalled()
    assert command.wait() == 130
    assert command.error.rstrip().endswith("interrupted; what is finished is kept, run again to resume")
    assert "Traceback" not in command.error
    wait_until(lambda: not alive(family))


def the_workers(command: Command) -> list[psutil.Process]:
    """The processes that compute: those that hold tiles."""
    return [process for process in command.family()[1:] if any(path.endswith("tiles.lock") for path in opened(process))]


def opened(process: psutil.Process) -> list[str]:
    """The files that a process has open; none where it has just ended."""
    try:
        return [file.path for file in process.open_files()]
    except psutil.Error:
        return []


def strike(command: Command, victim: str, choose: random.Random) -> list[psutil.Process]:
    """`kill -9`, without a word of warning; gives the processes that the run had."""
    family, workers = command.family(), the_workers(command)
    if "worker" in victim and workers:
        choose.choice(workers).kill()
    if "driver" in victim:
        command.kill()
    return family


def recorded_and_stored(run: Run) -> tuple[set[str], set[str]]:
    """The objects that the ledger vouches for, and those that lie in the store."""
    ledger = {
        key for r in run.directory.records() if isinstance(r, TileRecord) and r.state == "done" for key in r.units
    }
    stored = {f"0/{name}" for name in stored_objects(run.output) if name != "zarr.json" and ".partial" not in name}
    return ledger, stored


VICTIMS = ("driver at its start", "driver", "worker, then driver", "worker and driver")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victims", "width"),
    [
        pytest.param(VICTIMS[::2], 32, id="a share"),
        pytest.param(VICTIMS, 96, id="all", marks=pytest.mark.fault),
    ],
)
def test_killed_at_random_moments_and_restarted_it_writes_the_same_bytes(started, tmp_path, pooled, victims, width):
    """Preemption, the out-of-memory killer, a lost machine: whoever starts the same command again gets the same answer.

    A death of the driver costs at most the tiles in flight, and leaves no process behind.
    """
    (tmp_path / "calm").mkdir()
    (tmp_path / "killed").mkdir()
    calm, run = (slow(tmp_path / name, tiles=32, width=width) for name in ("calm", "killed"))
    stages.plan(calm.now)
    stages.infer(calm.now)

    choose = random.Random(20261122)
    for victim in victims:
        command = started("run", run.yaml)
        if victim == "driver at its start":
            time.sleep(choose.uniform(0, 8))
        else:
            computing(command, run, tiles=len(done_entries(run.directory)) + choose.randrange(1, 6))
        with held_up(run, tile=28) if run.directory.tiles_lock_path.exists() else nullcontext():
            time.sleep(choose.uniform(0, 0.5))
            if victim == "worker, then driver":
                strike(command, "worker", choose)
                time.sleep(choose.uniform(0, 3))
            family = strike(command, victim.removeprefix("worker, then "), choose)
            command.wait()
            wait_until(lambda family=family: not alive(family))
        recorded, stored = recorded_and_stored(run)
        assert recorded <= stored
        assert len(stored - recorded) <= IN_FLIGHT

    last = started("run", run.yaml, "--no-prefect")
    assert last.wait() == 0, last.error
    assert run.plan.fingerprint == calm.plan.fingerprint
    assert Counter(done_entries(run.directory)) == Counter(range(32))
    assert stored_objects(run.output) == stored_objects(calm.output)


def test_a_run_is_cancelled_from_another_terminal_or_another_machine(started, tmp_path, pooled):
    """Whoever started it may be at home, and its driver on a node of the cluster: what they share is the output's folder."""
    run = slow(tmp_path, tiles=32)
    command = started("run", run.yaml)
    computing(command, run, tiles=1)
    family = command.family()
    with held_up(run, tile=12):
        canceller = started("cancel", run.output)
        assert canceller.wait() == 0, canceller.error
        kept = len(done_entries(run.directory))
        assert f"ended: {kept} of 32 tiles are done and kept" in canceller.out
        assert command.wait() == 130
    assert command.error.rstrip().endswith("interrupted; what is finished is kept, run again to resume")
    wait_until(lambda: not alive(family))
    assert not run.directory.cancel.path.exists()

    again = started("cancel", run.yaml)
    assert again.wait() == 2
    assert "there is nothing to cancel" in again.error


def test_what_was_to_cancel_an_earlier_driver_does_not_end_this_one(tmp_path, pooled):
    """A driver that was killed has left what asked it to end."""
    run = slow(tmp_path, tiles=16, width=4)
    stages.plan(run.now)
    with run.directory.driver():
        run.directory.ask_to_cancel()
    with stages.drive(run.now) as driven:
        wait_until(lambda: not run.directory.cancel.path.exists())
        assert stages.infer(driven).tiles == 16


@pytest.mark.slow
def test_a_tile_that_ends_its_workers_is_set_aside_and_named_and_the_rest_is_done(
    started, tmp_path, pooled, monkeypatch
):
    """A success with a hole in it is the worst that a run can report; and one bad tile must not cost the others."""
    poison = tmp_path / "poison"
    poison.mkdir()
    (poison / "sitecustomize.py").write_text(
        textwrap.dedent(
            """
            import os, pathlib, signal, sys

            class Watch:
                def find_spec(self, name, path=None, target=None):
                    if name == "pipeline.cluster.worker":
                        sys.meta_path.remove(self)
                        import pipeline.engine
                        infer_tile = pipeline.engine.infer_tile
                        def poisoned(tile, **keys):
                            if tile.index == 57 and (pathlib.Path(__file__).parent / "on").exists():
                                os.kill(os.getpid(), signal.SIGKILL)
                            return infer_tile(tile, **keys)
                        pipeline.engine.infer_tile = poisoned

            sys.meta_path.insert(0, Watch())
            """
        )
    )
    (poison / "on").touch()
    monkeypatch.setenv("PYTHONPATH", f"{poison}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    keys = {"tiles": {"core": [8, 8, 8]}}
    (tmp_path / "run").mkdir()
    run = make_run(tmp_path / "run", architecture=Architecture(3, 1, 2), shape=(63, 40, 40), **keys)
    first = started("run", run.yaml, "--no-prefect")
    assert first.wait(200) == 1
    assert "1 tile(s) failed:" in first.error
    assert "tile 57 " in first.error
    assert "its worker vanished each time, 3 times, the last times with no other tile on it" in first.error
    assert "199 of 200 tiles are done and kept" in first.error
    failed = [r for r in run.directory.records() if isinstance(r, TileRecord) and r.state == "failed"]
    assert [r.tile for r in failed] == [57]

    (poison / "on").unlink()
    stages.plan(run.now)
    assert stages.infer(run.now).tiles == 1
    assert stages.verify(run.now).complete
    assert Counter(done_entries(run.directory)) == Counter(range(200))


def test_a_worker_that_wakes_after_its_stage_writes_nothing(tmp_path, pooled):
    """Stopped, swapped out, cut off: when it goes on, its tile is done and verified, and readers have the image open."""
    run = slow(tmp_path, tiles=16, width=4)
    stages.plan(run.now)
    with stages.drive(run.now) as driven:
        token = driven.driver.token
        stages.infer(driven)
        for late in (lambda: run.directory.refuse_late(token), run.directory.tile(3, token).__enter__):
            with pytest.raises(StorageError, match="this worker writes nothing more"):
                late()
        assert stages.verify(driven).complete
    with pytest.raises(StorageError, match="this worker writes nothing more"):
        run.directory.refuse_late(token)

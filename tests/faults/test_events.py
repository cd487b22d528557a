"""A run that is killed, or whose files fail, at each of its file-system events: the same bytes after the next, and no traceback."""

import errno
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zarr

from pipeline.core.network.unet import Architecture
from tests.dataset.dataset_cases import DataSet, make_dataset
from tests.pipeline_cases import Run, make_run, stored_objects

ROOT = Path(__file__).parents[2]

ERRORS = ("EIO", "ENOSPC", "ESTALE", "EMFILE")

FOR_EVER = 10**6
"""Events: the disk stays as it is."""

SHARE = 2
"""Events of each kind in the everyday suite."""

Ask = Callable[..., dict[str, Any]]


@contextmanager
def zygote(*arguments: str) -> Iterator[Ask]:
    """The command in a child of a process that has imported everything; gives its status, its events and what it said."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.zygote", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"

        def asked(run: Run | DataSet, command: str = "run", **job: Any) -> dict[str, Any]:
            line = {"arguments": [command, str(run.yaml)], "below": [str(run.output)], **job}
            print(json.dumps(line), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield asked
        process.kill()


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Runs."""
    with zygote() as asked:
        yield asked


@pytest.fixture(scope="module")
def ask_dataset() -> Iterator[Ask]:
    """Runs, and datasets."""
    with zygote("dataset") as asked:
        yield asked


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run of two tiles."""
    return two_tiles(tmp_path_factory.mktemp("run"))


def two_tiles(folder: Path, **sections) -> Run:
    """A run of few events, which are of all kinds."""
    keys = {"tiles": {"core": [8, 16, 24]}, "cluster": {"workers": 1, "retries": 0}, **sections}
    return make_run(folder, architecture=Architecture(3, 1, 2), shape=(16, 16, 24), **keys)


@pytest.fixture(scope="module")
def calm(ask, run) -> tuple[dict[str, bytes], int]:
    """What a run leaves that nothing happens to, and its number of events."""
    clear(run)
    done = ask(run)
    assert done["status"] == 0, done["said"]
    return stored_objects(run.output), len(done["events"])


def clear(run: Run) -> None:
    """Nothing is there."""
    for folder in (run.output, run.directory.path):
        shutil.rmtree(folder, ignore_errors=True)


def resumed(ask: Ask, run: Run, wanted: dict[str, bytes], about: str) -> None:
    """The same command again does it, with the same bytes, and leaves no part behind."""
    again = ask(run)
    assert again["status"] == 0, f"{about}: {again['said']}"
    assert stored_objects(run.output) == wanted, about
    left = [
        path
        for root in (run.output, run.directory.path)
        for path in root.rglob("*")
        if path.suffix in (".part", ".partial")
    ]
    assert not left, f"{about}: {left}"


def killed(ask: Ask, run: Run, calm, at: int) -> None:
    """One kill."""
    clear(run)
    assert ask(run, at=at, fault="kill")["status"] is None
    resumed(ask, run, calm[0], f"killed at event {at}")


def failed(ask: Ask, run: Run, calm, at: int, fault: str, count: int) -> None:
    """One error."""
    clear(run)
    found = ask(run, at=at, fault=fault, count=count)
    about = f"{fault} at event {at} ({found['events'][at]}), {count} times"
    assert "Traceback" not in found["said"], f"{about}: {found['said']}"
    assert found["status"] in (0, 1, 2, 3), f"{about}: {found['said']}"
    if found["status"]:
        assert "halotile: " in found["said"], f"{about}: {found['said']}"
    resumed(ask, run, calm[0], about)


def test_a_share_of_kills_and_errors_costs_nothing(ask, run, calm):
    """Drawn once; `make test-faults` tries all."""
    choose = random.Random(20261130)
    for at in choose.sample(range(calm[1]), SHARE):
        killed(ask, run, calm, at)
    for at in choose.sample(range(calm[1]), SHARE):
        failed(ask, run, calm, at, choose.choice(ERRORS), choose.choice((1, FOR_EVER)))


@pytest.mark.fault
def test_a_kill_at_every_event_costs_nothing(ask, run, calm):
    """Each moment between two events is one at which a machine is lost; they differ in what is on disk by then."""
    assert calm[1] >= 112
    for at in range(calm[1]):
        killed(ask, run, calm, at)


@pytest.mark.fault
@pytest.mark.parametrize("count", [1, FOR_EVER], ids=["once", "for ever"])
@pytest.mark.parametrize("fault", ERRORS)
def test_an_error_at_every_other_event_is_told_in_words_and_the_next_run_is_right(ask, run, calm, fault, count):
    """A full disk, a lost server, a limit of the system: whatever a run does with a file, that may be what it meets."""
    assert hasattr(errno, fault)
    problems = []
    for at in range(ERRORS.index(fault) % 2, calm[1], 2):
        try:
            failed(ask, run, calm, at, fault, count)
        except AssertionError as error:
            problems.append(str(error)[:1500])
    assert not problems, "\n\n".join(problems)


@pytest.mark.fault
@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_a_signal_at_any_event_ends_a_run_in_order(ask, run, calm, signal):
    """Ctrl-C and batch systems come when they like: status 130, no traceback, and the next run goes on."""
    tried = range(signal == "SIGTERM", calm[1], 4)
    assert len(tried) >= 23
    for at in tried:
        clear(run)
        found = ask(run, at=at, fault=signal)
        about = f"{signal} at event {at}: {found['said']}"
        assert "Traceback" not in found["said"], about
        assert found["status"] == 130, about
        resumed(ask, run, calm[0], about)


# --- a run by statistics, whose input has changed -----------------------------------------------------------------------


class Again:
    """A run by percentiles that is done, and whose input has changed since: all is measured and computed again.

    Args:
        ask: The command.
        folder: Where it is.
    """

    def __init__(self, ask: Ask, folder: Path) -> None:
        self.ask, self.before = ask, folder / "before"
        self.run = two_tiles(folder, normalize={"mode": "percentile"})
        assert ask(self.run)["status"] == 0
        for place in (self.run.output, self.run.directory.path):
            shutil.copytree(place, self.before / place.name)
        zarr.open_array(str(folder / "input.zarr"), mode="r+")[:, :, :8] = 255
        self.old = stored_objects(self.run.output)
        done = self.redone()
        assert done["status"] == 0, done["said"]
        self.wanted, self.events = stored_objects(self.run.output), len(done["events"])
        assert self.wanted != self.old

    def redone(self, **job: Any) -> dict[str, Any]:
        """The command that does it."""
        return self.ask(self.run, arguments=["run", str(self.run.yaml), "--input-changed", "redo"], **job)

    def killed(self, at: int) -> None:
        """One kill, and the same command again."""
        clear(self.run)
        for place in (self.run.output, self.run.directory.path):
            shutil.copytree(self.before / place.name, place)
        assert self.redone(at=at, fault="kill")["status"] is None
        again = self.redone()
        assert again["status"] == 0, f"killed at event {at}: {again['said']}"
        assert stored_objects(self.run.output) == self.wanted, f"killed at event {at}"
        assert self.ask(self.run, "verify")["status"] == 0


def test_a_share_of_kills_in_a_run_that_measures_again_leaves_no_tile_of_the_old_statistics(ask, tmp_path):
    """Plan, ledger, metadata and tiles change one after the other; a tile of the old statistics beside new ones is wrong for ever."""
    again = Again(ask, tmp_path)
    for at in random.Random(20261130).sample(range(again.events), SHARE):
        again.killed(at)


@pytest.mark.fault
def test_no_kill_in_a_run_that_measures_again_leaves_a_tile_of_the_old_statistics(ask, tmp_path):
    """At each event."""
    again = Again(ask, tmp_path)
    assert again.events >= 100
    for at in range(again.events):
        again.killed(at)


# --- the power goes -----------------------------------------------------------------------------------------------------


class Disk:
    """An ext4 file system in a file, which may lose its power.

    Args:
        folder: Where the file is, and `mounted` on it.
    """

    def __init__(self, folder: Path) -> None:
        self.image, self.place = folder / "disk.img", folder / "mounted"
        self.place.mkdir()

    def make(self) -> None:
        """A new one, empty."""
        with self.image.open("wb") as file:
            file.truncate(64 * 2**20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self.image)], check=True, capture_output=True)

    def mount(self) -> None:
        """Mount it; skips where this process may not."""
        found = subprocess.run(
            ["mount", "-o", "loop", str(self.image), str(self.place)], capture_output=True, text=True, check=False
        )
        if found.returncode:
            pytest.skip(f"NOT TESTED: this process may not mount a file system ({found.stderr.strip()})")

    def unmount(self) -> None:
        """Unmount it, where it is mounted."""
        subprocess.run(["umount", str(self.place)], check=False, capture_output=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    """A disk that is gone after the test."""
    if not shutil.which("mkfs.ext4"):
        pytest.skip("NOT TESTED: there is no mkfs.ext4")
    found = Disk(tmp_path)
    yield found
    found.unmount()


@pytest.mark.fault
def test_a_power_cut_at_any_event_is_resumed_by_the_same_command(ask, run, calm, disk, tmp_path):
    """What was not flushed is lost, names and contents, each by itself: what was spoken of before must not be among it."""
    (tmp_path / "run").mkdir()
    cut = two_tiles(tmp_path / "run", output={"url": str(disk.place / "deep/er/output.zarr")})
    disk.make()
    disk.mount()
    events = len(ask(cut, below=[f"{disk.place}/"])["events"])
    lost = 0
    for at in range(3, events, 7):
        disk.unmount()
        disk.make()
        disk.mount()
        assert ask(cut, below=[f"{disk.place}/"], at=at, fault="cut")["status"] is None
        disk.unmount()
        disk.mount()
        lost += any(path.stat().st_size == 0 for path in disk.place.rglob("zarr.json"))
        resumed(ask, cut, calm[0], f"cut at event {at}")


@pytest.mark.fault
def test_forty_four_kills_of_a_dataset_cost_no_byte_and_no_version(ask_dataset, tmp_path):
    """Catalogue, versions, marks, links and summary, besides what a run writes; readers see whole versions at each moment."""
    dataset = make_dataset(tmp_path / "set", volumes=2, concurrency=1)
    calm = dataset.having(output={"url": str(tmp_path / "calm")})
    done = ask_dataset(calm, "reprocess")
    assert done["status"] == 0, done["said"]
    wanted = {name: stored_objects(calm.current(name)) for name in calm.states()}
    assert len(wanted) == 2
    killed = dataset.having(output={"url": str(tmp_path / "killed")})
    choose = random.Random(20261130)
    for at in choose.sample(range(len(done["events"])), 44):
        for place in tmp_path.glob("killed*"):
            shutil.rmtree(place)
        assert ask_dataset(killed, "reprocess", at=at, fault="kill")["status"] is None
        for name, objects in wanted.items():
            if (killed.output / name / "current").is_symlink():  # whoever looks meanwhile
                assert stored_objects(killed.current(name)) == objects, f"killed at event {at}"
        again = ask_dataset(killed, "reprocess")
        assert again["status"] == 0, f"killed at event {at}: {again['said']}"
        assert {name: stored_objects(killed.current(name)) for name in killed.states()} == wanted, at
        assert set(killed.states().values()) <= {"done", "skipped"}
        assert all(len([*(killed.output / name / "versions").iterdir()]) == 1 for name in wanted), at


@pytest.mark.fault
def test_a_power_cut_in_a_dataset_is_resumed_by_the_same_command(ask_dataset, disk, tmp_path):
    """Versions, their records and the link that readers follow, along with all that a run writes."""
    dataset = make_dataset(tmp_path / "set", volumes=2, concurrency=1)
    calm = dataset.having(output={"url": str(tmp_path / "calm")})
    done = ask_dataset(calm, "reprocess")
    assert done["status"] == 0, done["said"]
    wanted = {name: stored_objects(calm.current(name)) for name in calm.states()}
    cut = dataset.having(output={"url": str(disk.place / "deep/er/output")})
    below = [f"{disk.place}/"]
    events = len(done["events"])
    assert events > 300
    for at in range(5, events, events // 12):
        disk.unmount()
        disk.make()
        disk.mount()
        ask_dataset(cut, "reprocess", below=below, at=at, fault="cut")
        disk.unmount()
        disk.mount()
        again = ask_dataset(cut, "reprocess", below=below)
        assert again["status"] == 0, f"cut at event {at}: {again['said']}"
        assert {name: stored_objects(cut.current(name)) for name in cut.states()} == wanted, at

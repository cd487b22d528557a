"""A worker whose network is cut in mid-tile goes on writing, while its tile is given to another: one writer at a time."""

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.e2e.commands import ROOT, wait_until
from tests.pipeline_cases import stored_objects
from tests.sites.site_cases import TILES, done, site_run

pytestmark = [pytest.mark.site, pytest.mark.timeout(900)]

SITE = ROOT / "tests" / "sites"

TCP_SECONDS = 12
"""After so long the scheduler gives a silent worker up for lost; Dask allows no less."""

DEAF_SECONDS = 300
"""After so long the worker itself takes note of silence: it is at its write, and at nothing else, until it is healed."""


@contextmanager
def dask(
    module: str, *arguments: object, inside: Sequence[str] = (), **environment: object
) -> Iterator[subprocess.Popen]:
    """`dask MODULE ARGUMENTS`, on the machine whose words are given, and there in a loop, as a site keeps its workers."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{module}", *map(str, arguments), "--no-dashboard"]
    if inside:
        loop = ["sh", "-c", 'while sleep 0.5; do "$@"; done', "supervisor", *command]
        command = [*inside, *loop]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | {name: str(value) for name, value in environment.items()}
    log = environment.get("LOG", os.devnull)
    with (
        Path(str(log)).open("w") as file,
        subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=file, start_new_session=True) as process,
    ):
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def writes(witness: Path) -> dict[str, list[tuple[float, float, str]]]:
    """By unit: when each write of it began, when it was last heard of, and whose it was, in order of time."""
    heard: dict[tuple[str, str], list[float]] = defaultdict(list)
    turn: dict[tuple[str, str], int] = defaultdict(int)
    for line in witness.read_text().splitlines():
        worker, event, seconds, key = line.split()
        if event == "refused":
            continue
        turn[worker, key] += event == "begin"
        heard[key, f"{worker} {turn[worker, key]}"].append(float(seconds))
    found: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for (key, writer), times in heard.items():
        found[key].append((min(times), max(times), writer))
    return {key: sorted(intervals) for key, intervals in found.items()}


def at_once(witness: Path) -> list[tuple[str, str]]:
    """Writes of one unit of which the second began before the first was last heard of: whose they were."""
    pairs = (pair for intervals in writes(witness).values() for pair in pairwise(intervals))
    return [(first[2], second[2]) for first, second in pairs if second[0] <= first[1]]


def refused(witness: Path) -> bool:
    """Whether a worker found that somebody else holds the lock of its tile."""
    return any(line.split()[1] == "refused" for line in witness.read_text().splitlines())


@pytest.mark.parametrize("locked", [True, False], ids=["locked", "not locked, the negative control"])
def test_no_unit_has_two_writers_when_a_worker_is_cut_off_and_healed(machines, calm, started, tmp_path, locked):
    """The classic split brain: both sides believe that the tile is theirs. The lock decides, and no byte differs."""
    witness, stall, address = tmp_path / "witness", tmp_path / "stall", tmp_path / "scheduler.json"
    held = stall.with_suffix(".held")
    options = {"SITE_WITNESS": witness} | ({} if locked else {"SITE_NO_LOCK": 1})
    scheduler = dask(
        "scheduler", "--host", machines.here, "--port", 0, "--scheduler-file", address,
        DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP=f"{TCP_SECONDS}s", LOG=tmp_path / "scheduler.log",
    )  # fmt: skip

    def worker(number: int, **more: object):
        place = ["--scheduler-file", address, "--host", machines.address(number), "--name", f"w{number}"]
        return dask(
            "worker", *place, "--nthreads", 1, "--memory-limit", "2GB", "--preload", SITE / "preload.py",
            inside=machines.inside(number), LOG=tmp_path / f"w{number}.log", **options, **more,
        )  # fmt: skip

    with (
        scheduler,
        worker(1),
        worker(2, SITE_STALL=stall, DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP=f"{DEAF_SECONDS}s"),
        worker(3),
    ):
        wait_until(lambda: address.is_file() and address.read_text())
        cluster = {
            "kind": "address",
            "address": json.loads(address.read_text())["address"],
            "workers": 3,
            "memory_gb": 2,
        }
        run = site_run(tmp_path, cluster=cluster | {"security": "none"})
        command = started("run", run.yaml)
        wait_until(lambda: done(run) >= 3 or not command.is_running())
        assert command.is_running(), (command.wait(), command.error, lost(tmp_path / "scheduler.log"))

        stall.touch()
        wait_until(held.exists)
        machines.cut(2)
        try:
            wait_until(lambda: "w2" in lost(tmp_path / "scheduler.log"))
            wait_until(lambda: refused(witness) if locked else at_once(witness))
            assert command.is_running()
        finally:
            machines.heal(2)
            held.unlink()
        assert command.wait() == 0, command.error

    assert done(run) == TILES
    again = [intervals for intervals in writes(witness).values() if len(intervals) > 1]
    assert any(writer.startswith("w2-") for _, _, writer in again[0]), "the tile of worker 2 was given to no other"
    assert bool(at_once(witness)) is not locked
    if locked:
        assert stored_objects(run.output) == calm


def lost(log: Path) -> str:
    """What a scheduler's log says of workers that it gave up."""
    return "\n".join(line for line in log.read_text().splitlines() if "Remove worker" in line)

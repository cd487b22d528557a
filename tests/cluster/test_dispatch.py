"""The real dispatch on a real cluster: every tile once, bounded in flight, whatever happens to the workers."""

import functools
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.cluster.dispatch import Work, dispatch
from pipeline.cluster.forwarding import forward
from pipeline.cluster.kind import WorkerSpec
from pipeline.cluster.pool import Pool, open_pool
from pipeline.config import ClusterConfig
from pipeline.core.assignments import MOST_AHEAD, Outcome
from pipeline.errors import InferenceError
from tests.cluster import work
from tests.cluster.silence import Proxy, proxied
from tests.e2e.commands import ROOT, wait_until

WORKERS = 2
WINDOW = WORKERS * MOST_AHEAD
CREW = WorkerSpec(WORKERS, threads=1, memory_bytes=2 * 10**9)


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Iterator[Pool]:
    """Two worker processes for all tests here; each is replaced when it dies."""
    with open_pool(ClusterConfig(), CREW, tmp_path_factory.mktemp("jobs")) as found:
        yield found


@pytest.fixture(autouse=True)
def _all_workers(pool) -> None:
    """The test before may have killed some."""
    pool.client.wait_for_workers(WORKERS, timeout=120)


@pytest.fixture
def run(request) -> str:
    """A name that makes the keys of a test its own."""
    return request.node.name


def outcomes(pool: Pool, function, indices, run: str, *, prepare=work.ready, retries: int = 2) -> list[Outcome]:
    """All outcomes of a dispatch."""
    return list(dispatch(pool, Work(prepare, function, run), indices, retries=retries))


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a minute on a quiet machine
@pytest.mark.parametrize("tiles", [4_000, pytest.param(20_000, marks=pytest.mark.fault)])
def test_thousands_of_tiles_grow_neither_driver_nor_scheduler(pool, run, tiles):
    """A volume of ten thousand times the size must not need a driver of ten thousand times the memory."""
    scheduler, process = pool.client.cluster.scheduler, psutil.Process()
    taken, sizes = [0], {}
    times = np.zeros(tiles, dtype=int)  # a Counter would grow by megabytes itself
    most_in_flight = most_tasks = 0

    def counted() -> Iterator[int]:
        for index in range(tiles):
            taken[0] += 1
            yield index

    for number, outcome in enumerate(
        dispatch(pool, Work(work.ready, work.nothing, run), counted(), retries=2), start=1
    ):
        assert (outcome.result, outcome.error, outcome.attempt) == (outcome.index, None, 1)
        times[outcome.index] += 1
        most_in_flight = max(most_in_flight, taken[0] - number + 1)
        most_tasks = max(most_tasks, len(scheduler.tasks))
        if number in (1_000, tiles):
            sizes[number] = process.memory_info().rss
    assert (times == 1).all()
    assert most_in_flight <= WINDOW + 1  # one is looked at to know whether there is one
    assert most_tasks <= 2 * WINDOW  # those in flight, and a few whose release is under way
    assert len(pool.client.futures) <= WINDOW
    assert (
        sizes[tiles] - sizes[1_000] < max(tiles - 1_000, 8_000) * 1024
    )  # under 1 kB a tile of the campaign's 20,000; 4 to 5 MB in all is the allocator's noise


def test_indices_are_taken_no_sooner_than_there_is_room(pool, run):
    """A lazy source is why a plan of ten billion tiles costs nothing to dispatch."""
    taken = []

    def source() -> Iterator[int]:
        for index in range(40):
            taken.append(index)
            yield index

    for number, _ in enumerate(dispatch(pool, Work(work.ready, work.nothing, run), source(), retries=2)):
        assert len(taken) <= number + WINDOW + 1  # one is looked at to know whether there is one
    assert taken == list(range(40))


def test_no_tiles_no_outcomes(pool, run):
    """A finished job has nothing to dispatch, and must not wait for it."""
    assert outcomes(pool, work.nothing, [], run) == []


def test_a_failing_tile_is_retried_so_many_times_and_then_told(pool, run):
    """One bad tile must neither stop the others nor be tried for ever."""
    found = {o.index: o for o in outcomes(pool, functools.partial(work.fail_on, frozenset({3, 7})), range(20), run)}
    assert sorted(found) == list(range(20))
    for index, outcome in found.items():
        if index in (3, 7):
            assert (outcome.attempt, outcome.result) == (3, None)
            assert isinstance(outcome.error, ValueError)
            assert str(outcome.error) == f"{index} is bad"
        else:
            assert (outcome.attempt, outcome.result, outcome.error) == (1, index, None)


def test_a_tile_that_fails_by_chance_is_done_by_a_retry(pool, run, tmp_path):
    """A hiccup of a file system is no reason to fail a night's run."""
    function = functools.partial(work.fail_times, str(tmp_path), 5, 2)
    found = {o.index: o for o in outcomes(pool, function, range(10), run)}
    assert (found[5].attempt, found[5].result, found[5].error) == (3, 5, None)


def test_without_retries_a_tile_is_tried_once(pool, run):
    """`retries: 0` means what it says."""
    (found,) = outcomes(pool, functools.partial(work.fail_on, frozenset({0})), [0], run, retries=0)
    assert (found.attempt, str(found.error)) == (1, "0 is bad")


def test_a_worker_killed_in_mid_tile_costs_no_tile(pool, run, tmp_path):
    """The scheduler gives the tile to another worker; nobody needs to start the run again."""
    found = outcomes(pool, functools.partial(work.die_once, str(tmp_path), 5), range(30), run)
    assert (tmp_path / "died").exists()
    assert Counter(o.index for o in found) == Counter(range(30))
    assert all(o.error is None for o in found)


def test_workers_killed_from_outside_cost_no_tile(pool, run):
    """The out-of-memory killer asks nobody."""
    victim = next(iter(pool.client.run(os.getpid).values()))
    dozing = Work(work.ready, functools.partial(work.doze_and_sign, 0.05), run)
    found = []
    for outcome in dispatch(pool, dozing, range(60), retries=2):
        if str(victim) not in {o.result for o in found} and outcome.result == str(victim):
            os.kill(victim, signal.SIGKILL)  # it is at its next tile
        found.append(outcome)
    assert str(victim) in {o.result for o in found}
    assert Counter(o.index for o in found) == Counter(range(60))
    assert all(o.error is None for o in found)
    assert not psutil.pid_exists(victim)


def test_a_tile_that_kills_every_worker_is_told_and_takes_no_other_with_it(pool, run):
    """A tile waiting behind it on the same worker dies as often, and is innocent."""
    found = {o.index: o for o in outcomes(pool, functools.partial(work.die_on, 3), range(40), run)}
    assert sorted(found) == list(range(40))
    assert {index: (o.vanished, o.attempt) for index, o in found.items() if o.failed} == {3: (True, 3)}


@pytest.mark.slow
def test_workers_come_back_however_often_they_die(pool, run):
    """A cluster that gives a worker up while it starts again would leave the run waiting for ever."""
    for attempt in range(2):
        (found,) = outcomes(pool, functools.partial(work.die_on, 0), [0], f"{run}-{attempt}")
        assert found.vanished
    pool.client.wait_for_workers(WORKERS, timeout=120)
    assert [o.error for o in outcomes(pool, work.nothing, range(4), run)] == [None] * 4


def test_without_any_worker_a_run_fails_instead_of_waiting_for_ever(run, tmp_path):
    """A machine that cannot start processes any more must be told of, not slept on."""
    config = ClusterConfig(wait_minutes=0.03)
    with open_pool(config, replace(CREW, workers=1), tmp_path) as pool:
        pool.client.cluster.scale(0)
        with pytest.raises(InferenceError, match=r"No worker was there for 0\.0"):
            outcomes(pool, functools.partial(work.doze, 0.1), range(100), run)


def test_a_worker_that_comes_late_is_given_tiles(run, tmp_path):
    """A queue hands out its jobs one by one, over hours."""
    with open_pool(ClusterConfig(), replace(CREW, workers=1), tmp_path) as pool:
        signed: set[str] = set()
        job = Work(work.ready, functools.partial(work.doze_and_sign, 0.1), run)
        # tiles until both have had one: a test that hangs is told by its name
        for outcome in dispatch(
            pool, job, itertools.takewhile(lambda _: len(signed) < 2, itertools.count()), retries=0
        ):
            if not signed:
                pool.client.cluster.scale(2)
            signed.add(outcome.result)
        assert len(signed) == 2


@contextmanager
def somebody_elses(folder: Path) -> Iterator[tuple[str, subprocess.Popen, subprocess.Popen]]:
    """A scheduler and a worker of `dask`, each started anew whenever it ends; the address, and what starts each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    loops = []
    for role, *arguments in (("scheduler", "--port", address.split(":")[1]), ("worker", address, "--nthreads", "1")):
        command = [
            sys.executable,
            "-m",
            f"distributed.cli.dask_{role}",
            "--host",
            "127.0.0.1",
            "--no-dashboard",
            *arguments,
        ]
        loop = ["sh", "-c", 'while sleep 0.5; do "$@"; done', "supervisor", *command]
        with (folder / f"{role}.log").open("w") as log:
            loops.append(subprocess.Popen(loop, env=environment, stdout=log, stderr=log, start_new_session=True))
    try:
        yield f"tcp://{address}", *loops
    finally:
        for loop in loops:
            os.killpg(loop.pid, signal.SIGKILL)
            loop.wait()


def test_a_scheduler_that_is_gone_for_good_ends_the_run_in_words(run, tmp_path, monkeypatch):
    """Its machine may be switched off; tiles that nobody can give out any more have not failed."""
    monkeypatch.setattr("pipeline.cluster.kind.CONNECT_SECONDS", 10)
    with somebody_elses(tmp_path) as (address, scheduler, _):
        config = ClusterConfig(kind="address", address=address, security="none", workers=1, memory_gb=2)
        with open_pool(config, replace(CREW, workers=1), tmp_path) as pool:
            found = dispatch(pool, Work(work.ready, functools.partial(work.doze, 0.1), run), range(1000), retries=2)
            assert next(found).error is None
            os.killpg(scheduler.pid, signal.SIGKILL)
            with pytest.raises(InferenceError, match="The scheduler does not answer any more"):
                assert [outcome.error for outcome in found] == []


def test_a_scheduler_that_comes_back_costs_no_tile(run, tmp_path, caplog):
    """A site restarts it, and its workers come back to it; what they log is heard again."""
    caplog.set_level(logging.INFO)
    with somebody_elses(tmp_path) as (address, scheduler, _):
        config = ClusterConfig(kind="address", address=address, security="none", workers=1, memory_gb=2)
        with open_pool(config, replace(CREW, workers=1), tmp_path) as pool, forward(pool.client, "info"):
            found = dispatch(
                pool, Work(work.ready, functools.partial(work.doze_and_say, 0.1), run), range(60), retries=2
            )
            first = next(found)
            psutil.Process(scheduler.pid).children()[0].kill()
            assert [(outcome.error, outcome.attempt) for outcome in (first, *found)] == [(None, 1)] * 60
    assert "said of 0" in caplog.messages
    assert "said of 59" in caplog.messages


def test_a_scheduler_that_comes_back_while_workers_load_ends_no_run(run, tmp_path):
    """None has failed to load the network; all that they did was given up with the connection."""
    with somebody_elses(tmp_path) as (address, scheduler, _), ThreadPoolExecutor(1) as thread:
        config = ClusterConfig(kind="address", address=address, security="none", workers=1, memory_gb=2)
        prepare = functools.partial(work.first_dozes, str(tmp_path / "begun"), 5.0)
        with open_pool(config, replace(CREW, workers=1), tmp_path) as pool:
            found = thread.submit(list, dispatch(pool, Work(prepare, work.nothing, run), range(10), retries=0))
            wait_until((tmp_path / "begun").exists, 60)
            psutil.Process(scheduler.pid).children()[0].kill()
            assert [(outcome.error, outcome.attempt) for outcome in found.result()] == [(None, 1)] * 10


def test_a_scheduler_that_ends_again_and_again_ends_the_run_in_words(run, tmp_path, monkeypatch):
    """Nothing is to blame that could be counted; yet nobody should pay for a night of it."""
    monkeypatch.setattr("pipeline.core.foreman.BREAKS_LIMIT", 2)
    with somebody_elses(tmp_path) as (address, scheduler, _):
        config = ClusterConfig(kind="address", address=address, security="none", workers=1, memory_gb=2)
        with open_pool(config, replace(CREW, workers=1), tmp_path) as pool:
            ends = functools.partial(work.end_children, scheduler.pid)
            with pytest.raises(InferenceError, match="broke 2 times, and no tile was done meanwhile"):
                list(dispatch(pool, Work(work.ready, ends, run), range(10), retries=0))


@contextmanager
def by_a_proxy(folder: Path, run: str, tiles: int, seconds: float) -> Iterator[tuple[Proxy, Iterator[Outcome]]]:
    """A run whose scheduler is reached by a proxy, as through a tunnel or `kubectl port-forward`."""
    with somebody_elses(folder) as (address, _, _), proxied(int(address.rpartition(":")[2])) as proxy:
        there = f"tcp://127.0.0.1:{proxy.port}"
        config = ClusterConfig(kind="address", address=there, security="none", workers=1, memory_gb=2)
        wait_until(lambda: (folder / "scheduler.log").read_text().count("Register"), 60)
        with open_pool(config, replace(CREW, workers=1), folder) as pool:
            tried = Work(work.ready, functools.partial(work.doze, seconds), run)
            yield proxy, dispatch(pool, tried, range(tiles), retries=2)


@pytest.mark.parametrize(("tiles", "seconds"), [(60, 0.1), (1000, 0.0)], ids=["at work", "while results are fetched"])
def test_a_connection_that_falls_silent_is_made_anew_and_costs_no_tile(run, tmp_path, monkeypatch, tiles, seconds):
    """Dask would wait for its answers for ever: it is open."""
    monkeypatch.setattr("pipeline.cluster.scheduler.ANSWER_SECONDS", 1)
    monkeypatch.setattr("pipeline.cluster.scheduler.PULSE_SECONDS", 1)
    monkeypatch.setattr("pipeline.cluster.scheduler.SILENT_SECONDS", 3)
    with by_a_proxy(tmp_path, run, tiles, seconds) as (proxy, found):
        ended = list(itertools.islice(found, tiles // 10))  # others are under way
        proxy.fall_silent(for_good=False)
        assert [(outcome.error, outcome.attempt) for outcome in (*ended, *found)] == [(None, 1)] * tiles


def test_a_scheduler_that_is_silent_for_good_ends_the_run_in_words(run, tmp_path, monkeypatch):
    """New connections are taken too, and nothing comes of them."""
    monkeypatch.setattr("pipeline.cluster.scheduler.ANSWER_SECONDS", 1)
    monkeypatch.setattr("pipeline.cluster.scheduler.GONE_SECONDS", 10)
    monkeypatch.setattr("pipeline.cluster.kind.CONNECT_SECONDS", 5)
    with by_a_proxy(tmp_path, run, 60, 0.1) as (proxy, found):
        next(found)
        proxy.fall_silent(for_good=True)
        with pytest.raises(InferenceError, match="The scheduler does not answer any more"):
            list(found)


def test_a_worker_whose_time_runs_out_is_let_go_before_it_is_cut_off(run, tmp_path):
    """A job that is ended in mid-tile has computed for nothing; it should not have begun that tile."""
    with open_pool(ClusterConfig(), replace(CREW, workers=1), tmp_path) as pool:
        pool.client.cluster.scale(1)
        signed: Counter[str] = Counter()
        marker = tmp_path / "first"
        job = Work(functools.partial(work.first_ends, str(marker), 40.0), work.sign, run)
        # a second passes with each tile of the first worker, and with nothing else
        for outcome in dispatch(pool, job, range(200), retries=0, now=lambda: float(signed[first_of(marker)])):
            assert outcome.error is None
            signed[outcome.result] += 1
            if signed.total() == 5:
                pool.client.cluster.scale(2)
        left = {str(pid) for pid in pool.client.run(os.getpid).values()}
    first = first_of(marker)
    assert signed.total() == 200
    assert 5 <= signed[first] <= 30  # the ten seconds before its end are no tile's, and it could do all 200
    assert first not in left


def first_of(marker: Path) -> str:
    """The worker that came first, as it signs; empty before it came."""
    return marker.read_text() if marker.exists() else ""


def test_every_worker_is_prepared_before_its_first_tile(pool, run, tmp_path):
    """The network is loaded on each worker before the clock starts."""
    begun = []
    tried = Work(functools.partial(work.enlist, str(tmp_path)), functools.partial(work.doze, 0.1), run)
    for _ in dispatch(pool, tried, range(20), retries=0, on_ready=lambda: begun.append(len(list(tmp_path.iterdir())))):
        pass
    assert begun in ([1], [2])
    assert {p.name for p in tmp_path.iterdir()} == {str(pid) for pid in pool.client.run(os.getpid).values()}


def test_a_worker_that_dies_while_it_prepares_does_not_hang_the_run(pool, run, tmp_path):
    """Its replacement has another address; waiting for the old one would be for ever."""
    prepare = functools.partial(work.enlist_or_die, str(tmp_path))
    assert len(outcomes(pool, functools.partial(work.doze, 0.05), range(40), run, prepare=prepare)) == 40


def test_preparing_that_kills_every_worker_is_told(pool, run):
    """A network that does not fit the memory ends the run with a reason."""
    with pytest.raises(InferenceError, match="Worker processes died while they loaded the network"):
        outcomes(pool, work.nothing, range(4), run, prepare=functools.partial(work.die_on, 0, 0))


def test_what_keeps_every_worker_from_loading_the_network_is_told_once_and_as_it_is(pool, run):
    """A checkpoint that is damaged is so on every worker; a traceback of Dask's would hide it."""
    prepare = functools.partial(work.fail_on, frozenset({0}), 0)
    with pytest.raises(ValueError, match="0 is bad"):
        outcomes(pool, work.nothing, range(4), run, prepare=prepare)


def test_a_worker_that_cannot_load_the_network_gets_no_tile_and_the_others_go_on(pool, run, tmp_path):
    """One broken node of forty must not end the run, nor eat its tiles."""
    prepare = functools.partial(work.first_cannot, str(tmp_path / "first"))
    found = outcomes(pool, functools.partial(work.doze_and_sign, 0.02), range(60), run, prepare=prepare)
    assert [o.error for o in found] == [None] * 60
    assert (tmp_path / "first").read_text() not in {o.result for o in found}


def test_workers_get_their_threads_and_end_with_their_pool(monkeypatch, tmp_path):
    """Two workers that each take all cores are slower than one; and nothing outlives a pool."""
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("OMP_PLACES", "{0}")
    monkeypatch.setenv("GOMP_CPU_AFFINITY", "0")
    with open_pool(ClusterConfig(), WorkerSpec(1, threads=3, memory_bytes=2 * 10**9), tmp_path) as pool:
        (pid,) = pool.client.run(os.getpid).values()
        (threads,) = pool.client.run(os.environ.get, "OMP_NUM_THREADS").values()
        for name in ("OMP_PLACES", "GOMP_CPU_AFFINITY"):
            assert list(pool.client.run(os.environ.get, name).values()) == [None]
        assert pool.start_seconds > 0
    assert (threads, os.environ["OMP_NUM_THREADS"], os.environ["OMP_PLACES"]) == ("3", "5", "{0}")
    assert not psutil.pid_exists(pid)

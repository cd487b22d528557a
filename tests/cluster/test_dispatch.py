"""The real dispatch on a real cluster: every tile once, bounded in flight, whatever happens to the workers."""

import functools
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from pipeline.cluster.dispatch import TILES_AHEAD, Outcome, dispatch, on_every_worker
from pipeline.cluster.pool import Pool, local_pool
from pipeline.errors import InferenceError
from tests.cluster import work

WORKERS = 2
WINDOW = WORKERS * TILES_AHEAD


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Two worker processes for all tests here; each is replaced when it dies."""
    with local_pool(WORKERS, threads=1, memory_bytes=2 * 10**9) as found:
        yield found


@pytest.fixture(autouse=True)
def _all_workers(pool) -> None:
    """The test before may have killed some."""
    pool.client.wait_for_workers(WORKERS, timeout=120)


@pytest.fixture
def run(request) -> str:
    """A name that makes the keys of a test its own."""
    return request.node.name


def outcomes(pool: Pool, function, indices, run: str, *, workers: int = WORKERS, retries: int = 2) -> list[Outcome]:
    """All outcomes of a dispatch."""
    return list(dispatch(pool.client, function, indices, workers=workers, retries=retries, run=run))


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.timeout(1200)  # a minute on a quiet machine
def test_twenty_thousand_tiles_grow_neither_driver_nor_scheduler(pool, run):
    """A volume of ten thousand times the size must not need a driver of ten thousand times the memory."""
    scheduler, process = pool.client.cluster.scheduler, psutil.Process()
    taken, sizes = [0], {}
    times = np.zeros(20_000, dtype=int)  # a Counter would grow by megabytes itself
    most_in_flight = most_tasks = 0

    def counted() -> Iterator[int]:
        for index in range(20_000):
            taken[0] += 1
            yield index

    for number, outcome in enumerate(
        dispatch(pool.client, work.nothing, counted(), workers=WORKERS, retries=2, run=run), start=1
    ):
        assert (outcome.result, outcome.error, outcome.attempt) == (outcome.index, None, 1)
        times[outcome.index] += 1
        most_in_flight = max(most_in_flight, taken[0] - number + 1)
        most_tasks = max(most_tasks, len(scheduler.tasks))
        if number in (4_000, 20_000):
            sizes[number] = process.memory_info().rss
    assert (times == 1).all()
    assert most_in_flight <= WINDOW
    assert most_tasks <= 2 * WINDOW  # those in flight, and a few whose release is under way
    assert len(pool.client.futures) <= WINDOW
    assert sizes[20_000] - sizes[4_000] < 16_000 * 1024  # under 1 kB a tile; 4 to 5 MB in all is the allocator's noise


def test_indices_are_taken_no_sooner_than_there_is_room(pool, run):
    """A lazy source is why a plan of ten billion tiles costs nothing to dispatch."""
    taken = []

    def source() -> Iterator[int]:
        for index in range(40):
            taken.append(index)
            yield index

    for number, _ in enumerate(dispatch(pool.client, work.nothing, source(), workers=WORKERS, retries=2, run=run)):
        assert len(taken) <= number + WINDOW
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
    threading.Timer(0.5, os.kill, (victim, signal.SIGKILL)).start()
    found = outcomes(pool, functools.partial(work.doze, 0.05), range(60), run)
    assert Counter(o.index for o in found) == Counter(range(60))
    assert all(o.error is None for o in found)
    assert not psutil.pid_exists(victim)


def test_a_tile_that_kills_every_worker_is_told_and_takes_no_other_with_it(pool, run):
    """A tile waiting behind it on the same worker dies as often, and is innocent; here several do."""
    found = {o.index: o for o in outcomes(pool, functools.partial(work.die_on, 3), range(12), run, workers=2 * WORKERS)}
    assert sorted(found) == list(range(12))
    assert {index for index, o in found.items() if o.error is not None} == {3}
    assert isinstance(found[3].error, InferenceError)
    assert "its worker process died each time, also when it ran alone" in str(found[3].error)


@pytest.mark.slow
def test_workers_come_back_however_often_they_die(pool, run):
    """A cluster that gives a worker up while it starts again would leave the run waiting for ever."""
    for attempt in range(2):
        (found,) = outcomes(pool, functools.partial(work.die_on, 0), [0], f"{run}-{attempt}")
        assert isinstance(found.error, InferenceError)
    pool.client.wait_for_workers(WORKERS, timeout=120)
    assert [o.error for o in outcomes(pool, work.nothing, range(4), run)] == [None] * 4


def test_without_any_worker_a_run_fails_instead_of_waiting_for_ever(run):
    """A machine that cannot start processes any more must be told of, not slept on."""
    with local_pool(1, threads=1, memory_bytes=2 * 10**9) as pool:
        pool.client.cluster.scheduler.no_workers_timeout = 1
        pool.client.cluster.scale(0)
        with pytest.raises(InferenceError, match="No worker process is left"):
            outcomes(pool, functools.partial(work.doze, 0.1), range(100), run)


def test_every_worker_is_prepared(pool, tmp_path):
    """The network is loaded on each worker before the clock starts."""
    on_every_worker(pool.client, functools.partial(work.enlist, str(tmp_path)))
    assert {p.name for p in tmp_path.iterdir()} == {str(pid) for pid in pool.client.run(os.getpid).values()}


def test_a_worker_that_dies_while_it_prepares_does_not_hang_the_run(pool, tmp_path):
    """Its replacement has another address; waiting for the old one would be for ever."""
    on_every_worker(pool.client, functools.partial(work.enlist_or_die, str(tmp_path)))


def test_preparing_that_kills_every_worker_is_told(pool):
    """A network that does not fit the memory ends the run with a reason."""
    with pytest.raises(InferenceError, match="Worker processes died while they loaded the network"):
        on_every_worker(pool.client, functools.partial(work.die_on, 0, 0))


def test_workers_get_their_threads_and_end_with_their_pool(monkeypatch):
    """Two workers that each take all cores are slower than one; and nothing outlives a pool."""
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with local_pool(1, threads=3, memory_bytes=2 * 10**9) as pool:
        (pid,) = pool.client.run(os.getpid).values()
        (threads,) = pool.client.run(os.environ.get, "OMP_NUM_THREADS").values()
        assert pool.start_seconds > 0
    assert (threads, os.environ["OMP_NUM_THREADS"]) == ("3", "5")
    assert not psutil.pid_exists(pid)

"""Several runs on one pool: who has which worker, and that none waits where another has one to spare."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import dask
import pytest
from distributed import Client
from tornado.platform.asyncio import BaseAsyncIOLoop

from pipeline.cluster.dispatch import Work, dispatch
from pipeline.cluster.kind import WorkerSpec
from pipeline.cluster.pool import Pool, SharedPool, open_pool
from pipeline.cluster.scheduler import Attendance
from pipeline.cluster.sharing import SharedWorkers
from pipeline.config import ClusterConfig
from tests.cluster import work


class Idle(BaseAsyncIOLoop):
    """A loop that does nothing of what it is asked."""

    def initialize(self) -> None:
        pass

    def add_callback(self, *_) -> None:
        pass


class Scheduler:
    """As much of a client as sharing asks."""

    status, scheduler_comm, loop = "running", None, Idle()

    def __init__(self, *workers: str) -> None:
        self.workers = list(workers)

    @property
    def scheduler(self) -> "Scheduler":
        return self

    async def identity(self, n_workers: int) -> dict:
        return {"workers": {worker: {"status": "running"} for worker in self.workers}}

    def sync(self, function) -> dict:
        return asyncio.run(function())


@pytest.fixture
def fresh(monkeypatch):
    """Whoever is there is looked up anew each time."""
    monkeypatch.setattr("pipeline.cluster.sharing.KNOWN_SECONDS", -1.0)


def test_the_first_in_line_has_what_it_can_use_and_the_next_the_rest(fresh):
    """A volume that came first is not held up by one that came later; nor are workers idle meanwhile."""
    common = SharedWorkers(Scheduler("a", "b", "c"))
    with common.share() as first, common.share() as second:
        assert first.present(2) == {"a", "b"}
        assert second.present(5) == {"c"}
        assert first.present(3) == {"a", "b"}  # what the second has is not taken away
        first.spare(["a"])
        assert first.present(1) == {"b"}
        assert second.present(5) == {"a", "c"}


def test_what_a_run_gives_back_goes_to_whoever_stands_first(fresh):
    """Else a long queue would be served in the order of the looks, and the first might wait for ever."""
    common = SharedWorkers(Scheduler("a"))
    with common.share() as first, common.share() as second, common.share() as third:
        assert (first.present(1), second.present(1), third.present(1)) == ({"a"}, set(), set())
        first.spare(["a"])
        first.present(0)
        assert third.present(1) == set()
        assert second.present(1) == {"a"}


def test_the_others_are_woken_when_workers_are_spared_and_when_a_run_ends(fresh):
    """A look a second would leave a worker idle for half a second after each small volume."""
    common, woken = SharedWorkers(Scheduler("a")), []
    with common.share() as first:
        with common.share() as second:
            first.listen(partial(woken.append, "first"))
            second.listen(partial(woken.append, "second"))
            second.spare(["a"])
            assert woken == ["first", "second"]
        assert woken == ["first", "second", "first"]


def test_a_worker_that_is_gone_belongs_to_nobody_and_its_successor_is_free(fresh):
    """A worker that comes back under its old address is not taken for the one that vanished."""
    scheduler = Scheduler("a", "b")
    common = SharedWorkers(scheduler)
    with common.share() as first, common.share() as second:
        first.present(1), second.present(1)
        scheduler.workers = ["b"]
        assert first.present(1) == set()
        assert not first.wanting()  # somebody is there, at another's tiles
        scheduler.workers = []
        assert second.present(1) == set()
        assert second.wanting()
        scheduler.workers = ["a"]
        assert first.present(1) == {"a"}


# --- a real pool --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Iterator[Pool]:
    """Two worker processes."""
    with open_pool(ClusterConfig(), WorkerSpec(2, 1, 2 * 10**9), tmp_path_factory.mktemp("jobs")) as found:
        yield found


def results(shared: SharedPool, name: str, function, tiles: int) -> list[int]:
    """What a run on shared workers gives, by tile."""
    with shared.lend(tiles) as pool:
        found = list(dispatch(pool, Work(work.ready, function, name), range(tiles), retries=2))
    return [outcome.result for outcome in sorted(found, key=lambda outcome: outcome.index)]


def test_many_small_runs_share_workers_and_each_gets_all_its_tiles(pool):
    """Hundreds of small volumes at a few at a time: none is lost, none waits a second for its worker."""
    shared = SharedPool(pool)
    with ThreadPoolExecutor(4) as runs:
        found = list(runs.map(lambda n: results(shared, f"small-{n}", work.nothing, 1 + n % 3), range(40)))
    assert found == [list(range(1 + n % 3)) for n in range(40)]


def test_two_runs_compute_side_by_side_where_each_leaves_workers(pool, tmp_path):
    """A volume of one tile holds one worker; the other one is at the next volume meanwhile."""
    shared = SharedPool(pool)
    with ThreadPoolExecutor(2) as runs:
        names = ("left", "right")
        found = list(runs.map(lambda name: results(shared, name, partial(work.meet, str(tmp_path), name), 1), names))
    assert found == [[0], [0]]


def test_no_look_misses_workers_while_the_client_refreshes_what_it_knows(pool):
    """The client asks for totals every two seconds, and forgets the workers by it; a run that believed it would give up its
    tiles, and end where they were all still loading the network. Here it asks a thousand times a second."""
    often = {"distributed.client.scheduler-info-interval": "1ms"}
    with (
        dask.config.set(often),
        Client(pool.client.scheduler.address, security=pool.client.security, set_as_default=False) as client,
    ):
        assert {len(Attendance(client).look()) for _ in range(500)} == {2}


def test_a_worker_that_dies_costs_no_run_its_tiles(pool):
    """Two runs, and one of two workers killed: both end with all their tiles."""
    shared = SharedPool(pool)
    pid = next(iter(pool.client.run(os.getpid).values()))
    killer = threading.Timer(1.0, os.kill, (pid, signal.SIGKILL))
    killer.start()
    with ThreadPoolExecutor(2) as runs:
        found = list(runs.map(lambda name: results(shared, name, partial(work.doze, 0.3), 12), ("one", "other")))
    assert found == [list(range(12))] * 2
    killer.join()

"""Pools of real processes: started beside other things, taken once, and ended with what started them."""

import os
import time

import psutil
import pytest

from pipeline.cluster import pool as pools
from pipeline.cluster.pool import local_pool, starting
from tests.cluster import work

CREW = {"threads": 1, "memory_bytes": 10**9}


def workers_of_this_process() -> set[int]:
    """Process numbers of worker processes below this one."""
    return {p.pid for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())}


def test_a_pool_that_was_begun_is_the_one_that_is_taken():
    """A run's workers start while Prefect does; a second set beside them would cost the memory of both."""
    before = workers_of_this_process()
    with starting(1, **CREW):
        with local_pool(1, **CREW) as pool:
            (number,) = pool.client.run(os.getpid).values()
            begun = workers_of_this_process() - before
            assert begun == {number}
        wait_for_end(begun)
        assert not pools._starting


def test_a_pool_that_nobody_takes_ends():
    """A run that is refused after its workers were begun must leave none."""
    before = workers_of_this_process()
    with starting(1, **CREW):
        pass
    wait_for_end(workers_of_this_process() - before)
    assert not pools._starting


def test_a_pool_of_another_kind_is_not_taken():
    """Threads and memory are the plan's."""
    with starting(1, threads=1, memory_bytes=10**9), local_pool(1, threads=2, memory_bytes=10**9) as pool:
        (threads,) = pool.client.run(work.environment, "OMP_NUM_THREADS").values()
        assert threads == "2"


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "THP_MEM_ALLOC_ENABLE"])
def test_workers_keep_the_memory_that_they_free(name):
    """Dask's nanny has settings of its own; with them page faults cost more than the arithmetic."""
    before = os.environ.get(name)
    with local_pool(1, **CREW) as pool:
        (found,) = pool.client.run(work.environment, name).values()
    assert found == pools._ALLOCATOR[name]
    assert os.environ.get(name) == before


def wait_for_end(numbers: set[int]) -> None:
    """Wait until processes are gone."""
    deadline = time.monotonic() + 20
    while any(psutil.pid_exists(number) for number in numbers):
        assert time.monotonic() < deadline
        time.sleep(0.1)

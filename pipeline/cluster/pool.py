"""Worker processes for a run. One kind so far: processes on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, Worker, WorkerPlugin
from distributed.scheduler import DEFAULT_EXTENSIONS
from distributed.spans import SpansSchedulerExtension
from distributed.system import MEMORY_LIMIT

from pipeline.errors import InferenceError
from pipeline.planning import Machine

START_SECONDS = 120

_SETTINGS = {
    # Workers hold no data of Dask's, so there is nothing to spill; beyond the limit a worker is ended, not slowed.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.98,
    "distributed.comm.timeouts.connect": "60s",
    "distributed.scheduler.allowed-failures": 1,  # then the dispatch tries a tile alone
    "distributed.scheduler.no-workers-timeout": f"{START_SECONDS}s",  # then a tile fails, and the dispatch gives up
    # After this the cluster ends the nanny whose worker is gone, even while it starts another: a worker that dies twice
    # within 15 s, or is slow to start, would never come back.
    "distributed.deploy.lost-worker-timeout": "1000h",
    "distributed.admin.tick.limit": "1h",  # loading a network may hold the loop for a while; no warning is due
}

_ALLOCATOR = {
    # Every slab makes and drops the same large arrays. By default each is mapped and unmapped anew, and the page faults
    # cost as much as the arithmetic that they are for; kept, and on huge pages, they are touched once.
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**26),
    "MALLOC_ARENA_MAX": "1",  # tiles run in a thread, whose own arena would map whatever is larger than 64 MiB
    "THP_MEM_ALLOC_ENABLE": "1",
}


@dataclass(frozen=True)
class Pool:
    """Workers that are ready.

    Args:
        client: Connected to their scheduler.
        workers: Their number.
        start_seconds: What their start took.
    """

    client: Client
    workers: int
    start_seconds: float


class _Uninterrupted(WorkerPlugin):
    """Workers end with their driver. Ctrl-C, which a terminal sends to them too, would have each print a traceback."""

    name = "uninterrupted"

    def setup(self, worker: Worker) -> None:  # noqa: ARG002 - the plugin's signature
        with contextlib.suppress(ValueError):  # not in a main thread: no process of its own
            signal.signal(signal.SIGINT, signal.SIG_IGN)


class _NoSpans(SpansSchedulerExtension):
    """Stands in for the scheduler's record of all submissions, which would grow with the volume."""

    def observe_tasks(self, *_: Any, **__: Any) -> dict:
        return {}

    def heartbeat(self, *_: Any) -> None:
        pass


@contextmanager
def local_pool(workers: int, *, threads: int, memory_bytes: int) -> Iterator[Pool]:
    """Worker processes on this machine, one task at a time each; they end when this process does.

    Those of `starting` are taken, where they are the same.

    Args:
        workers: Processes.
        threads: Compute threads of each; set in its environment, since Dask's nanny sets one where nothing does.
        memory_bytes: Limit of each; beyond it the process is ended and its tile tried again.

    Raises:
        InferenceError: They did not start.
    """
    begun = _starting.pop((workers, threads, memory_bytes), None)
    with ExitStack() as stack:
        if begun is None:
            cluster, seconds = _started(stack, workers, threads, memory_bytes)
        else:
            stack.callback(begun.stack.close)
            cluster, seconds = begun.cluster.result()
        began = time.perf_counter()
        client = stack.enter_context(Client(cluster))  # in this thread: it is its context's own
        client.register_plugin(_Uninterrupted())
        try:
            client.wait_for_workers(workers, timeout=START_SECONDS)
        except TimeoutError as error:
            found = len(client.scheduler_info(n_workers=-1)["workers"])
            raise InferenceError(
                f"Of {workers} workers asked for, {found} started within {START_SECONDS} s. The machine is overloaded, or "
                "cannot start processes: see the log, or lower cluster.workers."
            ) from error
        yield Pool(client, workers, seconds + time.perf_counter() - began)


@contextmanager
def starting(workers: int, *, threads: int, memory_bytes: int) -> Iterator[None]:
    """Begin to start a pool, while this process does other things; the next `local_pool` of the same kind takes it."""
    key = (workers, threads, memory_bytes)
    stack = ExitStack()
    with ThreadPoolExecutor(1, thread_name_prefix="pool") as thread:
        _starting[key] = _Begun(stack, thread.submit(_started, stack, *key))
        try:
            yield
        finally:
            untaken = _starting.pop(key, None)
    if untaken:
        stack.close()


@dataclass(frozen=True)
class _Begun:
    """A cluster that is on its way, and what ends it."""

    stack: ExitStack
    cluster: Future[tuple[LocalCluster, float]]


_starting: dict[tuple[int, int, int], _Begun] = {}

_one_start = threading.Lock()
"""Two clusters that start at once, in two threads, trip over each other's imports."""


def _started(stack: ExitStack, workers: int, threads: int, memory_bytes: int) -> tuple[LocalCluster, float]:
    """A cluster that ends with `stack`, and the seconds that its start took."""
    began = time.perf_counter()
    stack.enter_context(_worker_environment(threads))
    stack.enter_context(dask.config.set(_SETTINGS))
    with _one_start:
        cluster = stack.enter_context(_cluster(workers, memory_bytes))
    return cluster, time.perf_counter() - began


@contextmanager
def _worker_environment(threads: int) -> Iterator[None]:
    """Set what worker processes inherit, and put it back: a nanny takes the environment before its configuration."""
    wanted = _ALLOCATOR | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    before = {name: os.environ.pop(name, None) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _cluster(workers: int, memory_bytes: int) -> LocalCluster:
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        memory_limit=memory_bytes,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
        scheduler_kwargs={"extensions": {**DEFAULT_EXTENSIONS, "spans": _NoSpans}},
    )


def machine() -> Machine:
    """What this machine lets a process use: less than it has where a control group or a ulimit says so."""
    return Machine(cores=CPU_COUNT, memory_bytes=int(MEMORY_LIMIT))

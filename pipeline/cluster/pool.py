"""Worker processes for a run. One kind so far: processes on this machine."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import dask
from dask.system import CPU_COUNT
from distributed import Client, LocalCluster
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
    "distributed.scheduler.allowed-failures": 3,
    "distributed.admin.tick.limit": "1h",  # loading a network may hold the loop for a while; no warning is due
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


@contextmanager
def local_pool(workers: int, *, threads: int, memory_bytes: int) -> Iterator[Pool]:
    """Worker processes on this machine, one task at a time each; they end when this process does.

    Args:
        workers: Processes.
        threads: Compute threads of each; set in its environment, since Dask's nanny sets one.
        memory_bytes: Limit of each; beyond it the process is ended and its tile tried again.

    Raises:
        InferenceError: They did not start.
    """
    started = time.perf_counter()
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    spawn = {f"distributed.nanny.pre-spawn-environ.{name}": threads for name in names}
    with dask.config.set({**_SETTINGS, **spawn}), _cluster(workers, memory_bytes) as cluster, Client(cluster) as client:
        try:
            client.wait_for_workers(workers, timeout=START_SECONDS)
        except TimeoutError as error:
            found = len(client.scheduler_info(n_workers=-1)["workers"])
            raise InferenceError(
                f"Of {workers} workers asked for, {found} started within {START_SECONDS} s. The machine is overloaded, or "
                "cannot start processes: see the log, or lower cluster.workers."
            ) from error
        yield Pool(client, workers, time.perf_counter() - started)


def _cluster(workers: int, memory_bytes: int) -> LocalCluster:
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        memory_limit=memory_bytes,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    )


def machine() -> Machine:
    """What this machine lets a process use: less than it has where a control group or a ulimit says so."""
    return Machine(cores=CPU_COUNT, memory_bytes=int(MEMORY_LIMIT))

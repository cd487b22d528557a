"""`cluster.kind: address`: a scheduler and workers that somebody else runs, and that stay when a run is over.

Workers must have one thread each (`dask worker --nthreads 1`), this Halotile and torch, and see the paths of the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dask.system import CPU_COUNT
from distributed import Worker
from distributed.system import MEMORY_LIMIT

from pipeline.cluster import worker
from pipeline.cluster.kind import OpenCluster, WorkerSpec, connect
from pipeline.cluster.security import security_of
from pipeline.config import ClusterConfig
from pipeline.core.machine import Machine
from pipeline.errors import InferenceError


def machine(config: ClusterConfig) -> Machine:
    """As many times the smallest share of a machine as there are workers; what the configuration says is not asked for.

    Raises:
        InferenceError: The scheduler cannot be reached, or has no worker.
    """
    if config.workers != "auto" and config.memory_gb != "auto":
        memory_bytes = int(config.memory_gb * 1e9)
        return Machine(CPU_COUNT * config.workers, memory_bytes * config.workers, config.workers, device="cpu")
    with connect(_somebody_elses(config)) as client:
        offers = client.run(_offer)
    if not offers:
        raise InferenceError(
            f"The scheduler at '{config.address}' has no worker. Start some (dask worker --nthreads 1 {config.address}), or set "
            "cluster.workers, cluster.memory_gb and compute.threads, and the run will wait for them."
        )
    number, sharing = len(offers), Counter(host for host, _, _ in offers.values())
    cores = min(max(cores // sharing[host], 1) for host, cores, _ in offers.values())
    memory_bytes = min(memory for _, _, memory in offers.values())
    return Machine(cores * number, memory_bytes * number, number, device="cpu")


@contextmanager
def start(config: ClusterConfig, spec: WorkerSpec, folder: Path) -> Iterator[OpenCluster]:  # noqa: ARG001 - of any kind
    """Take the scheduler that is there. At the end its workers let go of the network; they are not ended."""
    cluster = _somebody_elses(config)
    try:
        yield cluster
    finally:
        with suppress(InferenceError, OSError), connect(cluster) as client:
            client.run(worker.let_go, on_error="ignore")


def _somebody_elses(config: ClusterConfig) -> OpenCluster:
    return OpenCluster(str(config.address), security_of(config.security))


def _offer(dask_worker: Worker) -> tuple[str, int, int]:
    """On a worker, which Dask passes under this name: its host, and what it may use of it."""
    return dask_worker.host, CPU_COUNT, int(dask_worker.memory_manager.memory_limit or MEMORY_LIMIT)

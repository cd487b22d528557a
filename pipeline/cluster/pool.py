"""Workers for a run, of whichever kind: processes here, jobs of SLURM, tasks of an allocation, pods, or somebody else's.

Each kind is a module with two functions (`Kind`): what its workers have, and how they come to be. This one connects to them.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from distributed import Client

from pipeline.cluster.dashboard import check_dashboard
from pipeline.cluster.kind import Kind, OpenCluster, WorkerSpec, connect
from pipeline.cluster.security import check_security
from pipeline.cluster.sharing import AllWorkers, SharedWorkers, WorkerSharing
from pipeline.config import ClusterConfig
from pipeline.core.machine import Machine
from pipeline.main_guard import leave_if_run_again

KINDS = {
    "local": "pipeline.cluster.local",
    "cuda": "pipeline.cluster.cuda",
    "slurm": "pipeline.cluster.slurm",
    "slurm-allocation": "pipeline.cluster.allocation",
    "kubernetes": "pipeline.cluster.kubernetes",
    "address": "pipeline.cluster.address",
}
"""Where each `cluster.kind` is; imported when it is asked for."""


@dataclass(frozen=True)
class Pool:
    """Workers, and a connection to their scheduler.

    Args:
        client: The connection.
        workers: How many are wanted.
        start_seconds: What their start took, as far as anyone waited for it.
        wait_seconds: How long a run may be without any.
        tend: Replaces what is lost; called often. Says what is under way.
        sharing: Those that may be given tiles.
    """

    client: Client
    workers: int
    start_seconds: float
    wait_seconds: float
    tend: Callable[[], str]
    sharing: WorkerSharing


def machine(config: ClusterConfig) -> Machine:
    """What all workers of a cluster have together, and what this process has.

    Raises:
        ConfigError: They cannot be had as it says: this is asked before any work.
    """
    check_security(config)
    check_dashboard(config)
    here: Kind = importlib.import_module(KINDS["local"])
    return replace(_kind(config).machine(config), driver_bytes=here.machine(config).memory_bytes)


@contextmanager
def open_pool(
    config: ClusterConfig, spec: WorkerSpec, folder: Path, started: StartedWorkers | None = None, *, keep: bool = False
) -> Iterator[Pool]:
    """Open a pool of workers, which ends with the context.

    They may still be on their way: `dispatch` gives work to each as it joins.

    Args:
        config: Which kind, where.
        spec: How many, how large.
        folder: For logs and keys of jobs, where all workers see it.
        started: Workers that are started already; they are taken where they are such ones, and nobody has taken them.
        keep: Whether those are left, in the end, for the next one that asks for such workers.

    Raises:
        ConfigError, InferenceError: They cannot be had.
    """
    leave_if_run_again()
    with ExitStack() as stack:
        if started is not None and started.take(config, spec):
            stack.callback(started.give_back if keep else started.stack.close)
            opened, seconds = started.opened.result()
        else:
            opened, seconds = _open(stack, _kind(config), config, spec, folder)
        began = time.perf_counter()
        client = stack.enter_context(connect(opened))  # in this thread: it is its context's own
        seconds += time.perf_counter() - began
        yield Pool(client, spec.workers, seconds, config.wait_seconds, opened.tend, AllWorkers(client))


class SharedPool:
    """One pool for several runs at once, each in a thread of its own; see `cluster.sharing` for who has which worker."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self._common, self._tending = pool, SharedWorkers(pool.client), threading.Lock()

    @contextmanager
    def lend(self, workers: int) -> Iterator[Pool]:
        """Lend a run a part of the pool, up to so many workers, until the context ends."""
        with self._common.share() as sharing:
            yield replace(self._pool, workers=workers, start_seconds=0.0, tend=self._tend, sharing=sharing)

    def _tend(self) -> str:
        with self._tending:
            return self._pool.tend()


class StartedWorkers:
    """Workers that were started before their pool is opened. Whoever opens the pool is handed them, and has them alone.

    Args:
        config: Their cluster.
        spec: What they are; None for those of an allocation, which are what they are for every pool of it.
        opened: How to reach them, and the seconds that their start took.
        stack: Ends them.
    """

    def __init__(
        self,
        config: ClusterConfig,
        spec: WorkerSpec | None,
        opened: Future[tuple[OpenCluster, float]],
        stack: ExitStack,
    ) -> None:
        self.opened, self.stack = opened, stack
        self._config, self._spec, self._taken = config, spec, False

    def take(self, config: ClusterConfig, spec: WorkerSpec) -> bool:
        """Take them, and the duty to end them. False where they are not what is asked for, or were taken before."""
        if self._spec is None:
            return True
        if self._taken or (config, spec) != (self._config, self._spec):
            return False
        self._taken = True
        return True

    def give_back(self) -> None:
        """They are there for whoever takes them next."""
        self._taken = False

    def close(self) -> None:
        """End them where nobody has them."""
        if not self._taken:
            self._taken = True
            self.stack.close()


@contextmanager
def starting(config: ClusterConfig, spec: WorkerSpec, folder: Path) -> Iterator[StartedWorkers]:
    """Start workers in the background, while this process does other things; `open_pool` takes them by what this gives."""
    kind = _kind(config)  # imported in this thread
    stack = ExitStack()
    with ThreadPoolExecutor(1, thread_name_prefix="pool") as thread:
        started = StartedWorkers(config, spec, thread.submit(_open, stack, kind, config, spec, folder), stack)
        try:
            yield started
        finally:
            thread.shutdown()
            started.close()


@contextmanager
def join_allocation(config: ClusterConfig, threads: Literal["auto"] | int, folder: Path) -> Iterator[StartedWorkers]:
    """Take this task's part in its allocation, see `allocation.join`; gives the driver the workers."""
    from pipeline.cluster.allocation import join  # noqa: PLC0415 - needs dask-jobqueue, which few have

    there: Future[tuple[OpenCluster, float]] = Future()
    with join(config, threads, folder) as opened:
        there.set_result((opened, 0.0))
        yield StartedWorkers(config, None, there, ExitStack())


def _kind(config: ClusterConfig) -> Kind:
    return importlib.import_module(KINDS[config.kind])


def _open(
    stack: ExitStack, kind: Kind, config: ClusterConfig, spec: WorkerSpec, folder: Path
) -> tuple[OpenCluster, float]:
    """Workers that end with `stack`, and the seconds that their start took."""
    began = time.perf_counter()
    return stack.enter_context(kind.start(config, spec, folder)), time.perf_counter() - began

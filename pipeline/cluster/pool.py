"""Workers for a run, of whichever kind: processes here, jobs of SLURM, tasks of an allocation, pods, or somebody else's.

Each kind is a module with two functions (`Kind`): what its workers have, and how they come to be. This one connects to them.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from distributed import Client

from pipeline.cluster.dashboard import check_dashboard
from pipeline.cluster.kind import Kind, Opened, WorkerSpec, connected
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
    """What all workers of a cluster have together.

    Raises:
        ConfigError: They cannot be had as it says: this is asked before any work.
    """
    check_security(config)
    check_dashboard(config)
    return _kind(config).machine(config)


@contextmanager
def open_pool(config: ClusterConfig, spec: WorkerSpec, folder: Path) -> Iterator[Pool]:
    """Workers until the context ends; those of `starting` are taken, where they are the same.

    They may still be on their way: `dispatch` gives work to each as it joins.

    Args:
        config: Which kind, where.
        spec: How many, how large.
        folder: For logs and keys of jobs, where all workers see it.

    Raises:
        ConfigError, InferenceError: They cannot be had.
    """
    leave_if_run_again()
    begun = _starting.pop((config, spec), None)
    with ExitStack() as stack:
        if begun is None:
            opened, seconds = _opened(stack, _kind(config), config, spec, folder)
        else:
            stack.callback(begun.stack.close)
            opened, seconds = begun.opened.result()
        began = time.perf_counter()
        client = stack.enter_context(connected(opened))  # in this thread: it is its context's own
        seconds += time.perf_counter() - began
        yield Pool(client, spec.workers, seconds, config.wait_seconds, opened.tend, AllWorkers(client))


class SharedPool:
    """One pool for several runs at once, each in a thread of its own; see `cluster.sharing` for who has which worker."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self._common, self._tending = pool, SharedWorkers(pool.client), threading.Lock()

    @contextmanager
    def lent(self, workers: int) -> Iterator[Pool]:
        """A run's part of the pool, up to so many workers."""
        with self._common.share() as sharing:
            yield replace(self._pool, workers=workers, start_seconds=0.0, tend=self._tend, sharing=sharing)

    def _tend(self) -> str:
        with self._tending:
            return self._pool.tend()


@contextmanager
def starting(config: ClusterConfig, spec: WorkerSpec, folder: Path) -> Iterator[None]:
    """Begin to start a pool, while this process does other things; the next `open_pool` of the same kind takes it."""
    kind = _kind(config)  # imported in this thread
    stack = ExitStack()
    with ThreadPoolExecutor(1, thread_name_prefix="pool") as thread:
        _starting[config, spec] = _Begun(stack, thread.submit(_opened, stack, kind, config, spec, folder))
        try:
            yield
        finally:
            untaken = _starting.pop((config, spec), None)
    if untaken:
        stack.close()


def allocation_joined(
    config: ClusterConfig, threads: Literal["auto"] | int, folder: Path
) -> AbstractContextManager[None]:
    """Be what this task of an allocation is to be; see `allocation.joined`."""
    from pipeline.cluster.allocation import joined  # noqa: PLC0415 - needs dask-jobqueue, which few have

    return joined(config, threads, folder)


@dataclass(frozen=True)
class _Begun:
    """A pool that is on its way, and what ends it."""

    stack: ExitStack
    opened: Future[tuple[Opened, float]]


_starting: dict[tuple[ClusterConfig, WorkerSpec], _Begun] = {}


def _kind(config: ClusterConfig) -> Kind:
    return importlib.import_module(KINDS[config.kind])


def _opened(
    stack: ExitStack, kind: Kind, config: ClusterConfig, spec: WorkerSpec, folder: Path
) -> tuple[Opened, float]:
    """Workers that end with `stack`, and the seconds that their start took."""
    began = time.perf_counter()
    return stack.enter_context(kind.opened(config, spec, folder)), time.perf_counter() - began

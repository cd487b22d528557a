"""`cluster.kind: local`: processes on this machine, one tile at a time each; on cards, each has one to itself."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed import Nanny
from distributed.deploy.spec import SpecCluster
from distributed.system import MEMORY_LIMIT

from pipeline.cluster.kind import OpenCluster, WorkerSpec
from pipeline.cluster.pages import SchedulerWithoutPages, WorkerWithoutPages
from pipeline.cluster.process import ProcessSetup
from pipeline.cluster.security import own_security
from pipeline.cluster.settings import CORES, SETTINGS, check_place, scheduler_options, worker_environment
from pipeline.config import ClusterConfig
from pipeline.core.machine import Machine
from pipeline.main_guard import unguarded_script
from pipeline.networks.device import visible_cards
from pipeline.thread_variables import meddles

_one_start = threading.Lock()
"""Two clusters that start at once, in two threads, trip over each other's imports."""


def machine(config: ClusterConfig) -> Machine:  # noqa: ARG001 - of any kind
    """What this machine lets a process use: less than it has where a control group, a ulimit or a job of SLURM says so."""
    cores, memory_bytes = CPU_COUNT, int(MEMORY_LIMIT)
    if "SLURM_JOB_ID" in os.environ:  # not every site confines its jobs
        cores = min(cores, int(os.environ.get("SLURM_CPUS_PER_TASK") or cores))
        memory_bytes = min(memory_bytes, _job_memory_bytes(cores) or memory_bytes)
    return Machine(cores, memory_bytes)


def _job_memory_bytes(cores: int) -> int:
    """What SLURM gives this job on this node; 0 where it does not say."""
    node, core = os.environ.get("SLURM_MEM_PER_NODE"), os.environ.get("SLURM_MEM_PER_CPU")
    return int(node or int(core or 0) * cores) * 2**20


@contextmanager
def start(config: ClusterConfig, spec: WorkerSpec, folder: Path) -> Iterator[OpenCluster]:  # noqa: ARG001 - of any kind
    """Start worker processes, which end when this process does; a nanny replaces each that dies."""
    cards = visible_cards()[: spec.workers] if spec.device == "cuda" else ()
    with _environment({**worker_environment(spec.threads), CORES: str(CPU_COUNT)}), dask.config.set(SETTINGS):
        with _one_start:
            try:
                cluster = _cluster(config, spec, cards)
            except RuntimeError as error:
                raise unguarded_script() or error from None
        with cluster:
            yield OpenCluster(cluster)


def _cluster(config: ClusterConfig, spec: WorkerSpec, cards: Sequence[str]) -> SpecCluster:
    """Scheduler and workers, which have started. `LocalCluster` would serve pages of both."""
    security = own_security(config)
    place = {"interface": config.interface} if config.interface else {"host": config.host}
    common = {**place, "security": security, "protocol": "tls://" if security else "tcp://"}
    worker = {
        "cls": _OneCard,
        "options": {
            **common,
            "worker_class": WorkerWithoutPages,
            "cards": cards,
            "plugins": (ProcessSetup(),),
            "nthreads": 1,
            "memory_limit": spec.memory_bytes,
            "silence_logs": logging.CRITICAL,
        },
    }
    check_place(config)
    return SpecCluster(
        scheduler={"cls": SchedulerWithoutPages, "options": {**common, **scheduler_options(config)}},
        workers=dict.fromkeys(range(spec.workers), worker),
        worker=worker,
        security=security,
        silence_logs=logging.CRITICAL,
    )


class _OneCard(Nanny):
    """Keeps a worker process, which sees its own card only, also when it was started anew."""

    def __init__(self, *args: Any, cards: Sequence[str] = (), **options: Any) -> None:
        if cards:
            options["env"] = {"CUDA_VISIBLE_DEVICES": cards[int(options["name"]) % len(cards)]}
        super().__init__(*args, **options)


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Have worker processes inherit this and nothing that meddles, and put it back: a nanny takes the environment first."""
    before = {name: os.environ.pop(name, None) for name in {*wanted, *filter(meddles, os.environ)}}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

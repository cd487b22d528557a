"""`cluster.kind: slurm-allocation`: the tasks of one `srun` are the cluster; nothing is submitted, and no server is needed.

    srun --ntasks=N --kill-on-bad-exit=1 halotile run run.yaml

Every task runs the same command. dask-jobqueue's SLURMRunner makes task 0 the scheduler, task 1 the driver, all others workers;
they find one another by a file in the run directory, which names the step, so that a requeued job does not find its old self.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed.core import rpc
from distributed.security import Security

from pipeline.cluster.pool import Crew, Opened
from pipeline.cluster.security import own_security, security_of, temporary_files
from pipeline.cluster.settings import EXTENSIONS, SETTINGS, worker_environment
from pipeline.config import ClusterConfig, TlsConfig
from pipeline.errors import ConfigError
from pipeline.planning import Machine

_interrupt = signal.getsignal(signal.SIGINT)
from dask_jobqueue.slurm import SLURMRunner, WorldTooSmallException  # noqa: E402

signal.signal(signal.SIGINT, _interrupt)  # which dask-jobqueue took

SCHEDULER, DRIVER = 0, 1
"""Tasks that compute nothing."""

MEMORY_SHARE = 0.9
"""Of a task's memory, what its worker may fill; its nanny needs some, and SLURM must not be the one to end it."""

_joined: dict[Path, _Runner] = {}
"""The allocation that this process drives, by folder."""


def machine(config: ClusterConfig) -> Machine:
    """What the workers of this allocation have together.

    Raises:
        ConfigError: This is no task of an allocation, and the configuration does not say it either.
    """
    workers, memory_gb = config.workers, config.memory_gb
    if "SLURM_NTASKS" not in os.environ:
        if workers == "auto" or memory_gb == "auto":
            raise ConfigError(
                "cluster.kind is 'slurm-allocation', but this is no task of SLURM (SLURM_NTASKS is not set). Run it with "
                "`srun --ntasks=N halotile run ...` (deploy/slurm/allocation.sbatch does), or, to plan outside, set "
                "cluster.workers, cluster.memory_gb and compute.threads."
            )
        return Machine(CPU_COUNT * workers, int(memory_gb * 1e9) * workers, workers, device="cpu")
    number = max(int(os.environ["SLURM_NTASKS"]) - 2, 1)
    cores = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    memory_bytes = _task_memory_bytes(cores) if memory_gb == "auto" else int(memory_gb * 1e9)
    device = "cuda" if os.environ.get("CUDA_VISIBLE_DEVICES") else "cpu"
    return Machine(cores * number, memory_bytes * number, number, device)


def _task_memory_bytes(cores: int) -> int:
    """What SLURM gives a task of this step, less what its nanny needs."""
    if each := os.environ.get("SLURM_MEM_PER_CPU"):
        found = int(each) * cores
    elif node := os.environ.get("SLURM_MEM_PER_NODE"):
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)
        found = int(node) * nodes // int(os.environ["SLURM_NTASKS"])
    else:
        raise ConfigError(
            "SLURM does not say how much memory a task has (no --mem or --mem-per-cpu was asked for). Set cluster.memory_gb."
        )
    return int(found * 2**20 * MEMORY_SHARE)


@contextmanager
def opened(config: ClusterConfig, crew: Crew, folder: Path) -> Iterator[Opened]:
    """The allocation's scheduler; all of its tasks end with this context."""
    take_part(config, folder, threads=crew.threads, memory_bytes=crew.memory_bytes)
    runner = _joined.pop(folder)
    try:
        yield Opened(str(runner.scheduler_address), runner.security)
    finally:
        with suppress(OSError):
            runner.close()


def take_part(config: ClusterConfig, folder: Path, *, threads: int, memory_bytes: int) -> None:
    """Be what this task is to be: scheduler and workers end the process when the run is over, the driver returns at once.

    Args:
        config: The cluster.
        folder: Where the tasks find one another.
        threads: Compute threads of a worker.
        memory_bytes: Limit of a worker.

    Raises:
        ConfigError: This is no task of an allocation, or there are too few of them.
    """
    if folder in _joined:
        return
    if "SLURM_PROCID" not in os.environ:
        machine(config.model_copy(update={"workers": "auto"}))  # says it
    task = int(os.environ["SLURM_PROCID"])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    step = "-".join(os.environ.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "RESTART_COUNT", "STEP_ID"))
    place = {"interface": config.interface} if config.interface else {}
    scheduler_place = place or {"host": config.host}
    with dask.config.set(SETTINGS):
        security = _security(config, folder / f"tls-{step}", writes=task == SCHEDULER)
        if task != DRIVER:
            signal.signal(signal.SIGINT, lambda *_: sys.exit())  # how the runner ends a task that has served
        try:
            runner = _Runner(
                security,
                scheduler_file=str(folder / f"scheduler-{step}.json"),
                worker_class="distributed.Nanny",
                scheduler_options={
                    "dashboard_address": "127.0.0.1:0",
                    "extensions": EXTENSIONS,
                    "security": security,
                    **scheduler_place,
                },
                worker_options={
                    "nthreads": 1,
                    "memory_limit": memory_bytes,
                    "env": worker_environment(threads),
                    "security": security,
                    "local_directory": os.environ.get("TMPDIR", "/tmp"),
                    "silence_logs": logging.CRITICAL,
                    **place,
                },
            )
        except WorldTooSmallException as error:
            raise ConfigError(f"cluster.kind 'slurm-allocation': {error}") from error
    _joined[folder] = runner


def _security(config: ClusterConfig, folder: Path, *, writes: bool) -> Security | None:
    """The site's certificates, or those that the scheduler's task makes for all."""
    if isinstance(config.security, TlsConfig):
        return security_of(config.security)
    if config.security == "none" or config.on_loopback:
        return None
    if writes:
        temporary_files(folder, own_security(config))
    return security_of(TlsConfig(**{f"{name}_file": str(folder / f"{name}.pem") for name in ("ca", "cert", "key")}), wait=True)


class _Runner(SLURMRunner):
    """SLURMRunner, with TLS, and patient with a scheduler file that is half written."""

    def __init__(self, security: Security | None, **options: Any) -> None:
        self.security = security
        super().__init__(**options)

    async def get_scheduler_address(self) -> str:
        while True:
            with suppress(FileNotFoundError, json.JSONDecodeError, KeyError):
                return json.loads(Path(self.scheduler_file).read_text())["address"]
            await asyncio.sleep(0.2)

    async def before_worker_start(self) -> None:
        self.worker_options["scheduler_ip"] = await self.get_scheduler_address()
        self.worker_options.pop("scheduler_file", None)

    async def before_client_start(self) -> None:
        if self.security:
            arguments = self.security.get_connection_args("client")
            self.scheduler_comm = rpc(self.scheduler_address, connection_args=arguments)

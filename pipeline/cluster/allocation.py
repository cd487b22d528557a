"""`cluster.kind: slurm-allocation`: the tasks of one `srun` are the cluster; nothing is submitted, and no server is needed.

    srun --ntasks=N --kill-on-bad-exit=0 --wait=0 halotile run run.yaml

Every task runs the same command. dask-jobqueue's SLURMRunner makes task 0 the scheduler, task 1 the driver, all others workers;
they find one another by a file in the run directory, which names the step, so that a requeued job does not find its old self.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import dask
from dask.system import CPU_COUNT
from distributed import Scheduler
from distributed.core import rpc
from distributed.security import Security

from pipeline.cluster.jobqueue import SLURMRunner, WorldTooSmallException
from pipeline.cluster.kind import OpenCluster, WorkerSpec, connect
from pipeline.cluster.pages import SchedulerWithoutPages, WorkerWithoutPages
from pipeline.cluster.security import keep_keys, own_security, security_in, security_of, temporary_files
from pipeline.cluster.settings import SETTINGS, scheduler_options, worker_environment
from pipeline.config import ClusterConfig, TlsConfig
from pipeline.core.machine import Machine
from pipeline.errors import ConfigError

SCHEDULER, DRIVER = 0, 1
"""Tasks that compute nothing."""

MEMORY_SHARE = 0.9
"""Of a task's memory, what its worker may fill; its nanny needs some, and SLURM must not be the one to end it."""

START_SECONDS, LOST_SECONDS = 300, 30
"""How long a scheduler waits for its driver; and after its death, as a nanny after the scheduler's."""

CLOSE_SECONDS = 10


def machine(config: ClusterConfig) -> Machine:
    """What the workers of this allocation have together.

    Raises:
        ConfigError: This is no task of an allocation, and the configuration does not say it either.
    """
    workers, memory_gb = config.workers, config.memory_gb
    if "SLURM_NTASKS" not in os.environ:
        if workers == "auto" or memory_gb == "auto":
            raise _no_task()
        return Machine(CPU_COUNT * workers, int(memory_gb * 1e9) * workers, workers, device="cpu")
    number = max(int(os.environ["SLURM_NTASKS"]) - 2, 1)
    cores = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    memory_bytes = _task_memory_bytes(cores) if memory_gb == "auto" else int(memory_gb * 1e9)
    device = "cuda" if os.environ.get("CUDA_VISIBLE_DEVICES") else "cpu"
    return Machine(cores * number, memory_bytes * number, number, device)


def _task_memory_bytes(cores: int) -> int:
    """What SLURM gives a task of this step, less what its nanny needs."""
    if each := os.environ.get("SLURM_MEM_PER_CPU"):
        mebibytes = int(each) * cores
    elif node := os.environ.get("SLURM_MEM_PER_NODE"):
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)
        mebibytes = int(node) * nodes // int(os.environ["SLURM_NTASKS"])
    else:
        raise ConfigError(
            "SLURM does not say how much memory a task has (no --mem or --mem-per-cpu was asked for). Set cluster.memory_gb."
        )
    return int(mebibytes * 2**20 * MEMORY_SHARE)


@contextmanager
def join(config: ClusterConfig, threads: Literal["auto"] | int, folder: Path) -> Iterator[OpenCluster]:
    """Take this task's part in the allocation: scheduler and workers end here when the run is over, the driver goes on.

    Gives the driver the allocation's scheduler.

    Args:
        config: The cluster.
        threads: Compute threads of a worker; auto: the task's cores.
        folder: Where the tasks find one another.

    Raises:
        ConfigError: This is no task of an allocation, or there are too few of them.
    """
    offered = machine(config)
    number = offered.workers or 1
    if "SLURM_PROCID" not in os.environ:
        raise _no_task()
    runner = _runner(
        config, offered.cores // number if threads == "auto" else threads, offered.memory_bytes // number, folder
    )
    scheduler = OpenCluster(str(runner.scheduler_address), runner.security)
    try:
        with connect(scheduler):  # as long as this process lives
            yield scheduler
    finally:
        with suppress(OSError):
            runner.close()
        runner.scheduler_file.unlink(missing_ok=True)
        shutil.rmtree(runner.keys, ignore_errors=True)


@contextmanager
def start(config: ClusterConfig, spec: WorkerSpec, folder: Path) -> Iterator[OpenCluster]:
    """As `join`, for whoever has not joined the allocation yet."""
    with join(config, spec.threads, folder) as scheduler:
        yield scheduler


def _runner(config: ClusterConfig, threads: int, memory_bytes: int, folder: Path) -> _Runner:
    """Returns in the driver's task only."""
    task = int(os.environ["SLURM_PROCID"])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    step = "-".join(os.environ.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "RESTART_COUNT", "STEP_ID"))
    keys = folder / f"tls-{step}"
    place = {"interface": config.interface} if config.interface else {}
    security = _security(config, keys, writes=task == SCHEDULER)
    if task != DRIVER:
        signal.signal(signal.SIGINT, lambda *_: sys.exit())  # how the runner ends a task that has served
        # All tasks are told of the walltime's end, and the processes of workers die of it: their nannies would start others.
        # The scheduler stays for the driver, who ends it.
        signal.signal(signal.SIGTERM, lambda *_: None if task == SCHEDULER else sys.exit())
        logging.getLogger("distributed").setLevel(logging.ERROR)
    dask.config.set(SETTINGS)
    try:
        return _Runner(
            security,
            keys,
            scheduler_file=str(folder / f"scheduler-{step}.json"),
            worker_class="distributed.Nanny",
            scheduler_options={
                **scheduler_options(config),
                "security": security,
                **(place or {"host": config.host}),
            },
            worker_options={
                "worker_class": WorkerWithoutPages,
                "nthreads": 1,
                "memory_limit": memory_bytes,
                "death_timeout": LOST_SECONDS,
                "env": worker_environment(threads),
                "security": security,
                "local_directory": os.environ.get("TMPDIR", "/tmp"),
                "silence_logs": logging.CRITICAL,
                **place,
            },
        )
    except WorldTooSmallException as error:
        raise ConfigError(f"cluster.kind 'slurm-allocation': {error}") from error


def _no_task() -> ConfigError:
    return ConfigError(
        "cluster.kind is 'slurm-allocation', but this is no task of SLURM (SLURM_PROCID is not set). Run it with "
        "`srun --ntasks=N halotile run ...` (deploy/slurm/allocation.sbatch does), or, to plan outside, set cluster.workers, "
        "cluster.memory_gb and compute.threads."
    )


def _security(config: ClusterConfig, folder: Path, *, writes: bool) -> Security | None:
    """The site's certificates, or those that the scheduler's task makes for all."""
    if isinstance(config.security, TlsConfig):
        return security_of(config.security)
    if config.security == "none":
        return None
    if writes:
        kept = ExitStack()
        kept.enter_context(keep_keys(folder))
        atexit.register(kept.close)  # this task ends when its scheduler does
        temporary_files(folder, own_security(config))
    return security_in(folder, wait=True)


class _Runner(SLURMRunner):
    """SLURMRunner, with TLS, and patient with a scheduler file that is half written."""

    def __init__(self, security: Security | None, keys: Path, **options: Any) -> None:
        self.security, self.keys = security, keys
        super().__init__(**options)

    async def get_scheduler_address(self) -> str:
        while True:
            with suppress(FileNotFoundError, json.JSONDecodeError, KeyError):
                address: str = json.loads(Path(self.scheduler_file).read_text())["address"]
                return address
            await asyncio.sleep(0.2)

    async def start_scheduler(self) -> None:
        async with SchedulerWithoutPages(**self.scheduler_options) as scheduler:
            await self.set_scheduler_address(scheduler)
            await self.on_scheduler_start(scheduler)
            await scheduler.finished()

    async def before_worker_start(self) -> None:
        self.worker_options["scheduler_ip"] = await self.get_scheduler_address()
        self.worker_options.pop("scheduler_file", None)

    async def before_client_start(self) -> None:
        if self.security:
            arguments = self.security.get_connection_args("client")
            self.scheduler_comm = rpc(self.scheduler_address, connection_args=arguments)  # type: ignore[assignment]  # None before

    async def on_scheduler_start(self, scheduler: Scheduler) -> None:
        self._watch = asyncio.create_task(_end_without_driver(scheduler))

    async def _close(self) -> None:
        with suppress(TimeoutError):  # of a scheduler that is gone
            await asyncio.wait_for(super()._close(), CLOSE_SECONDS)


async def _end_without_driver(scheduler: Scheduler) -> None:
    """End a scheduler, and with it its workers, whose driver was killed: all would wait for the walltime."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if len(scheduler.clients) > 1:  # one is the scheduler's own
            deadline = time.monotonic() + LOST_SECONDS
        await asyncio.sleep(1)
    await scheduler.close(reason="its driver is gone")

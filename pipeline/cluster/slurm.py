"""`cluster.kind: slurm`: one job of SLURM a worker, submitted from here; jobs that are lost are submitted again.

dask-jobqueue writes the scripts and submits them. What it does not do is look after jobs that are gone: one that is cancelled,
preempted, killed for its memory or by its walltime, or that never came to run, would be missing for good. So the queue is
asked every few seconds, and what is not in it any more is replaced.
"""

from __future__ import annotations

import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
from dask.config import serialize
from distributed.security import Security

from pipeline.cluster.jobqueue import SLURMCluster, SLURMJob
from pipeline.cluster.kind import OpenCluster, WorkerSpec
from pipeline.cluster.pages import WORKER_CLASS, SchedulerWithoutPages
from pipeline.cluster.security import share_security
from pipeline.cluster.settings import SETTINGS, check_place, scheduler_options, worker_environment
from pipeline.cluster.worker import ENDS
from pipeline.config import ClusterConfig, SlurmConfig
from pipeline.core.machine import Machine
from pipeline.errors import ConfigError, InferenceError
from pipeline.thread_variables import FAMILIES, LEFT, SINGLE

log = logging.getLogger("pipeline")

QUEUE_SECONDS = 5.0
"""Between two questions to the queue."""

COMMAND_SECONDS = 60.0
"""Limit of a question; a busy controller takes its time."""

IN_VAIN = 3
"""So many jobs in a row (or as many as are wanted) that end before their worker has joined end the run."""

DEATH_SECONDS = 60
"""After so long without its scheduler a job ends itself: its driver is gone."""

LOGS = {"e": ".err", "o": ".out"}
"""What a job writes: sbatch's option, and the end of the file's name."""

END_SECONDS = 30
"""Before its walltime a worker leaves in order, whatever it is at."""

MEMORY_FACTOR, MEMORY_BYTES = 1.05, 500_000_000
"""A job asks for so much more than its worker may fill: the worker's nanny ends it before SLURM ends the job."""


def machine(config: ClusterConfig) -> Machine:
    """What all jobs have together; the queue is not asked."""
    asked, workers, memory_bytes = _settings(config)
    device = "cuda" if asked.gpus else "cpu"
    return Machine(asked.cores * workers, memory_bytes * workers, workers, device)


@contextmanager
def start(config: ClusterConfig, spec: WorkerSpec, folder: Path) -> Iterator[OpenCluster]:
    """Submit jobs; all are cancelled at the end.

    Raises:
        ConfigError: SLURM is not there, or refuses such jobs.
    """
    check_place(config)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (
        dask.config.set(SETTINGS),
        share_security(config, folder) as security,
        SLURMCluster(**_options(config, spec, folder, security)) as cluster,
    ):
        _try_out(cluster)
        jobs = _Jobs(cluster, spec.workers, logs=Path(_settings(config)[0].log_directory or folder))
        jobs.submit()
        try:
            yield OpenCluster(cluster, tend=jobs.tend)
        finally:
            jobs.close()


def _settings(config: ClusterConfig) -> tuple[SlurmConfig, int, int]:
    """What a job shall have, how many there shall be, and bytes of each."""
    if config.slurm is None or config.workers == "auto" or config.memory_gb == "auto":
        raise ConfigError("cluster.kind slurm needs cluster.slurm, workers and memory_gb; see configs/slurm.yaml.")
    return config.slurm, config.workers, int(config.memory_gb * 1e9)


class _QuotedJob(SLURMJob):
    """A job whose script is right whatever its paths are called: dask-jobqueue joins words by spaces, and the shell parts them."""

    def __init__(
        self, *arguments: Any, security: Security | None = None, worker_extra_args: Sequence[str] = (), **options: Any
    ) -> None:
        words = [*worker_extra_args]
        for part, file in (security.get_tls_config_for_role("worker") if security else {}).items():
            words += [] if part == "ciphers" else [f"--tls-{part.replace('_', '-')}", file]
        super().__init__(*arguments, worker_extra_args=[*map(shlex.quote, words)], **options)


def _options(config: ClusterConfig, spec: WorkerSpec, folder: Path, security: Security | None) -> dict[str, Any]:
    """As SLURMCluster names them.

    Raises:
        ConfigError: A folder of the jobs has a name that no script can hold.
    """
    asked, _, _ = _settings(config)
    place = {"interface": config.interface} if config.interface else {"host": config.host}
    lifetime = max(asked.walltime_seconds - END_SECONDS, asked.walltime_seconds // 2)
    logs = asked.log_directory or str(folder)
    if unfit := [path for path in (str(folder), logs) if not path.isprintable()]:
        raise ConfigError(
            f"Jobs of SLURM cannot have their logs and keys in {unfit[0]!r}: no line of a script can hold such a name. Give the folder "
            "another name."
        )
    name = f"halotile-{folder.parent.name.removesuffix('.run')}"
    return {
        "name": "slurm",
        "job_cls": _QuotedJob,
        "job_name": shlex.quote(name),
        "cores": 1,  # threads of Dask's, not of the network
        "processes": 1,
        "memory": spec.memory_bytes,
        "job_cpu": asked.cores,
        "job_mem": f"{int((spec.memory_bytes * MEMORY_FACTOR + MEMORY_BYTES) / 2**20)}M",
        "walltime": asked.walltime,
        "queue": asked.partition and shlex.quote(asked.partition),
        "account": asked.account and shlex.quote(asked.account),
        "job_directives_skip": [f"#SBATCH -{letter} {logs}/" for letter in LOGS],  # dask-jobqueue's, without quotes
        "job_extra_directives": _directives(asked, f"{logs}/{name}"),
        "job_script_prologue": _prologue(asked, spec),
        "worker_extra_args": ["--lifetime", f"{lifetime}s", "--no-dashboard", "--worker-class", WORKER_CLASS],
        "python": asked.python or shlex.quote(sys.executable),
        "death_timeout": DEATH_SECONDS,
        "log_directory": logs,
        "local_directory": "/tmp",
        "interface": config.interface,
        "security": security,
        "scheduler_cls": SchedulerWithoutPages,
        "scheduler_options": {**scheduler_options(config), **place},
        "silence_logs": logging.CRITICAL,
    }


def _directives(asked: SlurmConfig, log: str) -> list[str]:
    """Those that dask-jobqueue does not write, or not for every name; sbatch takes quotes as a shell does, and `%` as its own."""
    card = f"--gres=gpu:{asked.gpu_type}:1" if asked.gpu_type else "--gres=gpu:1"
    return [
        *(f"-{letter} {shlex.quote(log.replace('%', '%%') + '-%J' + end)}" for letter, end in LOGS.items()),
        "--no-requeue",  # a requeued job would wait two minutes, and be replaced meanwhile
        *([shlex.quote(card)] if asked.gpus else []),
        *asked.directives,
    ]


_FAMILIES = " ".join(f'"${{!{family}@}}"' for family in FAMILIES)
_FORGET = (
    f"for name in {_FAMILIES} {' '.join(sorted(SINGLE))}; do "
    f'case $name in {"|".join(sorted(LEFT))}) ;; *) unset "$name" ;; esac; done'
)
"""What a site's modules say of threads: `pipeline.thread_variables.meddles`, in the job's shell."""


def _prologue(asked: SlurmConfig, spec: WorkerSpec) -> list[str]:
    """Lines of a job before its worker starts."""
    variables = worker_environment(spec.threads) | {"DASK_INTERNAL_INHERIT_CONFIG": serialize(SETTINGS)}
    return [
        *(f"module load {shlex.quote(name)}" for name in asked.modules),
        *asked.prologue,
        _FORGET,
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        f"export {ENDS}=$(( $(date +%s) + {asked.walltime_seconds - END_SECONDS} ))",
    ]


def _try_out(cluster: SLURMCluster) -> None:
    """Have SLURM say what it thinks of such a job, before any is in the queue.

    Raises:
        ConfigError: It would not take one.
    """
    try:
        with cluster._dummy_job.job_file() as script:
            answer = subprocess.run(
                ["sbatch", "--test-only", script], capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
            )
    except FileNotFoundError as error:
        raise ConfigError(
            "cluster.kind is 'slurm', but there is no sbatch here. Run where jobs can be submitted, or choose another kind."
        ) from error
    except subprocess.TimeoutExpired:
        log.warning("SLURM did not answer within %.0f s", COMMAND_SECONDS)
        return
    if answer.returncode:
        raise ConfigError(
            f"SLURM refuses the jobs of cluster.slurm: {answer.stderr.strip() or answer.stdout.strip()}. "
            "Correct partition, account, walltime, cores, gpus, memory_gb or directives."
        )


class _Jobs:
    """The jobs of a cluster, kept at their number."""

    def __init__(self, cluster: SLURMCluster, wanted: int, logs: Path) -> None:
        self._cluster, self._wanted, self._logs = cluster, wanted, logs
        self._looked = time.monotonic()
        self._message = ""
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="squeue")  # tiles do not wait for a slow controller
        self._asked: Future[dict[str, str] | None] | None = None
        self._joined: set[str] = set()  # jobs whose worker was seen
        self._in_vain = 0  # jobs, one after another, that ended before theirs was

    def submit(self) -> None:
        """As many as are missing."""
        self._cluster.sync(self._replace, frozenset())

    def close(self) -> None:
        """Ask no more."""
        self._aside.shutdown(wait=False, cancel_futures=True)

    def tend(self) -> str:
        """Replace the jobs that the queue no longer knows; says how the others are.

        Raises:
            InferenceError: Job after job ends before its worker has joined: more of them would too.
        """
        scheduler = self._cluster.scheduler
        present = {worker.name for worker in list(scheduler.workers.values())} if scheduler else set()
        joined = {job.job_id for name, job in self._cluster.workers.items() if name in present} - self._joined
        if joined:
            self._joined, self._in_vain = self._joined | joined, 0
        if self._asked is None and time.monotonic() - self._looked >= QUEUE_SECONDS:
            self._asked = self._aside.submit(
                _queue, [job.job_id for job in self._cluster.workers.values() if job.job_id]
            )
        if self._asked is not None and self._asked.done():
            states, self._asked, self._looked = self._asked.result(), None, time.monotonic()
            if states is not None:
                self._message = _counts(states)
                self._cluster.sync(self._replace, frozenset(states))
        return self._message

    async def _replace(self, known: frozenset[str]) -> None:
        cluster = self._cluster
        lost = {name: job.job_id for name, job in cluster.workers.items() if job.job_id not in known}
        if lost:
            self._in_vain += sum(job is not None and job not in self._joined for job in lost.values())
            if self._in_vain >= max(IN_VAIN, self._wanted):
                raise self._useless(max(str(job) for job in lost.values()))
            log.warning("%d job(s) of SLURM are gone and replaced: %s", len(lost), ", ".join(map(str, lost.values())))
        for name in lost:
            cluster.worker_spec.pop(name, None)
        try:
            await cluster._correct_state()  # forgets them first: a new one may get the name of one that is gone
            while len(cluster.worker_spec) < self._wanted:
                cluster.worker_spec.update(cluster.new_worker_spec())
            await cluster._correct_state()
        except RuntimeError as error:  # a limit of jobs, a controller that restarts
            log.warning("SLURM did not take a job, which is tried again: %s", _last_line(error))

    def _useless(self, job: str) -> InferenceError:
        logs = sorted(self._logs.glob(f"*-{job}.err"))
        lines = logs[0].read_text(errors="replace").strip().splitlines()[-5:] if logs else []
        log_end = "\n".join(f"    {line}" for line in lines) or "    (nothing)"
        return InferenceError(
            f"{self._in_vain} jobs of SLURM, one after another, ended before their worker had joined. The log of the last, in "
            f"'{self._logs}', ends with:\n{log_end}\nLikely the nodes lack the Python or a module (cluster.slurm.python, modules, "
            "prologue), or cannot reach this machine (cluster.interface, cluster.host). Run again to resume: what is finished is "
            "kept."
        )


def _queue(jobs: list[str]) -> dict[str, str] | None:
    """States by job, of those that the queue knows; None where it does not answer."""
    command = ["squeue", "--noheader", "--format=%i %T", "--jobs", ",".join(jobs) or "0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return None
    pairs = (line.split() for line in answer.stdout.splitlines())
    return {pair[0]: pair[1] for pair in pairs if pair[1] not in OVER}


OVER = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "COMPLETING",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)
"""States of jobs that will compute no more; the queue still shows them for a while."""


def _counts(states: dict[str, str]) -> str:
    counts = {state: list(states.values()).count(state) for state in sorted(set(states.values()))}
    return ", ".join(f"{count} jobs {state.lower()}" for state, count in counts.items()) or "no job in the queue"


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and line.strip() != "stderr:"]
    return lines[-1] if lines else type(error).__name__

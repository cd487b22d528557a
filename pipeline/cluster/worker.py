"""What a worker process does with a tile's index: everything else it opens itself, once."""

from __future__ import annotations

import functools
import logging
import os
import socket
import threading
from dataclasses import dataclass, replace
from logging import Logger, LoggerAdapter
from pathlib import Path

from distributed import Worker, get_worker

from pipeline.cluster.settings import CORES
from pipeline.core.ledger import TileRecord
from pipeline.core.plan import Plan
from pipeline.engine import infer_tile
from pipeline.errors import InferenceError, StorageError
from pipeline.logs import about
from pipeline.networks.checkpoint import Checkpoint, load_checkpoint
from pipeline.networks.frozen import of_plan
from pipeline.networks.predictor import TilePredictor
from pipeline.networks.predictors import others_of, predictor_of
from pipeline.networks.probe import self_test
from pipeline.networks.threads import check_threads, threads
from pipeline.outputs.image import Image
from pipeline.outputs.rundir import RunDirectory
from pipeline.outputs.sink import UnitSink
from pipeline.thread_variables import lowered
from pipeline.volumes.cached import cached
from pipeline.volumes.volume import Volume, open_volume

ENDS = "HALOTILE_ENDS"
"""Environment variable of a job: when it will be ended, seconds since the epoch."""

SURVEYED = "halotile_survey"
"""What a worker keeps its survey's open input under; see `_job_cache`."""

NORMS = "halotile_norms"
"""Under which a worker keeps what it opened for a pass of the survey that looks at the network's maps."""

_computing = threading.Lock()
"""One tile at a time per process, whoever shares it: the kernel knows a tile's lock by the process that holds it."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is told: a few strings, whatever the volume's size.

    Args:
        output: Path of the output; plan and locks lie beside it.
        fingerprint: Of the plan.
        token: Of the driver; a worker whose driver was replaced begins no more tiles.
        statistics: Digest of what its survey has measured; empty where the plan has its numbers.
    """

    output: str
    fingerprint: str
    token: str
    statistics: str = ""


@dataclass(frozen=True)
class _OpenJob:
    """What a worker holds open for a job."""

    job: Job
    plan: Plan
    checkpoint: Checkpoint
    source: Volume
    predictor: TilePredictor
    image: Image
    directory: RunDirectory


def prepare(job: Job) -> float | None:
    """Open all that the tiles of a job need, so that the first one need not wait, and one error is told once.

    Memory is touched and code generated for the largest tile's shapes. A GPU also shows that it computes the network
    rightly, and holds that tile: later it would cost one.

    Returns:
        When this process will be ended, seconds since the epoch; None where it will not.
    """
    cache = _job_cache()
    with cache.opening:
        opened = cache.open(job)
        widest = opened.plan.grid.widest()
        if opened.predictor.is_used_to(widest):
            pass  # by an earlier run of this network
        elif opened.plan.compute.device == "cuda":
            for checkpoint in (opened.checkpoint, *others_of(opened.plan)):
                self_test(checkpoint, opened.plan)
            opened.predictor.rehearse(widest)
        else:
            opened.predictor.warm_up(widest)
        _look_at_threads(job, opened.plan)
    return ends_at()


def _look_at_threads(job: Job, plan: Plan) -> None:
    """Threads and precision are the plan's, whoever started this process; a driver takes what would change them away.

    Raises:
        InferenceError: They are not.
    """
    if variables := lowered(os.environ):
        raise InferenceError(
            f"This worker's environment has {', '.join(variables)}, which lowers the precision that the plan has. Start it without."
        )
    if plan.compute.device == "cpu":
        cores = os.environ.get(CORES)
        for warning in check_threads(threads(), plan.compute.threads, int(cores) if cores else None):
            _about(job).warning("%s", warning)


def infer(job: Job, index: int) -> TileRecord:
    """Predict and write one tile of a job; see `engine.infer_tile`. Nobody else has the tile meanwhile, on any machine."""
    cache = _job_cache()
    with cache.opening:
        opened = cache.open(job)
    logger = _about(job, tile=index)
    try:
        return _infer(opened, index, job.token, logger)
    except Exception as error:
        logger.debug("failed: %s", error)  # it may be tried again; the driver tells the last attempt
        raise


def _infer(opened: _OpenJob, index: int, token: str, logger: LoggerAdapter[Logger]) -> TileRecord:
    tile = opened.plan.grid.tile(index)
    with _computing, opened.directory.tile(index, token):
        logger.debug("begins")
        record = infer_tile(
            tile,
            source=opened.source,
            predictor=opened.predictor,
            sink=UnitSink(opened.image.finest, tile.core, functools.partial(opened.directory.refuse_late, token)),
            nonfinite=opened.plan.nonfinite,
            fingerprint=opened.plan.fingerprint,
            read_slices=opened.plan.read_slices,
        )
    shares = f"read {record.read_seconds:.3f}, write {record.write_seconds:.3f}, wait {record.wait_seconds:.3f}"
    logger.debug("done in %.3f s, %s", record.seconds, shares)
    return replace(record, worker=str(get_worker().name))


def _about(job: Job, **fields: int) -> LoggerAdapter[Logger]:
    """The log; its records are the driver's in the end, which knows neither this worker nor the tile."""
    return about(run=Path(job.output).name, stage="infer", worker=str(get_worker().name), **fields)


class _JobCache:
    """What a worker keeps from one tile to the next: its present job, opened.

    Attributes:
        opening: Held while a job is opened: one network per worker, also where it has several threads.
    """

    def __init__(self) -> None:
        self.opening = threading.Lock()
        self._opened: _OpenJob | None = None

    def open(self, job: Job) -> _OpenJob:
        """A job, opened; it takes the place of the one before. To be called with `opening` held."""
        if self._opened is None or self._opened.job != job:
            directory = RunDirectory(job.output)
            plan = _load_plan(directory, job)
            before = self._opened.predictor if self._opened else None
            earlier = before if before and before.serves(plan) else None
            self._opened = before = None  # first: the networks and the buffers of two jobs need not fit
            vars(get_worker()).pop(NORMS, None)  # the survey's too
            self._opened = _open(directory, job, plan, earlier)
            level = logging.DEBUG if earlier else logging.INFO  # hundreds of small runs have the same workers
            _about(job).log(level, "ready: a worker on %s, device %s", socket.gethostname(), plan.compute.device)
        return self._opened

    def clear(self) -> None:
        self._opened = None


def _job_cache(dask_worker: Worker | None = None) -> _JobCache:
    """That of a worker, which Dask's own object keeps: tasks are functions, and have no other object that outlives them."""
    cache: _JobCache = vars(dask_worker or get_worker()).setdefault("halotile", _JobCache())
    return cache


def let_go(dask_worker: Worker) -> None:
    """On a worker, which Dask passes under this name: forget what was opened for a job, a network, its buffers, the card's memory; and a survey's input."""
    _job_cache(dask_worker).clear()
    vars(dask_worker).pop(SURVEYED, None)
    vars(dask_worker).pop(NORMS, None)


def ends_at() -> float | None:
    """When this process will be ended, seconds since the epoch; None where it will not."""
    return float(os.environ[ENDS]) if ENDS in os.environ else None


def plan_of(directory: RunDirectory, fingerprint: str) -> Plan:
    """The plan of a run, as its driver has it.

    Raises:
        StorageError: Another lies there.
    """
    plan = directory.load_plan()
    if plan is None or plan.fingerprint != fingerprint:
        raise StorageError(
            f"The plan in '{directory.path}' is not the one of this run: it was changed under the workers."
        )
    return plan


def _load_plan(directory: RunDirectory, job: Job) -> Plan:
    plan = plan_of(directory, job.fingerprint)
    if not job.statistics:
        return plan
    statistics = directory.load_statistics()
    if statistics is None or statistics.digest != job.statistics:
        raise StorageError(
            f"'{directory.statistics_path}' is not what this run has measured: it was changed under the workers."
        )
    return replace(plan, statistics=statistics)


def _open(directory: RunDirectory, job: Job, plan: Plan, earlier: TilePredictor | None) -> _OpenJob:
    plan = directory.located(plan)
    checkpoint = of_plan(load_checkpoint(plan.model.checkpoint, padding=plan.model.architecture.padding), plan)
    directory.meet_driver(job.token)
    volume = open_volume(plan.source.url, plan.source.selection)
    return _OpenJob(
        job=job,
        plan=plan,
        checkpoint=checkpoint,
        source=directory.counted(plan, cached(volume, plan.cost.cache_bytes)),
        predictor=predictor_of(checkpoint, plan, earlier),  # the first card: every worker sees its own only
        image=Image(plan),
        directory=directory,
    )

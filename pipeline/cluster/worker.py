"""What a worker process does with a tile's index: everything else it opens itself, once."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import TextIO

from distributed import get_worker

from pipeline.core.ledger import TileRecord
from pipeline.core.plan import Plan
from pipeline.engine import infer_tile
from pipeline.errors import StorageError
from pipeline.storage.output import Output
from pipeline.storage.rundir import RunDirectory
from pipeline.storage.sink import UnitSink
from pipeline.storage.volume import Volume, open_volume
from pipeline.unet.checkpoint import Checkpoint, load_checkpoint
from pipeline.unet.device import device_count
from pipeline.unet.predictor import UNetPredictor
from pipeline.unet.probe import self_test

_opening = threading.Lock()


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is told: a few strings, whatever the volume's size.

    Args:
        output: Path of the output; plan and locks lie beside it.
        fingerprint: Of the plan.
        token: Of the driver; a worker whose driver was replaced writes nothing more.
    """

    output: str
    fingerprint: str
    token: str


@dataclass(frozen=True)
class _Bench:
    """What a worker holds open for a job."""

    plan: Plan
    checkpoint: Checkpoint
    source: Volume
    predictor: UNetPredictor
    output: Output
    lock: TextIO


def prepare(job: Job) -> None:
    """Open all that the tiles of a job need, so that the first one need not wait, and one error is told once.

    Memory is touched and code generated for the largest tile's shapes. A GPU also shows that it computes the network
    rightly, and holds that tile: later it would cost one.
    """
    with _opening:  # one model a process, also where a worker has several threads
        bench = _bench(job)
        widest = bench.plan.grid.widest()
        if bench.plan.compute.device == "cuda":
            self_test(bench.checkpoint, bench.plan)
            bench.predictor.rehearse(widest)
        else:
            bench.predictor.warm_up(widest)


def infer(job: Job, index: int) -> TileRecord:
    """Predict and write one tile of a job; see `engine.infer_tile`."""
    with _opening:
        bench = _bench(job)
    tile = bench.plan.grid.tile(index)
    record = infer_tile(
        tile,
        source=bench.source,
        predictor=bench.predictor,
        sink=UnitSink(bench.output, tile.core),
        nonfinite=bench.plan.nonfinite,
        fingerprint=bench.plan.fingerprint,
        read_slices=bench.plan.read_slices,
    )
    return replace(record, worker=str(get_worker().name))


_benches: dict[Job, _Bench] = {}
"""What the worker's present job needs; one entry at most."""


def _bench(job: Job) -> _Bench:
    if job not in _benches:
        let_go()  # first: the network and the buffers of two jobs need not fit
        _benches[job] = _opened(job)
    return _benches[job]


def let_go() -> None:
    """Close what was opened for a job, its lock too."""
    for bench in _benches.values():
        bench.lock.close()
    _benches.clear()


def _opened(job: Job) -> _Bench:
    directory = RunDirectory(job.output)
    lock = directory.enlist_worker(job.token)
    plan = directory.load_plan()
    if plan is None or plan.fingerprint != job.fingerprint:
        raise StorageError(
            f"The plan in '{directory.path}' is not the one of this run: it was changed under the workers."
        )
    architecture = plan.model.architecture
    checkpoint = load_checkpoint(plan.model.checkpoint, padding=architecture.padding)
    return _Bench(
        plan=plan,
        checkpoint=checkpoint,
        source=open_volume(plan.source.url, level=plan.source.level, axes=plan.source.axes),
        predictor=UNetPredictor(checkpoint, plan, _device_index(plan)),
        output=Output(plan),
        lock=lock,
    )


def _device_index(plan: Plan) -> int:
    """One GPU a process: workers are numbered, and take them in turn."""
    return int(get_worker().name) % max(device_count(plan.compute.device), 1)

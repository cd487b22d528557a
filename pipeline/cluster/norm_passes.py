"""What a worker process does with a tile in a pass that looks at maps of the network: it computes them, and sends back what they add up to."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from distributed import get_worker

from pipeline.cluster.worker import NORMS, ends_at, let_go, plan_of
from pipeline.core.frozen import Frozen
from pipeline.core.normalization import Normalization
from pipeline.core.plan import Plan
from pipeline.core.statistics import PartRecord
from pipeline.core.tiles.grid import Tile
from pipeline.engine import tile_slabs
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.networks.frozen import check_same
from pipeline.networks.norm_passes import NormLook, looked
from pipeline.outputs.rundir import RunDirectory
from pipeline.volumes.cached import cached
from pipeline.volumes.volume import Volume, open_volume

_looking = threading.Lock()
"""One tile at a time a process, as of `cluster.worker`."""


@dataclass(frozen=True, slots=True)
class NormJob:
    """What a worker is told of a pass.

    Args:
        output: Path of the output; the plan lies beside it, and the statistics that stand before the pass.
        fingerprint: Of the plan.
        token: Names the driver.
        number: Of the pass, 1 the first.
        of: Its digest, which goes into records.
        rule: By which stored values become the network's input, with its numbers.
    """

    output: str
    fingerprint: str
    token: str
    number: int
    of: str
    rule: Normalization


@dataclass(frozen=True)
class _Opened:
    """What a worker holds open for a job."""

    job: NormJob
    plan: Plan
    source: Volume
    network: NormLook


def prepare(job: NormJob) -> float | None:
    """Open all that the tiles of a pass need, before any is begun: one error is told once.

    Returns:
        When this process will be ended, seconds since the epoch; None where it will not.
    """
    with _looking:
        _open(job)
    return ends_at()


def look(job: NormJob, index: int) -> str:
    """One tile of a pass, as the line of its record. Nothing is written.

    Raises:
        StorageError: The plan is another.
        InferenceError: The input cannot be read or is not finite, or the device's memory is too small.
    """
    with _looking:
        opened = _open(job)
        plan, tile = opened.plan, opened.plan.grid.tile(index)
        schedule = opened.network.schedule(tile.core)
        if schedule is None:
            return PartRecord(index, job.of, ()).to_line()
        shown = Tile(index, tile.core, schedule.window)
        slabs = tile_slabs(
            shown,
            list(opened.network.reads(schedule)),
            source=opened.source,
            nonfinite=plan.nonfinite,
            read_slices=plan.read_slices,
        )
        found = looked(opened.network, shown, schedule, slabs, job.rule)
    return PartRecord(index, job.of, found).to_line()


def _open(job: NormJob) -> _Opened:
    """What a job reads and computes with. The worker keeps it for further tiles; what it kept for others goes, so that two networks need not fit."""
    worker = get_worker()
    kept: _Opened | None = vars(worker).get(NORMS)
    if kept is None or kept.job != job:
        let_go(worker)
        kept = vars(worker)[NORMS] = _opened(job)
    return kept


def _opened(job: NormJob) -> _Opened:
    directory = RunDirectory(job.output)
    plan = plan_of(directory, job.fingerprint)
    checkpoint = load_checkpoint(directory.checkpoint_path(plan), padding=plan.model.architecture.padding)
    check_same(checkpoint, plan)
    numbers = Frozen.from_dict({"numbers": directory.load_norms(job.of), "figures": {}}).numbers
    volume = open_volume(plan.source.url, plan.source.selection)
    source = directory.counted(plan, cached(volume, plan.cost.cache_bytes))
    return _Opened(job, plan, source, NormLook.of_plan(checkpoint, plan, job.number, numbers))

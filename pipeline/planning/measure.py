"""How long a plan will take here, from a short measurement: a few turns of its own tile, and one block of its input."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, prod
from statistics import median

import numpy as np

from pipeline.core.frozen import Sample, WholeVolume
from pipeline.core.geometry.box import Box, Span
from pipeline.core.geometry.mirror import shown
from pipeline.core.network.blended import BlendedStream, whole_needs
from pipeline.core.network.schedule import Schedule
from pipeline.core.plan import Plan
from pipeline.core.tiles.cost import multiply_adds, pass_multiply_adds, read_spans, rounded_out, turn_multiply_adds
from pipeline.core.tiles.grid import Tile
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.frozen import freeze, localised
from pipeline.networks.predictor import TilePredictor
from pipeline.networks.predictors import predictor_of
from pipeline.networks.threads import threads
from pipeline.volumes.volume import open_volume

TURNS = 4
"""Turns that are timed, once all layers take part."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a run of a plan will take.

    Args:
        workers: That share the tiles, each as fast as one alone was.
        compute_seconds: Until the last of them has computed its last tile.
        read_seconds: That each reads and decodes beside it.
        multiply_adds_a_second: Of one worker.
        voxels_a_second: Of the volume, by all workers together.
        frozen_seconds: That statistics of norms over the whole input take first: of a sample in one process, of the whole volume on the workers.
    """

    workers: int
    compute_seconds: float
    read_seconds: float
    multiply_adds_a_second: float
    voxels_a_second: float
    frozen_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """From the first read to the last write: reading goes on beside the computation, and the slower rules."""
        return self.frozen_seconds + max(self.compute_seconds, self.read_seconds)


def expectation(plan: Plan, workers: int, checkpoint: Checkpoint) -> Expectation:
    """Measure, on this machine and in this process, what `workers` such processes will take for a plan; the survey's passes for `normalize` excluded.

    Raises:
        ModelError, StorageError, InferenceError: The model or the volume cannot be used.
    """
    rate = _arithmetic_rate(plan, checkpoint)
    tiles = len(plan.grid)
    rounds = ceil(tiles / workers) / tiles  # share of all tiles that the busiest worker computes
    compute = plan.cost.multiply_adds * rounds / rate
    read = plan.cost.voxels_decoded * rounds * _seconds_a_voxel_decoded(plan)
    fixed = plan.model.frozen
    if isinstance(fixed, WholeVolume):
        frozen = fixed.multiply_adds * rounds / rate
    else:
        frozen = _seconds_of_sample(plan, checkpoint, fixed) if fixed else 0.0
    return Expectation(workers, compute, read, rate, plan.source.voxels / max(compute, read), frozen)


def _seconds_of_sample(plan: Plan, checkpoint: Checkpoint, sample: Sample) -> float:
    """Of measuring the statistics of norms over the whole input: a patch a core is, of zeros; the sample is twice, as it is and in its parts."""
    number = min(threads().cores, sample.patches)
    patches = [np.zeros((plan.source.channels, *sample.patch), plan.source.dtype)] * number
    started = time.perf_counter()
    freeze(checkpoint, patches, replace(plan, survey=None).normalization, sample.context, parts=0)
    return (time.perf_counter() - started) * 2 * sample.patches / number


def _arithmetic_rate(plan: Plan, checkpoint: Checkpoint) -> float:
    """Multiply-adds a second of one worker, over its widest tile; the whole of it where it is short."""
    plan = plan.of_one_pass
    tile = plan.grid.widest()
    checkpoint = localised(checkpoint) if plan.model.frozen else checkpoint
    predictor = predictor_of(checkpoint, replace(plan, survey=None))  # the numbers of its sample take as long
    stream = plan.stream
    if isinstance(stream, BlendedStream):
        return _window_rate(stream, predictor, tile)
    schedule = stream.schedule(tile)
    turns = _turns_at_full_work(schedule) if plan.stream.graph.is_streamed else []
    if len(turns) <= TURNS:
        for _ in predictor.predict(tile, predictor.zeros(tile)):  # so that memory is there
            pass
        started = time.perf_counter()
        for _ in predictor.predict(tile, predictor.zeros(tile)):
            pass
        return multiply_adds(schedule) / (time.perf_counter() - started)
    last = turns[TURNS]
    asked: list[float] = []
    for _ in predictor.predict(tile, _noting(predictor.zeros(tile), asked)):
        if len(asked) > last:
            break
    seconds = median(b - a for a, b in pairwise(asked[turns[0] : last + 1]))
    return turn_multiply_adds(schedule) / seconds


def _window_rate(stream: BlendedStream, predictor: TilePredictor, tile: Tile) -> float:
    """Multiply-adds a second of one window of those that tiles are blended from; what is added up beside is little."""
    predictor.rehearse(tile)  # so that memory is there
    started = time.perf_counter()
    predictor.rehearse(tile)
    return pass_multiply_adds(stream.graph, whole_needs(stream.graph, stream.extent)) / (time.perf_counter() - started)


def _turns_at_full_work(schedule: Schedule) -> list[int]:
    """Turns in which every layer writes as many slices as it ever does, and the input goes on."""
    whole = range(schedule.turns)
    return [
        turn
        for turn in whole
        if schedule.core(turn).extent == schedule.slices(schedule.graph.output) and schedule.reads(turn + 1).extent
    ]


def _noting(slabs: Iterator[np.ndarray], asked: list[float]) -> Iterator[np.ndarray]:
    """The slabs, noting when each is asked for."""
    for slab in slabs:
        asked.append(time.perf_counter())
        yield slab


def _seconds_a_voxel_decoded(plan: Plan) -> float:
    """Of reading one block of the widest tile, from wherever the volume lies."""
    volume = open_volume(plan.source.url, plan.source.selection)
    tile = plan.grid.widest()
    window = tile.window
    block = next(read_spans(Span(window.start[0], window.stop[0]), volume.shape[0], plan.read_slices))
    inside, _ = shown(Box((block.start, *window.start[1:]), (block.stop, *window.stop[1:])), volume.shape)
    started = time.perf_counter()
    volume.read(inside)
    seconds = time.perf_counter() - started
    chunks = map(rounded_out, inside.start, inside.stop, plan.source.chunks, volume.shape)
    return seconds / prod(chunks)

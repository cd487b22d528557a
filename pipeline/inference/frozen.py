"""Statistics of norms over the whole input, of a plan: its sample read, measured, and compared with one pass over a region."""

from __future__ import annotations

import logging
import threading
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipeline.core.frozen import Frozen, Numbers, Sample, is_finite
from pipeline.core.geometry.box import Box, Triple, per_axis, round_up
from pipeline.core.geometry.mirror import shown, spread
from pipeline.core.normalization import Normalization
from pipeline.core.plan import Plan
from pipeline.errors import InferenceError, StorageError
from pipeline.networks.checkpoint import Checkpoint, load_checkpoint
from pipeline.networks.frozen import check_same, distances, freeze
from pipeline.planning.statistics import measured
from pipeline.volumes.values import finite_values
from pipeline.volumes.volume import Volume, open_volume

log = logging.getLogger("pipeline")

PARTS = 3
"""Disjoint parts of a sample, whose predictions are compared with those of the whole of it."""

REGION: Triple = (96, 96, 96)
"""Voxels of the region over which predictions are compared, at most; of a 2D network each slice is 384 a side."""


_measuring = threading.Lock()
"""One sample at a time: a dataset has several runs at once in this process, and memory is reckoned for one."""


def measure_frozen(plan: Plan, checkpoint_path: Path, volume: Volume, numbers: Normalization) -> Frozen | None:
    """The statistics that a plan's network is fixed by over a sample; None where it is by none.

    The same for the same plan and voxels, however many processors do it; other kinds of processors may differ in low bits, so what was measured is
    kept, and tiles stand by it.

    Args:
        plan: The plan.
        checkpoint_path: Where its network lies, as imported.
        volume: Its input.
        numbers: Of its normalisation.

    Raises:
        ModelError: The checkpoint is not the plan's.
        PlanError: Voxels are not finite.
        StorageError: They cannot be read, or another volume was put in the place of that which the plan names.
        InferenceError: The statistics are not finite.
    """
    sample = plan.model.frozen
    if not isinstance(sample, Sample):
        return None
    checkpoint = load_checkpoint(checkpoint_path, padding=plan.model.architecture.padding)
    check_same(checkpoint, plan)
    there, rule = volume, numbers
    if sample.url:
        there = open_volume(sample.url)
        if there.description.metadata_sha256 != sample.metadata:
            raise StorageError(
                f"Volume '{sample.url}' (model.frozen_from.url) changed after the plan was made. Put the first one back, or plan again with "
                "another output.url."
            )
        rule = measured(numbers, there, nonfinite=plan.nonfinite)
    with _measuring:
        patches = [_read(there, box, plan.nonfinite) for box in sample.boxes()]
        found, apart = freeze(checkpoint, patches, rule, sample.context, PARTS)
    check_finite(found, str(sample))
    figures: dict[str, object] = {"sample": str(sample), "parts": apart}
    if plan.model.architecture.padding == "same":
        figures |= _compared(checkpoint, found, volume, numbers, plan.nonfinite)
    return Frozen(found, figures)


def check_finite(numbers: Numbers, over: str) -> None:
    """Refuse statistics of norms that are none.

    Args:
        numbers: The statistics.
        over: What they are of, for a person.

    Raises:
        InferenceError: They are not finite.
    """
    if not is_finite(numbers):
        raise InferenceError(
            f"Statistics of norms over {over} are not finite: values overflow float32, or a channel has no variance and its norm no epsilon. Check "
            "normalize, and the network's weights."
        )


def _compared(
    checkpoint: Checkpoint, found: Numbers, volume: Volume, rule: Normalization, nonfinite: str
) -> dict[str, object]:
    """How far predictions are apart over the middle of the volume."""
    graph, ndim = checkpoint.architecture.graph, checkpoint.architecture.ndim
    extents = REGION if ndim == 3 else (1, 4 * REGION[1], 4 * REGION[2])
    halves = per_axis(lambda n, m: max(min(n, m) // 2, 1), extents, volume.shape)
    window = per_axis(round_up, halves, graph.stride)  # of other legal extents, twice as many need not be legal
    shape = per_axis(lambda n, m: n if m == 1 else 2 * n, window, extents)
    start = per_axis(lambda n, m: max(n - m, 0) // 2, volume.shape, shape)
    region = _read(volume, Box.of_shape(shape).moved(start), nonfinite)
    figures = asdict(distances(checkpoint, found, region, rule, window))
    return {key: list(value) if isinstance(value, tuple) else value for key, value in figures.items()}


def _read(volume: Volume, box: Box, nonfinite: str) -> np.ndarray:
    """Voxels of a box, (C, Z, Y, X), mirrored beyond the volume's ends."""
    inside, indices = shown(box, volume.shape)
    return spread(finite_values(volume, inside, nonfinite), indices)

"""One set of statistics a volume: by passes over all of it, or, where a rough answer will do, by a sample."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from pipeline.core.appearance import Appearance, appearance_of, sample_boxes
from pipeline.core.geometry.box import Box, widened
from pipeline.core.normalization import Normalization, spanning, unknown_mode
from pipeline.core.statistics import InconsistentPartsError, Parts, Survey, known, measure, most_passes
from pipeline.core.volume import Description
from pipeline.errors import StorageError
from pipeline.volumes.values import finite_values
from pipeline.volumes.volume import Volume

log = logging.getLogger("pipeline")

SAMPLE_BOXES = 16
"""Of a sample of a volume."""

READ_BYTES = 2**27
"""About how much is read at once, as float64."""


def survey_of(rule: Normalization, volume: Description) -> Survey | None:
    """The passes over a volume that measure the numbers of a rule; None where they are known without."""
    passes = most_passes(rule, volume.dtype)
    if not passes:
        return None
    box = widened(volume.chunks, volume.shape, volume.channels * 8, READ_BYTES)
    size = volume.channels * volume.voxels * np.dtype(volume.dtype).itemsize
    return Survey(box, passes, passes * size, len(_sample_boxes(volume)))


def measured(rule: Normalization, volume: Volume, *, nonfinite: str) -> Normalization:
    """`rule` with the numbers of this volume, measured in this process.

    `minmax` takes integers by their type's range and floats by the volume's own; `zscore` and `percentile` are of the
    whole volume, all channels together. Values that are not finite count as zero where `nonfinite` says so.

    Raises:
        PlanError: The volume holds values that are not finite.
        StorageError: It changed between two passes, or is not read alike each time.
    """
    what = volume.description
    survey = survey_of(rule, what)
    if survey is None:
        return known(rule, what.dtype)
    parts = Parts(what.shape, survey.box)
    try:
        return measure(
            rule, what.dtype, what.channels * what.voxels, parts, lambda box: finite_values(volume, box, nonfinite)
        )
    except InconsistentPartsError as error:
        raise StorageError(
            f"Volume '{what.url}' changed while its values were measured, or is not read alike each time: a pass found {error}. See that "
            "nobody writes to it, and run again."
        ) from error


def sampled(
    rule: Normalization, volume: Volume, *, nonfinite: str, boxes: Sequence[Box] | None = None
) -> Normalization:
    """`rule` with the numbers of a sample of this volume: near those of the whole, and never used in place of them.

    Args:
        rule: What is looked for.
        volume: What is looked at.
        nonfinite: What becomes of values that are not finite.
        boxes: Where; None for those of `appearance`: 16, a request or a few each, at places that follow from shape and chunks alone.

    Raises:
        PlanError: The sample holds values that are not finite.
        StorageError: It cannot be read.
    """
    if not rule.is_measured(volume.description.dtype):
        return known(rule, volume.description.dtype)
    where = _sample_boxes(volume.description) if boxes is None else boxes
    values = np.concatenate([finite_values(volume, box, nonfinite).ravel().astype(np.float64) for box in where])
    if rule.mode == "minmax":
        return spanning("minmax", values.min(), values.max())
    if rule.mode == "zscore":
        deviation = float(values.std())
        return Normalization("zscore", float(values.mean()), 1.0 / deviation if deviation > 0 else 1.0)
    if rule.mode == "percentile":
        low, high = np.percentile(values, (rule.low, rule.high))
        return spanning("percentile", low, high, low=rule.low, high=rule.high)
    raise unknown_mode(rule.mode)


def _sample_boxes(volume: Description) -> list[Box]:
    return sample_boxes(Box.of_shape(volume.shape), volume.chunks, SAMPLE_BOXES)


def appearance(
    volume: Volume,
    rule: Normalization,
    *,
    boxes: Sequence[Box] | None = None,
    voxel_size_nm: tuple[float, ...] | None = None,
) -> Appearance | None:
    """What a sample of a volume looks like to a network: 16 boxes, evenly spread, a request or a few each.

    A box that cannot be read is left out: a run that needs it fails by its tile.

    Args:
        volume: What is looked at.
        rule: With the numbers of this volume.
        boxes: Where; None for a sample of the whole.
        voxel_size_nm: Along z, y, x, where that is known.

    Returns:
        None where no box could be read, or none holds a finite value.
    """
    if boxes is None:
        boxes = _sample_boxes(volume.description)
    parts = []
    for box in boxes:
        try:
            parts.append(volume.read(box))
        except StorageError as error:
            log.warning("a box of the sample is left out: %s", error)
    if not parts:
        return None
    return appearance_of(parts, rule, dtype=volume.description.dtype, voxel_size_nm=voxel_size_nm)

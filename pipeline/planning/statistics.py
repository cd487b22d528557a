"""One set of statistics a volume, measured once, box by box, whatever the volume's size."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.core.appearance import Appearance, appearance_of, sample_boxes
from pipeline.core.geometry.box import Box, widened
from pipeline.core.normalization import Normalization, spanning
from pipeline.errors import PlanError, StorageError
from pipeline.volumes.volume import Volume

log = logging.getLogger("pipeline")

SAMPLE_BOXES = 16
"""Of a sample of a volume."""

READ_BYTES = 2**27
"""About how much is read at once, as float64."""

BINS = 2**16
"""Bins of a histogram."""

PASSES = 3
"""Histograms a percentile, each within a bin of the one before."""

Bracket = tuple[float, float, int]
"""Where a rank lies: least and largest value, and how many values are below."""


def measured(rule: Normalization, volume: Volume, *, nonfinite: str, box: Box | None = None) -> Normalization:
    """`rule` with the numbers of this volume, or of a box of it where a rough answer will do.

    `minmax` takes integers by their type's range and floats by the volume's own; `zscore` and `percentile` are of the
    whole volume, all channels together. Values that are not finite count as zero where `nonfinite` says so.

    Raises:
        PlanError: The volume holds values that are not finite.
    """
    if rule.mode == "none":
        return rule
    dtype = volume.array.dtype
    if rule.mode == "minmax" and dtype.kind in "bui":
        limits = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        return spanning("minmax", *limits)
    values = _Values(volume, nonfinite, box or Box.of_shape(volume.shape))
    if rule.mode == "minmax":
        return spanning("minmax", *values.limits())
    if rule.mode == "zscore":
        mean, deviation = values.moments()
        return Normalization("zscore", mean, 1.0 / deviation if deviation > 0 else 1.0)
    low, high = values.percentiles(rule.low, rule.high)
    return spanning("percentile", low, high, low=rule.low, high=rule.high)


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
        boxes = sample_boxes(Box.of_shape(volume.shape), volume.description.chunks, SAMPLE_BOXES)
    parts = []
    for box in boxes:
        try:
            parts.append(volume.read(box))
        except StorageError as error:
            log.warning("a box of the sample is left out: %s", error)
    if not parts:
        return None
    return appearance_of(parts, rule, dtype=volume.description.dtype, voxel_size_nm=voxel_size_nm)


@dataclass(frozen=True)
class _Values:
    """The values of a box of a volume, in passes over it."""

    volume: Volume
    nonfinite: str
    box: Box

    def __iter__(self) -> Iterator[np.ndarray]:
        description = self.volume.description
        step = widened(description.chunks, self.box.shape, description.channels * 8, READ_BYTES)
        for box in self.box.split(step):
            yield self._finite(self.volume.read(box), box)

    def _finite(self, values: np.ndarray, box: Box) -> np.ndarray:
        if values.dtype.kind != "f":
            return values
        good = np.isfinite(values)
        if good.all():
            return values
        if self.nonfinite == "zero":
            return np.where(good, values, 0)
        raise PlanError(
            f"Volume '{self.volume.description.url}' holds {int((~good).sum())} values that are not finite in the box {box}, "
            "so its statistics mean nothing. Repair it, or set input.nonfinite to 'zero'."
        )

    def limits(self) -> tuple[float, float]:
        pairs = [(values.min(), values.max()) for values in self]
        return float(min(low for low, _ in pairs)), float(max(high for _, high in pairs))

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation, merged box by box (Chan, Golub and LeVeque 1983)."""
        count, mean, squares = 0, 0.0, 0.0
        for values in self:
            n, m = values.size, float(values.mean(dtype=np.float64))
            s = float(values.var(dtype=np.float64)) * n
            delta, total = m - mean, count + n
            squares += s + delta * delta * count * n / total
            mean += delta * n / total
            count = total
        return mean, float(np.sqrt(squares / count))

    def percentiles(self, *wanted: float) -> list[float]:
        """Percentiles by linear interpolation between ranks, as `numpy.percentile` does.

        Histograms around each rank, each pass `BINS` times finer than the one before: after three passes a bin is
        narrower than the values' own precision, whatever outliers span.
        """
        low, high = self.limits()
        count = self.volume.description.channels * self.box.voxels
        ranks = [percent / 100 * (count - 1) for percent in wanted]
        whole = {int(end(rank)) for rank in ranks for end in (np.floor, np.ceil)}
        brackets = dict.fromkeys(whole, (low, high, 0))
        for _ in range(PASSES):
            brackets = self._narrowed(brackets)
        found = {rank: bracket[0] for rank, bracket in brackets.items()}
        below, above = ([found[int(end(rank))] for rank in ranks] for end in (np.floor, np.ceil))
        return [b + (a - b) * (rank - np.floor(rank)) for b, a, rank in zip(below, above, ranks, strict=True)]

    def _narrowed(self, brackets: dict[int, Bracket]) -> dict[int, Bracket]:
        """Each rank's bracket cut down to the bin that holds it; the bin's own least and largest value bound it."""
        distinct = sorted(set(brackets.values()))
        counts = {b: np.zeros(BINS, dtype=np.int64) for b in distinct}
        least = {b: np.full(BINS, np.inf) for b in distinct}
        most = {b: np.full(BINS, -np.inf) for b in distinct}
        for values in self:
            flat = values.ravel().astype(np.float64)
            for bracket in distinct:
                low, high, _ = bracket
                inside = flat[(flat >= low) & (flat <= high)]
                places = _binned(inside, low, high)
                counts[bracket] += np.bincount(places, minlength=BINS)
                np.minimum.at(least[bracket], places, inside)
                np.maximum.at(most[bracket], places, inside)
        narrowed = {}
        for rank, bracket in brackets.items():
            cumulated = np.cumsum(counts[bracket])
            place = int(np.searchsorted(cumulated, rank - bracket[2], side="right"))
            before = bracket[2] + int(cumulated[place] - counts[bracket][place])
            narrowed[rank] = (float(least[bracket][place]), float(most[bracket][place]), before)
        return narrowed


def _binned(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if high <= low:
        return np.zeros(values.size, dtype=np.int64)
    share = (values / 2 - low / 2) / (high / 2 - low / 2)  # halves: limits of float64 do not overflow
    return np.minimum((share * BINS).astype(np.int64), BINS - 1)

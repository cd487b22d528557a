"""One set of statistics a volume, measured once, box by box, whatever the volume's size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.core.box import Box, Triple, round_up
from pipeline.core.normalization import Normalization, spanning
from pipeline.errors import PlanError
from pipeline.storage.volume import Volume

READ_BYTES = 2**27
"""About how much is read at once."""

BINS = 2**16
"""Bins of a histogram over values of more than 16 bits; percentiles of those are exact to the range / BINS."""


def measured(rule: Normalization, volume: Volume, *, nonfinite: str) -> Normalization:
    """`rule` with the numbers of this volume.

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
    values = _Values(volume, nonfinite)
    if rule.mode == "minmax":
        return spanning("minmax", *values.limits())
    if rule.mode == "zscore":
        mean, deviation = values.moments()
        return Normalization("zscore", mean, 1.0 / deviation if deviation > 0 else 1.0)
    low, high = values.percentiles(rule.low, rule.high)
    return spanning("percentile", low, high, low=rule.low, high=rule.high)


@dataclass(frozen=True)
class _Values:
    """The values of a volume, in passes over it."""

    volume: Volume
    nonfinite: str

    def __iter__(self) -> Iterator[np.ndarray]:
        description = self.volume.description
        step = _step(description.chunks, description.channels * self.volume.array.dtype.itemsize)
        for box in Box.of_shape(description.shape).split(step):
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
        """Percentiles by linear interpolation between ranks, as `numpy.percentile` does."""
        dtype = self.volume.array.dtype
        exact = dtype.kind in "bui" and dtype.itemsize <= 2
        low, high = (0.0, 1.0) if exact else self.limits()
        if exact and dtype.kind != "b":
            low, high = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
        bins = int(high - low) + 1 if exact else BINS
        width = 1.0 if exact else (high - low) / (BINS - 1) or 1.0
        counts = np.zeros(bins, dtype=np.int64)
        for values in self:
            places = np.rint((values.astype(np.float64) - low) / width).astype(np.int64)
            counts += np.bincount(places.ravel(), minlength=bins)
        return [low + width * _ranked(counts, p) for p in wanted]


def _ranked(counts: np.ndarray, percent: float) -> float:
    """The bin at a percentile, between two bins where the rank is."""
    cumulated = np.cumsum(counts)
    rank = percent / 100 * (cumulated[-1] - 1)
    below, above = (int(np.searchsorted(cumulated, r, side="right")) for r in (np.floor(rank), np.ceil(rank)))
    return below + (above - below) * (rank - np.floor(rank))


def _step(chunks: Triple, voxel_bytes: int) -> Triple:
    """Whole chunks, as cubic as they come, of about `READ_BYTES`."""
    edge = max(int((READ_BYTES / voxel_bytes) ** (1 / 3)), 1)
    return tuple(max(round_up(edge, c) - c, c) for c in chunks)  # type: ignore[return-value]

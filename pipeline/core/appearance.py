"""What a volume's values look like to a network, by a sample of boxes: percentiles a channel, after normalisation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil, isfinite, isqrt, prod
from typing import NotRequired, TypedDict

import numpy as np

from pipeline.core.geometry.box import Box, Triple, triple
from pipeline.core.normalization import Normalization

PERCENTS = (1, 25, 50, 75, 99)
"""Which percentiles are kept."""

BOX_VOXELS = 2**16
"""Of a box of a sample, about."""

BOX_DEPTH = 16
"""Slices of a box of a sample at most."""

DECODED_VOXELS = 2**29
"""Of the chunks that a sample is read from, about, at most: where a chunk is huge, there are fewer boxes."""

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Channel:
    """Values of a channel, as a network sees them.

    Args:
        percentiles: At `PERCENTS`, of all boxes together.
        reach: Least 1st and greatest 99th percentile of a single box; boxes that hold one value alone, such as empty
            space, are left out where others are not.
    """

    percentiles: tuple[float, ...]
    reach: Range

    @property
    def range(self) -> Range:
        """1st and 99th percentile."""
        return self.percentiles[0], self.percentiles[-1]

    def stored(self, rule: Normalization) -> Range:
        """The same before normalisation."""
        low, high = (value / rule.scale + rule.offset for value in self.range)
        return low, high


class ChannelContent(TypedDict):
    """A `Channel` in JSON."""

    percentiles: list[float]
    reach: list[float]


class AppearanceContent(TypedDict):
    """An `Appearance` in JSON."""

    dtype: str
    limits: list[float]
    channels: list[ChannelContent]
    boxes: int
    voxel_size_nm: NotRequired[list[float] | None]


@dataclass(frozen=True, slots=True)
class Appearance:
    """What a sample of a volume looks like.

    Args:
        dtype: As stored.
        limits: Least and greatest value, as stored.
        channels: Of the normalised values.
        boxes: How many were looked at.
        voxel_size_nm: Along z, y, x; None where nobody says.
    """

    dtype: str
    limits: Range
    channels: tuple[Channel, ...]
    boxes: int
    voxel_size_nm: tuple[float, ...] | None = None

    @property
    def is_flat(self) -> bool:
        """Whether no box holds more than one value: there is nothing in it to compare."""
        return all(low == high for low, high in (channel.reach for channel in self.channels))

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: AppearanceContent) -> Appearance:
        """What `to_dict` wrote.

        Raises:
            ValueError, KeyError, TypeError: It is not that.
        """
        channels = tuple(
            Channel(_numbers(c["percentiles"], len(PERCENTS)), _range(c["reach"])) for c in content["channels"]
        )
        size = content.get("voxel_size_nm")
        appearance = cls(
            str(content["dtype"]),
            _range(content["limits"]),
            channels,
            int(content["boxes"]),
            _numbers(size) if size else None,
        )
        if not channels or (appearance.voxel_size_nm and min(appearance.voxel_size_nm) <= 0):
            raise ValueError("an appearance without channels, or of voxels without extent")
        return appearance


def _numbers(values: Iterable[float], count: int | None = None) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if not all(map(isfinite, numbers)) or (count is not None and len(numbers) != count):
        raise ValueError(f"{values} are not {count or ''} finite numbers")
    return numbers


def _range(values: Iterable[float]) -> Range:
    low, high = _numbers(values, 2)
    return low, high


# --- a sample ------------------------------------------------------------------------------------------------------------


def sample_boxes(frame: Box, chunks: Triple, count: int) -> list[Box]:
    """Boxes spread evenly over a frame; the same for the same arguments. All of it, where it is that small.

    A box has about `BOX_VOXELS` voxels and lies in one chunk where chunks are that large, and else touches eight at most:
    so a sample of a remote volume takes a request a box, or a few.

    Args:
        frame: What is sampled.
        chunks: Extents of what is decoded at once.
        count: How many boxes; fewer where chunks are huge.
    """
    extent = _extent(frame.shape, chunks)
    count = max(min(count, DECODED_VOXELS // prod(chunks)), 2)
    if prod(ceil(n / e) for n, e in zip(frame.shape, extent, strict=True)) <= count:
        return list(frame.split(extent))
    return [_box(frame, extent, chunks, share) for share in _evenly(count)]


def _extent(shape: Triple, chunks: Triple) -> Triple:
    """Deep where there is depth, wide where there is none; at most two chunks along an axis."""
    depth = min(BOX_DEPTH, shape[0], 2 * chunks[0])
    side = isqrt(BOX_VOXELS // depth)
    return (depth, min(side, shape[1], 2 * chunks[1]), min(side, shape[2], 2 * chunks[2]))


def _evenly(count: int) -> Iterator[tuple[float, ...]]:
    """Points of the unit cube, of which each part of each axis has its share (Hammersley 1960)."""
    for n in range(count):
        yield (n + 0.5) / count, _mirrored(n, 2), _mirrored(n, 3)


def _mirrored(number: int, base: int) -> float:
    """The digits of a number behind the point, last first: 0, 1/2, 1/4, 3/4, ... of base 2 (van der Corput)."""
    fraction, unit = 0.0, 1.0 / base
    while number:
        number, digit = divmod(number, base)
        fraction, unit = fraction + digit * unit, unit / base
    return fraction


def _box(frame: Box, extent: Triple, chunks: Triple, share: tuple[float, ...]) -> Box:
    parts = zip(frame.start, frame.stop, extent, chunks, share, strict=True)
    return Box.of_shape(extent).moved(triple(_start(*part) for part in parts))


def _start(low: int, high: int, extent: int, chunk: int, share: float) -> int:
    """Where a box starts along an axis: somewhere, and moved so that it touches as few chunks as it can."""
    start = low + int(share * (high - low - extent + 1))
    first = start // chunk * chunk
    best = min(start, first + chunk - extent) if extent <= chunk else first
    return max(best, low)


def appearance_of(
    parts: Sequence[np.ndarray], rule: Normalization, *, dtype: str, voxel_size_nm: tuple[float, ...] | None = None
) -> Appearance | None:
    """The appearance of boxes, each (C, Z, Y, X) as stored; None where they hold no finite value.

    Values that are not finite count for nothing.
    """
    stored = [part[np.isfinite(part)] for part in parts]
    limits = [(float(values.min()), float(values.max())) for values in stored if values.size]
    if not limits:
        return None
    seen = [rule.apply(part) for part in parts]
    channels = [_channel([_finite(part[c]) for part in seen]) for c in range(seen[0].shape[0])]
    if None in channels:
        return None
    whole = min(low for low, _ in limits), max(high for _, high in limits)
    return Appearance(dtype, whole, tuple(c for c in channels if c), len(parts), voxel_size_nm)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.extract(np.isfinite(values), values)


def _channel(boxes: list[np.ndarray]) -> Channel | None:
    boxes = [values for values in boxes if values.size]
    if not boxes:
        return None
    percentiles = np.percentile(np.concatenate(boxes), PERCENTS)
    ranges = [tuple(map(float, np.percentile(values, (PERCENTS[0], PERCENTS[-1])))) for values in boxes]
    lively = [(low, high) for low, high in ranges if low < high] or ranges
    reach = min(low for low, _ in lively), max(high for _, high in lively)
    return Channel(tuple(float(value) for value in percentiles), reach)


def span(values: Range) -> float:
    """How far apart the ends are."""
    return values[1] - values[0]


def ranges(sample: Appearance) -> str:
    """1st to 99th percentile of each channel, for a person: what is left of rounding at an end is 0."""
    ends = ([0.0 if abs(end) < 1e-9 * span(c.range) else end for end in c.range] for c in sample.channels)
    return ", ".join(f"{low:.3g} to {high:.3g}" for low, high in ends)

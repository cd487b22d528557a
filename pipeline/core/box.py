"""A half-open box of voxels, and the few operations that geometry needs of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

Triple = tuple[int, int, int]
"""Voxels along z, y and x."""


@dataclass(frozen=True, slots=True)
class Box:
    """Voxels `start <= (z, y, x) < stop`; coordinates may lie outside the volume."""

    start: Triple
    stop: Triple

    @classmethod
    def of_shape(cls, shape: Triple) -> Box:
        """The box from the origin with this extent."""
        return cls((0, 0, 0), shape)

    @property
    def shape(self) -> Triple:
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))  # type: ignore[return-value]

    @property
    def voxels(self) -> int:
        return prod(self.shape)

    def clipped(self, other: Box) -> Box:
        """The part of this box inside `other`."""
        start = tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Box(start, stop)  # type: ignore[arg-type]

    def contains(self, other: Box) -> bool:
        return all(a <= b for a, b in zip(self.start, other.start, strict=True)) and all(
            a >= b for a, b in zip(self.stop, other.stop, strict=True)
        )

    def overlaps(self, other: Box) -> bool:
        """Whether the two share a voxel."""
        return all(n > 0 for n in self.clipped(other).shape)

    def within(self, frame: Box) -> tuple[slice, slice, slice]:
        """Slices that select this box from an array whose first voxel is `frame.start`."""
        origin = frame.start
        return tuple(  # type: ignore[return-value]
            slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, origin, strict=True)
        )

    def middle(self, extent: int) -> Box:
        """The part around the centre, of so many voxels an axis at most."""
        starts = tuple(a + max((n - extent) // 2, 0) for a, n in zip(self.start, self.shape, strict=True))
        stops = tuple(a + min(n, extent) for a, n in zip(starts, self.shape, strict=True))
        return Box(starts, stops)  # type: ignore[arg-type]

    def corners(self, extent: int) -> list[Box]:
        """The parts at the corners, of so many voxels an axis at most; each once."""
        ends = [{(a, min(a + extent, b)), (max(b - extent, a), b)} for a, b in zip(self.start, self.stop, strict=True)]
        return [Box(*zip(*spans, strict=True)) for spans in product(*map(sorted, ends))]

    def split(self, step: Triple) -> Iterator[Box]:
        """Boxes of at most `step` voxels that partition this one, z slowest."""
        starts = product(*(range(a, b, s) for a, b, s in zip(self.start, self.stop, step, strict=True)))
        for start in starts:
            stop = tuple(min(a + s, b) for a, s, b in zip(start, step, self.stop, strict=True))
            yield Box(start, stop)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return ", ".join(f"{axis} {a}:{b}" for axis, a, b in zip("zyx", self.start, self.stop, strict=True))


def widened(unit: Triple, shape: Triple, voxel_bytes: int, most_bytes: int) -> Triple:
    """Whole units, more along x, then y, then z, up to about `most_bytes`; never less than one, nor more than the shape."""
    step = [min(u, n) for u, n in zip(unit, shape, strict=True)]
    for axis in (2, 1, 0):
        room = max(most_bytes // (voxel_bytes * prod(step)), 1)
        step[axis] = min(unit[axis] * room, round_up(shape[axis], unit[axis]))
    return tuple(step)  # type: ignore[return-value]


def round_up(value: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple

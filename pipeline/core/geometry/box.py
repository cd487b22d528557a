"""A half-open box of voxels, and the few operations that geometry needs of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import NamedTuple, TypeVar, overload

Triple = tuple[int, int, int]
"""Voxels along z, y and x."""

_T = TypeVar("_T")
_A = TypeVar("_A")
_B = TypeVar("_B")
_C = TypeVar("_C")


def triple(values: Iterable[_T]) -> tuple[_T, _T, _T]:
    """The three values, along z, y, x.

    Raises:
        ValueError: There are not three.
    """
    z, y, x = values
    return z, y, x


@overload
def per_axis(rule: Callable[[_A], _T], one: tuple[_A, _A, _A], /) -> tuple[_T, _T, _T]: ...
@overload
def per_axis(rule: Callable[[_A, _B], _T], one: tuple[_A, _A, _A], two: tuple[_B, _B, _B], /) -> tuple[_T, _T, _T]: ...
@overload
def per_axis(
    rule: Callable[[_A, _B, _C], _T], one: tuple[_A, _A, _A], two: tuple[_B, _B, _B], three: tuple[_C, _C, _C], /
) -> tuple[_T, _T, _T]: ...
def per_axis(rule: Callable[..., _T], *triples: tuple[object, object, object]) -> tuple[_T, _T, _T]:
    """What `rule` gives for the values along z, those along y and those along x."""
    return triple(rule(*values) for values in zip(*triples, strict=True))


class Span(NamedTuple):
    """Voxels `start <= i < stop` along one axis."""

    start: int
    stop: int

    @property
    def extent(self) -> int:
        return self.stop - self.start

    def grown(self, by: int) -> Span:
        return Span(self.start - by, self.stop + by)

    def clipped(self, other: Span) -> Span:
        return Span(max(self.start, other.start), min(self.stop, other.stop))

    def hull(self, other: Span) -> Span:
        """The least span that holds both."""
        return Span(min(self.start, other.start), max(self.stop, other.stop))


@dataclass(frozen=True, slots=True)
class Box:
    """Voxels `start <= (z, y, x) < stop`; coordinates may lie outside the volume."""

    start: Triple
    stop: Triple

    @classmethod
    def of_shape(cls, shape: Triple) -> Box:
        """The box from the origin with this extent."""
        return cls((0, 0, 0), shape)

    @classmethod
    def of_spans(cls, spans: Iterable[tuple[int, int]]) -> Box:
        """The box of the first voxel and the stop along z, along y and along x."""
        z, y, x = spans
        return cls((z[0], y[0], x[0]), (z[1], y[1], x[1]))

    @property
    def shape(self) -> Triple:
        return per_axis(lambda a, b: b - a, self.start, self.stop)

    @property
    def voxels(self) -> int:
        return prod(self.shape)

    def clipped(self, other: Box) -> Box:
        """The part of this box inside `other`."""
        return Box(per_axis(max, self.start, other.start), per_axis(min, self.stop, other.stop))

    def contains(self, other: Box) -> bool:
        starts = per_axis(lambda a, b: a <= b, self.start, other.start)
        stops = per_axis(lambda a, b: a >= b, self.stop, other.stop)
        return all(starts + stops)

    def overlaps(self, other: Box) -> bool:
        """Whether the two share a voxel."""
        return all(n > 0 for n in self.clipped(other).shape)

    def within(self, frame: Box) -> tuple[slice, slice, slice]:
        """Slices that select this box from an array whose first voxel is `frame.start`."""
        return per_axis(lambda a, b, origin: slice(a - origin, b - origin), self.start, self.stop, frame.start)

    def moved(self, offset: Triple) -> Box:
        """The box of the same shape, so many voxels on."""
        start, stop = (per_axis(lambda a, n: a + n, corner, offset) for corner in (self.start, self.stop))
        return Box(start, stop)

    def middle(self, extent: int) -> Box:
        """The part around the centre, of so many voxels an axis at most."""
        starts = per_axis(lambda a, n: a + max((n - extent) // 2, 0), self.start, self.shape)
        return Box(starts, per_axis(lambda a, n: a + min(n, extent), starts, self.shape))

    def corners(self, extent: int) -> list[Box]:
        """The parts at the corners, of so many voxels an axis at most; each once."""
        ends = per_axis(lambda a, b: {(a, min(a + extent, b)), (max(b - extent, a), b)}, self.start, self.stop)
        return [Box.of_spans(spans) for spans in product(*map(sorted, ends))]

    def split(self, step: Triple) -> Iterator[Box]:
        """Boxes of at most `step` voxels that partition this one, z slowest."""
        z, y, x = per_axis(range, self.start, self.stop, step)
        for start in product(z, y, x):
            yield Box(start, per_axis(lambda a, s, b: min(a + s, b), start, step, self.stop))

    def __str__(self) -> str:
        return ", ".join(f"{axis} {a}:{b}" for axis, a, b in zip("zyx", self.start, self.stop, strict=True))


def widened(unit: Triple, shape: Triple, voxel_bytes: int, most_bytes: int) -> Triple:
    """Whole units, more along x, then y, then z, up to about `most_bytes`; never less than one, nor more than the shape."""
    step = [*per_axis(min, unit, shape)]
    for axis in (2, 1, 0):
        room = max(most_bytes // (voxel_bytes * prod(step)), 1)
        step[axis] = min(unit[axis] * room, round_up(shape[axis], unit[axis]))
    return triple(step)


def round_up(value: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple

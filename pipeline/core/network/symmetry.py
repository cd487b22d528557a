"""Ways to look at a volume from another side: reversed along axes, y and x in each other's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeVar

from pipeline.core.geometry.box import Box, Span, Triple, per_axis, triple

_Axis = TypeVar("_Axis")

Augment = Literal["none", "flips", "rotations"]
"""Which of them a prediction is the mean over."""


@dataclass(frozen=True, slots=True)
class Symmetry:
    """One way.

    Args:
        swaps: Whether y and x change places; that is done first.
        flips: Axes that are reversed then, of z, y, x.
    """

    swaps: bool = False
    flips: tuple[bool, bool, bool] = (False, False, False)

    def box(self, box: Box, whole: Box) -> Box:
        """Where it shows a box of the volume.

        Args:
            box: Voxels of the volume.
            whole: What it shows, as it is shown.
        """
        return Box.of_spans(self._flipped(self._ordered(_spans(box)), whole))

    def origin(self, box: Box, whole: Box) -> Box:
        """The box of the volume that it shows as `box`."""
        return Box.of_spans(self._ordered(self._flipped(_spans(box), whole)))

    def extents(self, extents: Triple) -> Triple:
        """Extents along z, y, x, as it shows them."""
        return triple(self._ordered([*extents]))

    def _ordered(self, axes: Sequence[_Axis]) -> list[_Axis]:
        z, y, x = axes
        return [z, x, y] if self.swaps else [z, y, x]

    def _flipped(self, spans: Sequence[Span], whole: Box) -> list[Span]:
        ends = per_axis(lambda start, stop: start + stop, whole.start, whole.stop)
        return [
            Span(end - span.stop, end - span.start) if flipped else span
            for span, end, flipped in zip(spans, ends, self.flips, strict=True)
        ]


def _spans(box: Box) -> list[Span]:
    return [Span(start, stop) for start, stop in zip(box.start, box.stop, strict=True)]


def symmetries(augment: Augment, ndim: int) -> tuple[Symmetry, ...]:
    """Those of a mean, in the order in which they are added up, the volume as it is first.

    Args:
        augment: `flips` are all reversals along the network's axes, 4 in 2D and 8 in 3D; `rotations` those, and each with y and x
            changed, which together are all rotations by 90 degrees about z, with reversals: 8 and 16.
        ndim: Of the network; one of 2 sees nothing along z.
    """
    if augment == "none":
        return (Symmetry(),)
    sides = ((False, True) if ndim == 3 else (False,), (False, True), (False, True))
    swaps = (False, True) if augment == "rotations" else (False,)
    return tuple(Symmetry(swap, flips) for swap, flips in product(swaps, product(*sides)))

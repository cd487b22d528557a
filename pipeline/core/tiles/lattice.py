"""Windows on a lattice over the volume, for networks that look at their whole input: each by itself, and then blended.

    |<------------------------------ volume ------------------------------>|
    |<--- core --->|<-overlap->|
    |<-------- window 0 ------>|
                   |<-------- window 1 ------>|
                                  ...      |<------ the last window ------>|   shifted back to end with the volume

The lattice is the volume's, whatever the tiles are, so what a voxel gets depends on no tile. A volume that is shorter than one window is
mirrored at its far end. What a window gives counts by its shares, which along each axis add up to one at every voxel; that of a voxel
in three dimensions is the product of those along its axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.core.geometry.box import Span, Triple, per_axis

Blend = Literal["gaussian", "linear", "none"]

SIGMAS = 8
"""Standard deviations of a Gaussian share in the extent of a window, as sliding windows have them elsewhere."""


@dataclass(frozen=True, slots=True)
class BlendedWindow:
    """What the windows of a run are; along z, y, x.

    Args:
        core: Voxels from the origin of one window to that of the next.
        overlap: Voxels that a window shares with the next.
        blend: How windows are weighted: `gaussian`, by the distance from their middle, sigma an eighth of the extent; `linear`, by that from
            their nearer end; `none`, a voxel is of one window alone, the one with the more context on its poorer side.

    Raises:
        ValueError: There are no such windows.
    """

    core: Triple
    overlap: Triple
    blend: Blend

    def __post_init__(self) -> None:
        if min(self.core) < 1 or min(self.overlap) < 0 or self.blend not in get_args(Blend):
            raise ValueError(f"windows of core {self.core}, overlap {self.overlap}, blend '{self.blend}'")

    @property
    def extent(self) -> Triple:
        """Voxels of a window."""
        return per_axis(lambda c, o: c + o, self.core, self.overlap)

    def row(self, axis: int, volume: int) -> WindowRow:
        """The windows along an axis of a volume."""
        return WindowRow(volume, self.core[axis], self.extent[axis], self.blend)

    def __str__(self) -> str:
        core, overlap = (" x ".join(map(str, extent)) for extent in (self.core, self.overlap))
        return f"core {core}, overlap {overlap}, blend {self.blend}"


@dataclass(frozen=True, slots=True)
class WindowRow:
    """The windows along one axis.

    Args:
        volume: Voxels of the volume.
        step: Voxels from the origin of one window to that of the next, but for the last.
        extent: Voxels of a window.
        blend: As of `BlendedWindow`.
    """

    volume: int
    step: int
    extent: int
    blend: Blend

    def __len__(self) -> int:
        return -(-max(self.volume - self.extent, 0) // self.step) + 1

    def window(self, number: int) -> Span:
        """Voxels that a window sees; beyond the volume where that is shorter."""
        start = min(number * self.step, max(self.volume - self.extent, 0))
        return Span(start, start + self.extent)

    def kept(self, number: int) -> Span:
        """Voxels in which a window has a share."""
        window = self.window(number)
        if self.blend != "none":
            return window
        start = self._border(number - 1) if number else window.start
        return Span(start, self._border(number) if number + 1 < len(self) else window.stop)

    def _border(self, number: int) -> int:
        """Where a window gives way to the next: in the middle of what they share."""
        return (self.window(number + 1).start + self.window(number).stop + 1) // 2

    def touching(self, span: Span) -> range:
        """Windows that have a share in some voxels of a span of the volume."""
        first = min(max((span.start - self.extent) // self.step, 0), len(self) - 1)
        while self.kept(first).stop <= span.start:
            first += 1
        stop = first + 1
        while stop < len(self) and self.kept(stop).start < span.stop:
            stop += 1
        return range(first, stop)

    def shares(self, number: int) -> NDArray[np.float64]:
        """What a window counts at each of its voxels, of one in all."""
        return _shares(self, number)


@lru_cache(maxsize=1024)
def _shares(row: WindowRow, number: int) -> NDArray[np.float64]:
    window, weights = row.window(number), _weights(row.extent, row.blend)
    if row.blend == "none":
        start, stop = row.kept(number)
        place = np.arange(*window)
        return ((place >= start) & (place < stop)).astype(np.float64)
    total = np.zeros(row.extent)
    for other in row.touching(window):
        begin, end = window.clipped(row.window(other))
        shift = row.window(other).start
        total[begin - window.start : end - window.start] += weights[begin - shift : end - shift]
    shares: NDArray[np.float64] = weights / total
    shares.flags.writeable = False
    return shares


def _weights(extent: int, blend: Blend) -> NDArray[np.float64]:
    place = np.arange(extent, dtype=np.float64)
    if blend == "gaussian":
        weights: NDArray[np.float64] = np.exp(-0.5 * ((place - (extent - 1) / 2) * SIGMAS / extent) ** 2)
        return weights
    return np.minimum(place + 1, extent - place)

"""The tile grid: where cores lie, what each reads, and why the stitched answer has no seams.

    |<-------------------------- extended volume ------------------------->|
    |<------------------------ volume ------------------------>|<- mirror ->|
    +-----------------+-----------------+-----------------+-----+
    |     core 0      |     core 1      |     core 2      |  3  |   cores partition the volume
    +-----------------+-----------------+-----------------+-----+
              |<-halo->|<---- core ---->|<-halo->|                  window of tile 1

Four facts make the crop of a window's prediction equal to one pass over the whole volume:

phase   every core origin and every halo is a multiple of the stride, the last tile included, so a window's poolings
        pair the same voxels as the whole pass does;
reach   the halo covers the receptive radius, so what a window's own border spoils is cropped away;
edges   same padding: the volume is mirrored at its far end to a multiple of the stride, and a window is clipped
        there and at the origin, where each layer pads itself exactly as in the whole pass. Unpadded: a window starts
        one margin before its core and has the least legal extent; what lies outside shows the mirrored volume;
local   the network looks at nothing else (refused when the model is loaded).

Tiles are never listed: one is computed from its index, so ten and ten billion cost the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from pipeline.core.architecture import Architecture
from pipeline.core.box import Box, Triple, round_up
from pipeline.core.receptive import legal_extent, receptive_radius


@dataclass(frozen=True, slots=True)
class Slab:
    """The part of a tile that one forward pass computes.

    Args:
        core: Voxels that are kept, global coordinates.
        window: Voxels that the network reads, global coordinates; may lie beyond the volume.
        crop: Where the core lies in the network's output, along z, y, x.
    """

    core: Box
    window: Box
    crop: tuple[slice, slice, slice]


@dataclass(frozen=True, slots=True)
class Tile:
    """The unit of work and of retry.

    Args:
        index: Linear index in the grid, z slowest.
        core: Voxels that this tile alone owns and writes.
        window: Voxels that it reads, global coordinates; may lie beyond the volume.
        slabs: The forward passes that compute its core, in z order.
    """

    index: int
    core: Box
    window: Box
    slabs: tuple[Slab, ...]

    def __str__(self) -> str:
        return f"tile {self.index} (core {self.core})"


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Tiles over a volume, for one network.

    Args:
        architecture: The network; it gives stride, padding and margins.
        volume: Extent along z, y, x.
        core: Extent of a whole tile's core; a multiple of the stride.
        halo: Context a side; a multiple of the stride, at least the receptive radius. Unused where unpadded.
        slab: Extent of the part of a core that one pass computes; a multiple of the stride.
    """

    architecture: Architecture
    volume: Triple
    core: Triple
    halo: Triple
    slab: Triple

    @property
    def counts(self) -> Triple:
        """Tiles along z, y, x."""
        return tuple(-(-n // c) for n, c in zip(self.volume, self.core, strict=True))  # type: ignore[return-value]

    def __len__(self) -> int:
        return prod(self.counts)

    def __iter__(self) -> Iterator[Tile]:
        return (self.tile(index) for index in range(len(self)))

    def tile(self, index: int) -> Tile:
        """The tile at a linear index, z slowest.

        Raises:
            IndexError: There is no such tile.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"Tile {index} asked for, but the grid has tiles 0 to {len(self) - 1}.")
        place = np.unravel_index(index, self.counts)
        start = tuple(int(p) * c for p, c in zip(place, self.core, strict=True))
        stop = tuple(a + c for a, c in zip(start, self.core, strict=True))
        core = Box(start, stop).clipped(Box.of_shape(self.volume))  # type: ignore[arg-type]
        return Tile(index, core, self.window(core), tuple(self._slab(part) for part in core.split(self.slab)))

    def window(self, core: Box) -> Box:
        """What a core on the stride lattice reads. Slabs' windows lie inside their tile's."""
        spans = [self.span(axis, a, b) for axis, (a, b) in enumerate(zip(core.start, core.stop, strict=True))]
        return Box(tuple(a for a, _ in spans), tuple(b for _, b in spans))  # type: ignore[arg-type]

    def span(self, axis: int, start: int, stop: int) -> tuple[int, int]:
        """What a core from `start` to `stop` reads along one axis; windows are products of these."""
        stride, extent = self.architecture.stride[axis], self.volume[axis]
        if self.architecture.padding == "same":
            halo = self.halo[axis]
            return max(start - halo, 0), min(round_up(stop, stride) + halo, round_up(extent, stride))
        margin = receptive_radius(self.architecture)[axis]
        first = start - margin
        return first, first + legal_extent(self.architecture, axis, stop - start + 2 * margin)

    def _slab(self, core: Box) -> Slab:
        window = self.window(core)
        lost = receptive_radius(self.architecture) if self.architecture.padding == "valid" else (0, 0, 0)
        origin = Box(tuple(a + m for a, m in zip(window.start, lost, strict=True)), window.stop)  # type: ignore[arg-type]
        return Slab(core, window, core.within(origin))

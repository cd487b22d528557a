"""A network on windows of a lattice, each by itself: what a tile reads and computes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from math import lcm

from pipeline.core.geometry.box import Span, Triple, triple
from pipeline.core.network.graph import Graph
from pipeline.core.network.need import Needs, needs
from pipeline.core.network.stream import Stream
from pipeline.core.tiles.grid import Alike, TileGrid
from pipeline.core.tiles.lattice import BlendedWindow, WindowRow


@lru_cache(maxsize=32)
def whole_needs(graph: Graph, extent: Triple, kept: Triple | None = None) -> tuple[Needs, Needs, Needs]:
    """What one pass over a window by itself needs: all of it, and each layer pads itself at its ends.

    Args:
        graph: A network that pads itself.
        extent: Of the window along z, y, x; legal ones.
        kept: What is kept of it, from its origin; None for all.

    Raises:
        ValueError: The extents are not legal.
    """
    cores = kept or extent
    return triple(needs(graph, axis, Span(0, cores[axis]), Span(0, extent[axis])) for axis in range(3))


@dataclass(frozen=True, slots=True)
class BlendedGrid(TileGrid):
    """Tiles that read whole windows of a lattice: all that have a share in the core.

    Args:
        rows: The windows along z, y, x.
    """

    rows: tuple[WindowRow, WindowRow, WindowRow] = field(kw_only=True)

    def window(self, axis: int, start: int, stop: int) -> Span:
        """What a core from `start` to `stop` reads along an axis: the hull of its windows, which may end beyond a short volume."""
        row = self.rows[axis]
        touching = row.touching(Span(start, stop))
        return row.window(touching[0]).hull(row.window(touching[-1]))

    def distinct_cores(self, axis: int, period: int = 1) -> Iterator[Alike]:
        """As of `TileGrid`: away from the ends all are alike that lie alike to the windows."""
        return TileGrid.distinct_cores(self, axis, lcm(period, self.rows[axis].step))


@dataclass(frozen=True, slots=True)
class BlendedStream(Stream):
    """A network on windows of a lattice, each by itself: what a tile computes is all windows that have a share in its core."""

    grid: BlendedGrid

    @classmethod
    def of_windows(cls, graph: Graph, volume: Triple, core: Triple, window: BlendedWindow) -> BlendedStream:
        """Over a volume.

        Args:
            graph: The network.
            volume: Extent along z, y, x.
            core: Extent of a whole tile's core.
            window: What the windows are; of legal extents.
        """
        rows = triple(window.row(axis, volume[axis]) for axis in range(3))
        return cls(graph, BlendedGrid(volume, core, (1, 1, 1), window.extent, rows=rows), window.core[0])

    @property
    def extent(self) -> Triple:
        """Voxels of a window."""
        return triple(row.extent for row in self.grid.rows)

    def computed(self, axis: int) -> int:
        """Windows that all tiles in a row along an axis compute, those that tiles share as often as they do."""
        row = self.grid.rows[axis]
        return sum(times * len(row.touching(core)) for core, _, times in self.grid.distinct_cores(axis))

    def distinct_needs(self, axis: int) -> Iterator[tuple[Needs, int]]:
        """Needs of a window along an axis, and the number of times that all tiles in a row compute one."""
        yield whole_needs(self.graph, self.extent)[axis], self.computed(axis)

"""A network over the tiles of a volume, slab by slab: which tiles it takes, and what it does with one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.core.geometry.box import Span, Triple, per_axis, round_up, triple
from pipeline.core.network.graph import Graph
from pipeline.core.network.need import Needs, needs
from pipeline.core.network.receptive import receptive_radius, whole_window
from pipeline.core.network.schedule import Schedule
from pipeline.core.tiles.grid import Tile, TileGrid


@dataclass(frozen=True, slots=True)
class Stream:
    """A network that streams over tiles along z.

    Args:
        graph: The network.
        grid: Its tiles.
        slab: Slices that the network takes in at once; a multiple of the stride.
    """

    graph: Graph
    grid: TileGrid
    slab: int

    @classmethod
    def over(cls, graph: Graph, volume: Triple, core: Triple, halo: Triple, slab: int) -> Stream:
        """Over a volume.

        Args:
            graph: The network.
            volume: Extent along z, y, x.
            core: Extent of a whole tile's core; a multiple of the stride.
            halo: Context a side; a multiple of the stride, at least the receptive radius, of which no more than needed is
                read. Unused where unpadded.
            slab: Slices that the network takes in at once; a multiple of the stride.
        """
        radius = receptive_radius(graph)
        if graph.is_padded:
            return cls(graph, TileGrid(volume, core, graph.stride, per_axis(min, halo, radius)), slab)
        rest = per_axis(lambda n, s: n % s, whole_window(graph, volume), graph.stride)
        return cls(graph, TileGrid(volume, core, graph.stride, radius, "valid", rest), slab)

    def schedule(self, tile: Tile) -> Schedule:
        """What each node computes of a tile, turn by turn.

        Raises:
            ValueError: It needs more than the tile's window.
        """
        spans = zip(tile.core.start, tile.core.stop, tile.window.start, tile.window.stop, strict=True)
        axes = triple(self.needs(axis, Span(a, b), Span(c, d)) for axis, (a, b, c, d) in enumerate(spans))
        schedule = Schedule(self.graph, axes, self.slab)
        if not tile.window.contains(schedule.window):
            raise ValueError(
                f"The network needs the voxels {schedule.window} for {tile}, whose window is {tile.window}."
            )
        return schedule

    def needs(self, axis: int, core: Span, window: Span) -> Needs:
        """What a core needs along one axis; where its window ends, on the stride, layers pad themselves."""
        stride = self.graph.stride[axis]
        ends = Span(window.start // stride * stride, round_up(window.stop, stride))
        return needs(self.graph, axis, core, ends if self.graph.is_padded else None)

    def distinct_needs(self, axis: int) -> Iterator[tuple[Needs, int]]:
        """Needs of the cores along an axis, and the number of their like."""
        return ((self.needs(axis, core, window), times) for core, window, times in self.grid.distinct_cores(axis))

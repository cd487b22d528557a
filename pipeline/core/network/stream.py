"""A network over the tiles of a volume, slab by slab: which tiles it takes, and what it does with one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from pipeline.core.geometry.box import Span, Triple, per_axis, round_up, triple
from pipeline.core.network.flow import schedule_of
from pipeline.core.network.graph import Graph
from pipeline.core.network.mean import Mean, View
from pipeline.core.network.need import Needs, needs
from pipeline.core.network.receptive import receptive_radius, whole_window
from pipeline.core.network.schedule import Schedule
from pipeline.core.network.symmetry import Symmetry
from pipeline.core.tiles.grid import Tile, TileGrid


@dataclass(frozen=True, slots=True)
class Stream:
    """A network that streams over tiles along z.

    Args:
        graph: The network.
        grid: Its tiles.
        slab: Slices that the network takes in at once; a multiple of the stride.
        mean: Of which passes a prediction is the mean, the network's own the first; None where there is one.
    """

    graph: Graph
    grid: TileGrid
    slab: int
    mean: Mean | None = None

    @classmethod
    def over(
        cls, graph: Graph, volume: Triple, core: Triple, halo: Triple, slab: int, mean: Mean | None = None
    ) -> Stream:
        """Over a volume.

        Args:
            graph: The network.
            volume: Extent along z, y, x.
            core: Extent of a whole tile's core; a multiple of the stride.
            halo: Context a side; a multiple of the stride, at least the receptive radius, of which no more than needed is
                read. Unused where unpadded.
            slab: Slices that the network takes in at once; a multiple of the stride.
            mean: Of which passes a prediction is the mean; None where it is of one.
        """
        if mean is not None:
            return cls(graph, _grid(mean, volume, core, halo), slab, mean)
        radius = receptive_radius(graph)
        if graph.is_padded:
            return cls(graph, TileGrid(volume, core, graph.stride, per_axis(min, halo, radius)), slab)
        rest = per_axis(lambda n, s: n % s, whole_window(graph, volume), graph.stride)
        return cls(graph, TileGrid(volume, core, graph.stride, radius, "valid", rest), slab)

    @property
    def views(self) -> tuple[View, ...]:
        """The passes of its mean."""
        return self.mean.views(self.grid.volume, self.slab) if self.mean else ()

    def alone(self, graph: Graph) -> Stream:
        """One network of its mean over the same tiles."""
        return replace(self, graph=graph, mean=None)

    @property
    def bounds(self) -> Iterator[Stream]:
        """Streams of one pass that hold no less than any pass of its mean does.

        Turned, a core of an unpadded network may begin off its stride: it lies within one that is a stride longer.
        """
        if self.mean is None:
            yield self
            return
        longer = (0, 0, 0) if self.mean.is_padded else self.mean.stride
        ways = {Symmetry(symmetry.swaps) for symmetry in self.mean.symmetries}
        for graph, way in product(dict.fromkeys(self.mean.graphs), ways):
            volume, core = (
                way.extents(per_axis(lambda n, s: n + s, extents, longer))
                for extents in (self.grid.volume, self.grid.core)
            )
            grid = replace(self.grid, volume=volume, core=core, margin=way.extents(self.grid.margin))
            yield Stream(graph, grid, self.slab)

    def schedule(self, tile: Tile) -> Schedule:
        """What each node computes of a tile, turn by turn.

        Raises:
            ValueError: It needs more than the tile's window.
        """
        spans = zip(tile.core.start, tile.core.stop, tile.window.start, tile.window.stop, strict=True)
        axes = triple(self.needs(axis, Span(a, b), Span(c, d)) for axis, (a, b, c, d) in enumerate(spans))
        schedule = schedule_of(self.graph, axes, self.slab)
        if not tile.window.contains(schedule.window):
            raise ValueError(
                f"The network needs the voxels {schedule.window} for {tile}, whose window is {tile.window}."
            )
        return schedule

    def needs(self, axis: int, core: Span, window: Span) -> Needs:
        """What a core needs along one axis; where its window ends, on the stride, layers pad themselves.

        Where places follow from the extent of the volume, they end where that does, whatever the window.
        """
        stride = self.graph.stride[axis]
        if self.graph.anchored:
            return needs(self.graph, axis, core, Span(0, round_up(self.grid.volume[axis], stride)))
        ends = Span(window.start // stride * stride, round_up(window.stop, stride))
        return needs(self.graph, axis, core, ends if self.graph.is_padded else None)

    def distinct_needs(self, axis: int) -> Iterator[tuple[Needs, int]]:
        """Needs of the cores along an axis, and the number of their like."""
        return ((self.needs(axis, core, window), times) for core, window, times in self.grid.distinct_cores(axis))


def _grid(mean: Mean, volume: Triple, core: Triple, halo: Triple) -> TileGrid:
    """Tiles of a mean: each reads the hull of what its passes need."""
    margin = mean.margin(volume)
    if mean.is_padded:
        return TileGrid(volume, core, mean.stride, per_axis(min, halo, margin))
    rest = per_axis(lambda m, s: 2 * m % s, margin, mean.stride)
    return TileGrid(volume, core, mean.stride, margin, "valid", rest)

"""The mean of several passes: of networks side by side, each on the volume as several symmetries show it.

One pass is a view. Its coordinates are its own: the network sees a volume whose axes may be reversed or changed, extended beforehand to the
extents that one pass takes, so a tile's core lies elsewhere, and needs what it needs there; a reach of 21 voxels before and 22 after
becomes one of 22 before. A tile reads the hull of what its views need.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import lcm

from pipeline.core.geometry.box import Box, Span, Triple, per_axis, round_up, triple
from pipeline.core.network.flow import schedule_of
from pipeline.core.network.graph import Graph
from pipeline.core.network.need import needs
from pipeline.core.network.receptive import legal_extent, lost_margin, whole_window
from pipeline.core.network.schedule import Schedule
from pipeline.core.network.symmetry import Augment, Symmetry, symmetries


@dataclass(frozen=True, slots=True)
class View:
    """One pass of a mean.

    Args:
        graph: The network.
        symmetry: How it sees the volume.
        whole: What the one pass takes in, in the view's coordinates.
        slab: Slices that the network takes in at once; a multiple of its stride.
    """

    graph: Graph
    symmetry: Symmetry
    whole: Box
    slab: int

    @classmethod
    def of(cls, graph: Graph, symmetry: Symmetry, volume: Triple, slab: int) -> View:
        """Over a volume of so many voxels along z, y, x, before it is extended."""
        return cls(graph, symmetry, _whole(graph, symmetry.extents(volume)), slab)

    def schedule(self, core: Box) -> Schedule:
        """What each node computes of a core of the volume, in the view's coordinates."""
        seen = self.symmetry.box(core, self.whole)
        ends = [Span(*pair) for pair in zip(self.whole.start, self.whole.stop, strict=True)]
        padded = self.graph.is_padded
        axes = triple(
            needs(self.graph, axis, Span(seen.start[axis], seen.stop[axis]), ends[axis] if padded else None)
            for axis in range(3)
        )
        return schedule_of(self.graph, axes, self.slab)

    def window(self, core: Box) -> Box:
        """Voxels of the volume that a core needs, beyond its ends where it is mirrored."""
        return self.symmetry.origin(self.schedule(core).window, self.whole)

    def margin(self) -> Triple:
        """Voxels of the volume that cores on its stride need on either side, at most."""
        spans = []
        for axis, stride in enumerate(self.graph.stride):
            start = (self.whole.start[axis] + self.whole.stop[axis]) % stride if self.symmetry.flips[axis] else 0
            read = needs(self.graph, axis, Span(start, start + stride), None).input
            spans.append(max(start - read.start, read.stop - start - stride, 0))
        return self.symmetry.extents(triple(spans))  # it is its own inverse


def _whole(graph: Graph, volume: Triple) -> Box:
    """What the one pass takes in: the volume, mirrored at its far end to the stride; unpadded, by the margin that the pass loses too."""
    if graph.is_padded:
        return Box.of_shape(per_axis(round_up, volume, graph.stride))
    start = per_axis(lambda margin: -margin, lost_margin(graph))
    return Box.of_shape(whole_window(graph, volume)).moved(start)


@dataclass(frozen=True, slots=True)
class Mean:
    """Of which passes a prediction is the mean.

    Args:
        graphs: The networks, in order.
        ndim: Spatial axes that they have.
        augment: How each sees the volume.
    """

    graphs: tuple[Graph, ...]
    ndim: int
    augment: Augment = "none"

    @property
    def is_plain(self) -> bool:
        """Whether it is of one pass, which is no mean."""
        return len(self.graphs) == 1 and self.augment == "none"

    @property
    def symmetries(self) -> tuple[Symmetry, ...]:
        return symmetries(self.augment, self.ndim)

    @property
    def passes(self) -> int:
        """How many."""
        return len(self.graphs) * len(self.symmetries)

    @property
    def is_padded(self) -> bool:
        """Whether no network needs voxels from beyond the ends."""
        return all(graph.is_padded for graph in self.graphs)

    @property
    def stride(self) -> Triple:
        """What cores are multiples of: the least that is a multiple of all strides."""
        return triple(lcm(*axis) for axis in zip(*(graph.stride for graph in self.graphs), strict=True))

    def margin(self, volume: Triple) -> Triple:
        """Voxels a side that a core needs, at most, of a volume."""
        return _margin(self, volume)

    def views(self, volume: Triple, slab: int) -> tuple[View, ...]:
        """All passes, network by network, in the order in which they are added up."""
        return tuple(View.of(graph, symmetry, volume, slab) for graph in self.graphs for symmetry in self.symmetries)

    def problems(self, voxel: tuple[float, ...] | None) -> Iterator[str]:
        """Why y and x cannot change places, where they shall.

        Args:
            voxel: Size along z, y, x, or y, x; None where it is not known.
        """
        if self.augment != "rotations":
            return
        if voxel and voxel[-2] != voxel[-1]:
            yield f"a voxel is {voxel[-2]:g} long along y and {voxel[-1]:g} along x, so a turned volume is another"
        for graph in dict.fromkeys(self.graphs):
            y, x = graph.stride[1:]
            if y != x:
                yield f"the network's stride is {y} along y and {x} along x"
            elif not _takes_the_same(graph, y):
                yield "the extents that one pass of the network takes differ between y and x"


@lru_cache(maxsize=64)  # a plan's grid is asked for at every tile
def _margin(mean: Mean, volume: Triple) -> Triple:
    alike = replace(mean, graphs=tuple(dict.fromkeys(mean.graphs)))
    margins = [view.margin() for view in alike.views(volume, mean.stride[0])]
    return triple(map(max, zip(*margins, strict=True)))


def _takes_the_same(graph: Graph, stride: int) -> bool:
    """Whether one pass takes along y what it takes along x."""
    _, *margins = lost_margin(graph)
    if margins[0] != margins[1]:
        return False
    least = 2 * margins[0] + 1
    return all(legal_extent(graph, 1, n) == legal_extent(graph, 2, n) for n in range(least, least + stride))

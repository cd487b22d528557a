"""How far an output block reaches, and which extents one pass takes, from the network's own operations."""

from __future__ import annotations

from functools import lru_cache

from pipeline.core.geometry.box import Span, Triple, per_axis, round_up, triple
from pipeline.core.network.graph import Graph
from pipeline.core.network.local import local
from pipeline.core.network.need import needs

Sides = tuple[int, int]
"""Voxels before and after."""


@lru_cache(maxsize=32)
def receptive_radius(graph: Graph) -> Triple:
    """Margin a side, voxels along z, y, x, that an output block on the stride lattice needs.

    Of the UNet, same padding: 8, 22, 46, 94 at depth 1 to 4. Unpadded: 3 * 2**(d+1) - 4, that is 8, 20, 44, 92, which is
    what each side loses in the pass. A 2D network reaches nothing along z. A single voxel at its worst phase reaches
    further, which no tile ever asks for.
    """
    return triple(max(side) if graph.is_padded else side[0] for side in reach(graph))


@lru_cache(maxsize=32)
def reach(graph: Graph) -> tuple[Sides, Sides, Sides]:
    """The same of either side, before and after; along an axis they may differ. Of norms over the whole input, as if their statistics were fixed."""
    graph = local(graph)
    spans = (needs(graph, axis, Span(0, s), None).input for axis, s in enumerate(graph.stride))
    return triple((-span.start, span.stop - s) for span, s in zip(spans, graph.stride, strict=True))


def voxel_reach(graph: Graph) -> tuple[Sides, Sides, Sides]:
    """Margin before and after, voxels along z, y, x, that any output voxel needs, wherever it lies on the stride lattice.

    What a tile whose place is free must have around it; a tile on the lattice needs the receptive radius, which is less.
    """

    def sides(axis: int, stride: int) -> Sides:
        spans = [needs(graph, axis, Span(place, place + 1), None).input for place in range(stride)]
        before = max(place - span.start for place, span in enumerate(spans))
        return before, max(span.stop - place - 1 for place, span in enumerate(spans))

    return triple(sides(axis, stride) for axis, stride in enumerate(graph.stride))


def least_halo(graph: Graph) -> Triple:
    """The receptive radius rounded up to the stride: what an exact tile is surrounded by, same padding."""
    return per_axis(round_up, receptive_radius(graph), graph.stride)


def lost_margin(graph: Graph) -> Triple:
    """Voxels along z, y, x that a pass loses on each side: none with same padding."""
    return (0, 0, 0) if graph.is_padded else receptive_radius(graph)


@lru_cache(maxsize=256)
def legal_extent(graph: Graph, axis: int, needed: int) -> int:
    """The least extent along an axis, at least `needed`, that one pass takes without an odd map before a pooling, and without leaving out voxels at the end.

    Same padding: a multiple of the stride. Unpadded: four voxels are lost before each pooling, so of the UNet, extents
    are congruent to -4 modulo the stride (572 at depth 4).
    """
    first = -lost_margin(graph)[axis]
    extents = range(needed, needed + graph.stride[axis])
    return next(n for n in extents if _passes(graph, axis, Span(first, first + n), needed + 2 * first))


def whole_window(graph: Graph, volume: Triple) -> Triple:
    """Extents of the one pass over the whole volume that the stitched output must equal."""
    needed = per_axis(lambda n, m: n + 2 * m, volume, lost_margin(graph))
    return triple(legal_extent(graph, axis, n) for axis, n in enumerate(needed))


def _passes(graph: Graph, axis: int, window: Span, wanted: int) -> bool:
    """Whether one pass takes a window, and gives so many voxels of it: every pooling finds whole groups, or need not."""
    try:
        return graph.ends(axis, window)[graph.output.name].stop >= wanted
    except ValueError:
        return False

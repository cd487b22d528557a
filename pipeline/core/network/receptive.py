"""How far an output block reaches, and which extents one pass takes, from the network's own operations."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from pipeline.core.geometry.box import Span, Triple, per_axis, round_up, triple
from pipeline.core.network.graph import Graph
from pipeline.core.network.local import local
from pipeline.core.network.need import Needs, needs

Sides = tuple[int, int]
"""Voxels before and after."""

MOST_STRIDES = 1000
"""Of margin, or more voxels, until there are none that would do."""


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
    blocks = (needs(graph, axis, Span(0, s), None) for axis, s in enumerate(graph.stride))
    return triple(_clear_of_padding(graph, block) if graph.is_padded else _sides(block) for block in blocks)


def _sides(block: Needs) -> Sides:
    return -block.input.start, block.input.stop - block.core.stop


def _clear_of_padding(graph: Graph, block: Needs) -> Sides:
    """Margins of a block at whose ends no layer puts values of its own where the block reads.

    As a rule that is what it reads of the volume. A crop takes what is beyond, and a padding after it fills that place: there it is more.

    Raises:
        ValueError: No margin is wide enough.
    """
    axis, stride = block.axis, block.core.stop
    before, after = _sides(block)
    far = round_up(max(before, after), stride) + MOST_STRIDES * stride
    read = [
        (block.reads[n.name], name) for n in graph.nodes[1:] for name in n.inputs if not graph.is_shrunk(axis, name)
    ]

    def is_clear(low: int, high: int) -> bool:
        ends = graph.ends(axis, Span(-low, stride + high))
        return all(span.clipped(ends[name]) == span for span, name in read)

    def margin(least: int, window: Callable[[int], Sides]) -> int:
        for more in range(0, MOST_STRIDES * stride, stride):
            if is_clear(*window(round_up(least, stride) + more)):
                return round_up(least, stride) + more if more else least
        raise ValueError(f"Along axis {axis} no margin is wide enough, be it {far} voxels.")

    return margin(before, lambda low: (low, far)), margin(after, lambda high: (far, high))


def voxel_reach(graph: Graph) -> tuple[Sides, Sides, Sides]:
    """Margin before and after, voxels along z, y, x, that any output voxel needs, wherever it lies on the stride lattice.

    What a tile whose place is free must have around it; a tile on the lattice needs the receptive radius, which is less.
    """

    def sides(axis: int, stride: int, block: Sides) -> Sides:
        spans = [needs(graph, axis, Span(place, place + 1), None).input for place in range(stride)]
        before = max(place - span.start for place, span in enumerate(spans))
        after = max(span.stop - place - 1 for place, span in enumerate(spans))
        return max(before, block[0]), max(after, block[1])

    blocks = enumerate(zip(graph.stride, reach(graph), strict=True))
    return triple(sides(axis, stride, block) for axis, (stride, block) in blocks)


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
    are congruent to -4 modulo the stride (572 at depth 4). Where a layer crops, or mirrors, there must be something left, or enough.

    Raises:
        ValueError: No extent is one that a pass takes.
    """
    first = -lost_margin(graph)[axis]
    for n in range(needed, needed + MOST_STRIDES * graph.stride[axis]):
        if _passes(graph, axis, Span(first, first + n), needed + 2 * first):
            return n
    raise ValueError(f"Along axis {axis} no extent from {needed} on is one that a pass takes.")


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

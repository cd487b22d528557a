"""What each node must compute for a core: copy and crop, along one axis at a time.

Towards the output a network needs less and less margin, so needs are walked backwards from the core: a 3-convolution
reads one voxel more a side, up-sampling by two half as many, pooling by two twice as many; a node writes the hull of
what its readers read, and each of them crops it to that. Coordinates are the volume's, at each node's own level, so that
no tile has a phase of its own.

    fc            |        core        |
    decoder1_1    |                    |
    decoder1_2   +1                    +1
    concatenation  +2                    +2        <- the skip is cropped to this
    ...
    encoder1_1  +45                      +45
    input       +46                      +46           depth 3; clipped where the volume ends
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.core.geometry.box import Span
from pipeline.core.network.graph import Graph, Node


@dataclass(frozen=True, slots=True)
class Needs:
    """What a core needs along one axis.

    Args:
        axis: 0, 1, 2 for z, y, x.
        core: What is kept of what the network gives.
        input: Voxels of the volume that are read.
        writes: By node, what is kept of what it computes, at the level that it writes.
        reads: By node, what it reads of each of its inputs, at the level that it reads.
        ends: By node, where what it writes ends; None where there are no ends.
    """

    axis: int
    core: Span
    input: Span
    writes: dict[str, Span]
    reads: dict[str, Span]
    ends: dict[str, Span] | None = None

    def computes(self, node: Node) -> int:
        """Voxels that a node computes along the axis; up-sampling makes whole groups, some of which are cropped."""
        return node.operation.computed(self.axis, self.writes[node.name]).extent

    def frame(self, node: Node) -> Span:
        """What a node reads in all, the padding that it puts beyond the volume's ends included."""
        if node.operation.is_whole:
            return self.reads[node.name]
        return node.operation.need(self.axis, self.writes[node.name], None)


def needs(graph: Graph, axis: int, core: Span, ends: Span | None) -> Needs:
    """What a core needs along an axis.

    Args:
        graph: The network.
        axis: 0, 1, 2 for z, y, x.
        core: What is kept, voxels of the volume.
        ends: Where layers pad themselves, on the network's stride. None for an unpadded network.
    """
    bounds = graph.ends(axis, ends) if ends else None
    writes, reads = {graph.output.name: core}, {}
    for node in reversed(graph.nodes[1:]):
        for name in node.inputs:
            if graph.is_shrunk(axis, name):
                read = Span(0, 1)
            else:
                read = node.operation.need(axis, writes[node.name], bounds[name] if bounds else None)
            known = writes.get(name)
            writes[name] = read if known is None else known.hull(read)
            reads[node.name] = read
    return Needs(axis, core, writes[graph.input.name], writes, reads, bounds)

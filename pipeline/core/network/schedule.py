"""When each layer of a sweep computes which slices: a column streams along z, and nothing is computed twice.

Every turn takes in one slab, `step` slices of the input, and each node writes what its input then allows:

    turn          1       2       3       4       5
    input      |0-----8|8----16|16---24|24---32|                 step 8, depth 1, volume of 32 slices
    encoder1_1 |0----7 |7----15|15---23|23---31|31|              a convolution lags one slice behind its input
    encoder1_2 |0---6  |6----14|14---22|22---30|30-32|           an even lag: the pooling takes whole pairs
    ...
    fc         |0|      0-----8|8----16|16---24|24--32|          8 slices behind: the receptive radius

Nodes away from the ends write the same number of slices each turn, so shapes are fixed; at both ends a turn writes
less, and the slices of all turns together are just those that the core needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from pipeline.core.geometry.box import Box, Span
from pipeline.core.network.graph import Graph, Node
from pipeline.core.network.need import Needs


@dataclass(frozen=True)
class Schedule:
    """The turns of one sweep.

    Args:
        graph: The network; the core is of what it gives, at its level.
        axes: What the core needs along z, y, x.
        step: Slices of the input a turn; a multiple of the stride.
    """

    graph: Graph
    axes: tuple[Needs, Needs, Needs]
    step: int

    @property
    def window(self) -> Box:
        """Voxels of the volume that it takes in, beyond its ends where it is mirrored."""
        return Box.of_spans(axis.input for axis in self.axes)

    @property
    def needs(self) -> Needs:
        """Along z, the axis of the sweep."""
        return self.axes[0]

    @cached_property
    def _starts(self) -> dict[str, int]:
        """By node, the slice that it would have reached before the first turn, were there input."""
        return self.graph.reached(self.needs.axis, self.needs.input.start)

    @cached_property
    def turns(self) -> int:
        """Turns until the last slice of the core is written."""
        output = self.graph.output
        return max(-(-(self.needs.core.stop - self._starts[output.name]) // self.slices(output)), 1)

    def slices(self, node: Node) -> int:
        """Slices that a node writes a turn, away from the ends."""
        return self.step // self.graph.scales[node.name][self.needs.axis]

    @cached_property
    def _paces(self) -> dict[str, tuple[int, int, Span]]:
        """By node: where it would stand before the first turn, slices a turn, and all that it ever writes."""
        return {
            node.name: (self._starts[node.name], self.slices(node), self.needs.writes[node.name])
            for node in self.graph.nodes
        }

    def reads(self, turn: int) -> Span:
        """Slices of the input that a turn takes in; turns count from 0."""
        return self.writes(self.graph.input, turn)

    def inputs(self) -> Iterator[Span]:
        """Slices of the input by turn, while there are any."""
        return (span for span in map(self.reads, range(self.turns)) if span.extent)

    def core(self, turn: int) -> Span:
        """Slices of the core that a turn gives."""
        return self.writes(self.graph.output, turn)

    def writes(self, node: Node, turn: int) -> Span:
        """Slices that a node writes in a turn, at its level."""
        return _paced(self._paces[node.name], turn)

    def turn(self, number: int) -> dict[str, Span]:
        """By node, the slices that it writes in a turn, at its level."""
        return {name: _paced(pace, number) for name, pace in self._paces.items()}

    def lag(self, node: Node, reader: Node) -> int:
        """Slices of a node that one of its readers still needs at the end of a turn, away from the ends."""
        return self.graph.lag(self.needs.axis, node, reader, self._starts)

    def held(self, node: Node) -> int:
        """Slices of its input that a node keeps from one turn to the next, away from the ends."""
        return self.lag(self.graph.node(node.inputs[0]), node)

    def waiting(self, node: Node) -> int:
        """Slices of a node that wait for the last of its readers, away from the ends, right after it wrote."""
        return max(self.lag(node, reader) for reader in self.graph.readers(node.name)) + self.slices(node)


def _paced(pace: tuple[int, int, Span], turn: int) -> Span:
    before, slices, (start, stop) = pace
    first = before + turn * slices
    if start <= first and first + slices <= stop:  # most turns
        return Span(first, first + slices)
    return Span(min(max(first, start), stop), min(max(first + slices, start), stop))

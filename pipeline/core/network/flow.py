"""When each node of any graph computes which slices: the turns of a stream whose nodes keep what they cannot use yet.

Nothing is asked of an operation but which slices it needs. How far each node is before the first turn follows from
`Operation.ready`; from then on every turn is like the one before, a slab further. What a node must keep follows from the
slices that its slowest reader needs next, and from those that a reader comes back to at an end: a mirrored one, or one
that is repeated.
"""

from __future__ import annotations

from functools import cached_property

from pipeline.core.geometry.box import Span
from pipeline.core.network.graph import Graph, Node
from pipeline.core.network.need import Needs
from pipeline.core.network.schedule import Schedule


def schedule_of(graph: Graph, axes: tuple[Needs, Needs, Needs], step: int) -> Schedule:
    """The turns in which a core is computed: of our UNet by its sweep's own rule, of any other graph as a flow."""
    return Schedule(graph, axes, step) if graph.is_swept or not graph.is_streamed else Flow(graph, axes, step)


class Flow(Schedule):
    """The turns of one stream of any graph; see `Schedule`."""

    @cached_property
    def _starts(self) -> dict[str, int]:
        """By node, the slice that it would have reached before the first turn, were there input."""
        return self.reached(self.needs.input.start)

    def reached(self, start: int) -> dict[str, int]:
        """By node, the first slice that it has not written when the input is there up to `start`, but for its ends."""
        stops = {self.graph.input.name: start}
        for node in self.graph.nodes[1:]:
            ready = [node.operation.ready(self.needs.axis, stops[n] - self._late(node, n)) for n in node.inputs]
            stops[node.name] = min(*ready, self.needs.writes[node.name].start)  # padding alone waits for its turn
        return stops

    def _late(self, node: Node, name: str) -> int:
        """Slices that a node waits for at the first end, beyond those that it needs elsewhere: what it mirrors or repeats."""
        start = self.needs.writes[node.name].start
        first, ends = Span(start, start + 1), self._ends(name)
        need = node.operation.need
        return max(need(0, first, ends).stop - need(0, first, None).stop, 0) if ends else 0

    def _ends(self, name: str) -> Span | None:
        """Where a node's slices end; None where there are no ends."""
        return self.needs.ends[name] if self.needs.ends else None

    def lag(self, node: Node, reader: Node) -> int:
        """Slices of a node that one of its readers still needs at the end of a turn, at most."""
        following = Span(self._starts[reader.name], self._starts[reader.name] + 1)
        lag = self._starts[node.name] - reader.operation.need(self.needs.axis, following, None).start
        stop, ends = self.needs.writes[reader.name].stop, self._ends(node.name)
        if ends:
            last = Span(stop - 1, stop)
            first = reader.operation.need(self.needs.axis, last, ends).start
            if first < reader.operation.need(self.needs.axis, last, None).start:  # it comes back to what it has read
                lag = max(lag, self.needs.writes[node.name].stop - first)
        return max(lag, 0)

    @cached_property
    def lags(self) -> dict[str, int]:
        """By node, slices that its slowest reader still needs at the end of a turn, at most; 0: nothing is held."""
        readers = self.graph.readers
        return {n.name: max((self.lag(n, reader) for reader in readers(n.name)), default=0) for n in self.graph.nodes}

    def held(self, node: Node) -> int:
        """Slices of what a node writes that there must be room for; 0 where they are used up in the turn that makes them."""
        lag = self.lags[node.name]
        return min(lag + self.slices(node), self.needs.writes[node.name].extent) if lag else 0

    def is_alike(self, one: Node, other: Node) -> bool:
        """Whether two nodes write the same slices in every turn."""
        return self._paces[one.name] == self._paces[other.name]

    def framed(self, axis: Needs, node: Node) -> Span:
        """What a node writes along an axis, and the zeros around it that its readers read."""
        span = axis.writes[node.name]
        for reader in self.graph.readers(node.name):
            span = span.hull(axis.frame(reader)) if reader.operation.fills else span
        return span

"""A network as a graph: nodes that each apply one operation to what nodes before them wrote.

    input - conv - relu - conv - relu -+- pool - conv - relu - conv - relu - up - concatenation - conv - relu - ...
                                       +---------------------------------------------^

What an operation is to the folds over a graph stands in `pipeline.core.network.operations`. No fold knows a node by its
name, which says no more than whose weights it has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import lcm

from pipeline.core.geometry.box import Span, Triple, per_axis, triple
from pipeline.core.network.operations import ANYWHERE, Input, Lattice, Operation


@dataclass(frozen=True, slots=True)
class Node:
    """One operation on the outputs of earlier nodes.

    Args:
        name: Its own in the graph; where it has weights, that of the module that owns them.
        operation: What it does.
        inputs: Names of the nodes that it reads.
        channels: That it writes.
    """

    name: str
    operation: Operation
    inputs: tuple[str, ...]
    channels: int


@dataclass(frozen=True)
class Graph:
    """A network, in the order in which one forward pass runs it.

    Args:
        nodes: The input first, what the network gives last; each reads earlier ones, and is read.

    Raises:
        ValueError: The nodes are no such graph.
    """

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        known: dict[str, Node] = {}
        for number, node in enumerate(self.nodes):
            self._check(number, node, known)
            known[node.name] = node
        unread = [node.name for node in self.nodes[:-1] if not self.readers(node.name)]
        if unread:
            raise ValueError(f"Nothing reads what {', '.join(unread)} of the graph would write.")

    def _check(self, number: int, node: Node, known: dict[str, Node]) -> None:
        if node.name in known:
            raise ValueError(f"Two nodes of the graph have the name '{node.name}'.")
        if missing := [name for name in node.inputs if name not in known]:
            raise ValueError(f"Node '{node.name}' reads {', '.join(missing)}, which no node before it writes.")
        is_input = isinstance(node.operation, Input)
        if is_input != (number == 0) or is_input != (not node.inputs):
            raise ValueError(f"Node '{node.name}' reads {len(node.inputs)} nodes; the first node is the only input.")
        if len(node.inputs) > 1 and not node.operation.takes_several:
            raise ValueError(f"Node '{node.name}' reads {len(node.inputs)} nodes, and its operation takes one.")
        written = node.operation.channels([known[name].channels for name in node.inputs])
        if written not in (None, node.channels):
            raise ValueError(f"Node '{node.name}' writes {node.channels} channels, and is given {written}.")

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Once: what follows from a graph is kept by graph, and one has some thirty nodes."""
        return hash(self.nodes)

    @property
    def input(self) -> Node:
        return self.nodes[0]

    @property
    def output(self) -> Node:
        return self.nodes[-1]

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def _readers(self) -> dict[str, tuple[Node, ...]]:
        return {read.name: tuple(n for n in self.nodes if read.name in n.inputs) for read in self.nodes}

    def node(self, name: str) -> Node:
        return self._by_name[name]

    def readers(self, name: str) -> tuple[Node, ...]:
        """The nodes that read what a node writes, in order."""
        return self._readers[name]

    def in_channels(self, node: Node) -> int:
        """Channels that a node reads."""
        return sum(self.node(name).channels for name in node.inputs)

    # --- what looks at the whole input ---

    @cached_property
    def whole(self) -> tuple[str, ...]:
        """Names of the nodes that look at all of a map, in order: no tile can tell what they give."""
        return tuple(n.name for n in self.nodes if n.operation.is_whole and not self.is_shrunk(2, n.inputs[0]))

    @property
    def is_local(self) -> bool:
        """Whether a tile and its halo tell what it gives."""
        return not self.whole

    @cached_property
    def _shrunk(self) -> tuple[frozenset[str], ...]:
        """By axis, the nodes that write one value for all voxels along it."""
        by_axis = []
        for axis in range(3):
            found: set[str] = set()
            for node in self.nodes:
                if node.operation.shrinks(axis) or (node.inputs and found.issuperset(node.inputs)):
                    found.add(node.name)
            by_axis.append(frozenset(found))
        return tuple(by_axis)

    def is_shrunk(self, axis: int, name: str) -> bool:
        """Whether a node writes one value for all voxels along an axis."""
        return name in self._shrunk[axis]

    def _in_space(self, axis: int, node: Node) -> list[str]:
        """Those that a node reads which have voxels along an axis."""
        return [name for name in node.inputs if name not in self._shrunk[axis]]

    # --- what a sweep holds ---

    @cached_property
    def layers(self) -> tuple[Node, ...]:
        """Nodes that write into memory of their own, in order; the rest is done as its reader takes it up."""
        return tuple(node for node in self.nodes[1:] if node.operation.has_own_memory)

    @cached_property
    def windows(self) -> tuple[Node, ...]:
        """Nodes that keep some of what they read for the next turn, in order."""
        return tuple(node for node in self.nodes if node.operation.has_window)

    @cached_property
    def waiting(self) -> tuple[Node, ...]:
        """Nodes whose output waits, in order: not the very next node alone reads it, or reads it later than it comes."""
        reached = self.reached(0, self.lattice(0, self.input.name).phase)
        waiting = []
        for node, following in zip(self.nodes, self.nodes[1:], strict=False):
            alone = self.readers(node.name) == (following,)
            if not alone or (not following.operation.has_window and self.lag(0, node, following, reached) > 0):
                waiting.append(node)
        return tuple(waiting)

    def reached(self, axis: int, start: int) -> dict[str, int]:
        """By node, the first voxel that it has not written when the input is there up to `start`, but for its ends."""
        stops = {self.input.name: start}
        for node in self.nodes[1:]:
            stop = min(node.operation.ready(axis, stops[name]) for name in node.inputs)
            period, phase = self.lattice(axis, node.name)
            stops[node.name] = stop - (stop - phase) % period
        return stops

    def lag(self, axis: int, node: Node, reader: Node, reached: dict[str, int]) -> int:
        """Voxels of a node that one of its readers still needs when all have `reached` so far."""
        following = Span(reached[reader.name], reached[reader.name] + 1)
        return reached[node.name] - reader.operation.need(axis, following, None).start

    # --- geometry ---

    @cached_property
    def scales(self) -> dict[str, Triple]:
        """By node, voxels of the volume for each voxel that it writes, along z, y, x.

        Raises:
            ValueError: A node writes more than one for each, or concatenates what differs.
        """
        scales: dict[str, Triple] = {self.input.name: (1, 1, 1)}
        for node in self.nodes[1:]:
            read = self._in_space(2, node)
            if not read or self.is_shrunk(2, node.name):
                scales[node.name] = (1, 1, 1)
                continue
            levels = {scales[name] for name in read}
            scale = per_axis(lambda n, down: n * down, scales[read[0]], node.operation.down)
            if len(levels) > 1 or any(per_axis(lambda n, up: n % up, scale, node.operation.up)):
                raise ValueError(
                    f"Node '{node.name}' reads levels {sorted(levels)} and up-samples by {node.operation.up}."
                )
            scales[node.name] = per_axis(lambda n, up: n // up, scale, node.operation.up)
        return scales

    @cached_property
    def stride(self) -> Triple:
        """Total down-sampling along z, y, x: what the network is equivariant to shifts by."""
        return triple(lcm(*axis) for axis in zip(*self.scales.values(), strict=True))

    @cached_property
    def is_swept(self) -> bool:
        """Whether the sweep of our UNet runs it."""
        return all(node.operation.has_step for node in self.nodes)

    @cached_property
    def is_streamed(self) -> bool:
        """Whether it runs slab by slab; else a tile is computed as one window."""
        return not self.unstreamed

    @cached_property
    def unstreamed(self) -> tuple[str, ...]:
        """Nodes that cannot go along z slab by slab."""
        return tuple(node.name for node in self.nodes if not node.operation.streams)

    @cached_property
    def anchored(self) -> tuple[str, ...]:
        """Nodes whose places follow from the extents of the whole volume: no window by itself can tell them."""
        return tuple(node.name for node in self.nodes if node.operation.is_anchored)

    @cached_property
    def is_padded(self) -> bool:
        """Whether its layers pad themselves at the volume's ends; else the volume is mirrored, and a pass loses a margin."""
        return any(node.operation.pads for node in self.nodes)

    def ends(self, axis: int, ends: Span) -> dict[str, Span]:
        """By node, where what it writes ends along an axis, if the volume has `ends`. A concatenation has what all have.

        Raises:
            ValueError: A pooling finds no whole groups; see `Operation.ends`.
        """
        spans = {self.input.name: ends}
        for node in self.nodes[1:]:
            if self.is_shrunk(axis, node.name):
                spans[node.name] = Span(0, 1)
                continue
            first, *others = self._in_space(axis, node)
            span = spans[first]
            for name in others:
                if spans[name] != span and not node.operation.crops:
                    raise ValueError(f"Node '{node.name}' reads {span} and {spans[name]}, which do not end together.")
                span = span.clipped(spans[name])
            spans[node.name] = node.operation.ends(axis, span)
        return spans

    @cached_property
    def _lattices(self) -> dict[int, dict[str, Lattice]]:
        """By axis, as far as they have been asked for."""
        return {}

    def lattice(self, axis: int, name: str) -> Lattice:
        """Where a node must stop each turn, so that those that read it find whole groups.

        Raises:
            ValueError: They have none in common.
        """
        if axis not in self._lattices:
            self._lattices[axis] = self._lattices_along(axis)
        return self._lattices[axis][name]

    def _lattices_along(self, axis: int) -> dict[str, Lattice]:
        lattices: dict[str, Lattice] = {}
        for node in reversed(self.nodes):
            lattice = ANYWHERE
            for reader in self.readers(node.name):
                lattice = _common(lattice, reader.operation.lattice(axis, lattices[reader.name]), node)
            lattices[node.name] = lattice
        return lattices


def _common(one: Lattice, other: Lattice, node: Node) -> Lattice:
    """What two lattices have in common."""
    period = lcm(one.period, other.period)
    for phase in range(period):
        if phase % one.period == one.phase and phase % other.period == other.phase:
            return Lattice(period, phase)
    raise ValueError(f"The readers of node '{node.name}' begin their groups at {one} and at {other}: nowhere together.")

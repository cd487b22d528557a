"""Any graph as a stream along z: slab by slab, nothing computed twice, in y and x no more than the core needs.

Which slices a node computes in a turn says `pipeline.core.network.flow`; how, `pipeline.networks.evaluate`, whose arithmetic
this is. What a reader needs again in a later turn stays in a ring; what is used up in its own turn has no memory that lasts. The
plane of a ring has the zeros around it that convolutions read beyond the volume's ends, so that they take it as it lies.
The parts of a concatenation are written where it wants them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from pipeline.core.geometry.box import Box, Span
from pipeline.core.network.flow import Flow
from pipeline.core.network.graph import Node
from pipeline.core.network.operations import Concatenation
from pipeline.core.network.schedule import Schedule
from pipeline.networks.evaluate import STEPS, Piece, Step, Weights, blank
from pipeline.networks.sweep import Arena


class Streaming:
    """A network ready to stream columns of one shape.

    Args:
        weights: Of its nodes.
        schedule: What each node computes in each turn.
        like: A tensor of the computation's dtype, on its device.
        arena: Whose memory it uses, while nothing else does; None for one of its own.
    """

    def __init__(self, weights: Weights, schedule: Schedule, like: Tensor, arena: Arena | None = None) -> None:
        if not isinstance(schedule, Flow):
            raise TypeError("A stream of any graph takes the turns of a flow.")
        self.schedule, self._like = schedule, like
        graph, arena = schedule.graph, Arena() if arena is None else arena
        self._rings = {n.name: _Ring(n, schedule, like, arena) for n in graph.nodes if schedule.held(n)}
        self._works = {node.name: self._work(node, weights) for node in graph.nodes}
        for node in graph.nodes:
            if isinstance(node.operation, Concatenation):
                self._join(node)
        last = {name: node.name for node in graph.nodes for name in node.inputs}
        for name, reader in last.items():
            self._works[reader].drops.append(name)

    def _work(self, node: Node, weights: Weights) -> _Work:
        y, x = self.schedule.axes[1:]
        axes = self.schedule.axes
        return _Work(
            node,
            weights.get(node.name, ()),
            (y.writes[node.name], x.writes[node.name]),
            (y.frame(node), x.frame(node)) if node.inputs else (y.input, x.input),
            [axis.ends[node.inputs[0]] if axis.ends and node.inputs else None for axis in axes],
            [axes[0].ends[name] if axes[0].ends else None for name in node.inputs],
            self.schedule.graph.readers(node.name),
        )

    def _join(self, node: Node) -> None:
        """Have parts of a concatenation that nothing else reads written where it wants them."""
        works = [self._works[name] for name in node.inputs]
        stops = list(accumulate((work.node.channels for work in works), initial=0))
        for number, work in enumerate(works):
            alone = work.readers == (node,) and node.inputs.count(work.node.name) == 1
            alike = work.plane == self._works[node.name].plane and self.schedule.is_alike(work.node, node)
            if alone and alike and work.node.inputs and work.node.name not in self._rings:
                work.joined = node, slice(stops[number], stops[number + 1])

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Nothing: its rings are there, and the first turn is like any other."""

    @torch.inference_mode()
    def run(self, slabs: Iterable[Tensor]) -> Iterator[tuple[Span, Tensor]]:
        """Logits of the core's y and x, as z advances.

        Args:
            slabs: The input, `Schedule.reads(turn)` by turn while there is any; Z Y X C, normalised.

        Yields:
            Slices of the volume, and their logits, Z Y X C.
        """
        for ring in self._rings.values():
            ring.reset()
        source = iter(slabs)
        for turn in range(self.schedule.turns):
            written = self.schedule.turn(turn)
            slab_ZYXC = next(source) if self.schedule.reads(turn).extent else None
            values = _Turn(self._works, self._rings, written, self._like).run(slab_ZYXC)
            if values is not None:
                yield self.schedule.core(turn), values[0].movedim(0, -1)


@dataclass(slots=True)
class _Work:
    """What of a node is the same in every turn.

    Args:
        node: Which.
        weights: Its own.
        plane: What it writes along y and x.
        frame: What it reads along y and x, beyond the ends too.
        ends: Where what it reads first ends, along z, y, x.
        input_ends: Where what it reads ends along z, by input.
        readers: Nodes that read it.
        joined: The concatenation in whose memory it writes, and the channels there; None: in memory of its own.
        drops: Nodes whose slices of a turn nothing reads after it.
    """

    node: Node
    weights: tuple[Tensor, ...]
    plane: tuple[Span, Span]
    frame: tuple[Span, Span]
    ends: list[Span | None]
    input_ends: list[Span | None]
    readers: tuple[Node, ...]
    joined: tuple[Node, slice] | None = None
    drops: list[str] = field(default_factory=list)


class _Turn:
    """One slab through all nodes."""

    def __init__(
        self, works: dict[str, _Work], rings: dict[str, _Ring], written: dict[str, Span], like: Tensor
    ) -> None:
        self._works, self._rings, self._written, self._like = works, rings, written, like
        self._pieces: dict[str, Piece] = {}
        self._own: set[str] = set()
        self._places: dict[str, Tensor] = {}

    def run(self, slab_ZYXC: Tensor | None) -> Tensor | None:
        """What the last node gives, 1 C Z Y X; None where that is nothing yet."""
        name = ""
        for name, work in self._works.items():
            span = self._written[name]
            if span.extent > 0:
                self._do(work, span, slab_ZYXC)
            for read in work.drops:
                self._pieces.pop(read, None)
        if name not in self._pieces:
            return None
        values = self._pieces[name].values
        return values if name in self._own else values.clone()

    def _do(self, work: _Work, span: Span, slab_ZYXC: Tensor | None) -> None:
        node, ring = work.node, self._rings.get(work.node.name)
        if not node.inputs:
            if slab_ZYXC is None:
                raise RuntimeError(f"A turn was given nothing, where slices {span} of the input are due.")
            values = slab_ZYXC.movedim(-1, 0)[None]
            if ring is None:
                self._pieces[node.name] = Piece(values.to(self._like), Box.of_spans((span, *work.plane)))
            else:
                ring.place(span).copy_(values)
                ring.keep(span)
            return
        wanted = Box.of_spans((span, *work.plane))
        frame = Box.of_spans((node.operation.need(0, span, None), *work.frame))
        step = Step(node, work.weights, wanted, frame, (work.ends[0], work.ends[1], work.ends[2]))
        step.target = self._place(work, span)
        first = node.inputs[0]
        step.spare = first in self._own and len(self._works[first].readers) == 1
        given = [self._given(node, name, span, ends) for name, ends in zip(node.inputs, work.input_ends, strict=True)]
        values = STEPS[type(node.operation)](step, given)
        if ring is not None:
            ring.keep(span)
            return
        self._pieces[node.name] = Piece(values, wanted)
        if step.is_fresh:
            self._own.add(node.name)

    def _given(self, node: Node, name: str, span: Span, ends: Span | None) -> Piece:
        """What a node reads of one of its inputs."""
        ring = self._rings.get(name)
        if ring is None and name in self._pieces:
            return self._pieces[name]
        if ring is None:  # beyond all that it wrote
            work, start = self._works[name], node.operation.need(0, span, ends).start
            empty = Box.of_spans((Span(start, start), *work.plane))
            return Piece(blank(self._like, work.node.channels, empty.shape), empty)
        return ring.piece(node.operation.need(0, span, ends), node.operation.fills)

    def _place(self, work: _Work, span: Span) -> Tensor | None:
        """Where a node must write; None: anywhere."""
        if work.joined:
            reader, channels = work.joined
            if reader.name not in self._places:
                place = self._place(self._works[reader.name], span)
                if place is None:
                    place = blank(self._like, reader.channels, Box.of_spans((span, *work.plane)).shape)
                self._places[reader.name] = place
            return self._places[reader.name][:, channels]
        if work.node.name in self._places:
            return self._places.pop(work.node.name)
        ring = self._rings.get(work.node.name)
        return None if ring is None else ring.place(span)


class _Ring:
    """Slices of a node that a reader needs in a later turn too, written over once all have read them.

    Where few wait beside what a turn brings, they are moved to the beginning when the memory is full, so that all lie in one
    piece; else the memory is a ring, and a reader is given a copy where it closes.
    """

    def __init__(self, node: Node, schedule: Flow, like: Tensor, arena: Arena) -> None:
        self._name, self._like, self._channels = node.name, like, node.channels
        self._size, self._lag = schedule.held(node), schedule.lags[node.name]
        self._begin = schedule.needs.writes[node.name].start
        inner = [axis.writes[node.name] for axis in schedule.axes[1:]]
        outer = [schedule.framed(axis, node) for axis in schedule.axes[1:]]
        self._inner, self._outer = (inner[0], inner[1]), (outer[0], outer[1])
        self._inside = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner, outer, strict=True))
        shape = (self._size, *(span.extent for span in outer), node.channels)
        self._memory_ZYXC, _ = arena.buffer(node.name, shape, like, self._inside)
        self._slides = self._lag <= 2 * schedule.slices(node)
        self._pending: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        """Begin a column."""
        self._first = self._stop = self._begin

    def place(self, span: Span) -> Tensor:
        """Where the next slices are to be written, 1 C Z Y X."""
        if span.start != self._stop:
            raise RuntimeError(f"Node '{self._name}' has written up to {self._stop}, and goes on at {span.start}.")
        self._stop = span.stop
        if self._slides:
            if span.stop - self._first > self._size:
                self._move(max(span.start - self._lag, self._first))
            rows = self._memory_ZYXC[span.start - self._first : span.stop - self._first]
        else:
            at = span.start % self._size
            rows = self._memory_ZYXC[at : at + span.extent]
            if at + span.extent > self._size:
                self._pending = blank(self._like, self._channels, Box.of_spans((span, *self._inner)).shape)
                return self._pending
        return rows[(slice(None), *self._inside)].movedim(-1, 0)[None]

    def keep(self, span: Span) -> None:
        """What was written lies where it belongs from now on."""
        if self._pending is None:
            return
        values_ZYXC = self._pending[0].movedim(0, -1)
        left = self._size - span.start % self._size
        inside = (slice(None), *self._inside)
        self._memory_ZYXC[self._size - left :][inside] = values_ZYXC[:left]
        self._memory_ZYXC[: span.extent - left][inside] = values_ZYXC[left:]
        self._pending = None

    def _move(self, first: int) -> None:
        """Forget the slices before `first`."""
        by = first - self._first
        self._first = first
        kept = max(self._stop - first, 0)
        still = self._memory_ZYXC[by : min(by + kept, self._size)]
        self._memory_ZYXC[: len(still)].copy_(still if by >= len(still) else still.clone())

    def piece(self, span: Span, framed: bool) -> Piece:
        """Slices, with the zeros around them or without.

        Raises:
            RuntimeError: They are no longer there, or not yet.
        """
        oldest = self._first if self._slides else max(self._stop - self._size, self._begin)
        if span.extent > 0 and not oldest <= span.start <= span.stop <= self._stop:
            raise RuntimeError(
                f"Slices {span} of node '{self._name}' are asked for; it holds {oldest} to {self._stop}."
            )
        count = max(span.extent, 0)
        at = max(span.start - self._first, 0) if self._slides else span.start % self._size
        plane = (slice(None), slice(None)) if framed else self._inside
        rows = self._memory_ZYXC[at : at + count][(slice(None), *plane)]
        if not self._slides and at + count > self._size:
            rows = torch.cat([rows, self._memory_ZYXC[: at + count - self._size][(slice(None), *plane)]])
        y, x = self._outer if framed else self._inner
        return Piece(rows.movedim(-1, 0)[None], Box.of_spans((Span(span.start, span.start + count), y, x)))

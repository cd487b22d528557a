"""A network as a stream along z: one slab in, one slab out, nothing computed twice, and only what is kept.

Nodes run in the graph's order. The output of one in a turn goes straight to where the next one reads it, cropped to what
that needs: an activation is applied on the way, and the parts of a concatenation meet in the memory of the node that
reads it. A convolution reads a buffer that holds the slices it still needs of its input, with the network's own zeros
around them where the volume ends. What has other readers than the next node waits in a ring until the last has read it.

A new operation is a step here, beside its index map in `pipeline.core.network.operations`.

Shape suffixes: Z Y X C, channels last in memory, which is `channels_last_3d` for a 3D network, and a batch of slices in
`channels_last` for a 2D one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate, pairwise, product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from pipeline.core.geometry.box import Span, round_up
from pipeline.core.network.graph import Node
from pipeline.core.network.operations import (
    Activation,
    Concatenation,
    Convolution,
    Input,
    MaxPool,
    TransposedConvolution,
)
from pipeline.core.network.schedule import Schedule
from pipeline.networks.model import UNet

_Index = tuple[slice, ...]


@dataclass(frozen=True)
class Kernel:
    """Weights of a node as the sweep uses them: batch norm folded in, in the dtype and layout of the computation."""

    weight: Tensor
    bias: Tensor | None


def kernels(model: UNet, *, device: torch.device, dtype: torch.dtype) -> dict[str, Kernel]:
    """Kernels by node. Folding is done in float64."""
    graph = model.architecture.graph
    by_node = {}
    for node in graph.nodes:
        operation = node.operation
        if isinstance(operation, TransposedConvolution):  # a matrix: each voxel makes a group, channels last
            weight, bias = _of(model.get_submodule(node.name))
            weight = weight.double().flatten(2).permute(2, 1, 0).reshape(-1, graph.in_channels(node))
            weight = weight.to(device, dtype).contiguous()
            bias = bias if bias is None else bias.double().repeat(prod(operation.factor))
        elif isinstance(operation, Convolution) and operation.has_window:
            weight, bias = _folded(model.get_submodule(node.name))
            # a clone: `contiguous` leaves a single channel as it is, and what is computed with it would be channels first
            weight = weight.to(device, dtype).movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)
        elif isinstance(operation, Convolution):  # a matrix
            weight, bias = _of(model.get_submodule(node.name))
            weight = weight.flatten(1).to(device, dtype).contiguous()
        else:
            continue
        by_node[node.name] = Kernel(weight, bias if bias is None else bias.to(device, dtype))
    return by_node


def _of(module: torch.nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a convolution."""
    if not isinstance(module, torch.nn.modules.conv._ConvNd):
        raise TypeError(f"A {type(module).__name__} stands where a convolution should.")
    return module.weight, module.bias


def _folded(block: torch.nn.Module) -> tuple[Tensor, Tensor | None]:
    conv, *rest = block.children()
    weight, bias = _of(conv)
    weight, bias = weight.double(), None if bias is None else bias.double()
    norm = next((m for m in rest if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)), None)
    if norm is None:
        return weight, bias
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("A batch norm without running statistics cannot be folded into a kernel.")
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    bias = norm.bias.double() + scale * ((bias if bias is not None else 0.0) - norm.running_mean.double())
    return weight * scale.view(-1, *(1,) * (weight.ndim - 1)), bias


class Arena:
    """Memory of sweeps that run one after another: what one leaves is taken by the next, where it fits.

    Whoever runs them owns it. Two sweeps that run at once have an arena each.
    """

    def __init__(self) -> None:
        self._memory: dict[str, tuple[Tensor, object]] = {}

    def buffer(self, name: str, shape: tuple[int, ...], like: Tensor, frame: object) -> tuple[Tensor, bool]:
        """A node's buffer, and whether an earlier sweep has used it.

        Args:
            name: Of the node.
            shape: Z Y X C.
            like: Of its dtype, on its device.
            frame: What of it is written in each turn; the rest, which stays zero, must be the same for it to be used again.
        """
        return self._taken(f"buffer of {name}", shape, like, frame, torch.zeros)

    def ring(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Memory for what a node wrote, Z Y X C, as it was left."""
        return self._taken(f"ring of {name}", shape, like, None, torch.empty)[0]

    def _taken(
        self, key: str, shape: tuple[int, ...], like: Tensor, frame: object, make: Callable[..., Tensor]
    ) -> tuple[Tensor, bool]:
        entry = self._memory.pop(key, None)
        used = entry is not None and (entry[0].shape, entry[0].dtype, entry[0].device, entry[1]) == (
            shape,
            like.dtype,
            like.device,
            frame,
        )
        if entry is None or not used:
            del entry  # before there is more
            entry = make(shape, dtype=like.dtype, device=like.device), frame
        self._memory[key] = entry
        return entry[0], used

    def clear(self) -> None:
        """Give all of it back."""
        self._memory.clear()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that it holds, by `buffer of NODE` and `ring of NODE`."""
        return {key: memory for key, (memory, _) in self._memory.items()}


class Sweep:
    """A network ready to stream columns of one shape.

    Args:
        kernels: Its weights.
        schedule: What each node computes in each turn.
        arena: Whose memory it uses, while no other sweep does; None for one of its own.
    """

    def __init__(self, kernels: Mapping[str, Kernel], schedule: Schedule, arena: Arena | None = None) -> None:
        self.schedule = schedule
        places = _Places(schedule, kernels, Arena() if arena is None else arena)
        nodes = schedule.graph.nodes
        self._steps = [_STEPS[type(node.operation)](node, places) for node in nodes]
        self._turns = [
            (node.name, step, places.rings.get(node.name)) for node, step in zip(nodes, self._steps, strict=True)
        ]

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compute each convolution once, at the shape of a whole turn, so that its memory and its code are there.

        Not those whose memory an earlier sweep has used.
        """
        for step in self._steps:
            step.warm_up()

    @torch.inference_mode()
    def run(self, slabs: Iterable[Tensor]) -> Iterator[tuple[Span, Tensor]]:
        """Logits of the core's y and x, as z advances.

        Args:
            slabs: The input, `Schedule.reads(turn)` by turn while there is any; Z Y X C, normalised.

        Yields:
            Slices of the volume, and their logits, Z Y X C.
        """
        for step in self._steps:
            step.reset()
        source = iter(slabs)
        for turn in range(self.schedule.turns):
            slab_ZYXC = next(source) if self.schedule.reads(turn).extent else None
            logits_ZYXC = self._turn(turn, slab_ZYXC)
            if logits_ZYXC is not None:
                yield self.schedule.core(turn), logits_ZYXC

    def _turn(self, turn: int, slab_ZYXC: Tensor | None) -> Tensor | None:
        """One slab through all nodes; None stands for what a node cannot compute yet, or has no more of."""
        slices: _Slices | None = None if slab_ZYXC is None else _Computed(slab_ZYXC)
        written = self.schedule.turn(turn)
        for name, step, ring in self._turns:
            slices = step.run(written, slices)
            if slices is not None and ring is not None:
                ring.append(slices, written[name])
                slices = None
        return None if slices is None else slices.tensor()


# --- the output of a node in a turn -------------------------------------------------------------------------------------


class _Slices(ABC):
    """Slices of a node that are not yet where their reader wants them: what is done on the way is done once."""

    @abstractmethod
    def write(self, target_ZYXC: Tensor) -> None:
        """Put them in their place."""

    @abstractmethod
    def tensor(self) -> Tensor:
        """As a tensor that may be written over."""

    def views(self) -> list[Tensor]:
        """As they lie, one part after another, to be read only."""
        return [self.tensor()]

    def part(self, slices: slice) -> _Slices:
        """Some of them."""
        return _Computed(self.tensor()[slices])


@dataclass(frozen=True, slots=True)
class _Computed(_Slices):
    """What was computed in this turn, Z Y X C."""

    values: Tensor

    def write(self, target_ZYXC: Tensor) -> None:
        target_ZYXC.copy_(self.values)

    def tensor(self) -> Tensor:
        return self.values


@dataclass(frozen=True, slots=True)
class _Rectified(_Slices):
    """The same, through max(x, 0): in the pass over memory that puts it in its place."""

    source: _Slices

    def write(self, target_ZYXC: Tensor) -> None:
        torch.clamp_min(self.source.tensor(), 0, out=target_ZYXC)

    def tensor(self) -> Tensor:
        return self.source.tensor().relu_()

    def part(self, slices: slice) -> _Slices:
        return _Rectified(self.source.part(slices))


@dataclass(frozen=True, slots=True)
class _Waiting(_Slices):
    """What lies in a ring: the slices `span`, of which a reader wants `plane`."""

    ring: _Ring
    span: Span
    plane: tuple[slice, slice]

    def write(self, target_ZYXC: Tensor) -> None:
        for stored_ZYXC, part in self.ring.parts(self.span):
            target_ZYXC[part].copy_(stored_ZYXC[(slice(None), *self.plane)])

    def tensor(self) -> Tensor:
        return torch.cat(self.views())

    def views(self) -> list[Tensor]:
        return [stored_ZYXC[(slice(None), *self.plane)] for stored_ZYXC, _ in self.ring.parts(self.span)]


@dataclass(frozen=True, slots=True)
class _Groups(_Slices):
    """What up-sampling made.

    Args:
        groups: Z Y X C; for each coarse voxel, the channels of all the voxels that it makes, one after another.
        shape: Of what is wanted, Z Y X C.
        places: Where each voxel of a group lies in what is wanted, and which of the groups have it there.
    """

    groups: Tensor
    shape: tuple[int, ...]
    places: list[tuple[_Index, _Index]]

    def write(self, target_ZYXC: Tensor) -> None:
        """Put the voxels of each coarse voxel in their places; what they make beyond the target is cropped."""
        for there, here in self.places:
            target_ZYXC[there].copy_(self.groups[here])

    def tensor(self) -> Tensor:
        target_ZYXC = self.groups.new_empty(self.shape)
        self.write(target_ZYXC)
        return target_ZYXC


@dataclass(frozen=True, slots=True)
class _Joined(_Slices):
    """Channels one after another: each part is written where it belongs.

    Args:
        parts: What is joined.
        places: The channels of each part.
        shape: Of all of it, Z Y X C.
        like: Of the dtype, on the device.
    """

    parts: list[_Slices]
    places: list[slice]
    shape: tuple[int, ...]
    like: Tensor

    def write(self, target_ZYXC: Tensor) -> None:
        for part, channels in zip(self.parts, self.places, strict=True):
            part.write(target_ZYXC[..., channels])

    def tensor(self) -> Tensor:
        target_ZYXC = self.like.new_empty(self.shape)
        self.write(target_ZYXC)
        return target_ZYXC


# --- where it goes ------------------------------------------------------------------------------------------------------


class _Ring:
    """What waits for a reader that comes later: slices, written over once all have read them.

    A ring of its own, and not the outputs of the convolutions as they came: long-lived pieces between short-lived ones
    leave holes in the heap, and a process would grow with its column's length.
    """

    def __init__(self, node: Node, schedule: Schedule, like: Tensor, arena: Arena) -> None:
        lattice = schedule.graph.lattice(0, node.name)
        slices = min(schedule.waiting(node), schedule.needs.writes[node.name].extent)
        plane = [axis.writes[node.name].extent for axis in schedule.axes[1:]]
        self._size = round_up(slices, lattice.period)  # so that no group lies at both of its ends
        self._phase = lattice.phase
        self._ring_ZYXC = arena.ring(node.name, (self._size, *plane, node.channels), like)

    def append(self, slices: _Slices, span: Span) -> None:
        """Copy the next slices into the ring."""
        for target_ZYXC, part in self.parts(span):
            (slices if part == slice(0, span.extent) else slices.part(part)).write(target_ZYXC)

    def parts(self, span: Span) -> Iterator[tuple[Tensor, slice]]:
        """Where slices lie in the ring, and which of `span` they are: one part, or two where the ring closes."""
        done = 0
        while done < span.extent:
            at = (span.start + done - self._phase) % self._size
            count = min(span.extent - done, self._size - at)
            yield self._ring_ZYXC[at : at + count], slice(done, done + count)
            done += count


class _Places:
    """What the steps of a sweep have in common."""

    def __init__(self, schedule: Schedule, kernels: Mapping[str, Kernel], arena: Arena) -> None:
        self.schedule, self.kernels, self.arena = schedule, kernels, arena
        self.like = next(iter(kernels.values())).weight
        self.rings = {node.name: _Ring(node, schedule, self.like, arena) for node in schedule.graph.waiting}


class _Step(ABC):
    """A node at work. `_Windowed` alone keeps anything from turn to turn."""

    def __init__(self, node: Node, places: _Places) -> None:
        self._name, self._node, self._schedule, self._like = node.name, node, places.schedule, places.like
        self._rings = [places.rings.get(name) for name in node.inputs]
        self._plane = [axis.writes[node.name] for axis in places.schedule.axes[1:]]
        self._row = (*(span.extent for span in self._plane), node.channels)
        self._read_planes = [self._read_plane(name) for name in node.inputs]
        for name, ring in zip(node.inputs, self._rings, strict=True):
            lag = places.schedule.lag(places.schedule.graph.node(name), node)
            if ring is None and lag and not node.operation.has_window:
                raise ValueError(f"Node '{name}' is {lag} slices ahead of '{node.name}', and nothing keeps them.")

    def _read_plane(self, name: str) -> tuple[slice, slice]:
        """What it reads of what another node writes, along y and x."""
        y, x = (_within(axis.reads[self._node.name], axis.writes[name]) for axis in self._schedule.axes[1:])
        return y, x

    def reset(self) -> None:  # noqa: B027 - what keeps nothing has nothing to do
        """Begin a column."""

    def warm_up(self) -> None:  # noqa: B027 - as above
        """Compute once what has never been."""

    @abstractmethod
    def run(self, written: dict[str, Span], before: _Slices | None) -> _Slices | None:
        """Compute the output of the node in a turn.

        Args:
            written: By node, the slices that it writes in it.
            before: Output of the very node before it, unless that waits in a ring.
        """

    def _input(self, number: int, span: Span, before: _Slices | None) -> _Slices:
        """Slices of one of its inputs."""
        ring = self._rings[number]
        if ring is not None:
            return _Waiting(ring, span, self._read_planes[number])
        if before is None:
            raise RuntimeError(f"Node '{self._name}' was given nothing, where it needs slices {span}.")
        return before

    def _shape(self, span: Span) -> tuple[int, ...]:
        return (span.extent, *self._row)


class _Momentary(_Step):
    """A node that computes its output of its inputs in the same turn."""

    def run(self, written: dict[str, Span], before: _Slices | None) -> _Slices | None:
        span = written[self._name]
        if not span.extent:
            return None
        read = self._node.operation.need(0, span, None)
        return self._compute(span, [self._input(number, read, before) for number in range(len(self._rings))])

    @abstractmethod
    def _compute(self, span: Span, inputs: list[_Slices]) -> _Slices:
        """Compute the slices `span` of its output, of the slices of its inputs that they need."""


class _Entrance(_Step):
    """The slab, as it comes."""

    def run(self, written: dict[str, Span], before: _Slices | None) -> _Slices | None:  # noqa: ARG002 - a step's
        return before


class _Activated(_Momentary):
    """Done as its reader takes it up; the one activation is max(x, 0)."""

    def _compute(self, span: Span, inputs: list[_Slices]) -> _Slices:  # noqa: ARG002 - a step's
        return _Rectified(inputs[0])


class _Concatenated(_Momentary):
    """Done as its reader takes it up."""

    def __init__(self, node: Node, places: _Places) -> None:
        super().__init__(node, places)
        stops = accumulate((places.schedule.graph.node(name).channels for name in node.inputs), initial=0)
        self._places = [slice(a, b) for a, b in pairwise(stops)]

    def _compute(self, span: Span, inputs: list[_Slices]) -> _Slices:
        return _Joined(inputs, self._places, self._shape(span), self._like)


class _Pooled(_Momentary):
    """The largest of each group, along one axis after another."""

    def __init__(self, node: Node, places: _Places) -> None:
        super().__init__(node, places)
        whole = slice(None)
        self._parts = [  # by axis, the first voxels of all groups, the second ones ...
            [(whole,) * axis + (slice(first, None, factor),) for first in range(factor)]
            for axis, factor in enumerate(node.operation.down)
            if factor > 1
        ]

    def _compute(self, span: Span, inputs: list[_Slices]) -> _Slices:  # noqa: ARG002 - a step's
        return _Computed(torch.cat([self._pooled(x_ZYXC) for x_ZYXC in inputs[0].views()]))

    def _pooled(self, x_ZYXC: Tensor) -> Tensor:
        for parts in self._parts:
            x_ZYXC = reduce(torch.maximum, [x_ZYXC[part] for part in parts])
        return x_ZYXC


class _Weighted(_Step):
    """What has weights."""

    def __init__(self, node: Node, places: _Places) -> None:
        super().__init__(node, places)
        self._kernel = places.kernels[node.name]


class _Linear(_Weighted, _Momentary):
    """A convolution of one tap: a matrix product."""

    def _compute(self, span: Span, inputs: list[_Slices]) -> _Slices:  # noqa: ARG002 - a step's
        return _Computed(F.linear(inputs[0].tensor(), self._kernel.weight, self._kernel.bias))


class _Raised(_Weighted, _Momentary):
    """A transposed convolution: one matrix product, and a strided write for each voxel of a group."""

    def __init__(self, node: Node, places: _Places) -> None:
        super().__init__(node, places)
        self._places: dict[tuple[int, int], list[tuple[_Index, _Index]]] = {}

    def _compute(self, span: Span, inputs: list[_Slices]) -> _Slices:
        groups_ZYXC = F.linear(inputs[0].tensor(), self._kernel.weight, self._kernel.bias)
        key = (span.start % self._node.operation.up[0], span.extent)
        if key not in self._places:  # all turns but those at the ends are alike
            self._places[key] = self._placed(span)
        return _Groups(groups_ZYXC, self._shape(span), self._places[key])

    def _placed(self, span: Span) -> list[tuple[_Index, _Index]]:
        """Where each voxel of a group lies in `span` of the plane, and which of the groups have it there."""
        operation, channels = self._node.operation, self._node.channels
        wanted = (span, *self._plane)
        cropped = [one.start - operation.computed(axis, one).start for axis, one in enumerate(wanted)]
        pairs = []
        for number, place in enumerate(product(*map(range, operation.up))):
            there, here = [], []
            for one, skip, factor, along in zip(place, cropped, operation.up, wanted, strict=True):
                first = (one - skip) % factor
                there.append(slice(first, None, factor))
                here.append(slice(int(one < skip), int(one < skip) + len(range(first, along.extent, factor))))
            here.append(slice(number * channels, (number + 1) * channels))
            pairs.append((tuple(there), tuple(here)))
        return pairs


class _Windowed(_Weighted):
    """A convolution over a window on its input that slides along z, framed by zeros where the volume ends."""

    def __init__(self, node: Node, places: _Places) -> None:
        super().__init__(node, places)
        schedule = places.schedule
        (self._source,) = node.inputs
        self._convolve = _convolution(self._kernel.weight)
        self._frame = [axis.frame(node) for axis in schedule.axes]
        self._read = [axis.reads[node.name] for axis in schedule.axes]
        self._inner = tuple(_within(r, f) for r, f in zip(self._read[1:], self._frame[1:], strict=True))
        slices = min(schedule.held(node) + schedule.slices(node), self._frame[0].extent)
        shape = (slices, *(frame.extent for frame in self._frame[1:]), schedule.graph.in_channels(node))
        self._buffer, self._used = places.arena.buffer(node.name, shape, places.like, self._inner)

    def reset(self) -> None:
        """Slices before the first are the network's own zeros."""
        self._first, self._filled = self._frame[0].start, self._read[0].start
        self._buffer[: self._filled - self._first].zero_()

    def warm_up(self) -> None:
        if not self._used:
            whole = Span(0, self._schedule.slices(self._node))
            self._applied(self._buffer[: self._window(whole).extent])

    def run(self, written: dict[str, Span], before: _Slices | None) -> _Slices | None:
        """Copy what there is of its input into the buffer, and compute what that allows."""
        taken, span = written[self._source].clipped(self._read[0]), written[self._name]
        if taken.extent > 0:
            at = self._filled - self._first
            self._input(0, taken, before).write(self._buffer[(slice(at, at + taken.extent), *self._inner)])
            self._filled += taken.extent
        if not span.extent:
            return None
        stop = self._window(span).stop - self._first
        self._buffer[self._filled - self._first : stop].zero_()  # behind the volume's end
        values_ZYXC = self._applied(self._buffer[:stop])
        self._advance(self._window(Span(span.stop, span.stop + 1)).start)
        return _Computed(values_ZYXC)

    def _window(self, span: Span) -> Span:
        """Slices that it reads to write `span`, zeros of its own included."""
        return self._node.operation.need(0, span, None)

    def _advance(self, first: int) -> None:
        """Forget the slices before `first`."""
        by, kept = first - self._first, self._filled - first
        if kept > 0:
            still = self._buffer[by : by + kept]
            self._buffer[:kept].copy_(still if by >= kept else still.clone())
        self._first = first

    def _applied(self, x_ZYXC: Tensor) -> Tensor:
        weight, bias = self._kernel.weight, self._kernel.bias
        if weight.ndim == 5:
            x_BCS = x_ZYXC.permute(3, 0, 1, 2)[None]
            return self._convolve(x_BCS, weight, bias)[0].permute(1, 2, 3, 0)
        x_BCS = x_ZYXC.permute(0, 3, 1, 2)
        return self._convolve(x_BCS, weight, bias).permute(0, 2, 3, 1)


def _convolution(weight: Tensor) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The convolution without padding. torch gives short float32 slabs to a slow one that copies its input 27 times."""
    ndim = weight.ndim - 2
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        zeros, ones = [0] * ndim, [1] * ndim
        return lambda x, weight, bias: torch.mkldnn_convolution(x, weight, bias, zeros, ones, ones, 1)
    return F.conv3d if ndim == 3 else F.conv2d


@register_flop_formula(torch.ops.aten.mkldnn_convolution)
def _mkldnn_flops(
    x_shape: list[int], w_shape: list[int], *_: object, out_shape: list[int] | None = None, **__: object
) -> int:
    """So that torch's own counter, which does not know this convolution, counts what the plan says."""
    return conv_flop_count(x_shape, w_shape, out_shape or [])


def _convolved(node: Node, places: _Places) -> _Step:
    return (_Windowed if node.operation.has_window else _Linear)(node, places)


_STEPS: dict[type, Callable[[Node, _Places], _Step]] = {
    Input: _Entrance,
    Convolution: _convolved,
    Activation: _Activated,
    MaxPool: _Pooled,
    TransposedConvolution: _Raised,
    Concatenation: _Concatenated,
}


def _within(inner: Span, outer: Span) -> slice:
    return slice(inner.start - outer.start, inner.stop - outer.start)

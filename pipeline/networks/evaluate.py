"""Any graph on a window of its input: node by node, each on the voxels that the core needs of it, and on no more.

The rules of where voxels lie are the operations' own (`pipeline.core.network.operations`); here is their arithmetic, by
torch's own functions. A window ends where the volume does, or further inside: the values of the core are the same.

Shape suffixes: 1 C Z Y X. A 2D network has kernels of one slice, and slices are its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import accumulate, pairwise, product
from math import gcd
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.geometry.box import Box, Span, Triple, triple
from pipeline.core.network.graph import Graph, Node
from pipeline.core.network.need import Needs, needs
from pipeline.core.network.operations import (
    Activation,
    Affine,
    AlignedResize,
    AveragePool,
    ChannelSlice,
    Combination,
    Concatenation,
    Constant,
    Convolution,
    Crop,
    GlobalPool,
    MaxPool,
    Operation,
    Pad,
    Pool,
    Resize,
    Shift,
    TransposedConvolution,
    WholeNorm,
)
from pipeline.core.network.receptive import lost_margin
from pipeline.networks.checkpoint import Checkpoint

Weights = Mapping[str, tuple[Tensor, ...]]
"""By node: kernel and bias of a convolution; factor and summand of an affine map, or of a norm; slope of a PReLU; a constant."""


def placed(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Weights:
    """The weights of an imported network, on a device; an affine map is folded into the convolution that it alone reads."""
    weights = folded(checkpoint.architecture.graph, checkpoint.weights)
    return {name: tuple(laid_out(w.to(device, dtype)) for w in tensors) for name, tensors in weights.items()}


def laid_out(weight: Tensor) -> Tensor:
    """A kernel with its channels last in memory, also where it has one, which torch takes for any layout; other weights as they are."""
    if weight.ndim < 4:
        return weight
    return weight.movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)


def folded(graph: Graph, weights: Weights) -> Weights:
    """The weights of the same network whose affine maps after convolutions have none left; computed in float64."""
    result = dict(weights)
    for node in graph.nodes:
        before = graph.node(node.inputs[0]) if node.inputs else node
        alone = graph.readers(before.name) == (node,)
        if not (isinstance(node.operation, Affine) and isinstance(before.operation, Convolution) and alone):
            continue
        factor, summand = (w.double() for w in weights[node.name])
        kernel, *bias = (w.double() for w in weights[before.name])
        shift = summand + factor * bias[0] if bias else summand
        result[before.name] = kernel * factor.view(-1, *(1,) * (kernel.ndim - 1)), shift
        result[node.name] = ()
    return result


@dataclass(frozen=True, slots=True)
class Piece:
    """Voxels that a node wrote.

    Args:
        values: 1 C Z Y X.
        box: Which, at its level.
        shrunk: Along which axes it is one value for all voxels.
    """

    values: Tensor
    box: Box
    shrunk: tuple[bool, bool, bool] = (False, False, False)

    def part(self, wanted: Box) -> Tensor:
        """Those of a box inside; one value along an axis where it is the same for all."""
        if wanted == self.box:
            return self.values
        inside = zip(wanted.within(self.box), self.shrunk, strict=True)
        return self.values[(slice(None), slice(None), *(slice(None) if same else span for span, same in inside))]

    def framed(self, wanted: Box, filling: float = 0.0) -> Tensor:
        """Those of a box of which some may lie outside, which are filled."""
        inside = wanted.clipped(self.box)
        if inside == wanted:
            return self.part(wanted)
        values = blank(self.values, self.values.shape[1], wanted.shape).fill_(filling)
        if min(inside.shape) > 0:
            values[(slice(None), slice(None), *inside.within(wanted))] = self.part(inside)
        return values


def blank(like: Tensor, channels: int, shape: Triple) -> Tensor:
    """Memory, 1 C Z Y X, of the dtype and on the device of another; channels last, as convolutions want it."""
    return like.new_empty((1, *shape, channels)).movedim(-1, 1)


def evaluate(graph: Graph, weights: Weights, window: Tensor, axes: tuple[Needs, Needs, Needs]) -> Tensor:
    """What a network gives in a core.

    Args:
        graph: The network.
        weights: Of its nodes.
        window: The voxels that the core needs, 1 C Z Y X, normalised.
        axes: What it needs, along z, y, x.

    Returns:
        The core, 1 C Z Y X.
    """
    pieces = {graph.input.name: Piece(window, Box.of_spans(axis.input for axis in axes))}
    own: set[str] = set()
    last = {name: node.name for node in graph.nodes for name in node.inputs}
    for node in graph.nodes[1:]:
        step = step_of(node, weights.get(node.name, ()), axes)
        given = [pieces[name] for name in node.inputs]
        first = node.inputs[0]
        step.spare = first in own and graph.readers(first) == (node,)
        shrunk = triple(graph.is_shrunk(axis, node.name) for axis in range(3))
        pieces[node.name] = Piece(STEPS[type(node.operation)](step, given), step.wanted, shrunk)
        if step.is_fresh:
            own.add(node.name)
        for name in node.inputs:
            if last[name] == node.name:
                pieces.pop(name, None)
    return pieces[graph.output.name].values


def done(graph: Graph, node: Node, weights: Weights, given: Sequence[Piece], axes: tuple[Needs, Needs, Needs]) -> Piece:
    """What one node writes, of what it is given."""
    step = step_of(node, weights.get(node.name, ()), axes)
    shrunk = triple(graph.is_shrunk(axis, node.name) for axis in range(3))
    return Piece(STEPS[type(node.operation)](step, given), step.wanted, shrunk)


def of_one_pass(graph: Graph, shape: Triple) -> tuple[Needs, Needs, Needs]:
    """What one pass over all that it is given computes, along z, y, x.

    Args:
        graph: The network.
        shape: Extent that it is given, a legal one; what it loses lies before and after the volume.
    """
    return triple(
        _of_pass(graph, axis, n, m) for axis, (n, m) in enumerate(zip(shape, lost_margin(graph), strict=True))
    )


def _of_pass(graph: Graph, axis: int, extent: int, margin: int) -> Needs:
    ends = graph.ends(axis, Span(-margin, extent - margin))
    return needs(graph, axis, ends[graph.output.name], ends[graph.input.name])


def read_of(graph: Graph, axes: tuple[Needs, Needs, Needs], window: Tensor) -> Tensor:
    """The part of an image that some of a pass over it reads; (1, C, Z, Y, X)."""
    read = (slice(a.input.start + m, a.input.stop + m) for a, m in zip(axes, lost_margin(graph), strict=True))
    return window[(slice(None), slice(None), *read)]


def one_pass(graph: Graph, weights: Weights, image: Tensor) -> Tensor:
    """One pass over all of an image, (1, C, Z, Y, X), of legal extents."""
    axes = of_one_pass(graph, triple(image.shape[2:]))
    return evaluate(graph, weights, read_of(graph, axes, image), axes)


@dataclass(slots=True)
class Step:
    """One node's turn.

    Args:
        node: Whose.
        weights: Its own.
        wanted: What is kept of it.
        frame: What it reads, beyond the ends too.
        ends: Where what it reads first ends, along z, y, x; None: nowhere.
        target: Where it is wanted, 1 C Z Y X; None: in memory of its own.
        spare: Whether what it reads first may be written over.
    """

    node: Node
    weights: tuple[Tensor, ...]
    wanted: Box
    frame: Box
    ends: tuple[Span | None, Span | None, Span | None]
    target: Tensor | None = None
    spare: bool = False

    @property
    def operation(self) -> Any:
        return self.node.operation

    @property
    def is_view(self) -> bool:
        """Whether what it gives may be memory of what it reads."""
        folded = isinstance(self.operation, Affine) and not self.weights
        return self.target is None and (folded or isinstance(self.operation, _VIEWS))

    @property
    def is_fresh(self) -> bool:
        """Whether what it gives is memory that nothing else has."""
        return self.spare if self.is_view else self.target is None

    def put(self, values: Tensor) -> Tensor:
        """Values where they are wanted."""
        return values if self.target is None else self.target.copy_(values)

    def room(self, given: Sequence[Piece]) -> Tensor:
        """Memory for what it gives, of the kind that is given to it."""
        if self.target is not None:
            return self.target
        return blank(given[0].values, self.node.channels, self.wanted.shape)


def step_of(node: Node, weights: tuple[Tensor, ...], axes: tuple[Needs, Needs, Needs]) -> Step:
    """All that a core needs of a node, at once."""
    wanted = Box.of_spans(axis.writes[node.name] for axis in axes)
    frame = wanted if node.operation.is_whole else Box.of_spans(axis.frame(node) for axis in axes)
    return Step(node, weights, wanted, frame, triple(axis.ends[node.inputs[0]] if axis.ends else None for axis in axes))


def _convolution(step: Step, given: Sequence[Piece]) -> Tensor:
    operation: Convolution = step.operation
    kernel, bias = (*step.weights, None)[:2]
    if kernel is None:
        raise ValueError(f"Node '{step.node.name}' has no kernel.")
    x = given[0].framed(step.frame)
    return step.put(_convolved(x, kernel, bias, operation.stride, operation.dilation, operation.groups))


def _convolved(
    x: Tensor, kernel: Tensor, bias: Tensor | None, stride: Triple, dilation: Triple = (1, 1, 1), groups: int = 1
) -> Tensor:
    """A convolution without padding, 1 C Z Y X: a matrix product where it has one tap."""
    if groups == 1 and kernel[0, 0].numel() == 1:
        z, y, x_ = stride
        return F.linear(x[:, :, ::z, ::y, ::x_].movedim(1, -1), kernel.flatten(1), bias).movedim(-1, 1)
    planar = kernel.ndim == 4
    values = _planes(x) if planar else x
    ndim = kernel.ndim - 2
    steps, spread = stride[-ndim:], dilation[-ndim:]
    if kernel.device.type == "cpu" and kernel.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        values = torch.mkldnn_convolution(values, kernel, bias, [0] * ndim, steps, spread, groups)
    else:
        values = (F.conv2d if planar else F.conv3d)(values, kernel, bias, steps, 0, spread, groups)
    return _slices(values) if planar else values


def _planes(x: Tensor) -> Tensor:
    """Slices as a batch: Z C Y X."""
    return x[0].transpose(0, 1)


def _slices(planes: Tensor) -> Tensor:
    """1 C Z Y X again."""
    return planes.transpose(0, 1)[None]


def _pool(step: Step, given: Sequence[Piece]) -> Tensor:
    operation: Pool = step.operation
    if isinstance(operation, AveragePool):
        means = F.avg_pool3d(given[0].framed(step.frame), operation.taps, operation.factor)
        return step.put(means if operation.counts else _of_counted(step, means))
    x = given[0].framed(step.frame, float("-inf"))
    for axis, count in enumerate(step.wanted.shape):
        taps, factor, apart = operation.taps[axis], operation.factor[axis], operation.dilation[axis]
        if taps > 1 or factor > 1:
            firsts = range(0, apart * taps, apart)
            x = reduce(torch.maximum, [_along(axis, x, slice(a, a + (count - 1) * factor + 1, factor)) for a in firsts])
    return step.put(x)


def _of_counted(step: Step, means: Tensor) -> Tensor:
    """Means of groups, of which what lies beyond the ends does not count."""
    operation: AveragePool = step.operation
    for axis, (taps, factor, phase) in enumerate(zip(operation.taps, operation.factor, operation.phase, strict=True)):
        ends = step.ends[axis]
        if ends is None or not operation.padding[axis]:
            continue
        first = torch.arange(step.wanted.start[axis], step.wanted.stop[axis], device=means.device) * factor + phase
        counted = (first + taps).clamp(max=ends.stop) - first.clamp(min=ends.start)
        means = means * (taps / counted).to(means.dtype).view(*(1,) * (2 + axis), -1, *(1,) * (2 - axis))
    return means


def _along(axis: int, x: Tensor, part: slice) -> Tensor:
    """Part of values along z, y or x."""
    return x[(slice(None),) * (2 + axis) + (part,)]


def _transposed(step: Step, given: Sequence[Piece]) -> Tensor:
    """Voxels that lie alike in their groups are a convolution of their own: none is computed that is not wanted."""
    operation: TransposedConvolution = step.operation
    kernel, bias = (*step.weights, None)[:2]
    if kernel is None:
        raise ValueError(f"Node '{step.node.name}' has no kernel.")
    kernel = kernel[:, :, None] if kernel.ndim == 4 else kernel
    values = step.room(given)
    spans = map(Span, step.wanted.start, step.wanted.stop)
    for kinds in product(*(_alike(operation, axis, span) for axis, span in enumerate(spans))):
        place = values[(slice(None), slice(None), *(kind.there for kind in kinds))]
        taps = [range(kind.tap, operation.taps[axis], kind.step) for axis, kind in enumerate(kinds)]
        if not all(taps):
            place.copy_(place.new_zeros(()) if bias is None else bias.view(1, -1, 1, 1, 1))
            continue
        part = kernel[(slice(None), slice(None), *(slice(t.start, t.stop, t.step) for t in taps))]
        spread = triple(kind.spread for kind in kinds)
        read = Box.of_spans(
            (kind.first - kind.spread * (len(t) - 1), kind.first + kind.times)
            for kind, t in zip(kinds, taps, strict=True)
        )
        x = given[0].framed(read)
        place.copy_(_convolved(x, _turned(part, operation.groups), bias, (1, 1, 1), spread, operation.groups))
    return values


class _Alike(NamedTuple):
    """Voxels of a transposed convolution, along an axis, on which the same taps fall.

    Args:
        there: Which, of those that are wanted.
        times: How many.
        tap: The first that falls on them.
        step: From that to the next.
        first: Voxel that the first tap of the first of them reads; the next tap reads one that is `spread` before.
        spread: Voxels from one that is read to the next.
    """

    there: slice
    times: int
    tap: int
    step: int
    first: int
    spread: int


def _alike(operation: TransposedConvolution, axis: int, wanted: Span) -> Iterator[_Alike]:
    """All kinds of voxels of a span."""
    factor, phase, dilation = operation.factor[axis], operation.phase[axis], operation.dilation[axis]
    common = gcd(factor, dilation)
    step = factor // common
    for number, voxel in enumerate(range(wanted.start, min(wanted.start + factor, wanted.stop))):
        fitting = (t for t in range(step) if (voxel - phase - dilation * t) % factor == 0)
        tap = next(fitting, operation.taps[axis])
        first = (voxel - phase - dilation * tap) // factor
        times = len(range(voxel, wanted.stop, factor))
        yield _Alike(slice(number, None, factor), times, tap, step, first, dilation // common)


def _turned(kernel: Tensor, groups: int) -> Tensor:
    """The kernel of a transposed convolution, (in, out / groups, z, y, x), as that of a convolution, (out, in / groups, z, y, x)."""
    count, _, *taps = kernel.shape
    grouped = kernel.unflatten(0, (groups, count // groups)).transpose(1, 2)
    turned: Tensor = grouped.reshape(-1, count // groups, *taps).flip(2, 3, 4)
    return turned


def _resized(step: Step, given: Sequence[Piece]) -> Tensor:
    operation: Resize = step.operation
    if operation.mode == "nearest":
        return _repeated(step, given)
    return _interpolated(
        step, given[0], lambda axis, voxel: (2 * voxel + 1 - operation.factor[axis], 2 * operation.factor[axis])
    )


def _aligned(step: Step, given: Sequence[Piece]) -> Tensor:
    operation: AlignedResize = step.operation

    def place(axis: int, voxel: Tensor) -> tuple[Tensor, int]:
        ends = step.ends[axis]
        if ends is None:
            raise ValueError(f"Node '{step.node.name}' lies where the ends of the volume say, and there are none.")
        return voxel * (ends.extent - 1), max(operation.factor[axis] * ends.extent - 1, 1)

    return _interpolated(step, given[0], place)


def _interpolated(step: Step, given: Piece, place: Callable[[int, Tensor], tuple[Tensor, int]]) -> Tensor:
    """Between the two voxels that a place lies between; beyond the ends the last one.

    Args:
        step: Whose operation has a `factor`.
        given: What it reads.
        place: Of an axis and voxels to be written: where they lie in what is read, as integers, and what to divide them by.
    """
    x, box = given.values, given.box
    for axis, factor in enumerate(step.operation.factor):
        wanted = torch.arange(step.wanted.start[axis], step.wanted.stop[axis], device=x.device)
        start, stop = box.start[axis], box.stop[axis]
        if factor == 1:
            x = _along(axis, x, slice(step.wanted.start[axis] - start, step.wanted.stop[axis] - start))
            continue
        places, unit = place(axis, wanted)
        below = torch.div(places, unit, rounding_mode="floor")
        share = ((places - unit * below).double() / unit).to(x.dtype).view(*(1,) * (2 + axis), -1, *(1,) * (2 - axis))
        low, high = (_picked(axis, x, i.clamp(start, stop - 1) - start) for i in (below, below + 1))
        x = low * (1 - share) + high * share
    return step.put(x)


def _picked(axis: int, x: Tensor, index: Tensor) -> Tensor:
    """Voxels along z, y or x; channels last."""
    return x.movedim(1, -1).index_select(1 + axis, index).movedim(-1, 1)


def _repeated(step: Step, given: Sequence[Piece]) -> Tensor:
    """Each voxel as often as the factor says: those that lie alike in their groups, at once."""
    values, (x, box) = step.room(given), (given[0].values, given[0].box)
    sides = []
    for axis, factor in enumerate(step.operation.factor):
        start, stop = step.wanted.start[axis], step.wanted.stop[axis]
        firsts = ((n, (start + n) // factor - box.start[axis]) for n in range(min(factor, stop - start)))
        sides.append([(slice(n, None, factor), slice(a, a + len(range(start + n, stop, factor)))) for n, a in firsts])
    for kinds in product(*sides):
        there, here = zip(*kinds, strict=True)
        values[(slice(None), slice(None), *there)] = x[(slice(None), slice(None), *here)]
    return values


def _padded(step: Step, given: Sequence[Piece]) -> Tensor:
    operation: Pad = step.operation
    if operation.mode == "zero":
        return step.put(given[0].framed(step.frame))
    x, box = given[0].values, given[0].box
    for axis, span in enumerate(step.ends):
        index = torch.arange(step.frame.start[axis], step.frame.stop[axis], device=x.device)
        if span and operation.mode == "replicate":
            index = index.clamp(span.start, span.stop - 1)
        elif span:
            index = torch.where(index < span.start, 2 * span.start - index, index)
            index = torch.where(index >= span.stop, 2 * (span.stop - 1) - index, index)
        x = _picked(axis, x, index - box.start[axis])
    return step.put(x)


def _moved(step: Step, given: Sequence[Piece]) -> Tensor:
    return step.put(given[0].part(step.frame))


def _activated(step: Step, given: Sequence[Piece]) -> Tensor:
    operation: Activation = step.operation
    x = given[0].part(step.wanted)
    there = x if step.target is None and step.spare else step.target
    if operation.function == "relu":
        return torch.clamp_min(x, 0, out=there)
    if operation.function == "leaky_relu":
        if there is None:
            there = torch.empty_like(x)
        torch.ops.aten.leaky_relu.out(x, *operation.values, out=there)
        return there
    if operation.function in ("softmax", "log_softmax"):
        return step.put(FUNCTIONS[operation.function](x, dim=1))
    return step.put(FUNCTIONS[operation.function](x, *step.weights, *operation.values))


def _scaled(step: Step, given: Sequence[Piece]) -> Tensor:
    """A map that is folded into the convolution before it has no weights left."""
    x = given[0].part(step.wanted)
    if not step.weights:
        return step.put(x)
    factor, summand = (w.view(1, -1, 1, 1, 1) for w in step.weights)
    return torch.mul(x, factor, out=x if step.target is None and step.spare else step.target).add_(summand)


def _sliced(step: Step, given: Sequence[Piece]) -> Tensor:
    return step.put(given[0].part(step.wanted)[:, step.operation.start : step.operation.stop])


def _constant(step: Step, given: Sequence[Piece]) -> Tensor:
    (value,) = step.weights
    return step.room(given).copy_(value.view(1, -1, 1, 1, 1))


def _normed(step: Step, given: Sequence[Piece]) -> Tensor:
    """By the statistics of all that is there, which is a whole map in one pass, and a window's own otherwise."""
    operation: WholeNorm = step.operation
    x, box = (
        given[0].values.contiguous(),
        given[0].box,
    )  # channels last, torch sums squares less accurately: 1e-6 of the range
    weight, bias = (*step.weights, None, None)[:2]
    if operation.planar:
        x = _slices(F.group_norm(_planes(x).contiguous(), operation.groups, weight, bias, operation.epsilon))
    else:
        x = F.group_norm(x, operation.groups, weight, bias, operation.epsilon)
    return step.put(Piece(x, box, given[0].shrunk).part(step.wanted))


def _whole(step: Step, given: Sequence[Piece]) -> Tensor:
    operation: GlobalPool = step.operation
    axes = (3, 4) if operation.planar else (2, 3, 4)
    x = given[0].values
    return x.mean(axes, keepdim=True) if operation.kind == "mean" else x.amax(axes, keepdim=True)


def _joined(step: Step, given: Sequence[Piece]) -> Tensor:
    values = step.room(given)
    stops = accumulate((piece.values.shape[1] for piece in given), initial=0)
    for piece, (a, b) in zip(given, pairwise(stops), strict=True):
        part, place = piece.part(step.wanted), values[:, a:b]
        if part.data_ptr() != place.data_ptr():  # else it was written there
            place.copy_(part)
    return values


def _combined(step: Step, given: Sequence[Piece]) -> Tensor:
    first, *others = (piece.part(step.wanted) for piece in given)
    there, spare = step.target, step.spare
    for number, other in enumerate(others):
        fits = first.shape[1:] == (step.node.channels, *step.wanted.shape)
        last = number == len(others) - 1
        out = there if last and there is not None else (first if spare and fits else None)
        first = getattr(torch, step.operation.function)(first, other, out=out)
        spare = True
    return first


FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "prelu": torch.prelu,
    "elu": torch.ops.aten.elu,
    "selu": F.selu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu6": F.relu6,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "hardtanh": F.hardtanh,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "exp": torch.exp,
    "neg": torch.neg,
    "abs": torch.abs,
    "sqrt": torch.sqrt,
    "erf": torch.erf,
    "log": torch.log,
    "reciprocal": torch.reciprocal,
    "clamp": torch.clamp,
    "binarize": lambda x, threshold: (x > threshold).to(x.dtype),
    "softmax": torch.softmax,
    "log_softmax": torch.log_softmax,
}
"""Of an activation, by name."""

_VIEWS = (Shift, Crop, ChannelSlice, Pad, MaxPool, Resize, AlignedResize)
"""Operations whose output may lie where their input does: a pool of one voxel, padding that is not reached."""

STEPS: Mapping[type[Operation], Callable[[Step, Sequence[Piece]], Tensor]] = {
    Convolution: _convolution,
    MaxPool: _pool,
    AveragePool: _pool,
    TransposedConvolution: _transposed,
    Resize: _resized,
    AlignedResize: _aligned,
    Pad: _padded,
    Crop: _moved,
    Shift: _moved,
    Activation: _activated,
    Affine: _scaled,
    ChannelSlice: _sliced,
    Constant: _constant,
    WholeNorm: _normed,
    GlobalPool: _whole,
    Concatenation: _joined,
    Combination: _combined,
}
"""How each kind of operation is done."""

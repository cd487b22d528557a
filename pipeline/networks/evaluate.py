"""Any graph on a window of its input: node by node, each on the voxels that the core needs of it, and on no more.

The rules of where voxels lie are the operations' own (`pipeline.core.network.operations`); here is their arithmetic, by
torch's own functions. A window ends where the volume does, or further inside: the values of the core are the same.

Shape suffixes: 1 C Z Y X. A 2D network has kernels of one slice, and slices are its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.geometry.box import Box, per_axis, triple
from pipeline.core.network.graph import Graph, Node
from pipeline.core.network.need import Needs
from pipeline.core.network.operations import (
    Activation,
    Affine,
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
from pipeline.networks.checkpoint import Checkpoint

Weights = Mapping[str, tuple[Tensor, ...]]
"""By node: kernel and bias of a convolution; factor and summand of an affine map, or of a norm; slope of a PReLU; a constant."""


def placed(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Weights:
    """The weights of an imported network, on a device."""
    return {name: tuple(w.to(device, dtype) for w in tensors) for name, tensors in checkpoint.weights.items()}


@dataclass(frozen=True)
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
        inside = zip(wanted.within(self.box), self.shrunk, strict=True)
        return self.values[(slice(None), slice(None), *(slice(None) if same else span for span, same in inside))]

    def framed(self, wanted: Box, filling: float = 0.0) -> Tensor:
        """Those of a box of which some may lie outside, which are filled."""
        inside = wanted.clipped(self.box)
        if inside == wanted:
            return self.part(wanted)
        if not inside.voxels or min(inside.shape) < 0:
            return self.values.new_full((*self.values.shape[:2], *wanted.shape), filling)
        sides = [
            n
            for a, b, c, d in reversed(list(zip(wanted.start, inside.start, inside.stop, wanted.stop, strict=True)))
            for n in (b - a, d - c)
        ]
        return F.pad(self.part(inside), sides, value=filling)


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
    last = {name: node.name for node in graph.nodes for name in node.inputs}
    for node in graph.nodes[1:]:
        wanted = Box.of_spans(axis.writes[node.name] for axis in axes)
        given = [pieces[name] for name in node.inputs]
        step = _Step(node, weights.get(node.name, ()), wanted, axes)
        shrunk = triple(graph.is_shrunk(axis, node.name) for axis in range(3))
        pieces[node.name] = Piece(STEPS[type(node.operation)](step, given), wanted, shrunk)
        for name in node.inputs:
            if last[name] == node.name:
                pieces.pop(name, None)
    return pieces[graph.output.name].values


@dataclass(frozen=True)
class _Step:
    """One node's turn.

    Args:
        node: Whose.
        weights: Its own.
        wanted: What is kept of it.
        axes: What the core needs.
    """

    node: Node
    weights: tuple[Tensor, ...]
    wanted: Box
    axes: tuple[Needs, Needs, Needs]

    @property
    def operation(self) -> Any:
        return self.node.operation

    @property
    def frame(self) -> Box:
        """What it reads, beyond the ends too."""
        return Box.of_spans(axis.frame(self.node) for axis in self.axes)


def _convolution(step: _Step, given: Sequence[Piece]) -> Tensor:
    operation: Convolution = step.operation
    kernel, bias = (*step.weights, None)[:2]
    x = given[0].framed(step.frame)
    if kernel is None:
        raise ValueError(f"Node '{step.node.name}' has no kernel.")
    if kernel.ndim == 4:
        planes = F.conv2d(_planes(x), kernel, bias, operation.stride[1:], 0, operation.dilation[1:], operation.groups)
        return _slices(planes)
    return F.conv3d(x, kernel, bias, operation.stride, 0, operation.dilation, operation.groups)


def _planes(x: Tensor) -> Tensor:
    """Slices as a batch: Z C Y X."""
    return x[0].transpose(0, 1)


def _slices(planes: Tensor) -> Tensor:
    """1 C Z Y X again."""
    return planes.transpose(0, 1)[None]


def _pool(step: _Step, given: Sequence[Piece]) -> Tensor:
    operation: Pool = step.operation
    largest = isinstance(operation, MaxPool)
    x = given[0].framed(step.frame, float("-inf") if largest else 0.0)
    if largest:
        return F.max_pool3d(x, operation.taps, operation.factor, 0, operation.dilation)
    return F.avg_pool3d(x, operation.taps, operation.factor)


def _transposed(step: _Step, given: Sequence[Piece]) -> Tensor:
    operation: TransposedConvolution = step.operation
    kernel, bias = (*step.weights, None)[:2]
    frame = step.frame
    if kernel is None:
        raise ValueError(f"Node '{step.node.name}' has no kernel.")
    if min(frame.shape) < 1:  # no tap falls on any
        empty = given[0].values.new_zeros((1, step.node.channels, *step.wanted.shape))
        return empty if bias is None else empty + bias.view(1, -1, 1, 1, 1)
    x = given[0].framed(frame)
    if kernel.ndim == 4:
        _, *stride = operation.factor
        planes = F.conv_transpose2d(_planes(x), kernel, None, stride, 0, 0, operation.groups, operation.dilation[1:])
        whole = _slices(planes)
    else:
        whole = F.conv_transpose3d(x, kernel, None, operation.factor, 0, 0, operation.groups, operation.dilation)
    start = per_axis(
        lambda factor, first, phase: factor * first + phase, operation.factor, frame.start, operation.phase
    )
    values = Piece(whole, Box.of_shape(triple(whole.shape[2:])).moved(start)).framed(step.wanted)
    return values if bias is None else values + bias.view(1, -1, 1, 1, 1)


def _resized(step: _Step, given: Sequence[Piece]) -> Tensor:
    operation: Resize = step.operation
    x, box = given[0].values, given[0].box
    for axis, factor in enumerate(operation.factor):
        wanted = torch.arange(step.wanted.start[axis], step.wanted.stop[axis], device=x.device)
        start, stop = box.start[axis], box.stop[axis]
        if operation.mode == "nearest" or factor == 1:
            x = x.index_select(2 + axis, torch.div(wanted, factor, rounding_mode="floor") - start)
            continue
        place = 2 * wanted + 1 - factor  # of the source, in 1 / (2 factor) voxels
        below = torch.div(place, 2 * factor, rounding_mode="floor")
        share = ((place - 2 * factor * below).to(x.dtype) / (2 * factor)).view(
            *(1,) * (2 + axis), -1, *(1,) * (2 - axis)
        )
        low, high = (x.index_select(2 + axis, i.clamp(start, stop - 1) - start) for i in (below, below + 1))
        x = low * (1 - share) + high * share
    return x


def _padded(step: _Step, given: Sequence[Piece]) -> Tensor:
    operation: Pad = step.operation
    if operation.mode == "zero":
        return given[0].framed(step.frame)
    x, box = given[0].values, given[0].box
    ends = [axis.ends[step.node.inputs[0]] if axis.ends else None for axis in step.axes]
    for axis, span in enumerate(ends):
        index = torch.arange(step.frame.start[axis], step.frame.stop[axis], device=x.device)
        if span and operation.mode == "replicate":
            index = index.clamp(span.start, span.stop - 1)
        elif span:
            index = torch.where(index < span.start, 2 * span.start - index, index)
            index = torch.where(index >= span.stop, 2 * (span.stop - 1) - index, index)
        x = x.index_select(2 + axis, index - box.start[axis])
    return x


def _moved(step: _Step, given: Sequence[Piece]) -> Tensor:
    return given[0].part(step.frame)


def _activated(step: _Step, given: Sequence[Piece]) -> Tensor:
    operation: Activation = step.operation
    x = given[0].part(step.wanted)
    if operation.function in ("softmax", "log_softmax"):
        return FUNCTIONS[operation.function](x, dim=1)
    return FUNCTIONS[operation.function](x, *step.weights, *operation.values)


def _scaled(step: _Step, given: Sequence[Piece]) -> Tensor:
    factor, summand = (w.view(1, -1, 1, 1, 1) for w in step.weights)
    return given[0].part(step.wanted) * factor + summand


def _sliced(step: _Step, given: Sequence[Piece]) -> Tensor:
    return given[0].part(step.wanted)[:, step.operation.start : step.operation.stop]


def _constant(step: _Step, given: Sequence[Piece]) -> Tensor:
    (value,) = step.weights
    return value.to(given[0].values).view(1, -1, 1, 1, 1).expand(1, -1, *step.wanted.shape)


def _normed(step: _Step, given: Sequence[Piece]) -> Tensor:
    """By the statistics of all that is there, which is a whole map in one pass, and a window's own otherwise."""
    operation: WholeNorm = step.operation
    x, box = given[0].values, given[0].box
    weight, bias = (*step.weights, None, None)[:2]
    if operation.planar:
        x = _slices(F.group_norm(_planes(x), operation.groups, weight, bias, operation.epsilon))
    else:
        x = F.group_norm(x, operation.groups, weight, bias, operation.epsilon)
    return Piece(x, box, given[0].shrunk).part(step.wanted)


def _whole(step: _Step, given: Sequence[Piece]) -> Tensor:
    operation: GlobalPool = step.operation
    axes = (3, 4) if operation.planar else (2, 3, 4)
    x = given[0].values
    return x.mean(axes, keepdim=True) if operation.kind == "mean" else x.amax(axes, keepdim=True)


def _joined(step: _Step, given: Sequence[Piece]) -> Tensor:
    return torch.cat([piece.part(step.wanted).expand(-1, -1, *step.wanted.shape) for piece in given], 1)


def _combined(step: _Step, given: Sequence[Piece]) -> Tensor:
    first, *others = (piece.part(step.wanted) for piece in given)
    for other in others:
        first = getattr(torch, step.operation.function)(first, other)
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
    "softmax": torch.softmax,
    "log_softmax": torch.log_softmax,
}
"""Of an activation, by name."""

STEPS: Mapping[type[Operation], Callable[[_Step, Sequence[Piece]], Tensor]] = {
    Convolution: _convolution,
    MaxPool: _pool,
    AveragePool: _pool,
    TransposedConvolution: _transposed,
    Resize: _resized,
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

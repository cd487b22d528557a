"""The UNet as a stream along z: one slab in, one slab out, nothing computed twice, and only what is kept.

Every convolution reads a buffer that holds the slices it still needs of its input, with the network's own zeros around
them where the volume ends. What it computes goes straight into the next layer's buffer, cropped to what that needs; the
two halves of a concatenation meet in the buffer of the layer that reads it; skips wait in a ring until the decoder catches up.

Shape suffixes: Z Y X C, channels last in memory, which is `channels_last_3d` for a 3D network, and a batch of slices in
`channels_last` for a 2D one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from pipeline.core.box import Span, round_up
from pipeline.core.network.schedule import Schedule
from pipeline.core.network.unet import Architecture, Layer, layers
from pipeline.unet.model import UNet


@dataclass(frozen=True)
class Kernel:
    """Weights of a layer as the sweep uses them: batch norm folded in, in the dtype and layout of the computation."""

    weight: Tensor
    bias: Tensor | None


def kernels(model: UNet, *, device: torch.device, dtype: torch.dtype) -> dict[str, Kernel]:
    """Kernels by layer name. Folding is done in float64."""
    ndim = model.architecture.ndim
    found = {}
    for layer in layers(model.architecture):
        if layer.kind == "pool":
            continue
        module = model.get_submodule(layer.name)
        if layer.kind == "conv":
            weight, bias = _folded(module)
            # a clone: `contiguous` leaves a single channel as it is, and what is computed with it would be channels first
            weight = weight.to(device, dtype).movedim(1, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 1)
        elif layer.kind == "up":  # a matrix: each voxel makes 2**ndim, channels last
            weight, bias = _of(module)
            weight = (
                weight.double()
                .flatten(2)
                .permute(2, 1, 0)
                .reshape(-1, layer.in_channels)
                .to(device, dtype)
                .contiguous()
            )
            bias = bias if bias is None else bias.double().repeat(2**ndim)
        else:
            weight, bias = _of(module)
            weight = weight.flatten(1).to(device, dtype).contiguous()
        found[layer.name] = Kernel(weight, bias if bias is None else bias.to(device, dtype))
    return found


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


class Sweep:
    """A network ready to stream columns of one shape; what it allocates is used again for the next such column.

    Args:
        architecture: The network.
        kernels: Its weights.
        schedule: What each layer computes in each turn.
        earlier: A sweep that is over, whose buffers are taken where they fit.
    """

    def __init__(
        self,
        architecture: Architecture,
        kernels: dict[str, Kernel],
        schedule: Schedule,
        earlier: Sweep | None = None,
    ) -> None:
        self._ndim = architecture.ndim
        self._kernels, self.schedule = kernels, schedule
        self._layers = list(layers(architecture))
        like = kernels["fc"].weight
        self._convolve = _convolution(architecture.ndim, like)
        before: dict[str, _Input] = earlier._inputs if earlier else {}
        self._inputs: dict[str, _Input] = {
            layer.name: _Input(layer, schedule, like, before.pop(layer.name, None))
            for layer in self._layers
            if layer.kind == "conv"
        }
        waited: list[_Skips] = earlier._skips if earlier else []
        self._skips: list[_Skips] = [
            _Skips(schedule, level, like, waited[level] if waited else None) for level in range(architecture.depth)
        ]

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compute each convolution once, at the shape of a whole turn, so that its memory and its code are there.

        Not those whose memory an earlier sweep has used.
        """
        for layer in self._layers:
            if layer.kind == "conv" and not self._inputs[layer.name].used:
                self._applied(layer, self._inputs[layer.name].turn(self.schedule.slices(layer.level)))

    @torch.inference_mode()
    def run(self, slabs: Iterable[Tensor]) -> Iterator[tuple[Span, Tensor]]:
        """Logits of the core's y and x, as z advances.

        Args:
            slabs: The input, `Schedule.reads(turn)` by turn while there is any; Z Y X C, normalised.

        Yields:
            Slices of the volume, and their logits, Z Y X C.
        """
        for held in self._inputs.values():
            held.reset()
        source = iter(slabs)
        for turn in range(self.schedule.turns):
            slab_ZYXC = next(source) if self.schedule.reads(turn).extent else None
            logits_ZYXC = self._turn(turn, slab_ZYXC)
            if logits_ZYXC is not None:
                yield self.schedule.writes("fc", turn), logits_ZYXC

    def _turn(self, turn: int, x_ZYXC: Tensor | None) -> Tensor | None:
        """One slab through all layers; None stands for what a layer cannot compute yet, or has no more of.

        A convolution's output is rectified as it is taken up, in the same pass over memory that crops it.
        """
        for layer in self._layers:
            span = self.schedule.writes(layer.name, turn)
            if layer.kind == "conv":
                held = self._inputs[layer.name]
                if x_ZYXC is not None:
                    held.take(x_ZYXC)
                x_ZYXC = self._convolved(layer, held, span) if span.extent else None
            elif x_ZYXC is None:
                continue
            elif layer.kind == "pool":
                written = self.schedule.writes(f"encoder{layer.level}_2", turn)
                parts = self._skips[layer.level - 1].append(x_ZYXC, written)
                x_ZYXC = torch.cat([_pooled(part_ZYXC, self._ndim) for part_ZYXC in parts])
            elif layer.kind == "up":
                pairs_ZYXC = self._linear(layer, x_ZYXC.relu_())
                self._inputs[f"decoder{layer.level + 1}_2"].join(pairs_ZYXC, self._skips[layer.level], span)
                x_ZYXC = None
            else:
                x_ZYXC = self._linear(layer, x_ZYXC.relu_())
        return x_ZYXC

    def _convolved(self, layer: Layer, held: _Input, span: Span) -> Tensor:
        found_ZYXC = self._applied(layer, held.window(span))
        held.advance(span)
        return found_ZYXC

    def _applied(self, layer: Layer, x_ZYXC: Tensor) -> Tensor:
        kernel = self._kernels[layer.name]
        if self._ndim == 3:
            x_BCS = x_ZYXC.permute(3, 0, 1, 2)[None]
            return self._convolve(x_BCS, kernel.weight, kernel.bias)[0].permute(1, 2, 3, 0)
        x_BCS = x_ZYXC.permute(0, 3, 1, 2)
        return self._convolve(x_BCS, kernel.weight, kernel.bias).permute(0, 2, 3, 1)

    def _linear(self, layer: Layer, x_ZYXC: Tensor) -> Tensor:
        kernel = self._kernels[layer.name]
        return F.linear(x_ZYXC, kernel.weight, kernel.bias)


def _convolution(ndim: int, like: Tensor) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """The convolution without padding. torch gives short float32 slabs to a slow one that copies its input 27 times."""
    if like.device.type == "cpu" and like.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        zeros, ones = [0] * ndim, [1] * ndim
        return lambda x, weight, bias: torch.mkldnn_convolution(x, weight, bias, zeros, ones, ones, 1)
    return F.conv3d if ndim == 3 else F.conv2d


@register_flop_formula(torch.ops.aten.mkldnn_convolution)
def _mkldnn_flops(
    x_shape: list[int], w_shape: list[int], *_: object, out_shape: list[int] | None = None, **__: object
) -> int:
    """So that torch's own counter, which does not know this convolution, counts what the plan says."""
    return conv_flop_count(x_shape, w_shape, out_shape or [])


class _Input:
    """What a convolution reads: a window on its input that slides along z, framed by zeros where the volume ends."""

    def __init__(self, layer: Layer, schedule: Schedule, like: Tensor, earlier: _Input | None) -> None:
        axes = schedule.axes
        self._reach = axes[0].reach
        self._frame = [axis.writes[layer.name].grown(axis.reach) for axis in axes]
        self._given = [axis.reads[layer.name] for axis in axes]
        self._rectify = layer.name != "encoder1_1"
        self._inner = tuple(_within(g, f) for g, f in zip(self._given[1:], self._frame[1:], strict=True))
        slices = min(schedule.held(layer.name) + schedule.slices(layer.level), self._frame[0].extent)
        shape = (slices, *(frame.extent for frame in self._frame[1:]), layer.in_channels)
        self._buffer: Tensor
        self.used = earlier is not None and (earlier._buffer.shape, earlier._inner) == (shape, self._inner)
        if earlier and self.used:  # its frame of zeros is ours
            self._buffer = earlier._buffer
        else:
            del earlier
            self._buffer = torch.zeros(shape, dtype=like.dtype, device=like.device)

    def reset(self) -> None:
        """Begin a column: slices before the first are the network's own zeros."""
        self._first, self._filled = self._frame[0].start, self._given[0].start
        self._buffer[: self._filled - self._first].zero_()

    def _next(self, slices: int) -> Tensor:
        at = self._filled - self._first
        self._filled += slices
        return self._buffer[(slice(at, at + slices), *self._inner)]

    def take(self, x_ZYXC: Tensor) -> None:
        """Take up the next slices of the input, rectified unless they are the volume's."""
        target = self._next(x_ZYXC.shape[0])
        if self._rectify:
            torch.clamp_min(x_ZYXC, 0, out=target)
        else:
            target.copy_(x_ZYXC)

    def join(self, pairs_ZYXC: Tensor, skips: _Skips, span: Span) -> None:
        """Take up the next slices of a concatenation: the up-sampled map first, then its skip, both cropped.

        Args:
            pairs_ZYXC: For each coarse voxel, the channels of the 2 x 2 x 2 (or 1 x 2 x 2) voxels that it makes.
            skips: What the encoder wrote.
            span: The slices.
        """
        target_ZYXC = self._next(span.extent)
        half = target_ZYXC.shape[-1] // 2
        skips.unfold(pairs_ZYXC, target_ZYXC[..., :half], span)
        skips.take(target_ZYXC[..., half:], span)

    def window(self, span: Span) -> Tensor:
        """What the convolution reads to write `span`, the network's own zeros behind the volume's end included."""
        stop = span.stop + self._reach - self._first
        self._buffer[self._filled - self._first : stop].zero_()
        return self._buffer[:stop]

    def turn(self, slices: int) -> Tensor:
        """What the convolution reads in a whole turn, whatever it holds now."""
        return self._buffer[: slices + 2 * self._reach]

    def advance(self, span: Span) -> None:
        """Forget what nothing after `span` needs."""
        by, kept = span.stop - self._reach - self._first, self._filled - span.stop + self._reach
        if kept > 0:
            still = self._buffer[by : by + kept]
            self._buffer[:kept].copy_(still if by >= kept else still.clone())
        self._first += by


class _Skips:
    """What waits between an encoder and its decoder: a ring of slices, written over once the decoder has read them.

    A ring of its own, and not what the convolutions gave as they gave it: long-lived pieces between short-lived ones
    leave holes in the heap, and a process would grow with its column's length.
    """

    def __init__(self, schedule: Schedule, level: int, like: Tensor, earlier: _Skips | None) -> None:
        self._axes, self._level = schedule.axes, level
        wide, self._kept = f"encoder{level + 1}_2", f"unpool{level + 1}"
        self._inner = tuple(_within(axis.writes[self._kept], axis.writes[wide]) for axis in schedule.axes[1:])
        slices = min(schedule.waiting(level), schedule.needs.writes[wide].extent)
        plane = [axis.writes[wide].extent for axis in schedule.axes[1:]]
        shape = (round_up(slices, 2), *plane, schedule.architecture.channels(level))
        self._ring: Tensor
        if earlier is not None and earlier._ring.shape == shape:
            self._ring = earlier._ring
        else:
            self._ring = torch.empty(shape, dtype=like.dtype, device=like.device)
        self._begin = schedule.needs.writes[wide].start

    def append(self, x_ZYXC: Tensor, span: Span) -> list[Tensor]:
        """Rectify the slices that the encoder wrote and line them up; gives them as they lie, in whole pairs."""
        parts = list(self._parts(span))
        for target, part in parts:
            torch.clamp_min(x_ZYXC[part], 0, out=target)
        return [target for target, _ in parts]

    def take(self, target_ZYXC: Tensor, span: Span) -> None:
        """Fill `target_ZYXC` with slices that wait."""
        for found, part in self._parts(span):
            target_ZYXC[part].copy_(found[(slice(None), *self._inner)])

    def _parts(self, span: Span) -> Iterator[tuple[Tensor, slice]]:
        """Where slices lie in the ring, and which of `span` they are: one part, or two where the ring closes."""
        done, size = 0, self._ring.shape[0]
        while done < span.extent:
            at = (span.start + done - self._begin) % size
            count = min(span.extent - done, size - at)
            yield self._ring[at : at + count], slice(done, done + count)
            done += count

    def unfold(self, pairs_ZYXC: Tensor, target_ZYXC: Tensor, span: Span) -> None:
        """Put the voxels of each coarse voxel in their places; what they make beyond the target is cropped."""
        spans = (span, *(axis.writes[self._kept] for axis in self._axes[1:]))
        spatial = [axis.spatial for axis in self._axes]
        skipped = [
            s.start - axis.unpooled(self._level, axis.covering(self._level, s)).start
            for s, axis in zip(spans, self._axes, strict=True)
        ]
        for number, parity in enumerate(product(*((0, 1) if on else (0,) for on in spatial))):
            target = target_ZYXC
            found = pairs_ZYXC[..., number * target.shape[-1] : (number + 1) * target.shape[-1]]
            for axis, (one, skip) in enumerate(zip(parity, skipped, strict=True)):
                if spatial[axis]:
                    index = [slice(None)] * 3
                    index[axis] = slice((one - skip) % 2, None, 2)
                    target = target[tuple(index)]
                    found = found.narrow(axis, int(one < skip), target.shape[axis])
            target.copy_(found)


def _within(inner: Span, outer: Span) -> slice:
    return slice(inner.start - outer.start, inner.stop - outer.start)


def _pooled(x_ZYXC: Tensor, ndim: int) -> Tensor:
    """The larger of each pair, along y and x, and z where the network is 3D."""
    for axis in range(3 - ndim, 3):
        first = [slice(None)] * 3
        second = list(first)
        first[axis], second[axis] = slice(0, None, 2), slice(1, None, 2)
        x_ZYXC = torch.maximum(x_ZYXC[tuple(first)], x_ZYXC[tuple(second)])
    return x_ZYXC

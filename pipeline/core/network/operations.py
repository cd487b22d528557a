"""What a node of a network does, as an index map along each axis.

What it reads to write a span, how far it can write when so much of its input is there, and where its output ends if its
input ends somewhere: halo, stride, legal extents, turns of a sweep, buffers and prices are folds over the graph that ask
only these. So a new operation is a class here, and a step in `pipeline.networks.sweep`.

Coordinates are the volume's, at each node's own level, so that no tile has a phase of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

from pipeline.core.geometry.box import Span, Triple


class Lattice(NamedTuple):
    """Voxels `i` with `i % period == phase`: where groups begin that an operation takes whole."""

    period: int
    phase: int


ANYWHERE = Lattice(1, 0)


@dataclass(frozen=True, slots=True)
class Operation:
    """What a node does, along each axis: voxel by voxel, without weights, unless a kind of operation says otherwise."""

    @property
    def down(self) -> Triple:
        """Voxels read for each voxel written, along z, y, x."""
        return (1, 1, 1)

    @property
    def up(self) -> Triple:
        """Voxels written for each voxel read, along z, y, x."""
        return (1, 1, 1)

    @property
    def pads(self) -> bool:
        """Whether it puts values of its own beyond the ends of what it reads."""
        return False

    @property
    def has_window(self) -> bool:
        """Whether voxels that it writes share voxels that it reads: a sweep keeps some for the next turn."""
        return False

    @property
    def has_own_memory(self) -> bool:
        """Whether it writes into memory of its own, and not where its reader wants it."""
        return True

    @property
    def has_step(self) -> bool:
        """Whether the sweep of our UNet has a step for it."""
        return False

    @property
    def streams(self) -> bool:
        """Whether it goes along z at an even pace: a stride further on it reads what lies a stride further on."""
        return not self.is_whole

    @property
    def fills(self) -> bool:
        """Whether it takes zeros for what lies beyond the ends, and finds them where what it reads lies, if they are there."""
        return False

    @property
    def takes_several(self) -> bool:
        """Whether it may read several nodes."""
        return False

    @property
    def crops(self) -> bool:
        """Whether several that it reads may end elsewhere, and are cropped to what all have."""
        return False

    @property
    def is_anchored(self) -> bool:
        """Whether where it reads follows from the extent of all that it is given: `ends` are the volume's then, not a window's."""
        return False

    @property
    def is_whole(self) -> bool:
        """Whether each value that it writes depends on the whole map that it reads, so that no tile can tell it."""
        return False

    def shrinks(self, axis: int) -> bool:
        """Whether it writes one value for all voxels along an axis: what reads it has that at each voxel."""
        return False

    def channels(self, given: Sequence[int]) -> int | None:
        """Channels that it writes, of those of each node that it reads; None where its weights decide."""
        return sum(given)

    def need(self, axis: int, span: Span, ends: Span | None) -> Span:
        """The voxels that it reads to write `span`; `ends` are those of what it reads, None where there are none."""
        return span

    def ready(self, axis: int, available: int) -> int:
        """The first voxel that it cannot write yet, of a long input that is there up to `available`."""
        return available

    def ends(self, axis: int, ends: Span) -> Span:
        """Where its output ends, if its input has `ends`.

        Raises:
            ValueError: Groups that it takes whole do not begin, or end, there.
        """
        return ends

    def computed(self, axis: int, span: Span) -> Span:
        """What it computes in order to write `span`: whole groups, of which some may be cropped."""
        return span

    def lattice(self, axis: int, written: Lattice) -> Lattice:
        """Where its input must stop each turn, for its output to stop on the lattice `written`."""
        return written

    def weights(self, in_channels: int, channels: int) -> int:
        """Values of its kernel."""
        return 0

    def multiply_adds(self, in_channels: int, channels: int) -> int:
        """Multiplications with addition a voxel that it computes."""
        return 0


@dataclass(frozen=True, slots=True)
class Input(Operation):
    """The volume, normalised."""

    def channels(self, given: Sequence[int]) -> int | None:
        return None

    @property
    def has_step(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Convolution(Operation):
    """A convolution, and the norm that is folded into it.

    Args:
        kernel: Taps along z, y, x.
        padding: Zeros that it puts beyond each end, along z, y, x.
        stride: Voxels from one that it writes to the next, along z, y, x.
        dilation: Voxels from tap to tap, along z, y, x.
        groups: Of channels that see nothing of one another.
        first: Where the taps of voxel 0 begin, along z, y, x; None: its middle tap lies on the voxel.
    """

    kernel: Triple
    padding: Triple
    stride: Triple = (1, 1, 1)
    dilation: Triple = (1, 1, 1)
    groups: int = 1
    first: Triple | None = None

    @property
    def has_step(self) -> bool:
        plain = self.stride == self.dilation == (1, 1, 1) and self.groups == 1 and self.first is None
        return plain and all(taps % 2 for taps in self.kernel)

    @property
    def pads(self) -> bool:
        return any(self.padding)

    @property
    def fills(self) -> bool:
        return True

    @property
    def down(self) -> Triple:
        return self.stride

    @property
    def has_window(self) -> bool:
        return prod(self.kernel) > 1

    def _taps(self, axis: int) -> _Taps:
        kernel, dilation = self.kernel[axis], self.dilation[axis]
        first = -dilation * (kernel // 2) if self.first is None else self.first[axis]
        return _Taps(self.stride[axis], first, dilation * (kernel - 1) + 1)

    def need(self, axis: int, span: Span, ends: Span | None) -> Span:
        read = self._taps(axis).read(span)
        return read.clipped(ends) if ends and self.padding[axis] else read

    def ready(self, axis: int, available: int) -> int:
        return self._taps(axis).ready(available)

    def ends(self, axis: int, ends: Span) -> Span:
        return self._taps(axis).ends(ends.grown(self.padding[axis]))

    def lattice(self, axis: int, written: Lattice) -> Lattice:
        """Anywhere: it keeps what it cannot use yet. That is, where a tap reaches beyond the voxel itself."""
        return ANYWHERE if self.has_window else written

    def channels(self, given: Sequence[int]) -> int | None:
        return None

    def weights(self, in_channels: int, channels: int) -> int:
        return in_channels * channels * prod(self.kernel) // self.groups

    def multiply_adds(self, in_channels: int, channels: int) -> int:
        return in_channels * channels * prod(self.kernel) // self.groups


class _Taps(NamedTuple):
    """What a window reads along an axis: `step * i + first` to so far from there, for voxel `i`."""

    step: int
    first: int
    reach: int

    def read(self, span: Span) -> Span:
        return Span(self.step * span.start + self.first, self.step * (span.stop - 1) + self.first + self.reach)

    def ready(self, available: int) -> int:
        return (available - self.first - self.reach) // self.step + 1

    def ends(self, padded: Span) -> Span:
        """What can be written where taps may lie in `padded`.

        Raises:
            ValueError: The first window does not begin where that does.
        """
        start, off = divmod(padded.start - self.first, self.step)
        if off:
            raise ValueError(f"Windows a step of {self.step} apart do not begin at {padded.start}.")
        return Span(start, self.ready(padded.stop))


@dataclass(frozen=True, slots=True)
class Pool(Operation):
    """One value of each group.

    Args:
        factor: Voxels from one group to the next, along z, y, x.
        phase: Where groups begin along z, y, x, in the volume's coordinates: that of voxel 0 does there.
        kernel: Voxels of a group along z, y, x; None: as many as the factor.
        dilation: Voxels from one of a group to the next, along z, y, x.
        padding: Voxels that it puts beyond each end, along z, y, x.
        drops: Whether voxels at the end that make no whole group are left out; else there may be none.
    """

    factor: Triple
    phase: Triple
    kernel: Triple | None = None
    dilation: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)
    drops: bool = False

    @property
    def taps(self) -> Triple:
        """Voxels of a group along z, y, x."""
        return self.kernel or self.factor

    @property
    def down(self) -> Triple:
        return self.factor

    @property
    def pads(self) -> bool:
        return any(self.padding)

    @property
    def has_window(self) -> bool:
        return any(self._taps(axis).reach != factor for axis, factor in enumerate(self.factor))

    def _taps(self, axis: int) -> _Taps:
        return _Taps(self.factor[axis], self.phase[axis], self.dilation[axis] * (self.taps[axis] - 1) + 1)

    def need(self, axis: int, span: Span, ends: Span | None) -> Span:
        read = self._taps(axis).read(span)
        return read.clipped(ends) if ends and self.padding[axis] else read

    def ready(self, axis: int, available: int) -> int:
        return self._taps(axis).ready(available)

    def ends(self, axis: int, ends: Span) -> Span:
        taps, padded = self._taps(axis), ends.grown(self.padding[axis])
        output = Span(taps.ready(padded.start + taps.reach) - 1, taps.ready(padded.stop))
        if taps.read(output).start != padded.start or not (self.drops or taps.read(output) == padded):
            raise ValueError(
                f"A pooling by {self.factor[axis]} finds no whole groups from {ends.start} to {ends.stop}."
            )
        return output

    def lattice(self, axis: int, written: Lattice) -> Lattice:
        if self.has_window:
            return ANYWHERE
        factor = self.factor[axis]
        return Lattice(factor * written.period, factor * written.phase + self.phase[axis])


@dataclass(frozen=True, slots=True)
class MaxPool(Pool):
    """The largest of each group; what it pads with is less than any."""

    @property
    def has_step(self) -> bool:
        return not (self.has_window or self.pads or self.drops)


@dataclass(frozen=True, slots=True)
class AveragePool(Pool):
    """The mean of each group; what it pads with are zeros.

    Args:
        counts: Whether those count; else the mean is of what lies within the ends.
    """

    counts: bool = True


@dataclass(frozen=True, slots=True)
class TransposedConvolution(Operation):
    """A transposed convolution: each voxel adds to a group of voxels, which is its own where groups do not overlap.

    Args:
        factor: Voxels from one group to the next, along z, y, x.
        phase: Where groups begin along z, y, x, in the volume's coordinates: that of voxel 0 does there.
        kernel: Voxels of a group along z, y, x; None: as many as the factor.
        dilation: Voxels from one of a group to the next, along z, y, x.
        cropped: Voxels that it leaves out at either end, along z, y, x.
        extra: Voxels that it writes more at the far end, along z, y, x.
        groups: Of channels that see nothing of one another.
    """

    factor: Triple
    phase: Triple
    kernel: Triple | None = None
    dilation: Triple = (1, 1, 1)
    cropped: Triple = (0, 0, 0)
    extra: Triple = (0, 0, 0)
    groups: int = 1

    @property
    def has_step(self) -> bool:
        return not (self.pads or any(self.cropped)) and self.groups == 1

    @property
    def taps(self) -> Triple:
        """Voxels of a group along z, y, x."""
        return self.kernel or self.factor

    @property
    def up(self) -> Triple:
        return self.factor

    @property
    def pads(self) -> bool:
        """Where groups overlap, or voxels lie beyond the last one, those at an end get less than those within, as if zeros lay beyond."""
        return self.has_window or any(self.extra)

    @property
    def has_window(self) -> bool:
        return any(self._reach(axis) != factor for axis, factor in enumerate(self.factor))

    def _reach(self, axis: int) -> int:
        return self.dilation[axis] * (self.taps[axis] - 1) + 1

    def need(self, axis: int, span: Span, ends: Span | None) -> Span:
        factor, phase = self.factor[axis], self.phase[axis]
        read = Span(-((phase + self._reach(axis) - 1 - span.start) // factor), (span.stop - 1 - phase) // factor + 1)
        return read.clipped(ends) if ends and self.pads else read

    def ready(self, axis: int, available: int) -> int:
        return self.factor[axis] * available + self.phase[axis]

    def ends(self, axis: int, ends: Span) -> Span:
        whole, cropped = self._written(axis, ends), self.cropped[axis]
        return Span(whole.start + cropped, whole.stop - cropped + self.extra[axis])

    def _written(self, axis: int, read: Span) -> Span:
        """What voxels add to."""
        factor, phase = self.factor[axis], self.phase[axis]
        return Span(factor * read.start + phase, factor * (read.stop - 1) + phase + self._reach(axis))

    def computed(self, axis: int, span: Span) -> Span:
        """Whole groups where they do not overlap; else the voxels that lie alike in them are computed by themselves, and none else."""
        return span if self.has_window else self._written(axis, self.need(axis, span, None))

    def lattice(self, axis: int, written: Lattice) -> Lattice:
        factor, phase = self.factor[axis], self.phase[axis]
        if written == ANYWHERE or self.has_window:
            return ANYWHERE
        if written.period % factor or (written.phase - phase) % factor:
            raise ValueError(
                f"Up-sampling by {factor} from {phase} on never stops at {written.phase} modulo {written.period}."
            )
        period = written.period // factor
        return Lattice(period, (written.phase - phase) // factor % period)

    def channels(self, given: Sequence[int]) -> int | None:
        return None

    def weights(self, in_channels: int, channels: int) -> int:
        return in_channels * channels * prod(self.taps) // self.groups

    def multiply_adds(self, in_channels: int, channels: int) -> int:
        """Of the taps that fall on a voxel, in the mean of a group: they are unlike where the factor does not divide the kernel."""
        return in_channels * channels * prod(self.taps) // (prod(self.factor) * self.groups)


@dataclass(frozen=True, slots=True)
class Resize(Operation):
    """Up-sampling by whole factors, without weights. Beyond the ends the last voxel is repeated.

    Args:
        factor: Voxels written for each that is read, along z, y, x.
        mode: `nearest` repeats a voxel; `linear` goes from the middle of one to that of the next.
    """

    factor: Triple
    mode: Literal["nearest", "linear"]

    @property
    def up(self) -> Triple:
        return self.factor

    @property
    def has_window(self) -> bool:
        return self.mode == "linear"

    @property
    def pads(self) -> bool:
        return self.mode == "linear"

    def _repeats(self, axis: int) -> bool:
        return self.mode == "nearest" or self.factor[axis] == 1

    def need(self, axis: int, span: Span, ends: Span | None) -> Span:
        factor = self.factor[axis]
        if self._repeats(axis):
            return Span(span.start // factor, -(-span.stop // factor))
        first, last = ((2 * voxel + 1 - factor) // (2 * factor) for voxel in (span.start, span.stop - 1))
        read = Span(first, last + 2)
        return read.clipped(ends) if ends else read

    def ready(self, axis: int, available: int) -> int:
        factor = self.factor[axis]
        return factor * available if self._repeats(axis) else factor * (available - 1) + factor // 2

    def ends(self, axis: int, ends: Span) -> Span:
        factor = self.factor[axis]
        return Span(factor * ends.start, factor * ends.stop)

    def lattice(self, axis: int, written: Lattice) -> Lattice:
        return ANYWHERE


@dataclass(frozen=True, slots=True)
class AlignedResize(Operation):
    """Linear up-sampling by whole factors, the first voxel on the first and the last on the last: torch's `align_corners`.

    Of n voxels, voxel i lies at `i (n - 1) / (factor n - 1)`, which goes from `(i + 1) / factor - 1` to `i / factor` as n grows and i
    does: never further than half a voxel from where `Resize` has it. What it needs here is what it needs of any n, so that it goes
    along z at an even pace: one voxel more a side than it reads, at most. A whole group needs what it needs in `Resize`.

    Args:
        factor: Voxels written for each that is read, along z, y, x.
    """

    factor: Triple

    @property
    def up(self) -> Triple:
        return self.factor

    @property
    def has_window(self) -> bool:
        return True

    @property
    def pads(self) -> bool:
        return True

    @property
    def is_anchored(self) -> bool:
        return True

    def need(self, axis: int, span: Span, ends: Span | None) -> Span:
        factor = self.factor[axis]
        read = Span((span.start + 1) // factor - 1, -(-(span.stop - 1) // factor) + 1)
        return read.clipped(ends) if ends else read

    def ready(self, axis: int, available: int) -> int:
        return self.factor[axis] * (available - 1) + 1

    def ends(self, axis: int, ends: Span) -> Span:
        factor = self.factor[axis]
        return Span(factor * ends.start, factor * ends.stop)

    def lattice(self, axis: int, written: Lattice) -> Lattice:
        return ANYWHERE


@dataclass(frozen=True, slots=True)
class Pad(Operation):
    """Voxels beyond the ends; those that were there move on.

    Args:
        low: How many before the first, along z, y, x.
        high: How many after the last, along z, y, x.
        mode: Zeros, the voxel at the end again, or the voxels before it, mirrored.
    """

    low: Triple
    high: Triple
    mode: Literal["zero", "replicate", "reflect"]

    @property
    def pads(self) -> bool:
        return True

    def need(self, axis: int, span: Span, ends: Span | None) -> Span:
        read = Span(span.start - self.low[axis], span.stop - self.low[axis])
        if ends is None:
            return read
        start, stop = min(read.start, ends.stop - 1), max(read.stop, ends.start + 1)
        if self.mode == "reflect" and read.start < ends.start:
            stop = max(stop, 2 * ends.start - read.start + 1)
        if self.mode == "reflect" and read.stop > ends.stop:
            start = min(start, 2 * ends.stop - 1 - read.stop)
        return Span(start, stop).clipped(ends)

    def ready(self, axis: int, available: int) -> int:
        return available + self.low[axis]

    def ends(self, axis: int, ends: Span) -> Span:
        """Where the output ends.

        Raises:
            ValueError: There are too few voxels to mirror.
        """
        low, high = self.low[axis], self.high[axis]
        if self.mode == "reflect" and max(low, high) >= ends.extent:
            raise ValueError(f"{ends.extent} voxels cannot be mirrored by {max(low, high)}.")
        return Span(ends.start, ends.stop + low + high)


@dataclass(frozen=True, slots=True)
class Crop(Operation):
    """What is left without voxels at the ends; it moves back by those at the first.

    Args:
        low: How many are left out before, along z, y, x.
        high: How many are left out after, along z, y, x.
    """

    low: Triple
    high: Triple

    def need(self, axis: int, span: Span, ends: Span | None) -> Span:
        return Span(span.start + self.low[axis], span.stop + self.low[axis])

    def ready(self, axis: int, available: int) -> int:
        return available - self.low[axis]

    def ends(self, axis: int, ends: Span) -> Span:
        """Where the output ends.

        Raises:
            ValueError: Nothing is left.
        """
        left = ends.extent - self.low[axis] - self.high[axis]
        if left < 1:
            raise ValueError(f"Of {ends.extent} voxels a crop of {self.low[axis]} and {self.high[axis]} leaves none.")
        return Span(ends.start, ends.start + left)


@dataclass(frozen=True, slots=True)
class Shift(Operation):
    """The same voxels, counted from elsewhere: where a network that pads nothing begins before the volume.

    Args:
        by: What is added to where each is, along z, y, x.
    """

    by: Triple

    @property
    def has_own_memory(self) -> bool:
        return False

    def need(self, axis: int, span: Span, ends: Span | None) -> Span:
        return Span(span.start - self.by[axis], span.stop - self.by[axis])

    def ready(self, axis: int, available: int) -> int:
        return available + self.by[axis]

    def ends(self, axis: int, ends: Span) -> Span:
        return Span(ends.start + self.by[axis], ends.stop + self.by[axis])


# --- one voxel at a time ------------------------------------------------------------------------------------------------


ACTIVATIONS = frozenset(
    [
        "relu",
        "leaky_relu",
        "prelu",
        "elu",
        "selu",
        "silu",
        "gelu",
        "gelu_tanh",
        "mish",
        "sigmoid",
        "tanh",
        "softplus",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
        "relu6",
        "exp",
        "neg",
        "abs",
        "sqrt",
        "erf",
        "log",
        "reciprocal",
        "clamp",
        "binarize",
        "softmax",
        "log_softmax",
    ]
)
"""Functions of each value alone, or of the channels of each voxel."""


@dataclass(frozen=True, slots=True)
class Activation(Operation):
    """A function of each value alone, or (`softmax`, `log_softmax`) of the channels of each voxel.

    Args:
        function: Its name in torch.
        values: That it is given, in torch's order.
    """

    function: str
    values: tuple[float, ...] = ()

    @property
    def has_step(self) -> bool:
        return self.function == "relu"

    @property
    def has_own_memory(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Affine(Operation):
    """Each channel times a weight, and another weight added: a norm whose statistics are fixed."""


@dataclass(frozen=True, slots=True)
class Constant(Operation):
    """A weight for each channel, the same at every voxel: what looked at a whole input, and is fixed. What it reads says where voxels are."""

    def channels(self, given: Sequence[int]) -> int | None:
        return None


@dataclass(frozen=True, slots=True)
class ChannelSlice(Operation):
    """Some of the channels.

    Args:
        start: The first.
        stop: After the last.
    """

    start: int
    stop: int

    def channels(self, given: Sequence[int]) -> int | None:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Concatenation(Operation):
    """The channels of all that it reads, in order.

    Args:
        alike: Whether all must end at the same place; else they are cropped to what all have.
    """

    alike: bool = False

    @property
    def has_step(self) -> bool:
        return True

    @property
    def crops(self) -> bool:
        return not self.alike

    @property
    def has_own_memory(self) -> bool:
        return False

    @property
    def takes_several(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Combination(Operation):
    """One value of those of all that it reads, in order, channel by channel; what has one channel has it for all.

    Args:
        function: Its name in torch.
    """

    function: Literal["add", "sub", "mul", "div", "maximum", "minimum"]

    @property
    def takes_several(self) -> bool:
        return True

    def channels(self, given: Sequence[int]) -> int | None:
        return max(given) if all(n in (1, max(given)) for n in given) else -1


# --- the whole input ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WholeNorm(Operation):
    """A norm by statistics of all that it is given: mean 0 and variance 1 over all voxels of a group of channels; then weights, one for each channel.

    Its ends are those of what it is given: a map in one pass over a volume, a window where that is all there is. Without ends
    (`need` of a core anywhere) it is what it becomes when its statistics are fixed: one voxel of each.

    Args:
        groups: Of channels: as many as channels in an instance norm, 1 in a layer norm of channels and space.
        epsilon: Added to the variance.
        planar: Whether each slice has statistics of its own, as in a 2D network.
    """

    groups: int
    epsilon: float
    planar: bool = False

    @property
    def is_whole(self) -> bool:
        return True

    def need(self, axis: int, span: Span, ends: Span | None) -> Span:
        return span if ends is None or (self.planar and axis == 0) else ends


@dataclass(frozen=True, slots=True)
class GlobalPool(Operation):
    """One value a channel of all that it is given, which whatever reads it has at each voxel.

    Args:
        kind: `mean` or `max`.
        planar: Whether each slice has a value of its own, as in a 2D network.
    """

    kind: Literal["mean", "max"]
    planar: bool = False

    @property
    def is_whole(self) -> bool:
        return True

    def shrinks(self, axis: int) -> bool:
        return not (self.planar and axis == 0)

    def need(self, axis: int, span: Span, ends: Span | None) -> Span:
        """All of it.

        Raises:
            ValueError: It has no ends.
        """
        if not self.shrinks(axis):
            return span
        if ends is None:
            raise ValueError(f"The {self.kind} of a whole map needs all of it.")
        return ends

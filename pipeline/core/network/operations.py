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
    def takes_several(self) -> bool:
        """Whether it may read several nodes."""
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


@dataclass(frozen=True, slots=True)
class Convolution(Operation):
    """A convolution of stride 1, and the norm that is folded into it.

    Args:
        kernel: Taps along z, y, x; odd.
        padding: Zeros that it puts beyond each end, along z, y, x.
    """

    kernel: Triple
    padding: Triple

    @property
    def pads(self) -> bool:
        return any(self.padding)

    @property
    def has_window(self) -> bool:
        return prod(self.kernel) > 1

    def need(self, axis: int, span: Span, ends: Span | None) -> Span:
        read = span.grown(self.kernel[axis] // 2)
        return read.clipped(ends) if ends and self.padding[axis] else read

    def ready(self, axis: int, available: int) -> int:
        return available - self.kernel[axis] // 2

    def ends(self, axis: int, ends: Span) -> Span:
        return ends.grown(self.padding[axis] - self.kernel[axis] // 2)

    def lattice(self, axis: int, written: Lattice) -> Lattice:
        """Anywhere: it keeps what it cannot use yet. That is, where a tap reaches beyond the voxel itself."""
        return ANYWHERE if self.has_window else written

    def channels(self, given: Sequence[int]) -> int | None:
        return None

    def weights(self, in_channels: int, channels: int) -> int:
        return in_channels * channels * prod(self.kernel)

    def multiply_adds(self, in_channels: int, channels: int) -> int:
        return in_channels * channels * prod(self.kernel)


@dataclass(frozen=True, slots=True)
class MaxPool(Operation):
    """The largest of each group.

    Args:
        factor: Voxels of a group along z, y, x, and from one to the next.
        phase: Where groups begin along z, y, x, in the volume's coordinates: `i % factor == phase`.
    """

    factor: Triple
    phase: Triple

    @property
    def down(self) -> Triple:
        return self.factor

    def need(self, axis: int, span: Span, ends: Span | None) -> Span:
        factor, phase = self.factor[axis], self.phase[axis]
        return Span(factor * span.start + phase, factor * span.stop + phase)

    def ready(self, axis: int, available: int) -> int:
        return (available - self.phase[axis]) // self.factor[axis]

    def ends(self, axis: int, ends: Span) -> Span:
        output = Span(self.ready(axis, ends.start), self.ready(axis, ends.stop))
        if self.need(axis, output, None) != ends:
            raise ValueError(
                f"A pooling by {self.factor[axis]} finds no whole groups from {ends.start} to {ends.stop}."
            )
        return output

    def lattice(self, axis: int, written: Lattice) -> Lattice:
        factor = self.factor[axis]
        return Lattice(factor * written.period, factor * written.phase + self.phase[axis])


@dataclass(frozen=True, slots=True)
class TransposedConvolution(Operation):
    """A transposed convolution whose stride is its kernel: each voxel makes a group of its own.

    Args:
        factor: Voxels of a group along z, y, x.
        phase: Where groups begin along z, y, x, in the volume's coordinates.
    """

    factor: Triple
    phase: Triple

    @property
    def up(self) -> Triple:
        return self.factor

    def need(self, axis: int, span: Span, ends: Span | None) -> Span:
        factor, phase = self.factor[axis], self.phase[axis]
        return Span((span.start - phase) // factor, -((phase - span.stop) // factor))

    def ready(self, axis: int, available: int) -> int:
        return self.factor[axis] * available + self.phase[axis]

    def ends(self, axis: int, ends: Span) -> Span:
        return Span(self.ready(axis, ends.start), self.ready(axis, ends.stop))

    def computed(self, axis: int, span: Span) -> Span:
        return self.ends(axis, self.need(axis, span, None))

    def lattice(self, axis: int, written: Lattice) -> Lattice:
        factor, phase = self.factor[axis], self.phase[axis]
        if written == ANYWHERE:
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
        return in_channels * channels * prod(self.factor)

    def multiply_adds(self, in_channels: int, channels: int) -> int:
        return in_channels * channels  # one tap for each voxel


@dataclass(frozen=True, slots=True)
class Activation(Operation):
    """A function of each value alone."""

    function: Literal["relu"]

    @property
    def has_own_memory(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Concatenation(Operation):
    """The channels of all that it reads, in order, cropped to what its readers need."""

    @property
    def has_own_memory(self) -> bool:
        return False

    @property
    def takes_several(self) -> bool:
        return True

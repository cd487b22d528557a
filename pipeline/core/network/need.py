"""What each layer must compute for a core: copy and crop, along one axis at a time.

Towards the output a layer needs less and less margin, so needs are walked backwards from the core: a 3-convolution
reads one voxel more a side, up-sampling by two half as many, pooling by two twice as many, and at a concatenation both
sides are cropped to what the layer above reads. Coordinates are the volume's, at each layer's own level, so that no
tile has a phase of its own.

    fc            |        core        |
    decoder1_1    |                    |
    decoder1_2   +1                    +1
    concatenation  +2                    +2        <- the skip is cropped to this
    ...
    encoder1_1  +45                      +45
    input       +46                      +46           depth 3; clipped where the volume ends
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.core.box import Span
from pipeline.core.network.unet import Architecture, Layer, layers


@dataclass(frozen=True, slots=True)
class Needs:
    """What a core needs along one axis.

    Args:
        input: Voxels of the volume that are read.
        writes: By layer, what is kept of what it computes, at the level that it writes.
        reads: By layer, what there is of what it reads, at the level that it reads.
        phases: By level, the offset of the pairs that its pooling joins: 0, or 1 in an unpadded network's middle.
        spatial: Whether the network's layers reach along this axis at all.
    """

    input: Span
    writes: dict[str, Span]
    reads: dict[str, Span]
    phases: tuple[int, ...]
    spatial: bool

    def pooled(self, level: int, span: Span) -> Span:
        """What a pooling of `level` makes of whole pairs."""
        if not self.spatial:
            return span
        phase = self.phases[level]
        return Span((span.start - phase) // 2, (span.stop - phase) // 2)

    def unpooled(self, level: int, span: Span) -> Span:
        """What up-sampling to `level` makes of voxels of the next coarser one."""
        if not self.spatial:
            return span
        phase = self.phases[level]
        return Span(2 * span.start + phase, 2 * span.stop + phase)

    def covering(self, level: int, span: Span) -> Span:
        """The voxels of the next coarser level whose up-sampling covers `span` of `level`."""
        if not self.spatial:
            return span
        phase = self.phases[level]
        return Span((span.start - phase) // 2, -((phase - span.stop) // 2))

    def computes(self, layer: Layer) -> int:
        """Voxels that a layer computes along the axis; up-sampling makes whole pairs, some of which are cropped."""
        span = self.writes[layer.name]
        if layer.kind == "up":
            span = self.unpooled(layer.level, self.covering(layer.level, span))
        return span.extent

    @property
    def reach(self) -> int:
        """Voxels that a 3-convolution reads beyond what it writes."""
        return int(self.spatial)


def needs(architecture: Architecture, axis: int, core: Span, ends: Span | None) -> Needs:
    """What a core needs along an axis.

    Args:
        architecture: The network.
        axis: 0, 1, 2 for z, y, x.
        core: What is kept, voxels of the volume.
        ends: Where layers pad themselves, same padding only: multiples of the stride. None for an unpadded network.
    """
    spatial = architecture.stride[axis] > 1
    found = Needs(core, {}, {}, phases(architecture), spatial)
    need = core
    for layer in reversed(
        list(layers(architecture))
    ):  # an encoder's need: its pooling's, which is wider than the skip's
        found.writes[layer.name] = need
        if layer.kind == "conv":
            need = need.grown(found.reach)
            need = need.clipped(Span(*(e >> layer.level for e in ends))) if spatial and ends else need
        elif layer.kind == "up":
            need = found.covering(layer.level, need)
        elif layer.kind == "pool":
            need = found.unpooled(layer.level - 1, need)
        found.reads[layer.name] = need
    return replace(found, input=need)


def phases(architecture: Architecture) -> tuple[int, ...]:
    """By level, the offset of the pairs that a pooling joins, in the volume's coordinates.

    With same padding pairs start at even voxels. An unpadded network's one pass starts a margin before the volume, and
    each convolution moves its first voxel on by one.
    """
    if architecture.padding == "same":
        return (0,) * architecture.depth
    found = []
    first = -(3 * 2 ** (architecture.depth + 1) - 4)
    for _ in range(architecture.depth):
        first += 2
        found.append(first % 2)
        first = (first - first % 2) // 2
    return tuple(found)

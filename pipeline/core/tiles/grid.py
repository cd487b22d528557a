"""The tile grid: where cores lie, what each reads, and why the stitched answer has no seams.

    |<-------------------------- extended volume ------------------------->|
    |<------------------------ volume ------------------------>|<- mirror ->|
    +-----------------+-----------------+-----------------+-----+
    |     core 0      |     core 1      |     core 2      |  3  |   cores partition the volume
    +-----------------+-----------------+-----------------+-----+
              |<-halo->|<---- core ---->|<-halo->|                  context of tile 1

Four facts make what a tile computes equal to one pass over the whole volume:

phase   every core origin and every halo is a multiple of the stride, the last tile included, and all layers count in
        the volume's own coordinates, so poolings pair the same voxels as the whole pass does;
reach   the halo covers the receptive radius: every layer finds all that it needs for the core inside it;
edges   same padding: the volume is mirrored at its far end to a multiple of the stride, and there and at the origin
        each layer pads itself, exactly as in the whole pass. Unpadded: what lies outside shows the mirrored volume;
local   the network looks at nothing else (refused when the model is loaded).

Tiles are never listed: one is computed from its index, so ten and ten billion cost the same. All this is geometry: which
stride and margin a network has, and how it passes over a tile, is known to `pipeline.core.network`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import lcm, prod
from typing import Literal, NamedTuple

import numpy as np

from pipeline.core.geometry.box import Box, Span, Triple, per_axis, round_up, triple


@dataclass(frozen=True, slots=True)
class Tile:
    """The unit of work and of retry.

    Args:
        index: Linear index in the grid, z slowest.
        core: Voxels that this tile alone owns and writes.
        window: Voxels that it reads, global coordinates; may lie beyond the volume.
    """

    index: int
    core: Box
    window: Box

    def __str__(self) -> str:
        return f"tile {self.index} (core {self.core})"


class Alike(NamedTuple):
    """Cores in a row that differ in their place alone.

    Args:
        core: Of the first of them.
        window: What it reads.
        times: How many they are.
    """

    core: Span
    window: Span
    times: int


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Tiles over a volume.

    Args:
        volume: Extent along z, y, x.
        core: Extent of a whole tile's core; a multiple of the stride.
        stride: Where cores begin.
        margin: Voxels a side that a block on the stride needs around it.
        padding: Where padding is `same`, windows end where the volume does, extended to a multiple of the stride. Where it
            is `valid`, they go beyond, and an extent of theirs is `rest` modulo the stride.
        rest: See there; (0, 0, 0) where padding is `same`.
    """

    volume: Triple
    core: Triple
    stride: Triple
    margin: Triple
    padding: Literal["same", "valid"] = "same"
    rest: Triple = (0, 0, 0)

    @property
    def counts(self) -> Triple:
        """Tiles along z, y, x."""
        return per_axis(lambda n, c: -(-n // c), self.volume, self.core)

    def __len__(self) -> int:
        return prod(self.counts)

    def __iter__(self) -> Iterator[Tile]:
        return (self.tile(index) for index in range(len(self)))

    def tile(self, index: int) -> Tile:
        """The tile at a linear index, z slowest.

        Raises:
            IndexError: There is no such tile.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"Tile {index} asked for, but the grid has tiles 0 to {len(self) - 1}.")
        place = triple(np.unravel_index(index, self.counts))
        start = per_axis(lambda p, c: int(p) * c, place, self.core)
        core = Box.of_shape(self.core).moved(start).clipped(Box.of_shape(self.volume))
        spans = per_axis(self.window, (0, 1, 2), core.start, core.stop)
        return Tile(index, core, Box.of_spans(spans))

    def widest(self) -> Tile:
        """A tile with the largest window."""
        place = [self._widest(axis) // self.core[axis] for axis in range(3)]
        return self.tile(int(np.ravel_multi_index(place, self.counts)))

    def _widest(self, axis: int) -> int:
        """First voxel of a core with the largest window along an axis."""
        return max(self.distinct_cores(axis), key=lambda kind: kind.window.extent).core.start

    def distinct_cores(self, axis: int, period: int = 1) -> Iterator[Alike]:
        """The cores along an axis: away from the ends all are alike.

        Args:
            axis: 0, 1, 2 for z, y, x.
            period: Voxels after which a lattice repeats, such as that of chunks, where cores on it differ; the last one may be cut.
        """
        core, extent, count = self.core[axis], self.volume[axis], self.counts[axis]
        near, far = (-(-(self.margin[axis] + self.stride[axis] + n) // core) + 1 for n in (0, extent % period))
        middle, alike = count - near - far, lcm(core, period) // core
        if middle > alike:
            between = ((near + i, -(-(middle - i) // alike)) for i in range(alike))
            kinds = [*((i, 1) for i in range(near)), *between, *((i, 1) for i in range(count - far, count))]
        else:
            kinds = [(i, 1) for i in range(count)]
        for index, times in kinds:
            span = Span(index * core, min((index + 1) * core, extent))
            yield Alike(span, self.window(axis, *span), times)

    def window(self, axis: int, start: int, stop: int) -> Span:
        """What a core from `start`, on the stride, to `stop` reads along an axis."""
        stride, margin, rest = self.stride[axis], self.margin[axis], self.rest[axis]
        first = start - margin
        if self.padding == "valid":
            return Span(first, first + round_up(stop + margin - first - rest, stride) + rest)
        whole = Span(0, round_up(self.volume[axis], stride))
        return Span(first, round_up(stop, stride) + margin).clipped(whole)

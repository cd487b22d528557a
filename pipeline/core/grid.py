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

Tiles are never listed: one is computed from its index, so ten and ten billion cost the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import lcm, prod

import numpy as np

from pipeline.core.box import Box, Span, Triple, per_axis, round_up, triple
from pipeline.core.network.graph import Graph
from pipeline.core.network.need import Needs, needs
from pipeline.core.network.receptive import receptive_radius
from pipeline.core.network.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Tile:
    """The unit of work and of retry.

    Args:
        index: Linear index in the grid, z slowest.
        core: Voxels that this tile alone owns and writes.
        schedule: How the network streams over it, slab by slab along z.
    """

    index: int
    core: Box
    schedule: Schedule

    @property
    def window(self) -> Box:
        """Voxels that it reads, global coordinates; may lie beyond the volume."""
        return Box.of_spans(axis.input for axis in self.schedule.axes)

    def __str__(self) -> str:
        return f"tile {self.index} (core {self.core})"


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Tiles over a volume, for one network.

    Args:
        graph: The network; it gives stride, padding and margins.
        volume: Extent along z, y, x.
        core: Extent of a whole tile's core; a multiple of the stride.
        halo: Context a side; a multiple of the stride, at least the receptive radius, of which no more than needed is
            read. Unused where unpadded.
        slab: Slices that the network takes in at once as it streams along z; a multiple of the stride.
    """

    graph: Graph
    volume: Triple
    core: Triple
    halo: Triple
    slab: int

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
        axes = triple(self.needs(axis, *span) for axis, span in enumerate(zip(core.start, core.stop, strict=True)))
        return Tile(index, core, Schedule(self.graph, axes, self.slab))

    def widest(self) -> Tile:
        """A tile with the largest window."""
        place = [self._widest(axis) // self.core[axis] for axis in range(3)]
        return self.tile(int(np.ravel_multi_index(place, self.counts)))

    def _widest(self, axis: int) -> int:
        """First voxel of a core with the largest window along an axis."""
        kinds = (needs for needs, _ in self.kinds(axis))
        return max(kinds, key=lambda needs: needs.input.extent).core.start

    def kinds(self, axis: int, period: int = 1) -> Iterator[tuple[Needs, int]]:
        """Needs of the cores along an axis, and the number of their like: away from the ends all are alike.

        Args:
            axis: 0, 1, 2 for z, y, x.
            period: Voxels after which a lattice repeats, such as that of chunks, where cores on it differ.
        """
        core, extent, count = self.core[axis], self.volume[axis], self.counts[axis]
        margin = max(self.halo[axis], receptive_radius(self.graph)[axis]) + self.graph.stride[axis]
        near = -(-margin // core) + 1
        middle, alike = count - 2 * near, lcm(core, period) // core
        if middle > alike:
            between = ((near + i, -(-(middle - i) // alike)) for i in range(alike))
            kinds = [*((i, 1) for i in range(near)), *between, *((i, 1) for i in range(count - near, count))]
        else:
            kinds = [(i, 1) for i in range(count)]
        for index, times in kinds:
            yield self.needs(axis, index * core, min((index + 1) * core, extent)), times

    def needs(self, axis: int, start: int, stop: int) -> Needs:
        """What a core from `start`, on the stride lattice, to `stop` needs along one axis."""
        stride, halo = self.graph.stride[axis], self.halo[axis]
        if not self.graph.is_padded:
            return needs(self.graph, axis, Span(start, stop), None)
        whole = Span(0, round_up(self.volume[axis], stride))
        ends = Span(start - halo, round_up(stop, stride) + halo).clipped(whole)
        return needs(self.graph, axis, Span(start, stop), ends)

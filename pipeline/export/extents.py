"""Extents that a network takes and gives, in the words of the format."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pipeline.core.geometry.box import Triple
from pipeline.core.network.receptive import least_halo, legal_extent, lost_margin, receptive_radius
from pipeline.core.network.unet import Architecture


@dataclass(frozen=True)
class Extents:
    """Extents that the network takes along its spatial axes, in the format's words.

    Args:
        architecture: The network.
    """

    architecture: Architecture

    @property
    def names(self) -> str:
        return "zyx"[3 - self.architecture.ndim :]

    @property
    def axes(self) -> range:
        return range(3 - self.architecture.ndim, 3)

    @cached_property
    def halo(self) -> Triple:
        """The radius rounded up to the stride; 0 for an unpadded network, which has cropped it already."""
        return least_halo(self.architecture.graph) if self.architecture.padding == "same" else (0, 0, 0)

    @cached_property
    def radius(self) -> Triple:
        """What an aligned block of output needs around it, whatever the padding."""
        return receptive_radius(self.architecture.graph)

    @cached_property
    def lost(self) -> Triple:
        """Voxels a side that an unpadded network loses."""
        return lost_margin(self.architecture.graph)

    def least(self, axis: int) -> int:
        """The least legal extent that leaves output inside the halo."""
        if self.architecture.padding == "same":
            return 2 * self.halo[axis] + self.architecture.stride[axis]
        return legal_extent(self.architecture.graph, axis, 2 * self.lost[axis] + 1)

    def within(self, axis: int, room: int) -> int:
        """The largest legal extent of at most `room` voxels, where `room` is at least the least."""
        least, step = self.least(axis), self.architecture.stride[axis]
        return least + (room - least) // step * step

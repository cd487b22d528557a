"""How far an output block reaches, from the network's own layers."""

from __future__ import annotations

from pipeline.core.box import Span, Triple, per_axis, round_up, triple
from pipeline.core.network.need import needs
from pipeline.core.network.unet import Architecture


def receptive_radius(architecture: Architecture) -> Triple:
    """Margin a side, voxels along z, y, x, that an output block on the stride lattice needs.

    Same padding: 8, 22, 46, 94 at depth 1 to 4. Unpadded: 3 * 2**(d+1) - 4, that is 8, 20, 44, 92, which is what each
    side loses in the pass. A 2D network reaches nothing along z. A single voxel at its worst phase reaches further,
    which no tile ever asks for.
    """
    return triple(
        -needs(architecture, axis, Span(0, s), None).input.start for axis, s in enumerate(architecture.stride)
    )


def least_halo(architecture: Architecture) -> Triple:
    """The receptive radius rounded up to the stride: what an exact tile is surrounded by, same padding."""
    return per_axis(round_up, receptive_radius(architecture), architecture.stride)


def lost_margin(architecture: Architecture) -> Triple:
    """Voxels along z, y, x that a pass loses on each side: none with same padding."""
    return receptive_radius(architecture) if architecture.padding == "valid" else (0, 0, 0)


def legal_extent(architecture: Architecture, axis: int, needed: int) -> int:
    """The least extent along an axis, at least `needed`, that one pass takes without an odd map before a pooling.

    Same padding: a multiple of the stride. Unpadded: four voxels are lost before each pooling, so extents are
    congruent to -4 modulo the stride (572 at depth 4).
    """
    stride = architecture.stride[axis]
    lost = 4 if architecture.padding == "valid" and stride > 1 else 0
    return round_up(needed + lost, stride) - lost


def whole_window(architecture: Architecture, volume: Triple) -> Triple:
    """Extents of the one pass over the whole volume that the stitched output must equal."""
    needed = per_axis(lambda n, m: n + 2 * m, volume, lost_margin(architecture))
    return triple(legal_extent(architecture, axis, n) for axis, n in enumerate(needed))

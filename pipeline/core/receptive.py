"""How far an output block reaches, from the network's own layers.

Margins are walked backwards from the output: two 3-convolutions add 2; up-sampling by two needs ceil(m / 2); pooling
by two needs 2m; where a skip joins, the larger of the two counts. The result is what a block *on the stride lattice*
needs on each side; a single voxel at its worst phase reaches further, which no tile ever asks for.
"""

from __future__ import annotations

from pipeline.core.architecture import Architecture
from pipeline.core.box import Triple, round_up

CONVOLUTIONS_A_LEVEL = 2
"""3-convolutions in a row at every level, each reaching one voxel."""


def receptive_radius(architecture: Architecture) -> Triple:
    """Margin a side, voxels along z, y, x, that an output block on the stride lattice needs.

    Same padding: 8, 22, 46, 94 at depth 1 to 4. Unpadded: 3 * 2**(d+1) - 4, that is 8, 20, 44, 92, which is what each
    side loses in the pass. A 2D network reaches nothing along z.
    """
    radius = _lost(architecture.depth) if architecture.padding == "valid" else _walked(architecture.depth)
    return (radius if architecture.ndim == 3 else 0, radius, radius)


def _walked(depth: int) -> int:
    margin = 0
    skips = []
    for _ in range(depth):
        margin += CONVOLUTIONS_A_LEVEL
        skips.append(margin)
        margin = -(-margin // 2)
    margin += CONVOLUTIONS_A_LEVEL
    for skip in reversed(skips):
        margin = max(2 * margin, skip) + CONVOLUTIONS_A_LEVEL
    return margin


def _lost(depth: int) -> int:
    return 3 * 2 ** (depth + 1) - 4


def least_halo(architecture: Architecture) -> Triple:
    """The receptive radius rounded up to the stride: what an exact tile is surrounded by, same padding."""
    pairs = zip(receptive_radius(architecture), architecture.stride, strict=True)
    return tuple(round_up(r, s) for r, s in pairs)  # type: ignore[return-value]


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
    margin = receptive_radius(architecture) if architecture.padding == "valid" else (0, 0, 0)
    needed = (n + 2 * m for n, m in zip(volume, margin, strict=True))
    return tuple(legal_extent(architecture, axis, n) for axis, n in enumerate(needed))  # type: ignore[return-value]

"""What a network is taught from labels: membranes, or the inside of instances, by stated rules.

Labels are instance ids; 0 is what belongs to no instance, such as membrane that was drawn. Neighbours are the two along each of `axes`: `yx` for a slice
by itself, `zyx` for a volume whose slices are near enough to one another.
"""

from __future__ import annotations

import numpy as np


def foreground(ids: np.ndarray, axes: str = "zyx") -> np.ndarray:
    """The inside of instances: a voxel of an instance, none of whose neighbours belongs to another instance.

    So two that touch are parted by a voxel on either side, and one beside empty space keeps all of its voxels.

    Args:
        ids: Instance ids, (Z, Y, X), any integer type.
        axes: Along which neighbours count.

    Returns:
        1 for the inside, else 0; uint8, (Z, Y, X).
    """
    inside = ids != 0
    for axis in ("zyx".index(name) for name in axes):
        along, kept = np.moveaxis(ids, axis, 0), np.moveaxis(inside, axis, 0)
        meets = (along[:-1] != along[1:]) & (along[:-1] != 0) & (along[1:] != 0)
        kept[:-1] &= ~meets
        kept[1:] &= ~meets
    return inside.astype(np.uint8)


def membranes(ids: np.ndarray, axes: str = "zyx") -> np.ndarray:
    """What parts instances: all that is not their inside, as `foreground` states it.

    Args:
        ids: Instance ids, (Z, Y, X), any integer type.
        axes: Along which neighbours count.

    Returns:
        1 for membrane, else 0; uint8, (Z, Y, X).
    """
    return 1 - foreground(ids, axes)

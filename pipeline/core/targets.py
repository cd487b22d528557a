"""What a network is taught from labels: membranes, or the inside of instances, by stated rules.

Labels are instance ids; 0 is what belongs to no instance, such as membrane that was drawn. Neighbours are the two along each of `axes`: `yx` for a slice
by itself, `zyx` for a volume whose slices are near enough to one another.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def foreground(ids: NDArray[np.integer], axes: str = "zyx", ignore: int | None = None) -> NDArray[np.uint8]:
    """The inside of instances: a voxel of an instance, none of whose neighbours belongs to another instance.

    So two that touch are parted by a voxel on either side, and one beside empty space keeps all of its voxels.

    Args:
        ids: Instance ids, (Z, Y, X), any integer type.
        axes: Along which neighbours count.
        ignore: An id that says nothing: what lies beside it may well go on there.

    Returns:
        1 for the inside, else 0; uint8, (Z, Y, X).
    """
    known = (ids != 0) if ignore is None else (ids != 0) & (ids != ignore)
    inside: NDArray[np.bool] = ids != 0
    for axis in ("zyx".index(name) for name in axes):
        along = np.moveaxis(ids, axis, 0)
        kept, cells = (np.moveaxis(array, axis, 0) for array in (inside, known))
        meets = (along[:-1] != along[1:]) & cells[:-1] & cells[1:]
        kept[:-1] &= ~meets
        kept[1:] &= ~meets
    return inside.astype(np.uint8)


def membranes(ids: NDArray[np.integer], axes: str = "zyx", ignore: int | None = None) -> NDArray[np.uint8]:
    """What parts instances: all that is not their inside, as `foreground` states it.

    Args:
        ids: Instance ids, (Z, Y, X), any integer type.
        axes: Along which neighbours count.
        ignore: An id that says nothing.

    Returns:
        1 for membrane, else 0; uint8, (Z, Y, X).
    """
    return 1 - foreground(ids, axes, ignore)

"""The volume beyond its ends: mirrored, in global coordinates, and never relative to a tile."""

from __future__ import annotations

import numpy as np

from pipeline.core.geometry.box import Box, Triple, per_axis


def mirrored_index(start: int, stop: int, extent: int) -> np.ndarray:
    """Indices inside the volume that coordinates `start` to `stop` show, as `numpy.pad(mode="reflect")` would.

    Bounces where the volume is thinner than the pad; a volume of one voxel shows that voxel everywhere.
    """
    period = max(2 * (extent - 1), 1)
    folded = np.arange(start, stop) % period
    return np.minimum(folded, period - folded)


def mirrored_ends(start: int, stop: int, extent: int) -> tuple[int, int]:
    """The least index and the stop of `mirrored_index`, at no cost that grows with the span."""
    if extent == 1:
        return 0, 1
    period = 2 * (extent - 1)
    first, last = (min(place % period, -place % period) for place in (start, stop - 1))
    turns_low = -(-start // period) * period < stop
    turns_high = -(-(start - extent + 1) // period) * period + extent - 1 < stop
    return 0 if turns_low else min(first, last), extent if turns_high else max(first, last) + 1


def shown(box: Box, volume: Triple) -> tuple[Box, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What to read so as to show `box`: the least box inside the volume, and the indices into it per axis."""
    axes = per_axis(mirrored_index, box.start, box.stop, volume)
    inside = Box.of_spans((int(index.min()), int(index.max()) + 1) for index in axes)
    return inside, per_axis(lambda index, origin: index - origin, axes, inside.start)


def spread(array: np.ndarray, indices: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """`array` (C, Z, Y, X), as read from the inner box, spread to the box that was asked for; no copy where equal."""
    for axis, index in enumerate(indices, start=1):
        if not np.array_equal(index, np.arange(array.shape[axis])):
            array = np.take(array, index, axis=axis)
    return array

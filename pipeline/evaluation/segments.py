"""Segments of a prediction, grown until they meet, and how they share voxels with the true ones, slab by slab.

The rule, at one threshold:

1. Seeds are the connected components of the voxels that are more probably cell than the threshold asks: membrane
   probability below it, or foreground probability at least it. Neighbours share a face: 4 in a slice, 6 in a volume.
2. Seeds grow over the rest by a watershed that climbs the membrane probability, within each slice, so that membranes
   thin to nothing ("border thinning") and only topology counts. A slice without any seed stays one segment of its own:
   segment 0, which all such slices of a volume share.
3. Only voxels of true cells are compared ("foreground-restricted").

The scores, restriction and thinning are those of Arganda-Carreras et al. 2015, Frontiers in Neuroanatomy 9:142,
doi:10.3389/fnana.2015.00142; how borders are thinned is our own rule, 2, so figures need not equal their program's to
the last digit. Watersheds climb whole levels (see `levels.py`): 255 of a uint8 prediction, 4000 of a float one. They are
most of the cost, some 0.2 microseconds a voxel and threshold on one core.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse.csgraph import connected_components
from skimage.segmentation import watershed

from pipeline.evaluation.contingency import Agreement, Table


class SliceSegments:
    """Segments of each slice by itself; scores are of the stack as a whole.

    The slices' tables are summed with ids of their own, true ones too: a neuron in two slices is two segments. So the
    F-score is of pairs counted over all slices, not a mean of the slices' F-scores, as in Fiji's
    `trainableSegmentation.metrics.RandError`. Nothing but seven sums a threshold is kept.

    Args:
        limits: A voxel is in a seed where its membrane level is below this; one a threshold.
        mask: The truth is a mask, whose components in the slice are the true segments.
    """

    def __init__(self, limits: Sequence[int], *, mask: bool) -> None:
        self._limits, self._mask = tuple(limits), mask
        self._found = [Agreement() for _ in limits]

    def add(self, heights: np.ndarray, cells: np.ndarray) -> None:
        """Take the next slices.

        Args:
            heights: Membrane levels, (Z, Y, X).
            cells: True cells, (Z, Y, X); 0 is compared with nothing.
        """
        for height, cell in zip(heights, cells, strict=True):
            where = cell != 0
            if not where.any():
                continue
            true = ndimage.label(cell)[0][where] if self._mask else np.unique(cell[where], return_inverse=True)[1]
            for index, limit in enumerate(self._limits):
                segments = _grown(height, ndimage.label(height < limit)[0])
                self._found[index] += Agreement.of(Table.of(true, segments[where]))

    def agreements(self) -> list[Agreement]:
        """One a threshold."""
        return self._found


class VolumeSegments:
    """Segments in three dimensions, in one pass over slabs along z.

    A slab's components have provisional ids; pairs that meet across the face to the next slab are noted, and joined at
    the end. The watershed never compares ids, only whether there is one, so growing provisional seeds and joining
    them gives what growing whole ones would. Kept are the pairs of ids that share voxels, 24 bytes each, and the last
    slice's ids: memory follows the number of segments, not of voxels.

    Args:
        limits: A voxel is in a seed where its membrane level is below this; one a threshold.
        mask: The truth is a mask, whose components in the volume are the true segments.
    """

    def __init__(self, limits: Sequence[int], *, mask: bool) -> None:
        self._limits = tuple(limits)
        self._true = _Components() if mask else None
        self._seeds = [_Components() for _ in limits]
        self._tables: list[list[Table]] = [[] for _ in limits]

    def add(self, heights: np.ndarray, cells: np.ndarray) -> None:
        """Take the next slices; arguments as for `SliceSegments`."""
        where = cells != 0
        names, true = self._true_ids(cells, where)
        for limit, seeds, tables in zip(self._limits, self._seeds, self._tables, strict=True):
            first, local = seeds.add(heights < limit)
            segments = np.stack([_grown(h, s) for h, s in zip(heights, local, strict=True)])
            table = Table.of(true, segments[where])
            predicted = np.where(table.predicted, table.predicted + first, 0)
            tables.append(Table(names[table.true], predicted, table.counts))

    def _true_ids(self, cells: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Names that hold for the whole volume, and which of them each voxel has."""
        if self._true is None:
            names, true = np.unique(cells[where], return_inverse=True)
            return names.astype(np.int64), true  # uint64 wraps, one to one
        first, local = self._true.add(where)
        return np.arange(local.max() + 1, dtype=np.int64) + first, local[where]

    def agreements(self) -> list[Agreement]:
        """One a threshold."""
        return [self._agreement(seeds, tables) for seeds, tables in zip(self._seeds, self._tables, strict=True)]

    def _agreement(self, seeds: _Components, tables: list[Table]) -> Agreement:
        if not tables:
            return Agreement()
        true = np.concatenate([table.true for table in tables])
        true = self._true.joined()[true] if self._true else np.unique(true, return_inverse=True)[1]
        predicted = seeds.joined()[np.concatenate([table.predicted for table in tables])]
        return Agreement.of(Table.of(true, predicted, np.concatenate([table.counts for table in tables])))


class _Components:
    """Connected components over slabs, voxels neighbours where they share a face."""

    def __init__(self) -> None:
        self._count = 0
        self._last: tuple[int, np.ndarray] | None = None
        self._meets: list[np.ndarray] = []

    def add(self, mask: np.ndarray) -> tuple[int, np.ndarray]:
        """The next slab's components.

        Returns:
            What to add to a number for its provisional id; and the numbers, from 1, of the slab's components, (Z, Y, X).
        """
        first = self._count
        local, count = ndimage.label(mask)
        if self._last is not None:
            self._meets.append(_meeting(*self._last, first, local[0]))
        self._count += count
        self._last = first, local[-1].copy()  # not a view, which would keep the slab
        return first, local

    def joined(self) -> np.ndarray:
        """The component of each provisional id, numbered densely; 0 joins no other."""
        a, b = np.concatenate([np.zeros((2, 0), dtype=np.int64), *self._meets], axis=1)
        graph = sparse.coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(self._count + 1,) * 2)
        components: np.ndarray = connected_components(graph, directed=False)[1]
        return components.astype(np.int64)


def _meeting(first_a: int, a: np.ndarray, first_b: int, b: np.ndarray) -> np.ndarray:
    """Provisional ids that lie face to face, each pair once, int64, (2, pairs)."""
    both = (a != 0) & (b != 0)
    span = int(b.max()) + 1
    pairs = np.unique(a[both].astype(np.int64) * span + b[both])
    return np.stack([pairs // span + first_a, pairs % span + first_b])


def _grown(height: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Seeds grown over the slice along rising levels; all zero where there is none. (Y, X)"""
    return watershed(height, seeds) if seeds.any() else seeds

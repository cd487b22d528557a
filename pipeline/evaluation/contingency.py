"""How many voxels each true segment shares with each predicted one, and what Rand and information scores make of that.

A table is kept as the pairs that occur, so it grows with the segments that meet, not with voxels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import fsum

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class Table:
    """Pairs of segments that share voxels, each pair once.

    Args:
        true: Ids of true segments, int64, (pairs,).
        predicted: Ids of predicted segments, the same.
        counts: Voxels that they share, the same.
    """

    true: np.ndarray
    predicted: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, true: np.ndarray, predicted: np.ndarray, counts: np.ndarray | None = None) -> Table:
        """Count pairs of ids, linear in their number but for a sort of the distinct ones.

        Args:
            true: Ids, small and dense: memory is linear in the largest. (n,)
            predicted: The same, of the predicted segments.
            counts: How often each pair is meant; once, if None.
        """
        weights = np.ones(true.shape, dtype=np.int64) if counts is None else counts
        shape = int(true.max(initial=0)) + 1, int(predicted.max(initial=0)) + 1
        pairs = sparse.coo_array((weights, (true, predicted)), shape=shape).tocsr().tocoo()
        return cls(pairs.row.astype(np.int64), pairs.col.astype(np.int64), pairs.data)


@dataclass(frozen=True)
class Agreement:
    """Sums over a table, from which all scores follow; those of tables without a common segment add up.

    Args:
        voxels: In the table.
        shared: Sum of n^2 over pairs that share n voxels.
        true: Sum of n^2 over true segments of n voxels.
        predicted: The same, of predicted segments.
        shared_bits: Sums of n log2 n, likewise.
        true_bits: Of true segments.
        predicted_bits: Of predicted segments.
    """

    voxels: int = 0
    shared: float = 0.0
    true: float = 0.0
    predicted: float = 0.0
    shared_bits: float = 0.0
    true_bits: float = 0.0
    predicted_bits: float = 0.0

    @classmethod
    def of(cls, table: Table) -> Agreement:
        parts = table.counts, _totals(table.true, table.counts), _totals(table.predicted, table.counts)
        return cls(int(table.counts.sum()), *map(_squares, parts), *map(_bits, parts))

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def v_rand(self) -> float:
        """F-score of pairs of voxels, 0 to 1, higher is better; 1 minus the adapted Rand error.

        The share of pairs in one segment that are so in both, precision and recall weighted alike (alpha = 0.5;
        Arganda-Carreras et al. 2015, doi:10.3389/fnana.2015.00142). Where no segment has two voxels it is 1.
        """
        pairs = self.true + self.predicted - 2 * self.voxels
        return 2 * (self.shared - self.voxels) / pairs if pairs > 0 else 1.0

    @property
    def split(self) -> float:
        """Bits a voxel, H(prediction | truth): how far true segments are broken up; lower is better."""
        return self._bits_a_voxel(self.true_bits)

    @property
    def merge(self) -> float:
        """Bits a voxel, H(truth | prediction): how far predicted segments join true ones; lower is better."""
        return self._bits_a_voxel(self.predicted_bits)

    def _bits_a_voxel(self, bits: float) -> float:
        return max(bits - self.shared_bits, 0.0) / self.voxels if self.voxels else 0.0


def _totals(ids: np.ndarray, counts: np.ndarray) -> np.ndarray:
    _, places = np.unique(ids, return_inverse=True)
    return np.bincount(places, weights=counts)


def _squares(counts: np.ndarray) -> float:
    return fsum(counts.astype(np.float64) ** 2)  # exact sums: a perfect prediction scores 1 and 0, not nearly


def _bits(counts: np.ndarray) -> float:
    return fsum(counts * np.log2(counts))

"""How right single voxels are: counted by level of probability, and scored from the counts.

The class that is scored is what the prediction predicts, membrane or foreground; a voxel is in it at a threshold where
its probability is at least that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Reading:
    """A score at the asked threshold, and at its best.

    Args:
        at: At the asked threshold.
        best: At the best.
        threshold: The best; of several equally good ones, the nearest to the asked.
    """

    at: float
    best: float
    threshold: float


@dataclass(frozen=True)
class PixelScores:
    """How right single voxels are.

    Args:
        positives: Voxels that are truly in the class.
        negatives: Voxels that are not.
        auc: Area under the ROC curve: how often a voxel of the class is more probable than one that is not, ties half.
        dice: 2 TP / (2 TP + FP + FN).
        iou: TP / (TP + FP + FN).
        error: (FP + FN) / all voxels.
    """

    positives: int
    negatives: int
    auc: float
    dice: Reading
    iou: Reading
    error: Reading


class PixelCounts:
    """Histograms of levels, of voxels in the class and of those outside; 16 bytes a level, whatever the volume.

    Args:
        scale: The highest level.
    """

    def __init__(self, scale: int) -> None:
        self.positives = np.zeros(scale + 1, dtype=np.int64)
        self.negatives = np.zeros(scale + 1, dtype=np.int64)

    def add(self, levels: np.ndarray, positive: np.ndarray) -> None:
        """Count some voxels.

        Args:
            levels: Whole levels, any shape.
            positive: Whether each is truly in the class; boolean, the same shape.
        """
        n = len(self.positives)
        counts = np.bincount((levels.astype(np.int64) + n * positive).ravel(), minlength=2 * n)
        self.negatives += counts[:n]
        self.positives += counts[n:]

    def scores(self, cut: int) -> PixelScores:
        """The scores; there must be voxels of either kind.

        Args:
            cut: The least level at the asked threshold.
        """
        true, false = (np.cumsum(c[::-1])[::-1].astype(np.float64) for c in (self.positives, self.negatives))
        positives, negatives = true[0], false[0]
        missed = positives - true
        below = negatives - false
        auc = (self.positives * (below + self.negatives / 2)).sum() / (positives * negatives)
        return PixelScores(
            int(positives),
            int(negatives),
            float(auc),
            _reading(2 * true / (positives + true + false), cut, np.argmax),
            _reading(true / (positives + false), cut, np.argmax),
            _reading((false + missed) / (positives + negatives), cut, np.argmin),
        )


def _reading(values: np.ndarray, cut: int, best: Callable[[np.ndarray], np.intp]) -> Reading:
    scale = len(values) - 1
    equal = np.flatnonzero(values == values[best(values)])
    place = equal[np.argmin(np.abs(equal - cut))]
    return Reading(float(values[cut]), float(values[place]), float(place / scale))

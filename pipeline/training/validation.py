"""How good a network is on boxes held back, predicted as a run would predict them: one exact pass over each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.errors import TrainingError
from pipeline.evaluation.pixels import PixelCounts
from pipeline.training.preparation import IGNORED
from pipeline.training.samples import Region
from pipeline.unet.checkpoint import Checkpoint
from pipeline.unet.probe import predicted

BINS = 4096

DIVERGED = (
    "{}: the training diverged. The state of the last checkpoint is kept. Set optimiser.learning_rate lower, "
    "optimiser.clip to 1, or precision to float32, and `output` to another folder."
)


def validated_on(checkpoint: Checkpoint, regions: Sequence[Region], device: str) -> dict[str, float]:
    """Figures over all regions together: ROC AUC and best Dice of one class; accuracy and mean Dice of several.

    Raises:
        TrainingError: The prediction is not finite.
    """
    several = checkpoint.architecture.out_channels > 1
    return (_of_classes if several else _of_one)(checkpoint, regions, device)


def score(metrics: dict[str, float]) -> float:
    """By which one checkpoint is better than another."""
    return metrics["dice"]


def prediction(checkpoint: Checkpoint, region: Region, device: str) -> np.ndarray:
    """Probabilities of a region, (C, Z, Y, X), float32: what a run would write of it alone.

    Raises:
        TrainingError: They are not finite.
    """
    activation = "sigmoid" if checkpoint.architecture.out_channels == 1 else "softmax"
    values = predicted(checkpoint, region.image.read(region.box), region.normalization, activation, device, "float32")
    if not np.isfinite(values).all():
        raise TrainingError(DIVERGED.format("The prediction of the validation is not finite"))
    return values


def _of_one(checkpoint: Checkpoint, regions: Sequence[Region], device: str) -> dict[str, float]:
    counts = PixelCounts(BINS)
    for region in regions:
        values, target = prediction(checkpoint, region, device)[0], region.prepared.target()
        known = target != IGNORED
        counts.add((values[known] * BINS).astype(np.int64), target[known] == 1)
    found = counts.scores(BINS // 2)
    told = {"auc": found.auc, "dice": found.dice.best, "dice_threshold": found.dice.threshold}
    return {name: round(value, 4) for name, value in told.items()}


def _of_classes(checkpoint: Checkpoint, regions: Sequence[Region], device: str) -> dict[str, float]:
    classes = checkpoint.architecture.out_channels
    table = np.zeros((classes, classes), dtype=np.int64)
    for region in regions:
        values, target = prediction(checkpoint, region, device).argmax(0), region.prepared.target()
        known = target != IGNORED
        pairs = target[known].astype(np.int64) * classes + values[known]
        table += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    right, sizes = np.diag(table), table.sum(0) + table.sum(1)
    dice = 2 * right[sizes > 0] / sizes[sizes > 0]
    return {"accuracy": round(float(right.sum() / table.sum()), 4), "dice": round(float(dice.mean()), 4)}

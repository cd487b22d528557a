"""How good a network is on boxes held back, predicted as a run would predict them: one exact pass over each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.core.lesson import constant_loss
from pipeline.core.normalization import Normalization
from pipeline.errors import TrainingError
from pipeline.evaluation.pixels import PixelCounts
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.probe import predicted
from pipeline.training.preparation import IGNORED
from pipeline.training.samples import Region

BINS = 4096

DIVERGED = (
    "{}: the training diverged. The state of the last checkpoint is kept. Set optimiser.learning_rate lower, "
    "optimiser.clip to 1, or precision to float32, and `output` to another folder."
)


def validated_on(
    checkpoint: Checkpoint, regions: Sequence[Region], device: str, class_weights: Sequence[float]
) -> dict[str, float]:
    """Figures over all regions together: ROC AUC and best Dice of one class; accuracy, mean Dice and loss of several.

    Args:
        checkpoint: The network as it is.
        regions: Held back.
        device: Where it predicts.
        class_weights: Of each class in the loss.

    Raises:
        TrainingError: The prediction is not finite.
    """
    if checkpoint.architecture.out_channels == 1:
        return _of_one(checkpoint, regions, device)
    return _of_classes(checkpoint, regions, device, np.array(class_weights))


def score(metrics: dict[str, float]) -> float:
    """By which one checkpoint is better than another."""
    return metrics["dice"]


def prediction(checkpoint: Checkpoint, region: Region, device: str) -> np.ndarray:
    """Probabilities of a region, (C, Z, Y, X), float32: what a run would write of it alone.

    Raises:
        TrainingError: They are not finite.
    """
    return values_of(checkpoint, region.image.read(region.box), region.normalization, device)


def activation_of(classes: int) -> str:
    """What makes probabilities of logits."""
    return "sigmoid" if classes == 1 else "softmax"


def values_of(checkpoint: Checkpoint, array: np.ndarray, rule: Normalization, device: str) -> np.ndarray:
    """The same of an array, (C, Z, Y, X), as stored."""
    values = predicted(checkpoint, array, rule, activation_of(checkpoint.architecture.out_channels), device, "float32")
    if not np.isfinite(values).all():
        raise TrainingError(DIVERGED.format("The prediction of the validation is not finite"))
    return values


def _of_one(checkpoint: Checkpoint, regions: Sequence[Region], device: str) -> dict[str, float]:
    counts = PixelCounts(BINS)
    for region in regions:
        values, target = prediction(checkpoint, region, device)[0], region.prepared.target()
        known = target != IGNORED
        counts.add((values[known] * BINS).astype(np.int64), target[known] == 1)
    scores = counts.scores(BINS // 2)
    figures = {"auc": scores.auc, "dice": scores.dice.best, "dice_threshold": scores.dice.threshold}
    return {name: round(value, 4) for name, value in figures.items()}


LEAST_PROBABILITY = 1e-7
"""Below it the loss of a voxel rises no more: float32 knows nothing smaller beside 1."""


def _of_classes(
    checkpoint: Checkpoint, regions: Sequence[Region], device: str, class_weights: np.ndarray
) -> dict[str, float]:
    classes = checkpoint.architecture.out_channels
    table, losses = np.zeros((classes, classes), dtype=np.int64), np.zeros(classes)
    for region in regions:
        values, target = prediction(checkpoint, region, device), region.prepared.target()
        known = target != IGNORED
        truth, probabilities = target[known].astype(np.int64), values[:, known]
        table += np.bincount(truth * classes + probabilities.argmax(0), minlength=classes**2).reshape(classes, classes)
        right = np.take_along_axis(probabilities, truth[np.newaxis], 0)[0]
        losses += np.bincount(truth, -np.log(np.maximum(right, LEAST_PROBABILITY)), minlength=classes)
    right, sizes = np.diag(table), table.sum(0) + table.sum(1)
    dice = 2 * right[sizes > 0] / sizes[sizes > 0]
    weights = table.sum(1) * class_weights
    figures = {
        "accuracy": right.sum() / table.sum(),
        "dice": dice.mean(),
        "loss": (losses * class_weights).sum() / weights.sum(),
        "constant_loss": constant_loss(weights),
    }
    return {name: round(float(value), 4) for name, value in figures.items()}

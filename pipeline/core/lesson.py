"""Whether a training has learnt anything, by its own figures.

It has learnt nothing where the held-out ROC AUC is below 0.6 (0.5 is chance), or where a loss is not below that of the
best constant: the answer that gives every voxel the share that its class has of the weight. The losses are that of training around the
step of the checkpoint, and, of several classes, that of the boxes held back; of one class these are judged by their AUC.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

LEAST_AUC = 0.6

LOSSES = {"loss": "the held-out loss", "training_loss": "the loss of training"}
"""Figures of a training, and what they are; beside each stands that of the best constant, such as `constant_loss`."""


def constant_loss(shares: np.ndarray) -> float:
    """Cross entropy, nats, of the answer that is the same everywhere and as good as that can be: the shares' entropy."""
    met = shares[shares > 0] / shares.sum()
    return float(-(met * np.log(met)).sum())


def beside(name: str) -> str:
    """The name of the best constant's figure beside a loss."""
    return name.replace("loss", "constant_loss")


def shortcomings(metrics: Mapping[str, float]) -> Iterator[str]:
    """Why a training has learnt nothing, by its figures."""
    if "auc" in metrics and not metrics["auc"] >= LEAST_AUC:
        yield f"held-out AUC {metrics['auc']:.4g} is below {LEAST_AUC:g}"
    for name, what in LOSSES.items():
        if beside(name) in metrics and not metrics[name] < metrics[beside(name)]:
            yield f"{what}, {metrics[name]:.4g}, is not below that of the constant class share, {metrics[beside(name)]:.4g}"


def has_learned(metrics: Mapping[str, float]) -> bool | None:
    """Whether a training has learnt anything; None where no figure says."""
    if not {"auc", *map(beside, LOSSES)} & metrics.keys():
        return None
    return not any(shortcomings(metrics))


def lesson(learned: bool | None, metrics: Mapping[str, object]) -> Iterator[str]:
    """A warning where a network's training says that it has learnt nothing.

    Args:
        learned: As the checkpoint says.
        metrics: Of its training.
    """
    if learned is False:
        why = "; ".join(shortcomings(_figures(metrics)))
        yield (
            f"The checkpoint says learned: false; its training has learned nothing{f' ({why})' if why else ''}. What it predicts is noise: "
            "train it anew."
        )


def _figures(metrics: Mapping[str, object]) -> dict[str, float]:
    """The figures that tell what was learnt; none where one of them is no number."""
    names = {"auc", *LOSSES, *map(beside, LOSSES)} & metrics.keys()
    figures = {name: value for name in names if isinstance(value := metrics[name], int | float)}
    return figures if len(figures) == len(names) else {}

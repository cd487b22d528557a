"""What TensorBoard shows: loss, learning rate, metrics, and pictures of what the network saw, should say and says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pipeline.training.samples import Sample


class Logbook:
    """Writes event files.

    Args:
        folder: Where they go.
        step: Steps done; what an earlier session logged beyond them is not shown.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def step(self, step: int, loss: float, rate: float) -> None:
        self._writer.add_scalar("training/loss", loss, step)
        self._writer.add_scalar("training/learning_rate", rate, step)

    def metrics(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"validation/{name}", value, step)
        self._writer.flush()

    def picture(self, step: int, sample: Sample, logits_KS: Tensor) -> None:
        """Input, target, prediction and weight map side by side, the middle slice."""
        self._writer.add_image(
            "training/input, target, prediction, weight", picture(sample, logits_KS), step, dataformats="HW"
        )

    def close(self) -> None:
        self._writer.close()


def picture(sample: Sample, logits_KS: Tensor) -> np.ndarray:
    """Four panels, (Y, 4 X), 0 to 1; the input is cropped to what is predicted."""
    z, height, width = sample.target.shape
    logits = logits_KS.detach().float().nan_to_num().cpu().reshape(logits_KS.shape[0], z, height, width)[:, z // 2]
    classes = logits.shape[0]
    predicted = torch.sigmoid(logits[0]) if classes == 1 else logits.argmax(0) / (classes - 1)
    target = np.where(sample.weight[z // 2] > 0, sample.target[z // 2], 0) / max(classes - 1, 1)
    margins = [(a - b) // 2 for a, b in zip(sample.image.shape[1:], sample.target.shape, strict=True)]
    seen = sample.image[0, margins[0] + z // 2, margins[1] : margins[1] + height, margins[2] : margins[2] + width]
    return np.concatenate([_spread(seen), target, predicted.numpy(), _spread(sample.weight[z // 2])], axis=1)


def _spread(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)

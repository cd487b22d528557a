"""The training loop, its validation, and the checkpoint that comes of it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import __version__
from pipeline.core.architecture import Architecture
from pipeline.core.normalization import Normalization
from pipeline.errors import ConfigError
from pipeline.training.losses import balanced_cross_entropy
from pipeline.training.patches import Pair, random_patches, read_pair
from pipeline.training.recipe import TrainConfig
from pipeline.unet.checkpoint import Checkpoint, save_checkpoint
from pipeline.unet.model import UNet, initialise

log = logging.getLogger("pipeline.training")


def train(config: TrainConfig, on_step: Callable[[int, float], None] = lambda _step, _loss: None) -> Path:
    """Train a membrane network, and write `checkpoint.safetensors` and `metrics.json` into the output folder.

    Deterministic from the seed, on one kind of processor and one number of threads.

    Args:
        config: The recipe.
        on_step: Told the step, from 1, and its loss.

    Returns:
        The checkpoint's path.

    Raises:
        ConfigError: The data is not what the recipe says.
    """
    torch.set_num_threads(config.threads)
    folder = Path(config.output)
    training, validation = (
        read_pair(config.data, s) for s in (config.data.train_slices, config.data.validation_slices)
    )
    _refuse_one_class(validation, config)
    folder.mkdir(parents=True, exist_ok=True)
    model = initialise(UNet(Architecture(3, config.network.depth, config.network.width)), config.seed)
    model = model.to(memory_format=torch.channels_last_3d)
    started = time.perf_counter()
    _fit(model, training, config, on_step)
    metrics = {**evaluate(model, validation), "training_seconds": round(time.perf_counter() - started, 1)}
    path = folder / "checkpoint.safetensors"
    save_checkpoint(path, _checkpoint(model, config, metrics))
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return path


def _refuse_one_class(validation: Pair, config: TrainConfig) -> None:
    """Before the training, not after it: neither figure is defined without both classes."""
    share = float(validation.membrane.mean())
    if share in (0.0, 1.0):
        raise ConfigError(
            f"Validation slices {config.data.validation_slices} of '{config.data.url}' are membrane in {share:.0%} of their "
            "voxels; ROC AUC and Dice need both classes. Choose other validation_slices."
        )


def _fit(model: UNet, pair: Pair, config: TrainConfig, on_step: Callable[[int, float], None]) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    rise = 0.1 if config.steps > 10 else 0.3  # a tenth of ten steps is a rise of no length, which torch divides by
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, config.steps, pct_start=rise)
    patches = random_patches(pair, config.patch, np.random.default_rng(config.seed))
    model.train()
    for step in range(1, config.steps + 1):
        image_BCZYX, target_BCZYX = _stacked([next(patches) for _ in range(config.batch)])
        with torch.autocast("cpu", torch.bfloat16):
            logits_BCZYX = model(image_BCZYX)
        loss = balanced_cross_entropy(logits_BCZYX.float(), target_BCZYX)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        on_step(step, float(loss.detach()))


def _stacked(patches: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
    images, targets = zip(*patches, strict=True)
    image_BCZYX = torch.from_numpy(np.stack(images)[:, np.newaxis]).to(memory_format=torch.channels_last_3d)
    return image_BCZYX, torch.from_numpy(np.stack(targets)[:, np.newaxis].astype(np.float32))


def evaluate(model: UNet, pair: Pair) -> dict[str, float]:
    """Figures on slices held back, one pass over all of them: ROC AUC, and the best Dice over thresholds."""
    model.eval()
    missing = [(0, -n % s) for n, s in zip(pair.image.shape, model.architecture.stride, strict=True)]
    # numpy's mirror bounces where a volume is thinner than the pad; torch's fails.
    padded = np.pad(pair.image.astype(np.float32) / 255, missing, mode="reflect")
    image_BCZYX = torch.from_numpy(padded)[None, None].to(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        probability = torch.sigmoid(model(image_BCZYX))[0, 0]
    probability = probability[tuple(slice(0, n) for n in pair.image.shape)].numpy()
    return scores(probability, pair.membrane)


def scores(probability: np.ndarray, membrane: np.ndarray) -> dict[str, float]:
    """ROC AUC and best Dice, from histograms of 4096 probabilities.

    Args:
        probability: 0..1, any shape.
        membrane: 1 or 0, the same shape.
    """
    bins = np.minimum((probability * 4096).astype(np.int64), 4095)
    positive = np.bincount(bins[membrane > 0], minlength=4096)[::-1]
    negative = np.bincount(bins[membrane == 0], minlength=4096)[::-1]
    found, mistaken = np.cumsum(positive), np.cumsum(negative)
    recall, fallout = (np.concatenate([[0.0], counts / counts[-1]]) for counts in (found, mistaken))
    dice = 2 * found / (found + mistaken + found[-1])
    best = int(np.argmax(dice))
    return {
        "auc": round(float(np.trapezoid(recall, fallout)), 4),
        "dice": round(float(dice[best]), 4),
        "dice_threshold": round(1 - (best + 1) / 4096, 3),
    }


def _checkpoint(model: UNet, config: TrainConfig, metrics: dict[str, float]) -> Checkpoint:
    provenance: dict[str, Any] = {
        "made_by": f"halotile {__version__}",
        "data": Path(config.data.url).name,
        "train_slices": config.data.train_slices,
        "validation_slices": config.data.validation_slices,
        "target": "membrane: a voxel with a neighbour (of six) of another id",
        "steps": config.steps,
        "batch": config.batch,
        "patch": config.patch,
        "learning_rate": config.learning_rate,
        "seed": config.seed,
        "validation": metrics,
        "attribution": config.data.attribution,
    }
    return Checkpoint(
        architecture=model.architecture,
        state={name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()},
        normalization=Normalization(mode="minmax"),
        axes="czyx",
        voxel_size_nm=config.data.voxel_size_nm,
        provenance=provenance,
    )

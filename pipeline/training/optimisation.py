"""How weights move: the optimiser, its rate by step, and the average of weights."""

from __future__ import annotations

from math import cos, pi

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.training.recipe import OptimiserConfig


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """The optimiser of a recipe; of Adam, `momentum` is the first of its two rates of decay."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=rate, momentum=config.momentum, weight_decay=decay)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(model.parameters(), lr=rate, betas=(config.momentum, 0.999), weight_decay=decay)


def rate_at(step: int, steps: int, config: OptimiserConfig) -> float:
    """The learning rate of a step, from 0: it rises linearly over the share `rise`, then follows the schedule to 0."""
    rise = config.rise * steps
    if step < rise:
        return config.learning_rate * (step + 1) / (rise + 1)
    share = (step - rise) / max(steps - rise, 1)
    factor = {"constant": 1.0, "linear": 1 - share, "cosine": (1 + cos(pi * share)) / 2}[config.schedule]
    return config.learning_rate * factor


def make_average(model: nn.Module, share: float) -> AveragedModel | None:
    """Exponential moving average of weights and of batch norms' statistics; None where `share` is 0."""
    if not share:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(share), use_buffers=True)

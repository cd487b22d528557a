"""Training from the command line, with its advance told. No Prefect flow yet."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.config import read_config
from pipeline.training.recipe import TrainConfig
from pipeline.training.trainer import train

TOLD_EVERY = 50
"""Steps."""


def train_network(path: Path, overrides: Sequence[str]) -> Path:
    """Train by a recipe; gives the checkpoint's path."""
    config = read_config(TrainConfig, path, overrides)
    losses: list[float] = []

    def tell(step: int, loss: float) -> None:
        losses.append(loss)
        if step % TOLD_EVERY == 0 or step == config.steps:
            recent = losses[-TOLD_EVERY:]
            print(f"step {step} of {config.steps}, loss {sum(recent) / len(recent):.4f}", file=sys.stderr, flush=True)

    return train(config, tell)

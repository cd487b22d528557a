"""A tiny volume of cells with dark membranes, and recipes over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.config import validated
from pipeline.core.targets import membranes
from pipeline.training.recipe import TrainConfig

SHAPE = (24, 40, 40)


def cells(shape: tuple[int, int, int] = SHAPE, side: int = 10) -> np.ndarray:
    """Instances on a lattice, every one with an id of its own from 1."""
    z, y, x = np.indices(shape) // side
    return (1 + z * 100 + y * 10 + x).astype(np.uint16)


def image_of(ids: np.ndarray) -> np.ndarray:
    """Dark where instances meet, with noise; uint8."""
    noise = np.random.default_rng(0).integers(0, 30, ids.shape)
    return (np.where(membranes(ids), 40, 180) + noise).astype(np.uint8)


def write_pair(folder: Path, ids: np.ndarray | None = None) -> dict[str, str]:
    """Image and labels as Zarr arrays; gives where they are."""
    ids = cells() if ids is None else ids
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in ("image", image_of(ids)), ("labels", ids):
        zarr.create_array(str(folder / f"{name}.zarr"), data=array, chunks=(8, 16, 16))
    return {name: str(folder / f"{name}.zarr") for name in ("image", "labels")}


def recipe(folder: Path, **changed: Any) -> TrainConfig:
    """A recipe of a few seconds; `changed` replaces its sections and keys."""
    pair = {
        **(write_pair(folder) if not (folder / "image.zarr").exists() else _there(folder)),
        "voxel_size_nm": [10, 10, 10],
        "train": [{"start": [0, 0, 0], "stop": [16, 40, 40]}],
        "validation": [{"start": [16, 0, 0], "stop": [24, 40, 40]}],
    }
    content = {
        "data": {"volumes": [pair]},
        "output": str(folder / "out"),
        "network": {"ndim": 3, "depth": 1, "width": 4},
        "patch": [8, 16, 16],
        "steps": 30,
        "threads": 1,
        "device": "cpu",
        "precision": "float32",
        "augment": {"elastic_sigma": 0.5},
        "optimiser": {"name": "adam", "learning_rate": 0.02, "momentum": 0.9},
        "every": {"validation": 10, "checkpoint": 10, "picture": 10},
    }
    return validated(TrainConfig, {**content, **changed}, source="test")


def _there(folder: Path) -> dict[str, str]:
    return {name: str(folder / f"{name}.zarr") for name in ("image", "labels")}

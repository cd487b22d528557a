"""What the rule of normalisation does to a training on 12-bit data in uint16: python -m tests.benchmarks.sixteen_bits

FIB-25 (`HALOTILE_TEST_DATA`), its 8 bits in the upper part of 12 and noise below, as a camera of 12 bits stores it; the optimiser
of configs/train-em-3d.yaml, a smaller network, fewer and smaller steps: quick, and no figure to publish a network by. Held-out ROC AUC for each rule, forced where it is refused.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.config import read_config
from pipeline.errors import ConfigError
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.training.recipe import BoxConfig, TrainConfig
from pipeline.training.trainer import train
from pipeline.volumes.volume import open_volume

ROOT = Path(__file__).parents[2]
RULES = ("minmax", None, "zscore")


def write_twelve_bits(folder: Path) -> None:
    """The volume, as `image.zarr`."""
    source = f"{os.environ['HALOTILE_TEST_DATA']}/volumes/fib25_medulla_train2_share_z000-174.h5"
    image = np.asarray(open_volume(f"{source}/raw").array[...]).astype(np.uint16) * 16
    image += np.random.default_rng(0).integers(0, 16, image.shape, dtype=np.uint16)
    zarr.create_array(str(folder / "image.zarr"), data=image, chunks=(32, 64, 64))


def trained(folder: Path, rule: str | None, norm: str, steps: int) -> dict[str, Any]:
    """The figures of a training under a rule; the default where none is named."""
    overrides = [
        *(
            "patch=[16, 48, 48]",
            "batch=1",
            f"steps={steps}",
            "network.width=8",
            f"output={folder / f'{norm}-{rule}'}",
            f"network.norm={norm}",
        ),
        *(f"every.validation={steps}", "optimiser.average=0.95", "normalize=null", "augment.elastic_sigma=1"),
        *([f"normalize={{mode: {rule}}}"] if rule else []),
    ]
    config = read_config(TrainConfig, ROOT / "configs" / "train-em-3d.yaml", overrides)
    (volume,) = config.data.volumes
    held_back = BoxConfig(start=(100, 0, 0), stop=(112, 128, 128))
    volume = volume.model_copy(update={"image": str(folder / "image.zarr"), "validation": (held_back,)})
    config = config.model_copy(update={"data": config.data.model_copy(update={"volumes": (volume,)})})
    try:
        path = train(config)
        refused = False
    except ConfigError:
        path, refused = train(config, any_range=True), True
    checkpoint = load_checkpoint(path)
    low, high = checkpoint.training_data[0].channels[0].range
    return {**checkpoint.provenance["validation"], "range": f"{low:.3f} to {high:.3f}", "refused": refused}


def main() -> None:
    """Print a line for each rule and kind of network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_twelve_bits(folder)
        for norm in ("batch", "none"):
            for rule in RULES:
                found = trained(folder, rule, norm, steps)
                figures = ", ".join(
                    f"{key} {found[key]}"
                    for key in ("auc", "dice", "training_loss", "training_constant_loss", "learned")
                )
                print(
                    f"norm {norm}, {rule or 'default'}: sees {found['range']}, refused {found['refused']}; {figures}",
                    flush=True,
                )


if __name__ == "__main__":
    main()

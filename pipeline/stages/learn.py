"""The stages of learning, where the rooms meet: train -> evaluate -> register. Each can run again alone.

train.yaml -train-> checkpoint.safetensors -evaluate-> evaluation.json -register-> REGISTRY/NAME/VERSION
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.core.geometry.box import Box, per_axis, triple
from pipeline.core.lesson import lesson
from pipeline.core.network.unet import Architecture
from pipeline.core.strict_json import json_text
from pipeline.core.volume import Selection
from pipeline.evaluation.evaluation import Evaluation, evaluate
from pipeline.evaluation.rule import Rule
from pipeline.export.package import export
from pipeline.networks.checkpoint import Checkpoint, load_checkpoint
from pipeline.networks.device import resolved_device
from pipeline.places import durable
from pipeline.registry import Entry, register
from pipeline.training.dataset import gather
from pipeline.training.machine import resolved
from pipeline.training.recipe import TrainConfig
from pipeline.training.samples import Region
from pipeline.training.state import as_begun
from pipeline.training.trainer import Advance, train
from pipeline.training.validation import prediction
from pipeline.volumes.inventory import open_counted
from pipeline.volumes.volume import Volume

__all__ = ["Advance", "evaluate_held_back", "export_package", "register_checkpoint", "resolved", "shortcoming", "train"]


def evaluate_held_back(config: TrainConfig) -> list[Evaluation]:
    """Score the checkpoint of a recipe on each of its validation boxes, and write `evaluation.json` beside it.

    Segments are of slices where instances are told apart slice by slice, else of the volume. Nothing where no box is held
    back, or where there are several classes.
    """
    config = as_begun(Path(config.output), config)
    data = gather(config, trusted=True)
    target = config.data.target
    if not data.validation or target == "classes":
        return []
    checkpoint = load_checkpoint(Path(config.output) / "checkpoint.safetensors")
    evaluations = [_score(checkpoint, region, config, target) for region in data.validation]
    content = json_text([result.to_dict() for result in evaluations], indent=2)
    durable.replace(Path(config.output) / "evaluation.json", content.encode() + b"\n")
    return evaluations


def _score(
    checkpoint: Checkpoint, region: Region, config: TrainConfig, target: Literal["membrane", "foreground"]
) -> Evaluation:
    values = prediction(checkpoint, region, resolved_device(config.device))
    volume = config.data.volumes[region.volume]
    labels = open_counted(volume.labels, Selection(volume.level))
    rule = Rule(
        predicts=target,
        labels_are=config.data.labels_are,
        neighbours=region.prepared.neighbours,
        segments="slices" if region.prepared.neighbours == "yx" else "volume",
        ignore=config.data.ignore,
    )
    evaluation = evaluate(_in_memory(values, region.image), _in_memory(labels.read(region.box), labels), rule)
    return replace(evaluation, box=region.box)


def _in_memory(array_CZYX: np.ndarray, like: Volume) -> Volume:
    """A part of a volume, as a volume of its own."""
    shape = triple(array_CZYX.shape[1:])
    what = replace(
        like.description,
        axes="czyx",
        channels=array_CZYX.shape[0],
        shape=shape,
        chunks=shape,
        dtype=array_CZYX.dtype.name,
    )
    return Volume(what, array_CZYX)


def register_checkpoint(config: TrainConfig) -> Entry | None:
    """Put the checkpoint of a recipe, with its figures, into the registry that the recipe names, if any."""
    if config.register_as is None:
        return None
    folder = Path(config.output)
    files = [folder / name for name in ("recipe.json", "evaluation.json") if (folder / name).is_file()]
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    wanted = config.register_as
    return register(Path(wanted.registry), wanted.name, folder / "checkpoint.safetensors", metrics=metrics, files=files)


def shortcoming(config: TrainConfig) -> str:
    """That the checkpoint of a recipe has learned nothing, and why; empty where it has."""
    checkpoint = load_checkpoint(Path(config.output) / "checkpoint.safetensors")
    return " ".join(lesson(checkpoint.learned, checkpoint.provenance.get("validation") or {}))


SAMPLE = {2: (1, 512, 512), 3: (64, 128, 128)}
"""At most this much of a volume goes into a package as its test input, by the network's axes."""


def export_package(
    checkpoint: Path,
    target: Path,
    *,
    sample: str | None = None,
    name: str | None = None,
    authors: Sequence[str] = (),
    license_: str | None = None,
) -> Path:
    """Write a bioimage.io package; see `export.package.export`.

    Args:
        checkpoint: Of ours, or of the notes' class.
        target: A `.zip`, or a folder.
        sample: A volume, whose middle becomes the package's test input; noise, if None.
        name: Of the model.
        authors: Of the model.
        license_: SPDX name.
    """
    values = None if sample is None else _middle(open_counted(sample), load_checkpoint(checkpoint).unet)
    return export(checkpoint, target, sample=values, name=name, authors=authors, license=license_)


def _middle(volume: Volume, architecture: Architecture) -> np.ndarray:
    wanted = per_axis(min, SAMPLE[architecture.ndim], volume.shape)
    start = per_axis(lambda n, w: (n - w) // 2, volume.shape, wanted)
    values = volume.read(Box.of_shape(wanted).moved(start))
    values = values[:, 0] if architecture.ndim == 2 else values
    return values[0] if len(values) == 1 else values

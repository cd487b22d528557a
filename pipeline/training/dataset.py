"""The volumes of a recipe, opened, checked and prepared: what training samples, and what validation predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.box import Box
from pipeline.core.normalization import Normalization
from pipeline.core.volume import Description
from pipeline.errors import ConfigError
from pipeline.statistics import measured
from pipeline.storage.volume import Volume, open_volume
from pipeline.training.preparation import prepare, target_rule
from pipeline.training.recipe import PairConfig, TrainConfig
from pipeline.training.samples import Region, Samples

NANOMETRES = {"nanometer": 1.0, "micrometer": 1000.0, "angstrom": 0.1, "millimeter": 1e6}
Sizes = tuple[float, float, float]


@dataclass(frozen=True)
class Dataset:
    """What a run learns from, and is judged by.

    Args:
        samples: Random patches of the training boxes.
        validation: The boxes held back; may be empty.
        voxel_size_nm: Of the first volume, z, y, x; None where nobody says.
        axes: Of the network's input.
        counts: Voxels by class, of the training boxes.
        fingerprints: What the volumes were, for the checkpoint.
    """

    samples: Samples
    validation: tuple[Region, ...]
    voxel_size_nm: Sizes | None
    axes: str
    counts: tuple[int, ...]
    fingerprints: list[dict[str, Any]]


@dataclass(frozen=True)
class _Pair:
    """A volume and its labels, as opened, with voxel sizes."""

    number: int
    config: PairConfig
    image: Volume
    labels: Volume
    sizes: Sizes | None

    @property
    def training(self) -> list[Box]:
        return [b.box for b in self.config.train] or [Box.of_shape(self.image.shape)]

    @property
    def held_back(self) -> list[Box]:
        return [b.box for b in self.config.validation]


def gather(config: TrainConfig, on_advance: Callable[[int, int], None] = lambda _done, _total: None) -> Dataset:
    """Open, check and prepare what a recipe names.

    The image is opened, and read where its normalisation is of the whole volume. Labels are read once, in their boxes.

    Args:
        config: The recipe.
        on_advance: Told how many voxels of labels are prepared, of how many.

    Raises:
        ConfigError, StorageError: The data is not what the recipe says.
    """
    pairs = [_opened(number, pair, config) for number, pair in enumerate(config.data.volumes)]
    total, done = sum(box.voxels for pair in pairs for box in [*pair.training, *pair.held_back]), 0

    def told(voxels: int) -> None:
        nonlocal done
        done += voxels
        on_advance(done, total)

    training = [region for pair in pairs for region in _regions(pair, pair.training, config, told)]
    validation = [region for pair in pairs for region in _regions(pair, pair.held_back, config, told)]
    counts = tuple(int(n) for n in np.sum([region.prepared.counts for region in training], axis=0))
    _refuse_one_class(counts, "training", config)
    if validation:
        _refuse_one_class(np.sum([region.prepared.counts for region in validation], axis=0), "validation", config)
    return Dataset(
        samples=Samples(
            regions=tuple(training),
            patch=config.patch,
            window=config.window,
            augment=config.augment,
            class_weights=_class_weights(counts, balance=config.loss.balance),
            border_weight=config.loss.border_weight,
            seed=config.seed,
        ),
        validation=tuple(validation),
        voxel_size_nm=pairs[0].sizes,
        axes="czyx" if config.network.ndim == 3 else "cyx",
        counts=counts,
        fingerprints=[
            _fingerprint(pair, [r for r in training + validation if r.image is pair.image]) for pair in pairs
        ],
    )


def _opened(number: int, pair: PairConfig, config: TrainConfig) -> _Pair:
    image = open_volume(pair.image, level=pair.level, axes=pair.axes)
    labels = open_volume(pair.labels, level=pair.level)
    what, that = image.description, labels.description
    if what.shape != that.shape:
        raise ConfigError(
            f"Image '{pair.image}' has {what.shape} voxels (z, y, x), its labels '{pair.labels}' {that.shape}. Name two that belong together."
        )
    if that.dtype.startswith("float") or that.channels != 1:
        raise ConfigError(
            f"Labels '{pair.labels}' are {that.dtype} in {that.channels} channel(s); ids, masks and classes are integers in one. Convert them."
        )
    if what.channels != config.network.in_channels:
        raise ConfigError(
            f"Image '{pair.image}' has {what.channels} channel(s), network.in_channels is {config.network.in_channels}. Set it to what the image has."
        )
    for found in (*pair.train, *pair.validation):
        if not Box.of_shape(what.shape).contains(found.box):
            raise ConfigError(
                f"The box {found.box} of '{pair.image}' was asked for, which has {what.shape} voxels (z, y, x). Choose boxes inside it."
            )
    return _Pair(number, pair, image, labels, _sizes(pair, what))


def _sizes(pair: PairConfig, found: Description) -> Sizes | None:
    """Voxel sizes in nm: the recipe's, else the metadata's."""
    if pair.voxel_size_nm != "auto":
        return pair.voxel_size_nm
    space = found.space
    if any(unit not in NANOMETRES for unit in space.units):
        return None
    sizes = tuple(scale * NANOMETRES[unit or ""] for scale, unit in zip(space.scale, space.units, strict=True))
    return (sizes[0], *sizes[-2:]) if len(sizes) == 3 else (sizes[0], *sizes)  # type: ignore[return-value]


def _regions(pair: _Pair, boxes: list[Box], config: TrainConfig, on_advance: Callable[[int], None]) -> Iterator[Region]:
    if not boxes:
        return
    sizes = pair.sizes or (1.0, 1.0, 1.0)
    network = config.network
    rule = target_rule(config.data, config.loss, classes=network.classes, ndim=network.ndim, sizes=sizes)
    finest = min(sizes[3 - network.ndim :])
    sampling = tuple(size / finest for size in sizes)
    normalization = measured(Normalization(**config.normalize.model_dump()), pair.image, nonfinite="fail")
    total = sum(box.voxels for box in boxes)
    for box in boxes:
        prepared = prepare(pair.labels, box, rule, Path(config.output) / "prepared", on_advance)
        share = pair.config.weight * box.voxels / total
        yield Region(pair.image, box, prepared, normalization, sampling, share, pair.number)  # type: ignore[arg-type]


def _class_weights(counts: tuple[int, ...], *, balance: bool) -> tuple[float, ...]:
    """Weights under which all classes count alike, 1 on average; of a class that is never met, 1."""
    if not balance:
        return (1.0,) * len(counts)
    met = sum(n > 0 for n in counts)
    return tuple(sum(counts) / (met * n) if n else 1.0 for n in counts)


def _refuse_one_class(counts: Any, what: str, config: TrainConfig) -> None:
    """Before the training, not after it."""
    if np.count_nonzero(counts) < 2:
        only = int(np.argmax(counts))
        raise ConfigError(
            f"All labels of the {what} boxes are of one class, {only}, under the target '{config.data.target}' of "
            f"{config.data.labels_are}: there is nothing to tell apart. Choose other boxes, or check data.target and data.labels_are."
        )


def _fingerprint(pair: _Pair, regions: list[Region]) -> dict[str, Any]:
    return {
        "image": Path(pair.config.image).name,
        "image_metadata_sha256": pair.image.description.metadata_sha256,
        "shape": pair.image.shape,
        "dtype": pair.image.description.dtype,
        "labels": Path(pair.config.labels).name,
        "labels_sha256": {str(region.box): region.prepared.sha256 for region in regions},
    }

"""The volumes of a recipe, opened, checked and prepared: what training samples, and what validation predicts."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.appearance import Appearance, sample_boxes
from pipeline.core.geometry.box import Box, per_axis, triple
from pipeline.core.normalization import Normalization
from pipeline.core.strict_json import json_text
from pipeline.core.volume import Description, Selection
from pipeline.errors import ConfigError
from pipeline.places.durable import make_folder, replace
from pipeline.planning.statistics import appearance, measured
from pipeline.training.deformation import least_spacing
from pipeline.training.preparation import prepare, target_rule
from pipeline.training.range import default_rule, refuse_narrow, tell_lost_bits
from pipeline.training.recipe import PairConfig, TrainConfig
from pipeline.training.samples import Region, Samples
from pipeline.volumes.inventory import open_counted
from pipeline.volumes.volume import Volume, is_volume_file

log = logging.getLogger("pipeline.training")

Sizes = tuple[float, float, float]

LOOKED_AT = 64
"""Boxes of a volume that its appearance is taken from."""


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
        rule: How values become the network's input; each volume has its own numbers.
        appearances: What the training boxes of each volume look like to the network.
    """

    samples: Samples
    validation: tuple[Region, ...]
    voxel_size_nm: Sizes | None
    axes: str
    counts: tuple[int, ...]
    fingerprints: list[dict[str, Any]]
    rule: Normalization
    appearances: tuple[Appearance, ...]


@dataclass(frozen=True)
class _Pair:
    """A volume and its labels, as opened; voxel sizes along z, y, x in any one unit, and in nm where that is known."""

    number: int
    config: PairConfig
    image: Volume
    labels: Volume
    sizes: Sizes
    nanometres: Sizes | None

    @property
    def training(self) -> list[Box]:
        return [b.box for b in self.config.train] or [Box.of_shape(self.image.shape)]

    @property
    def held_back(self) -> list[Box]:
        return [b.box for b in self.config.validation]


def gather(
    config: TrainConfig,
    on_advance: Callable[[int, int], None] = lambda _done, _total: None,
    *,
    trusted: bool = False,
    any_range: bool = False,
) -> Dataset:
    """Open, check and prepare what a recipe names.

    The image is opened, and read once where its normalisation is of the whole volume. Labels are read in their boxes.
    What the image looks like to the network is taken from boxes that are spread over those of the training.

    Args:
        config: The recipe.
        on_advance: Called with how many voxels of labels are prepared, of how many.
        trusted: Whether targets that are there are taken without reading the labels again, and values as they are.
        any_range: Whether values may span as little as they like.

    Raises:
        ConfigError, StorageError: The data is not what the recipe says.
    """
    pairs = [_opened(number, pair, config) for number, pair in enumerate(config.data.volumes)]
    _refuse_shared_voxels(pairs)
    rule, folder = _rule(config, pairs), Path(config.output) / "prepared"
    numbers = [_normalization(pair.image, rule, folder) for pair in pairs]
    looks = [_appearance(pair, normalization, folder) for pair, normalization in zip(pairs, numbers, strict=True)]
    if not trusted:
        urls = [pair.config.image for pair in pairs]
        tell_lost_bits(urls, looks, numbers)
        if not any_range:
            refuse_narrow(urls, looks, numbers)
    total, done = sum(box.voxels for pair in pairs for box in [*pair.training, *pair.held_back]), 0

    def advance(voxels: int) -> None:
        nonlocal done
        done += voxels
        on_advance(done, total)

    training, validation = (
        [
            region
            for pair in pairs
            for region in _regions(pair, getattr(pair, part), config, numbers[pair.number], advance, trusted)
        ]
        for part in ("training", "held_back")
    )
    counts = tuple(int(n) for n in np.sum([region.prepared.counts for region in training], axis=0))
    _refuse_one_class(counts, "training boxes", config)
    for region in validation:
        _refuse_one_class(region.prepared.counts, f"validation box {region.box}", config)
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
        voxel_size_nm=pairs[0].nanometres,
        axes="czyx" if config.network.ndim == 3 else "cyx",
        counts=counts,
        fingerprints=[
            _fingerprint(pair, [r for r in training + validation if r.image is pair.image]) for pair in pairs
        ],
        rule=rule,
        appearances=tuple(look for look in looks if look),
    )


def _opened(number: int, pair: PairConfig, config: TrainConfig) -> _Pair:
    image = open_counted(pair.image, Selection(pair.level, pair.axes), on_holes=_tell_holes)
    labels = open_counted(pair.labels, Selection(pair.level), on_holes=_tell_holes)
    for warning in image.warnings:
        log.warning("'%s': %s", pair.image, warning)
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
    for part in (*pair.train, *pair.validation):
        if not Box.of_shape(what.shape).contains(part.box):
            raise ConfigError(
                f"The box {part.box} of '{pair.image}' was asked for, which has {what.shape} voxels (z, y, x). Choose boxes inside it."
            )
    return _Pair(number, pair, image, labels, *_sizes(pair, what))


def _tell_holes(url: str, warning: str) -> None:
    """What is not stored is learnt from as fill."""
    log.warning("'%s': %s", url, warning)


def _refuse_shared_voxels(pairs: list[_Pair]) -> None:
    """A figure on voxels that were trained on says nothing, also where they are named under two volumes."""
    for one in pairs:
        for other in pairs:
            if (one.config.image, one.config.level) != (other.config.image, other.config.level):
                continue
            shared = [(a, b) for a in one.training for b in other.held_back if a.overlaps(b)]
            if shared:
                raise ConfigError(
                    f"Box {shared[0][0]} of '{one.config.image}' is for training, box {shared[0][1]} of the same image for "
                    "validation; they must be apart. Name boxes that share no voxel."
                )


def _sizes(pair: PairConfig, description: Description) -> tuple[Sizes, Sizes | None]:
    """Voxel sizes: the recipe's, else the metadata's, whose proportions hold also where its unit is not known."""
    if pair.voxel_size_nm != "auto":
        return pair.voxel_size_nm, pair.voxel_size_nm
    known = description.space.nanometers
    sizes = list(known or description.space.scale)
    whole = triple([sizes[0]] * (3 - len(sizes)) + sizes)
    return whole, whole if known is not None else None


def _regions(
    pair: _Pair,
    boxes: list[Box],
    config: TrainConfig,
    normalization: Normalization,
    on_advance: Callable[[int], None],
    trusted: bool,
) -> Iterator[Region]:
    if not boxes:
        return
    network, folder = config.network, Path(config.output) / "prepared"
    rule = target_rule(config.data, config.loss, classes=network.classes, ndim=network.ndim, sizes=pair.sizes)
    finest = min(pair.sizes[3 - network.ndim :])
    sampling = per_axis(lambda size: size / finest, pair.sizes)
    _refuse_folds(config, sampling)
    total = sum(box.voxels for box in boxes)
    for box in boxes:
        prepared = prepare(pair.labels, box, rule, folder, on_advance, trusted=trusted)
        share = pair.config.weight * box.voxels / total
        yield Region(pair.image, box, prepared, normalization, sampling, share, pair.number)


def _rule(config: TrainConfig, pairs: list[_Pair]) -> Normalization:
    """The recipe's rule; where it names none, the one that these types of voxels ask for."""
    if config.normalize is None:
        return default_rule([pair.image.description.dtype for pair in pairs])
    return Normalization(**config.normalize.model_dump())


def _normalization(image: Volume, rule: Normalization, folder: Path) -> Normalization:
    """The volume's own numbers, measured once: a whole volume may have to be read for them."""
    path = folder / f"{_digest(image.description.to_dict(), rule.to_dict())}-normalization.json"
    if path.is_file():
        return Normalization(**json.loads(path.read_text(encoding="utf-8")))
    numbers = measured(rule, image, nonfinite="fail")
    make_folder(folder)
    replace(path, json_text(numbers.to_dict()).encode())
    return numbers


def _appearance(pair: _Pair, normalization: Normalization, folder: Path) -> Appearance | None:
    """What a volume's training boxes look like to the network, looked at once; None where no value there is finite."""
    places = [[box.start, box.stop] for box in pair.training]
    name = _digest(pair.image.description.to_dict(), normalization.to_dict(), places, pair.nanometres)
    path = folder / f"{name}-appearance.json"
    if path.is_file():
        return Appearance.from_dict(json.loads(path.read_text(encoding="utf-8")))
    chunks, share = pair.image.description.chunks, max(LOOKED_AT // len(pair.training), 1)
    boxes = [box for frame in _spread(pair.training) for box in sample_boxes(frame, chunks, share)]
    look = appearance(pair.image, normalization, boxes=boxes, voxel_size_nm=pair.nanometres)
    if look:
        make_folder(folder)
        replace(path, json_text(look.to_dict()).encode())
    return look


def _spread(frames: list[Box]) -> list[Box]:
    """So many of the boxes, evenly from first to last."""
    return frames[:: max(len(frames) // LOOKED_AT, 1)]


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _refuse_folds(config: TrainConfig, sampling: Sizes) -> None:
    """Refuse displacements so large, beside the grid that they are drawn on, that space folds."""
    most = least_spacing(config.window, config.augment, sampling) / 4
    sigma = config.augment.elastic_sigma
    if sigma != "auto" and sigma > most:
        raise ConfigError(
            f"augment.elastic_sigma is {sigma:g} voxels, but the {config.augment.elastic_points} points of its grid stand so "
            f"close in a patch of {config.patch} that space would fold. Set it to at most {most:.2g}, or to auto."
        )


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
            f"All labels of the {what} are of one class, {only}, under the target '{config.data.target}' of "
            f"{config.data.labels_are}: there is nothing to tell apart. Choose other boxes, or check data.target and data.labels_are."
        )


def _fingerprint(pair: _Pair, regions: list[Region]) -> dict[str, Any]:
    return {
        "image": _named(pair.config.image),
        "image_metadata_sha256": pair.image.description.metadata_sha256,
        "shape": pair.image.shape,
        "dtype": pair.image.description.dtype,
        "labels": _named(pair.config.labels),
        "labels_sha256": {str(region.box): region.prepared.sha256 for region in regions},
    }


def _named(url: str) -> str:
    """The last part of a place; of a dataset in a file, the file's name too."""
    file = next((part for part in Path(url).parents if is_volume_file(str(part))), None)
    return Path(url).name if file is None else f"{file.name}/{Path(url).relative_to(file).as_posix()}"

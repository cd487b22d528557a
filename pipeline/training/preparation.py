"""Labels turned into targets and border weights, once a training run, block by block, into files that are mapped.

    labels  --a block and its margin-->  target 0, 1, ... (uint8)  and  exp(-(d1 + d2)^2 / (2 sigma^2)) (float16)

Both are functions of the labels alone, so they are made before training and deformed with the image; made anew for each
patch, the weights would see no cell beyond its ends, and cost as much as the network.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from pipeline.core.geometry.box import Box, Triple, per_axis, triple
from pipeline.core.strict_json import json_text
from pipeline.core.targets import foreground
from pipeline.errors import ConfigError
from pipeline.places.durable import make_folder, replace
from pipeline.training.border import REACH, border_weight
from pipeline.training.recipe import DataConfig, LossConfig
from pipeline.volumes.volume import Volume

IGNORED = 255
"""Target of voxels that count for nothing."""

BLOCK = {"yx": (1, 4096, 4096), "zyx": (64, 512, 512)}
"""Voxels that are held at once, a margin apart, by the axes along which instances touch. The slices of a mask are held
whole, so that a cell is one; in a volume, a mask's cells are told apart within a block and its margin."""

THREADS = len(os.sched_getaffinity(0))
"""Of the distance transforms."""


@dataclass(frozen=True)
class TargetRule:
    """How labels become targets and weights.

    Args:
        target: `membrane`, `foreground` or `classes`.
        labels_are: `instances` or `mask`.
        neighbours: `yx` or `zyx`.
        ignore: Label of voxels that count for nothing.
        classes: Classes of the target; 1 for membrane and foreground.
        sigma: Of the border weights, voxels of the finest axis; None for none.
        sampling: Voxel size along z, y, x in units of the finest axis among `neighbours`.
    """

    target: str
    labels_are: str
    neighbours: Literal["yx", "zyx"]
    ignore: int | None
    classes: int
    sigma: float | None
    sampling: tuple[float, float, float]

    def margin(self) -> Triple:
        """Voxels around a block that its targets and weights depend on."""
        reach = 1.0 if self.sigma is None else REACH * self.sigma
        return triple(
            int(np.ceil(reach / size)) if name in self.neighbours else 0
            for name, size in zip("zyx", self.sampling, strict=True)
        )

    def apply(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Targets, uint8, and border weights, float32 or None, of labels (Z, Y, X)."""
        if self.neighbours == "zyx":
            return self._apply(labels)
        parts = [self._apply(labels[z : z + 1]) for z in range(labels.shape[0])]
        targets, weights = zip(*parts, strict=True)
        return np.concatenate(targets), None if self.sigma is None else np.concatenate(weights)

    def _apply(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        ignored = None if self.ignore is None else labels == self.ignore
        if self.target == "classes":
            target = self._checked(np.where(ignored, 0, labels) if ignored is not None else labels)
            weights = None
        else:
            known = labels if ignored is None else np.where(ignored, labels.dtype.type(0), labels)
            parts = ndimage.label(known)[0] if self.labels_are == "mask" else None
            ids, ignore = (labels, self.ignore) if parts is None else (parts, None)
            inside = foreground(ids, self.neighbours, ignore)
            target = 1 - inside if self.target == "membrane" else inside
            weights = (
                None if self.sigma is None else self._weights(np.where(inside, known if parts is None else parts, 0))
            )
        if ignored is not None:
            target = np.where(ignored, np.uint8(IGNORED), target)
        return target, weights

    def _weights(self, cells: np.ndarray) -> np.ndarray:
        flat = self.neighbours == "yx"
        weights = border_weight(
            cells[0] if flat else cells, sigma=self.sigma or 0.0, sampling=self.sampling[flat:], threads=THREADS
        )
        return weights[np.newaxis] if flat else weights

    def _checked(self, labels: np.ndarray) -> np.ndarray:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.classes:
            raise ConfigError(
                f"Labels hold the values {low} to {high}; network.classes is {self.classes}, so classes are 0 to "
                f"{self.classes - 1}. Set network.classes, or data.ignore to the value that counts for nothing."
            )
        return labels.astype(np.uint8)


def target_rule(
    data: DataConfig, loss: LossConfig, *, classes: int, ndim: int, sizes: tuple[float, float, float]
) -> TargetRule:
    """The rule for one volume.

    Args:
        data: What is learnt.
        loss: Whether there are border weights.
        classes: Of the network.
        ndim: Of the network.
        sizes: Voxel sizes along z, y, x, in any one unit.
    """
    neighbours = data.neighbours
    if neighbours == "auto":
        neighbours = "yx" if ndim == 2 or sizes[0] >= 2 * min(sizes[1:]) else "zyx"
    finest = min(sizes["zyx".index(name)] for name in neighbours)
    z, y, x = (size / finest for size in sizes)
    sigma = loss.border_sigma if loss.border_weight else None
    return TargetRule(data.target, data.labels_are, neighbours, data.ignore, classes, sigma, (z, y, x))


@dataclass(frozen=True)
class Prepared:
    """Targets and border weights of one box of labels, on disk.

    Args:
        target_path: (Z, Y, X), uint8, of the box.
        border_path: The same, float16; None where there are no weights.
        counts: Voxels by class.
        sha256: Digest of the labels that they were made of.
        neighbours: Axes along which instances were parted.
    """

    target_path: Path
    border_path: Path | None
    counts: tuple[int, ...]
    sha256: str
    neighbours: Literal["yx", "zyx"]

    def target(self) -> np.ndarray:
        mapped: np.ndarray = np.load(self.target_path, mmap_mode="r")
        return mapped

    def border(self) -> np.ndarray | None:
        return None if self.border_path is None else np.load(self.border_path, mmap_mode="r")


def prepare(
    labels: Volume,
    box: Box,
    rule: TargetRule,
    folder: Path,
    on_advance: Callable[[int], None] = lambda _: None,
    *,
    trusted: bool = False,
) -> Prepared:
    """Make the targets and weights of a box, or take those that an earlier session finished.

    Args:
        labels: One channel of integers.
        box: Inside the volume; nothing beyond it is read.
        rule: How.
        folder: Where the files go.
        on_advance: Called with the voxels that each block adds.
        trusted: Whether what is there is taken without reading the labels again, to see that they are the same.
    """
    name = _digest({"labels": labels.description.to_dict(), "box": [box.start, box.stop], "rule": vars(rule)})[:16]
    record = folder / f"{name}.json"
    paths = folder / f"{name}-target.npy", None if rule.sigma is None else folder / f"{name}-border.npy"
    if record.is_file():
        content = json.loads(record.read_text(encoding="utf-8"))
        if trusted or content["sha256"] == _read_digest(labels, box, rule):
            on_advance(box.voxels)
            return Prepared(*paths, tuple(content["counts"]), content["sha256"], rule.neighbours)
        record.unlink()
    make_folder(folder)
    target = np.lib.format.open_memmap(paths[0], "w+", np.uint8, box.shape)
    border = None if paths[1] is None else np.lib.format.open_memmap(paths[1], "w+", np.float16, box.shape)
    counts, digest = np.zeros(256, dtype=np.int64), hashlib.sha256()
    for block, values, (classes, weights) in _blocks(labels, box, rule):
        place = block.within(box)
        target[place] = classes
        if border is not None and weights is not None:
            border[place] = weights
        counts += np.bincount(classes.ravel(), minlength=256)
        digest.update(np.ascontiguousarray(values).tobytes())
        on_advance(block.voxels)
    for array in (target, border):
        if array is not None:
            array.flush()
    prepared = Prepared(
        *paths, tuple(int(n) for n in counts[: max(rule.classes, 2)]), digest.hexdigest(), rule.neighbours
    )
    replace(record, json_text({"counts": prepared.counts, "sha256": prepared.sha256}).encode())
    return prepared


def _read_digest(labels: Volume, box: Box, rule: TargetRule) -> str:
    """Digest of the labels as they are now."""
    digest = hashlib.sha256()
    for block in _split(box, rule):
        digest.update(np.ascontiguousarray(labels.read(block)[0]).tobytes())
    return digest.hexdigest()


def _split(box: Box, rule: TargetRule) -> Iterator[Box]:
    whole_slices = rule.labels_are == "mask" and rule.neighbours == "yx"
    return box.split((1, *box.shape[1:]) if whole_slices else BLOCK[rule.neighbours])


def _blocks(
    labels: Volume, box: Box, rule: TargetRule
) -> Iterator[tuple[Box, np.ndarray, tuple[np.ndarray, np.ndarray | None]]]:
    """Blocks of the box, their labels, and what the rule makes of them and their margins."""
    for block in _split(box, rule):
        spans = per_axis(lambda a, b, m: (a - m, b + m), block.start, block.stop, rule.margin())
        wide = Box.of_spans(spans).clipped(box)
        values = labels.read(wide)[0]
        inner = block.within(wide)
        target, weights = rule.apply(values)
        yield block, values[inner], (target[inner], None if weights is None else weights[inner])


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

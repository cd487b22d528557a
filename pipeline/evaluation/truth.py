"""What the labels say is true, box by box: each voxel's cell, or that it is in none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.core.geometry.box import Box
from pipeline.core.targets import foreground, membranes
from pipeline.errors import ConfigError
from pipeline.evaluation.rule import Rule
from pipeline.volumes.volume import Volume


@dataclass(frozen=True)
class Truth:
    """Labels, and what they are taken for.

    Args:
        volume: One channel of integers.
        rule: What the labels are, and what ends a cell.

    Raises:
        ConfigError: The labels cannot be what the rule says.
    """

    volume: Volume
    rule: Rule

    def __post_init__(self) -> None:
        url, channels, dtype = self.volume.description.url, self.volume.description.channels, self.volume.array.dtype
        if channels != 1 or dtype.kind == "f":
            raise ConfigError(
                f"Labels '{url}' have dtype {dtype} and {channels} channels; expected one channel of integers. "
                "Name the labels, not the image, or convert them."
            )
        if dtype.kind == "b" and self.rule.labels_are == "instances":
            raise ConfigError(
                f"Labels '{url}' are boolean, which tells no instance from another. Set labels_are to 'mask'."
            )

    def read(self, box: Box, frame: Box) -> tuple[np.ndarray, np.ndarray | None]:
        """The cells of a box.

        Args:
            box: Whole slices of `frame`.
            frame: The box that is evaluated. Nothing beyond it is read, so that a crop by itself has the same truth.

        Returns:
            Each voxel's cell, (Z, Y, X), any integer type: its id, or 1 throughout a mask; 0 where the truth is
            membrane. And which voxels count, boolean; None for all.
        """
        near = int(self.rule.labels_are == "instances" and "z" in self.rule.neighbours)
        (z0, y0, x0), (z1, y1, x1) = box.start, box.stop
        wide = Box((z0 - near, y0, x0), (z1 + near, y1, x1)).clipped(frame)
        inner = box.within(wide)
        labels = self.volume.read(wide)[0]
        cells = self._cells(labels)[inner]
        if self.rule.ignore is None:
            return cells, None
        counted = labels[inner] != self.rule.ignore
        return np.where(counted, cells, 0), counted

    def _cells(self, labels: np.ndarray) -> np.ndarray:
        if self.rule.labels_are == "mask":
            drawn: np.ndarray = labels != 0
            return drawn.astype(np.uint8)
        if self.rule.predicts == "membrane":
            return np.where(membranes(labels, self.rule.neighbours, self.rule.ignore), 0, labels)
        return np.where(foreground(labels, self.rule.neighbours, self.rule.ignore), labels, 0)

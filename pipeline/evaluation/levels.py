"""Probabilities as some hundreds or thousands of whole levels, which histograms count and watersheds climb."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.core.geometry.box import Box
from pipeline.errors import ConfigError
from pipeline.volumes.volume import Volume

FLOAT_SCALE = 4000
"""Levels of a floating-point prediction. Not 4096: 0.1, 0.25, 0.975 and their like are to be edges of levels, so that
no voxel is on the wrong side of such a threshold."""


@dataclass(frozen=True)
class Levels:
    """A prediction's probabilities, as whole levels: `k` is a probability of `k / scale`, or up to `(k + 1) / scale`.

    Args:
        volume: One channel: uint8, which is 255 times a probability and is taken as it is; or floats from 0 to 1, which
            are rounded down to a level.
        scale: Level of a probability of 1.

    Raises:
        ConfigError: The volume has more channels, or another type.
    """

    volume: Volume
    scale: int

    @classmethod
    def of(cls, volume: Volume) -> Levels:
        url, channels, dtype = volume.description.url, volume.description.channels, volume.array.dtype
        if channels != 1:
            raise ConfigError(
                f"Prediction '{url}' has {channels} channels; a membrane or foreground probability is one. "
                "Evaluate a prediction of a network with one class, or store that channel by itself."
            )
        if dtype.kind != "f" and dtype != np.uint8:
            raise ConfigError(
                f"Prediction '{url}' has dtype {dtype}; probabilities are floats from 0 to 1, or uint8, which is 255 times "
                "them. Labels or a segmentation in place of the prediction? Name the network's output."
            )
        return cls(volume, FLOAT_SCALE if dtype.kind == "f" else 255)

    def read(self, box: Box) -> np.ndarray:
        """Levels of a box, (Z, Y, X), uint8 or uint16.

        Raises:
            ConfigError: A value is no probability.
        """
        values: np.ndarray = self.volume.read(box)[0]
        if values.dtype == np.uint8:
            return values
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # so written, NaN is refused too
            raise ConfigError(
                f"Prediction '{self.volume.description.url}' holds values from {low:.4g} to {high:.4g} in the box {box}; "
                "probabilities are from 0 to 1. Logits? Set output.activation to 'sigmoid' and infer again."
            )
        wide = values.astype(np.float64)
        levels: np.ndarray = np.floor(wide * self.scale)
        levels -= levels / self.scale > wide  # a product that was rounded over an edge, up or down
        levels += (levels + 1) / self.scale <= wide
        return levels.astype(np.uint16)

    def cut(self, threshold: float) -> int:
        """The least level whose probability is at least `threshold`."""
        return int(np.searchsorted(np.arange(self.scale + 1) / self.scale, threshold))

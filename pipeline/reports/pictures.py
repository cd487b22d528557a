"""Pictures of a run: input beside output."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from pipeline.core.geometry.box import Box
from pipeline.outputs.level import Level
from pipeline.volumes.volume import Volume

PICTURE_EXTENT = 1024
"""Voxels per axis of a picture at most."""


def png(image: Image.Image) -> bytes:
    """An image as the bytes of a file."""
    content = BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def picture(volume: Volume, level: Level) -> Image.Image:
    """The middle slice, input beside output; the central part of it where it is large."""
    box = _middle(volume)
    left = _grey(volume.read(box)[0, 0], limits=None)
    limits = (0, 255) if level.dtype == "uint8" else None
    right = _grey(level.read(box)[0, 0], limits=limits)
    gap = np.full((left.shape[0], 8), 255, dtype=np.uint8)
    return Image.fromarray(np.hstack([left, gap, right]))


def _middle(volume: Volume) -> Box:
    z, y, x = volume.shape
    height, width = min(y, PICTURE_EXTENT), min(x, PICTURE_EXTENT)
    start = (z // 2, (y - height) // 2, (x - width) // 2)
    return Box(start, (start[0] + 1, start[1] + height, start[2] + width))


def _grey(plane: np.ndarray, limits: tuple[float, float] | None) -> np.ndarray:
    """A slice as 8-bit grey: between given limits, else between its own 0.5th and 99.5th percentile."""
    plane = np.nan_to_num(plane.astype(np.float64))
    low, high = limits or np.percentile(plane, (0.5, 99.5))
    scaled: np.ndarray = (plane - low) / (high - low) if high > low else np.zeros_like(plane)
    grey: np.ndarray = np.rint(255 * np.clip(scaled, 0, 1))
    return grey.astype(np.uint8)

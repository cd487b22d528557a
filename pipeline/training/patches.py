"""Membrane targets from instance labels, and random patches of a volume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import h5py
import numpy as np

from pipeline.core.box import Triple
from pipeline.errors import ConfigError
from pipeline.training.recipe import DataConfig


@dataclass(frozen=True)
class Pair:
    """A volume and its target, both (Z, Y, X): image as stored, and membrane 1, else 0."""

    image: np.ndarray
    membrane: np.ndarray


def membranes(ids: np.ndarray) -> np.ndarray:
    """Where instances meet: a voxel is membrane where one of its six neighbours has another id. uint8, (Z, Y, X)."""
    found = np.zeros(ids.shape, dtype=np.uint8)
    for axis in range(ids.ndim):
        before = [slice(None)] * ids.ndim
        after = [slice(None)] * ids.ndim
        before[axis], after[axis] = slice(0, -1), slice(1, None)
        meets = ids[tuple(before)] != ids[tuple(after)]
        found[tuple(before)] |= meets
        found[tuple(after)] |= meets
    return found


def read_pair(data: DataConfig, slices: tuple[int, int]) -> Pair:
    """The slices of an image and their membranes; no other slice is read.

    Raises:
        ConfigError: The file, a data set or a slice is not there.
    """
    try:
        with h5py.File(data.url, "r") as file:
            image, ids = file[data.image], file[data.labels]
            if slices[1] > image.shape[0] or image.shape != ids.shape:
                raise ConfigError(
                    f"Slices {slices} of '{data.url}' were asked for; it holds {data.image} {image.shape} and {data.labels} "
                    f"{ids.shape}. Choose slices that are there, of data sets of one shape."
                )
            if image.dtype != np.uint8:
                raise ConfigError(
                    f"The image '{data.image}' of '{data.url}' is {image.dtype}; training takes uint8 alone, as 0..1 of its "
                    "range. Convert it."
                )
            return Pair(image[slice(*slices)], membranes(ids[slice(*slices)]))
    except (OSError, KeyError) as error:
        raise ConfigError(
            f"Training data '{data.url}' cannot be read ({error}). Check data.url, data.image and data.labels."
        ) from error


def random_patches(pair: Pair, shape: Triple, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless patches: image as float32 in 0..1 and membrane, (Z, Y, X) each.

    Flipped along any axis, turned by multiples of 90 degrees in y, x, with other brightness, contrast and noise.
    """
    room = [n - s for n, s in zip(pair.image.shape, shape, strict=True)]
    if min(room) < 0:
        raise ConfigError(f"Patches of {shape} voxels do not fit the volume of {pair.image.shape}. Make patch smaller.")
    while True:
        start = [int(rng.integers(0, r + 1)) for r in room]
        box = tuple(slice(a, a + s) for a, s in zip(start, shape, strict=True))
        image, membrane = _turned([pair.image[box], pair.membrane[box]], rng)
        yield _jittered(image.astype(np.float32) / 255, rng), membrane


def _turned(arrays: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    flips = tuple(axis for axis in range(3) if rng.random() < 0.5)
    turns = int(rng.integers(0, 4)) if arrays[0].shape[1] == arrays[0].shape[2] else 0
    return [np.rot90(np.flip(array, flips), turns, axes=(1, 2)) for array in arrays]


def _jittered(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    contrast, brightness = rng.uniform(0.75, 1.3), rng.uniform(-0.15, 0.15)
    noise = rng.normal(0, rng.uniform(0, 0.04), image.shape)
    return ((image - 0.5) * contrast + 0.5 + brightness + noise).astype(np.float32)

"""Random patches of several volumes. Sample n is a function of the seed and n alone, so that any of them can be made
again: by another process, in another order, or after the run was killed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from pipeline.core.geometry.box import Box, Triple, per_axis, triple
from pipeline.core.geometry.mirror import shown, spread
from pipeline.core.normalization import Normalization
from pipeline.training.deformation import between, nearest, random_places
from pipeline.training.preparation import IGNORED, Prepared
from pipeline.training.recipe import AugmentConfig
from pipeline.volumes.volume import Volume


@dataclass(frozen=True)
class Sample:
    """What one patch teaches.

    Args:
        image: What the network sees, normalised, (C, Z, Y, X), float32.
        target: What it should say of the part that it predicts, (z, y, x), uint8; `IGNORED` for nothing.
        weight: How much each voxel counts, (z, y, x), float32; 0 where ignored.
    """

    image: np.ndarray
    target: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Region:
    """A box of a volume to learn from.

    Args:
        image: The volume.
        box: The part of it that is used; nothing beyond it is read, mirrored images stand there.
        prepared: Its targets and border weights.
        normalization: The volume's.
        sampling: Voxel sizes along z, y, x, in units of the finest.
        share: How often it is chosen, relative to others.
        volume: Number of its volume in the recipe.
    """

    image: Volume
    box: Box
    prepared: Prepared
    normalization: Normalization
    sampling: tuple[float, float, float]
    share: float
    volume: int = 0


@dataclass(frozen=True)
class Samples:
    """Endless random patches, by number.

    Args:
        regions: Where they are taken.
        patch: Extents that are predicted.
        window: Extents that the network sees; larger where it does not pad.
        augment: How they vary.
        class_weights: Of each class; the border weight is added.
        border_weight: What the border weights, 0 to 1, are multiplied by.
        seed: Of the run.
    """

    regions: tuple[Region, ...]
    patch: Triple
    window: Triple
    augment: AugmentConfig
    class_weights: tuple[float, ...]
    border_weight: float
    seed: int

    def __getitem__(self, number: int) -> Sample:
        """Sample `number`, from 0."""
        rng = np.random.default_rng((self.seed, number))
        shares = np.array([region.share for region in self.regions])
        region = self.regions[rng.choice(len(shares), p=shares / shares.sum())]
        places = random_places(self.window, self.augment, region.sampling, rng) + self._centre(region.box, rng)
        inner = per_axis(lambda w, p: slice((w - p) // 2, (w - p) // 2 + p), self.window, self.patch)
        inner_places = places[:, *inner]
        image = _jittered(_image(region, places), self.augment, rng)
        frame = _frame(inner_places)
        target = nearest(_taken(region.prepared.target(), frame), inner_places, frame.start)
        return Sample(image, target, self._weight(region, inner_places, frame, target))

    def _centre(self, box: Box, rng: np.random.Generator) -> np.ndarray:
        """A random place for the patch's centre, so that an undeformed one lies inside the box and on its voxels."""
        centre = [
            int(rng.integers(0, n - p + 1)) + (p - 1) / 2 if n >= p else (n - 1) / 2
            for n, p in zip(box.shape, self.patch, strict=True)
        ]
        return np.array(centre, dtype=np.float32)[:, None, None, None]

    def _weight(self, region: Region, places: np.ndarray, frame: Box, target: np.ndarray) -> np.ndarray:
        table = np.zeros(256, dtype=np.float32)
        table[: len(self.class_weights)] = self.class_weights
        table[IGNORED] = 0.0
        weight: np.ndarray = table[target]
        border = region.prepared.border()
        if border is not None:
            share = between(_taken(border, frame).astype(np.float32)[np.newaxis], places, frame.start)[0]
            weight += np.float32(self.border_weight) * share * (target != IGNORED)
        return weight


def _image(region: Region, places: np.ndarray) -> np.ndarray:
    frame = _frame(places)
    inside, indices = shown(frame, region.box.shape)
    block = region.normalization.apply(region.image.read(inside.moved(region.box.start)))
    return between(np.ascontiguousarray(spread(block, indices)), places, frame.start, cubic=True)


def _frame(places: np.ndarray) -> Box:
    """The voxels that lie around all places: one more on each side, but none beside a single slice."""
    low, high = places.min(axis=(1, 2, 3)), places.max(axis=(1, 2, 3))
    more = [int(b > a or a % 1 > 0) for a, b in zip(low, high, strict=True)]
    spans = zip(np.floor(low), np.ceil(high), more, strict=True)
    return Box.of_spans((int(a) - m, int(b) + 1 + m) for a, b, m in spans)


def _taken(array: np.ndarray, frame: Box) -> np.ndarray:
    """A part of a mapped array (Z, Y, X), mirrored beyond its ends."""
    inside, indices = shown(frame, triple(array.shape))
    taken: np.ndarray = spread(array[inside.within(Box((0, 0, 0), (0, 0, 0)))][np.newaxis], indices)[0]
    return taken


def _jittered(image: np.ndarray, augment: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    contrast = rng.uniform(1 - augment.contrast, 1 + augment.contrast)
    brightness = rng.uniform(-augment.brightness, augment.brightness)
    middle = image.mean()
    image = (image - middle) * np.float32(contrast) + np.float32(middle + brightness)
    if augment.noise:
        deviation = np.float32(rng.uniform(0, augment.noise))
        image += rng.standard_normal(image.shape, dtype=np.float32) * deviation
    return image


def read_ahead(samples: Samples, numbers: Iterable[int], *, threads: int, ahead: int) -> Generator[Sample]:
    """The samples in order, made by other threads while earlier ones are used; at most `ahead` wait."""
    numbers = iter(numbers)
    waiting: deque[Future[Sample]] = deque()
    # One core each: a team of threads for each small product would stop the network's own, a third of a step.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads, "samples", torch.set_num_threads, (1,)) as pool:
        try:
            for number in numbers:
                waiting.append(pool.submit(samples.__getitem__, number))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

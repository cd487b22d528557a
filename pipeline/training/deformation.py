"""Where the voxels of a patch come from: turned, mirrored, zoomed and bent, in one resampling.

Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597, section 3.1 (random displacements on a coarse grid of 3 x 3
points, Gaussian with a standard deviation of 10 pixels, made smooth by cubic interpolation).
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch.nn.functional import grid_sample

from pipeline.core.geometry.box import Triple
from pipeline.training.recipe import AugmentConfig

PAPER_SIGMA = 10.0
"""Voxels."""


def random_places(
    window: Triple, augment: AugmentConfig, sampling: tuple[float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """Where each voxel of a window is taken from, in voxels from the window's centre.

    Args:
        window: Extents z, y, x; an extent of 1 is a slice, and stays one.
        augment: What varies.
        sampling: Voxel sizes along z, y, x, in units of the finest: what is turned or bent keeps its shape in space.
        rng: Where chance comes from.

    Returns:
        (3, Z, Y, X), float32.
    """
    matrix = random_matrix(window, augment, sampling, rng)
    steps = [np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2) for n in window]
    z, y, x = steps[0][:, None, None], steps[1][None, :, None], steps[2][None, None, :]
    places = np.stack([row[0] * z + row[1] * y + row[2] * x for row in matrix.astype(np.float32)])
    if deviation := deviation_of(window, augment, sampling):
        for axis in _free_axes(window):
            places[axis] += random_displacement(window, augment, rng) * np.float32(deviation / sampling[axis])
    return places


def deviation_of(window: Triple, augment: AugmentConfig, sampling: tuple[float, float, float]) -> float:
    """Standard deviation of displacements, in voxels of the finest axis."""
    if augment.elastic_sigma != "auto":
        return augment.elastic_sigma
    return min(PAPER_SIGMA, least_spacing(window, augment, sampling) / 8)


def least_spacing(window: Triple, augment: AugmentConfig, sampling: tuple[float, float, float]) -> float:
    """Distance between two points of the coarse grid, voxels of the finest axis, along the axis where they are nearest."""
    return min((window[axis] - 1) * sampling[axis] / (augment.elastic_points - 1) for axis in _free_axes(window))


def random_matrix(
    window: Triple, augment: AugmentConfig, sampling: tuple[float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """A random linear map of places, (3, 3), voxels to voxels.

    Axes of like voxel size are exchanged and mirrored at will, the rest only mirrored; slices are turned by any angle.
    """
    matrix = np.eye(3)
    if augment.flip:
        matrix = _random_symmetry(window, sampling, rng)
    if augment.rotate:
        angle = rng.uniform(-np.pi, np.pi)
        turn = np.eye(3)
        turn[1:, 1:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        matrix = turn @ matrix
    if augment.zoom:
        factor = rng.uniform(1 - augment.zoom, 1 + augment.zoom)
        matrix = np.diag([factor if axis in _free_axes(window) else 1.0 for axis in range(3)]) @ matrix
    size = np.array(sampling)
    scaled: np.ndarray = matrix * size[np.newaxis, :] / size[:, np.newaxis]
    return scaled


def _random_symmetry(window: Triple, sampling: tuple[float, float, float], rng: np.random.Generator) -> np.ndarray:
    free = _free_axes(window)
    orders = [
        order
        for order in permutations(range(3))
        if all(a == b or (a in free and b in free and _alike(sampling[a], sampling[b])) for a, b in enumerate(order))
    ]
    order = orders[rng.integers(len(orders))]
    signs = [rng.choice((-1.0, 1.0)) if axis in free else 1.0 for axis in range(3)]
    return np.diag(signs) @ np.eye(3)[list(order)]


def _alike(one: float, other: float) -> bool:
    return max(one, other) <= 1.1 * min(one, other)


def _free_axes(window: Triple) -> list[int]:
    return [axis for axis, extent in enumerate(window) if extent > 1]


def random_displacement(window: Triple, augment: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """A smooth field of standard deviation 1 at the points of a coarse grid, (Z, Y, X), float32.

    The grid has `elastic_points` points from one end of the window to the other, and one more beyond either end.
    """
    axes = [_spline(n, augment.elastic_points) for n in window]
    coarse = rng.standard_normal([matrix.shape[1] for matrix in axes], dtype=np.float32)
    field: np.ndarray = np.einsum("zi,yj,xk,ijk->zyx", *axes, coarse, optimize=True)
    return field


def _spline(extent: int, points: int) -> np.ndarray:
    """Cubic interpolation from the points of a grid to the voxels of an axis, (extent, points)."""
    if extent == 1:
        return np.ones((1, 1), dtype=np.float32)
    knots = np.arange(-1, points + 1) / (points - 1)
    matrix: np.ndarray = make_interp_spline(knots, np.eye(points + 2), k=3)(np.linspace(0, 1, extent))
    return matrix.astype(np.float32)


def between(block: np.ndarray, places: np.ndarray, origin: Triple = (0, 0, 0), *, cubic: bool = False) -> np.ndarray:
    """Values between voxels.

    Args:
        block: (C, Z, Y, X), float32; a single slice where `places` has one.
        places: (3, z, y, x), float32, voxels.
        origin: Place of the block's first voxel.
        cubic: Cubic interpolation in a slice; in a volume, and otherwise, it is linear.

    Returns:
        (C, z, y, x), float32.
    """
    flat = block.shape[1] == 1
    axes = (2, 1) if flat else (2, 1, 0)
    shares = np.empty((len(axes), *places.shape[1:]), dtype=np.float32)
    for row, axis in enumerate(axes):  # in place: this is most of what a patch costs
        np.subtract(places[axis], np.float32(origin[axis]), out=shares[row])
        shares[row] *= np.float32(2) / np.float32(max(block.shape[1 + axis] - 1, 1))
        shares[row] -= 1
    source, where = torch.from_numpy(block)[None], torch.from_numpy(np.moveaxis(shares, 0, -1)).contiguous()
    if flat:
        mode = "bicubic" if cubic else "bilinear"
        values = grid_sample(source[:, :, 0], where, mode=mode, padding_mode="border", align_corners=True)
        return values[0].numpy()[:, np.newaxis]
    values = grid_sample(source, where[None], mode="bilinear", padding_mode="border", align_corners=True)
    return values[0].numpy()


def nearest(block: np.ndarray, places: np.ndarray, origin: Triple = (0, 0, 0)) -> np.ndarray:
    """The nearest voxel's value.

    Args:
        block: (Z, Y, X).
        places: (3, z, y, x), float32, voxels.
        origin: Place of the block's first voxel.

    Returns:
        (z, y, x), the block's type.
    """
    place = np.zeros(places.shape[1:], dtype=np.intp)
    for axis, extent in enumerate(block.shape):
        if extent > 1:
            along = np.rint(places[axis] - np.float32(origin[axis]))
            place = place * extent + np.clip(along, 0, extent - 1, out=along).astype(np.intp)
    return np.take(block, place)

import numpy as np
import pytest
from scipy import ndimage

from pipeline.training.border import border_weight


def by_definition(cells, sigma, sampling):
    """One distance transform a cell, sorted."""
    distances = [ndimage.distance_transform_edt(cells != i, sampling=sampling) for i in np.unique(cells) if i]
    nearest, second = np.sort(np.stack(distances), axis=0)[:2]
    return np.exp(-((nearest + second) ** 2) / (2 * sigma**2))


def cells_of(shape, count, seed=0, gap=2):
    """Voronoi cells with a gap between them, under strange ids."""
    rng = np.random.default_rng(seed)
    seeds = np.zeros(shape, dtype=np.int64)
    for number in range(count):
        seeds[tuple(rng.integers(0, n) for n in shape)] = number + 1
    places = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    full = seeds[tuple(places)]
    between = ndimage.maximum_filter(full, gap + 1) != ndimage.minimum_filter(full, gap + 1)
    return np.where(between, 0, full * 1000 + 7)


@pytest.mark.parametrize("sampling", [(1.0, 1.0), (1.0, 2.5)])
@pytest.mark.parametrize("count", [2, 3, 8, 9, 40])
def test_a_slice_weighs_as_defined(count, sampling):
    """Counts around powers of two: the bits of the last cell are the ones that a mistake would lose."""
    cells = cells_of((70, 90), count, seed=count)
    found = border_weight(cells, sigma=5.0, sampling=sampling)
    assert np.abs(found - by_definition(cells, 5.0, sampling)).max() < 1e-6


def test_a_volume_weighs_as_defined_with_its_own_voxel_sizes():
    """Distances are of space, not of the lattice: slices 12.5 times as far apart as voxels are wide."""
    cells = cells_of((6, 30, 26), 12)
    found = border_weight(cells, sigma=5.0, sampling=(12.5, 1.0, 1.0))
    assert np.abs(found - by_definition(cells, 5.0, (12.5, 1.0, 1.0))).max() < 1e-6
    assert np.abs(found - by_definition(cells, 5.0, (1.0, 1.0, 1.0))).max() > 0.01  # negative control


@pytest.mark.parametrize("cells", [np.zeros((5, 6), int), np.full((5, 6), 3), np.pad(np.full((2, 2), 4), 3)])
def test_fewer_than_two_cells_have_no_border(cells):
    """There is no second nearest, so the exponential is of an infinite distance."""
    assert not border_weight(cells, sigma=5.0, sampling=(1.0, 1.0)).any()


def test_cells_that_fill_the_whole_picture_are_weighed_too():
    """No voxel lies between, and the smallest id is not mistaken for the space between."""
    cells = np.repeat([[5] * 10 + [9] * 10], 4, axis=0)
    found = border_weight(cells, sigma=5.0, sampling=(1.0, 1.0))
    assert np.abs(found - by_definition(cells, 5.0, (1.0, 1.0))).max() < 1e-6

import numpy as np
import pytest

from pipeline.training.deformation import (
    between,
    deviation_of,
    nearest,
    random_displacement,
    random_matrix,
    random_places,
)
from pipeline.training.recipe import AugmentConfig

STILL = AugmentConfig(flip=False, rotate=False, zoom=0.0, elastic_sigma=0.0)
EVEN = (1.0, 1.0, 1.0)


def rng(seed=0):
    """Chance that can be had again."""
    return np.random.default_rng(seed)


def test_a_patch_that_nothing_varies_is_the_volume_itself():
    """Resampling at the lattice's own places changes nothing but round-off."""
    block = rng().random((2, 6, 9, 7)).astype(np.float32)
    places = random_places((6, 9, 7), STILL, EVEN, rng()) + np.array([2.5, 4, 3], np.float32)[:, None, None, None]
    assert np.abs(between(block, places) - block).max() < 1e-4
    assert (
        np.abs(between(block[:, :1], places[:, 3:4] * [[[[0]]], [[[1]]], [[[1]]]], cubic=True) - block[:, :1]).max()
        < 1e-4
    )
    assert np.array_equal(nearest(block[0], places), block[0])


@pytest.mark.parametrize("window", [(1, 32, 32), (16, 16, 16)])
def test_flips_are_symmetries_of_the_lattice(window):
    """Each is a permutation of axes with signs; over many draws all of them come, and slices stay slices."""
    augment = STILL.model_copy(update={"flip": True})
    seen = {tuple(random_matrix(window, augment, EVEN, rng(n)).astype(int).ravel()) for n in range(600)}
    for found in seen:
        matrix = np.array(found).reshape(3, 3)
        assert np.array_equal(matrix @ matrix.T, np.eye(3))
    assert len(seen) == (8 if window[0] == 1 else 48)


def test_axes_of_other_voxel_sizes_are_not_exchanged():
    """A section of 50 nm is no column of 4 nm."""
    augment = STILL.model_copy(update={"flip": True})
    for seed in range(100):
        matrix = random_matrix((8, 32, 32), augment, (12.5, 1.0, 1.0), rng(seed))
        assert np.array_equal(np.abs(matrix[0]), [1, 0, 0])


def test_a_turn_keeps_lengths_in_space():
    """With voxels twice as long along y, what is turned must not be sheared."""
    augment = STILL.model_copy(update={"rotate": True})
    sizes = np.array([1.0, 2.0, 1.0])
    matrix = random_matrix((1, 32, 32), augment, tuple(sizes), rng())
    for voxels in np.eye(3):
        assert np.linalg.norm((matrix @ voxels) * sizes) == pytest.approx(np.linalg.norm(voxels * sizes))


def test_zoom_leaves_single_slices_where_they_are():
    """Otherwise a slice would be taken from between slices."""
    augment = STILL.model_copy(update={"zoom": 0.5})
    matrix = random_matrix((1, 32, 32), augment, EVEN, rng())
    assert matrix[0, 0] == 1.0
    assert matrix[1, 1] == matrix[2, 2] != 1.0


def test_displacements_have_the_asked_deviation_at_the_points_and_are_smooth_between():
    """Random at a 3 x 3 grid, as in the paper; a field that is rough between points would tear cells apart."""
    augment = AugmentConfig(elastic_points=3)
    fields = np.stack([random_displacement((1, 65, 65), augment, rng(n))[0] for n in range(800)])
    corners = fields[:, ::32, ::32]
    assert corners.std(axis=0) == pytest.approx(1.0, abs=0.1)
    assert np.abs(np.diff(fields, axis=1)).max() < 0.5


def test_displacements_move_places_by_voxels_of_the_finest_axis():
    """Standard deviations are of space too: along thick slices they are fewer voxels."""
    augment = STILL.model_copy(update={"elastic_sigma": 10.0})
    still = random_places((9, 33, 33), STILL, EVEN, rng())
    moved = np.stack([random_places((9, 33, 33), augment, (5.0, 1.0, 1.0), rng(n)) - still for n in range(200)])
    assert moved[:, 0, 4, 16, 16].std() == pytest.approx(2.0, rel=0.2)
    assert moved[:, 1, 4, 16, 16].std() == pytest.approx(10.0, rel=0.2)


def test_places_beyond_a_lattice_are_its_nearest():
    """Labels are never mixed: a place between two ids has one of them."""
    block = np.arange(8, dtype=np.uint8).reshape(1, 1, 8)
    places = np.zeros((3, 1, 1, 3), np.float32)
    places[2, 0, 0] = [-1.0, 2.4, 9.0]
    assert nearest(block, places).ravel().tolist() == [0, 2, 7]


def test_values_between_voxels_are_linear_in_a_volume():
    """A ramp stays a ramp."""
    z, y, x = np.mgrid[:5, :6, :7].astype(np.float32)
    places = np.stack([np.full((1, 1, 1), v, np.float32) for v in (1.25, 2.5, 3.75)])
    assert between((z + 10 * y + 100 * x)[np.newaxis], places).item() == pytest.approx(1.25 + 25 + 375, rel=1e-5)


@pytest.mark.parametrize(
    ("window", "sampling", "expected"),
    [((1, 512, 512), EVEN, 10.0), ((32, 128, 128), EVEN, 31 / 16), ((9, 64, 64), (12.5, 1.0, 1.0), 63 / 16)],
)
def test_the_usual_displacement_is_the_paper_s_where_its_grid_has_room(window, sampling, expected):
    """An eighth of the distance between points at most: nothing folds."""
    assert deviation_of(window, AugmentConfig(), sampling) == pytest.approx(expected)
    places = random_places(window, STILL.model_copy(update={"elastic_sigma": "auto"}), sampling, rng(3))
    along = [np.diff(places[axis], axis=axis) for axis in range(3) if window[axis] > 1]
    assert min(steps.min() for steps in along) > 0

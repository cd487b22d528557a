import pickle

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.measure import label

from pipeline.core.targets import membranes
from pipeline.evaluation.segments import SliceSegments, VolumeSegments
from tests.evaluation.cases import blurred, by_scikit_image, disjoint, segmented_slices, segmented_volume

LIMITS = (40, 77, 110, 140)
HEIGHTS = (1, 2, 7, 100)


def streamed(engine, heights, cells, limits, height, *, mask):
    """(V_rand, split, merge) a limit, read `height` slices at a time."""
    segments = engine(limits, mask=mask)
    for z in range(0, len(heights), height):
        segments.add(heights[z : z + height], cells[z : z + height])
    return [(found.v_rand, found.split, found.merge) for found in segments.agreements()]


def whole_slices(heights, cells, limits, *, mask):
    """What `SliceSegments` must find, by scikit-image on the stack."""
    true = np.stack([label(cell, connectivity=1) for cell in cells]) if mask else cells
    return [by_scikit_image(disjoint(true, keep_zero=True), segmented_slices(heights, limit)) for limit in limits]


def whole_volume(heights, cells, limits, *, mask):
    """What `VolumeSegments` must find, by scikit-image on the volume."""
    true = label(cells, connectivity=1) if mask else cells.astype(np.int64)
    return [by_scikit_image(true, segmented_volume(heights, limit)) for limit in limits]


ENGINES = {"slices": (SliceSegments, whole_slices), "volume": (VolumeSegments, whole_volume)}


@pytest.fixture(scope="session")
def fib25(shared_data):
    """Real neurites whose shapes cross slices, 17 of them; the membranes blurred and noisy."""
    with h5py.File(shared_data / "volumes" / "fib25_medulla_train2_share_z000-174.h5") as file:
        ids = file["neuron_ids"][60:77, 20:180, 30:200]
    membrane = membranes(ids, "zyx")
    return blurred(membrane), np.where(membrane, 0, ids)


@pytest.fixture(scope="session")
def isbi2012(shared_data):
    """The paper's labels, a mask of cells, three slices."""
    cells = tifffile.imread(shared_data / "isbi2012" / "share_z00-19_labels.tif")[4:7]
    return blurred(cells == 0, sigma=2), (cells != 0).astype(np.uint8)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("data", "mask"), [("fib25", False), ("fib25", True), ("isbi2012", True)])
def test_streamed_scores_are_those_of_scikit_image_on_the_whole(request, data, mask, engine):
    """The promise of streaming, on real cells: the height of a slab changes nothing."""
    heights, cells = request.getfixturevalue(data)
    segments, whole = ENGINES[engine]
    expected = whole(heights, (cells != 0).astype(np.uint8) if mask else cells, LIMITS, mask=mask)
    assert all(v_rand < 0.9999 for v_rand, _, _ in expected[:2])  # not so easy that any rule would do
    assert max(split for _, split, _ in expected) > 0.02
    for height in HEIGHTS:
        found = streamed(segments, heights, cells, LIMITS, height, mask=mask)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@given(
    arrays(np.uint8, (6, 4, 5), elements=st.sampled_from([0, 3, 9])),
    arrays(np.uint64, (6, 4, 5), elements=st.sampled_from([0, 1, 2, 2**64 - 3])),
    st.integers(1, 6),
    st.booleans(),
)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # 0/0 in scikit-image
def test_any_shape_of_components_is_joined_across_slabs(heights, cells, height, mask):
    """Forks, rings and slices without a seed, at every slab height."""
    cells[:, 0, :2] = 1  # a pair at least
    cells = (cells != 0).astype(np.uint8) if mask else cells
    small = np.where(cells == 2**64 - 3, 3, cells).astype(np.int64)  # scikit-image's table is dense in ids
    for engine, whole in ENGINES.values():
        found = streamed(engine, heights, cells, (1, 5), height, mask=mask)
        np.testing.assert_allclose(found, whole(heights, small, (1, 5), mask=mask), rtol=0, atol=1e-12)


def test_a_fork_that_closes_in_the_last_slab_is_one_segment():
    """Two branches get two provisional ids; only the last slab tells that they are one, three slabs later."""
    heights = np.full((6, 5, 9), 9, np.uint8)
    heights[:, 2, 1], heights[:, 2, 7], heights[5, 2, 1:8] = 0, 0, 0
    cells = np.where(np.arange(9) < 4, 1, 2) * np.ones((6, 5, 9), dtype=int)
    open_fork = heights.copy()
    open_fork[5, 2, 4] = 9
    for height in (1, 2, 5):
        [(_, split, merge)] = streamed(VolumeSegments, heights, cells, [5], height, mask=False)
        assert (split, merge) == (0, pytest.approx(0.99, abs=0.01))
        [(_, split, merge)] = streamed(VolumeSegments, open_fork, cells, [5], height, mask=False)
        assert merge < 0.5


def test_what_is_kept_does_not_grow_with_voxels():
    """A terabyte has as many voxels as no machine; twenty more slabs of the same cells cost a few numbers each."""
    cells = np.where(np.arange(64) < 30, 1, 2) * np.ones((8, 64, 64), dtype=int)
    heights = np.where(np.isin(np.arange(64), (29, 30)), 9, 0).astype(np.uint8) * np.ones((8, 64, 64), np.uint8)
    for engine, most in ((SliceSegments, 0), (VolumeSegments, 1000)):
        segments, sizes = engine([5], mask=False), []
        for _ in range(3):
            for _ in range(20):
                segments.add(heights, cells)
            sizes.append(len(pickle.dumps(segments)))
        assert sizes[2] - sizes[1] <= 20 * most  # of 32,768 voxels
        assert [found.v_rand for found in segments.agreements()] == [1]


def test_slices_without_a_seed_are_one_segment_of_a_volume():
    """Nothing to grow from is not an error, and not as many segments as voxels."""
    heights = np.full((4, 5, 6), 9, np.uint8)
    cells = np.ones((4, 5, 6), dtype=int)
    assert streamed(VolumeSegments, heights, cells, [5], 3, mask=False) == [(1, 0, 0)]
    assert streamed(SliceSegments, heights, cells, [5], 3, mask=False) == [(1, 0, 0)]
    heights[:2] = 0
    [(_, split, merge)] = streamed(VolumeSegments, heights, cells, [5], 3, mask=False)
    assert (split, merge) == (1, 0)


def test_thinning_leaves_no_membrane():
    """A thick membrane where the truth has a thin one is no error of segmentation: the topology is right."""
    cells = np.ones((1, 20, 20), dtype=int)
    cells[..., 10:] = 2
    heights = np.zeros((1, 20, 20), np.uint8)
    heights[..., 6:14] = 9  # eight voxels thick
    heights[..., 9:11] = 12
    assert streamed(SliceSegments, heights, cells, [5], 1, mask=False) == [(1, 0, 0)]
    heights[0, 8, 6:14] = 0  # a gap one voxel wide
    [(v_rand, split, merge)] = streamed(SliceSegments, heights, cells, [5], 1, mask=False)
    assert (v_rand, split, merge) == (pytest.approx(2 / 3, abs=0.01), 0, pytest.approx(1))


def test_voxels_that_touch_at_an_edge_are_not_neighbours():
    """Four neighbours in a slice and six in a volume: a diagonal step is no way through a membrane."""
    heights = np.full((2, 2, 2), 9, np.uint8)
    heights[0, 0, 0], heights[1, 1, 0] = 0, 0
    cells = np.array([[[1, 1], [1, 1]], [[2, 2], [2, 2]]])
    assert streamed(VolumeSegments, heights, cells, [5], 1, mask=False) == [(1, 0, 0)]
    assert streamed(VolumeSegments, heights, cells, [5], 2, mask=False) == [(1, 0, 0)]

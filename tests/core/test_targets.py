import numpy as np
import pytest

from pipeline.core.targets import foreground, membranes


def _neighbours(place, shape, axes):
    for axis in ("zyx".index(name) for name in axes):
        for step in (-1, 1):
            other = list(place)
            other[axis] += step
            if 0 <= other[axis] < shape[axis]:
                yield tuple(other)


@pytest.fixture
def ids():
    """Few ids, so that many meet; near the end of their type."""
    return np.random.default_rng(1).integers(0, 4, (4, 6, 5)).astype(np.uint64) * 2**60


@pytest.mark.parametrize("axes", ["yx", "zyx"])
def test_membranes_are_where_instances_end(ids, axes):
    """The stated rule, against a loop over all voxels; ids near 2**64 must not be rounded."""
    expected = np.zeros(ids.shape, dtype=np.uint8)
    for place in np.ndindex(ids.shape):
        other = any(ids[n] not in (0, ids[place]) for n in _neighbours(place, ids.shape, axes))
        expected[place] = ids[place] == 0 or other
    assert np.array_equal(membranes(ids, axes), expected)


@pytest.mark.parametrize("axes", ["yx", "zyx"])
def test_foreground_parts_instances_that_touch_and_nothing_else(ids, axes):
    """An instance beside empty space keeps its outermost voxels."""
    expected = np.zeros(ids.shape, dtype=np.uint8)
    for place in np.ndindex(ids.shape):
        touches = any(ids[n] not in (0, ids[place]) for n in _neighbours(place, ids.shape, axes))
        expected[place] = ids[place] != 0 and not touches
    assert np.array_equal(foreground(ids, axes), expected)


def test_a_membrane_that_was_drawn_does_not_grow():
    """Labels of 0 between cells are the membrane; the cells beside it are not."""
    ids = np.array([[[1, 1, 0, 2, 2]]])
    assert membranes(ids).ravel().tolist() == [0, 0, 1, 0, 0]


def test_a_slice_by_itself_has_no_membrane_towards_the_next(ids):
    """At 50 nm a slice, what changes from one to the next is no membrane."""
    stack = np.stack([np.full((4, 4), 1), np.full((4, 4), 2)])
    assert membranes(stack, "yx").sum() == 0
    assert membranes(stack, "zyx").all()


def test_an_id_that_says_nothing_makes_no_membrane_beside_it():
    """What lies at the edge of what was labelled may well go on."""
    ids = np.array([[[7, 7, 99, 8, 8]]])
    assert membranes(ids, "yx", ignore=99).ravel().tolist() == [0, 0, 0, 0, 0]
    assert membranes(ids, "yx").ravel().tolist() == [0, 1, 1, 1, 0]

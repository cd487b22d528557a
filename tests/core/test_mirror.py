from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.geometry.box import Box
from pipeline.core.geometry.mirror import mirrored_ends, mirrored_index, shown, spread
from tests.core.core_cases import triples


def span(box):
    """Start and stop along each axis."""
    return list(zip(box.start, box.stop, strict=True))


@given(st.integers(1, 40), st.integers(0, 200), st.integers(0, 200))
def test_mirroring_is_numpys_reflect_for_any_pad(extent, before, after):
    """The promise defines the border by numpy.pad(mode="reflect"), bouncing where a volume is thinner than the pad."""
    expected = np.pad(np.arange(extent), (before, after), mode="reflect")
    np.testing.assert_array_equal(mirrored_index(-before, extent + after, extent), expected)


@given(st.integers(1, 12), st.integers(-60, 60), st.integers(1, 30))
def test_mirroring_is_global_whatever_part_is_asked_for(extent, start, length):
    """Two tiles that read the same place beyond the volume must see the same values there."""
    whole = np.pad(np.arange(extent), (60, 100), mode="reflect")
    np.testing.assert_array_equal(
        mirrored_index(start, start + length, extent), whole[start + 60 : start + 60 + length]
    )


@st.composite
def views(draw):
    """A small volume, and a box that shows at least a voxel of it or of its mirror images."""
    volume, start, shape = draw(triples(1, 7)), draw(triples(-12, 12)), draw(triples(1, 14))
    return volume, Box(start, tuple(a + n for a, n in zip(start, shape, strict=True)))


@given(views())
def test_a_box_beyond_the_volume_shows_what_padding_the_whole_would(view):
    """A worker reads and spreads a window without ever seeing the whole volume."""
    volume, box = view
    array = np.random.default_rng(0).integers(0, 255, (2, *volume))
    padded = np.pad(array, [(0, 0), *[(30, 30)] * 3], mode="reflect")
    expected = padded[(slice(None), *(slice(a + 30, b + 30) for a, b in span(box)))]
    inside, indices = shown(box, volume)
    np.testing.assert_array_equal(spread(array[(slice(None), *inside.within(Box.of_shape(volume)))], indices), expected)


@given(views())
def test_the_least_box_inside_the_volume_is_read(view):
    """Halos are read from storage: every voxel beyond the need costs, and none may lie outside."""
    volume, box = view
    inside, indices = shown(box, volume)
    assert Box.of_shape(volume).contains(inside)
    for index, extent in zip(indices, inside.shape, strict=True):
        assert (index.min(), index.max()) == (0, extent - 1)


def test_a_box_inside_the_volume_is_not_copied():
    """Most windows lie inside; a copy would double a tile's memory."""
    array = np.zeros((1, 4, 5, 6))
    inside, indices = shown(Box((1, 1, 1), (4, 5, 6)), (8, 8, 8))
    part = array[:, :3, :4, :5]
    assert inside == Box((1, 1, 1), (4, 5, 6))
    assert spread(part, indices) is part


@given(st.integers(-60, 60), st.integers(1, 50), st.integers(1, 12))
def test_the_ends_of_what_is_shown_are_found_without_listing_it(start, length, extent):
    """A volume of 10^7 slices costs a plan no more than one of ten."""
    index = mirrored_index(start, start + length, extent)
    assert mirrored_ends(start, start + length, extent) == (index.min(), index.max() + 1)


@pytest.mark.parametrize("extent", range(1, 7))
def test_the_ends_of_every_short_span_are_those_of_its_voxels(extent):
    """Where a span ends at a turn, or a voxel before or behind it, all is decided by one comparison."""
    for start, length in product(range(-15, 20), range(1, 14)):
        index = mirrored_index(start, start + length, extent)
        assert mirrored_ends(start, start + length, extent) == (index.min(), index.max() + 1)

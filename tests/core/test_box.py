from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.geometry.box import Box, Span, per_axis, round_up, triple, widened
from tests.core.core_cases import triples


@st.composite
def boxes(draw):
    """Boxes of up to 6 voxels an axis, some empty, anywhere around the origin."""
    start, shape = draw(triples(-5, 5)), draw(triples(0, 6))
    return Box(start, tuple(a + n for a, n in zip(start, shape, strict=True)))


def voxels(box):
    """The voxels of a box, one by one: what every operation on boxes must agree with."""
    return set(product(*(range(a, b) for a, b in zip(box.start, box.stop, strict=True))))


@given(boxes())
def test_the_voxels_of_a_box_are_counted(box):
    """Costs and verification count voxels by this product."""
    assert box.voxels == len(voxels(box))


@given(boxes(), boxes())
def test_a_clipped_box_holds_the_voxels_that_both_share(box, other):
    """The last tile of every axis is clipped to the volume; a voxel too many would be written twice."""
    shared = voxels(box) & voxels(other)
    assert voxels(box.clipped(other)) == shared
    assert box.overlaps(other) == bool(shared)


@given(boxes(), boxes())
def test_a_box_contains_another_when_it_has_all_its_voxels(box, other):
    """Grid properties are stated with it."""
    if other.voxels:
        assert box.contains(other) == (voxels(other) <= voxels(box))


@given(boxes(), triples(1, 4))
def test_splitting_partitions_a_box_in_order(box, step):
    """Cores are split into slabs and write units: none may be missed, doubled, or out of z order."""
    parts = [part for part in box.split(step) if part.voxels]
    assert sorted(voxel for part in parts for voxel in voxels(part)) == sorted(voxels(box))
    assert [part.start for part in parts] == sorted(part.start for part in parts)
    assert all(n <= s for part in parts for n, s in zip(part.shape, step, strict=True))


@given(st.tuples(*[st.integers(-5, 5)] * 4))
def test_spans_are_clipped_to_what_both_share_and_a_hull_holds_both(ends):
    """Windows end where the volume does; a node with two readers is computed as far as either of them looks."""
    a, b, c, d = ends
    one, other = Span(min(a, b), max(a, b)), Span(min(c, d), max(c, d))
    assert set(range(*one.clipped(other))) == set(range(*one)) & set(range(*other))
    assert one.hull(other) == (min(ends), max(ends))


def test_a_span_grows_at_both_ends():
    """What an output needs of its input reaches as far behind it as before."""
    assert Span(4, 9).grown(2) == Span(2, 11)


@given(triples(1, 6), triples(0, 5), triples(1, 6))
def test_slices_within_a_frame_select_the_box(start, offset, shape):
    """A slab is cut from its tile's array by these slices; a frame need not begin at the origin."""
    inner_start = tuple(a + o for a, o in zip(start, offset, strict=True))
    inner = Box(inner_start, tuple(a + n for a, n in zip(inner_start, shape, strict=True)))
    z, y, x = np.meshgrid(*(np.arange(a, a + 12) for a in start), indexing="ij")
    frame = Box(start, tuple(a + 12 for a in start))
    found = inner.within(frame)
    assert set(zip(z[found].flat, y[found].flat, x[found].flat, strict=True)) == voxels(inner)


@given(st.integers(0, 10**12), st.integers(1, 10**6))
def test_rounding_up_gives_the_least_multiple(value, multiple):
    """Halos and extended volumes are rounded up to the stride: less is a seam, more is waste."""
    found = round_up(value, multiple)
    assert found % multiple == 0
    assert 0 <= found - value < multiple


def test_a_box_names_its_axes():
    """Errors name tiles by their boxes, and z, y, x must not be guessed."""
    assert str(Box((0, 8, 16), (4, 12, 20))) == "z 0:4, y 8:12, x 16:20"


def test_equal_boxes_are_one_key():
    """The sink keeps begun units by their boxes."""
    assert len({Box.of_shape((1, 2, 3)), Box((0, 0, 0), (1, 2, 3))}) == 1


@given(boxes(), triples(-5, 5))
def test_a_moved_box_holds_each_voxel_so_far_on(box, offset):
    """A region's own coordinates become the volume's by it."""
    assert voxels(box.moved(offset)) == {tuple(a + o for a, o in zip(v, offset, strict=True)) for v in voxels(box)}


@given(boxes())
def test_a_box_is_made_of_its_spans(box):
    """Windows are known an axis at a time: first voxel and stop."""
    assert Box.of_spans(zip(box.start, box.stop, strict=True)) == box


@pytest.mark.parametrize(
    ("extent", "middle"),
    [
        (2, Box((4, 11, 21), (6, 12, 23))),
        (3, Box((3, 11, 20), (6, 12, 23))),
        (9, Box((2, 11, 20), (8, 12, 24))),
    ],
)
def test_the_middle_of_a_box_leaves_as_much_on_both_sides(extent, middle):
    """An image's look is judged there; an axis that is shorter than what is asked for is taken whole."""
    assert Box((2, 11, 20), (8, 12, 24)).middle(extent) == middle


def test_corners_of_a_box_are_its_first_and_last_voxels():
    """What an image shows at its ends; where two corners are one part of an axis, it is looked at once."""
    assert Box((10, 20, 30), (15, 21, 33)).corners(2) == [
        Box((10, 20, 30), (12, 21, 32)),
        Box((10, 20, 31), (12, 21, 33)),
        Box((13, 20, 30), (15, 21, 32)),
        Box((13, 20, 31), (15, 21, 33)),
    ]


@pytest.mark.parametrize(
    ("most", "step"),
    [
        (1, (4, 5, 6)),  # a unit alone may be more
        (4 * 5 * 6 * 2 * 3 - 1, (4, 5, 12)),
        (4 * 5 * 6 * 2 * 3, (4, 5, 18)),
        (4 * 5 * 24 * 2 * 2 - 1, (4, 5, 24)),
        (4 * 5 * 24 * 2 * 2, (4, 10, 24)),
        (4 * 10 * 24 * 2 * 3, (12, 10, 24)),
        (10**9, (12, 10, 24)),
    ],
)
def test_units_are_read_together_as_far_as_bytes_allow(most, step):
    """A small chunk at a time is slow, and a row of large ones fills the memory: along x first, two bytes a voxel."""
    assert widened((4, 5, 6), (9, 10, 20), 2, most) == step


def test_units_larger_than_the_volume_count_as_what_they_hold():
    """A chunk of ten slices around a volume of one is a slice: eight of them along x may be read at once."""
    assert widened((10, 8, 8), (1, 8, 64), 1, 8 * 64) == (10, 8, 64)


@given(triples(-5, 5), triples(-5, 5))
def test_a_rule_an_axis_gives_a_plain_tuple_in_order(one, other):
    """Plans are stored, digested and pickled as tuples: no class of our own may stand in them."""
    found = per_axis(lambda a, b: a - b, one, other)
    assert type(found) is tuple
    assert found == (one[0] - other[0], one[1] - other[1], one[2] - other[2])


@pytest.mark.parametrize("values", [(), (1, 2), (1, 2, 3, 4)])
def test_a_triple_has_three_values(values):
    """A place with an axis too few or too many is refused where it arises, not where it is read."""
    with pytest.raises(ValueError, match="values to unpack"):
        triple(values)

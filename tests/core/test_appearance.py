import json
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.appearance import BOX_VOXELS, PERCENTS, Appearance, Channel, appearance_of, ranges, sample_boxes
from pipeline.core.geometry.box import Box
from pipeline.core.normalization import Normalization

EXTENTS = st.tuples(*[st.integers(1, 700)] * 3)
CHUNKS = st.tuples(*[st.integers(1, 300)] * 3)


def chunks_touched(box, chunks):
    """How many chunks a box takes voxels of."""
    ends = zip(box.start, box.stop, chunks, strict=True)
    return prod((b - 1) // c - a // c + 1 for a, b, c in ends)


@given(EXTENTS, CHUNKS, EXTENTS)
def test_boxes_of_a_sample_lie_inside_its_frame_and_cost_a_few_requests(shape, chunks, start):
    """A plan of a remote volume must not read it."""
    frame = Box(start, tuple(a + n for a, n in zip(start, shape, strict=True)))
    boxes = sample_boxes(frame, chunks, 16)
    assert len(boxes) <= 16
    assert all(frame.contains(box) and box.voxels for box in boxes)
    assert sum(box.voxels for box in boxes) <= 16 * BOX_VOXELS
    assert boxes == sample_boxes(frame, chunks, 16)
    if start == (0, 0, 0):
        assert all(chunks_touched(box, chunks) <= 8 for box in boxes)


@given(EXTENTS, st.tuples(st.integers(16, 128), st.integers(64, 256), st.integers(64, 256)))
def test_where_chunks_are_large_a_box_is_one_request(shape, chunks):
    """Sixteen requests, then, for any volume whose boxes lie anywhere."""
    boxes = sample_boxes(Box.of_shape((4000, 4000, 4000)), chunks, 16)
    assert [chunks_touched(box, chunks) for box in boxes] == [1] * 16


def test_a_sample_leaves_no_large_part_of_a_volume_out():
    """A corner that is empty must not speak for the whole: each eighth of each axis has its box."""
    boxes = sample_boxes(Box.of_shape((4096, 8192, 8192)), (64, 64, 64), 16)
    for axis, extent in enumerate((4096, 8192, 8192)):
        assert {8 * box.start[axis] // extent for box in boxes} == set(range(8))


def test_boxes_of_a_sample_lie_at_even_shares_of_their_frame():
    """Halves of quarters along z; 0, 1/2, 1/4, 3/4 along y and 0, 1/3, 2/3, 1/9 along x, of where a box may begin."""
    boxes = sample_boxes(Box((10, 20, 30), (110, 220, 330)), (1, 1, 1), 4)
    assert {box.shape for box in boxes} == {(2, 2, 2)}
    assert [box.start for box in boxes] == [(22, 20, 30), (47, 119, 129), (71, 69, 229), (96, 169, 63)]


@pytest.mark.parametrize(
    ("shape", "chunks", "extent"),
    [
        ((999, 999, 999), (64, 64, 64), (16, 64, 64)),
        ((999, 999, 999), (3, 99, 20), (6, 104, 40)),
        ((999, 999, 999), (99, 20, 99), (16, 40, 64)),
        ((1, 9999, 9999), (1, 999, 999), (1, 256, 256)),
        ((999, 50, 999), (64, 64, 64), (16, 50, 64)),
        ((999, 999, 50), (64, 64, 64), (16, 64, 50)),
    ],
)
def test_boxes_are_deep_where_there_is_depth_and_of_two_chunks_an_axis_at_most(shape, chunks, extent):
    """65,536 voxels, so that a percentile of one says something, and as few requests as hold them."""
    assert {box.shape for box in sample_boxes(Box.of_shape(shape), chunks, 16)} == {extent}


def test_a_volume_of_as_many_boxes_as_are_wanted_is_taken_whole():
    """One box more, and some lie apart."""
    whole = sample_boxes(Box.of_shape((256, 64, 64)), (64, 64, 64), 16)
    assert [box.start[0] for box in whole] == list(range(0, 256, 16))
    assert len({box.start[0] % 16 for box in sample_boxes(Box.of_shape((257, 64, 64)), (64, 64, 64), 16)}) > 1


def test_a_small_volume_is_its_own_sample():
    """All of it is as cheap as a part."""
    boxes = sample_boxes(Box.of_shape((24, 80, 80)), (8, 16, 16), 16)
    assert sum(box.voxels for box in boxes) == 24 * 80 * 80 or len(boxes) == 16
    assert sample_boxes(Box.of_shape((1, 30, 20)), (1, 30, 20), 16) == [Box((0, 0, 0), (1, 30, 20))]


def test_huge_chunks_are_decoded_seldom():
    """A volume that is one chunk of a gigabyte would be decoded sixteen times."""
    assert len(sample_boxes(Box.of_shape((1024, 1024, 1024)), (1024, 1024, 1024), 16)) == 2


def test_percentiles_are_those_of_all_boxes_and_reach_is_from_the_darkest_to_the_brightest():
    """A channel each, after normalisation."""
    random = np.random.default_rng(0)
    parts = [random.integers(0, 1000, (2, 4, 20, 20)).astype(np.uint16) for _ in range(3)]
    parts[1] += 500
    rule = Normalization("percentile", 100.0, 0.01)
    found = appearance_of(parts, rule, dtype="uint16")
    for c, channel in enumerate(found.channels):
        values = [(part[c].astype(np.float64) - 100) * 0.01 for part in parts]
        assert channel.percentiles == pytest.approx(np.percentile(np.stack(values), PERCENTS), abs=1e-5)
        assert channel.reach[0] == pytest.approx(min(np.percentile(v, 1) for v in values), abs=1e-5)
        assert channel.reach[1] == pytest.approx(max(np.percentile(v, 99) for v in values), abs=1e-5)
        assert channel.stored(rule) == pytest.approx(np.percentile(np.stack(parts)[:, c], (1, 99)), abs=1e-2)
    assert found.limits == (min(p.min() for p in parts), max(p.max() for p in parts))


def test_boxes_of_one_value_are_left_out_of_the_reach_where_others_are_not():
    """Empty space around the tissue is no dark tissue; where all is empty, it is what there is."""
    tissue = np.linspace(100, 200, 256).reshape(1, 4, 8, 8)
    empty = np.zeros((1, 4, 8, 8))
    low, high = np.percentile(tissue, (1, 99))
    assert appearance_of([empty, tissue], Normalization(), dtype="float64").channels[0].reach == (low, high)
    alone = appearance_of([empty, empty + 3], Normalization(), dtype="float64")
    assert alone.channels[0].reach == (0, 3)
    assert not alone.is_flat
    assert appearance_of([empty, empty], Normalization(), dtype="float64").is_flat


def test_values_that_are_not_finite_count_for_nothing():
    """A mask of NaN around the tissue is no appearance; nothing but NaN is none."""
    part = np.full((1, 4, 8, 8), np.nan, dtype=np.float32)
    assert appearance_of([part], Normalization(), dtype="float32") is None
    part[:, :2] = np.linspace(0, 1, 128).reshape(1, 2, 8, 8)
    part[0, 3, 0, 0] = np.inf
    found = appearance_of([part], Normalization(), dtype="float32")
    assert found.limits == (0, 1)
    assert found.channels[0].percentiles[2] == pytest.approx(0.5)


def test_what_is_left_of_rounding_is_shown_as_0_and_a_small_range_as_it_is():
    """Nobody reads -6.94e-18 as the 0 that it was to be."""
    for ends, shown in (
        ((-6.94e-18, 0.443), "0 to 0.443"),
        ((1e-18, 3e-18), "1e-18 to 3e-18"),
        ((-1, 0.25), "-1 to 0.25"),
    ):
        assert ranges(Appearance("float32", ends, (Channel(ends, ends),), 1)) == shown


def test_an_appearance_round_trips_through_json():
    """It lies in checkpoints and plans."""
    found = appearance_of(
        [np.arange(64, dtype=np.uint8).reshape(1, 4, 4, 4)],
        Normalization(),
        dtype="uint8",
        voxel_size_nm=(10.0, 5.0, 5.0),
    )
    assert Appearance.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    "change",
    [
        {"limits": [0, float("nan")]},
        {"channels": []},
        {"channels": [{"percentiles": [1, 2], "reach": [0, 1]}]},
        {"voxel_size_nm": [0, 1, 1]},
    ],
)
def test_what_is_no_appearance_is_refused(change):
    """A checkpoint's metadata may say anything."""
    found = appearance_of([np.arange(64, dtype=np.uint8).reshape(1, 4, 4, 4)], Normalization(), dtype="uint8")
    with pytest.raises((ValueError, KeyError, TypeError)):
        Appearance.from_dict(found.to_dict() | change)

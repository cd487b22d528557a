import numpy as np
import pytest

from pipeline.core.geometry.box import Box
from pipeline.core.targets import foreground, membranes
from pipeline.errors import ConfigError
from pipeline.evaluation.rule import Rule
from pipeline.evaluation.truth import Truth
from tests.evaluation.cases import cubes, stored


def slab_by_slab(truth, frame, height):
    """The cells of a box, read some slices at a time."""
    boxes = frame.split((height, *frame.shape[1:]))
    return np.concatenate([truth.read(box, frame)[0] for box in boxes])


@pytest.mark.parametrize("height", [1, 5, 12])
@pytest.mark.parametrize("neighbours", ["yx", "zyx"])
def test_a_membrane_between_two_slabs_is_found(tmp_path, neighbours, height):
    """Cubes end every eight slices: a slab read without its neighbours would miss the membranes at its faces."""
    ids = cubes()
    truth = Truth(stored(tmp_path, "labels", ids), Rule(neighbours=neighbours))
    found = slab_by_slab(truth, Box.of_shape(ids.shape), height)
    assert np.array_equal(found, np.where(membranes(ids, neighbours), 0, ids))
    assert (found[8] == 0).all() == (neighbours == "zyx")


def test_a_box_has_the_truth_of_its_crop(tmp_path):
    """So a held-out part scores the same, stored by itself or within the whole."""
    ids, box = cubes(), Box((3, 4, 5), (8, 20, 19))
    crop = ids[box.within(Box.of_shape(ids.shape))]
    rule = Rule(neighbours="zyx")
    found = slab_by_slab(Truth(stored(tmp_path, "whole", ids), rule), box, 2)
    alone = slab_by_slab(Truth(stored(tmp_path, "crop", crop), rule), Box.of_shape(crop.shape), 5)
    assert np.array_equal(found, alone)
    assert found[-1].any()  # slice 8, where other cubes begin, is outside


def test_foreground_keeps_the_voxels_that_meet_nothing(tmp_path):
    """A nucleus by itself ends at its own last voxel; only two that touch are parted."""
    ids = cubes()
    ids[:, :8] = 0
    truth = Truth(stored(tmp_path, "labels", ids), Rule(predicts="foreground"))
    found = slab_by_slab(truth, Box.of_shape(ids.shape), 4)
    assert np.array_equal(found != 0, foreground(ids, "yx") != 0)
    assert found[0, 8, 2] == ids[0, 8, 2]


def test_a_mask_says_itself_what_a_cell_is(tmp_path):
    """ISBI 2012's labels are 0 and 255; neighbours and ids play no part."""
    mask = np.uint8(255) * (np.random.default_rng(0).random((4, 6, 7)) < 0.6)
    truth = Truth(stored(tmp_path, "labels", mask), Rule(labels_are="mask", neighbours="zyx"))
    assert np.array_equal(slab_by_slab(truth, Box.of_shape(mask.shape), 3), mask == 255)


def test_ignored_voxels_do_not_count(tmp_path):
    """Unlabelled parts are neither membrane nor cell; ids near the end of uint64 mark them in some datasets."""
    ids = cubes().astype(np.uint64)
    ids[2:5, 3:9, 4:7] = unknown = 2**64 - 3
    box = Box.of_shape(ids.shape)
    cells, counted = Truth(stored(tmp_path, "labels", ids), Rule(ignore=unknown)).read(box, box)
    assert np.array_equal(counted, ids != np.uint64(unknown))
    assert not cells[~counted].any()


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((3, 4, 5), np.float32), "dtype float32"),
        (np.zeros((2, 3, 4, 5), np.uint8), "2 channels"),
        (np.zeros((3, 4, 5), bool), "Set labels_are to 'mask'"),
    ],
)
def test_labels_that_cannot_be_ids_are_refused(tmp_path, array, told):
    """An image in place of its labels would be a million instances."""
    with pytest.raises(ConfigError, match=told):
        Truth(stored(tmp_path, "labels", array), Rule())


@pytest.mark.parametrize("option", ["predicts", "labels_are", "neighbours", "segments"])
def test_an_unknown_option_is_refused_by_its_name(option):
    """A misspelt 'volumes' must not quietly mean slices."""
    with pytest.raises(ConfigError, match=f"{option} is 'volumes'"):
        Rule(**{option: "volumes"})

import json

import numpy as np
import pytest

from pipeline.core.geometry.box import Box
from pipeline.core.targets import membranes
from pipeline.errors import ConfigError
from pipeline.evaluation import evaluation
from pipeline.evaluation.evaluation import THRESHOLDS, evaluate
from pipeline.evaluation.rule import Rule
from tests.evaluation.cases import blurred, by_scikit_image, cubes, disjoint, segmented_slices, segmented_volume, stored

IDS = cubes()
MEMBRANE = membranes(IDS, "yx")
SLICES, VOLUME = Rule(), Rule(neighbours="zyx", segments="volume")


@pytest.fixture
def labels(tmp_path):
    """Eighteen cubes, stored."""
    return stored(tmp_path, "labels", IDS)


def test_the_truth_itself_scores_full_marks(tmp_path, labels):
    """Anything less would be an error of the measure."""
    for rule in (SLICES, VOLUME):
        truth = membranes(IDS, rule.neighbours)
        found = evaluate(stored(tmp_path, "prediction", 255 * truth), labels, rule, thresholds=(0.1, 0.5, 0.9))
        assert (found.v_rand.at, found.v_rand.best, found.v_rand.threshold) == (1, 1, 0.5)
        assert (found.vi.at, found.vi.best) == (0, 0)
        assert (found.pixels.auc, found.pixels.dice.at, found.pixels.error.at) == (1, 1, 0)


def test_a_gap_in_a_membrane_lowers_the_score(tmp_path, labels):
    """The negative control: two cells joined through one missing voxel in each slice, almost no pixel error."""
    prediction = 255 * MEMBRANE
    prediction[:, 3, 7:9] = 0
    found = evaluate(stored(tmp_path, "prediction", prediction), labels, SLICES)
    assert found.v_rand.best < 0.95
    assert found.least_vi.merge > 0.1
    assert found.least_vi.split == 0
    assert found.pixels.dice.at > 0.98


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("slices_at_once", [None, 1, 5])
def test_every_threshold_scores_as_scikit_image_scores_the_whole(tmp_path, labels, dtype, slices_at_once):
    """From stores to figures, slab by slab, on each side of the quantisation."""
    levels = blurred(MEMBRANE)
    values = levels if dtype == "uint8" else (levels / 255).astype(np.float32)
    prediction = stored(tmp_path, "prediction", values)
    for rule in (SLICES, VOLUME):
        found = evaluate(prediction, labels, rule, slices_at_once=slices_at_once)
        assert [scores.threshold for scores in found.segments] == list(THRESHOLDS)
        cells = np.where(membranes(IDS, rule.neighbours), 0, IDS)
        heights = levels if dtype == "uint8" else np.floor(values.astype(np.float64) * 4000).astype(np.uint16)
        scale = 255 if dtype == "uint8" else 4000
        for scores in found.segments:
            limit = np.ceil(scores.threshold * scale - 1e-9)
            whole = segmented_slices if rule.segments == "slices" else segmented_volume
            true = disjoint(cells, keep_zero=True) if rule.segments == "slices" else cells.astype(np.int64)
            expected = by_scikit_image(true, whole(heights, limit))
            assert (scores.v_rand, scores.split, scores.merge) == pytest.approx(expected, abs=1e-12)


def test_foreground_is_one_minus_membrane(tmp_path):
    """The same segments and the same order of voxels, whichever of the two the network was taught."""
    mask = stored(tmp_path, "cells", 1 - MEMBRANE)
    levels = blurred(MEMBRANE)
    membrane = evaluate(stored(tmp_path, "membrane", levels), mask, Rule(labels_are="mask"), at=0.5)
    rule = Rule(predicts="foreground", labels_are="mask")
    foreground = evaluate(stored(tmp_path, "foreground", 255 - levels), mask, rule, at=0.5)
    assert foreground.pixels.auc == pytest.approx(membrane.pixels.auc, abs=1e-12)
    assert foreground.pixels.positives == membrane.pixels.negatives
    assert foreground.pixels.error.at == membrane.pixels.error.at
    # 255 times these is no byte, so that none is on the threshold: below it and at least its complement are the same
    twins = zip(membrane.segments, reversed(foreground.segments), strict=True)
    for one, other in (pair for pair in twins if pair[0].threshold in (0.1, 0.3, 0.5, 0.7, 0.9)):
        assert (one.v_rand, one.split, one.merge) == (other.v_rand, other.split, other.merge)


@pytest.mark.parametrize(("predicts", "joined"), [("membrane", False), ("foreground", True)])
def test_a_voxel_on_the_threshold_is_in_the_class(tmp_path, predicts, joined):
    """At least 0.5 is membrane, and at least 0.5 is foreground: voxels and segments must agree on which."""
    values = MEMBRANE.astype(np.float32) if predicts == "membrane" else 1 - MEMBRANE.astype(np.float32)
    values[:, 3, 7:9] = 0.5
    mask = stored(tmp_path, "cells", 1 - MEMBRANE)
    found = evaluate(stored(tmp_path, "prediction", values), mask, Rule(predicts, "mask"), thresholds=(0.5,))
    assert (found.v_rand.at < 0.95) == joined
    assert (found.pixels.error.at > 0) == joined


def test_a_box_is_scored_as_its_crop(tmp_path, labels):
    """A held-out part of a volume that was trained on elsewhere, without copying it."""
    box = Box((2, 3, 1), (11, 22, 24))
    inside = box.within(Box.of_shape(IDS.shape))
    levels = blurred(MEMBRANE)
    crops = stored(tmp_path, "crop", levels[inside]), stored(tmp_path, "crop-labels", IDS[inside])
    for rule in (SLICES, VOLUME):
        whole = evaluate(stored(tmp_path, "prediction", levels), labels, rule, box=box)
        crop = evaluate(*crops, rule)
        assert (whole.pixels, whole.segments, whole.box) == (crop.pixels, crop.segments, box)


def test_ignored_voxels_change_nothing(tmp_path):
    """What a network says where nobody looked is neither right nor wrong."""
    ids = IDS.copy()
    ids[4:6] = 999
    levels = blurred(MEMBRANE)
    other = levels.copy()
    other[4:6] = 255 - other[4:6]
    stores = [stored(tmp_path, name, array) for name, array in (("one", levels), ("other", other))]
    labels = stored(tmp_path, "labels", ids)
    one, two = (evaluate(store, labels, Rule(ignore=999)) for store in stores)
    assert (one.pixels, one.segments) == (two.pixels, two.segments)
    assert one.pixels.positives + one.pixels.negatives == 10 * 24 * 24
    one, two = (evaluate(store, labels, Rule()) for store in stores)
    assert one.pixels != two.pixels


def test_each_voxel_is_told_once(tmp_path, labels):
    """A bar that ends at 97 % looks like a fault."""
    told = []
    evaluate(stored(tmp_path, "prediction", blurred(MEMBRANE)), labels, slices_at_once=5, on_advance=told.append)
    assert told == [5 * 576, 5 * 576, 2 * 576]


def test_slabs_are_whole_chunks_within_the_memory(tmp_path, labels, monkeypatch):
    """A chunk that is cut by two slabs is decoded twice."""
    monkeypatch.setattr(evaluation, "SLAB_VOXELS", 11 * 576)
    told = []
    evaluate(stored(tmp_path, "prediction", blurred(MEMBRANE)), labels, on_advance=told.append)
    assert told == [8 * 576, 4 * 576]


def test_the_asked_threshold_is_always_among_the_scores(tmp_path, labels):
    """`at` is what a user would cut at; it need not be one of the sweep's."""
    found = evaluate(stored(tmp_path, "prediction", blurred(MEMBRANE)), labels, thresholds=(0.6,), at=0.35)
    assert [scores.threshold for scores in found.segments] == [0.35, 0.6]
    assert found.at_threshold.threshold == 0.35


def test_an_evaluation_is_json_and_rows(tmp_path, labels):
    """A program reads the one and a person the other; both say at which threshold."""
    found = evaluate(stored(tmp_path, "prediction", blurred(MEMBRANE)), labels)
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["segments"][4]["v_rand"] == found.at_threshold.v_rand == content["v_rand"]["at"]
    assert content["rule"]["segments"] == "slices"
    rows = dict(found.rows())
    assert rows["Dice of membrane"].startswith(f"{found.pixels.dice.at:.4f} at 0.5; best {found.pixels.dice.best:.4f}")
    assert f"best {found.v_rand.best:.4f} at {found.v_rand.threshold:g}" in rows["V_rand, thinned, by slices"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"box": Box((0, 0, 0), (13, 24, 24))}, "z 0:13"),
        ({"box": Box((3, 0, 0), (3, 24, 24))}, "holds a voxel"),
        ({"thresholds": (0.0, 0.5)}, "above 0 and below 1"),
        ({"at": 1.5}, "above 0 and below 1"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, labels, options, told):
    """Before a voxel is read, and by what was asked."""
    with pytest.raises(ConfigError, match=told):
        evaluate(stored(tmp_path, "prediction", 255 * MEMBRANE), labels, **options)


def test_other_shapes_are_refused_with_both(tmp_path, labels):
    """Mostly another level of the pyramid: the two numbers tell which."""
    with pytest.raises(ConfigError) as refused:
        evaluate(stored(tmp_path, "prediction", np.zeros((12, 24, 23), np.uint8)), labels)
    assert "(12, 24, 23)" in str(refused.value)
    assert "(12, 24, 24)" in str(refused.value)


@pytest.mark.parametrize("value", [0, 5])
def test_labels_of_one_kind_are_refused(tmp_path, value):
    """All membrane or all cell: AUC would divide by zero, and the labels are surely not meant so."""
    labels = stored(tmp_path, "labels", np.full(IDS.shape, value, np.uint8))
    with pytest.raises(ConfigError, match=r"scores need both.*labels_are \('mask'\)"):
        evaluate(stored(tmp_path, "prediction", 255 * MEMBRANE), labels, Rule(labels_are="mask"))

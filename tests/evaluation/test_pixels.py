import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.pixels import PixelCounts

SCALE = 20


def counted(levels, positive, scale=SCALE, parts=3):
    """Counts of voxels that arrive in parts."""
    counts = PixelCounts(scale)
    for some, truth in zip(np.array_split(levels, parts), np.array_split(positive, parts), strict=True):
        counts.add(some, truth)
    return counts


def by_definition(levels, positive, cut):
    """Dice, IoU and error from the four counts."""
    said = levels >= cut
    tp, fp, fn = (said & positive).sum(), (said & ~positive).sum(), (~said & positive).sum()
    return 2 * tp / (2 * tp + fp + fn), tp / (tp + fp + fn), (fp + fn) / len(levels)


@st.composite
def voxels(draw):
    """Levels, and which are in the class: one at least is, and one is not."""
    n = draw(st.integers(2, 60))
    levels = draw(st.lists(st.integers(0, SCALE), min_size=n, max_size=n))
    positive = draw(st.lists(st.booleans(), min_size=n - 2, max_size=n - 2))
    return np.array(levels, dtype=np.uint8), np.array([True, False, *positive])


@given(voxels(), st.integers(0, SCALE))
def test_scores_are_those_of_the_definitions(case, cut):
    """Sums of a histogram must be what counting each voxel at each threshold gives."""
    levels, positive = case
    found = counted(levels, positive).scores(cut)
    everywhere = np.array([by_definition(levels, positive, c) for c in range(SCALE + 1)])
    readings = found.dice, found.iou, found.error
    assert [reading.at for reading in readings] == pytest.approx(everywhere[cut], abs=1e-15)
    best = [everywhere[:, 0].max(), everywhere[:, 1].max(), everywhere[:, 2].min()]
    assert [reading.best for reading in readings] == pytest.approx(best, abs=1e-15)
    for number, reading in enumerate(readings):
        place = round(reading.threshold * SCALE)
        assert everywhere[place, number] == pytest.approx(best[number], abs=1e-15)


@given(voxels())
def test_auc_is_the_share_of_pairs_in_the_right_order(case):
    """The rank definition, a loop over all pairs; ties count half."""
    levels, positive = case
    inside, outside = (levels[which].astype(int) for which in (positive, ~positive))
    order = np.sign(inside[:, None] - outside[None, :])
    assert counted(levels, positive).scores(10).auc == pytest.approx(((order + 1) / 2).mean(), abs=1e-12)


def test_a_perfect_prediction_is_best_where_it_was_asked():
    """Every threshold is as good; 1/255 would look like a finding."""
    positive = np.random.default_rng(0).random(1000) < 0.3
    found = counted(np.where(positive, 255, 0), positive, 255).scores(128)
    assert (found.auc, found.dice.at, found.iou.at, found.error.at) == (1, 1, 1, 0)
    assert {found.dice.threshold, found.iou.threshold, found.error.threshold} == {128 / 255}


def test_a_reversed_prediction_has_no_area():
    """The negative control: membrane and foreground confused."""
    positive = np.random.default_rng(0).random(1000) < 0.3
    found = counted(np.where(positive, 0, 255), positive, 255).scores(128)
    assert (found.auc, found.dice.at, found.error.at) == (0, 0, 1)

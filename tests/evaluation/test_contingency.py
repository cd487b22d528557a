import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.evaluation.contingency import Agreement, Table
from tests.evaluation.cases import by_scikit_image, disjoint

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # 0/0 in scikit-image

LABELS = arrays(np.int64, (3, 5, 6), elements=st.integers(0, 4))


def agreement(true, predicted):
    """Of the voxels whose truth is not 0."""
    where = true != 0
    return Agreement.of(Table.of(true[where], predicted[where]))


def scores(found):
    """V_rand, split, merge."""
    return found.v_rand, found.split, found.merge


@given(LABELS, LABELS)
def test_scores_are_those_of_scikit_image(true, predicted):
    """V_rand is one minus the adapted Rand error; split and merge are the two parts of its VI, in its order."""
    true[0, 0, :2] = 1  # a pair at least
    assert scores(agreement(true, predicted)) == pytest.approx(by_scikit_image(true, predicted), abs=1e-12)


@given(LABELS, LABELS)
def test_sums_of_slices_are_those_of_a_stack_with_ids_of_its_own_a_slice(true, predicted):
    """So a stack is scored slice by slice, and nothing but sums is kept."""
    true[0, 0, :2] = 1
    found = sum((agreement(*pair) for pair in zip(true, predicted, strict=True)), Agreement())
    expected = by_scikit_image(disjoint(true, keep_zero=True), disjoint(predicted))
    assert scores(found) == pytest.approx(expected, abs=1e-12)


@given(LABELS)
def test_a_prediction_that_is_the_truth_scores_exactly_one_and_zero(true):
    """Exact, whatever the names: a perfect score must not be 0.9999999."""
    assert scores(agreement(true, true * 7 + 3)) == (1, 0, 0)


def test_joining_costs_merge_and_parting_costs_split():
    """Which of the two a network does decides what to try next; they must not be swapped."""
    true = np.repeat([1, 2, 3, 4], 24)
    joined = agreement(true, np.where(true == 2, 1, true))
    parted = agreement(true, true * 10 + np.arange(96) % 2)
    assert joined.v_rand < 1
    assert (joined.split, joined.merge) == (0, pytest.approx(0.5))
    assert parted.v_rand < 1
    assert (parted.split, parted.merge) == (pytest.approx(1), 0)


def test_a_table_keeps_pairs_and_not_voxels():
    """A million voxels in two segments are two rows."""
    true = np.repeat([3, 5], 500_000)
    table = Table.of(true, true - 1)
    assert table.true.tolist() == [3, 5]
    assert table.predicted.tolist() == [2, 4]
    assert table.counts.tolist() == [500_000, 500_000]


def test_tables_of_tables_add_counts():
    """Slabs are counted apart and joined later: pairs become one with the sum."""
    table = Table.of(np.array([1, 1, 2]), np.array([4, 4, 4]), np.array([10, 5, 2**40]))
    assert table.counts.tolist() == [15, 2**40]

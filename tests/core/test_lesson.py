import numpy as np
import pytest

from pipeline.core.lesson import constant_loss, has_learned, lesson, shortcomings

GOOD = {"auc": 0.94, "dice": 0.7, "training_loss": 0.3, "training_constant_loss": 0.6931}


@pytest.mark.parametrize(
    ("metrics", "learned"),
    [
        (GOOD, True),
        (GOOD | {"auc": 0.6}, True),
        (GOOD | {"auc": 0.5999}, False),
        (GOOD | {"auc": float("nan")}, False),
        (GOOD | {"training_loss": 0.6931}, False),
        (GOOD | {"training_loss": 0.7}, False),
        ({"accuracy": 0.9, "loss": 0.4, "constant_loss": 1.1}, True),
        ({"accuracy": 0.9, "loss": 1.2, "constant_loss": 1.1}, False),
        ({"training_loss": 0.5, "training_constant_loss": 0.69}, True),
        ({"dice": 0.5, "step": 7}, None),
        ({}, None),
    ],
)
def test_a_training_has_learned_where_no_figure_says_that_it_has_not(metrics, learned):
    """AUC below 0.6, or a loss not below that of the constant class share; without any figure nobody can say."""
    assert has_learned(metrics) is learned
    assert bool(list(shortcomings(metrics))) == (learned is False)


def test_the_best_constant_is_the_share_of_each_class():
    """Any other answer that is the same everywhere costs more."""
    shares = np.array([3.0, 0.0, 1.0])
    assert constant_loss(shares) == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    for p in (0.5, 0.7, 0.8):
        assert constant_loss(shares) < -(0.75 * np.log(p) + 0.25 * np.log(1 - p))


def test_the_warning_says_why():
    """The figures that the checkpoint carries."""
    (told,) = lesson(False, GOOD | {"auc": 0.51})
    assert "learned: false" in told
    assert "held-out AUC 0.51 is below 0.6" in told


@pytest.mark.parametrize(("learned", "metrics"), [(True, GOOD), (None, {"auc": 0.1}), (True, {"auc": 0.1})])
def test_where_the_checkpoint_does_not_say_nothing_is_said(learned, metrics):
    """Older checkpoints have figures, but no such key."""
    assert not list(lesson(learned, metrics))


def test_figures_that_are_none_are_left_out():
    """A checkpoint's provenance may hold anything."""
    (told,) = lesson(False, {"auc": "high"})
    assert "learned: false" in told

"""The benchmark of streaming: what is compared is the same, and what is not clear is not told."""

from dataclasses import replace

import pytest
import torch

from tests.benchmarks.streaming import NETWORKS, Case, Found, beside_its_layers, beside_the_sweep, measured

SMALL = (8, 16, 16)


@pytest.mark.parametrize("name", [None, *NETWORKS])
def test_both_sides_of_a_case_compute_the_same_and_one_that_does_not_is_refused(name):
    """A ratio of two things that differ says nothing."""
    torch.set_num_threads(1)
    case = beside_its_layers(name, SMALL, torch.float32, 2) if name else beside_the_sweep(SMALL, torch.float32)
    assert len(measured(case, 1).stream) == 1
    wrong = replace(case, other=lambda: case.other() * 1.01)
    with pytest.raises(RuntimeError, match="of the range off"):
        measured(wrong, 1)


@pytest.mark.parametrize(
    ("stream", "other", "verdict"),
    [
        ([1.0, 1.01, 1.02, 9.0], [1.3, 1.31, 1.32, 1.3], "reached"),
        ([1.0, 1.01, 1.02, 1.0], [0.8, 0.81, 0.8, 0.9], "missed"),
        ([1.0, 1.3, 1.4, 1.5], [1.1, 1.1, 1.1, 1.1], "undecided"),
    ],
)
def test_rounds_that_lie_further_apart_than_the_bar_decide_nothing(stream, other, verdict):
    """On a busy machine one would tell what one hopes."""
    case = Case("a network", "another way", 1.0, torch.float32, 10**9, lambda: None, lambda: None)
    assert Found(case, stream, other).verdict == verdict

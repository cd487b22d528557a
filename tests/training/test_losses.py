import numpy as np
import pytest
import torch

from pipeline.training.losses import weighted_cross_entropy


def test_one_channel_is_the_cross_entropy_of_its_sigmoid():
    """By hand: -log(p) where the target is 1, -log(1 - p) elsewhere, averaged by weight."""
    logits, target, weight = (
        torch.tensor([[2.0, -1.0, 0.5]]),
        torch.tensor([[1, 0, 1]]),
        torch.tensor([[1.0, 3.0, 0.0]]),
    )
    p = 1 / (1 + np.exp(-np.array([2.0, -1.0])))
    expected = (-np.log(p[0]) - 3 * np.log(1 - p[1])) / 4
    assert float(weighted_cross_entropy(logits[:, None], target, weight)) == pytest.approx(expected, rel=1e-6)


def test_several_channels_are_the_cross_entropy_of_their_softmax():
    """What is ignored may have any class, also one that there is no channel for."""
    logits = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 5.0]]])
    target, weight = torch.tensor([[1, 255]]), torch.tensor([[2.0, 0.0]])
    expected = -(2.0 - np.log(np.exp([1.0, 2.0, 0.0]).sum()))
    assert float(weighted_cross_entropy(logits, target, weight)) == pytest.approx(expected, rel=1e-6)


def test_nothing_weighs_nothing():
    """A patch that is ignored throughout has a loss of 0 and moves no weight; 0 / 0 would end the training."""
    logits = torch.zeros(1, 1, 4, requires_grad=True)
    loss = weighted_cross_entropy(logits, torch.zeros(1, 4), torch.zeros(1, 4))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert not logits.grad.any()

"""Batch renormalisation, and what is measured of tiling at the end of a training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.core.network.unet import Architecture
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.networks.model import UNet, initialise
from pipeline.training import indicators
from pipeline.training.dataset import gather
from pipeline.training.indicators import disparity, tile_mismatch
from pipeline.training.renorm import LARGEST_RATIO, LARGEST_SHIFT, BatchRenorm, with_renorm
from pipeline.training.trainer import train
from tests.training.test_trainer import StopError, stopping_at
from tests.training.training_cases import recipe


def norms(seen: int, steps: int = 80) -> tuple[nn.BatchNorm3d, BatchRenorm]:
    """A batch norm and its renormalisation, that have seen so many batches."""
    norm = nn.BatchNorm3d(3)
    generator = torch.Generator().manual_seed(1)
    norm.running_mean = torch.randn(3, generator=generator)
    norm.running_var = torch.rand(3, generator=generator) + 0.5
    norm.weight.data, norm.bias.data = torch.randn(3, generator=generator), torch.randn(3, generator=generator)
    norm.num_batches_tracked = torch.tensor(seen)
    return norm, BatchRenorm(norm, steps)


def batch(scale: float = 1.0) -> torch.Tensor:
    """Two images of three channels."""
    return scale * torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(2))


def test_limits_open_from_a_plain_batch_norm_to_the_papers():
    """Running statistics of the first steps say nothing yet."""
    limits = [norms(seen)[1].limits() for seen in (0, 10, 25, 40, 80)]
    assert limits == [(1, 0), (1, 0), (2, 2.5), (LARGEST_RATIO, LARGEST_SHIFT), (LARGEST_RATIO, LARGEST_SHIFT)]


def test_at_first_it_is_a_plain_batch_norm_in_values_gradients_and_statistics():
    """Against torch's own."""
    plain, renorm = norms(0)
    one, other = batch().requires_grad_(), batch().requires_grad_()
    (plain(one) ** 3).sum().backward()
    (renorm(other) ** 3).sum().backward()
    assert torch.allclose(one.grad, other.grad, atol=1e-5)
    assert all(
        torch.allclose(renorm.state_dict()[name], value, atol=1e-6) for name, value in plain.state_dict().items()
    )
    assert all(
        torch.allclose(a.grad, b.grad, atol=1e-4) for a, b in zip(plain.parameters(), renorm.parameters(), strict=True)
    )


def test_within_its_limits_it_learns_under_what_it_predicts_with():
    """The correction is whole: values are those of evaluation, while the gradient is that of the batch's own statistics."""
    plain, renorm = norms(80)
    expected = plain.eval()(batch())
    assert torch.allclose(renorm(batch()), expected, atol=1e-5)
    assert not torch.allclose(norms(80)[0](batch()), expected, atol=0.1)  # which a batch norm's are not
    x = batch().requires_grad_()
    norms(80)[1](x).sum().backward()
    assert x.grad.abs().max() < 1e-5  # of a sum over the batch, whose mean was taken off


def test_beyond_its_limits_it_is_corrected_so_far():
    """One odd batch must not throw the network."""
    _, renorm = norms(80)
    mean, variance = batch(100).mean((0, 2, 3, 4)), batch(100).var((0, 2, 3, 4), correction=0)
    own = (batch(100) - mean.view(1, -1, 1, 1, 1)) / torch.sqrt(variance + renorm.eps).view(1, -1, 1, 1, 1)
    shift = ((mean - renorm.running_mean) / torch.sqrt(renorm.running_var + renorm.eps)).clamp(-5, 5)
    values = own * LARGEST_RATIO + shift.view(1, -1, 1, 1, 1)
    expected = values * renorm.weight.view(1, -1, 1, 1, 1) + renorm.bias.view(1, -1, 1, 1, 1)
    assert torch.allclose(renorm(batch(100)), expected, atol=1e-4)


def test_in_evaluation_its_network_is_the_same_with_the_same_tensors():
    """So a checkpoint of it is one of a batch norm."""
    net = initialise(UNet(Architecture(3, 1, 2)), 0)
    image = torch.rand(1, 1, 8, 8, 8)
    expected, names = net.eval()(image), list(net.state_dict())
    renormalised = with_renorm(net, 10).eval()
    assert torch.equal(renormalised(image), expected)
    assert list(renormalised.state_dict()) == names
    assert sum(isinstance(module, BatchRenorm) for module in renormalised.modules()) == 6


def trained(folder: Path, norm: str) -> dict[str, float]:
    """Figures of a training."""
    config = recipe(folder, network={"ndim": 3, "depth": 1, "width": 4, "norm": norm}, steps=40)
    train(config)
    return json.loads((folder / "out" / "metrics.json").read_text())


def test_a_training_with_it_predicts_nearer_to_how_it_learnt(tmp_path):
    """Of small batches; its checkpoint is that of a batch norm, and no tile of either has a seam."""
    plain, renorm = (trained(tmp_path / norm, norm) for norm in ("batch", "batch_renorm"))
    assert renorm["train_evaluation_disparity"] < plain["train_evaluation_disparity"] / 2
    assert max(plain["tile_mismatch"], renorm["tile_mismatch"]) < 1e-5
    checkpoints = [
        load_checkpoint(tmp_path / norm / "out" / "checkpoint.safetensors") for norm in ("batch", "batch_renorm")
    ]
    assert checkpoints[0].architecture == checkpoints[1].architecture
    assert checkpoints[1].provenance["recipe"]["network"]["norm"] == "batch_renorm"


def test_a_network_without_norms_has_no_disparity(tmp_path):
    """It learns as it predicts."""
    metrics = trained(tmp_path, "none")
    assert "train_evaluation_disparity" not in metrics
    assert metrics["tile_mismatch"] < 1e-5


def test_the_disparity_moves_nothing_and_is_none_where_both_are_one():
    """A figure must not change what it is of."""
    net = initialise(UNet(Architecture(3, 1, 2)), 0)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    patches = [torch.rand(1, 1, 8, 8, 8) for _ in range(2)]
    assert disparity(net, patches) > 1e-3
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    assert net.training
    assert disparity(UNet(Architecture(3, 1, 2, norm="none")), patches) == 0.0


@pytest.mark.parametrize("short", [False, True])
def test_tiles_without_their_halo_mismatch(tmp_path, monkeypatch, short):
    """The negative control of the figure."""
    config = recipe(tmp_path, steps=10)
    checkpoint, (region,) = load_checkpoint(train(config)), gather(config).validation
    if short:
        monkeypatch.setattr(indicators, "least_halo", lambda _: (0, 0, 0))
    mismatch = tile_mismatch(checkpoint, region, "cpu")
    assert mismatch is not None
    assert (mismatch > 1e-3) == short
    monkeypatch.setattr(indicators, "least_halo", lambda _: (64, 64, 64))
    assert tile_mismatch(checkpoint, region, "cpu") is None


def test_it_goes_on_where_it_was(tmp_path):
    """What its limits depend on is in the state."""
    network = {"ndim": 3, "depth": 1, "width": 4, "norm": "batch_renorm"}
    whole = load_checkpoint(train(recipe(tmp_path / "whole", network=network)))
    with pytest.raises(StopError):
        train(recipe(tmp_path / "parts", network=network), stopping_at(20))
    parts = load_checkpoint(train(recipe(tmp_path / "parts", network=network)))
    assert all(np.array_equal(parts.state[name], whole.state[name]) for name in whole.state)

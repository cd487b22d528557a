from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.network.receptive import legal_extent, receptive_radius
from pipeline.core.network.unet import Architecture
from pipeline.networks.model import UNet, initialise
from tests.core.core_cases import architectures
from tests.unet.notes_unet import NotesUNet, logits_by_names, randomise


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def noise(architecture, extents):
    """A batch of one, of random voxels."""
    return torch.randn((1, architecture.in_channels, *extents), generator=torch.Generator().manual_seed(0))


# --- the notes' network -------------------------------------------------------------------------------------------------


def test_the_notes_network_is_one_setting():
    """Same names, shapes and order: a state_dict of the notes' class is one of this class, and the other way round."""
    ours, theirs = UNet(Architecture(ndim=2, depth=4, width=64)).state_dict(), NotesUNet().state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}
    assert UNet(Architecture(ndim=2, depth=4, width=64)).parameter_count == sum(
        p.numel() for p in NotesUNet().parameters()
    )


def test_the_notes_class_is_what_its_names_compute():
    """The class and the function in notes_unet.py hold each other to account."""
    model, x = randomise(NotesUNet()), torch.randn(1, 1, 16, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(logits_by_names(model.state_dict(), x, depth=4), model(x))


@settings(max_examples=30)
@given(architectures(depths=(1, 3)), st.integers(0, 99))
def test_every_setting_computes_what_its_names_say(architecture, seed):
    """Depth, axes, padding, bias and norm are options of one network, and none may change another's meaning."""
    model = randomise(UNet(architecture), seed).double()
    kept = 2 * 2**architecture.depth if architecture.ndim == 2 else 2**architecture.depth
    margin = receptive_radius(architecture.graph)[2] if architecture.padding == "valid" else 0
    if architecture.ndim == 3 and margin > 20:
        return  # a picture of 10^6 voxels and more
    extent = legal_extent(architecture.graph, 2, kept + 2 * margin)
    x = noise(architecture, (extent,) * architecture.ndim).double()
    with torch.inference_mode():
        expected = logits_by_names(model.state_dict(), x, depth=architecture.depth, padding=architecture.padding)
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("bias", "norm"), [(True, "batch"), (False, "batch"), (True, "none"), (False, "none")])
def test_options_show_in_the_names(bias, norm):
    """The architecture is read back from names, so an option that leaves no trace could not be loaded."""
    names = set(UNet(Architecture(2, 2, 2, bias=bias, norm=norm)).state_dict())
    assert any(name.endswith(".0.bias") for name in names) is ("fc.bias" in names) is ("unpool1.bias" in names) is bias
    assert any(".1." in name for name in names) is (norm == "batch")


# --- extents ------------------------------------------------------------------------------------------------------------


def test_572_voxels_make_388():
    """The paper's figure, and the table of the notes: copy and crop makes up for the border that convolution loses."""
    architecture = Architecture(ndim=2, depth=4, width=1, padding="valid")
    with torch.inference_mode():
        assert UNet(architecture).eval()(noise(architecture, (572, 572))).shape == (1, 1, 388, 388)


@given(st.integers(1, 4), st.integers(1, 60))
def test_an_unpadded_pass_loses_its_margin_on_each_side(depth, kept):
    """Windows are placed by this loss."""
    architecture = Architecture(ndim=2, depth=depth, width=1, padding="valid", norm="none")
    margin = receptive_radius(architecture.graph)[1]
    extent = legal_extent(architecture.graph, 1, kept + 2 * margin)
    with torch.inference_mode(), torch.device("meta"):
        out = UNet(architecture).eval()(torch.empty(1, 1, extent, extent))
    assert out.shape[2:] == (extent - 2 * margin,) * 2
    assert out.shape[2] >= kept


@given(architectures(padding="same"), st.integers(1, 3))
def test_a_padded_pass_keeps_the_extents(architecture, strides):
    """Cores are cropped from the output by the window's own coordinates."""
    extents = (strides * 2**architecture.depth,) * architecture.ndim
    with torch.inference_mode(), torch.device("meta"):
        out = UNet(architecture).eval()(torch.empty(1, architecture.in_channels, *extents))
    assert out.shape == (1, architecture.out_channels, *extents)


# --- initialisation -----------------------------------------------------------------------------------------------------


def test_weights_start_at_the_papers_deviation():
    """sqrt(2 / fan-in): a signal keeps its size through four levels; biases start at zero."""
    model = initialise(UNet(Architecture(ndim=2, depth=2, width=32, in_channels=3)), seed=0)
    for name, tensor in model.named_parameters():
        if name.endswith(".0.weight") or name == "fc.weight":
            fan_in = tensor[0].numel()
        elif name.startswith("unpool") and name.endswith("weight"):
            fan_in = tensor.shape[0]  # stride 2 and two taps: each voxel of the output sees one of them
        else:
            if not name.endswith((".1.weight", ".1.bias")):
                assert not tensor.any(), name
            continue
        spread = 5 / sqrt(2 * tensor.numel())  # five standard errors of a standard deviation
        assert tensor.std().item() == pytest.approx(sqrt(2 / fan_in), rel=spread), name


def test_a_signal_keeps_its_size():
    """What the deviation is for: the output of a fresh network is neither nothing nor overflow."""
    architecture = Architecture(ndim=2, depth=4, width=16, norm="none")
    with torch.inference_mode():
        out = initialise(UNet(architecture), seed=0)(noise(architecture, (64, 64)))
    assert 0.05 < out.std().item() < 20


def test_a_seed_is_a_network():
    """Training runs are repeatable, and two seeds are two networks; torch's own state is left alone."""
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    networks = [UNet(Architecture(2, 1, 2)) for _ in range(3)]
    torch.random.set_rng_state(before)
    first, again, other = (initialise(n, s).state_dict() for n, s in zip(networks, (1, 1, 2), strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder1_1.0.weight"], other["encoder1_1.0.weight"])

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.core.architecture import Architecture
from pipeline.core.mirror import shown, spread
from pipeline.core.normalization import Normalization
from pipeline.core.plan import Compute, Cost, Model, Output, Plan
from pipeline.core.receptive import least_halo
from pipeline.core.volume import Description, Space
from pipeline.errors import InferenceError, ModelError
from pipeline.unet.checkpoint import Checkpoint
from pipeline.unet.model import UNet
from pipeline.unet.predictor import UNetPredictor, environment, resolved_device
from tests.unet.notes_unet import logits_by_names, randomise

SOLID = Architecture(ndim=3, depth=1, width=2, in_channels=2, out_channels=3)
PLANAR = replace(SOLID, ndim=2, depth=2)
UNPADDED = replace(SOLID, padding="valid")
EVERY = {"3D": SOLID, "2D": PLANAR, "unpadded": UNPADDED}


def checkpoint_of(architecture):
    """Random weights of an architecture."""
    return Checkpoint(architecture, randomise(UNet(architecture)).state_dict())


def plan_of(checkpoint, *, volume=(29, 21, 13), dtype="float32", activation="none", half=None, threads=1, **known):
    """A plan of two slabs a tile and several tiles, with a rule of its own."""
    architecture = checkpoint.architecture
    core = tuple(4 * s for s in architecture.stride)
    usual = {
        "source": Description("in", 0, "czyx", 2, volume, "uint8", volume, Space.unknown(3), "0"),
        "nonfinite": "fail",
        "output": Output("out", "czyx", dtype, activation, core, None),
        "model": Model("weights.pt", checkpoint.sha256, architecture, 0),
        "normalization": Normalization("zscore", 100.0, 1 / 64),
        "core": core,
        "halo": least_halo(architecture) if architecture.padding == "same" else (0, 0, 0),
        "slab": (max(core[0] // 2, 1), *core[1:]),
        "compute": Compute("cpu", half or "float32", threads),
        "cost": Cost(1, 1, 1, 1, 1),
    }
    return Plan(**{**usual, **known})


def window_of(plan, tile, volume):
    """What the engine reads for a tile."""
    inside, indices = shown(tile.window, plan.source.shape)
    return spread(
        volume[(slice(None), *(slice(a, b) for a, b in zip(inside.start, inside.stop, strict=True)))], indices
    )


def noise(plan, seed=0):
    """A volume of the plan's shape."""
    return np.random.default_rng(seed).integers(0, 256, (2, *plan.source.shape), dtype=np.uint8)


def predicted(plan, checkpoint, tile=None):
    """Boxes and arrays of one tile, the middle one by default."""
    tile = tile or plan.grid.tile(len(plan.grid) // 2)
    return list(UNetPredictor(checkpoint, plan).predict(tile, window_of(plan, tile, noise(plan))))


def expected_logits(plan, checkpoint, slab):
    """The same by the notes' names: normalised, one pass, cropped."""
    tile = replace(plan.grid.tile(0), window=slab.window)
    x_CZYX = torch.from_numpy((window_of(plan, tile, noise(plan)).astype(np.float32) - 100) / 64)
    a = checkpoint.architecture
    x = x_CZYX.transpose(0, 1) if a.ndim == 2 else x_CZYX[None]
    out = logits_by_names(checkpoint.state, x, depth=a.depth, padding=a.padding)
    return (out.transpose(0, 1) if a.ndim == 2 else out[0])[(slice(None), *slab.crop)]


# --- values -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", EVERY.values(), ids=EVERY)
def test_each_slab_is_one_cropped_pass_in_z_order(architecture):
    """The sink writes units as slabs complete; each must hold the network's own answer for its box."""
    checkpoint = checkpoint_of(architecture)
    plan = plan_of(checkpoint)
    tile = plan.grid.tile(len(plan.grid) // 2)
    found = predicted(plan, checkpoint, tile)
    assert len(found) == len(tile.slabs) > 1
    for (box, array), slab in zip(found, tile.slabs, strict=True):
        assert box == slab.core
        assert array.shape == (3, *box.shape)
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        np.testing.assert_allclose(array, expected_logits(plan, checkpoint, slab), rtol=1e-4, atol=1e-4)


def test_slices_of_a_stack_do_not_see_each_other():
    """A 2D network takes slices as its batch: a slice alone gives what it gives in the stack."""
    checkpoint = checkpoint_of(PLANAR)
    stack, single = (plan_of(checkpoint, core=(z, 16, 16), slab=(z, 16, 16)) for z in (6, 1))
    (box, together), *_ = predicted(stack, checkpoint, stack.grid.tile(0))
    for z in range(6):
        tile = single.grid.tile(z * single.grid.counts[1] * single.grid.counts[2])
        ((alone_box, alone),) = predicted(single, checkpoint, tile)
        assert alone_box.start[0] == z
        np.testing.assert_allclose(alone[:, 0], together[:, z], rtol=1e-5, atol=1e-5)
    assert box.shape[0] == 6


@pytest.mark.parametrize("activation", ["none", "sigmoid", "softmax"])
def test_activations_are_those_of_their_names(activation):
    """Softmax goes over channels, and nothing else does."""
    checkpoint = checkpoint_of(SOLID)
    logits, found = (predicted(plan_of(checkpoint, activation=a), checkpoint)[0][1] for a in ("none", activation))
    wide = logits.astype(np.float64)
    by_name = {"none": wide, "sigmoid": 1 / (1 + np.exp(-wide)), "softmax": np.exp(wide) / np.exp(wide).sum(0)}
    np.testing.assert_allclose(found, by_name[activation], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_eight_bits_are_the_rounded_probability(activation):
    """uint8 = rint(255 * clip(v, 0, 1)): what readers divide by 255."""
    checkpoint = checkpoint_of(SOLID)
    real, bytes_ = (
        predicted(plan_of(checkpoint, activation=activation, dtype=dtype), checkpoint)[0][1]
        for dtype in ("float32", "uint8")
    )
    assert bytes_.dtype == np.uint8
    np.testing.assert_array_equal(bytes_, np.rint(np.float32(255) * np.clip(real, 0, 1)).astype(np.uint8))
    assert len(np.unique(bytes_)) > 10


def test_bfloat16_is_near_and_not_equal():
    """compute.dtype is what is computed with; the output's type is its own."""
    checkpoint = checkpoint_of(SOLID)
    full, half = (predicted(plan_of(checkpoint, half=dtype), checkpoint)[0][1] for dtype in (None, "bfloat16"))
    assert half.dtype == np.float32
    error = np.abs(full - half).max() / np.ptp(full)
    assert 1e-5 < error < 0.1


# --- the same bytes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", EVERY.values(), ids=EVERY)
def test_a_tile_that_is_predicted_twice_gives_the_same_bytes(architecture):
    """Retries and restarts overwrite; a byte of difference would be taken for damage."""
    checkpoint = checkpoint_of(architecture)
    plan = plan_of(checkpoint, threads=2)
    first, second = ([array.tobytes() for _, array in predicted(plan, checkpoint)] for _ in range(2))
    assert first == second


def test_the_plans_threads_govern_whatever_the_process_was_set_to():
    """Dask's nanny sets one thread a worker; sums in another order would be other bytes."""
    checkpoint = checkpoint_of(SOLID)
    plan = plan_of(checkpoint, threads=2)
    for outside in (1, 2):
        torch.set_num_threads(outside)
        predicted(plan, checkpoint)
        assert torch.get_num_threads() == 2


def test_the_window_as_read_is_left_alone():
    """Slabs of a tile share one array."""
    checkpoint = checkpoint_of(SOLID)
    plan = plan_of(checkpoint, normalization=Normalization())
    tile = plan.grid.tile(0)
    window = window_of(plan, tile, noise(plan)).astype(np.float32)
    before = window.copy()
    list(UNetPredictor(checkpoint, plan).predict(tile, window))
    np.testing.assert_array_equal(window, before)


# --- refusals -----------------------------------------------------------------------------------------------------------


def test_weights_that_changed_after_the_plan_are_refused():
    """Half of the tiles from one model and half from another would be no model's answer."""
    checkpoint = checkpoint_of(SOLID)
    plan = plan_of(checkpoint)
    state = {**checkpoint.state, "fc.bias": checkpoint.state["fc.bias"] + 1}
    with pytest.raises(ModelError, match=r"'weights.pt' changed after the plan was made"):
        UNetPredictor(replace(checkpoint, state=state), plan)


def test_a_prediction_that_is_not_finite_is_an_error_by_the_tiles_name():
    """NaN in a probability map is found by its tile, not by the biologist."""
    checkpoint = checkpoint_of(SOLID)
    state = {name: t * 1e30 if name.endswith("0.weight") else t for name, t in checkpoint.state.items()}
    checkpoint = replace(checkpoint, state=state)
    plan = plan_of(checkpoint)
    with pytest.raises(InferenceError, match=r"tile 0 \(core z 0:8, y 0:8, x 0:8\).*not finite.*overflow float32"):
        predicted(plan, checkpoint, plan.grid.tile(0))


def test_a_gpu_that_is_not_there_is_refused_before_any_tile(monkeypatch):
    """The message says what to set; torch's own would come from a worker."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checkpoint = checkpoint_of(SOLID)
    with pytest.raises(ModelError, match=r"compute.device is 'cuda'.*Set compute.device to 'cpu' or 'auto'"):
        UNetPredictor(checkpoint, plan_of(checkpoint, compute=Compute("cuda", "float32", 1)))
    with pytest.raises(ModelError, match="no CUDA device"):
        resolved_device("cuda")


@pytest.mark.parametrize(("there", "resolved"), [(False, "cpu"), (True, "cuda")])
def test_auto_is_the_gpu_where_there_is_one(monkeypatch, there, resolved):
    """The device is part of the plan, resolved once, so that all workers agree."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert resolved_device("auto") == resolved
    assert resolved_device("cpu") == "cpu"


def test_the_environment_names_torch():
    """Recorded beside the plan: another version may change low bits."""
    assert environment()["torch"] == torch.__version__

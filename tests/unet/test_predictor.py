from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.core.geometry.mirror import shown, spread
from pipeline.core.network.receptive import least_halo, legal_extent, receptive_radius
from pipeline.core.network.unet import Architecture
from pipeline.core.normalization import Normalization
from pipeline.core.plan import Compute, Cost, Model, OutputSpec, Plan
from pipeline.core.volume import Description, Space
from pipeline.errors import InferenceError, ModelError
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.device import environment, resolved_device
from pipeline.networks.model import UNet
from pipeline.networks.slabs import StreamPredictor
from tests.unet.notes_unet import logits_by_names, randomise

SOLID = Architecture(ndim=3, depth=1, width=2, in_channels=2, out_channels=3)
PLANAR = replace(SOLID, ndim=2, depth=2)
UNPADDED = replace(SOLID, padding="valid")
EVERY = {"3D": SOLID, "2D": PLANAR, "unpadded": UNPADDED}


def checkpoint_of(architecture):
    """Random weights of an architecture."""
    return Checkpoint(architecture, randomise(UNet(architecture)).state_dict())


def plan_of(checkpoint, *, volume=(29, 21, 13), dtype="float32", activation="none", half=None, threads=1, **known):
    """A plan of several tiles, whose cores are two slabs long, with a rule of its own."""
    architecture = checkpoint.architecture
    core = tuple(4 * s for s in architecture.stride)
    usual = {
        "source": Description("in", 0, "czyx", 2, volume, "uint8", volume, Space.unknown(3), "0"),
        "nonfinite": "fail",
        "output": OutputSpec("out", "czyx", dtype, activation, core, None),
        "model": Model("weights.pt", checkpoint.sha256, architecture, 0),
        "normalization": Normalization("zscore", 100.0, 1 / 64),
        "core": core,
        "halo": least_halo(architecture.graph) if architecture.padding == "same" else (0, 0, 0),
        "slab": core[0] // 2,
        "compute": Compute("cpu", half or "float32", threads),
        "cost": Cost(1, 1, 1, 1, 1, 1),
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


def slabs_of(plan, tile, window):
    """A window in the turns of the plan."""
    first = tile.window.start[0]
    return (window[:, a - first : b - first] for a, b in plan.stream.schedule(tile).inputs())


def predicted(plan, checkpoint, tile=None):
    """Boxes and arrays of one tile, the middle one by default."""
    tile = tile or plan.grid.tile(len(plan.grid) // 2)
    slabs = slabs_of(plan, tile, window_of(plan, tile, noise(plan)))
    return list(StreamPredictor(checkpoint, plan).predict(tile, slabs))


def whole(plan, checkpoint, tile=None):
    """The parts of one tile put together, (C, Z, Y, X)."""
    return np.concatenate([array for _, array in predicted(plan, checkpoint, tile)], axis=1)


def expected_logits(plan, checkpoint, tile):
    """The same by the notes' names: normalised, one pass over the volume from the origin to far beyond, cropped."""
    a = checkpoint.architecture
    margin = [m if a.padding == "valid" else 0 for m in receptive_radius(a.graph)]
    window = replace(tile.core, start=tuple(-m for m in margin))
    stop = tuple(
        legal_extent(a.graph, axis, n + 2 * m) - m
        for axis, (n, m) in enumerate(zip(plan.source.shape, margin, strict=True))
    )
    inside, indices = shown(replace(window, stop=stop), plan.source.shape)
    volume = noise(plan)[(slice(None), *(slice(p, q) for p, q in zip(inside.start, inside.stop, strict=True)))]
    x_CZYX = torch.from_numpy((spread(volume, indices).astype(np.float32) - 100) / 64)
    x = x_CZYX.transpose(0, 1) if a.ndim == 2 else x_CZYX[None]
    out = logits_by_names(checkpoint.state, x, depth=a.depth, padding=a.padding)
    out = out.transpose(0, 1) if a.ndim == 2 else out[0]
    return out[(slice(None), *(slice(p, q) for p, q in zip(tile.core.start, tile.core.stop, strict=True)))]


# --- values -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", EVERY.values(), ids=EVERY)
def test_parts_are_one_pass_over_the_volume_in_z_order(architecture):
    """The sink writes units as slabs complete; each must hold the network's own answer for its box."""
    checkpoint = checkpoint_of(architecture)
    plan = plan_of(checkpoint)
    tile = plan.grid.tile(len(plan.grid) // 2)
    found = predicted(plan, checkpoint, tile)
    assert len(found) > 1
    assert [box.start[0] for box, _ in found[1:]] == [box.stop[0] for box, _ in found[:-1]]
    assert (found[0][0].start, found[-1][0].stop) == (tile.core.start, tile.core.stop)
    for box, array in found:
        assert array.shape == (3, *box.shape)
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
    expected = expected_logits(plan, checkpoint, tile)
    np.testing.assert_allclose(whole(plan, checkpoint, tile), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint16", ">u2", "int32", "uint32", "uint64", "float16", ">f4", "float64"]
)
def test_every_stored_type_is_understood(dtype):
    """Microscopes and simulators store all of them; torch computes with few."""
    checkpoint = checkpoint_of(SOLID)
    plan = plan_of(checkpoint, normalization=Normalization("minmax", 0.0, 1.0))
    tile = plan.grid.tile(0)
    values = noise(plan) % 2
    found, expected = (
        np.concatenate(
            [part for _, part in StreamPredictor(checkpoint, plan).predict(tile, slabs_of(plan, tile, shows))], axis=1
        )
        for shows in (window_of(plan, tile, values.astype(dtype)), window_of(plan, tile, values))
    )
    np.testing.assert_array_equal(found, expected)


def test_slices_of_a_stack_do_not_see_each_other():
    """A 2D network takes slices as its batch: a slice alone gives what it gives in the stack."""
    checkpoint = checkpoint_of(PLANAR)
    stack, single = (plan_of(checkpoint, core=(z, 16, 16), slab=z) for z in (6, 1))
    ((box, together),) = predicted(stack, checkpoint, stack.grid.tile(0))
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
    logits, found = (whole(plan_of(checkpoint, activation=a), checkpoint) for a in ("none", activation))
    wide = logits.astype(np.float64)
    by_name = {"none": wide, "sigmoid": 1 / (1 + np.exp(-wide)), "softmax": np.exp(wide) / np.exp(wide).sum(0)}
    np.testing.assert_allclose(found, by_name[activation], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_eight_bits_are_the_rounded_probability(activation):
    """uint8 = rint(255 * clip(v, 0, 1)): what readers divide by 255."""
    checkpoint = checkpoint_of(SOLID)
    real, bytes_ = (
        whole(plan_of(checkpoint, activation=activation, dtype=dtype), checkpoint) for dtype in ("float32", "uint8")
    )
    assert bytes_.dtype == np.uint8
    np.testing.assert_array_equal(bytes_, np.rint(np.float32(255) * np.clip(real, 0, 1)).astype(np.uint8))
    assert len(np.unique(bytes_)) > 10


def test_bfloat16_is_near_and_not_equal():
    """compute.dtype is what is computed with; the output's type is its own."""
    checkpoint = checkpoint_of(SOLID)
    full, half = (whole(plan_of(checkpoint, half=dtype), checkpoint) for dtype in (None, "bfloat16"))
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
    """Slabs of a tile are views of what was read ahead."""
    checkpoint = checkpoint_of(SOLID)
    plan = plan_of(checkpoint, normalization=Normalization())
    tile = plan.grid.tile(0)
    window = window_of(plan, tile, noise(plan)).astype(np.float32)
    before = window.copy()
    list(StreamPredictor(checkpoint, plan).predict(tile, slabs_of(plan, tile, window)))
    np.testing.assert_array_equal(window, before)


# --- refusals -----------------------------------------------------------------------------------------------------------


def test_weights_that_changed_after_the_plan_are_refused():
    """Half of the tiles from one model and half from another would be no model's answer."""
    checkpoint = checkpoint_of(SOLID)
    plan = plan_of(checkpoint)
    state = {**checkpoint.state, "fc.bias": checkpoint.state["fc.bias"] + 1}
    with pytest.raises(ModelError, match=r"'weights.pt' changed after the plan was made"):
        StreamPredictor(replace(checkpoint, state=state), plan)


def test_a_prediction_that_is_not_finite_is_an_error_by_the_tiles_name():
    """NaN in a probability map is found by its tile, not by the biologist."""
    checkpoint = checkpoint_of(SOLID)
    state = {name: t * 1e30 if name.endswith("0.weight") else t for name, t in checkpoint.state.items()}
    checkpoint = replace(checkpoint, state=state)
    plan = plan_of(checkpoint)
    with pytest.raises(InferenceError, match=r"tile 0 \(core z 0:8, y 0:8, x 0:8\).*not finite.*overflow float32"):
        predicted(plan, checkpoint, plan.grid.tile(0))


def test_a_device_without_the_memory_fails_the_tile_with_advice(monkeypatch):
    """The slab is part of the plan: a smaller one would change bytes, so the user must choose."""
    checkpoint = checkpoint_of(SOLID)
    plan = plan_of(checkpoint)

    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr("pipeline.networks.sweep.Sweep.run", exhausted)
    with pytest.raises(InferenceError, match=r"tile 0 .*too small \(CUDA out of memory.* 2 GiB\).*smaller tiles.core"):
        predicted(plan, checkpoint, plan.grid.tile(0))


def test_a_rehearsal_leaves_the_predictor_as_it_was():
    """It runs on zeros, in the buffers that the first tile uses."""
    checkpoint = checkpoint_of(SOLID)
    plan = plan_of(checkpoint)
    tile = plan.grid.tile(len(plan.grid) // 2)
    predictor = StreamPredictor(checkpoint, plan)
    predictor.rehearse(plan.grid.widest())
    slabs = slabs_of(plan, tile, window_of(plan, tile, noise(plan)))
    found = np.concatenate([array for _, array in predictor.predict(tile, slabs)], axis=1)
    np.testing.assert_array_equal(found, whole(plan, checkpoint, tile))


def test_a_gpu_that_is_not_there_is_refused_before_any_tile(monkeypatch):
    """The message says what to set; torch's own would come from a worker."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    checkpoint = checkpoint_of(SOLID)
    with pytest.raises(ModelError, match=r"compute.device is 'cuda'.*Set compute.device to 'cpu' or 'auto'"):
        StreamPredictor(checkpoint, plan_of(checkpoint, compute=Compute("cuda", "float32", 1)))
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

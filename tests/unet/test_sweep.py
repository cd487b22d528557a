"""The streamed network beyond exactness (tests/test_exactness.py): folding, memory, shapes, and what it is built of."""

from dataclasses import replace
from math import prod

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.core.network.receptive import least_halo
from pipeline.core.network.stream import Stream
from pipeline.core.network.unet import Architecture
from pipeline.networks.model import UNet
from pipeline.networks.sweep import Arena, Sweep, kernels
from tests.unet.notes_unet import randomise

CPU = torch.device("cpu")
SOLID = Architecture(ndim=3, depth=2, width=2, in_channels=2, out_channels=3)


def column(architecture, length, slab=None, plane=(16, 16)):
    """One tile over a whole column."""
    stride = architecture.stride
    whole = Stream.over(
        architecture.graph, (length, *plane), (length, *plane), least_halo(architecture.graph), slab or stride[0]
    )
    return whole.schedule(whole.grid.tile(0))


def noise(schedule, dtype=torch.float32):
    """Slabs of noise in the turns of a schedule, Z Y X C."""
    generator = torch.Generator().manual_seed(0)
    plane = [axis.input.extent for axis in schedule.axes[1:]]
    for span in schedule.inputs():
        yield torch.randn((span.extent, *plane, schedule.graph.input.channels), generator=generator).to(dtype)


def streamed(network, schedule, dtype=torch.float32, arena=None):
    """A sweep's logits over the whole column."""
    sweep = Sweep(kernels(network, device=CPU, dtype=dtype), schedule, arena)
    return torch.cat([logits for _, logits in sweep.run(noise(schedule, dtype))])


def memory(arena):
    """Where the buffers and the rings lie, and their shapes."""
    return {name: (held.data_ptr(), tuple(held.shape)) for name, held in arena.tensors.items()}


# --- kernels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("bias", [True, False])
def test_folded_kernels_give_what_layer_after_layer_gives(norm, bias):
    """A batch norm that is folded away must not be missed; nor a bias that never was."""
    architecture = replace(SOLID, norm=norm, bias=bias)
    network = randomise(UNet(architecture)).double().eval()
    schedule = column(architecture, 16)
    found = streamed(network, schedule, torch.float64)
    x = torch.cat(list(noise(schedule, torch.float64))).permute(3, 0, 1, 2)[None]
    with torch.no_grad():
        expected = network(x)[0].permute(1, 2, 3, 0)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_folding_needs_the_running_statistics():
    """The negative control: with the statistics of another network the answer is another."""
    network = randomise(UNet(SOLID)).eval()
    schedule = column(SOLID, 16)
    before = streamed(network, schedule)
    network.encoder1_1[1].running_var.mul_(2)
    after = streamed(network, schedule)
    assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize("missing", ["running_mean", "running_var"])
def test_a_norm_without_either_statistic_is_refused(missing):
    """It would normalise each slab by its own values: no tile would agree with its neighbour."""
    network = UNet(SOLID).eval()
    setattr(network.encoder1_1[1], missing, None)
    with pytest.raises(ValueError, match="without running statistics"):
        kernels(network, device=CPU, dtype=torch.float32)


def test_kernels_of_one_channel_lie_channels_last():
    """torch takes a single channel for any layout, and would write the output in the slow one."""
    weight = kernels(UNet(Architecture(3, 1, 4)), device=CPU, dtype=torch.float32)["encoder1_1"].weight
    assert weight.stride()[1] == 1


# --- memory and shapes --------------------------------------------------------------------------------------------------


class Shapes(TorchDispatchMode):
    """The shapes that convolutions read."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name == "aten::mkldnn_convolution":
            self.seen.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def shapes_of(length):
    """What convolutions read over a column."""
    schedule = column(SOLID, length)
    with Shapes() as watch:
        streamed(randomise(UNet(SOLID)).eval(), schedule)
    return watch.seen


def test_shapes_are_fixed_between_the_ends():
    """A longer column has more turns of the same shapes, so that kernels are compiled, or captured, once."""
    short, long = shapes_of(64), shapes_of(128)
    convolutions = len(SOLID.graph.windows)
    assert len(long) - len(short) == convolutions * 64 // SOLID.stride[0]
    assert set(long) == set(short)


def test_buffers_do_not_grow_with_the_column():
    """Memory independent of the length is what makes a column of any length one tile."""
    sizes = []
    for length in (64, 256):
        arena = Arena()
        streamed(randomise(UNet(SOLID)).eval(), column(SOLID, length), arena=arena)
        sizes.append(sum(prod(shape) for _, shape in memory(arena).values()))
    assert sizes[0] == sizes[1]


def test_rings_of_skips_are_no_longer_than_planned():
    """A skip that is not forgotten would hold the whole column."""
    for length in (64, 256):
        schedule = column(SOLID, length)
        arena = Arena()
        streamed(randomise(UNet(SOLID)).eval(), schedule, arena=arena)
        for node in SOLID.graph.waiting:
            _, shape = memory(arena)[f"ring of {node.name}"]
            assert 0 < shape[0] <= schedule.waiting(node) + 1


def test_a_sweep_takes_the_memory_of_one_that_is_over_and_nothing_of_its_column():
    """A worker has hundreds of tiles of one shape; what the last left in its buffers must not show."""
    network = randomise(UNet(SOLID)).eval()
    schedule = column(SOLID, 24)
    fresh = streamed(network, schedule)
    arena = Arena()
    streamed(randomise(UNet(SOLID), seed=5).eval(), column(SOLID, 40), arena=arena)
    places = memory(arena)
    again = streamed(network, schedule, arena=arena)
    assert memory(arena) == places
    assert torch.equal(fresh, again)


@pytest.mark.parametrize("architecture", [SOLID, replace(SOLID, ndim=2)], ids=["3D", "2D"])
def test_a_sweep_that_was_warmed_up_gives_the_same(architecture):
    """What a worker does before its first tile must not be seen in it; a tile shorter than a turn is one too."""
    network = randomise(UNet(architecture)).eval()
    for length in (1, 3, 24):
        schedule = column(architecture, length, slab=4)
        fresh = streamed(network, schedule)
        warm = Sweep(kernels(network, device=CPU, dtype=torch.float32), schedule)
        warm.warm_up()
        assert torch.equal(torch.cat([logits for _, logits in warm.run(noise(schedule))]), fresh)


def test_a_sweep_of_another_shape_takes_no_buffers():
    """Frames of zeros lie elsewhere there."""
    network = randomise(UNet(SOLID)).eval()
    fresh = streamed(network, column(SOLID, 24))
    arena = Arena()
    streamed(network, column(SOLID, 24, plane=(16, 20)), arena=arena)
    places = memory(arena)
    again = streamed(network, column(SOLID, 24), arena=arena)
    assert not set(memory(arena).values()) & set(places.values())
    assert torch.equal(fresh, again)

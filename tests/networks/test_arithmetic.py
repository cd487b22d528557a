"""What a stream computes: counted on the convolutions that it runs, beside what its nodes need, the plan's count, and one pass."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.core.geometry.box import per_axis, round_up
from pipeline.core.network.receptive import least_halo, receptive_radius
from pipeline.core.network.stream import Stream
from pipeline.core.tiles.cost import multiply_adds, one_pass_multiply_adds, total_multiply_adds
from pipeline.core.tiles.tiling import TileRequest, choose_tiling
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.networks.evaluate import Weights, evaluate
from pipeline.networks.streaming import Streaming
from tests.networks.library_networks import COMMITTED, LOCAL

AGREED = 1.02
"""Arithmetic that runs / what the needs of nodes add up to, at most; and the plan's count / what runs."""

REACHED, COLUMN, HALO = 1.15, 512, 48
"""Arithmetic of all tiles / of one pass, at most, where columns are so wide, and the halo in y and x no more."""

SHORT = ("monai-unet", "nnunet-residual", "smp-mobilenet")
"""Looked at in every `make test`; the others in `make test-networks`."""

SOME = [name if name in SHORT else pytest.param(name, marks=pytest.mark.network) for name in LOCAL]

aten = torch.ops.aten


class MultiplyAdds(TorchDispatchMode):
    """Counts those of the convolutions and products that run: values that come out, times weights that make one of them."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        kind = func.overloadpacket
        if kind in (aten.convolution, aten.mkldnn_convolution):
            self.count += made.numel() * args[1][0].numel()
        elif kind in (aten.mm, aten.addmm, aten.linear):
            left = args[1] if kind is aten.addmm else args[0]
            self.count += made.numel() * left.shape[-1]
        return made


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def network(name):
    """A committed one."""
    return load_checkpoint(COMMITTED / f"{name}.safetensors")


def small(graph):
    """Tiles of few strides, of a volume of several."""
    halo, core = least_halo(graph), per_axis(lambda s, n: n * s, graph.stride, (2, 8, 8))
    volume = per_axis(lambda h, c: h + 2 * c, halo, core)
    return Stream.over(graph, volume, core, halo, graph.stride[0])


def streamed(weights: Weights, schedule) -> int:
    """What a stream over a tile runs."""
    slabs = [
        torch.zeros((n.extent, *schedule.window.shape[1:], schedule.graph.input.channels)) for n in schedule.inputs()
    ]
    with MultiplyAdds() as counted:
        for _ in Streaming(weights, schedule, torch.zeros(1)).run(slabs):
            pass
    return counted.count


def at_once(weights: Weights, schedule) -> int:
    """What the same core takes where each node computes all that is needed of it, once."""
    window = torch.zeros((1, schedule.graph.input.channels, *schedule.window.shape))
    with torch.inference_mode(), MultiplyAdds() as counted:
        evaluate(schedule.graph, weights, window, schedule.axes)
    return counted.count


@pytest.mark.parametrize("name", SOME)
def test_a_stream_computes_what_its_nodes_need_and_the_plan_knows_how_much(name):
    """Slab by slab nothing is computed twice; of a tile at a corner, in the middle, at the end."""
    checkpoint = network(name)
    weights = {node: tuple(w.float() for w in tensors) for node, tensors in checkpoint.weights.items()}
    stream = small(checkpoint.architecture.graph)
    for index in sorted({0, len(stream.grid) // 2, len(stream.grid) - 1}):
        schedule = stream.schedule(stream.grid.tile(index))
        runs, once = streamed(weights, schedule), at_once(weights, schedule)
        assert 0 < runs <= AGREED * once
        assert 1 / AGREED <= multiply_adds(schedule) / runs <= AGREED


def test_a_stream_that_computes_a_slab_twice_is_noticed():
    """The negative control of the count: turns that overlap by their reach, as tiles along z without memory would."""
    checkpoint = network("monai-unet")
    weights = {node: tuple(w.float() for w in tensors) for node, tensors in checkpoint.weights.items()}
    stream = small(checkpoint.architecture.graph)
    halves = Stream.over(
        stream.graph,
        stream.grid.volume,
        per_axis(lambda c, n: c // n, stream.grid.core, (2, 1, 1)),
        least_halo(stream.graph),
        stream.slab,
    )
    whole, first, second = (
        s.schedule(s.grid.tile(index))
        for s, index in ((stream, 0), (halves, 0), (halves, halves.grid.counts[1] * halves.grid.counts[2]))
    )
    assert first.needs.core.hull(second.needs.core) == whole.needs.core
    assert streamed(weights, first) + streamed(weights, second) > AGREED * streamed(weights, whole)


@pytest.mark.parametrize("name", SOME)
def test_wide_columns_cost_little_more_than_one_pass_and_a_plan_takes_such(name):
    """Columns of 512 over a volume of 2048 a side, of networks whose halo is 48 at most; and what a worker of 4 GiB is given."""
    architecture = network(name).architecture
    graph = architecture.graph
    volume, core = (per_axis(round_up, extents, graph.stride) for extents in ((256, 2048, 2048), (256, COLUMN, COLUMN)))
    once = one_pass_multiply_adds(graph, volume)
    columns = Stream.over(graph, volume, core, least_halo(graph), round_up(8, graph.stride[0]))
    reach = max(receptive_radius(graph)[1:])
    assert reach > HALO or total_multiply_adds(columns) <= REACHED * once
    narrow = Stream.over(
        graph, volume, per_axis(round_up, (256, 64, 64), graph.stride), least_halo(graph), columns.slab
    )
    assert total_multiply_adds(narrow) > REACHED * once  # the negative control
    chosen = choose_tiling(TileRequest(architecture, volume, (64, 64, 64), 1, 1, 4, 4 * 2**30, 2))
    assert total_multiply_adds(chosen.stream) <= REACHED * once

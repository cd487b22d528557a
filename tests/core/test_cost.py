from dataclasses import replace
from itertools import pairwise, product
from math import prod
from weakref import finalize

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pipeline.core.geometry.box import Box, Span
from pipeline.core.geometry.mirror import shown
from pipeline.core.network.graph import Graph, Node
from pipeline.core.network.operations import Convolution, Input
from pipeline.core.network.receptive import least_halo, receptive_radius, whole_window
from pipeline.core.network.stream import Stream
from pipeline.core.network.unet import Architecture
from pipeline.core.tiles.cost import (
    held_channels,
    held_extents,
    layer_multiply_adds,
    layer_sums,
    multiply_adds,
    one_pass_multiply_adds,
    read_slices,
    read_spans,
    sweep_values,
    tile_bytes,
    total_multiply_adds,
    total_voxels_decoded,
    total_voxels_read,
    turn_multiply_adds,
    weights,
    widest_plane,
)
from pipeline.core.tiles.grid import TileGrid
from pipeline.networks.model import UNet
from pipeline.networks.sweep import Sweep, kernels
from tests.core.core_cases import architectures, streams, triples
from tests.core.unet_layers import architecture_of

CPU = torch.device("cpu")

FEW_VALUES = 1000
"""What a bound in values may lack: of maps of a few voxels, the frames of zeros show."""

NETWORKS = {
    "3D": Architecture(3, 2, 2),
    "3D, deeper": Architecture(3, 3, 1),
    "3D, many channels": Architecture(3, 1, 1, in_channels=3, out_channels=3),
    "3D, unpadded": Architecture(3, 2, 2, padding="valid", norm="none"),
    "3D, unpadded, deeper": Architecture(3, 3, 1, padding="valid"),
    "2D": Architecture(2, 3, 2, bias=False),
    "2D, unpadded": Architecture(2, 2, 1, padding="valid"),
}


class ValuesAlive(TorchDispatchMode):
    """Counts the values of all tensors that a sweep makes and holds at once; weights and slabs are given to it."""

    def __init__(self):
        super().__init__()
        self.alive, self.most, self._known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given_tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self._known |= {tensor.untyped_storage()._cdata for tensor in given_tensors}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._take(storage, storage.nbytes() // tensor.element_size())
        return made

    def _take(self, storage, values):
        self._known.add(storage._cdata)
        self.alive += values
        self.most = max(self.most, self.alive)
        finalize(storage, self._drop, storage._cdata, values)

    def _drop(self, key, values):
        self._known.discard(key)
        self.alive -= values


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def swept(schedule, watch):
    """A sweep under a watch, which sees neither its weights nor its input being made."""
    network = kernels(UNet(architecture_of(schedule.graph)), device=CPU, dtype=torch.float32)
    reads = [schedule.reads(turn) for turn in range(schedule.turns)]
    plane = (*schedule.window.shape[1:], schedule.graph.input.channels)
    slabs = [torch.zeros((span.extent, *plane)) for span in reads if span.extent]
    with watch:
        for _ in Sweep(network, schedule).run(slabs):
            pass
    return watch


def corners(stream):
    """The turns over the first tile, the last, and one in the middle."""
    count = len(stream.grid)
    return [stream.schedule(stream.grid.tile(index)) for index in sorted({0, count // 2, count - 1})]


def few(architecture, volume=(5, 3, 2), core=(2, 1, 1), slab=1):
    """A network over a small grid, in strides."""
    stride = architecture.stride
    volume, core = (tuple(n * s - (n > 1) for n, s in zip(extents, stride, strict=True)) for extents in (volume, core))
    core = tuple(-(-c // s) * s for c, s in zip(core, stride, strict=True))
    return Stream.over(architecture.graph, volume, core, least_halo(architecture.graph), slab * stride[0])


# --- arithmetic ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", NETWORKS.values(), ids=NETWORKS)
def test_multiply_adds_are_half_of_what_torch_counts(architecture):
    """Every figure of amplification rests on this count: of what a sweep really computes, turn by turn."""
    for slab in (1, 2):
        for schedule in corners(few(architecture, slab=slab)):
            flops = swept(schedule, FlopCounterMode(display=False)).get_total_flops()
            assert 2 * multiply_adds(schedule) == flops


@given(architectures(), triples(1, 40))
def test_one_pass_is_half_of_what_torch_counts(architecture, volume):
    """What amplification is measured against: one forward pass of the network, on tensors without storage."""
    z, *plane = whole_window(architecture.graph, volume)
    with torch.device("meta"):
        model = UNet(architecture).eval()
        batch = (1, architecture.in_channels, z) if architecture.ndim == 3 else (z, architecture.in_channels)
        picture = torch.empty((*batch, *plane))
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(picture)
    assert 2 * one_pass_multiply_adds(architecture.graph, volume) == counted.get_total_flops()


@given(streams())
def test_total_multiply_adds_are_the_sum_over_all_tiles(stream):
    """Counted by kinds of cores along each axis, the total must still be that of each tile in turn."""
    assert total_multiply_adds(stream) == sum(multiply_adds(stream.schedule(tile)) for tile in stream.grid)


@given(streams(), st.integers(1, 4))
def test_arithmetic_does_not_depend_on_the_slab(stream, slab):
    """A sweep computes nothing twice, however its turns are cut."""
    other = replace(stream, slab=slab * stream.graph.stride[0])
    assert total_multiply_adds(other) == total_multiply_adds(stream)


@given(streams())
def test_tiles_never_compute_less_than_their_cores(stream):
    """A total below that of the last layer over the volume would have lost a tile."""
    point = stream.graph.layers.index(stream.graph.output)
    for axis in range(3):
        assert layer_sums(stream, axis)[point] == stream.grid.volume[axis]
    assert total_multiply_adds(stream) >= layer_multiply_adds(stream.graph)[-1] * prod(stream.grid.volume)


@given(architectures(depths=(1, 4)))
def test_weights_are_those_of_the_network(architecture):
    """The memory of a loaded network is told from its sizes."""
    with torch.device("meta"):
        model = UNet(replace(architecture, bias=False, norm="none"))
    assert weights(architecture.graph) == model.parameter_count


def amplification(volume, core):
    """Arithmetic of a tile with neighbours on all sides of which it has some / of its core in one pass, depth 3."""
    architecture = Architecture(3, 3, 16)
    stream = Stream.over(architecture.graph, volume, core, least_halo(architecture.graph), 8)
    middle = stream.grid.tile(len(stream.grid) // 2)
    return multiply_adds(stream.schedule(middle)) / one_pass_multiply_adds(architecture.graph, core)


def test_amplification_of_tiles_of_128():
    """Copy and crop takes 2.2 x, the sweep's start included; windows that keep all that they compute would take 5.4 x."""
    assert amplification((640, 640, 640), (128, 128, 128)) == pytest.approx(2.2, abs=0.05)


def test_a_column_costs_little_more_than_one_pass():
    """What the design rests on: nothing is computed twice along z, and little along y and x."""
    assert 1.0 < amplification((2048, 2560, 2560), (2048, 512, 512)) <= 1.20


# --- reading ------------------------------------------------------------------------------------------------------------


@given(streams())
def test_total_voxels_read_are_the_sum_over_all_tiles(stream):
    """Unpadded windows reach far beyond small cores: many tiles near an end, not only the first, see it."""
    assert total_voxels_read(stream.grid) == sum(
        shown(tile.window, stream.grid.volume)[0].voxels for tile in stream.grid
    )


def blocks(stream, tile, slices):
    """The boxes that a tile reads, one after another."""
    window = tile.window
    for first, stop in read_spans(Span(window.start[0], window.stop[0]), stream.grid.volume[0], slices):
        yield Box((first, *window.start[1:]), (stop, *window.stop[1:]))


def decoded(box, volume, chunks):
    """Voxels of all chunks that a box inside a volume touches, counted chunk by chunk."""
    places = [range(a // c, (b - 1) // c + 1) for a, b, c in zip(box.start, box.stop, chunks, strict=True)]
    extents = [[min((i + 1) * c, n) - i * c for i in axis] for axis, c, n in zip(places, chunks, volume, strict=True)]
    return sum(prod(chunk) for chunk in product(*extents))


@settings(max_examples=25)
@given(streams(extent=24, tiles=60), triples(1, 30), st.integers(1, 50))
def test_total_voxels_decoded_are_those_of_all_chunks_touched(stream, chunks, slices):
    """Reading is decoding: a voxel of a chunk costs the same, wanted or not, and once more each time it is touched."""
    read = (shown(box, stream.grid.volume)[0] for tile in stream.grid for box in blocks(stream, tile, slices))
    assert total_voxels_decoded(stream.grid, chunks, slices) == sum(
        decoded(box, stream.grid.volume, chunks) for box in read
    )


def test_a_last_chunk_that_is_cut_is_decoded_as_long_as_it_is():
    """Tiles that touch it are not like those that touch a whole one, however far they are from the end."""
    grid = TileGrid((15, 1, 1), (1, 2, 2), (1, 2, 2), (0, 8, 8), "valid")
    assert total_voxels_decoded(grid, (4, 1, 1), 1) == 12 * 4 + 3 * 3
    assert total_voxels_decoded(replace(grid, volume=(16, 1, 1)), (4, 1, 1), 1) == 16 * 4


@given(streams(), triples(1, 30))
def test_chunks_of_a_voxel_are_decoded_as_they_are_read(stream, chunks):
    """Reading at once all that a tile needs, nothing but a chunk's rest is in excess."""
    most = stream.grid.volume[0] + 2 * (stream.grid.core[0] + receptive_radius(stream.graph)[0])
    assert total_voxels_decoded(stream.grid, (1, 1, 1), most) == total_voxels_read(stream.grid)
    assert total_voxels_decoded(stream.grid, chunks, most) >= total_voxels_read(stream.grid)


@given(streams(), st.integers(1, 50))
def test_parts_that_are_read_at_once_make_up_the_window(stream, slices):
    """In order, none empty, and cut where chunks are; what is mirrored comes with the part beside it."""
    for tile in stream.grid:
        window = stream.schedule(tile).needs.input
        parts = list(read_spans(window, stream.grid.volume[0], slices))
        assert [z for part in parts for z in range(*part)] == list(range(*window))
        assert all(part.extent > 0 for part in parts)
        assert all(part.stop % slices == 0 and 0 < part.stop < stream.grid.volume[0] for part in parts[:-1])


@given(streams(), st.integers(1, 99), st.sampled_from((1, 2, 4, 8)))
def test_slices_that_are_read_at_once_are_whole_chunks_where_small(stream, chunk, value_bytes):
    """Fewer would decode a chunk twice; a sweep takes in a slab at least."""
    found = read_slices(stream, chunk, value_bytes)
    assert found == stream.grid.volume[0] or (found % chunk == 0 and found >= stream.slab)


def test_slices_that_are_read_at_once_fit_into_memory():
    """A chunk may hold a thousand slices, and a plane a gigabyte."""
    architecture = Architecture(3, 2, 1, in_channels=2)
    stream = Stream.over(architecture.graph, (4096, 4096, 4096), (4096, 4096, 4096), (24, 24, 24), 4)
    assert widest_plane(stream.grid) == 2**24
    assert read_slices(stream, 1000, 2) == 4
    assert read_slices(stream, 1000, 1) == 2**28 // 2**25
    assert read_slices(replace(stream, slab=64), 1000, 1) == 64


# --- memory -------------------------------------------------------------------------------------------------------------


def held(stream):
    """Values that the sweeps over a grid's tiles hold at once, at most."""
    return max(swept(schedule, ValuesAlive()).most for schedule in corners(stream))


@pytest.mark.parametrize("slab", [1, 2, 4])
@pytest.mark.parametrize("architecture", NETWORKS.values(), ids=NETWORKS)
def test_sweep_values_bound_what_a_sweep_holds(architecture, slab):
    """The memory of a tile is promised before it runs: too small a bound is a killed worker, too large a wasted one."""
    for volume, core in [
        ((1, 1, 1), (1, 1, 1)),
        ((4, 2, 2), (4, 2, 2)),
        ((21, 3, 3), (7, 1, 1)),
        ((16, 3, 3), (16, 2, 2)),
    ]:
        stream = few(architecture, volume, core, min(slab, core[0]))
        most = held(stream)
        assert most - FEW_VALUES <= sweep_values(stream) <= 3 * most


@settings(max_examples=10)
@given(streams(extent=16, tiles=40))
def test_sweep_values_bound_what_any_sweep_holds(stream):
    """The same, wherever the ends lie."""
    assert held(stream) - FEW_VALUES <= sweep_values(stream)


def test_a_layer_s_input_and_output_are_held_twice():
    """A convolution library may copy both into a layout of its own, which no count of tensors shows: four slices a turn."""
    pointwise = Node("layer", Convolution((1, 1, 1), (0, 0, 0)), ("input",), 3)
    graph = Graph((Node("input", Input(), (), 1), pointwise))
    stream = Stream.over(graph, (40, 8, 8), (40, 8, 8), (0, 0, 0), 4)
    assert sweep_values(stream) == 2 * (1 + 3) * 4 * 8 * 8


@given(architectures(depths=(1, 4)), st.sampled_from((1, 2, 4)))
def test_sweep_values_do_not_grow_with_the_core_along_z(architecture, slab):
    """A column may be as tall as the volume: what is behind the sweep is forgotten."""
    if architecture.ndim == 2:
        architecture = replace(architecture, ndim=3)
    stride = architecture.stride[0]
    tall = [
        Stream.over(
            architecture.graph,
            (n, 8 * stride, stride),
            (n, 2 * stride, stride),
            least_halo(architecture.graph),
            slab * stride,
        )
        for n in (50 * stride, 51 * stride, 10**6 * stride)
    ]
    assert len({sweep_values(stream) for stream in tall}) == 1
    low = replace(tall[0], grid=replace(tall[0].grid, core=(stride,) * 3), slab=stride)
    assert sweep_values(low) < sweep_values(tall[0])


@given(streams())
def test_held_extents_are_those_of_channels(stream):
    """Tables of an axis are multiplied with each other and with the channels: one entry a thing held."""
    channels, written = held_channels(stream.graph)
    for axis in range(3):
        found = held_extents(stream, axis)
        assert [len(table) for table in found] == [len(channels), len(written)]
        assert all((table > 0).all() for table in found)


@settings(max_examples=20)
@given(
    streams(extent=24, tiles=60),
    st.sampled_from((1, 2, 4)),
    st.sampled_from((1, 4)),
    st.integers(1, 64),
    st.integers(1, 64),
)
def test_bytes_of_a_tile_hold_what_is_read_ahead_and_written_behind(stream, in_bytes, out_bytes, chunk, unit):
    """Beside the network: the block in use and the next one, and a write unit that fills while another is encoded."""
    slices = read_slices(stream, chunk, in_bytes)
    read = 0
    for tile in stream.grid:
        voxels = [box.voxels for box in blocks(stream, tile, slices)]
        read = max(read, *(sum(pair) for pair in pairwise([0, *voxels])))
    plane = max(prod(tile.core.shape[1:]) for tile in stream.grid)
    written = min(unit, stream.grid.volume[0]) * plane * stream.graph.output.channels * out_bytes
    assert (
        tile_bytes(stream, in_bytes, out_bytes, chunk, unit)
        >= stream.graph.input.channels * read * in_bytes + 2 * written
    )


@pytest.mark.parametrize(
    ("architecture", "core", "plane", "mirrored"),
    [
        (Architecture(3, 1, 1, in_channels=2, out_channels=3), (16, 20, 24), (20 + 16) * (24 + 16), 1),
        (Architecture(3, 1, 1, in_channels=2, out_channels=3), (64, 64, 96), 60 * 80, 1),
        (Architecture(3, 1, 1, padding="valid", in_channels=2, out_channels=3), (64, 64, 96), 76 * 96, 8 + 9),
    ],
    ids=["many tiles", "one tile", "one unpadded tile"],
)
def test_bytes_of_a_tile_are_those_of_blocks_slabs_and_write_units(architecture, core, plane, mirrored):
    """Of 16 bits in and 32 out: four blocks of eight slices and what is mirrored, a slab of four, three times a unit of 16."""
    stream = Stream.over(architecture.graph, (41, 60, 80), core, least_halo(architecture.graph), 4)
    written = min(core[1], 60) * min(core[2], 80) * 3
    blocks = 4 * (8 + mirrored) * 2 * plane * 2
    slab = 4 * (24 * 2 * plane + 20 * written)
    assert tile_bytes(stream, 2, 4, 8, 16) == blocks + slab + 3 * (16 + 4) * written * 4
    assert tile_bytes(stream, 2, 4, 8, 99) == blocks + slab + 3 * (41 + 4) * written * 4  # no more than the volume


def test_a_turn_away_from_the_ends_computes_a_slab_of_each_layer():
    """What is timed before a run: of a long column, all turns but those at its ends are such."""
    stream = few(Architecture(3, 2, 2), (60, 2, 2), (60, 2, 2), slab=2)
    longer = few(Architecture(3, 2, 2), (62, 2, 2), (62, 2, 2), slab=2)
    one, other = (multiply_adds(each.schedule(each.grid.tile(0))) for each in (stream, longer))
    assert turn_multiply_adds(stream.schedule(stream.grid.tile(0))) == other - one


# --- all tiles ----------------------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(architectures(depths=(1, 4)))
def test_counting_does_not_grow_with_the_volume(architecture):
    """Ten billion tiles are counted like ten: the differences between long volumes are those of one tile more."""
    core = tuple(2 * s for s in architecture.stride)
    stream = Stream.over(architecture.graph, core, core, least_halo(architecture.graph), core[0])
    counts = (
        total_multiply_adds,
        lambda stream: total_voxels_read(stream.grid),
        lambda stream: total_voxels_decoded(stream.grid, core, core[0]),
    )
    for count in counts:
        long = [
            replace(stream, grid=replace(stream.grid, volume=(n * core[0], 10**5 * core[1], 10 * core[2])))
            for n in (10**4, 10**4 + 1, 10**4 + 2)
        ]
        first, second, third = map(count, long)
        assert third - second == second - first > 0


def test_a_small_unpadded_core_reads_its_mirrored_margins_once():
    """One slice row of sixteen voxels a tile: the six tiles nearest to each end are all cut short by it."""
    architecture = Architecture(2, 4, 1, padding="valid")
    stream = Stream.over(architecture.graph, (1, 1, 1600), (1, 16, 16), (0, 0, 0), 1)
    assert receptive_radius(architecture.graph)[2] > 5 * 16
    assert total_voxels_read(stream.grid) == sum(
        shown(tile.window, stream.grid.volume)[0].voxels for tile in stream.grid
    )

"""Any graph slab by slab: what one window gives, whatever the slab; nothing computed twice, and no more held than is reckoned."""

import random
from dataclasses import replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import pytest
import torch

from pipeline.core.geometry.box import Span, per_axis, triple
from pipeline.core.network.flow import Flow
from pipeline.core.network.graph import Graph, Node
from pipeline.core.network.need import needs
from pipeline.core.network.operations import (
    Activation,
    Affine,
    AlignedResize,
    AveragePool,
    ChannelSlice,
    Combination,
    Concatenation,
    Convolution,
    Crop,
    Input,
    MaxPool,
    Pad,
    Resize,
    TransposedConvolution,
)
from pipeline.core.network.receptive import lost_margin
from pipeline.core.network.unet import Architecture
from pipeline.core.tiles.cost import network_values, stream_extents, stream_values
from pipeline.networks.evaluate import evaluate, folded
from pipeline.networks.importing.exported import graph_of
from pipeline.networks.streaming import Streaming
from tests.core.test_cost import ValuesAlive
from tests.networks.network_cases import NETWORKS, exported, randomise
from tests.networks.test_importing import image_of, solid
from tests.networks.test_windows import stream_of

EQUAL = 1e-12
"""Of values of about 1, float64."""

LIKE = torch.zeros(1, dtype=torch.float64)


def flow_of(graph, shape, cores, step):
    """The turns of a core of an image of `shape` voxels; Flow."""
    ends = [Span(0, n) if graph.is_padded else None for n in shape]
    return Flow(graph, triple(needs(graph, axis, core, ends[axis]) for axis, core in enumerate(cores)), step)


def window_of(image, flow):
    """The voxels that it needs of an image, 1 C Z Y X, whose first is at the margin that a pass loses."""
    margin = lost_margin(flow.graph)
    spans = zip(flow.axes, margin, strict=True)
    return image[(slice(None), slice(None), *(slice(a.input.start + m, a.input.stop + m) for a, m in spans))]


def streamed(weights, flow, window, streaming=Streaming):
    """All that a stream gives, 1 C Z Y X; its turns follow on one another."""
    first, x_ZYXC = flow.window.start[0], window[0].movedim(0, -1)
    slabs = (x_ZYXC[a - first : b - first] for a, b in flow.inputs())
    parts = list(streaming(weights, flow, LIKE).run(slabs))
    assert [span.start for span, _ in parts] == [flow.needs.core.start, *(span.stop for span, _ in parts[:-1])]
    return torch.cat([values for _, values in parts]).movedim(-1, 0)[None]


def cores_of(shape, choose):
    """The whole, and boxes at ends and within."""
    yield [Span(0, n) for n in shape]
    for _ in range(4):
        starts = [choose.choice([0, choose.randrange(n)]) for n in shape]
        yield [Span(a, choose.choice([n, choose.randint(a + 1, n)])) for a, n in zip(starts, shape, strict=True)]


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    """A network, its import, an image, and the whole pass of the network itself."""
    network = randomise(NETWORKS[request.param]())
    image = image_of(network)
    return graph_of(exported(network)), solid(image, network), solid(network(image), network)


def test_slabs_of_any_extent_give_what_the_module_does(case):
    """Networks of other libraries' layouts, at the ends of the volume and within."""
    imported, image, whole = case
    choose = random.Random(1)
    for cores in cores_of(whole.shape[2:], choose):
        step = imported.graph.stride[0] * choose.choice([1, 2, 3, 8])
        flow = flow_of(imported.graph, image.shape[2:], cores, step)
        expected = whole[(slice(None), slice(None), *(slice(*core) for core in cores))]
        given = streamed(imported.weights, flow, window_of(image, flow))
        torch.testing.assert_close(given, expected, rtol=0, atol=EQUAL)


def test_our_unet_is_one_graph_of_it():
    """Same padding and valid, 3D and 2D: as in one window, with weights of its nodes."""
    for architecture in (Architecture(3, 1, 2), Architecture(3, 1, 2, padding="valid"), Architecture(2, 1, 2)):
        graph = architecture.graph
        weights = weights_of(graph, random.Random(0))
        shape = per_axis(lambda s: 4 * s, graph.stride)
        for cores in cores_of(shape, random.Random(2)):
            flow = flow_of(graph, shape, cores, graph.stride[0])
            image = torch.rand((1, 1, *(a.input.extent for a in flow.axes)), dtype=torch.float64)
            expected = evaluate(graph, weights, image, flow.axes)
            torch.testing.assert_close(streamed(weights, flow, image), expected, rtol=0, atol=EQUAL)


# --- random graphs ------------------------------------------------------------------------------------------------------


def operations(choose, channels):
    """One of each kind, along z by chance and along x hardly, and the channels that it writes."""
    n = choose.randint
    k, s, d, p = n(1, 4), n(1, 3), n(1, 2), n(0, 2)
    f, e, c = n(2, 3), n(0, 1), n(1, 3)
    low, high = n(0, 2), n(0, 2)
    mode = choose.choice(["zero", "replicate", "reflect"])
    wide = (k, 1, 3)
    return {
        "convolution": (Convolution(wide, (p, 0, 1), (s, 1, 1), (d, 1, 1), 1, (-p, 0, -1)), c),
        "grouped": (Convolution(wide, (p, 0, 1), (1, 1, 1), (1, 1, 1), channels, (-p, 0, -1)), channels),
        "maximum": (MaxPool((s, 1, 1), (-min(p, k // 2), 0, 0), (k, 1, 1), (1, 1, 1), (min(p, k // 2), 0, 0), True), channels),
        "mean": (AveragePool((s, 1, 1), (-min(p, k // 2), 0, 0), (k, 1, 1), (1, 1, 1), (min(p, k // 2), 0, 0), True), channels),
        "counted": (AveragePool((s, 1, 1), (-min(p, k // 2), 0, 0), (k, 1, 1), (1, 1, 1), (min(p, k // 2), 0, 0), True, False), channels),
        "transposed": (TransposedConvolution((f, 1, 1), (-low, 0, 0), (n(1, 5), 1, 1), (d, 1, 1), (low, 0, 0), (e, 0, 0)), c),
        "nearest": (Resize((f, 1, 1), "nearest"), channels),
        "linear": (Resize((f, 1, 1), "linear"), channels),
        "aligned": (AlignedResize((f, 1, 1)), channels),
        "pad": (Pad((low, 0, 0), (high, 0, 1), mode), channels),
        "crop": (Crop((low, 0, 0), (high, 0, 0)), channels),
        "activation": (Activation(choose.choice(["relu", "sigmoid", "softmax", "elu"])), channels),
        "leaky": (Activation("leaky_relu", (0.1,)), channels),
        "affine": (Affine(), channels),
        "slice": (ChannelSlice(0, max(channels - 1, 1)), max(channels - 1, 1)),
    }  # fmt: skip


KINDS = [*operations(random.Random(0), 2)]


def random_graph(choose, kind):
    """A few operations one after another, one of them of a kind, and joins with what was before; all of it back at level 0."""
    nodes, scales = [Node("input", Input(), (), 2)], [1]

    def add(name, operation, inputs, channels, scale):
        nodes.append(Node(f"{len(nodes)} {name}", operation, inputs, channels))
        scales.append(scale)

    kinds = [kind, *(choose.choice(KINDS) for _ in range(choose.randint(1, 4)))]
    choose.shuffle(kinds)
    for one in kinds:
        operation, channels = operations(choose, nodes[-1].channels)[one]
        up, down = operation.up[0], operation.down[0]
        if scales[-1] % up:
            add(
                "down",
                MaxPool((up, 1, 1), (0, 0, 0), drops=True),
                (nodes[-1].name,),
                nodes[-1].channels,
                scales[-1] * up,
            )
        add(one, operation, (nodes[-1].name,), channels, scales[-1] * down // up)
        alike = [n for n, scale in enumerate(scales[:-1]) if scale == scales[-1]]
        if alike and choose.random() < 0.7:
            other = nodes[choose.choice(alike)]
            names, both = (nodes[-1].name, other.name), (nodes[-1].channels, other.channels)
            if choose.random() < 0.6:
                add("join", Concatenation(), names, sum(both), scales[-1])
            elif both[0] == both[1] or 1 in both:
                add("sum", Combination(choose.choice(["add", "mul"])), names, max(both), scales[-1])
    if scales[-1] > 1:
        add("back", Resize((scales[-1], 1, 1), "nearest"), (nodes[-1].name,), nodes[-1].channels, 1)
    return Graph(tuple(nodes))


def weights_of(graph, choose):
    """Of its nodes, float64, below 1."""
    generator = torch.Generator().manual_seed(choose.randrange(2**31))

    def drawn(*shape):
        return (torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5) * 0.8

    weights = {}
    for node in graph.nodes:
        operation, channels = node.operation, graph.in_channels(node)
        if isinstance(operation, Convolution):
            weights[node.name] = (
                drawn(node.channels, channels // operation.groups, *operation.kernel),
                drawn(node.channels),
            )
        elif isinstance(operation, TransposedConvolution):
            weights[node.name] = (drawn(channels, node.channels, *operation.taps), drawn(node.channels))
        elif isinstance(operation, Affine):
            weights[node.name] = drawn(node.channels), drawn(node.channels)
    return weights


def drawn_cases(kind, wanted, seed=0):
    """Graphs that are some, with the shape of an image of theirs, and that of its output."""
    choose = random.Random(f"{kind} {seed}")
    while wanted:
        try:
            graph = random_graph(choose, kind)
            shape = (choose.randint(12, 30), 2, 6)
            output = triple(graph.ends(axis, Span(0, n))[graph.output.name] for axis, n in enumerate(shape))
            assert graph.scales is not None
        except ValueError:  # groups that do not fit, joins that end elsewhere
            continue
        begins = all(span.start == 0 and span.extent > 0 for span in output)
        if begins and graph.scales[graph.output.name] == (1, 1, 1) and graph.is_padded:
            wanted -= 1
            yield graph, shape, triple(span.extent for span in output)


@pytest.mark.parametrize("kind", KINDS)
def test_random_graphs_are_streamed_as_one_window(kind):
    """Every kind of operation, strides and reaches that are unlike, skips that wait, and slabs of a stride or more."""
    choose = random.Random(kind)
    for graph, shape, output in drawn_cases(kind, 6):
        weights = weights_of(graph, choose)
        image = torch.rand((1, 2, *shape), dtype=torch.float64)
        whole_flow = flow_of(graph, shape, [Span(0, n) for n in output], graph.stride[0])
        whole = evaluate(graph, weights, window_of(image, whole_flow), whole_flow.axes)
        for cores in cores_of(output, choose):
            flow = flow_of(graph, shape, cores, graph.stride[0] * choose.choice([1, 2, 5]))
            given = streamed(weights, flow, window_of(image, flow))
            expected = whole[(slice(None), slice(None), *(slice(*core) for core in cores))]
            torch.testing.assert_close(given, expected, rtol=0, atol=EQUAL)


class Short(Flow):
    """A flow that keeps one slice too few of what the first node that waits for long keeps."""

    @cached_property
    def lags(self):
        lags = dict(Flow.lags.func(self))
        name = next(name for name, lag in lags.items() if lag > 1)
        return {**lags, name: lags[name] - 1}


def test_a_ring_of_one_slice_less_is_found(case):
    """The negative control: what a reader asks for is no longer there. Slices of a 2D network wait for nothing."""
    imported, image, whole = case
    flow = flow_of(imported.graph, image.shape[2:], [Span(0, n) for n in whole.shape[2:]], imported.graph.stride[0])
    if imported.ndim == 2:
        assert not any(flow.lags.values())
        return
    short = Short(flow.graph, flow.axes, flow.step)
    with pytest.raises(RuntimeError, match="are asked for; it holds"):
        streamed(imported.weights, short, window_of(image, flow))


# --- what it holds and computes -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=NETWORKS)
def imported(request):
    """A network, float32."""
    return graph_of(exported(randomise(NETWORKS[request.param]()).float()))


def alive(imported, stream):
    """Values alive at once in the widest tile, its slabs given."""
    flow = stream.schedule(stream.grid.widest())
    weights = {name: tuple(w.float() for w in tensors) for name, tensors in imported.weights.items()}
    slabs = [torch.zeros((span.extent, *flow.window.shape[1:], flow.graph.input.channels)) for span in flow.inputs()]
    watch = ValuesAlive()
    with watch:
        for _ in Streaming(weights, flow, LIKE.float()).run(slabs):
            pass
    return watch.most


@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 4, 3), (12, 6, 6)])
def test_the_memory_of_a_stream_is_bound_before_it_runs(imported, strides):
    """Too small a bound is a killed worker, too large a wasted one."""
    stream = stream_of(imported.graph, strides)
    stream = replace(stream, slab=imported.graph.stride[0])
    most = alive(imported, stream)
    assert most <= network_values(stream) <= 4 * most


def test_all_candidates_of_a_stream_are_reckoned_as_each_by_itself(imported):
    """A plan looks at thousands of tiles at once."""
    streams = [stream_of(imported.graph, strides) for strides in [(1, 2, 1), (4, 2, 3)]]
    streams = [replace(stream, slab=imported.graph.stride[0]) for stream in streams]
    tables = [np.array([stream_extents(stream, axis) for stream in streams]) for axis in range(3)]
    values = stream_values(imported.graph, tables).reshape(2, 2, 2)
    assert [values[n, n, n] for n in range(2)] == [network_values(stream) for stream in streams]


def test_a_longer_column_takes_no_more_memory(imported):
    """Four times the length along z: at most 1.05 times, by what is alive and by what is reckoned."""
    short, long = (replace(stream_of(imported.graph, (n, 2, 2)), slab=imported.graph.stride[0]) for n in (12, 48))
    assert alive(imported, long) <= 1.05 * alive(imported, short)
    assert network_values(long) == network_values(short)


def test_each_node_computes_once_what_the_core_needs_of_it(case):
    """Slices of all turns, together, are those that it needs; none twice."""
    imported, image, whole = case
    flow = flow_of(imported.graph, image.shape[2:], [Span(0, n) for n in whole.shape[2:]], imported.graph.stride[0])
    for node in imported.graph.nodes:
        spans = [span for span in (flow.writes(node, turn) for turn in range(flow.turns)) if span.extent]
        assert spans[0].start == flow.needs.writes[node.name].start
        assert spans[-1].stop == flow.needs.writes[node.name].stop
        assert all(a.stop == b.start for a, b in pairwise(spans))


def test_batch_norms_that_are_folded_change_nothing_but_rounding(case):
    """The map has no weights left, and the network gives the same."""
    imported, image, whole = case
    weights = folded(imported.graph, imported.weights)
    assert [n.name for n in imported.graph.nodes if isinstance(n.operation, Affine) and not weights[n.name]] or not any(
        isinstance(n.operation, Affine) for n in imported.graph.nodes
    )
    flow = flow_of(imported.graph, image.shape[2:], [Span(0, n) for n in whole.shape[2:]], imported.graph.stride[0] * 2)
    torch.testing.assert_close(streamed(weights, flow, window_of(image, flow)), whole, rtol=0, atol=EQUAL)


def test_an_affine_map_of_what_others_read_too_is_not_folded():
    """The convolution's output is wanted as it is."""
    nodes = (
        Node("input", Input(), (), 2),
        Node("convolution", Convolution((3, 1, 1), (1, 0, 0), first=(-1, 0, 0)), ("input",), 2),
        Node("map", Affine(), ("convolution",), 2),
        Node("sum", Combination("add"), ("map", "convolution"), 2),
    )
    weights = weights_of(Graph(nodes), random.Random(0))
    assert folded(Graph(nodes), weights) == weights

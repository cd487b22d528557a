"""What a window costs: the plan's bound of its memory holds, for one tile and for all candidates at once."""

import numpy as np
import pytest
import torch

from pipeline.core.geometry.box import per_axis
from pipeline.core.network.document import KINDS, document, graph_of
from pipeline.core.network.imported import Imported, network_of
from pipeline.core.network.operations import ACTIVATIONS, Input
from pipeline.core.network.receptive import least_halo
from pipeline.core.network.stream import Stream
from pipeline.core.network.unet import Architecture
from pipeline.core.tiles.cost import multiply_adds, network_values, sweep_values, window_extents, window_values
from pipeline.networks.evaluate import FUNCTIONS, STEPS, evaluate
from pipeline.networks.importing import exported as programs
from tests.core.test_cost import ValuesAlive
from tests.networks.network_cases import NETWORKS, exported, randomise


@pytest.fixture(scope="module", params=NETWORKS)
def imported(request):
    """A network, float32."""
    return programs.graph_of(exported(randomise(NETWORKS[request.param]()).float()))


def stream_of(graph, strides):
    """Tiles whose cores are so many strides, of a volume in which one has its whole halo."""
    core = per_axis(lambda s, n: s * n, graph.stride, strides)
    volume = per_axis(lambda c, h: 3 * c + 2 * h, core, least_halo(graph))
    halo = least_halo(graph) if graph.is_padded else (0, 0, 0)
    return Stream.over(graph, volume, core, halo, core[0])


def window_bound(graph, stream):
    """What a plan reckons with, were the network run as one window."""
    return window_values(graph, [window_extents(stream, axis)[np.newaxis] for axis in range(3)])[0]


def held(imported, stream):
    """Values alive at once in the widest tile, its window given."""
    schedule = stream.schedule(stream.grid.widest())
    window = torch.zeros((1, imported.graph.input.channels, *schedule.window.shape))
    weights = {name: tuple(w.float() for w in tensors) for name, tensors in imported.weights.items()}
    watch = ValuesAlive()
    with torch.inference_mode(), watch:
        evaluate(imported.graph, weights, window, schedule.axes)
    return watch.most + window.numel()


@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 4, 3), (8, 8, 8)])
def test_the_memory_of_a_window_is_bound_before_it_runs(imported, strides):
    """Too small a bound is a killed worker, too large a wasted one."""
    stream = stream_of(imported.graph, strides)
    most = held(imported, stream)
    assert most <= window_bound(imported.graph, stream) <= 4 * most


def test_all_candidates_are_reckoned_as_each_by_itself(imported):
    """A plan looks at thousands of tiles at once."""
    sizes = [(1, 2, 1), (4, 2, 3)]
    streams = [stream_of(imported.graph, strides) for strides in sizes]
    tables = [np.array([window_extents(stream, axis) for stream in streams]) for axis in range(3)]
    values = window_values(imported.graph, tables).reshape(2, 2, 2)
    for number, stream in enumerate(streams):
        assert values[number, number, number] == window_bound(imported.graph, stream)


def test_our_unet_is_reckoned_by_its_sweep():
    """Which way a network runs follows from its structure."""
    graph = Architecture(3, 2, 2).graph
    stream = Stream.over(graph, (32, 32, 32), (16, 16, 16), least_halo(graph), 4)
    assert graph.is_swept
    assert network_values(stream) == sweep_values(stream)


def test_an_imported_network_is_not_swept(imported):
    """It has operations for which the sweep has no step; it is streamed."""
    assert not imported.graph.is_swept
    assert imported.graph.is_streamed
    assert (
        multiply_adds(stream_of(imported.graph, (1, 1, 1)).schedule(stream_of(imported.graph, (1, 1, 1)).grid.widest()))
        > 0
    )


def test_every_activation_and_operation_that_a_document_may_name_is_computed():
    """What loads is run: nothing fails at a worker's first tile."""
    assert set(FUNCTIONS) == ACTIVATIONS
    assert set(STEPS) == {*KINDS.values()} - {Input}


def test_a_graph_is_the_same_after_it_was_a_document(imported):
    """A plan and a checkpoint hold it."""
    network = Imported(imported.graph, imported.ndim)
    assert graph_of(document(imported.graph)) == imported.graph
    assert network_of(network.to_dict()) == network
    assert network_of(Architecture(3, 1, 2).to_dict()) == Architecture(3, 1, 2)


@pytest.mark.parametrize(
    "content",
    [
        None, [], "graph", [["input"]], [["input", "Input", {}, [], "1"]], [["input", "Inputs", {}, [], 1]],
        [["input", "Input", {"colour": 1}, [], 1]], [["input", "Operation", {}, [], 1]], [[1, "Input", {}, [], 1]],
        [["input", "Input", {}, [], 1], ["a", "Convolution", {"kernel": "333", "padding": [0, 0, 0]}, ["input"], 1]],
        [["input", "Input", {}, [], 1], ["a", "Convolution", {"kernel": [3, 3], "padding": [0, 0, 0]}, ["input"], 1]],
        [["input", "Input", {}, [], 1], ["a", "Convolution", {"kernel": [3, 3, -3], "padding": [0, 0, 0]}, ["input"], 1]],
        [["input", "Input", {}, [], 1], ["a", "Activation", {"function": "system"}, ["input"], 1]],
        [["input", "Input", {}, [], 1], ["a", "Activation", {"function": "relu"}, ["b"], 1]],
    ],
)  # fmt: skip
def test_what_is_no_graph_is_refused(content):
    """Documents come from files that others wrote."""
    with pytest.raises(ValueError, match=r"graph|node|operation"):
        graph_of(content)

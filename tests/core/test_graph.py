"""Networks as graphs: what makes one, what follows from it, and that nobody knows a layer by its name."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given

import pipeline
from pipeline.core.geometry.box import Span
from pipeline.core.network.document import digest
from pipeline.core.network.graph import Graph, Node
from pipeline.core.network.need import needs
from pipeline.core.network.operations import (
    Activation,
    Concatenation,
    Convolution,
    Input,
    Lattice,
    MaxPool,
    TransposedConvolution,
)
from pipeline.core.network.receptive import receptive_radius
from pipeline.core.network.unet import Architecture, unet
from tests.core.core_cases import architectures
from tests.core.unet_layers import layers, sources

CONVOLUTION = Convolution((3, 3, 3), (1, 1, 1))
PAIRS = ((2, 2, 2), (0, 0, 0))


def graph(*nodes):
    """A graph of an input of one channel, and (name, operation, inputs, channels) after it."""
    return Graph((Node("input", Input(), (), 1), *(Node(*node) for node in nodes)))


# --- the UNet -------------------------------------------------------------------------------------------------------------


@given(architectures(depths=(1, 4)))
def test_the_unet_has_the_layers_of_the_notes(architecture):
    """By name, channels and what reads what; activations and concatenations stand between them."""
    built = architecture.graph
    assert [node.name for node in built.layers] == [layer.name for layer in layers(architecture)]
    for layer in layers(architecture):
        node = built.node(layer.name)
        assert (built.in_channels(node), node.channels) == (layer.in_channels, layer.out_channels)
        before = list(node.inputs)
        while between := [name for name in before if not (name == "input" or built.node(name) in built.layers)]:
            before = [n for name in before for n in (built.node(name).inputs if name in between else [name])]
        assert before == sources(architecture, layer)


def test_poolings_and_concatenations_have_the_numbers_of_their_levels():
    """A refusal names them: people look for `pool2` between the second encoder and the third."""
    built = Architecture(3, 2, 1).graph
    named = [node.name for node in built.nodes if isinstance(node.operation, MaxPool | Concatenation)]
    assert named == ["pool1", "pool2", "concatenation2", "concatenation1"]


@given(architectures(depths=(1, 4)))
def test_strides_and_channels_of_the_graph_are_those_of_the_architecture(architecture):
    """Two ways to the same numbers: plans were made with the one, and tiles are computed with the other."""
    built = architecture.graph
    assert built.stride == architecture.stride
    assert built.is_padded == (architecture.padding == "same")
    assert (built.input.channels, built.output.channels) == (architecture.in_channels, architecture.out_channels)
    assert built is unet(replace(architecture))


# --- what makes a graph ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            [("a", CONVOLUTION, ("input",), 1), ("a", CONVOLUTION, ("a",), 1)],
            "Two nodes of the graph have the name 'a'",
        ),
        ([("a", CONVOLUTION, ("b",), 1)], "Node 'a' reads b, which no node before it writes"),
        ([("a", Input(), (), 1)], "the first node is the only input"),
        ([("a", CONVOLUTION, (), 1)], "the first node is the only input"),
        ([("a", CONVOLUTION, ("input", "input"), 1)], "its operation takes one"),
        ([("a", Activation("relu"), ("input",), 2)], "Node 'a' writes 2 channels, and is given 1"),
        ([("a", MaxPool(*PAIRS), ("input",), 2)], "Node 'a' writes 2 channels, and is given 1"),
        ([("a", CONVOLUTION, ("input",), 2), ("b", CONVOLUTION, ("input",), 1)], "Nothing reads what a"),
    ],
)
def test_what_is_no_graph_is_refused(nodes, message):
    """A builder's slip is told where it is made, not turns later as a strange shape."""
    with pytest.raises(ValueError, match=re.escape(message)):
        graph(*nodes)


def test_levels_that_differ_are_not_joined():
    """A concatenation of a map and its pooling has no voxels in common; nor does anything write finer than the volume."""
    pooled = graph(("pool", MaxPool(*PAIRS), ("input",), 1), ("join", Concatenation(), ("pool", "input"), 2))
    with pytest.raises(ValueError, match="Node 'join' reads levels"):
        _ = pooled.stride
    with pytest.raises(ValueError, match="Node 'up'"):
        _ = graph(("up", TransposedConvolution(*PAIRS), ("input",), 1)).stride


def test_poolings_that_never_meet_are_refused():
    """Turns stop where groups do; at even and at odd voxels at once they cannot."""
    even, odd = MaxPool((2, 2, 2), (0, 0, 0)), MaxPool((2, 2, 2), (1, 0, 0))
    built = graph(("a", even, ("input",), 1), ("b", odd, ("input",), 1), ("c", Concatenation(), ("a", "b"), 2))
    assert built.lattice(1, "input") == Lattice(2, 0)
    with pytest.raises(ValueError, match="nowhere together"):
        built.lattice(0, "input")


def test_lattices_follow_from_all_that_reads():
    """A pooling of a pooling takes whole groups of groups; a convolution between them keeps what it cannot use yet."""
    first, second = MaxPool((2, 2, 2), (1, 0, 0)), MaxPool((3, 1, 1), (2, 0, 0))
    built = graph(("a", first, ("input",), 1), ("b", second, ("a",), 1))
    assert built.lattice(0, "input") == Lattice(6, 5)
    assert built.lattice(1, "input") == Lattice(2, 0)
    assert built.stride == (6, 2, 2)
    apart = graph(("a", first, ("input",), 1), ("c", CONVOLUTION, ("a",), 1), ("b", second, ("c",), 1))
    assert apart.lattice(0, "input") == Lattice(2, 1)
    assert apart.lattice(0, "c") == Lattice(3, 2)


def test_up_sampling_stops_where_whole_groups_do():
    """Groups of three from voxel 1 on: a turn that ends within one would leave voxels that no later turn writes."""
    raised = TransposedConvolution((3, 1, 1), (1, 0, 0))
    assert raised.lattice(0, Lattice(6, 4)) == Lattice(2, 1)
    assert raised.lattice(0, Lattice(6, 1)) == Lattice(2, 0)
    assert raised.lattice(0, Lattice(15, 7)) == Lattice(5, 2)
    assert raised.lattice(0, Lattice(3, 1)) == Lattice(1, 0)
    assert raised.lattice(1, Lattice(6, 4)) == Lattice(6, 4)
    for written in (Lattice(6, 2), Lattice(4, 1)):
        with pytest.raises(ValueError, match="Up-sampling by 3 from 1 on never stops"):
            raised.lattice(0, written)


# --- what follows ---------------------------------------------------------------------------------------------------------


def test_operations_are_open_an_axis_at_a_time():
    """Other kernels and factors, unequal along the axes: only their index maps count."""
    built = graph(
        ("a", Convolution((1, 5, 7), (0, 2, 3)), ("input",), 2),
        ("b", MaxPool((1, 3, 2), (0, 0, 0)), ("a",), 2),
        ("c", CONVOLUTION, ("b",), 2),
        ("d", TransposedConvolution((1, 3, 2), (0, 0, 0)), ("c",), 2),
        ("e", Concatenation(), ("d", "a"), 4),
        ("f", Convolution((1, 1, 1), (0, 0, 0)), ("e",), 1),
    )
    assert built.stride == (1, 3, 2)
    assert receptive_radius(built) == (1, 5, 5)
    assert [node.name for node in built.waiting] == ["a"]


@pytest.mark.parametrize(
    ("operation", "weights", "multiply_adds"),
    [
        (Convolution((1, 5, 7), (0, 2, 3)), 5 * 11 * 35, 5 * 11 * 35),
        (TransposedConvolution((1, 3, 2), (0, 0, 0)), 5 * 11 * 6, 5 * 11),  # a voxel is made of one
        (TransposedConvolution((2, 2, 2), (-1, -1, -1), (3, 3, 3)), 5 * 11 * 27, 5 * 11 * 27 // 8),  # of 1 to 8 taps
        (MaxPool((1, 3, 2), (0, 0, 0)), 0, 0),
        (Activation("relu"), 0, 0),
    ],
)
def test_operations_know_their_weights_and_their_work(operation, weights, multiply_adds):
    """Of 5 channels made of 11: memory and time of a tile are sums of these."""
    assert operation.weights(11, 5) == weights
    assert operation.multiply_adds(11, 5) == multiply_adds


def test_a_reader_that_needs_more_is_not_forgotten():
    """The hull over all readers: the short way to the output may need more than the long one."""
    wide = Convolution((9, 1, 1), (4, 0, 0))
    built = graph(
        ("a", CONVOLUTION, ("input",), 1),
        ("short", CONVOLUTION, ("a",), 1),
        ("long", wide, ("a",), 1),
        ("join", Concatenation(), ("short", "long"), 2),
    )
    found = needs(built, 0, Span(0, 10), None)
    assert found.writes["a"] == Span(-4, 14)
    assert found.reads["short"] == Span(-1, 11)
    assert [node.name for node in built.waiting] == ["a", "short"]


# --- digest ---------------------------------------------------------------------------------------------------------------


@given(architectures(depths=(1, 3)), architectures(depths=(1, 3)))
def test_digests_are_equal_for_equal_graphs_alone(one, other):
    """Bias and norm are in the weights; whatever is in the graph shows."""
    assert (digest(one.graph) == digest(other.graph)) == (one.graph == other.graph)
    assert digest(one.graph) == digest(Graph(one.graph.nodes))


def test_a_digest_is_the_same_on_every_machine_and_tomorrow():
    """It may stand in a plan: a digest that changed with the code would make every plan another's."""
    assert digest(Architecture(3, 1, 2).graph) == "9967e14d41beb998f32533c7a5b54d3e810e4d49114b19cc3699c6ad2ac25c25"


@pytest.mark.parametrize(
    "change",
    [
        lambda node: replace(node, channels=5) if node.name == "fc" else node,
        lambda node: replace(node, operation=Convolution((3, 1, 1), (1, 0, 0))) if node.name == "fc" else node,
        lambda node: replace(node, operation=Convolution((3, 3, 3), (0, 1, 1))) if node.name == "encoder1_1" else node,
        lambda node: replace(node, operation=MaxPool((2, 2, 2), (1, 0, 0))) if node.name == "pool1" else node,
        lambda node: replace(node, inputs=node.inputs[::-1]) if len(node.inputs) > 1 else node,
        lambda node: replace(node, name="last") if node.name == "fc" else node,
    ],
    ids=["channels", "kernel", "padding", "phase", "order", "name"],
)
def test_a_digest_tells_what_is_different(change):
    """The negative control: channels, taps, padding, phase, what reads what, and whose weights a node has."""
    built = Architecture(3, 1, 2).graph
    assert digest(Graph(tuple(map(change, built.nodes)))) != digest(built)


# --- names ----------------------------------------------------------------------------------------------------------------

NAMES = re.compile(r"\b(encoder|decoder|unpool|pool|concatenation)(\d|$)|\bfc\b")
"""Of the UNet's layers, as they would stand in a literal."""

THEIR_OWN = {
    "core/network/unet.py",
    "networks/model.py",
    "networks/checkpoint.py",
    "training/",
    "export/",
    "cluster/",
    "config/",
}
"""Where the names are at home: the builder, the module and its checkpoints; and rooms that mean another pool."""


def literals(tree):
    """The texts in a module's code, those of f-strings included, documentation aside."""
    bare = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    return [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in bare]


def known_by_name(source):
    """Lines of a module that have a layer's name in a literal."""
    return [n.lineno for n in literals(ast.parse(source)) if NAMES.search(n.value)]


def test_nobody_knows_a_layer_by_its_name():
    """Geometry, turns, prices, the sweep, planning and the engine see operations: a name is a key to weights, no more."""
    root = Path(pipeline.__file__).parent
    sources = {str(p.relative_to(root)): p.read_text() for p in root.rglob("*.py")}
    looked_at = {name: text for name, text in sources.items() if not name.startswith(tuple(THEIR_OWN))}
    assert {
        "core/tiles/cost.py",
        "core/tiles/grid.py",
        "core/network/schedule.py",
        "networks/sweep.py",
        "planning/measure.py",
        "engine.py",
    } <= set(looked_at)
    assert {name: lines for name, text in looked_at.items() if (lines := known_by_name(text))} == {}


@pytest.mark.parametrize(
    "line",
    ['writes["fc"]', 'f"encoder{level + 1}_2"', '"unpool1" in names', 'name.startswith("decoder")', 'f"pool{k}"'],
)
def test_a_line_that_knows_a_layer_by_its_name_is_found(line):
    """The negative control: the lines that were there."""
    assert known_by_name(f'"""The fc of the encoder1_2."""\nx = 1\ny = {line}\n') == [3]

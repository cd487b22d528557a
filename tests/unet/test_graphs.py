"""Networks that are not the UNet, of the same operations: the sweep runs whatever its graph says, tile by tile."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.core.geometry.box import Box, triple
from pipeline.core.network.graph import Graph, Node
from pipeline.core.network.operations import (
    Activation,
    Concatenation,
    Convolution,
    Input,
    MaxPool,
    TransposedConvolution,
)
from pipeline.core.network.receptive import least_halo
from pipeline.core.network.stream import Stream
from pipeline.networks.sweep import Arena, Kernel, Sweep

EQUAL = 1e-12
"""Of the output's range: float64 round-off of sums in another order."""


def convolution(*kernel):
    """A convolution that keeps the size."""
    return Convolution(kernel, triple(k // 2 for k in kernel))


def pool(*factor):
    """The largest of each group, groups from 0 on."""
    return MaxPool(factor, (0, 0, 0))


def up(*factor):
    """A group for each voxel, groups from 0 on."""
    return TransposedConvolution(factor, (0, 0, 0))


RELU, JOIN = Activation("relu"), Concatenation()


def graph(channels, *nodes):
    """A graph of an input, and (name, operation, inputs, channels) after it."""
    return Graph((Node("volume", Input(), (), channels), *(Node(n, o, tuple(i.split()), c) for n, o, i, c in nodes)))


GRAPHS = {
    "anisotropic, the volume and a half-way map as skips": graph(
        2,
        ("a", convolution(1, 3, 3), "volume", 3),
        ("A", RELU, "a", 3),
        ("half", pool(1, 2, 2), "A", 3),
        ("b", convolution(3, 3, 3), "half", 4),
        ("B", RELU, "b", 4),
        ("quarter", pool(2, 2, 2), "B", 4),
        ("c", convolution(5, 3, 1), "quarter", 4),
        ("C", RELU, "c", 4),
        ("raised", up(2, 2, 2), "C", 3),
        ("first", JOIN, "raised B", 7),
        ("d", convolution(3, 3, 3), "first", 3),
        ("D", RELU, "d", 3),
        ("again", up(1, 2, 2), "D", 2),
        ("second", JOIN, "again A volume", 7),
        ("e", convolution(1, 1, 1), "second", 3),
        ("E", RELU, "e", 3),
        ("f", convolution(3, 1, 1), "E", 2),
    ),
    "by threes, without a skip": graph(
        1,
        ("a", convolution(3, 3, 3), "volume", 2),
        ("small", pool(3, 3, 3), "a", 2),
        ("b", convolution(3, 3, 3), "small", 3),
        ("large", up(3, 3, 3), "b", 2),
        ("c", convolution(3, 3, 3), "large", 1),
    ),
    "branches of unequal reach, one pooled twice": graph(
        1,
        ("a", convolution(3, 3, 3), "volume", 2),
        ("A", RELU, "a", 2),
        ("near", convolution(3, 3, 3), "A", 2),
        ("far", convolution(7, 3, 5), "A", 2),
        ("twice", pool(2, 2, 2), "A", 2),
        ("more", pool(2, 1, 2), "twice", 2),
        ("back", up(4, 2, 4), "more", 1),
        ("all", JOIN, "near back far A", 7),
        ("ALL", RELU, "all", 7),
        ("last", convolution(3, 3, 3), "ALL", 1),
    ),
    "slices alone": graph(
        1,
        ("a", convolution(1, 3, 3), "volume", 2),
        ("small", pool(1, 2, 2), "a", 2),
        ("b", convolution(1, 3, 3), "small", 2),
        ("large", up(1, 2, 2), "b", 2),
        ("both", JOIN, "large a", 4),
        ("c", convolution(1, 3, 3), "both", 1),
    ),
}


def random_weights(network):
    """By node with weights, a kernel as torch's own layers take it, and a bias."""
    generator = torch.Generator().manual_seed(3)
    found = {}
    for node in network.nodes:
        into, out = network.in_channels(node), node.channels
        if isinstance(node.operation, Convolution):
            shape = (out, into, *node.operation.kernel)
        elif isinstance(node.operation, TransposedConvolution):
            shape = (into, out, *node.operation.factor)
        else:
            continue
        found[node.name] = tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in (shape, (out,)))
    return found


def as_kernels(network, weights):
    """The same, as the sweep takes them."""
    found = {}
    for name, (weight, bias) in weights.items():
        operation = network.node(name).operation
        if isinstance(operation, TransposedConvolution):
            group = int(np.prod(operation.factor))
            found[name] = Kernel(weight.flatten(2).permute(2, 1, 0).reshape(-1, weight.shape[0]), bias.repeat(group))
        else:
            found[name] = Kernel(weight if operation.has_window else weight.flatten(1), bias)
    return found


def one_pass(network, weights, volume):
    """Node after node over the whole volume, (C, Z, Y, X), by torch's own layers."""
    found = {network.input.name: torch.from_numpy(volume)[None]}
    for node in network.nodes[1:]:
        given, operation = [found[name] for name in node.inputs], node.operation
        if isinstance(operation, Convolution):
            made = F.conv3d(given[0], *weights[node.name], padding=operation.padding)
        elif isinstance(operation, TransposedConvolution):
            made = F.conv_transpose3d(given[0], *weights[node.name], stride=operation.factor)
        elif isinstance(operation, MaxPool):
            made = F.max_pool3d(given[0], operation.factor)
        elif isinstance(operation, Activation):
            made = F.relu(given[0])
        elif isinstance(operation, Concatenation):
            made = torch.cat(given, dim=1)
        else:
            raise TypeError(f"no layer of torch's stands here for a {type(operation).__name__}")
        found[node.name] = made
    return found[network.output.name][0].numpy()


def stitched(network, kernels, volume, halo, slab):
    """What tiles of two strides write, each streamed through the network."""
    shape = volume.shape[1:]
    core = triple(2 * s for s in network.stride)
    out, arena = np.full((network.output.channels, *shape), np.nan), Arena()
    tiles = Stream.over(network, shape, core, halo, slab * network.stride[0])
    for tile in tiles.grid:
        schedule = tiles.schedule(tile)
        window = torch.from_numpy(volume[:, *schedule.window.within(Box.of_shape(shape))]).permute(1, 2, 3, 0)
        first = schedule.window.start[0]
        slabs = (window[a - first : b - first] for a, b in schedule.inputs())
        for (start, stop), logits in Sweep(kernels, schedule, arena).run(slabs):
            box = Box((start, *tile.core.start[1:]), (stop, *tile.core.stop[1:]))
            out[(slice(None), *box.within(Box.of_shape(shape)))] = logits.permute(3, 0, 1, 2).numpy()
    return out


def error(network, halo=None, slab=1, kernels=None):
    """Of stitched tiles against one pass, by the output's range; over a volume of some strides."""
    torch.set_num_threads(1)
    shape = triple(n * s for n, s in zip((7, 5, 6), network.stride, strict=True))
    volume = np.random.default_rng(0).normal(size=(network.input.channels, *shape))
    weights = random_weights(network)
    expected = one_pass(network, weights, volume)
    found = stitched(network, kernels or as_kernels(network, weights), volume, halo or least_halo(network), slab)
    return np.abs(found - expected).max() / np.ptp(expected)


@pytest.mark.parametrize("slab", [1, 2])
@pytest.mark.parametrize("network", GRAPHS.values(), ids=GRAPHS)
def test_any_graph_of_these_operations_is_exact(network, slab):
    """Nothing of need, turns, buffers or rings is special to one network: names, levels, branches are whatever they are."""
    assert error(network, slab=slab) < EQUAL


@pytest.mark.parametrize("network", GRAPHS.values(), ids=GRAPHS)
def test_a_halo_one_stride_short_leaves_a_seam_in_any_graph(network):
    """The negative control: the reach that follows from the graph is what it needs."""
    short = triple(max(h - s, 0) for h, s in zip(least_halo(network), network.stride, strict=True))
    assert error(network, halo=short) > 1e-6


@pytest.mark.parametrize("network", GRAPHS.values(), ids=GRAPHS)
def test_the_weights_of_a_node_are_its_own(network):
    """The negative control of the comparison: with one node's bias another, the answer is another."""
    kernels = as_kernels(network, random_weights(network))
    name = next(reversed(kernels))
    changed = kernels | {name: replace(kernels[name], bias=kernels[name].bias + 1)}
    assert error(network, kernels=changed) > 1e-6


def test_what_comes_too_early_waits():
    """A concatenation reads the slower of two branches as it comes; the faster one waits in a ring, though it is read once."""
    network = GRAPHS["branches of unequal reach, one pooled twice"]
    assert [node.name for node in network.waiting] == ["A", "near", "far", "back"]

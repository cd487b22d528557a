from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.core.network.receptive import least_halo, legal_extent, receptive_radius, whole_window
from pipeline.core.network.stream import Stream
from pipeline.core.network.unet import Architecture
from pipeline.networks.model import UNet
from tests.core.core_cases import architectures, triples

KINDS = [(2, 1), (2, 2), (2, 3), (2, 4), (3, 1), (3, 2)]
"""Number of axes and depth of the networks whose gradients are looked at; 3D ones of depth 3 take minutes."""


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


# --- the table ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "same", "valid"), [(1, 8, 8), (2, 22, 20), (3, 46, 44), (4, 94, 92)])
def test_the_receptive_radius_of_each_depth(depth, same, valid):
    """The figures that users see in refusals and that the documents quote."""
    assert receptive_radius(Architecture(3, depth, 1).graph) == (same, same, same)
    assert receptive_radius(Architecture(3, depth, 1, padding="valid").graph) == (valid, valid, valid)


@pytest.mark.parametrize(("depth", "halo"), [(1, 8), (2, 24), (3, 48), (4, 96)])
def test_the_least_halo_is_the_radius_on_the_lattice(depth, halo):
    """94 is enough at depth 4, and 96 is what is used: a halo off the lattice would shift the phase."""
    assert least_halo(Architecture(3, depth, 1).graph) == (halo, halo, halo)


@given(architectures())
def test_a_2d_network_reaches_nothing_along_z(architecture):
    """A stack of slices has stride 1 and halo 0 in z, so any core and any slab will do there."""
    if architecture.ndim == 2:
        assert architecture.stride[0] == 1
        assert receptive_radius(architecture.graph)[0] == least_halo(architecture.graph)[0] == 0


# --- the network itself -------------------------------------------------------------------------------------------------


def open_network(ndim, depth, padding):
    """A network of which every voxel that it can reach shows in the gradient.

    Weights are positive, so nothing cancels and every ReLU passes. The mean stands in for the maximum: it reaches the
    same voxels, and none of them hides behind a larger neighbour.
    """
    model = UNet(Architecture(ndim, depth, 1, padding=padding, norm="none")).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    model.pool = nn.AvgPool2d(2) if ndim == 2 else nn.AvgPool3d(2)
    return model


def support(model, extent, block):
    """First and one past the last voxel, along each axis, that the sum over an output block depends on."""
    x = torch.ones((1, 1, *[extent] * model.architecture.ndim), dtype=torch.double, requires_grad=True)
    model(x)[(0, 0, *[block] * model.architecture.ndim)].sum().backward()
    found = x.grad[0, 0].nonzero()
    return found.amin(0).tolist(), (found.amax(0) + 1).tolist()


@pytest.mark.parametrize(("ndim", "depth"), KINDS)
def test_a_block_on_the_lattice_reaches_exactly_the_radius(ndim, depth):
    """The arithmetic is walked by hand, the gradient by torch: a margin less is a seam, one more is waste."""
    stride, radius = 2**depth, receptive_radius(Architecture(ndim, depth, 1).graph)[1]
    first = least_halo(Architecture(ndim, depth, 1).graph)[1] + stride
    block = slice(first, first + stride)
    lows, highs = support(open_network(ndim, depth, "same"), 2 * first + stride, block)
    assert lows == [block.start - radius] * ndim
    assert highs == [block.stop + radius] * ndim


@pytest.mark.parametrize(("ndim", "depth"), KINDS)
def test_an_unpadded_block_reaches_exactly_its_window(ndim, depth):
    """The window begins at the margin and ends with the last voxel that the core depends on: not a voxel is spare."""
    architecture = Architecture(ndim, depth, 1, padding="valid")
    stride, margin = 2**depth, receptive_radius(architecture.graph)[1]
    grid = Stream.over(architecture.graph, (9 * stride,) * 3, (stride,) * 3, (0, 0, 0), stride).grid
    tile = grid.tile(4 * 81 + 4 * 9 + 4)
    window = tile.window
    assert tile.core.start == (4 * stride,) * 3
    extent = legal_extent(architecture.graph, 1, stride + 2 * margin) + 2 * stride
    lows, highs = support(open_network(ndim, depth, "valid"), extent, slice(stride, 2 * stride))
    origin = 3 * stride - margin  # in the volume, of the picture's first voxel
    assert [origin + low for low in lows] == [window.start[1]] * ndim == [4 * stride - margin] * ndim
    assert [origin + high for high in highs] == [window.stop[1]] * ndim


@pytest.mark.parametrize(("depth", "furthest"), [(1, 9), (2, 23), (3, 51), (4, 107)])
def test_a_voxel_at_its_worst_phase_reaches_further_than_a_block(depth, furthest):
    """The negative control: off the lattice, the radius is too small, so no tile may ever start there."""
    model, stride = open_network(2, depth, "same"), 2**depth
    first = 8 * 2 ** (depth - 1) * 2 + stride * 2
    reaches = []
    for phase in range(stride):
        voxel = slice(first + phase, first + phase + 1)
        (low, _), (high, _) = support(model, 2 * first + 2 * stride, voxel)
        reaches += [voxel.start - low, high - voxel.stop]
    assert max(reaches) == furthest


# --- extents ------------------------------------------------------------------------------------------------------------


def is_legal(architecture, axis, extent):
    """Whether one pass takes an extent: every map before a pooling is even, and none is used up."""
    if architecture.stride[axis] == 1:
        return extent >= 1
    lost = 4 if architecture.padding == "valid" else 0
    for _ in range(architecture.depth):
        extent -= lost
        if extent < 2 or extent % 2:
            return False
        extent //= 2
    return extent > lost


@given(architectures(depths=(1, 4)), st.integers(0, 2), st.integers(1, 400))
def test_a_legal_extent_is_the_least_that_the_poolings_take(architecture, axis, kept):
    """An odd map before a pooling loses its last voxel, and everything behind shifts."""
    margin = receptive_radius(architecture.graph)[axis] if architecture.padding == "valid" else 0
    needed = kept + 2 * margin
    found = legal_extent(architecture.graph, axis, needed)
    assert is_legal(architecture, axis, found)
    assert not any(is_legal(architecture, axis, n) for n in range(needed, found))


@given(architectures(), triples(1, 60))
def test_the_whole_window_is_a_tile_that_holds_the_volume(architecture, volume):
    """One pass over the whole is the promise's reference, and what amplification is measured against.

    Unpadded it may take some voxels more, so that every map before a pooling is even; nothing kept depends on them.
    """
    cover = tuple(-(-n // s) * s for n, s in zip(volume, architecture.stride, strict=True))
    stream = Stream.over(architecture.graph, volume, cover, least_halo(architecture.graph), cover[0])
    window = stream.grid.tile(0).window.shape
    whole = whole_window(architecture.graph, volume)
    assert architecture.padding == "valid" or whole == window
    assert all(0 <= w - n < 2 * s for w, n, s in zip(whole, window, architecture.stride, strict=True))


def test_extents_that_the_paper_names():
    """572 voxels make 388; 388 and the margins need 572."""
    architecture = Architecture(2, 4, 64, padding="valid")
    assert [legal_extent(architecture.graph, axis, 388 + 184) for axis in (1, 2)] == [572, 572]
    assert legal_extent(architecture.graph, 0, 7) == 7
    assert (
        np.prod([legal_extent(Architecture(3, 4, 64).graph, axis, 17) for axis, _ in product(range(3), [0])]) == 32**3
    )

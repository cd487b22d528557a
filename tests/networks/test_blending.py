"""Blended windows against a plain loop over the module itself; and that no tile shows in them."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.core.geometry.box import Box, triple
from pipeline.core.network.blended import BlendedStream, whole_needs
from pipeline.core.tiles.cost import network_values
from pipeline.core.tiles.lattice import BlendedWindow
from pipeline.networks.blending import blended
from pipeline.networks.evaluate import evaluate
from pipeline.networks.importing import exported as programs
from pipeline.networks.mismatch import blend, whole_pass
from tests.core.test_cost import ValuesAlive
from tests.networks.network_cases import Normed, exported, randomise

SHAPE = (21, 27, 14)
"""Of no multiple of anything, and shorter than a window along x."""

WINDOW = BlendedWindow((8, 6, 8), (8, 8, 8), "gaussian")
EQUAL = 1e-12


@pytest.fixture(scope="module")
def module():
    """A network with instance and group norms, and squeeze and excite; float64."""
    return randomise(Normed())


@pytest.fixture(scope="module")
def imported(module):
    """Its graph and weights."""
    network = programs.graph_of(exported(module))
    return network.graph, {name: tuple(tensors) for name, tensors in network.weights.items()}


@pytest.fixture(scope="module")
def volume():
    """(Z, Y, X, C), whose values differ from place to place, so that windows have statistics of their own."""
    values = np.random.default_rng(0).normal(size=(*SHAPE, 1))
    return torch.from_numpy(values * np.linspace(0.2, 2, SHAPE[1])[:, np.newaxis, np.newaxis])


def curve(extent, kind):
    """The weight of each voxel along an axis, before weights are made to add up."""
    middle = (extent - 1) / 2
    place = np.arange(extent)
    if kind == "gaussian":
        return np.exp(-((place - middle) ** 2) / (2 * (extent / 8) ** 2))
    return 1 - np.abs(place - middle) / (middle + 1)


def by_a_loop(module, volume, window):
    """Sliding windows as everybody writes them: sums of weighted outputs, over sums of weights; (K, Z, Y, X)."""
    x = volume.numpy()[..., 0]
    shape = x.shape
    x = np.pad(x, [(0, max(w - n, 0)) for n, w in zip(shape, window.extent, strict=True)], mode="reflect")
    sums, weights = np.zeros((2, *x.shape)), np.zeros(x.shape)
    starts = [
        sorted({*range(0, n - w, step), n - w}) for n, w, step in zip(x.shape, window.extent, window.core, strict=True)
    ]
    z, y, x_ = (curve(n, window.blend) for n in window.extent)
    each = z[:, np.newaxis, np.newaxis] * y[:, np.newaxis] * x_
    for start in product(*starts):
        place = tuple(slice(a, a + w) for a, w in zip(start, window.extent, strict=True))
        with torch.inference_mode():
            found = module(torch.from_numpy(x[place].copy())[None, None])[0].numpy()
        sums[(slice(None), *place)] += each * found
        weights[place] += each
    return (sums / weights)[(slice(None), *(slice(n) for n in shape))]


@pytest.mark.parametrize("kind", ["gaussian", "linear"])
def test_blended_windows_are_those_of_a_plain_loop_over_the_module(module, imported, volume, kind):
    """To the last bits of float64. Another overlap gives something else: the control."""
    window = BlendedWindow(WINDOW.core, WINDOW.overlap, kind)
    expected = by_a_loop(module, volume, window)
    found = blend(*imported, volume, window).numpy()
    extent = np.ptp(expected)
    assert np.abs(found - expected).max() <= EQUAL * extent
    other = blend(*imported, volume, BlendedWindow((4, 6, 8), (12, 8, 8), kind)).numpy()
    assert np.abs(other - expected).max() > 1e-3 * extent


def test_without_blending_a_voxel_is_of_the_window_in_whose_middle_it_lies(module, imported, volume):
    """The output is put together of parts of single passes, which is what `none` says."""
    window = BlendedWindow((8, 8, 16), (8, 8, 0), "none")
    found = blend(*imported, volume, window).numpy()
    x = np.pad(volume.numpy()[..., 0], [(0, 0), (0, 0), (0, 2)], mode="reflect")
    with torch.inference_mode():
        first = module(torch.from_numpy(x[:16, :16].copy())[None, None])[0].numpy()
        last = module(torch.from_numpy(x[5:21, 11:27].copy())[None, None])[0].numpy()
    np.testing.assert_allclose(found[:, :11, :12], first[:, :11, :12, :14], atol=1e-12)
    np.testing.assert_allclose(found[:, 11:, 18:], last[:, 6:, 7:, :14], atol=1e-12)


def test_windows_are_not_one_pass_and_a_window_as_large_as_the_volume_is(module, imported, volume):
    """What the report measures: the mismatch is there, and is that of the windows."""
    expected = whole_pass(*imported, volume).numpy()
    padded = np.pad(volume.numpy()[..., 0], [(0, 1), (0, 1), (0, 0)], mode="reflect")
    with torch.inference_mode():
        by_module = module(torch.from_numpy(padded)[None, None])[0, :, :21, :27].numpy()
    np.testing.assert_allclose(expected, by_module, atol=1e-12)
    extent = np.ptp(expected)
    assert np.abs(blend(*imported, volume, WINDOW).numpy() - expected).max() > 1e-2 * extent
    one = BlendedWindow((22, 28, 14), (0, 0, 0), "gaussian")
    assert np.abs(blend(*imported, volume, one).numpy() - expected).max() <= EQUAL * extent


class Slices(nn.Module):
    """2D, with an instance norm: each slice has statistics of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(1, 3, 3, padding=1), nn.InstanceNorm2d(3), nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


def test_a_network_of_two_dimensions_sees_every_slice_by_itself(volume):
    """However many slices a window has: they are a batch."""
    module = randomise(Slices())
    network = programs.graph_of(exported(module, (1, 1, 16, 16)))
    window = BlendedWindow((4, 8, 8), (0, 8, 8), "gaussian")
    found = blend(network.graph, dict(network.weights), volume, window).numpy()
    flat = BlendedWindow((1, 8, 8), (0, 8, 8), "gaussian")
    expected = by_a_loop(lambda x: module(x[:, :, 0])[:, :, None], volume, flat)
    assert np.abs(found - expected).max() <= EQUAL * np.ptp(expected)


def by_tiles(imported, volume, core, dtype):
    """The same volume by tiles of a core, each by itself, its input in uneven slices."""
    graph, weights = imported
    weights = {name: tuple(w.to(dtype) for w in tensors) for name, tensors in weights.items()}
    stream = BlendedStream.of_windows(graph, SHAPE, core, WINDOW)
    axes = whole_needs(graph, stream.extent)
    values = torch.from_numpy(np.pad(volume.numpy(), [(0, 0), (0, 0), (0, 2), (0, 0)], mode="reflect")).to(dtype)
    stitched = torch.full((2, *SHAPE), float("nan"), dtype=dtype)
    with torch.inference_mode():
        for tile in stream.grid:
            read = values[tile.window.within(Box.of_shape(triple(values.shape[:3])))]
            parts = blended(stream, lambda x: evaluate(graph, weights, x, axes)[0], tile, read.split(5))
            for box, part in parts:
                stitched[:, *box.within(Box.of_shape(SHAPE))] = part
    return stitched.numpy()


def test_bytes_depend_on_no_tile(imported, volume):
    """Windows that tiles share are computed by each, in the same way, and added in the same order."""
    expected = by_tiles(imported, volume, SHAPE, torch.float32)
    assert np.isfinite(expected).all()
    for core in ((7, 14, 14), (11, 27, 7)):
        assert by_tiles(imported, volume, core, torch.float32).tobytes() == expected.tobytes()
    wide = by_tiles(imported, volume, SHAPE, torch.float64)
    assert 0 < np.abs(wide - expected).max() < 1e-5 * np.ptp(wide)  # bytes do tell such things apart


@pytest.mark.parametrize("core", [(16, 12, 16), (8, 27, 14)])
def test_the_memory_of_a_tile_is_bound_before_it_runs(imported, core):
    """Windows, sums and what is carried of the input."""
    graph, weights = imported
    stream = BlendedStream.of_windows(graph, SHAPE, core, WINDOW)
    tile, axes = stream.grid.widest(), whole_needs(graph, stream.extent)
    weights = {name: tuple(w.float() for w in tensors) for name, tensors in weights.items()}
    inputs = torch.zeros((*tile.window.shape, 1))
    watch = ValuesAlive()
    with torch.inference_mode(), watch:
        for _ in blended(stream, lambda x: evaluate(graph, weights, x, axes)[0], tile, inputs.split(stream.slab)):
            pass
    assert watch.most <= network_values(stream) <= 8 * watch.most

from dataclasses import replace
from math import prod
from weakref import finalize

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pipeline.core.architecture import Architecture
from pipeline.core.cost import (
    activation_values,
    largest_slab_window,
    largest_window,
    multiply_adds,
    slab_bytes,
    tile_bytes,
    total_multiply_adds,
    total_voxels_read,
)
from pipeline.core.grid import TileGrid
from pipeline.core.mirror import shown
from pipeline.core.receptive import least_halo, receptive_radius, whole_window
from pipeline.unet.model import UNet
from tests.core.core_cases import architectures, grids, triples


class ValuesAlive(TorchDispatchMode):
    """Counts the values of all tensors that a pass makes and holds at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.most, self._known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
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


@st.composite
def passes(draw, least=1):
    """A network, and extents that one pass takes."""
    architecture = draw(architectures())
    return architecture, whole_window(architecture, draw(triples(least, 40)))


def watched(architecture, extent, watch):
    """One pass under a watch, on tensors without storage: shapes tell all that is counted."""
    with torch.device("meta"):
        model = UNet(architecture).eval()
        x = torch.empty((1, architecture.in_channels, *extent[3 - architecture.ndim :]))
    with torch.no_grad(), watch:
        model(x)
    return watch


# --- one pass -----------------------------------------------------------------------------------------------------------


@given(passes())
def test_multiply_adds_are_half_of_what_torch_counts(case):
    """Every figure of amplification rests on this count."""
    architecture, (_, *plane) = case
    extent = case[1] if architecture.ndim == 3 else (1, *plane)
    flops = watched(architecture, extent, FlopCounterMode(display=False)).get_total_flops()
    assert 2 * multiply_adds(architecture, extent) == flops


@given(passes())
def test_slices_of_a_2d_network_cost_the_same_each(case):
    """A 2D network takes slices as its batch."""
    architecture, (z, *plane) = case
    if architecture.ndim == 2:
        assert multiply_adds(architecture, (z, *plane)) == z * multiply_adds(architecture, (1, *plane))


@given(passes(least=16))  # of smaller maps, the few values a channel that a batch norm makes would show
def test_activation_values_bound_what_a_pass_holds(case):
    """The memory of a tile is promised before it runs: too small a bound is a killed worker."""
    architecture, (_, *plane) = case
    extent = case[1] if architecture.ndim == 3 else (1, *plane)
    held = watched(architecture, extent, ValuesAlive()).most
    given_values = architecture.in_channels * prod(extent)
    assert held <= activation_values(architecture, extent) <= 3 * (held + given_values)


@given(passes(), st.sampled_from((2, 4)))
def test_bytes_of_a_slab_grow_with_the_bytes_of_a_value(case, value_bytes):
    """A bound in bytes that forgot the type would be half of the truth."""
    architecture, extent = case
    edges = 8 * (architecture.in_channels + architecture.out_channels) * prod(extent)
    found = slab_bytes(architecture, extent, value_bytes)
    assert found == edges + value_bytes * activation_values(architecture, extent)


# --- all tiles ----------------------------------------------------------------------------------------------------------


@given(grids())
def test_total_multiply_adds_are_the_sum_over_all_slabs(grid):
    """Counted by kinds of slabs, the total must still be that of each slab in turn."""
    each = (multiply_adds(grid.architecture, slab.window.shape) for tile in grid for slab in tile.slabs)
    assert total_multiply_adds(grid) == sum(each)


@given(grids())
def test_total_voxels_read_are_the_sum_over_all_tiles(grid):
    """Unpadded windows reach far beyond small cores: many tiles near an end, not only the first, see it."""
    assert total_voxels_read(grid) == sum(shown(tile.window, grid.volume)[0].voxels for tile in grid)


@given(grids())
def test_the_largest_windows_are_those_of_some_tile_and_slab(grid):
    """Memory is bounded by the largest window along each axis, wherever in the grid it lies."""
    windows = [tile.window.shape for tile in grid]
    slabs = [slab.window.shape for tile in grid for slab in tile.slabs]
    assert largest_window(grid) == tuple(max(axis) for axis in zip(*windows, strict=True))
    assert largest_slab_window(grid) == tuple(max(axis) for axis in zip(*slabs, strict=True))


@given(grids(), st.sampled_from((1, 2, 4)), st.sampled_from((1, 4)))
def test_bytes_of_a_tile_hold_its_largest_window_and_core(grid, in_bytes, out_bytes):
    """A worker holds the input as read and the output before it is coded, besides what coding takes."""
    read = grid.architecture.in_channels * max(tile.window.voxels for tile in grid) * in_bytes
    written = grid.architecture.out_channels * max(tile.core.voxels for tile in grid) * out_bytes
    assert tile_bytes(grid, in_bytes, out_bytes) >= 2 * read + 2 * written


@settings(max_examples=10)
@given(architectures(depths=(1, 4)))
def test_counting_does_not_grow_with_the_volume(architecture):
    """Ten billion tiles are counted like ten: the differences between long volumes are those of one tile more."""
    core = tuple(2 * s for s in architecture.stride)
    grid = TileGrid(architecture, core, core, least_halo(architecture), core)
    for count in (total_multiply_adds, total_voxels_read):
        long = [
            replace(grid, volume=(n * core[0], 10**5 * core[1], 10 * core[2])) for n in (10**4, 10**4 + 1, 10**4 + 2)
        ]
        first, second, third = map(count, long)
        assert third - second == second - first > 0


def test_amplification_of_the_tiles_that_the_design_quotes():
    """Tiles of 128 with an exact halo cost 5.4 x at depth 3 and 15.6 x at depth 4 of the voxels that they keep."""
    for depth, amplification in [(3, 5.4), (4, 15.6)]:
        architecture, core = Architecture(3, depth, 8), (128, 128, 128)
        grid = TileGrid(architecture, (1280, 1280, 1280), core, least_halo(architecture), core)
        inner = grid.tile(5 * 110 + 5)
        found = multiply_adds(architecture, inner.window.shape) / multiply_adds(architecture, core)
        assert round(found, 1) == amplification


def test_a_small_unpadded_core_reads_its_mirrored_margins_once():
    """One slice row of sixteen voxels a tile: the six tiles nearest to each end are all cut short by it."""
    architecture = Architecture(2, 4, 1, padding="valid")
    grid = TileGrid(architecture, (1, 1, 1600), (1, 16, 16), (0, 0, 0), (1, 16, 16))
    assert receptive_radius(architecture)[2] > 5 * 16
    assert total_voxels_read(grid) == sum(shown(tile.window, grid.volume)[0].voxels for tile in grid)

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.architecture import Architecture
from pipeline.core.box import Box, round_up
from pipeline.core.grid import TileGrid
from pipeline.core.receptive import receptive_radius
from tests.core.core_cases import grids

SAME = Architecture(ndim=3, depth=2, width=1)


def painted(boxes, volume):
    """How often each voxel of a volume lies in one of the boxes."""
    count = np.zeros(volume, dtype=int)
    for box in boxes:
        count[box.within(Box.of_shape(volume))] += 1
    return count


def extended(grid):
    """The volume, and its extension to a multiple of the stride."""
    pairs = zip(grid.volume, grid.architecture.stride, strict=True)
    return Box.of_shape(tuple(round_up(n, s) for n, s in pairs))


def axes_of(grid, box):
    """Start, stop and stride along each axis."""
    return list(zip(box.start, box.stop, grid.architecture.stride, strict=True))


def passes(architecture, axis, extent):
    """What one unpadded pass makes of an extent, layer by layer; None where a map is odd before a pooling or runs out."""
    if architecture.stride[axis] == 1:
        return extent
    for _ in range(architecture.depth):
        if extent < 6 or extent % 2:
            return None
        extent = (extent - 4) // 2
    if extent < 5:
        return None
    extent -= 4
    for _ in range(architecture.depth):
        extent = 2 * extent - 4
        if extent < 1:
            return None
    return extent


# --- cores --------------------------------------------------------------------------------------------------------------


@given(grids())
def test_cores_partition_the_volume(grid):
    """Each voxel is predicted and written once, by one owner: that is why no lock is needed."""
    assert (painted([tile.core for tile in grid], grid.volume) == 1).all()


@given(grids())
def test_slabs_partition_their_core_in_z_order(grid):
    """The sink writes units as they complete, and reports a defect where slabs leave a gap."""
    for tile in grid:
        assert (painted([slab.core for slab in tile.slabs], grid.volume)[tile.core.within(extended(grid))] == 1).all()
        assert sum(slab.core.voxels for slab in tile.slabs) == tile.core.voxels
        assert [slab.core.start for slab in tile.slabs] == sorted(slab.core.start for slab in tile.slabs)


# --- same padding -------------------------------------------------------------------------------------------------------


@given(grids("same"))
def test_everything_lies_on_the_stride_lattice(grid):
    """Phase: off the lattice a window's poolings pair other voxels than the whole pass does; the last tile included."""
    for part in (part for tile in grid for part in (tile, *tile.slabs)):
        assert all(a % s == 0 for a, _, s in axes_of(grid, part.core))
        assert all(a % s == 0 and b % s == 0 for a, b, s in axes_of(grid, part.window))


@given(grids("same"))
def test_windows_lie_in_the_extended_volume(grid):
    """Edges: nothing is ever put beyond it; the layers pad themselves there, as they do in the whole pass."""
    for part in (part for tile in grid for part in (tile, *tile.slabs)):
        assert extended(grid).contains(part.window)


@given(grids("same"))
def test_a_window_reaches_the_radius_beyond_its_core_or_the_end(grid):
    """Reach: what a window's own border spoils must be cropped away, unless it is the volume's border too."""
    ends, radius = extended(grid), receptive_radius(grid.architecture)
    for tile in grid:
        for axis in range(3):
            first, last = tile.window.start[axis], tile.window.stop[axis]
            assert first == ends.start[axis] or tile.core.start[axis] - first >= radius[axis]
            assert last == ends.stop[axis] or last - tile.core.stop[axis] >= radius[axis]


# --- unpadded -----------------------------------------------------------------------------------------------------------


@given(grids("valid"))
def test_an_unpadded_window_starts_one_margin_before_its_core(grid):
    """The pass loses its margin on each side; starting elsewhere would shift the answer or its phase."""
    margin = receptive_radius(grid.architecture)
    for part in (part for tile in grid for part in (tile, *tile.slabs)):
        assert part.window.start == tuple(a - m for a, m in zip(part.core.start, margin, strict=True))
        assert all(a % s == 0 for a, _, s in axes_of(grid, part.core))


@given(grids("valid"))
def test_an_unpadded_window_is_the_least_that_one_pass_can_take(grid):
    """A legal extent that covers the core, and no smaller one does: walked layer by layer."""
    for part in (part for tile in grid for part in (tile, *tile.slabs)):
        for axis, (extent, needed) in enumerate(zip(part.window.shape, part.core.shape, strict=True)):
            produced = [passes(grid.architecture, axis, n) or 0 for n in range(1, extent + 1)]
            assert produced[-1] >= needed
            assert max(produced[:-1], default=0) < needed


def test_the_papers_tile_is_the_window_of_a_core_of_384():
    """572 -> 388: the classic tile, of which a core on the lattice keeps 384."""
    grid = TileGrid(Architecture(2, 4, 64, padding="valid"), (1, 768, 768), (1, 384, 384), (0, 0, 0), (1, 384, 384))
    assert grid.tile(3).window == Box((0, 292, 292), (1, 864, 864))
    assert grid.tile(3).slabs[0].crop == (slice(0, 1), slice(0, 384), slice(0, 384))


# --- slabs --------------------------------------------------------------------------------------------------------------


@given(grids())
def test_windows_of_slabs_lie_inside_their_tiles(grid):
    """The tile's window is read once, and every slab is cut from it."""
    assert all(tile.window.contains(slab.window) for tile in grid for slab in tile.slabs)


@given(grids())
def test_a_crop_selects_the_core_from_the_networks_output(grid):
    """A crop that runs over the output's end would be cut short by numpy without a word."""
    unpadded = grid.architecture.padding == "valid"
    lost = receptive_radius(grid.architecture) if unpadded else (0, 0, 0)
    for slab in (slab for tile in grid for slab in tile.slabs):
        for axis, part in enumerate(slab.crop):
            output = slab.window.shape[axis] - 2 * lost[axis]
            assert 0 <= part.start < part.stop <= output
            assert part.stop - part.start == slab.core.shape[axis]
            assert part.start + slab.window.start[axis] + lost[axis] == slab.core.start[axis]


# --- indices ------------------------------------------------------------------------------------------------------------


@given(grids())
def test_a_tiles_index_round_trips(grid):
    """Ledger, tasks and errors know a tile by its index alone."""
    tiles = list(grid)
    assert [tile.index for tile in tiles] == list(range(len(grid)))
    assert [tile.core.start for tile in tiles] == sorted(tile.core.start for tile in tiles)
    assert all(grid.tile(tile.index) == tile for tile in tiles)


@given(grids(), st.integers())
def test_a_tile_outside_the_grid_is_an_index_error(grid, index):
    """A negative index must not wrap round to the last tile, as a list's would."""
    if 0 <= index < len(grid):
        assert grid.tile(index).index == index
        return
    with pytest.raises(IndexError, match=f"0 to {len(grid) - 1}"):
        grid.tile(index)


def test_ten_billion_tiles_cost_no_memory():
    """Grids never list their tiles, so that a plan of a whole brain is as cheap as one of a crop."""
    tracemalloc.start()
    grid = TileGrid(SAME, (16_000_000, 16_000, 1_600), (16, 16, 160), (24, 24, 24), (16, 16, 160))
    last = grid.tile(len(grid) - 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(grid) == 10**10
    assert last.core == Box((15_999_984, 15_984, 1_440), (16_000_000, 16_000, 1_600))
    assert peak < 100_000


def test_a_tile_tells_where_it_lies():
    """Failures are reported by this name."""
    grid = TileGrid(SAME, (20, 20, 20), (8, 8, 8), (24, 24, 24), (8, 8, 8))
    assert str(grid.tile(5)) == "tile 5 (core z 0:8, y 8:16, x 16:20)"

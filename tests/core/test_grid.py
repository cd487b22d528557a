import tracemalloc
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.geometry.box import Box, Span, round_up
from pipeline.core.network.receptive import receptive_radius, whole_window
from pipeline.core.network.stream import Stream
from pipeline.core.network.unet import Architecture
from pipeline.core.tiles.grid import TileGrid
from tests.core.core_cases import grids, streams
from tests.core.unet_layers import architecture_of

SAME = Architecture(ndim=3, depth=2, width=1)
VALID = replace(SAME, padding="valid")


def painted(boxes, volume):
    """How often each voxel of a volume lies in one of the boxes."""
    count = np.zeros(volume, dtype=int)
    for box in boxes:
        count[box.within(Box.of_shape(volume))] += 1
    return count


def extended(grid):
    """The volume, and its extension to a multiple of the stride."""
    pairs = zip(grid.volume, grid.stride, strict=True)
    return Box.of_shape(tuple(round_up(n, s) for n, s in pairs))


def axes_of(grid, box):
    """Start, stop and stride along each axis."""
    return list(zip(box.start, box.stop, grid.stride, strict=True))


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
def test_cores_start_on_the_stride_lattice(grid):
    """Off it a core would reach further than the halo; the last tile's too, whose other end lies where the volume's does."""
    for tile in grid:
        assert all(a % s == 0 for a, _, s in axes_of(grid, tile.core))
        assert all(b % s == 0 or b == n for (_, b, s), n in zip(axes_of(grid, tile.core), grid.volume, strict=True))


@given(streams())
def test_turns_write_the_whole_core_in_z_order(stream):
    """The sink writes units as they complete, and reports a defect where slices are missing."""
    for tile in stream.grid:
        schedule = stream.schedule(tile)
        written = [schedule.core(turn) for turn in range(schedule.turns)]
        slices = [z for span in written for z in range(*span)]
        assert slices == list(range(tile.core.start[0], tile.core.stop[0]))
        for axis in (1, 2):
            assert schedule.axes[axis].core == (tile.core.start[axis], tile.core.stop[axis])


@given(streams())
def test_a_window_is_what_the_network_reads_for_its_core(stream):
    """Geometry knows stride and margins alone; the walk through the network finds the same voxels, and not one more."""
    assert all(stream.schedule(tile).window == tile.window for tile in stream.grid)


def test_a_window_that_is_a_margin_short_is_refused():
    """A margin that is not the network's would be a seam, or a buffer that is not filled."""
    found = Stream.over(VALID.graph, (20, 20, 20), (8, 8, 8), (0, 0, 0), 8)
    short = replace(found, grid=replace(found.grid, margin=(19, 20, 20)))
    with pytest.raises(ValueError, match=r"needs the voxels .* for tile 0 .*, whose window is"):
        short.schedule(short.grid.tile(0))


# --- same padding -------------------------------------------------------------------------------------------------------


@given(grids("same"))
def test_windows_lie_in_the_extended_volume(grid):
    """Edges: nothing is ever put beyond it; the layers pad themselves there, as they do in the whole pass."""
    assert all(extended(grid).contains(tile.window) for tile in grid)


@given(streams("same"))
def test_a_window_is_the_core_and_the_radius_up_to_the_ends(stream):
    """Reach: a voxel less is a seam. A voxel more is waste, also where a larger halo was asked for."""
    grid = stream.grid
    ends, radius = extended(grid), receptive_radius(stream.graph)
    for tile in grid:
        for axis, (start, stop, stride) in enumerate(axes_of(grid, tile.core)):
            assert tile.window.start[axis] == max(start - radius[axis], ends.start[axis])
            assert tile.window.stop[axis] == min(round_up(stop, stride) + radius[axis], ends.stop[axis])


# --- unpadded -----------------------------------------------------------------------------------------------------------


@given(streams("valid"))
def test_an_unpadded_window_starts_one_margin_before_its_core(stream):
    """The pass loses its margin on each side; starting elsewhere would shift the answer or its phase."""
    grid = stream.grid
    margin = receptive_radius(stream.graph)
    for tile in grid:
        assert tile.window.start == tuple(a - m for a, m in zip(tile.core.start, margin, strict=True))


@given(streams("valid"))
def test_an_unpadded_window_is_the_least_that_one_pass_can_take(stream):
    """A legal extent that covers a core of whole strides, and no smaller one does: walked layer by layer."""
    grid = stream.grid
    for tile in grid:
        for axis, (start, stop, stride) in enumerate(axes_of(grid, tile.core)):
            extent = tile.window.shape[axis]
            produced = [passes(architecture_of(stream.graph), axis, n) or 0 for n in range(1, extent + 1)]
            assert max(produced[:-1], default=0) < stop - start or stop % stride
            assert produced[-1] >= stop - start or stop % stride


@given(streams("valid"))
def test_unpadded_windows_lie_in_that_of_the_one_pass(stream):
    """What a tile sees of the mirrored surroundings, the whole pass sees too."""
    grid = stream.grid
    margin = receptive_radius(stream.graph)
    start = tuple(-m for m in margin)
    stop = tuple(n - m for n, m in zip(whole_window(stream.graph, grid.volume), margin, strict=True))
    assert all(Box(start, stop).contains(tile.window) for tile in grid)


def test_the_papers_tile_is_the_window_of_a_core_of_384():
    """572 -> 388: the classic tile, of which a core on the lattice keeps 384."""
    paper = Architecture(2, 4, 64, padding="valid")
    grid = Stream.over(paper.graph, (1, 768, 768), (1, 384, 384), (0, 0, 0), 1).grid
    assert grid.tile(3).window == Box((0, 292, 292), (1, 864, 864))


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
    assert [grid.tile(there).index for there in (0, len(grid) - 1)] == [0, len(grid) - 1]
    for absent in (-1, len(grid), index if index < 0 else index + len(grid)):
        with pytest.raises(IndexError, match=f"0 to {len(grid) - 1}"):
            grid.tile(absent)


def test_ten_billion_tiles_cost_no_memory():
    """Grids never list their tiles, so that a plan of a whole brain is as cheap as one of a crop."""
    tracemalloc.start()
    grid = TileGrid((16_000_000, 16_000, 1_600), (16, 16, 160), SAME.stride, (22, 22, 22))
    last = grid.tile(len(grid) - 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(grid) == 10**10
    assert last.core == Box((15_999_984, 15_984, 1_440), (16_000_000, 16_000, 1_600))
    assert peak < 100_000


@given(grids())
def test_no_window_is_larger_than_that_of_the_widest_tile(grid):
    """A worker warms up with it, and a card shows with it that its memory is enough."""
    shapes = [tile.window.shape for tile in grid]
    assert grid.widest().window.shape == tuple(max(extents) for extents in zip(*shapes, strict=True))


def test_a_tile_tells_where_it_lies():
    """Failures are reported by this name."""
    grid = TileGrid((20, 20, 20), (8, 8, 8), SAME.stride, (22, 22, 22))
    assert str(grid.tile(5)) == "tile 5 (core z 0:8, y 8:16, x 16:20)"


# --- kinds --------------------------------------------------------------------------------------------------------------


def moved_to_zero(graph, needs, period):
    """What tells cores apart but for their place: all that each node reads and writes, and where in the period they start."""
    stride = graph.stride[needs.axis]
    shares = {node.name: graph.ends(needs.axis, Span(0, stride))[node.name].extent for node in graph.nodes}
    offsets = {name: needs.core.start * share // stride for name, share in shares.items()}
    writes = {name: (span.start - offsets[name], span.stop - offsets[name]) for name, span in needs.writes.items()}
    return needs.core.extent, tuple(sorted(writes.items())), needs.core.start % period


@given(streams(padding="same"), st.integers(1, 60), st.integers(1, 24), st.integers(0, 2), st.integers(-7, 0))
def test_kinds_count_each_core_once_with_its_like(stream, cores, period, axis, short):
    """Costs of a plan are sums over kinds: one core too few, or one of another kind, would promise what is not so."""
    volume = list(stream.grid.volume)
    volume[axis] = max(cores * stream.grid.core[axis] + short, 1)
    grid = replace(stream.grid, volume=tuple(volume))
    listed = Counter()
    for start in range(0, volume[axis], grid.core[axis]):
        core = Span(start, min(start + grid.core[axis], volume[axis]))
        listed[moved_to_zero(stream.graph, stream.needs(axis, core, grid.window(axis, *core)), period)] += 1
    counted = Counter()
    for core, window, times in grid.distinct_cores(axis, period):
        counted[moved_to_zero(stream.graph, stream.needs(axis, core, window), period)] += times
    assert counted == listed


@pytest.mark.parametrize(
    ("cores", "period", "kinds"),
    [(10, 1, 10), (11, 1, 11), (12, 1, 11), (13, 24, 13), (15, 24, 13), (14, 24, 14), (10**9, 24, 14)],
)
def test_as_few_kinds_as_there_are(cores, period, kinds):
    """A core and its halo at either end, what differs on the lattice between, and a chunk that is cut: ten million tiles are planned as fast as ten."""
    grid = TileGrid((8 * cores, 8, 8), (8, 8, 8), SAME.stride, (22, 8, 8))
    found = list(grid.distinct_cores(0, period))
    assert len(found) == kinds
    assert sum(kind.times for kind in found) == cores

"""What a run costs, as integers known before it starts: arithmetic, voxels read, bytes of memory and of output."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from pipeline.core.architecture import Architecture, layers
from pipeline.core.box import Box, Triple
from pipeline.core.grid import Tile, TileGrid
from pipeline.core.mirror import shown

PROCESS_BYTES = 900 * 2**20
"""Resident memory of an idle worker that has imported torch, dask and zarr and loaded a small network, generously."""


def multiply_adds(architecture: Architecture, extent: Triple) -> int:
    """Multiplications with addition of one forward pass over `extent` voxels: half of what a FLOP counter shows."""
    return sum(layer.multiply_adds(architecture.ndim) for layer in layers(architecture, extent))


def activation_values(architecture: Architecture, extent: Triple) -> int:
    """An upper bound of the values that one forward pass holds at once, library scratch included.

    While a layer runs, its input, its output and the waiting skips are alive. A convolution library may hold both
    once more in a layout of its own, and a concatenation holds its parts beside the whole.
    """
    return max(layer.skips + 2 * (layer.in_values + layer.out_values) for layer in layers(architecture, extent))


def slab_bytes(architecture: Architecture, window: Triple, value_bytes: int) -> int:
    """Memory of one pass over a window: activations, and its input and output as float32."""
    edges = (architecture.in_channels + architecture.out_channels) * _voxels(window) * 4
    return activation_values(architecture, window) * value_bytes + 2 * edges


def tile_bytes(grid: TileGrid, in_bytes: int, out_bytes: int) -> int:
    """Memory of a tile around its passes: its input as read, decoded chunks, and its output before and after coding."""
    largest = largest_window(grid)
    architecture = grid.architecture
    read = architecture.in_channels * _voxels(largest) * in_bytes
    written = architecture.out_channels * _voxels(grid.core) * out_bytes
    return 3 * read + 3 * written


def largest_window(grid: TileGrid) -> Triple:
    """Extent of the largest window of any tile, voxels along z, y, x."""
    return _largest(tile.window for tile, _ in distinct_tiles(grid))


def largest_slab_window(grid: TileGrid) -> Triple:
    """Extent of the largest window of any slab, voxels along z, y, x."""
    return _largest(slab.window for tile, _ in distinct_tiles(grid) for slab in tile.slabs)


def total_multiply_adds(grid: TileGrid) -> int:
    """Multiply-adds of all tiles, counted by kinds of tiles: the cost of counting does not grow with the volume."""
    return sum(
        times * sum(multiply_adds(grid.architecture, slab.window.shape) for slab in tile.slabs)
        for tile, times in distinct_tiles(grid)
    )


def total_voxels_read(grid: TileGrid) -> int:
    """Voxels of the volume that all tiles ask for, halos included."""
    return sum(times * shown(tile.window, grid.volume)[0].voxels for tile, times in distinct_tiles(grid))


def distinct_tiles(grid: TileGrid) -> Iterator[tuple[Tile, int]]:
    """One tile of each kind with the number of its like: all tiles away from the ends are the same but for place."""
    axes = [list(_representatives(n, _reach(grid, axis))) for axis, n in enumerate(grid.counts)]
    _, ny, nx = grid.counts
    for (z, times_z), (y, times_y), (x, times_x) in product(*axes):
        yield grid.tile((z * ny + y) * nx + x), times_z * times_y * times_x


def _reach(grid: TileGrid, axis: int) -> int:
    """How many tiles from an end a window may still notice that end."""
    return -(-(grid.halo[axis] + grid.architecture.stride[axis]) // grid.core[axis]) + 1


def _representatives(count: int, reach: int) -> Iterator[tuple[int, int]]:
    if count <= 2 * reach + 1:
        yield from ((index, 1) for index in range(count))
        return
    yield from ((index, 1) for index in range(reach))
    yield reach, count - 2 * reach
    yield from ((index, 1) for index in range(count - reach, count))


def _largest(windows: Iterator[Box]) -> Triple:
    return tuple(max(extent) for extent in zip(*(window.shape for window in windows), strict=True))  # type: ignore[return-value]


def _voxels(extent: Triple) -> int:
    return Box.of_shape(extent).voxels

"""What a run costs, as integers known before it starts: arithmetic, voxels read, bytes of memory and of output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product
from math import prod

from pipeline.core.architecture import Architecture, layers
from pipeline.core.box import Triple
from pipeline.core.grid import TileGrid
from pipeline.core.mirror import mirrored_index
from pipeline.core.receptive import receptive_radius, whole_window

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


def weights(architecture: Architecture) -> int:
    """Values of all convolutions' kernels."""
    taps = {"conv": 3, "up": 2, "point": 1}
    walked = layers(architecture, whole_window(architecture, architecture.stride))
    return sum(layer.in_channels * layer.out_channels * taps[layer.kind] ** architecture.ndim for layer in walked)


def slab_bytes(architecture: Architecture, window: Triple, value_bytes: int) -> int:
    """Memory of one pass over a window: activations, and its input and output as float32."""
    edges = (architecture.in_channels + architecture.out_channels) * prod(window) * 4
    return activation_values(architecture, window) * value_bytes + 2 * edges


def tile_bytes(grid: TileGrid, in_bytes: int, out_bytes: int) -> int:
    """Memory of a tile around its passes: its input as read, decoded chunks, and its output before and after coding."""
    largest = largest_window(grid)
    architecture = grid.architecture
    read = architecture.in_channels * prod(largest) * in_bytes
    core = (min(c, n) for c, n in zip(grid.core, grid.volume, strict=True))
    written = architecture.out_channels * prod(core) * out_bytes
    return 3 * read + 3 * written


def largest_window(grid: TileGrid) -> Triple:
    """Extent of the largest window of any tile, voxels along z, y, x."""
    return tuple(max(_window_extents(grid, axis, grid.core[axis])) for axis in range(3))  # type: ignore[return-value]


def largest_slab_window(grid: TileGrid) -> Triple:
    """Extent of the largest window of any slab, voxels along z, y, x."""
    return tuple(max(_window_extents(grid, axis, grid.slab[axis])) for axis in range(3))  # type: ignore[return-value]


def total_multiply_adds(grid: TileGrid) -> int:
    """Multiply-adds of all tiles, each kind of slab counted once: the count takes as long for ten tiles as for 10^10."""
    axes = [_window_extents(grid, axis, grid.slab[axis]).items() for axis in range(3)]
    return sum(
        multiply_adds(grid.architecture, (z, y, x)) * in_z * in_y * in_x
        for (z, in_z), (y, in_y), (x, in_x) in product(*axes)
    )


def total_voxels_read(grid: TileGrid) -> int:
    """Voxels of the volume that all tiles ask for, halos included."""
    return prod(sum(read * times for read, times in _read_extents(grid, axis).items()) for axis in range(3))


def _window_extents(grid: TileGrid, axis: int, step: int) -> Counter[int]:
    """How often each extent of a window occurs along an axis, for cores cut every `step` voxels."""
    found: Counter[int] = Counter()
    for first, last, times in _kinds(grid, axis):
        for start in range(first, last, step):
            a, b = grid.span(axis, start, min(start + step, last))
            found[b - a] += times
    return found


def _read_extents(grid: TileGrid, axis: int) -> Counter[int]:
    """How often each extent is read along an axis, the mirrored part left out."""
    found: Counter[int] = Counter()
    for first, last, times in _kinds(grid, axis):
        index = mirrored_index(*grid.span(axis, first, last), grid.volume[axis])
        found[int(index.max() - index.min()) + 1] += times
    return found


def _kinds(grid: TileGrid, axis: int) -> Iterator[tuple[int, int, int]]:
    """Cores along an axis as first voxel, stop and number of their like: away from the ends all are alike."""
    core, extent, count = grid.core[axis], grid.volume[axis], grid.counts[axis]
    near = (
        -(-(max(grid.halo[axis], receptive_radius(grid.architecture)[axis]) + grid.architecture.stride[axis]) // core)
        + 1
    )
    middle = count - 2 * near
    if middle > 1:
        kinds = [*((i, 1) for i in range(near)), (near, middle), *((i, 1) for i in range(count - near, count))]
    else:
        kinds = [(i, 1) for i in range(count)]
    for index, times in kinds:
        yield index * core, min((index + 1) * core, extent), times

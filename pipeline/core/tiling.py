"""How tiles are chosen: the rules that a given tile must keep, and the search for a good one.

The arithmetic of all tiles is a product over axes of the sum of their windows' extents, so a candidate core is priced
in microseconds and the search does not grow with the volume.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import lcm, log, prod

from pipeline.core.architecture import Architecture
from pipeline.core.box import Triple, round_up
from pipeline.core.cost import PROCESS_BYTES, largest_slab_window, slab_bytes, tile_bytes, weights
from pipeline.core.grid import TileGrid
from pipeline.core.receptive import least_halo, receptive_radius
from pipeline.errors import PlanError

LARGEST_SHARD_EXTENT = 256
"""Voxels an axis above which an automatic shard is a fraction of the core."""

LARGEST_CHUNK_EXTENT = 64
"""Voxels an axis of an automatic chunk."""

LARGEST_PLANE_CHUNK_EXTENT = 256
"""The same, where the volume is a single slice."""

MEMORY_SHARE = 0.9
"""Part of a worker's memory that a plan may fill."""

FEWEST_TILES_A_WORKER = 4
"""Below this the last tiles leave workers idle, and a killed run loses much."""


@dataclass(frozen=True, slots=True)
class TileRequest:
    """What is known before tiles are chosen; None stands for `auto`.

    Args:
        architecture: The network.
        volume: Voxels along z, y, x.
        in_chunks: The input's chunks along z, y, x.
        in_bytes: Bytes of a stored input value.
        out_bytes: Bytes of an output value.
        value_bytes: Bytes of a value inside the network.
        memory_bytes: Of one worker.
        workers: That will share the tiles.
        core: Asked for, voxels.
        halo: Asked for, voxels.
        chunks: Of the output, asked for, voxels.
        shards: Of the output, asked for, voxels; `()` asks for none.
        slab: Known from an earlier plan, voxels.
    """

    architecture: Architecture
    volume: Triple
    in_chunks: Triple
    in_bytes: int
    out_bytes: int
    value_bytes: int
    memory_bytes: int
    workers: int
    core: Triple | None = None
    halo: Triple | None = None
    chunks: Triple | None = None
    shards: Triple | tuple[()] | None = None
    slab: Triple | None = None

    @property
    def unit(self) -> Triple:
        """What a core's extents must be multiples of: the stride and the write unit, where one is asked for."""
        given = self.shards or self.chunks or (1, 1, 1)
        return tuple(lcm(s, g) for s, g in zip(self.architecture.stride, given, strict=True))  # type: ignore[return-value]

    @property
    def usable_bytes(self) -> int:
        return int(self.memory_bytes * MEMORY_SHARE)


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tiles as chosen: the grid, the output's chunks and shards, and the bound of a worker's memory in bytes."""

    grid: TileGrid
    chunks: Triple
    shards: Triple | None
    worker_bytes: int


def choose_tiling(request: TileRequest) -> Tiling:
    """Tiles that keep every rule.

    Raises:
        PlanError: What was asked for breaks rules (all of them are told), or no tile fits the memory.
    """
    problems = [*_layout_problems(request), *_halo_problems(request), *_core_problems(request)]
    if problems:
        raise PlanError("\n".join(["The tiles asked for cannot be exact:", *(f"  {p}" for p in problems)]))
    halo = _halo(request)
    core = request.core or _best_core(request, halo)
    grid = _fitting_grid(request, core, halo)
    shards = _shards(request, core)
    return Tiling(grid, _chunks(request, shards or core), shards, worker_bytes(request, grid))


def worker_bytes(request: TileRequest, grid: TileGrid) -> int:
    """Upper bound of a worker's resident memory, bytes."""
    slab = slab_bytes(request.architecture, largest_slab_window(grid), request.value_bytes)
    loading = 4 * 4 * weights(request.architecture)  # the file, its tensors and the network, while it loads
    return PROCESS_BYTES + loading + slab + tile_bytes(grid, request.in_bytes, request.out_bytes)


def _layout_problems(request: TileRequest) -> Iterator[str]:
    if not (request.chunks and request.shards):
        return
    if any(s % c for s, c in zip(request.shards, request.chunks, strict=True)):
        good = tuple(round_up(s, c) for s, c in zip(request.shards, request.chunks, strict=True))
        yield (
            f"output.shards {list(request.shards)} is no multiple of output.chunks {list(request.chunks)}: a shard holds "
            f"whole chunks. Set output.shards to {list(good)}, or leave one of them at 'auto'."
        )


def _halo_problems(request: TileRequest) -> Iterator[str]:
    halo, stride = request.halo, request.architecture.stride
    if halo is None:
        return
    if request.architecture.padding == "valid":
        yield (
            f"tiles.halo {list(halo)} was given for an unpadded network, whose windows follow from its own margins "
            f"{list(receptive_radius(request.architecture))}. Leave tiles.halo at 'auto'."
        )
        return
    radius, good = receptive_radius(request.architecture), least_halo(request.architecture)
    advice = f"Set tiles.halo to at least {list(good)}, the next multiples of the stride {list(stride)}, or leave it at 'auto'."
    if any(h < 0 or h % s for h, s in zip(halo, stride, strict=True)):
        yield (
            f"tiles.halo {list(halo)} is no multiple of the stride {list(stride)}: tiles would pool other pairs of voxels "
            f"than one pass does. {advice}"
        )
    if any(h < r for h, r in zip(halo, radius, strict=True)):
        yield (
            f"tiles.halo {list(halo)} is smaller than the receptive radius {list(radius)}: tiles would show seams. {advice}"
        )


def _core_problems(request: TileRequest) -> Iterator[str]:
    core, stride = request.core, request.architecture.stride
    if core is None:
        return
    good = tuple(max(round(c / u), 1) * u for c, u in zip(core, request.unit, strict=True))
    if any(c % s for c, s in zip(core, stride, strict=True)):
        yield (
            f"tiles.core {list(core)} is no multiple of the stride {list(stride)}: tiles would pool other pairs of voxels "
            f"than one pass does. The nearest good one is {list(good)}."
        )
        return
    name, given = ("output.shards", request.shards) if request.shards else ("output.chunks", request.chunks)
    if given and any(c % g for c, g in zip(core, given, strict=True)):
        yield (
            f"tiles.core {list(core)} is no multiple of {name} {list(given)}: a tile writes whole write units. "
            f"The nearest good core is {list(good)}."
        )


def _halo(request: TileRequest) -> Triple:
    if request.architecture.padding == "valid":
        return (0, 0, 0)
    return request.halo or least_halo(request.architecture)


# --- the search ---------------------------------------------------------------------------------------------------


def _best_core(request: TileRequest, halo: Triple) -> Triple:
    """The core of least predicted time among those that fit the memory; the smallest one where none fits."""
    axes = [_candidates(request, axis) for axis in range(3)]
    prices = [{c: _axis_price(request, halo, axis, c) for c in axes[axis]} for axis in range(3)]
    smallest = tuple(min(axis) for axis in axes)
    if not _fits(request, smallest, halo):  # type: ignore[arg-type] - no core has smaller windows
        return smallest  # type: ignore[return-value]
    by_price = sorted(product(*axes), key=lambda core: _price(request, core, prices))  # type: ignore[arg-type]
    return next(core for core in by_price if _fits(request, core, halo))  # type: ignore[arg-type,return-value]


def _candidates(request: TileRequest, axis: int) -> list[int]:
    """Extents worth a look: the volume cut into 1, 2, 3 ... equal parts, rounded up to the unit."""
    extent, unit = request.volume[axis], request.unit[axis]
    if request.architecture.stride[axis] == 1:
        return [_slices(request.in_chunks[axis], extent, unit)]
    parts = {round_up(-(-extent // n), unit) for n in range(1, 17)}
    fixed = {n for n in (64, 96, 128, 192, 256, 384, 512, 768, 1024) if n % unit == 0 and n < extent}
    parts |= {round_up(n, lcm(unit, LARGEST_CHUNK_EXTENT)) for n in parts}
    return sorted({n for n in parts if n <= 1024} | fixed | {unit})


def _slices(in_chunk: int, extent: int, unit: int) -> int:
    """Slices of a stack that a 2D tile takes: whole input chunks, some 32, since z costs no halo."""
    chunk = in_chunk if in_chunk <= LARGEST_CHUNK_EXTENT else _largest_part(in_chunk, LARGEST_CHUNK_EXTENT, 1)
    wanted = chunk * max(32 // chunk, 1)
    return round_up(min(wanted, extent), unit)


def _axis_price(request: TileRequest, halo: Triple, axis: int, core: int) -> tuple[int, float, float]:
    """Tiles along an axis, their windows' extents / the volume's, and the same rounded out to input chunks."""
    extent, chunk = request.volume[axis], request.in_chunks[axis]
    stride = request.architecture.stride[axis]
    margin = halo[axis] or receptive_radius(request.architecture)[axis]
    count, whole = -(-extent // core), round_up(extent, stride)
    inner = max(count - 2, 0)
    last = whole - max((count - 1) * core - margin, 0)
    windows = last + (count > 1) * min(core + margin, whole) + inner * min(core + 2 * margin, whole)
    decoded = windows + (count * chunk if core % chunk or margin else 0)
    return count, windows / whole, decoded / extent


def _price(request: TileRequest, core: Triple, prices: list[dict[int, tuple[int, float, float]]]) -> float:
    """Predicted time, in arbitrary units: arithmetic, a little for reading, and workers that wait at the end."""
    found = [table[c] for table, c in zip(prices, core, strict=True)]
    tiles = prod(count for count, _, _ in found)
    arithmetic, decoded = prod(a for _, a, _ in found), prod(d for _, _, d in found)
    rounds = -(-tiles // request.workers)
    idle = rounds * request.workers / tiles
    few = 1.0 if tiles >= FEWEST_TILES_A_WORKER * request.workers or tiles == 1 else 1.02
    untidy = sum(c % 32 > 0 and c > 32 for c in core)  # chunks of 64 or 32 compress and align better than of 63
    return (arithmetic + 0.02 * decoded) * idle * few * 1.01**untidy


def _fits(request: TileRequest, core: Triple, halo: Triple) -> bool:
    grid = TileGrid(request.architecture, request.volume, core, halo, _finest_z(request, core))
    return worker_bytes(request, grid) <= request.usable_bytes


def _finest_z(request: TileRequest, core: Triple) -> Triple:
    """A 2D network's slabs may be single slices at no cost, so only its y and x extents must fit."""
    return (1, core[1], core[2]) if request.architecture.ndim == 2 else core


def _fitting_grid(request: TileRequest, core: Triple, halo: Triple) -> TileGrid:
    """The grid with the largest slab that fits the memory: the core, halved along its longest axis until it does.

    Raises:
        PlanError: Not even the smallest slab fits.
    """
    slab = request.slab or _clamped(core, request)
    while True:
        grid = TileGrid(request.architecture, request.volume, core, halo, slab)
        needed = worker_bytes(request, grid)
        if needed <= request.usable_bytes:
            return grid
        smaller = None if request.slab else _halved(request, slab)
        if smaller is None:
            raise PlanError(_too_large(request, grid, needed))
        slab = smaller


def _clamped(core: Triple, request: TileRequest) -> Triple:
    """A core may be larger than the volume; its slab need not be. A 2D network takes at most 16 slices at once."""
    strides = request.architecture.stride
    slab = [min(c, round_up(n, s)) for c, n, s in zip(core, request.volume, strides, strict=True)]
    if request.architecture.ndim == 2:
        slab[0] = min(slab[0], 16)
    return tuple(slab)  # type: ignore[return-value]


def _halved(request: TileRequest, slab: Triple) -> Triple | None:
    strides = request.architecture.stride
    free = [axis for axis in range(3) if slab[axis] > strides[axis]]
    if not free:
        return None
    costless = [axis for axis in free if strides[axis] == 1]
    axis = costless[0] if costless else max(free, key=lambda a: slab[a])
    halved = round_up(-(-slab[axis] // 2), strides[axis])
    return tuple(halved if a == axis else n for a, n in enumerate(slab))  # type: ignore[return-value]


def _too_large(request: TileRequest, grid: TileGrid, needed: int) -> str:
    return (
        f"A worker has {_gb(request.memory_bytes)} GB, of which {_gb(request.usable_bytes)} may be planned, but a tile of "
        f"core {list(grid.core)} and halo {list(grid.halo)} needs up to {_gb(needed)} GB (slab {list(grid.slab)}, "
        f"{grid.architecture.ndim}D network of depth {grid.architecture.depth}, width {grid.architecture.width}). "
        "Take a smaller tiles.core, fewer cluster.workers, or set cluster.memory_gb to what a worker really has."
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f}"


# --- the output's layout ------------------------------------------------------------------------------------------


def _shards(request: TileRequest, core: Triple) -> Triple | None:
    if request.shards is not None:
        return request.shards or None
    grain = request.chunks or (1, 1, 1)
    return tuple(  # type: ignore[return-value]
        _largest_part(c, LARGEST_SHARD_EXTENT, g) for c, g in zip(core, grain, strict=True)
    )


def _chunks(request: TileRequest, unit: Triple) -> Triple:
    if request.chunks:
        return request.chunks
    limit = LARGEST_CHUNK_EXTENT if request.volume[0] > 1 else LARGEST_PLANE_CHUNK_EXTENT
    return tuple(_largest_part(u, limit, 1) for u in unit)  # type: ignore[return-value]


def _largest_part(whole: int, limit: int, grain: int) -> int:
    """The largest whole fraction of `whole` up to `limit` that is a multiple of `grain`; `whole` if all are slivers."""
    parts = [whole // n for n in range(1, whole // grain + 1) if whole % n == 0 and (whole // n) % grain == 0]
    fitting = [part for part in parts if part <= limit]
    return fitting[0] if fitting and fitting[0] >= limit // 4 else min(parts, key=lambda p: abs(log(p / limit)))

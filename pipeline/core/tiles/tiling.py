"""How tiles are chosen: the rules that a given tile must keep, and the search for a good one.

Every cost is a sum over layers of products over the axes, so all candidates are priced at once, as a product of one table
an axis; the search takes milliseconds and does not grow with the volume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt, lcm, log, prod

import numpy as np
from numpy.typing import NDArray

from pipeline.core.geometry.box import Triple, per_axis, round_up, triple
from pipeline.core.network.blended import BlendedStream
from pipeline.core.network.graph import Graph
from pipeline.core.network.imported import AnyNetwork
from pipeline.core.network.mean import Mean
from pipeline.core.network.receptive import receptive_radius
from pipeline.core.network.stream import Stream
from pipeline.core.tiles.cost import (
    PROCESS_BYTES,
    READ_BLOCK_BYTES,
    axis_voxels_decoded,
    carried_extents,
    held_channels,
    held_extents,
    layer_multiply_adds,
    layer_sums,
    mean_bytes,
    network_values,
    one_pass_multiply_adds,
    stream_extents,
    stream_values,
    tile_bytes,
    weights,
    widest_input,
    window_extents,
    window_values,
)
from pipeline.core.tiles.grid import TileGrid
from pipeline.core.tiles.lattice import BlendedWindow
from pipeline.errors import PlanError

LARGEST_SHARD = (128, 256, 256)
"""Voxels an axis above which an automatic shard is a fraction of the core; less along z, where units complete in turn."""

LARGEST_CHUNK_EXTENT = 64
"""Voxels an axis of an automatic chunk."""

LARGEST_PLANE_CHUNK_EXTENT = 256
"""The same, where the volume is a single slice."""

MEMORY_SHARE = 0.9
"""Part of a worker's memory that a plan may fill."""

DEVICE_MEMORY_SHARE = 0.6
"""Part of a GPU's free memory that buffers and activations may fill; the rest is for its libraries' scratch."""

FEWEST_TILES_A_WORKER = 4
"""Below this the last tiles leave workers idle, and a killed run loses much, where tiles are large."""

SMALL_TILE = 2**42
"""Multiply-adds of a tile that is lost without regret: some ten seconds of a processor."""

LARGE_TILE = 2**46
"""Multiply-adds above which a tile is a long time to lose: some minutes of a processor."""

SLAB_VOXELS = {"cpu": 2**19, "cuda": 2**23}
"""Voxels of a slab that keep a device busy: a few megabytes a layer stay in a processor's cache; a GPU wants many."""

LARGEST_SLAB = 64
"""Slices of an automatic slab, at most."""

READING = {"cpu": 0.02, "cuda": 0.3}
"""Time to read and decode the whole volume / time to compute it."""


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
        slab: Known from an earlier plan, slices.
        device: `cpu` or `cuda`.
        device_memory_bytes: Free memory of a worker's GPU; None where there is none.
        mean: Of which passes a prediction is the mean, the network's the first; None where it is of one.
        window: Of which tiles are blended, where a run is not exact.
    """

    architecture: AnyNetwork
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
    slab: int | None = None
    device: str = "cpu"
    device_memory_bytes: int | None = None
    mean: Mean | None = None
    window: BlendedWindow | None = None

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """The networks that are computed."""
        return self.mean.graphs if self.mean else (self.architecture.graph,)

    @property
    def passes(self) -> int:
        return self.mean.passes if self.mean else 1

    @property
    def stride(self) -> Triple:
        """What a core's extents must be multiples of for the network's sake: nothing where tiles are blended."""
        if self.window:
            return (1, 1, 1)
        return self.mean.stride if self.mean else self.architecture.stride

    @property
    def is_padded(self) -> bool:
        return self.mean.is_padded if self.mean else self.architecture.padding == "same"

    @property
    def radius(self) -> Triple:
        """Context a side that a core needs, at most."""
        return self.mean.margin(self.volume) if self.mean else receptive_radius(self.architecture.graph)

    @property
    def least_halo(self) -> Triple:
        """The same, rounded up to the stride."""
        return per_axis(round_up, self.radius, self.stride)

    def stream(self, core: Triple, halo: Triple, slab: int) -> Stream:
        """The network over tiles of a core."""
        graph = self.architecture.graph
        if self.window:
            return BlendedStream.of_windows(graph, self.volume, core, self.window)
        return Stream.over(graph, self.volume, core, halo, slab, self.mean)

    @property
    def unit(self) -> Triple:
        """What a core's extents must be multiples of: the stride and the write unit, where one is asked for."""
        write_unit = self.shards or self.chunks or (1, 1, 1)
        return per_axis(lcm, self.stride, write_unit)

    @property
    def usable_bytes(self) -> int:
        return int(self.memory_bytes * MEMORY_SHARE)


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tiles as chosen.

    Args:
        stream: The network and its tiles.
        halo: Context a side, voxels.
        chunks: Of the output, voxels.
        shards: Of the output, voxels; None for none.
        worker_bytes: Upper bound of a worker's resident memory.
        price: Predicted time with the workers of the request / that of one pass by as many, idle ones included.
    """

    stream: Stream
    halo: Triple
    chunks: Triple
    shards: Triple | None
    worker_bytes: int
    price: float

    @property
    def grid(self) -> TileGrid:
        return self.stream.grid


@lru_cache(maxsize=32)  # the volumes of a dataset are often of one shape
def choose_tiling(request: TileRequest) -> Tiling:
    """Tiles that keep every rule.

    Raises:
        PlanError: What was asked for breaks rules (all of them are listed), or no tile fits the memory.
    """
    problems = [*_layout_problems(request), *_halo_problems(request), *_core_problems(request)]
    if problems:
        cannot = "are not possible" if request.window else "cannot be exact"
        raise PlanError("\n".join([f"The tiles asked for {cannot}:", *(f"  {p}" for p in problems)]))
    halo = _halo(request)
    cores = [request.core] if request.core else _cores(request, halo)
    stream = _first_that_fits(request, cores, halo)
    core = stream.grid.core
    shards = _shards(request, core)
    price = _Prices(request, halo, [[c] for c in core]).all()[0]
    chunks = _chunks(request, shards or core)
    return Tiling(stream, halo, chunks, shards, worker_bytes(request, stream), float(price))


def worker_bytes(request: TileRequest, stream: Stream) -> int:
    """Upper bound of a worker's resident memory, bytes."""
    shards = _shards(request, stream.grid.core)
    unit = (shards or _chunks(request, stream.grid.core))[0]
    around = tile_bytes(stream, request.in_bytes, request.out_bytes, request.in_chunks[0], unit)
    network = _network_bytes(request, stream) if request.device_memory_bytes is None else 0
    return _standing_bytes(request) + network + around


def _network_bytes(request: TileRequest, stream: Stream) -> int:
    """Of what lies where the network is computed."""
    return network_values(stream) * request.value_bytes + mean_bytes(stream, request.in_bytes)


def _network_room(request: TileRequest) -> int:
    """Bytes that the network's values may take at most."""
    if request.device_memory_bytes is not None:
        return int(request.device_memory_bytes * DEVICE_MEMORY_SHARE)
    return request.usable_bytes - _standing_bytes(request)


def _standing_bytes(request: TileRequest) -> int:
    """Of a process that has loaded the network: the file, its tensors and the kernels made of them."""
    return PROCESS_BYTES + 4 * 4 * sum(map(weights, request.graphs))


def _layout_problems(request: TileRequest) -> Iterator[str]:
    if not (request.chunks and request.shards):
        return
    if any(per_axis(lambda s, c: s % c, request.shards, request.chunks)):
        good = per_axis(round_up, request.shards, request.chunks)
        yield (
            f"output.shards {list(request.shards)} is no multiple of output.chunks {list(request.chunks)}: a shard holds "
            f"whole chunks. Set output.shards to {list(good)}, or leave one of them at 'auto'."
        )


def _halo_problems(request: TileRequest) -> Iterator[str]:
    halo, stride = request.halo, request.stride
    if halo is None:
        return
    if request.window:
        yield (
            f"tiles.halo {list(halo)} was given, but model.exact is false: tiles read whole windows of model.window ({request.window}). "
            "Leave tiles.halo at 'auto'."
        )
        return
    if not request.is_padded:
        yield (
            f"tiles.halo {list(halo)} was given for an unpadded network, whose windows follow from its own margins "
            f"{list(request.radius)}. Leave tiles.halo at 'auto'."
        )
        return
    radius, good = request.radius, request.least_halo
    advice = f"Set tiles.halo to at least {list(good)}, the next multiples of the stride {list(stride)}, or leave it at 'auto'."
    if any(per_axis(lambda h, s: h < 0 or h % s > 0, halo, stride)):
        yield (
            f"tiles.halo {list(halo)} is no multiple of the stride {list(stride)}: tiles would pool other pairs of voxels "
            f"than one pass does. {advice}"
        )
    if any(per_axis(lambda h, r: h < r, halo, radius)):
        yield (
            f"tiles.halo {list(halo)} is smaller than the receptive radius {list(radius)}: tiles would show seams. {advice}"
        )


def _core_problems(request: TileRequest) -> Iterator[str]:
    core, stride = request.core, request.stride
    if core is None:
        return
    good = per_axis(lambda c, u: max(round(c / u), 1) * u, core, request.unit)
    if any(per_axis(lambda c, s: c % s, core, stride)):
        yield (
            f"tiles.core {list(core)} is no multiple of the stride {list(stride)}: tiles would pool other pairs of voxels "
            f"than one pass does. The nearest good one is {list(good)}."
        )
        return
    name, unit = ("output.shards", request.shards) if request.shards else ("output.chunks", request.chunks)
    if unit and any(per_axis(lambda c, g: c % g, core, unit)):
        yield (
            f"tiles.core {list(core)} is no multiple of {name} {list(unit)}: a tile writes whole write units. "
            f"The nearest good core is {list(good)}."
        )


def _halo(request: TileRequest) -> Triple:
    if not request.is_padded or request.window:
        return (0, 0, 0)
    return request.halo or request.least_halo


# --- the search ---------------------------------------------------------------------------------------------------


def _cores(request: TileRequest, halo: Triple) -> list[Triple]:
    """Cores worth a try, the one of least predicted time first; the smallest last, which fits where any does."""
    axes = [_candidates(request, axis) for axis in range(3)]
    prices = _Prices(request, halo, axes)
    network = prices.network_bytes()
    fits = network <= _network_room(request)
    fits &= prices.tile_bytes(network) <= request.usable_bytes - _standing_bytes(request)
    order = np.argsort(np.where(fits, prices.all(), np.inf), kind="stable")[: int(fits.sum())]
    return [*map(prices.core, order), triple(map(min, axes))]


def _candidates(request: TileRequest, axis: int) -> list[int]:
    """Extents worth a look: the volume cut into 1, 2, 3 ... equal parts, rounded up to the unit, and small ones."""
    extent, unit = request.volume[axis], request.unit[axis]
    if request.window:
        step = request.window.core[axis]
        windows = {*range(1, 17), *(-(-extent // (step * n)) for n in range(1, 17))}
        return sorted({round_up(step * n, unit) for n in windows if step * (n - 1) < extent})
    if request.stride[axis] == 1:
        return [_slices(request.in_chunks[axis], extent, unit)]
    parts = {round_up(-(-extent // n), unit) for n in range(1, 17)}
    parts |= {round_up(n, lcm(unit, LARGEST_CHUNK_EXTENT)) for n in parts}
    fixed = {n for n in (192, 256, 384, 512, 768, 1024) if n % unit == 0 and n < extent}
    small = set(range(unit, min(extent, 128) + 1, unit))
    return sorted(parts | fixed | small | {unit})


def _slices(in_chunk: int, extent: int, unit: int) -> int:
    """Slices of a stack that a 2D tile takes: whole input chunks, some 32, since z costs no halo."""
    chunk = _largest_part(in_chunk, LARGEST_CHUNK_EXTENT, 1)
    wanted = chunk * max(32 // chunk, 1)
    return round_up(min(wanted, extent), unit)


class _Prices:
    """Prices and sizes of all combinations of candidates, flat, x fastest."""

    def __init__(self, request: TileRequest, halo: Triple, axes: list[list[int]]) -> None:
        self._request, self._axes = request, axes
        self._slab = request.window.core[0] if request.window else request.slab or request.stride[0]
        self._streams = [[self._stream(axis, n, halo) for n in axes[axis]] for axis in range(3)]

    def _stream(self, axis: int, extent: int, halo: Triple) -> Stream:
        core = triple(extent if a == axis else s for a, s in enumerate(self._request.stride))
        return self._request.stream(core, halo, self._slab)

    def core(self, number: int) -> Triple:
        place = np.unravel_index(number, [len(axis) for axis in self._axes])
        return triple(axis[int(i)] for axis, i in zip(self._axes, place, strict=True))

    def _table(self, count: Callable[[Stream, int], float | np.ndarray]) -> list[NDArray[np.float64]]:
        """By axis, `count(stream, axis)` of each candidate."""
        return [np.array([count(one, axis) for one in self._streams[axis]], float) for axis in range(3)]

    def all(self) -> NDArray[np.float64]:
        """Predicted times, one pass by all workers as the unit: arithmetic, some reading, workers that wait at the end."""
        request = self._request
        one_pass = float(one_pass_multiply_adds(request.architecture.graph, request.volume))
        each = np.array(layer_multiply_adds(request.architecture.graph), float)
        arithmetic: NDArray[np.float64] = np.einsum("zl,yl,xl,l->zyx", *self._table(layer_sums), each).ravel()
        decoded = _outer(self._table(lambda one, axis: axis_voxels_decoded(one.grid, axis, request.in_chunks[axis])))
        tiles = _outer(self._table(lambda one, axis: one.grid.counts[axis]))
        untidy = _outer([np.array([1.03 if n % 32 and n > 32 else 1.0 for n in axis]) for axis in self._axes])
        idle = np.ceil(tiles / request.workers) * request.workers / tiles
        size = arithmetic * request.passes / tiles
        few: NDArray[np.float64] = np.where(
            (size > SMALL_TILE) & (tiles < FEWEST_TILES_A_WORKER * request.workers), 1.02, 1.0
        )
        large = 1 + 0.05 * np.log2(np.maximum(size / LARGE_TILE, 1.0))
        reading = READING[request.device] * decoded / prod(request.volume) / request.passes
        return (arithmetic / one_pass + reading) * idle * few * large * untidy

    def network_bytes(self) -> NDArray[np.float64]:
        """Of what lies where the network is computed, with the least slab, of all combinations."""
        if self._request.mean is None:
            return self._pass_bytes()
        request = self._request
        window = _outer(self._table(lambda one, axis: widest_input(one.grid, axis)))
        core = _outer(self._table(lambda one, axis: min(one.grid.core[axis], one.grid.volume[axis])))
        stored = window * request.architecture.in_channels * request.in_bytes
        return self._pass_bytes() + stored + 4 * core * request.architecture.out_channels

    def _pass_bytes(self) -> NDArray[np.float64]:
        """Of what the network holds: `cost.network_values` of all combinations."""
        graph = self._request.architecture.graph
        if not self._request.window and graph.is_streamed and not graph.is_swept:
            tables = [np.array([stream_extents(one, axis) for one in self._streams[axis]]) for axis in range(3)]
            return stream_values(graph, tables) * self._request.value_bytes
        if self._request.window or not graph.is_swept:
            tables = [np.array([window_extents(one, axis) for one in self._streams[axis]]) for axis in range(3)]
            carried = _outer(
                self._table(lambda one, axis: carried_extents(one, axis) if isinstance(one, BlendedStream) else 0)
            )
            return (window_values(graph, tables) + carried) * self._request.value_bytes
        channels, written = held_channels(self._request.architecture.graph)
        extents = [[held_extents(one, axis) for one in self._streams[axis]] for axis in range(3)]
        held, passing = ([np.array([pair[n] for pair in row], float) for row in extents] for n in (0, 1))
        most = np.zeros([len(axis) for axis in self._axes])
        for layer, values in enumerate(written):
            z, y, x = (table[:, layer] for table in passing)
            most = np.maximum(most, values * z[:, None, None] * y[None, :, None] * x)
        standing: NDArray[np.float64] = np.einsum("zl,yl,xl,l->zyx", *held, channels.astype(float))
        return (standing + 2 * most).ravel() * self._request.value_bytes

    def tile_bytes(self, network: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of all that a worker holds, with the least slab: a lower bound, near enough that few are tried in vain."""
        request = self._request
        ones = np.ones(len(self._axes[0]))
        read, kept = (
            _outer([ones, *(np.array([count(one.grid, axis) for one in self._streams[axis]]) for axis in (1, 2))])
            for count in (widest_input, lambda grid, axis: min(grid.core[axis], grid.volume[axis]))
        )
        slab = self._slab
        slice_bytes = read * request.architecture.in_channels * request.in_bytes
        blocks = np.minimum(round_up(slab, request.in_chunks[0]) * slice_bytes, READ_BLOCK_BYTES)
        here = network if request.device_memory_bytes is None else 0.0
        return here + 4 * np.minimum(blocks, request.volume[0] * slice_bytes) + 20 * slab * (read + kept)


def _outer(axes: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = np.einsum("z,y,x->zyx", *axes)
    return product.ravel()


def _first_that_fits(request: TileRequest, cores: list[Triple], halo: Triple) -> Stream:
    """The first core that fits the memory, with the largest slab that does.

    Raises:
        PlanError: None does.
    """
    for core in cores:
        for slab in [request.slab] if request.slab else _slabs(request, core):
            stream = request.stream(core, halo, slab)
            needed = worker_bytes(request, stream)
            if needed <= request.usable_bytes and _fits_device(request, stream):
                return stream
    raise PlanError(_too_large(request, stream, needed))


def _fits_device(request: TileRequest, stream: Stream) -> bool:
    """Whether a GPU holds the network's values; the rest of its memory is for what its libraries need."""
    free = request.device_memory_bytes
    return free is None or _network_bytes(request, stream) <= free * DEVICE_MEMORY_SHARE


def _slabs(request: TileRequest, core: Triple) -> list[int]:
    """Slabs worth a try, the largest first: enough voxels to keep the device busy, down to one stride."""
    if request.window:
        return [request.window.core[0]]
    stride, (z, y, x) = request.stride[0], request.volume
    plane = min(core[1], y) * min(core[2], x)
    wanted = round_up(-(-SLAB_VOXELS[request.device] // plane), stride)
    most = min(wanted, round_up(LARGEST_SLAB, stride), round_up(min(core[0], z), stride))
    return sorted({max(round_up(most >> n, stride), stride) for n in range(8)}, reverse=True)


def _too_large(request: TileRequest, stream: Stream, needed: int) -> str:
    around = f"windows of {list(request.window.extent)}" if request.window else f"halo {list(_halo(request))}"
    tile = f"a tile of core {list(stream.grid.core)} and {around} (slab {stream.slab}, {request.architecture.summary})"
    if not _fits_device(request, stream) and request.device_memory_bytes is not None:
        network = _network_bytes(request, stream)
        return (
            f"A GPU has {_gb(request.device_memory_bytes)} GB free, of which {_gb(_network_room(request))} may be planned, but "
            f"{tile} needs up to {_gb(network)} GB. Take a smaller tiles.core, or a card with more memory."
        )
    return (
        f"A worker has {_gb(request.memory_bytes)} GB, of which {_gb(request.usable_bytes)} may be planned, but {tile} needs "
        f"up to {_gb(needed)} GB. Take a smaller tiles.core, fewer cluster.workers, or set cluster.memory_gb to what a "
        "worker really has."
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f}"


# --- the output's layout ------------------------------------------------------------------------------------------


def _shards(request: TileRequest, core: Triple) -> Triple | None:
    if request.shards is not None:
        return request.shards or None
    grain = request.chunks or (1, 1, 1)
    return per_axis(_largest_part, core, LARGEST_SHARD, grain)


def _chunks(request: TileRequest, unit: Triple) -> Triple:
    if request.chunks:
        return request.chunks
    limit = LARGEST_CHUNK_EXTENT if request.volume[0] > 1 else LARGEST_PLANE_CHUNK_EXTENT
    return per_axis(lambda u: _largest_part(u, limit, 1), unit)


def _divisors(number: int) -> list[int]:
    """All of them, the largest first; as many steps as the number's root."""
    small = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)}, reverse=True)


def _largest_part(whole: int, limit: int, grain: int) -> int:
    """The largest whole fraction of `whole` up to `limit` that is a multiple of `grain`; `whole` if all are slivers."""
    parts = [grain * n for n in _divisors(whole // grain)]
    fitting = [part for part in parts if part <= limit]
    return fitting[0] if fitting and fitting[0] >= limit // 4 else min(parts, key=lambda p: abs(log(p / limit)))

"""What a run costs, as integers known before it starts: arithmetic, voxels read, bytes of memory and of output.

All counts are sums over layers of products over the axes, so each axis is counted alone, and each kind of core along it
once: away from the volume's ends all are alike. Ten billion tiles are counted as fast as ten.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import lcm, prod

import numpy as np
from numpy.typing import NDArray

from pipeline.core.geometry.box import Span, Triple, per_axis, round_up
from pipeline.core.geometry.mirror import mirrored_ends
from pipeline.core.network.blended import BlendedStream
from pipeline.core.network.flow import Flow
from pipeline.core.network.graph import Graph
from pipeline.core.network.need import Needs
from pipeline.core.network.norm_passes import NormPass
from pipeline.core.network.operations import Concatenation
from pipeline.core.network.receptive import lost_margin, whole_window
from pipeline.core.network.schedule import Schedule
from pipeline.core.network.stream import Stream
from pipeline.core.tiles.grid import TileGrid

PROCESS_BYTES = 900 * 2**20
"""Resident memory of an idle worker that has imported torch, dask and zarr and loaded a small network, generously."""

READ_BLOCK_BYTES = 2**28
"""Input that a tile reads at once, at most, where whole chunks along z would be more."""

CACHE_BYTES = 2**28
"""Of what it read of an object store, that a worker keeps, at most."""


# --- arithmetic ---------------------------------------------------------------------------------------------------------


def multiply_adds(schedule: Schedule) -> int:
    """Multiplications with addition of one tile: half of what a FLOP counter shows."""
    graph = schedule.graph
    return sum(
        each * prod(axis.computes(node) for axis in schedule.axes)
        for each, node in zip(layer_multiply_adds(graph), graph.layers, strict=True)
    )


def pass_multiply_adds(graph: Graph, axes: tuple[Needs, Needs, Needs]) -> int:
    """Of one pass over a window by itself, of which these are the needs."""
    return multiply_adds(Schedule(graph, axes, graph.stride[0]))


def turn_multiply_adds(schedule: Schedule) -> int:
    """Of one turn of a sweep, away from its ends."""
    graph = schedule.graph
    return sum(
        each * schedule.slices(node) * prod(axis.computes(node) for axis in schedule.axes[1:])
        for each, node in zip(layer_multiply_adds(graph), graph.layers, strict=True)
    )


def one_pass_multiply_adds(graph: Graph, volume: Triple) -> int:
    """Of one forward pass over the whole volume, extended as the promise defines it."""
    core = per_axis(lambda n, m: n - 2 * m, whole_window(graph, volume), lost_margin(graph))
    whole = Stream.over(graph, core, core, (0, 0, 0), core[0])
    return multiply_adds(whole.schedule(whole.grid.tile(0)))


def total_multiply_adds(stream: Stream) -> int:
    """Multiply-adds of all tiles; of a mean, of all its passes, each as if the volume were not turned."""
    if stream.mean:
        each_network = sum(total_multiply_adds(stream.alone(graph)) for graph in stream.mean.graphs)
        return each_network * len(stream.mean.symmetries)
    sums = [layer_sums(stream, axis) for axis in range(3)]
    return sum(
        each * int(z) * int(y) * int(x) for each, z, y, x in zip(layer_multiply_adds(stream.graph), *sums, strict=True)
    )


def norm_pass_multiply_adds(norm_pass: NormPass, grid: TileGrid) -> int:
    """Of one pass over all tiles that looks at maps."""
    graph = norm_pass.graph
    sums = np.zeros((3, len(graph.layers)), dtype=np.int64)
    for axis in range(3):
        for core, _, times in grid.distinct_cores(axis):
            needs = norm_pass.needs(axis, core)
            if needs.core.extent > 0:
                sums[axis] += times * np.array([needs.computes(node) for node in graph.layers], dtype=np.int64)
    layers = zip(layer_multiply_adds(graph), *sums, strict=True)
    return sum(each * int(z) * int(y) * int(x) for each, z, y, x in layers)


def layer_multiply_adds(graph: Graph) -> list[int]:
    """By layer, multiply-adds a voxel that it computes."""
    return [node.operation.multiply_adds(graph.in_channels(node), node.channels) for node in graph.layers]


def layer_sums(stream: Stream, axis: int) -> np.ndarray:
    """By layer, the voxels that it computes along an axis, over all tiles in a row."""
    layers = stream.graph.layers
    total = np.zeros(len(layers), dtype=np.int64)
    for needs, times in stream.distinct_needs(axis):
        total += times * np.array([needs.computes(node) for node in layers])
    return total


def weights(graph: Graph) -> int:
    """Values of all kernels."""
    return sum(node.operation.weights(graph.in_channels(node), node.channels) for node in graph.nodes)


# --- reading ------------------------------------------------------------------------------------------------------------


def total_voxels_read(grid: TileGrid) -> int:
    """Voxels of the volume that all tiles ask for, halos included."""
    return prod(axis_voxels_read(grid, axis) for axis in range(3))


def total_voxels_decoded(grid: TileGrid, chunks: Triple, slices: int) -> int:
    """Voxels of the chunks that tiles touch, counted as often as they are decoded.

    Args:
        grid: The tiles.
        chunks: Voxels of an input chunk along z, y, x.
        slices: That a tile reads at once; see `read_slices`.
    """
    plane = prod(axis_voxels_decoded(grid, axis, chunks[axis]) for axis in (1, 2))
    return plane * sum(
        times * _decoded(grid, 0, chunks[0], part)
        for _, window, times in grid.distinct_cores(0, lcm(chunks[0], slices))
        for part in read_spans(window, grid.volume[0], slices)
    )


def axis_voxels_read(grid: TileGrid, axis: int) -> int:
    """Voxels along an axis that all tiles in a row ask for; what is mirrored is not read."""
    spans = ((_inside(window, grid.volume[axis]), times) for _, window, times in grid.distinct_cores(axis))
    return sum(times * (stop - first) for (first, stop), times in spans)


def axis_voxels_decoded(grid: TileGrid, axis: int, chunk: int) -> int:
    """The same, rounded out to whole chunks."""
    return sum(times * _decoded(grid, axis, chunk, window) for _, window, times in grid.distinct_cores(axis, chunk))


def _decoded(grid: TileGrid, axis: int, chunk: int, span: Span) -> int:
    return rounded_out(*_inside(span, grid.volume[axis]), chunk, grid.volume[axis])


def rounded_out(first: int, stop: int, chunk: int, extent: int) -> int:
    """Voxels of the chunks that hold those from `first` to `stop` of an axis."""
    return min(round_up(stop, chunk), extent) - first // chunk * chunk


def read_slices(stream: Stream, chunk: int, value_bytes: int) -> int:
    """Slices that a tile reads at once: whole chunks along z where these are not too many bytes.

    Args:
        stream: The network and its tiles.
        chunk: Slices of an input chunk.
        value_bytes: Of a stored input value.
    """
    slice_bytes = stream.graph.input.channels * widest_plane(stream.grid) * value_bytes
    most = max(READ_BLOCK_BYTES // slice_bytes, stream.slab)
    return min(round_up(stream.slab, chunk), most, max(stream.grid.volume[0], 1))


def cache_bytes(grid: TileGrid, chunks: Triple, voxel_bytes: int) -> int:
    """What a worker keeps so that it asks an object store for no chunk twice while it goes through tiles in order, before compression.

    Windows overlap by twice the halo, and the last axis runs fastest: a chunk is read again a layer of tiles later, at most. A chunk more along
    z makes room for what codecs add where nothing can be compressed.

    Args:
        grid: The tiles.
        chunks: Voxels of an input chunk along z, y, x.
        voxel_bytes: Of a stored voxel, all channels.
    """
    if len(grid) == 1:
        return 0
    slices = max(_decoded(grid, 0, chunks[0], window) for _, window, _ in grid.distinct_cores(0, chunks[0]))
    plane = prod(per_axis(round_up, grid.volume, chunks)[1:])
    return min((slices + chunks[0]) * plane * voxel_bytes, CACHE_BYTES)


def widest_plane(grid: TileGrid) -> int:
    """Voxels of a slice of the widest window."""
    return prod(widest_input(grid, axis) for axis in (1, 2))


def widest_input(grid: TileGrid, axis: int) -> int:
    """Voxels that the widest window has along an axis."""
    return max(kind.window.extent for kind in grid.distinct_cores(axis))


def read_spans(whole: Span, extent: int, slices: int) -> Iterator[Span]:
    """A window's slices in parts that are read at once, cut at multiples of `slices`, so that no chunk is cut."""
    cuts = range(max(whole.start, 0) // slices * slices + slices, min(whole.stop, extent), slices)
    for a, b in pairwise([whole.start, *cuts, whole.stop]):
        yield Span(a, b)


def _inside(span: Span, extent: int) -> tuple[int, int]:
    """First voxel and stop of what is read of the volume to show `span`, mirrored beyond the ends."""
    return mirrored_ends(span.start, span.stop, extent)


# --- memory -------------------------------------------------------------------------------------------------------------


def network_values(stream: Stream) -> int:
    """An upper bound of the values that the network holds at once, whichever way it runs; of a mean, one pass runs after another."""
    if stream.mean:
        return max(map(network_values, stream.bounds))
    if stream.graph.is_swept and not isinstance(stream, BlendedStream):
        return sweep_values(stream)
    if stream.graph.is_streamed and not isinstance(stream, BlendedStream):
        return int(stream_values(stream.graph, [stream_extents(stream, axis)[np.newaxis] for axis in range(3)])[0])
    extents = [window_extents(stream, axis)[np.newaxis] for axis in range(3)]
    carried = prod(carried_extents(stream, axis) for axis in range(3)) if isinstance(stream, BlendedStream) else 0
    return int(window_values(stream.graph, extents)[0]) + carried


def carried_extents(stream: BlendedStream, axis: int) -> int:
    """Along an axis, of what a tile carries from window to window: slices of its input, and sums; float32, each twice where it grows.

    Along z these are values a column, of all channels; along y and x, columns.
    """
    widest = max(widest_input(stream.grid, axis), 1)
    if axis:
        return widest
    depth = stream.extent[0] + stream.grid.rows[0].step
    return 4 * depth * (stream.graph.input.channels + stream.graph.output.channels)


def mean_bytes(stream: Stream, in_bytes: int) -> int:
    """What a tile of a mean holds beside a pass: its window as stored, the sum, and what a pass adds; none where there is one pass.

    Args:
        stream: The network and its tiles.
        in_bytes: Of a stored input value.
    """
    if stream.mean is None:
        return 0
    grid = stream.grid
    window = prod(widest_input(grid, axis) for axis in range(3)) * stream.graph.input.channels
    z, y, x = per_axis(min, grid.core, grid.volume)
    slices = min(stream.slab, z) if all(graph.is_streamed for graph in stream.mean.graphs) else z
    return window * in_bytes + 4 * stream.graph.output.channels * y * x * (z + 3 * slices)


def stream_extents(stream: Stream, axis: int) -> np.ndarray:
    """Extents along an axis, of the widest tile: what each node writes in a turn, what it reads for that, and what is held of it; (3, nodes)."""
    extents = [_streamed(stream.graph, stream.slab, needs) for needs, _ in stream.distinct_needs(axis)]
    widest: np.ndarray = np.max(np.array(extents), axis=0)
    return widest


def _streamed(graph: Graph, slab: int, needs: Needs) -> tuple[list[int], list[int], list[int]]:
    nodes, flow = graph.nodes, Flow(graph, (needs, needs, needs), slab)
    whole = [needs.writes[node.name].extent for node in nodes]
    frames = [needs.frame(node).extent if node.inputs else 0 for node in nodes]
    if needs.axis > 0:
        return whole, frames, [flow.framed(needs, node).extent for node in nodes]
    written = [min(flow.slices(node), n) for node, n in zip(nodes, whole, strict=True)]
    read = [n.operation.need(0, Span(0, flow.slices(n)), None).extent if n.inputs else 0 for n in nodes]
    return written, [*map(min, read, frames)], [flow.held(node) for node in nodes]


def norm_pass_values(norm_pass: NormPass, grid: TileGrid, slab: int) -> int:
    """An upper bound of the values that a pass which looks at maps holds at once."""
    graph = norm_pass.graph
    along = [
        [n for core, _, _ in grid.distinct_cores(a) if (n := norm_pass.needs(a, core)).core.extent] for a in range(3)
    ]
    if graph.is_streamed:
        widest = [np.max([_streamed(graph, slab, needs) for needs in row], axis=0)[np.newaxis] for row in along]
        return int(stream_values(graph, widest)[0])
    widest = [np.max([pass_extents(graph, needs) for needs in row], axis=0)[np.newaxis] for row in along]
    return int(window_values(graph, widest)[0])


def _values(extents: Sequence[np.ndarray], channels: int, kind: int, number: int) -> NDArray[np.float64]:
    """Of so many channels, the values of a node, by combination of candidates: its extents of a kind along z, y, x multiplied."""
    z, y, x = (table[:, kind, number].astype(float) for table in extents)
    product: NDArray[np.float64] = channels * np.einsum("z,y,x->zyx", z, y, x).ravel()
    return product


def stream_values(graph: Graph, extents: Sequence[np.ndarray]) -> NDArray[np.float64]:
    """An upper bound of the values that a stream holds at once: rings, what is used up in a turn, and what a node reads and writes, twice.

    Args:
        graph: The network.
        extents: Along z, y, x, of each candidate: as of `stream_extents`; (candidates, 3, nodes).

    Returns:
        Of all combinations of candidates, flat, x fastest.
    """

    values = functools.partial(_values, extents)
    numbers = {node.name: number for number, node in enumerate(graph.nodes)}
    held = [values(node.channels, 2, number) for number, node in enumerate(graph.nodes)]
    written = [values(node.channels, 0, number) for number, node in enumerate(graph.nodes)]
    last = {name: node.name for node in graph.nodes for name in node.inputs}
    live = {graph.input.name: np.where(held[0] > 0, 0.0, written[0])}
    most = live[graph.input.name].copy()
    for number, node in enumerate(graph.nodes[1:], start=1):
        joined = [written[numbers[r.name]] for r in graph.readers(node.name) if isinstance(r.operation, Concatenation)]
        passing = 2 * (written[number] + values(graph.in_channels(node), 1, number)) + sum(joined)
        most = np.maximum(most, sum(live.values()) + passing)
        live[node.name] = np.where(held[number] > 0, 0.0, written[number])
        for name in set(node.inputs):
            if last[name] == node.name:
                del live[name]
    standing: NDArray[np.float64] = most + sum(held)
    return standing


def window_extents(stream: Stream, axis: int) -> np.ndarray:
    """Extents along an axis, of the widest tile: what each node writes, and what it reads in all; (2, nodes)."""
    extents = [pass_extents(stream.graph, needs) for needs, _ in stream.distinct_needs(axis)]
    widest: np.ndarray = np.max(np.array(extents), axis=0)
    return widest


def pass_extents(graph: Graph, needs: Needs) -> np.ndarray:
    """The same of one window."""
    nodes = graph.nodes
    written, read = (
        [needs.writes[n.name].extent for n in nodes],
        [needs.frame(n).extent if n.inputs else 0 for n in nodes],
    )
    return np.array([written, read])


def window_values(graph: Graph, extents: Sequence[np.ndarray]) -> NDArray[np.float64]:
    """An upper bound of the values that a window holds at once: maps that are still read, and what a node reads and writes, twice.

    Args:
        graph: The network.
        extents: Along z, y, x, of each candidate: as of `window_extents`; (candidates, 2, nodes).

    Returns:
        Of all combinations of candidates, flat, x fastest.
    """

    values = functools.partial(_values, extents)
    last = {name: node.name for node in graph.nodes for name in node.inputs}
    live = {graph.input.name: values(graph.input.channels, 0, 0)}
    most = live[graph.input.name].copy()
    for number, node in enumerate(graph.nodes[1:], start=1):
        written = values(node.channels, 0, number)
        passing = 2 * (written + values(graph.in_channels(node), 1, number))
        most = np.maximum(most, sum(live.values()) + passing)
        live[node.name] = written
        for name in set(node.inputs):
            if last[name] == node.name:
                del live[name]
    return most


def sweep_values(stream: Stream) -> int:
    """An upper bound of the values that the network holds at once, library scratch included.

    Buffers and skips are there all the time; while a layer runs, so is what it writes, and a convolution library may
    hold what is read and written once more in a layout of its own.
    """
    extents = [held_extents(stream, axis) for axis in range(3)]
    held, passing = (z * y * x for z, y, x in zip(*extents, strict=True))
    channels, written = held_channels(stream.graph)
    return int((held * channels).sum() + 2 * (passing * written).max())


def held_channels(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Channels of each thing that is held, and of what each layer writes; in the order of `held_extents`."""
    buffers = [graph.in_channels(node) for node in graph.windows]
    skips = [node.channels for node in graph.waiting]
    written = [graph.in_channels(node) + node.channels for node in graph.layers]
    return np.array(buffers + skips), np.array(written)


def held_extents(stream: Stream, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Extents along an axis, of the widest tile: of buffers and skips, and of what each layer writes in a turn."""
    extents = [_held(stream, needs) for needs, _ in stream.distinct_needs(axis)]
    held, written = (np.max(np.array(values), axis=0) for values in zip(*extents, strict=True))
    return held, written


def _held(stream: Stream, needs: Needs) -> tuple[list[int], list[int]]:
    graph = stream.graph
    frames = [needs.frame(node).extent for node in graph.windows]
    wide = [needs.writes[node.name].extent for node in graph.waiting]
    written = [needs.computes(node) for node in graph.layers]
    if needs.axis > 0:
        return frames + wide, written
    schedule = Schedule(graph, (needs, needs, needs), stream.slab)
    slices = [schedule.held(node) + schedule.slices(node) for node in graph.windows]
    waiting = [schedule.waiting(node) + schedule.slices(node) for node in graph.waiting]
    held = [*map(min, slices, frames), *map(min, waiting, wide)]
    return held, [min(schedule.slices(node), n) for node, n in zip(graph.layers, written, strict=True)]


def tile_bytes(stream: Stream, in_bytes: int, out_bytes: int, in_chunk: int, unit_slices: int) -> int:
    """Memory around the network: blocks of input read ahead, a slab on its way in and out, write units under way.

    Args:
        stream: The network and its tiles.
        in_bytes: Of a stored input value.
        out_bytes: Of an output value.
        in_chunk: Slices of an input chunk.
        unit_slices: Slices of a write unit.
    """
    grid, in_channels, out_channels = stream.grid, stream.graph.input.channels, stream.graph.output.channels
    plane_in = widest_plane(grid)
    plane_out = prod(min(c, n) for c, n in zip(grid.core[1:], grid.volume[1:], strict=True))
    mirrored = max(max(-w.start, 0) + max(w.stop - grid.volume[0], 0) for _, w, _ in grid.distinct_cores(0))
    slices = read_slices(stream, in_chunk, in_bytes) + mirrored
    block = slices * in_channels * plane_in * in_bytes
    slab = min(stream.slab, grid.volume[0])
    passing = slab * (plane_in * in_channels * 24 + plane_out * out_channels * 20)
    units = (min(unit_slices, grid.volume[0]) + slab) * plane_out * out_channels * out_bytes
    return 4 * block + passing + 3 * units

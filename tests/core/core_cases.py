"""What tests of the core draw from: networks, and grids of tiles that keep every rule."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from pipeline.core.geometry.box import Triple, round_up
from pipeline.core.network.receptive import least_halo
from pipeline.core.network.schedule import Schedule
from pipeline.core.network.stream import Stream
from pipeline.core.network.unet import Architecture, Padding
from pipeline.core.tiles.grid import TileGrid


@st.composite
def architectures(draw: st.DrawFn, padding: Padding | None = None, depths: tuple[int, int] = (1, 3)) -> Architecture:
    """Small networks of every kind."""
    return Architecture(
        ndim=draw(st.sampled_from((2, 3))),
        depth=draw(st.integers(*depths)),
        width=draw(st.integers(1, 3)),
        in_channels=draw(st.integers(1, 3)),
        out_channels=draw(st.integers(1, 3)),
        padding=padding or draw(st.sampled_from(("same", "valid"))),
        bias=draw(st.booleans()),
        norm=draw(st.sampled_from(("batch", "none"))),
    )


def triples(low: int, high: int) -> st.SearchStrategy[Triple]:
    """Three numbers along z, y, x."""
    return st.tuples(*[st.integers(low, high)] * 3)


@st.composite
def streams(draw: st.DrawFn, padding: Padding | None = None, extent: int = 40, tiles: int = 200) -> Stream:
    """Networks over volumes of every extent down to one voxel, with cores of a few strides and halos that suffice."""
    architecture = draw(architectures(padding))
    stride = architecture.stride
    volume = draw(triples(1, extent))
    core = _times(stride, draw(triples(1, 4)))
    found = Stream.over(architecture.graph, volume, core, _halo(draw, architecture), stride[0])
    while len(found.grid) > tiles:
        found = replace(found, grid=replace(found.grid, core=_times(found.grid.core, (2, 2, 2))))
    return replace(found, slab=_slab(draw, found))


def grids(padding: Padding | None = None) -> st.SearchStrategy[TileGrid]:
    """The tiles of such networks."""
    return streams(padding).map(lambda found: found.grid)


@st.composite
def columns(draw: st.DrawFn, padding: Padding | None = None) -> Schedule:
    """The turns over a tile of a tall, thin volume: at either end of it, in the middle, or all of it; turns by the dozen."""
    architecture = draw(architectures(padding))
    stride = architecture.stride
    core = _times(stride, (draw(st.integers(1, 40)), 2, 2))
    volume = (draw(st.integers(1, 400)), stride[1] + 1, 1)
    found = Stream.over(architecture.graph, volume, core, _halo(draw, architecture), stride[0])
    tile = found.grid.tile(draw(st.integers(0, len(found.grid) - 1)))
    return replace(found, slab=_slab(draw, found)).schedule(tile)


def _halo(draw: st.DrawFn, architecture: Architecture) -> Triple:
    if architecture.padding == "valid":
        return (0, 0, 0)
    more = _times(architecture.stride, draw(triples(0, 2)))
    return tuple(h + m for h, m in zip(least_halo(architecture.graph), more, strict=True))


def _slab(draw: st.DrawFn, stream: Stream) -> int:
    """Up to what a core can use, as the search for tiles takes them."""
    stride, grid = stream.graph.stride[0], stream.grid
    return min(stride * draw(st.integers(1, 4)), round_up(min(grid.core[0], grid.volume[0]), stride))


def _times(unit: Triple, factor: Triple) -> Triple:
    return tuple(u * f for u, f in zip(unit, factor, strict=True))

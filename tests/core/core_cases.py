"""What tests of the core draw from: networks, and grids of tiles that keep every rule."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from pipeline.core.architecture import Architecture, Padding
from pipeline.core.box import Triple, round_up
from pipeline.core.grid import TileGrid
from pipeline.core.receptive import least_halo


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
def grids(draw: st.DrawFn, padding: Padding | None = None, extent: int = 40, tiles: int = 200) -> TileGrid:
    """Grids over volumes of every extent down to one voxel, with cores of a few strides and halos that suffice."""
    architecture = draw(architectures(padding))
    stride = architecture.stride
    volume = draw(triples(1, extent))
    core = _times(stride, draw(triples(1, 4)))
    more = _times(stride, draw(triples(0, 2)))
    halo = tuple(h + m for h, m in zip(least_halo(architecture), more, strict=True))
    grid = TileGrid(architecture, volume, core, halo if architecture.padding == "same" else (0, 0, 0), core)
    while len(grid) > tiles:
        grid = replace(grid, core=_times(grid.core, (2, 2, 2)))
    slab = tuple(round_up(-(-c // n), s) for c, n, s in zip(grid.core, draw(triples(1, 3)), stride, strict=True))
    return replace(grid, slab=slab)


def _times(unit: Triple, factor: Triple) -> Triple:
    return tuple(u * f for u, f in zip(unit, factor, strict=True))

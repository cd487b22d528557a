import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pipeline.core.box import Span, round_up
from pipeline.core.network.need import needs, phases
from pipeline.core.network.receptive import whole_window
from pipeline.core.network.unet import Architecture, layers
from tests.core.core_cases import architectures, columns, grids

MARGINS = [(1, 8, 8), (2, 22, 20), (3, 46, 44), (4, 94, 92)]
"""Depth, and the voxels beyond a core on the lattice that a padded and an unpadded network read."""


def sources(architecture, layer):
    """Names of the layers, or `input`, whose output a layer reads."""
    order = [found.name for found in layers(architecture)]
    at = order.index(layer.name)
    before = [order[at - 1] if at else "input"]
    joins = layer.kind == "conv" and before[0].startswith("unpool")
    return [*before, f"encoder{layer.level + 1}_2"] if joins else before


def one_pass_extents(architecture, extent):
    """Extent of each layer's map in one pass over a picture of `extent`."""
    lost, found = 2 if architecture.padding == "valid" else 0, {}
    for layer in layers(architecture):
        if layer.kind == "conv":
            extent -= lost
        elif layer.kind == "pool":
            assert extent % 2 == 0
            extent //= 2
        elif layer.kind == "up":
            extent *= 2
        found[layer.name] = extent
    return found


def voxels_that_matter(architecture, extent, core):
    """By layer and for `input`, the voxels of its map on which an output's voxels depend: one by one, in one pass.

    Whatever a pooling reads counts, not only its maximum.
    """
    maps = one_pass_extents(architecture, extent)
    unpadded = architecture.padding == "valid"
    wanted = {name: set() for name in ("input", *maps)}
    wanted["fc"] = set(core)
    for layer in reversed(list(layers(architecture))):
        read = {
            "conv": lambda i: range(i, i + 3) if unpadded else range(i - 1, i + 2),
            "pool": lambda i: range(2 * i, 2 * i + 2),
            "up": lambda i: [i // 2],
            "point": lambda i: [i],
        }[layer.kind]
        for number, name in enumerate(sources(architecture, layer)):
            cropped = (maps[name] - maps[f"unpool{layer.level + 1}"]) // 2 if number else 0
            inside = range(maps.get(name, extent))
            wanted[name] |= {j + cropped for i in wanted[layer.name] for j in read(i) if j + cropped in inside}
    return wanted


def needed(architecture, axis, core, extent):
    """What a core of a volume needs, as a tile that is alone in it would."""
    ends = Span(0, round_up(extent, architecture.stride[axis])) if architecture.padding == "same" else None
    return needs(architecture, axis, core, ends)


# --- margins ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "same", "valid"), MARGINS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_margins_of_each_depth(ndim, depth, same, valid):
    """The figures that users see in refusals and that the documents quote."""
    core = Span(32 * 2**depth, 40 * 2**depth)
    assert needs(Architecture(ndim, depth, 1), 1, core, None).input == core.grown(same)
    unpadded = needs(Architecture(ndim, depth, 1, padding="valid"), 1, core, None).input
    assert unpadded.start == core.start - valid
    assert 0 <= unpadded.stop - core.stop - valid < 2**depth  # its last pairs, which lie off the lattice, are whole


@given(architectures(depths=(1, 4)), st.integers(-20, 20), st.integers(1, 99))
def test_a_core_that_is_one_voxel_larger_needs_more(architecture, place, strides):
    """On either side: beyond the lattice begins another coarse voxel, at every level that up-samples."""
    stride = architecture.stride[2]
    core = Span(place * stride, (place + strides) * stride)
    found = needs(architecture, 2, core, None)
    for larger in (Span(core.start, core.stop + 1), Span(core.start - 1, core.stop)):
        more = needs(architecture, 2, larger, None)
        assert all(more.writes[name].clipped(span) == span for name, span in found.writes.items())
        assert more.writes["fc"].extent == found.writes["fc"].extent + 1
        assert sum(map(more.computes, layers(architecture))) > sum(map(found.computes, layers(architecture)))


@given(architectures(depths=(1, 4)), st.integers(-20, 20), st.integers(1, 99))
def test_a_core_that_is_one_stride_larger_needs_one_stride_more(architecture, place, strides):
    """Margins are the same wherever a core lies and however large it is; it pays for itself alone."""
    stride = architecture.stride[2]
    core = Span(place * stride, (place + strides) * stride)
    found = needs(architecture, 2, core, None)
    more = needs(architecture, 2, Span(core.start, core.stop + stride), None)
    assert more.input == Span(found.input.start, found.input.stop + stride)
    for layer in layers(architecture):
        assert more.computes(layer) == found.computes(layer) + (stride >> layer.level)


@given(architectures(), st.integers(-50, 50), st.integers(1, 99))
def test_a_2d_network_needs_nothing_along_z(architecture, start, extent):
    """Slices are independent: no layer reads another than the one that it writes, and none has a level along z."""
    core = Span(start, start + extent)
    found = needs(architecture, 0, core, Span(0, 8) if architecture.padding == "same" else None)
    assume(architecture.ndim == 2)
    assert not found.spatial
    assert found.reach == 0
    assert {found.input, *found.writes.values(), *found.reads.values()} == {core}
    assert {found.computes(layer) for layer in layers(architecture)} == {extent}


# --- against one pass, voxel by voxel -------------------------------------------------------------------------------------


@given(architectures(depths=(1, 3)), st.integers(1, 150), st.data())
@example(Architecture(2, 4, 1, padding="valid"), 90, None)
@example(Architecture(2, 4, 1), 500, None)
def test_needs_are_the_voxels_that_the_core_depends_on(architecture, extent, data):
    """Walked by hand they are spans; walked one voxel at a time through one whole pass they are sets of the same size.

    A voxel less would be a seam, and a voxel more would be computed for nothing.
    """
    start = data.draw(st.integers(0, extent - 1)) if data else 33
    stop = data.draw(st.integers(start + 1, extent)) if data else extent - 20
    found = needed(architecture, 2, Span(start, stop), extent)
    whole = whole_window(architecture, (1, 1, extent))[2]
    wanted = voxels_that_matter(architecture, whole, range(start, stop))
    begin = (whole - one_pass_extents(architecture, whole)["fc"]) // 2
    assert found.input == Span(min(wanted["input"]) - begin, max(wanted["input"]) + 1 - begin)
    sizes = {name: span.extent for name, span in found.writes.items()}
    assert sizes == {name: len(voxels) for name, voxels in wanted.items() if name != "input"}


@given(architectures(padding="valid", depths=(1, 4)), st.integers(0, 40))
def test_phases_are_those_of_the_one_pass(architecture, extra):
    """An unpadded pass starts a margin before the volume; its pairs start where the second convolution's map does."""
    whole = whole_window(architecture, (1, 1, 1 + extra))[2]
    lost = (whole - one_pass_extents(architecture, whole)["fc"]) // 2
    first, found = -lost, []
    for _ in range(architecture.depth):
        first += 2
        found.append(first % 2)
        first = first // 2
    assert phases(architecture) == tuple(found)


def test_phases_that_are_known():
    """Padded pairs start at even voxels. An unpadded pass of depth 1 starts at -8, and pools from -6 on."""
    assert phases(Architecture(3, 3, 1)) == (0, 0, 0)
    assert phases(Architecture(3, 1, 1, padding="valid")) == (0,)
    assert phases(Architecture(3, 2, 1, padding="valid")) == (0, 1)
    assert phases(Architecture(2, 4, 1, padding="valid")) == (0, 1, 0, 0)


# --- what makes a tile whole ------------------------------------------------------------------------------------------------


@given(grids())
def test_what_a_layer_reads_is_what_the_layers_before_it_wrote(grid):
    """A voxel that nobody computed would be read as it was left by something else."""
    for tile in grid:
        for axis in tile.schedule.axes:
            for layer in layers(grid.architecture):
                for name in sources(grid.architecture, layer):
                    given_span = axis.writes.get(name, axis.input)
                    assert given_span.clipped(axis.reads[layer.name]) == axis.reads[layer.name]


@given(grids())
def test_poolings_read_whole_pairs(grid):
    """Half a pair would be pooled with whatever lies in the other half's place."""
    for tile in grid:
        for axis in tile.schedule.axes:
            for layer in layers(grid.architecture):
                if layer.kind == "pool":
                    read, level = axis.reads[layer.name], layer.level - 1
                    assert axis.pooled(level, read) == axis.writes[layer.name]
                    assert axis.unpooled(level, axis.writes[layer.name]) == read
                    assert axis.writes[f"encoder{layer.level}_2"] == read


@given(grids("same"))
def test_needs_never_reach_beyond_the_ends(grid):
    """There the layers pad themselves: a voxel beyond an end would be computed from what does not exist."""
    for tile in grid:
        for number, axis in enumerate(tile.schedule.axes):
            stride = grid.architecture.stride[number]
            ends = Span(0, round_up(grid.volume[number], stride))
            for layer in layers(grid.architecture):
                at_level = Span(0, ends.stop >> layer.level) if axis.spatial else ends
                span = axis.writes[layer.name]
                assert span.clipped(at_level) == span
            assert axis.input.clipped(ends) == axis.input


@given(columns())
def test_up_sampling_computes_whole_pairs_and_keeps_what_is_read(tile):
    """A transposed convolution makes both voxels of a pair; counted as one it would be cheaper than it is."""
    architecture, axis = tile.schedule.architecture, tile.schedule.needs
    for layer in layers(architecture):
        kept, computed = axis.writes[layer.name].extent, axis.computes(layer)
        if layer.kind == "up" and axis.spatial:
            assert computed % 2 == 0
            assert kept <= computed <= kept + 2
            assert computed == 2 * axis.reads[layer.name].extent
        else:
            assert computed == kept


@given(st.integers(0, 3), st.integers(-99, 99), st.integers(1, 99))
def test_spans_of_levels_are_each_others_inverses(level, start, extent):
    """Covering is the least that up-sampling turns into at least the same voxels, at either phase."""
    for padding in ("same", "valid"):
        found = needs(Architecture(2, 4, 1, padding=padding), 2, Span(0, 16), None)
        span = Span(start, start + extent)
        covering = found.covering(level, span)
        made = found.unpooled(level, covering)
        assert made.clipped(span) == span
        assert made.extent <= span.extent + 2
        assert span.start - made.start in (0, 1)
        assert made.stop - span.stop in (0, 1)
        assert found.pooled(level, made) == covering

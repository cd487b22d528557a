from dataclasses import replace

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pipeline.core.geometry.box import Span, round_up
from pipeline.core.network.graph import Graph
from pipeline.core.network.need import needs
from pipeline.core.network.operations import MaxPool, TransposedConvolution
from pipeline.core.network.receptive import whole_window
from pipeline.core.network.unet import Architecture, pair_phases
from tests.core.core_cases import architectures, columns, streams
from tests.core.unet_layers import layers, sources, spans_by_layer

MARGINS = [(1, 8, 8), (2, 22, 20), (3, 46, 44), (4, 94, 92)]
"""Depth, and the voxels beyond a core on the lattice that a padded and an unpadded network read."""


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
    return needs(architecture.graph, axis, core, ends)


# --- margins ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "same", "valid"), MARGINS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_margins_of_each_depth(ndim, depth, same, valid):
    """The figures that users see in refusals and that the documents quote."""
    core = Span(32 * 2**depth, 40 * 2**depth)
    assert needs(Architecture(ndim, depth, 1).graph, 1, core, None).input == core.grown(same)
    unpadded = needs(Architecture(ndim, depth, 1, padding="valid").graph, 1, core, None).input
    assert unpadded.start == core.start - valid
    assert 0 <= unpadded.stop - core.stop - valid < 2**depth  # its last pairs, which lie off the lattice, are whole


@given(architectures(depths=(1, 4)), st.integers(-20, 20), st.integers(1, 99))
def test_a_core_that_is_one_voxel_larger_needs_more(architecture, place, strides):
    """On either side: beyond the lattice begins another coarse voxel, at every level that up-samples."""
    stride = architecture.stride[2]
    core = Span(place * stride, (place + strides) * stride)
    found = needs(architecture.graph, 2, core, None)
    for larger in (Span(core.start, core.stop + 1), Span(core.start - 1, core.stop)):
        more = needs(architecture.graph, 2, larger, None)
        assert all(more.writes[name].clipped(span) == span for name, span in found.writes.items())
        assert more.writes["fc"].extent == found.writes["fc"].extent + 1
        assert sum(map(more.computes, architecture.graph.layers)) > sum(map(found.computes, architecture.graph.layers))


@given(architectures(depths=(1, 4)), st.integers(-20, 20), st.integers(1, 99))
def test_a_core_that_is_one_stride_larger_needs_one_stride_more(architecture, place, strides):
    """Margins are the same wherever a core lies and however large it is; it pays for itself alone."""
    stride = architecture.stride[2]
    core = Span(place * stride, (place + strides) * stride)
    found = needs(architecture.graph, 2, core, None)
    more = needs(architecture.graph, 2, Span(core.start, core.stop + stride), None)
    assert more.input == Span(found.input.start, found.input.stop + stride)
    for layer in layers(architecture):
        node = architecture.graph.node(layer.name)
        assert more.computes(node) == found.computes(node) + (stride >> layer.level)


@given(architectures(), st.integers(-50, 50), st.integers(1, 99))
def test_a_2d_network_needs_nothing_along_z(architecture, start, extent):
    """Slices are independent: no layer reads another than the one that it writes, and none has a level along z."""
    core = Span(start, start + extent)
    found = needs(architecture.graph, 0, core, Span(0, 8) if architecture.padding == "same" else None)
    assume(architecture.ndim == 2)
    assert {found.input, *found.writes.values(), *found.reads.values()} == {core}
    assert {found.computes(node) for node in architecture.graph.nodes} == {extent}


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
    whole = whole_window(architecture.graph, (1, 1, extent))[2]
    wanted = voxels_that_matter(architecture, whole, range(start, stop))
    begin = (whole - one_pass_extents(architecture, whole)["fc"]) // 2
    assert found.input == Span(min(wanted["input"]) - begin, max(wanted["input"]) + 1 - begin)
    assert {name: found.writes[name].extent for name in wanted} == {
        name: len(voxels) for name, voxels in wanted.items()
    }


@given(architectures(padding="valid", depths=(1, 4)), st.integers(0, 40))
def test_phases_are_those_of_the_one_pass(architecture, extra):
    """An unpadded pass starts a margin before the volume; its pairs start where the second convolution's map does."""
    whole = whole_window(architecture.graph, (1, 1, 1 + extra))[2]
    lost = (whole - one_pass_extents(architecture, whole)["fc"]) // 2
    first, found = -lost, []
    for _ in range(architecture.depth):
        first += 2
        found.append(first % 2)
        first = first // 2
    assert pair_phases(architecture) == tuple(found)


def test_phases_that_are_known():
    """Padded pairs start at even voxels. An unpadded pass of depth 1 starts at -8, and pools from -6 on."""
    assert pair_phases(Architecture(3, 3, 1)) == (0, 0, 0)
    assert pair_phases(Architecture(3, 1, 1, padding="valid")) == (0,)
    assert pair_phases(Architecture(3, 2, 1, padding="valid")) == (0, 1)
    assert pair_phases(Architecture(2, 4, 1, padding="valid")) == (0, 1, 0, 0)


# --- what makes a tile whole ------------------------------------------------------------------------------------------------


@given(streams())
def test_what_a_node_reads_is_what_the_nodes_before_it_wrote(stream):
    """A voxel that nobody computed would be read as it was left by something else."""
    for tile in stream.grid:
        for axis in stream.schedule(tile).axes:
            for node in stream.graph.nodes:
                for name in node.inputs:
                    assert axis.writes[name].clipped(axis.reads[node.name]) == axis.reads[node.name]


@given(streams())
def test_what_a_node_writes_is_read_to_its_first_and_last_voxel(stream):
    """The hull of its readers and no more: what nobody reads is not computed."""
    for tile in stream.grid:
        for axis in stream.schedule(tile).axes:
            for node in stream.graph.nodes[:-1]:
                read = [axis.reads[reader.name] for reader in stream.graph.readers(node.name)]
                assert axis.writes[node.name] == (min(r.start for r in read), max(r.stop for r in read))


@given(streams())
def test_poolings_read_whole_pairs(stream):
    """Half a pair would be pooled with whatever lies in the other half's place."""
    for tile in stream.grid:
        for number, axis in enumerate(stream.schedule(tile).axes):
            for node in stream.graph.nodes:
                if isinstance(node.operation, MaxPool):
                    read, written = axis.reads[node.name], axis.writes[node.name]
                    assert node.operation.ends(number, read) == written
                    assert read.extent == node.operation.factor[number] * written.extent
                    assert axis.writes[node.inputs[0]] == read


@given(streams("same"))
def test_needs_never_reach_beyond_the_ends(stream):
    """There the layers pad themselves: a voxel beyond an end would be computed from what does not exist."""
    for tile in stream.grid:
        for number, axis in enumerate(stream.schedule(tile).axes):
            ends = Span(0, round_up(stream.grid.volume[number], stream.graph.stride[number]))
            for node in stream.graph.nodes:
                at_level = Span(0, ends.stop // stream.graph.scales[node.name][number])
                span = axis.writes[node.name]
                assert span.clipped(at_level) == span
            assert axis.input.clipped(ends) == axis.input


@given(columns())
def test_up_sampling_computes_whole_pairs_and_keeps_what_is_read(schedule):
    """A transposed convolution makes both voxels of a pair; counted as one it would be cheaper than it is."""
    axis = schedule.needs
    for node in schedule.graph.nodes:
        kept, computed = axis.writes[node.name].extent, axis.computes(node)
        if isinstance(node.operation, TransposedConvolution) and node.operation.factor[0] == 2:
            assert computed % 2 == 0
            assert kept <= computed <= kept + 2
            assert computed == 2 * axis.reads[node.name].extent
        else:
            assert computed == kept


# --- against the rule of layers -----------------------------------------------------------------------------------------


def lies_on(architecture, axis, start, extent, more):
    """A core on the stride lattice, and ends that clip it where layers pad themselves."""
    stride = architecture.stride[axis]
    core = Span(start * stride, start * stride + extent)
    ends = Span(core.start - more[0] * stride, round_up(core.stop, stride) + more[1] * stride)
    return core, ends if architecture.padding == "same" else None


def spans_differ(architecture, graph, axis, core, ends):
    """Names of the layers of which a graph says another span than the rule of layers does."""
    found, known = needs(graph, axis, core, ends), spans_by_layer(architecture, axis, core, ends)
    return [name for name, spans in known.items() if (found.writes[name], found.reads[name]) != spans]


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("ndim", [2, 3])
def test_spans_are_those_of_the_rule_that_knew_the_layers_by_name(ndim, depth, padding):
    """Over 2,880 cores: an encoder's need is its pooling's there, and the hull of its readers here."""
    architecture = Architecture(ndim, depth, 1, padding=padding)
    for axis in (0, 2):
        for start in (-3, 0, 5):
            for extent in (1, 2, 3, 7, 2**depth, 5 * 2**depth + 1):
                for more in ((0, 0), (1, 0), (0, 2), (9, 1), (100, 100)):
                    core, ends = lies_on(architecture, axis, start, extent, more)
                    assert not spans_differ(architecture, architecture.graph, axis, core, ends)


@given(architectures(depths=(1, 4)), st.sampled_from((0, 1, 2)), st.integers(-9, 9), st.integers(1, 200), st.data())
def test_spans_of_any_core_are_those_of_the_rule_that_knew_the_layers_by_name(architecture, axis, start, extent, data):
    """The same, wherever it lies and ends."""
    core, ends = lies_on(architecture, axis, start, extent, data.draw(st.tuples(*[st.integers(0, 99)] * 2)))
    assert not spans_differ(architecture, architecture.graph, axis, core, ends)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_graph_without_its_poolings_reach_is_another_network(padding):
    """The negative control: with poolings that begin elsewhere, the rule of layers finds other spans."""
    architecture = Architecture(3, 2, 1, padding=padding)
    nodes = [
        replace(node, operation=MaxPool(node.operation.factor, tuple(1 - p for p in node.operation.phase)))
        if isinstance(node.operation, MaxPool)
        else node
        for node in architecture.graph.nodes
    ]
    assert "encoder1_2" in spans_differ(architecture, Graph(tuple(nodes)), 0, Span(8, 24), None)


@given(st.integers(0, 1), st.integers(-99, 99), st.integers(1, 99))
def test_spans_of_levels_are_each_others_inverses(phase, start, extent):
    """What up-sampling reads is the least that it turns into at least the same voxels, at either phase."""
    up, pool = TransposedConvolution((2, 2, 2), (phase,) * 3), MaxPool((2, 2, 2), (phase,) * 3)
    span = Span(start, start + extent)
    covering = up.need(2, span, None)
    made = up.computed(2, span)
    assert made.clipped(span) == span
    assert made.extent <= span.extent + 2
    assert span.start - made.start in (0, 1)
    assert made.stop - span.stop in (0, 1)
    assert pool.ends(2, made) == covering
    assert pool.need(2, covering, None) == made

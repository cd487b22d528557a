from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pipeline.core.geometry.box import Span
from pipeline.core.network.need import needs
from pipeline.core.network.operations import Convolution, MaxPool
from pipeline.core.network.receptive import least_halo
from pipeline.core.network.schedule import Schedule
from pipeline.core.network.stream import Stream
from pipeline.core.network.unet import Architecture
from tests.core.core_cases import columns
from tests.core.unet_layers import architecture_of, starts_by_layer


def spans(schedule, name):
    """What a node writes, turn by turn; the input's is what is taken of it."""
    node = schedule.graph.node(name)
    return [schedule.writes(node, turn) for turn in range(schedule.turns)]


def names(schedule):
    """The input and all nodes after it."""
    return [node.name for node in schedule.graph.nodes]


def whole(schedule, name):
    """All that a node writes."""
    return schedule.needs.writes[name]


def has_written(schedule, name, turn):
    """First slice that a node has not written at the end of a turn."""
    return max([whole(schedule, name).start, *(span.stop for span in spans(schedule, name)[: turn + 1])])


def must_be_there(schedule, node, span):
    """What a node must find in order to write `span`; beyond what exists are zeros."""
    return node.operation.need(0, span, schedule.needs.reads[node.name] if node.operation.pads else None)


def windowed(schedule):
    """The convolutions that reach beyond the voxel that they write."""
    return [n for n in schedule.graph.nodes if isinstance(n.operation, Convolution) and n.operation.kernel[2] > 1]


def skips(schedule):
    """Each skip and the concatenation that takes it, the finest first."""
    pools = [node for node in schedule.graph.nodes if isinstance(node.operation, MaxPool)]
    return [(schedule.graph.node(p.inputs[0]), schedule.graph.readers(p.inputs[0])[1]) for p in pools]


# --- turns --------------------------------------------------------------------------------------------------------------


@given(columns())
def test_turns_partition_what_each_layer_computes_in_order(schedule):
    """Nothing is computed twice, nothing is left out, and buffers are filled from front to back."""
    for name in names(schedule):
        found = [span for span in spans(schedule, name) if span.extent]
        assert found[0].start == whole(schedule, name).start
        assert found[-1].stop == whole(schedule, name).stop
        assert all(before.stop == after.start for before, after in pairwise(found))
        assert all(span.extent > 0 for span in found)


@given(columns())
def test_a_node_reads_only_what_was_written_before(schedule):
    """Causality: in every turn, nodes in order, of all that a node reads the last slice is there; skips included."""
    for node in schedule.graph.nodes[1:]:
        for turn in range(schedule.turns):
            span = schedule.writes(node, turn)
            if span.extent:
                read = must_be_there(schedule, node, span)
                for name in node.inputs:
                    assert read.start >= whole(schedule, name).start
                    assert read.stop <= has_written(schedule, name, turn)


@given(columns())
def test_a_layer_that_is_early_by_a_turn_would_read_too_much(schedule):
    """The negative control: the last layers cannot keep up with the input, so the order of turns is no accident."""
    last_conv = windowed(schedule)[-1]
    late = []
    for turn in range(schedule.turns - 1):
        span = schedule.writes(last_conv, turn + 1)
        (name,) = last_conv.inputs
        if span.extent:
            late.append(must_be_there(schedule, last_conv, span).stop > has_written(schedule, name, turn))
    event("with turns after the first" if late else "over in one turn")
    assert all(late[:-1])


@given(columns())
def test_turns_away_from_the_ends_are_all_alike(schedule):
    """Shapes are fixed there, so that a library's tuned kernels and buffers are used again."""
    for name in names(schedule):
        extents = [span.extent for span in spans(schedule, name)]
        busy = [turn for turn, extent in enumerate(extents) if extent]
        usual = schedule.slices(schedule.graph.node(name))
        assert busy == list(range(busy[0], busy[-1] + 1))
        assert max(extents) <= usual
        assert all(extents[turn] == usual for turn in busy[1:-1])


@given(columns())
def test_a_sweep_ends_with_the_core(schedule):
    """A turn more would be empty; a turn less would leave the core's last slices out."""
    assert spans(schedule, "fc")[-1].extent > 0
    assert spans(schedule, "fc")[-1].stop == schedule.needs.core.stop


@pytest.mark.parametrize(("depth", "lag"), [(1, 8), (2, 20), (3, 48), (4, 96)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_turns_are_the_slices_of_the_input_and_the_lag(padding, depth, lag):
    """Turns grow with the core alone: what a sweep pays to warm up is paid once, however tall it is."""
    architecture = Architecture(3, depth, 1, padding=padding)
    stride = architecture.stride[0]
    for step in (stride, 4 * stride):
        for strides in (1, 7, 100):
            core = Span(32 * stride, (32 + strides) * stride)
            axis = needs(architecture.graph, 0, core, None)
            assert Schedule(architecture.graph, (axis,) * 3, step).turns == -(
                -(core.stop - axis.input.start + lag) // step
            )


@given(st.integers(1, 300), st.integers(1, 50))
def test_a_2d_network_writes_the_slices_that_it_takes_in(extent, step):
    """Nothing lags along z: each turn's slices are predicted in that turn."""
    architecture = Architecture(2, 2, 1)
    found = Stream.over(architecture.graph, (extent, 8, 8), (extent, 8, 8), least_halo(architecture.graph), step)
    schedule = found.schedule(found.grid.tile(0))
    assert schedule.turns == -(-extent // step)
    assert {tuple(spans(schedule, name)) for name in names(schedule)} == {tuple(spans(schedule, "input"))}


def test_the_picture_of_a_small_sweep():
    """Depth 1, four slabs of eight slices, of a volume: each layer's lag as it is drawn in the documentation."""
    architecture = Architecture(3, 1, 1)
    found = Stream.over(architecture.graph, (32, 8, 8), (32, 8, 8), (8, 8, 8), 8)
    schedule = found.schedule(found.grid.tile(0))
    assert schedule.turns == 5
    assert spans(schedule, "input") == [(0, 8), (8, 16), (16, 24), (24, 32), (32, 32)]
    assert spans(schedule, "encoder1_1") == [(0, 7), (7, 15), (15, 23), (23, 31), (31, 32)]
    assert spans(schedule, "encoder1_2") == [(0, 6), (6, 14), (14, 22), (22, 30), (30, 32)]
    assert spans(schedule, "fc") == [(0, 0), (0, 8), (8, 16), (16, 24), (24, 32)]


# --- what is held ---------------------------------------------------------------------------------------------------------


def kept(schedule, node):
    """Slices of its input that a convolution still needs at the end of each turn, of those that are there."""
    axis, found = schedule.needs, []
    reach = node.operation.kernel[0] // 2
    for turn in range(schedule.turns):
        there = min(has_written(schedule, node.inputs[0], turn), axis.reads[node.name].stop)
        written = has_written(schedule, node.name, turn)
        if written < axis.writes[node.name].stop:
            found.append(there - (written - reach))
    return found


@given(columns())
def test_convolutions_keep_no_more_than_they_say(schedule):
    """Buffers are allocated by this number before the sweep starts; zeros before the volume count."""
    for node in windowed(schedule):
        assert max(kept(schedule, node), default=0) <= schedule.held(node)


@given(columns())
def test_a_window_of_a_convolution_fits_its_buffer(schedule):
    """What it keeps and what a turn brings, and the zeros behind the end."""
    axis = schedule.needs
    for node in windowed(schedule):
        reach = node.operation.kernel[0] // 2
        room = schedule.held(node) + schedule.slices(node)
        first = axis.writes[node.name].start - reach
        for turn in range(schedule.turns):
            span = schedule.writes(node, turn)
            filled = min(has_written(schedule, node.inputs[0], turn), axis.reads[node.name].stop)
            assert filled - first <= room
            if span.extent:
                assert span.stop + reach - first <= room
                first = span.stop - reach


def skips_waiting(schedule, skip, reader):
    """Slices of a skip that its reader is still to take, at each turn, right after it was written."""
    found = []
    for turn in range(schedule.turns):
        taken = has_written(schedule, reader.name, turn - 1) if turn else whole(schedule, reader.name).start
        there = min(has_written(schedule, skip.name, turn), whole(schedule, reader.name).stop)
        found.append(there - taken)
    return found


@given(columns())
def test_skips_wait_no_longer_than_they_say(schedule):
    """Most of a column's memory is skips that wait for the decoder: of those slices that it will read."""
    assert [skip for skip, _ in skips(schedule)] == list(schedule.graph.waiting)
    for skip, reader in skips(schedule):
        assert max(skips_waiting(schedule, skip, reader)) <= schedule.waiting(skip)


@settings(max_examples=20)
@given(columns(), st.integers(1, 4))
def test_long_sweeps_hold_what_they_say(schedule, slabs):
    """The bounds are reached, so none of them is a guess: in the middle of a long volume."""
    graph = schedule.graph
    stride = graph.stride[0]
    core = Span(100 * stride, 140 * stride)
    axis = needs(graph, 0, core, None)
    schedule = replace(schedule, axes=(axis, axis, axis), step=slabs * stride)
    for node in windowed(schedule):
        assert max(kept(schedule, node)[:-1]) == schedule.held(node)
    for skip, reader in skips(schedule):
        assert max(skips_waiting(schedule, skip, reader)) == schedule.waiting(skip)


# --- against the rule of layers -----------------------------------------------------------------------------------------


@given(columns())
def test_layers_start_where_the_rule_that_knew_them_by_name_lets_them(schedule):
    """Turn by turn the same slices as before networks were graphs: the same shapes, and so the same bytes."""
    graph, architecture = schedule.graph, architecture_of(schedule.graph)
    ends = Span(*(graph.ends(0, Span(0, 2**20))["input"])) if graph.is_padded else None
    core = Span(1024 + schedule.needs.core.start, 1024 + schedule.needs.core.start + 3)
    axis = needs(graph, 0, core, ends)
    schedule = Schedule(graph, (axis,) * 3, schedule.step)
    for name, start in starts_by_layer(architecture, 0, core, ends).items():
        slices = schedule.slices(graph.node(name))
        for turn in range(schedule.turns):
            a, b = axis.writes[name]
            expected = (min(max(start + n * slices, a), b) for n in (turn, turn + 1))
            assert schedule.writes(graph.node(name), turn) == tuple(expected)

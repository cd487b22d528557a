from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pipeline.core.box import Span
from pipeline.core.grid import TileGrid
from pipeline.core.network.need import needs
from pipeline.core.network.receptive import least_halo
from pipeline.core.network.schedule import Schedule
from pipeline.core.network.unet import Architecture, layers
from tests.core.core_cases import columns
from tests.core.test_need import sources


def spans(schedule, name):
    """What a layer writes, or what is taken of the input, turn by turn."""
    turns = range(schedule.turns)
    return [schedule.reads(turn) if name == "input" else schedule.writes(name, turn) for turn in turns]


def names(schedule):
    """The input and all layers."""
    return ["input", *(layer.name for layer in layers(schedule.architecture))]


def whole(schedule, name):
    """All that a layer writes, or all of the input."""
    return schedule.needs.input if name == "input" else schedule.needs.writes[name]


def level(schedule, name):
    """At which a layer writes."""
    return next((layer.level for layer in layers(schedule.architecture) if layer.name == name), 0)


def has_written(schedule, name, turn):
    """First slice that a layer has not written at the end of a turn."""
    return max([whole(schedule, name).start, *(span.stop for span in spans(schedule, name)[: turn + 1])])


def must_be_there(schedule, layer, span):
    """What a layer must find in order to write `span`; beyond what exists are zeros."""
    axis = schedule.needs
    if layer.kind == "conv":
        return span.grown(axis.reach).clipped(axis.reads[layer.name])
    if layer.kind == "pool":
        return axis.unpooled(layer.level - 1, span)
    return axis.covering(layer.level, span) if layer.kind == "up" else span


# --- turns --------------------------------------------------------------------------------------------------------------


@given(columns())
def test_turns_partition_what_each_layer_computes_in_order(tile):
    """Nothing is computed twice, nothing is left out, and buffers are filled from front to back."""
    schedule = tile.schedule
    for name in names(schedule):
        found = [span for span in spans(schedule, name) if span.extent]
        assert found[0].start == whole(schedule, name).start
        assert found[-1].stop == whole(schedule, name).stop
        assert all(before.stop == after.start for before, after in pairwise(found))
        assert all(span.extent > 0 for span in found)


@given(columns())
def test_a_layer_reads_only_what_was_written_before(tile):
    """Causality: in every turn, layers in order, of all that a layer reads the last slice is there; skips included."""
    schedule = tile.schedule
    for layer in layers(schedule.architecture):
        for turn in range(schedule.turns):
            span = schedule.writes(layer.name, turn)
            if span.extent:
                read = must_be_there(schedule, layer, span)
                for name in sources(schedule.architecture, layer):
                    assert read.start >= whole(schedule, name).start
                    assert read.stop <= has_written(schedule, name, turn)


@given(columns())
def test_a_layer_that_is_early_by_a_turn_would_read_too_much(tile):
    """The negative control: the last layers cannot keep up with the input, so the order of turns is no accident."""
    schedule = tile.schedule
    architecture = schedule.architecture
    last_conv = next(layer for layer in reversed(list(layers(architecture))) if layer.kind == "conv")
    late = []
    for turn in range(schedule.turns - 1):
        span = schedule.writes(last_conv.name, turn + 1)
        (name,) = sources(architecture, last_conv)
        if span.extent:
            late.append(must_be_there(schedule, last_conv, span).stop > has_written(schedule, name, turn))
    event("with turns after the first" if late else "over in one turn")
    assert all(late[:-1])


@given(columns())
def test_turns_away_from_the_ends_are_all_alike(tile):
    """Shapes are fixed there, so that a library's tuned kernels and buffers are used again."""
    schedule = tile.schedule
    for name in names(schedule):
        extents = [span.extent for span in spans(schedule, name)]
        busy = [turn for turn, extent in enumerate(extents) if extent]
        usual = schedule.slices(level(schedule, name))
        assert busy == list(range(busy[0], busy[-1] + 1))
        assert max(extents) <= usual
        assert all(extents[turn] == usual for turn in busy[1:-1])


@given(columns())
def test_a_sweep_ends_with_the_core(tile):
    """A turn more would be empty; a turn less would leave the core's last slices out."""
    schedule = tile.schedule
    assert spans(schedule, "fc")[-1].extent > 0
    assert spans(schedule, "fc")[-1].stop == tile.core.stop[0]


@pytest.mark.parametrize(("depth", "lag"), [(1, 8), (2, 20), (3, 48), (4, 96)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_turns_are_the_slices_of_the_input_and_the_lag(padding, depth, lag):
    """Turns grow with the core alone: what a sweep pays to warm up is paid once, however tall it is."""
    architecture = Architecture(3, depth, 1, padding=padding)
    stride = architecture.stride[0]
    for step in (stride, 4 * stride):
        for strides in (1, 7, 100):
            core = Span(32 * stride, (32 + strides) * stride)
            axis = needs(architecture, 0, core, None)
            assert Schedule(architecture, (axis,) * 3, step).turns == -(-(core.stop - axis.input.start + lag) // step)


@given(st.integers(1, 300), st.integers(1, 50))
def test_a_2d_network_writes_the_slices_that_it_takes_in(extent, step):
    """Nothing lags along z: each turn's slices are predicted in that turn."""
    architecture = Architecture(2, 2, 1)
    grid = TileGrid(architecture, (extent, 8, 8), (extent, 8, 8), least_halo(architecture), step)
    schedule = grid.tile(0).schedule
    assert schedule.turns == -(-extent // step)
    assert {tuple(spans(schedule, name)) for name in names(schedule)} == {tuple(spans(schedule, "input"))}


def test_the_picture_of_a_small_sweep():
    """Depth 1, four slabs of eight slices, of a volume: each layer's lag as it is drawn in the documentation."""
    architecture = Architecture(3, 1, 1)
    grid = TileGrid(architecture, (32, 8, 8), (32, 8, 8), (8, 8, 8), 8)
    schedule = grid.tile(0).schedule
    assert schedule.turns == 5
    assert spans(schedule, "input") == [(0, 8), (8, 16), (16, 24), (24, 32), (32, 32)]
    assert spans(schedule, "encoder1_1") == [(0, 7), (7, 15), (15, 23), (23, 31), (31, 32)]
    assert spans(schedule, "encoder1_2") == [(0, 6), (6, 14), (14, 22), (22, 30), (30, 32)]
    assert spans(schedule, "fc") == [(0, 0), (0, 8), (8, 16), (16, 24), (24, 32)]


# --- what is held ---------------------------------------------------------------------------------------------------------


def kept(schedule, layer):
    """Slices of its input that a convolution still needs at the end of each turn, of those that are there."""
    axis, found = schedule.needs, []
    sought = sources(schedule.architecture, layer)[0]
    for turn in range(schedule.turns):
        there = min(has_written(schedule, sought, turn), axis.reads[layer.name].stop)
        needed_from = has_written(schedule, layer.name, turn) - axis.reach
        if needed_from + axis.reach < axis.writes[layer.name].stop:
            found.append(there - needed_from)
    return found


@given(columns())
def test_convolutions_keep_no_more_than_they_say(tile):
    """Buffers are allocated by this number before the sweep starts; zeros before the volume count."""
    schedule = tile.schedule
    for layer in layers(schedule.architecture):
        if layer.kind == "conv":
            assert max(kept(schedule, layer), default=0) <= schedule.held(layer.name)


@given(columns())
def test_a_window_of_a_convolution_fits_its_buffer(tile):
    """What it keeps and what a turn brings, and the zeros behind the end."""
    schedule = tile.schedule
    axis = schedule.needs
    for layer in layers(schedule.architecture):
        if layer.kind == "conv":
            name = sources(schedule.architecture, layer)[0]
            room = schedule.held(layer.name) + schedule.slices(layer.level)
            first = axis.writes[layer.name].start - axis.reach
            for turn in range(schedule.turns):
                span = schedule.writes(layer.name, turn)
                filled = min(has_written(schedule, name, turn), axis.reads[layer.name].stop)
                assert filled - first <= room
                if span.extent:
                    assert span.stop + axis.reach - first <= room
                    first = span.stop - axis.reach


def skips_waiting(schedule, level):
    """Slices of a skip that the decoder is still to take, at each turn, right after the encoder wrote."""
    encoder, decoder = f"encoder{level + 1}_2", f"unpool{level + 1}"
    found = []
    for turn in range(schedule.turns):
        taken = has_written(schedule, decoder, turn - 1) if turn else whole(schedule, decoder).start
        there = min(has_written(schedule, encoder, turn), whole(schedule, decoder).stop)
        found.append(there - taken)
    return found


@given(columns())
def test_skips_wait_no_longer_than_they_say(tile):
    """Most of a column's memory is skips that wait for the decoder: of those slices that it will read."""
    schedule = tile.schedule
    for number in range(schedule.architecture.depth):
        assert max(skips_waiting(schedule, number)) <= schedule.waiting(number)


@settings(max_examples=20)
@given(columns(), st.integers(1, 4))
def test_long_sweeps_hold_what_they_say(tile, slabs):
    """The bounds are reached, so none of them is a guess: in the middle of a long volume."""
    architecture = tile.schedule.architecture
    stride = architecture.stride[0]
    core = Span(100 * stride, 140 * stride)
    axis = needs(architecture, 0, core, None)
    schedule = replace(tile.schedule, axes=(axis, axis, axis), step=slabs * stride)
    for layer in layers(architecture):
        if layer.kind == "conv":
            assert max(kept(schedule, layer)[:-1]) == schedule.held(layer.name)
    for number in range(architecture.depth):
        assert max(skips_waiting(schedule, number)) == schedule.waiting(number)

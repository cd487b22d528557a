"""What passes over a volume add up to: the same numbers for whoever computes which part, whatever was recorded before."""

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import statistics
from pipeline.core.geometry.box import Box
from pipeline.core.normalization import Mode, Normalization
from pipeline.core.statistics import (
    MOST_PARTS,
    InconsistentPartsError,
    Measurement,
    PartRecord,
    Parts,
    Pass,
    Statistics,
    Survey,
    digest_of_pass,
    known,
    measure,
    most_passes,
)
from pipeline.errors import PlanError

SHAPE, BOX = (9, 17, 13), (4, 8, 8)
PARTS = Parts(SHAPE, BOX)
PERCENTILE = Normalization("percentile", low=0.5, high=99.1)


def volume(dtype: str) -> np.ndarray:
    """Whole numbers that look like none: the same on every machine and with every version of numpy."""
    n = np.arange(np.prod(SHAPE), dtype=np.int64)
    mixed = (n * 2654435761 % 2**32) * (n * 40503 % 65536) % 2**31
    if np.dtype(dtype).kind == "f":
        return (mixed.astype(np.float64) / 2**20 - 300).astype(dtype).reshape(SHAPE)
    return (mixed % np.iinfo(dtype).max).astype(dtype).reshape(SHAPE)


def of(array: np.ndarray, rule: Normalization) -> Normalization:
    """Measured, one part after the other."""
    return measure(rule, array.dtype.name, array.size, PARTS, lambda box: array[box.within(Box.of_shape(SHAPE))])


# --- the numbers ----------------------------------------------------------------------------------------------------------

RECORDED = {
    ("uint8", "percentile"): ("0x0.0p+0", "0x1.03091b51f5e1ap-8"),
    ("uint16", "percentile"): ("0x1.bd19999999999p+8", "0x1.04f219b41efd6p-16"),
    ("int32", "percentile"): ("0x1.7e4754147ae14p+23", "0x1.02f751e32568fp-31"),
    ("float32", "minmax"): ("-0x1.2c00000000000p+8", "0x1.00072733295efp-11"),
    ("float32", "percentile"): ("-0x1.200dc547ae148p+8", "0x1.02f7519c7f3d4p-11"),
    ("float64", "minmax"): ("-0x1.2c00000000000p+8", "0x1.000727a52fbe2p-11"),
    ("float64", "percentile"): ("-0x1.200dc55f5c28fp+8", "0x1.02f751e32568fp-11"),
}
"""Offset and scale as 0.1 measured them, to the last bit."""


@pytest.mark.parametrize(("dtype", "mode"), RECORDED)
def test_numbers_are_those_that_plans_of_0_1_measured(dtype, mode):
    """The last bit of a statistic is part of the output's bytes, and a volume gets the same output from every version."""
    rule = replace(PERCENTILE, mode=mode) if mode == "percentile" else Normalization(mode)
    found = of(volume(dtype), rule)
    assert (found.offset.hex(), found.scale.hex()) == RECORDED[dtype, mode]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
def test_mean_and_deviation_are_merged_in_the_order_of_the_boxes(dtype):
    """To the last bit what one process gets that goes from box to box: sums of floats depend on their order."""
    array = volume(dtype)
    count, mean, squares = 0, 0.0, 0.0
    for box in Box.of_shape(SHAPE).split(BOX):
        values = array[box.within(Box.of_shape(SHAPE))]
        n, m = values.size, float(values.mean(dtype=np.float64))
        s = float(values.var(dtype=np.float64)) * n
        delta, total = m - mean, count + n
        squares += s + delta * delta * count * n / total
        mean += delta * n / total
        count = total
    found = of(array, Normalization("zscore"))
    assert (found.offset, found.scale) == (mean, 1.0 / float(np.sqrt(squares / count)))


@pytest.mark.parametrize("value", [0.3, -7.7, 123.456])
def test_equal_values_have_no_deviation_however_they_are_rounded(value, monkeypatch):
    """The mean of equal values is not always that value to the last bit: divided by what is left, they were 1 or -1."""
    array = np.full(SHAPE, value)
    assert abs(of(array, Normalization("zscore")).apply(array)).max() < 1e-12
    monkeypatch.setattr(statistics, "ROUNDING", 0.0)  # the negative control
    assert abs(of(array, Normalization("zscore")).apply(array)).max() > 0.5


def test_a_small_deviation_is_one():
    """Of values that differ in the tenth place the deviation is theirs."""
    array = 1e6 + 1e-4 * volume("float64") / 300
    assert of(array, Normalization("zscore")).apply(array).std() == pytest.approx(1, abs=1e-3)


RULES = [
    ("uint8", PERCENTILE),
    ("float32", PERCENTILE),
    ("float64", Normalization("zscore")),
    ("float32", Normalization("minmax")),
]


def given_in(order: list[int], dtype: str, rule: Normalization) -> Measurement:
    """All passes, the parts of each in another order, through their records, and one of them twice."""
    array = volume(dtype)
    found = Measurement(rule, dtype, array.size, len(PARTS))
    while now := found.now:
        for part in order:
            boxes = (array[box.within(Box.of_shape(SHAPE))] for box in PARTS.boxes(part))
            record = PartRecord.from_line(PartRecord(part, "pass", now.look(boxes)).to_line())
            found.add(record.part, record.found)
            if part != order[-1]:
                found.add(record.part, record.found)
    return found


@pytest.mark.parametrize(("dtype", "rule"), RULES)
@given(order=st.permutations(range(len(PARTS))))
def test_numbers_do_not_depend_on_the_order_in_which_parts_come(dtype, rule, order):
    """Many workers, restarts, parts that come twice: statistics are one set, and tiles of another would be refused."""
    assert given_in(order, dtype, rule).result == of(volume(dtype), rule)


def test_moments_merged_in_another_order_are_other_numbers():
    """The negative control: the order of the boxes is in the last bits, so to keep it is not for show."""
    values = np.exp(np.random.default_rng(0).normal(size=(16, 50), scale=4))
    results = []
    for order in (range(16), reversed(range(16))):
        found = Measurement(Normalization("zscore"), "float64", values.size, 16)
        for part, box in enumerate(order):
            found.add(part, Pass("moments").look([values[box]]))
        results.append(found.result)
    assert results[0].offset == pytest.approx(results[1].offset, rel=1e-12)
    assert results[0] != results[1]


@pytest.mark.parametrize("order", [1, -1])
def test_a_zero_has_no_sign(order):
    """0.0 and -0.0 are one number and two texts: which part came first would be in the digest."""
    array = np.array([0.0, -0.0] * 4 + [1.0])[::order]
    found = Measurement(Normalization("minmax"), "float64", 9, 9)
    for part, value in enumerate(array):
        found.add(part, Pass("limits").look([np.array([value])]))
    assert str(found.result.offset) == "0.0"


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_zero_has_no_sign_in_what_a_pass_looks_for(order, sign):
    """Brackets are in the digest of a pass: by another sign, the parts of a survey that was killed would not count."""
    array = sign * np.array([0.0, -0.0] * 4 + [1e-9, 1.0])[::order]
    found = Measurement(Normalization("percentile", low=10, high=90), "float64", 10, 10)
    while now := found.now:
        assert "-0.0" not in str(now.brackets)
        for part, value in enumerate(array):
            found.add(part, now.look([np.array([value])]))
    assert found.number == 3


def test_moments_that_cancel_out_are_a_zero_without_a_sign():
    """Whichever half comes first."""
    for first in (1.0, -1.0, -0.0):
        found = Measurement(Normalization("zscore"), "float64", 2, 2)
        for part, value in enumerate((first, -first)):
            found.add(part, Pass("moments").look([np.array([value])]))
        assert str(found.result.offset) == "0.0"


# --- passes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "dtype", "passes"),
    [
        ("none", "float32", 0),
        ("minmax", "uint16", 0),
        ("minmax", "float32", 1),
        ("zscore", "uint8", 1),
        ("percentile", "bool", 1),
        ("percentile", "uint16", 1),
        ("percentile", "int16", 1),
        ("percentile", "uint32", 4),
        ("percentile", "float32", 4),
    ],
)
def test_a_plan_knows_how_often_the_volume_is_read_at_most(mode, dtype, passes):
    """Ten terabytes four times over are a day: it is told before, and 16 bits are read once."""
    rule = Normalization(mode)
    assert most_passes(rule, dtype) == passes
    if passes:
        array = volume(dtype) if dtype != "bool" else volume("uint8") > 9
        found = Measurement(rule, dtype, array.size, 1)
        while found.now:
            found.add(0, found.now.look([array]))
        assert 0 < found.number <= passes
    else:
        assert known(rule, dtype).mode == mode


def test_a_pass_that_could_find_nothing_more_is_left_out():
    """Once every rank lies between a value and itself, another histogram would say so again."""
    found = Measurement(PERCENTILE, "float32", 100, 1)
    while found.now:
        found.add(0, found.now.look([np.arange(100, dtype=np.float32)]))
    assert found.number == 2
    assert found.result == of_all(np.arange(100))


def test_histograms_go_on_until_all_ranks_are_between_single_values():
    """One end of the rule is found at once, and the other lies in a bin with many others."""
    array = np.array([-1e6, *range(97), 1e6])
    found = Measurement(Normalization("percentile", low=0, high=50), "float64", array.size, 1)
    while found.now:
        found.add(0, found.now.look([array]))
    assert (found.number, found.result.offset) == (3, -1e6)
    assert 1 / found.result.scale == pytest.approx(1e6 + 48, rel=1e-12)


def test_three_histograms_are_the_most():
    """Each outlier hides the rest in one bin: the least of what the third could not tell apart is what there is."""
    array = np.array([0.0, *range(5, 100), 1e10, 1e20, 1e30])
    found = Measurement(Normalization("percentile", low=50, high=100), "float64", array.size, 1)
    while found.now:
        found.add(0, found.now.look([array]))
    assert found.number == 4 == most_passes(found.rule, "float64")
    assert found.result.offset == 0


@pytest.mark.parametrize(
    ("survey", "words"),
    [
        (Survey((8, 8, 8), 4, 4_567_800_000, 0), "up to 4 passes, up to 4.568 GB read"),
        (Survey((8, 8, 8), 1, 2_000_000, 0), "1 pass, 0.002 GB read"),
    ],
)
def test_a_survey_says_what_it_reads_at_most(survey, words):
    """Ten terabytes four times over are a day: who sees it before may choose another mode."""
    assert str(survey) == words


def of_all(array: np.ndarray) -> Normalization:
    """By numpy, of the whole."""
    low, high = np.percentile(array, (0.5, 99.1))
    return Normalization("percentile", float(low), 1 / (float(high) - float(low)), 0.5, 99.1)


# --- parts ----------------------------------------------------------------------------------------------------------------


@given(shape=st.tuples(*[st.integers(1, 40)] * 3), box=st.tuples(*[st.integers(1, 9)] * 3))
def test_parts_hold_each_box_once_and_in_order(shape, box):
    """What is counted twice, or left out, is in no checksum."""
    parts = Parts(shape, box)
    boxes = [box for part in range(len(parts)) for box in parts.boxes(part)]
    assert boxes == list(Box.of_shape(shape).split(box))
    assert 1 <= len(parts) <= MOST_PARTS
    assert all(list(parts.boxes(part)) for part in range(len(parts)))


def test_ten_terabytes_are_a_thousand_parts():
    """Neither the scheduler nor the record grows with the volume; and nothing is listed."""
    parts = Parts((20_000, 25_000, 20_000), (64, 512, 512))
    assert len(parts) <= MOST_PARTS
    assert max(len(PartRecord(0, "", (np.arange(2**16),) * 3).to_line()) * len(parts), 1) < 2**30


# --- records --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=30))
def test_a_record_is_read_as_it_was_written(values):
    """A survey that was killed goes on from its records, to the last bit."""
    array = np.array(values)
    for now in (Pass("limits"), Pass("moments"), Pass("histograms", ((float(array.min()), float(array.max()), 0),))):
        with np.errstate(over="ignore"):
            record = PartRecord(7, "of", now.look([array]))
        found = PartRecord.from_line(record.to_line())
        assert (found.part, found.of, found.stage) == (7, "of", "survey")
        for mine, theirs in zip(record.found, found.found, strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)


@given(st.data())
def test_a_damaged_record_counts_for_nothing(data):
    """Each character of it is under its checksum; and a line that was torn has none."""
    line = PartRecord(7, "of", Pass("moments").look([np.arange(9.0)])).to_line()
    place = data.draw(st.integers(0, len(line) - 2))
    other = data.draw(st.characters(codec="ascii").filter(lambda c: c != line[place]))
    assert PartRecord.from_line(line[:place] + other + line[place + 1 :]) is None
    assert PartRecord.from_line(line[:place]) is None
    assert PartRecord.from_line(line) is not None


def test_records_are_of_one_pass_over_the_same_files_by_the_same_rule():
    """What was measured before the input changed, or for another bracket, is never added to what is measured now."""
    passes = [
        Pass("limits"),
        Pass("moments"),
        Pass("histograms", ((0.0, 1.0, 0),)),
        Pass("histograms", ((0.0, 1.0, 1),)),
    ]
    digests = [digest_of_pass({"a": 1}, "files", now) for now in passes]
    digests += [digest_of_pass({"a": 2}, "files", passes[0]), digest_of_pass({"a": 1}, "others", passes[0])]
    assert all(one != other for one, other in pairwise(sorted(digests)))
    assert digest_of_pass({"a": 1}, "files", Pass("limits")) == digests[0]


# --- what came of it ------------------------------------------------------------------------------------------------------

STATISTICS = Statistics(
    Normalization("percentile", 10.25, 1 / 3, 0.5, 99.5), {"input.shape": [1, 2, 3], "boxes": [4, 5, 6]}
)


def test_statistics_round_trip_through_json():
    """The last bit of each number; and the same text for the same numbers."""
    assert Statistics.from_dict(json.loads(STATISTICS.to_json())) == STATISTICS
    again = Statistics(STATISTICS.normalization, dict(reversed(STATISTICS.over.items())))
    assert again.digest == STATISTICS.digest


@pytest.mark.parametrize("key", ["offset", "scale", "low", "mode", "over", "digest"])
def test_statistics_that_were_changed_by_hand_are_not_taken(key):
    """Their digest would vouch for tiles of other numbers."""
    content = json.loads(STATISTICS.to_json())
    content[key] = {"mode": "minmax", "over": {}, "digest": "0" * 64}.get(key, 10.250000000000002)
    with pytest.raises(ValueError, match="digest"):
        Statistics.from_dict(content)


@pytest.mark.parametrize(("offset", "scale"), [(float("nan"), 1.0), (1.0, float("inf")), (1, 1.0), (1.0, 1)])
def test_statistics_of_no_finite_floats_are_not_taken(offset, scale):
    """Whoever wrote them, with whatever digest: a whole number would be another text for the same rule."""
    content = Statistics(Normalization("minmax", offset, scale), {}).to_dict()
    with pytest.raises(ValueError, match="the numbers"):
        Statistics.from_dict(content)


# --- every mode ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("dtype", ["uint8", "uint32", "float32"])
def test_every_mode_is_measured_or_known(mode, dtype):
    """And keeps its name; where no pass is taken, the numbers follow from the type."""
    rule, values = Normalization(mode), volume(dtype)
    if most_passes(rule, dtype):
        found = measure(rule, dtype, values.size, PARTS, lambda box: values[tuple(map(slice, box.start, box.stop))])
    else:
        found = known(rule, dtype)
    assert found.mode == mode
    assert rule.is_measured(dtype) == (most_passes(rule, dtype) > 0)


def test_a_mode_that_nobody_knows_is_taken_for_no_other():
    """Who adds one and forgets a place is told there."""
    rule = Normalization("robust")
    for ask in (most_passes, known):
        with pytest.raises(ValueError, match="mode 'robust'"):
            ask(rule, "uint8")
    with pytest.raises(ValueError, match="mode 'robust'"):
        Measurement(rule, "uint8", values=8, parts=1)


# --- what cannot be ---------------------------------------------------------------------------------------------------------


def measured_of(rule: Normalization, read) -> Measurement:
    """All passes; `read` is given the number of the pass and a box."""
    measurement = Measurement(rule, "float32", int(np.prod(SHAPE)), len(PARTS))
    while measurement.now:
        for part in measurement.to_do.tolist():
            measurement.add(part, measurement.now.look(read(measurement.number, box) for box in PARTS.boxes(part)))
    return measurement


def test_a_volume_that_changes_between_passes_is_noticed():
    """Parts that do not add up to the volume, or to what the pass before has found, are of different voxels."""
    values, rule = volume("float32"), Normalization("percentile")
    values[0, 0, 0] = 1e9  # so that most are in one bin at first

    def read(number, box, *, changes):
        return values[tuple(map(slice, box.start, box.stop))] + np.float32(1000 * (number == changes))

    for changes in (2, 3):
        with pytest.raises(InconsistentPartsError, match="values where there should be"):
            measured_of(rule, partial(read, changes=changes))
    assert measured_of(rule, partial(read, changes=None)).result is not None


def test_a_box_that_is_read_short_is_noticed():
    """Its mean would be another."""
    values, rule = volume("float32"), Normalization("zscore")
    with pytest.raises(InconsistentPartsError, match="values where there should be"):
        measured_of(rule, lambda _, box: values[tuple(map(slice, box.start, box.stop))][..., 1:])


@pytest.mark.parametrize(
    ("mode", "values"),
    [
        ("minmax", [-1.7e308, 1.7e308]),
        ("zscore", [-1.7e308, 1.7e308]),
        ("minmax", [0.0, 5e-324]),
    ],
)
def test_numbers_that_no_network_can_be_given_are_refused(mode, values):
    """They would turn all into 0, or into nothing finite."""
    array = np.array(values).reshape(1, 1, -1)
    with pytest.raises(PlanError, match="no network can be given"):
        measure(Normalization(mode), "float64", array.size, Parts(array.shape, array.shape), lambda _: array)


def test_moments_of_a_box_that_is_one_large_chunk_are_taken_in_pieces(monkeypatch):
    """Squares of it all in float64 would be eight times a byte's volume."""
    values = volume("uint8")
    whole = measure(Normalization("zscore"), "uint8", values.size, Parts(SHAPE, SHAPE), lambda _: values)
    monkeypatch.setattr(statistics, "MOST_AT_ONCE", values.size)
    assert measure(Normalization("zscore"), "uint8", values.size, Parts(SHAPE, SHAPE), lambda _: values) == whole
    monkeypatch.setattr(statistics, "MOST_AT_ONCE", 100)
    pieces = measure(Normalization("zscore"), "uint8", values.size, Parts(SHAPE, SHAPE), lambda _: values)
    assert pieces.offset == pytest.approx(values.mean(), rel=1e-12)
    assert pieces.scale == pytest.approx(whole.scale, rel=1e-12)

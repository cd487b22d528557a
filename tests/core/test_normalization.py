import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.core.normalization import Normalization, finite, spanning

DTYPES = [
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    ">u2",
]
numbers = st.floats(-1000, 1000)
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        (1, 2, 3, 4),
        elements=st.booleans()
        if dtype == "bool"
        else hnp.from_dtype(np.dtype(dtype), min_value=-100 if np.dtype(dtype).kind in "if" else 0, max_value=100),
    )
)


@given(arrays, numbers, st.floats(0.001, 1000))
def test_values_become_offset_and_scaled_float32(array, offset, scale):
    """The whole of input normalisation is two numbers; they come out as float64 arithmetic rounded, give or take a bit."""
    found = Normalization("zscore", offset, scale).apply(array)
    expected = (array.astype(np.float64) - offset) * scale
    assert found.dtype == np.float32
    assert found.dtype.isnative
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-7 * scale * (abs(offset) + 100))


@given(arrays, numbers, st.floats(0.001, 1000))
def test_a_part_is_normalised_as_within_the_whole(array, offset, scale):
    """One set of statistics a volume: what a voxel becomes does not depend on the tile that reads it."""
    rule = Normalization("zscore", offset, scale)
    np.testing.assert_array_equal(rule.apply(array)[:, 1:, :2, 1:3], rule.apply(array[:, 1:, :2, 1:3]))


@given(arrays, st.sampled_from((Normalization(), Normalization("zscore", 3.0, 0.5))))
def test_the_array_as_read_is_left_alone(array, rule):
    """Windows are views of one array that several slabs share."""
    before = array.copy()
    found = rule.apply(array)
    found += 1
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rule_changes_no_value(dtype):
    """`mode: none` is for networks that were trained on raw values."""
    array = np.array([[[[0, 1, 1]]]], dtype=dtype)
    np.testing.assert_array_equal(Normalization().apply(array), array.astype(np.float32))


@pytest.mark.parametrize("dtype", ["int64", "uint64", "float64"])
def test_wide_values_are_reduced_before_they_are_rounded(dtype):
    """As float32, 10^12 and 10^12 + 1 are one number, and the picture would be flat."""
    array = (10**12 + np.arange(8)).astype(dtype).reshape(1, 1, 2, 4)
    found = Normalization("minmax", 1e12, 0.125).apply(array)
    np.testing.assert_array_equal(found.ravel(), np.arange(8) / 8)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "float16", "float32"])
def test_narrow_values_are_scaled_in_float32(dtype):
    """Half the memory of float64, and these are the bytes that plans of 0.1 gave: rounded once more, a last bit differs."""
    values, scale = np.arange(1, 100).astype(dtype), 1 / 255
    found = Normalization("minmax", 0.0, scale).apply(values)
    np.testing.assert_array_equal(found, values.astype(np.float32) * np.float32(scale))
    assert (found != (values.astype(np.float64) * scale).astype(np.float32)).any()


@pytest.mark.parametrize("dtype", ["uint32", "int32", "int64", "float64"])
def test_wide_values_are_scaled_in_float64(dtype):
    """The same for those that float32 cannot hold."""
    values, scale = np.arange(1, 100).astype(dtype), 1 / 255
    found = Normalization("minmax", 0.0, scale).apply(values)
    np.testing.assert_array_equal(found, (values.astype(np.float64) * scale).astype(np.float32))


# --- what is not finite -------------------------------------------------------------------------------------------------


def test_what_is_not_finite_counts_as_zero_or_is_refused():
    """A person says which: it may be a mask, or a broken file. The error has how many there are, and where the first is."""
    values = np.array([[[[1, 2, np.nan], [np.inf, 5, 6]]]], dtype=np.float32)
    np.testing.assert_array_equal(finite(values, "zero", None), [[[[1, 2, 0], [0, 5, 6]]]])
    with pytest.raises(ValueError, match=r"2 at \(0, 0, 0, 2\)"):
        finite(values, "fail", lambda count, first: ValueError(f"{count} at {first}"))


@pytest.mark.parametrize("dtype", ["uint8", "bool", "float32"])
def test_what_is_finite_is_not_copied(dtype):
    """Nearly every box is."""
    values = np.ones((1, 2, 2, 2), dtype)
    assert finite(values, "fail", None) is values


# --- rules --------------------------------------------------------------------------------------------------------------


@given(numbers, numbers)
def test_a_span_maps_its_ends_to_zero_and_one(first, second):
    """minmax and percentile are spans; a span of nothing maps to zero rather than to infinity."""
    low, high = min(first, second), max(first, second)
    rule = spanning("minmax", low, high)
    assert (low - rule.offset) * rule.scale == 0
    if high - low > 1e-300:
        assert (high - rule.offset) * rule.scale == pytest.approx(1)


def test_a_constant_volume_maps_to_zero():
    """An empty corner that someone runs by mistake gives zeros, not NaN."""
    found = spanning("percentile", 7, 7, low=1, high=99).apply(np.full((1, 2, 2, 2), 7, dtype=np.uint8))
    np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (Normalization("zscore", 1.0, 2.0), Normalization("zscore", 3.0, 4.0), True),
        (Normalization("zscore"), Normalization("minmax"), False),
        (Normalization("minmax", low=1.0), Normalization("minmax", low=5.0), True),
        (Normalization("percentile", 1.0, low=1.0), Normalization("percentile", 2.0, low=1.0), True),
        (Normalization("percentile", low=1.0), Normalization("percentile", low=5.0), False),
        (Normalization("percentile", high=99.0), Normalization("percentile", high=95.0), False),
        (Normalization("fixed", 1.0, 2.0), Normalization("fixed", 1.0, 2.0, low=5.0), True),
        (Normalization("fixed", 1.0, 2.0), Normalization("fixed", 1.0, 3.0), False),
    ],
)
def test_a_rule_is_its_mode_and_what_it_declares(first, second, same):
    """Numbers belong to a volume, but for fixed ones, and the rule to a network: only another rule is worth a warning, or another measurement."""
    assert first.same_rule(second) is second.same_rule(first) is same


@pytest.mark.parametrize(
    ("mode", "dtype", "is_measured"),
    [
        ("none", "float32", False),
        ("none", "uint8", False),
        ("fixed", "float32", False),
        ("minmax", "uint8", False),
        ("minmax", "int32", False),
        ("minmax", "bool", False),
        ("minmax", "float16", True),
        ("zscore", "uint8", True),
        ("percentile", "uint8", True),
        ("percentile", "float64", True),
    ],
)
def test_a_volume_is_surveyed_where_neither_mode_nor_type_tells_the_numbers(mode, dtype, is_measured):
    """A survey reads all of it: of whole numbers, `minmax` means their type's range."""
    assert Normalization(mode).is_measured(dtype) is is_measured


@given(st.builds(Normalization, offset=numbers, scale=numbers, low=numbers, high=numbers))
def test_a_rule_round_trips_through_a_dict(rule):
    """Checkpoints and plans carry it as JSON."""
    assert Normalization(**rule.to_dict()) == rule

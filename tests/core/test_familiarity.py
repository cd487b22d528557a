import numpy as np
import pytest

from pipeline.core.appearance import Appearance, Channel, appearance_of
from pipeline.core.familiarity import _under, lost_bits, strange_values, strange_voxels, strangeness
from pipeline.core.normalization import Normalization, spanning

BYTES = spanning("minmax", 0, 255)
WORDS = spanning("minmax", 0, 65535)
SIGNED = spanning("minmax", -32768, 32767)


def tissue(low, high, dtype="uint8", boxes=8, seed=0):
    """Boxes of values between two, more of them in the middle."""
    random = np.random.default_rng(seed)
    return [(low + (high - low) * random.beta(3, 3, (1, 4, 16, 16))).astype(dtype) for _ in range(boxes)]


def looks(parts, rule):
    """How boxes look under a rule."""
    return appearance_of(parts, rule, dtype=parts[0].dtype.name)


SEEN = looks(tissue(20, 230), BYTES)
"""An 8-bit volume, as its network saw it."""

STRANGE = {
    "12 bits in 16": ("narrow", tissue(100, 3900, "uint16"), WORDS),
    "10 bits in 16": ("narrow", tissue(10, 1000, "uint16"), WORDS),
    "not normalised": ("wide", tissue(100, 3900, "uint16"), Normalization()),
    "12 bits in 16, signed": ("narrow", tissue(100, 3900, "int16"), SIGNED),
    "all above": ("apart", tissue(1.2, 1.9, "float32"), Normalization()),
}

FAMILIAR = {
    "another part": (tissue(20, 230, seed=1), BYTES),
    "a darker stain": (tissue(5, 110), BYTES),
    "a weak one": (tissue(100, 170), BYTES),
    "16 bits that are used": (tissue(2000, 60000, "uint16"), WORDS),
    "12 bits by percentile": (tissue(100, 3900, "uint16"), spanning("percentile", 500, 3500)),
    "mostly empty": ([*[np.zeros((1, 4, 16, 16), np.uint8)] * 15, *tissue(20, 230, boxes=1)], BYTES),
    "mostly noise": (tissue(2, 6, boxes=150) + tissue(20, 230, boxes=1), BYTES),
    "a bright speck": ([*tissue(20, 200), np.full((1, 1, 2, 2), 255, np.uint8)], BYTES),
}


@pytest.mark.parametrize(("reason", "parts", "rule"), STRANGE.values(), ids=STRANGE)
def test_what_no_network_of_bytes_has_seen_is_strange(reason, parts, rule):
    """Its prediction would be noise, and every page green."""
    found = looks(parts, rule)
    assert strangeness(found, [SEEN]) == reason
    (warning,) = strange_values(found, [SEEN], rule, BYTES)
    assert "seen nothing like this volume" in warning


@pytest.mark.parametrize(("parts", "rule"), FAMILIAR.values(), ids=FAMILIAR)
def test_what_differs_as_volumes_do_is_not(parts, rule):
    """A warning that is often wrong is read by nobody."""
    found = looks(parts, rule)
    assert strangeness(found, [SEEN]) == ""
    assert not list(strange_values(found, [SEEN], rule, BYTES))


def reaching(low, high, middle=None):
    """An appearance whose boxes reach from one value to another, and whose sample does so too, or is between others."""
    ends = middle or (low, high)
    channel = Channel((ends[0], *np.linspace(*ends, 5)[1:4].tolist(), ends[1]), (low, high))
    return Appearance("float32", (low, high), (channel,), 16)


@pytest.mark.parametrize(
    ("now", "then", "reason"),
    [
        (reaching(0, 0.25), reaching(0, 1), ""),
        (reaching(0, 0.24), reaching(0, 1), "narrow"),
        (reaching(0, 0.24), reaching(0, 1, middle=(0, 0.9)), ""),
        (reaching(0, 2), reaching(0, 0.5), ""),
        (reaching(0, 2.125), reaching(0, 0.5), "wide"),
        (reaching(0, 2.125, middle=(0, 2)), reaching(0, 0.5), ""),
        (reaching(0, 10), reaching(9, 19), ""),
        (reaching(0, 10), reaching(9.125, 19), "apart"),
        (reaching(9.125, 19), reaching(0, 10), "apart"),
        (reaching(0, 10), reaching(9, 39), ""),  # a tenth of the shorter is enough
        (reaching(0, 39), reaching(-9, 1), ""),
    ],
)
def test_ranges_are_strange_beyond_four_times_and_below_a_tenth_of_overlap(now, then, reason):
    """As the words say, to the number: boxes together against training's sample, and the sample against training's boxes."""
    assert strangeness(now, [then]) == reason


def test_a_sample_under_another_rule_is_what_the_rule_would_have_shown():
    """A remedy is tried without reading the volume again."""
    parts = [np.concatenate([a, b]) for a, b in zip(tissue(90, 3900, "uint16"), tissue(50, 700, "uint16"), strict=True)]
    rule, other = Normalization("zscore", 100.0, 0.5), spanning("percentile", 20, 3000)
    found, expected = _under(looks(parts, rule), rule, other), looks(parts, other)
    for mine, theirs in zip(found.channels, expected.channels, strict=True):
        assert mine.percentiles == pytest.approx(theirs.percentiles, abs=1e-5)
        assert mine.reach == pytest.approx(theirs.reach, abs=1e-5)


def test_a_mode_that_is_named_spans_all_channels():
    """One rule is for all of them: from the darkest channel's 1st percentile to the brightest one's 99th."""
    pairs = [np.concatenate(pair) for pair in zip(tissue(20, 230), tissue(20, 230), strict=True)]
    seen = looks(pairs, BYTES)
    parts = [
        np.concatenate([a, b]) for a, b in zip(tissue(0, 1000, "uint16"), tissue(1000, 2000, "uint16"), strict=True)
    ]
    (warning,) = strange_values(looks(parts, WORDS), [seen], WORDS, BYTES)
    first, second = warning.partition("under which they would be ")[2].partition(";")[0].split(", ")
    assert float(first.split(" to ")[0]) == pytest.approx(0, abs=1e-9)
    assert float(second.split(" to ")[1]) == 1


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (WORDS, "As it sees them, 'minmax', (value - 0) * 1.526e-05, the"),
        (Normalization(), "As it sees them, as stored, the"),
    ],
)
def test_the_warning_says_by_which_formula_the_network_sees_values(rule, words):
    """Who knows the stored values can check it by hand."""
    (warning,) = strange_values(looks(tissue(100, 3900, "uint16"), rule), [SEEN], rule, BYTES)
    assert words in warning


def test_the_warning_names_a_mode_under_which_the_volume_looks_as_training_did():
    """What to do; and what it says would come of it does."""
    parts = tissue(100, 3900, "uint16")
    (warning,) = strange_values(looks(parts, WORDS), [SEEN], WORDS, BYTES)
    assert "normalize.mode to 'percentile', under which they would be 0 to 1;" in warning
    assert "0.00" in warning
    assert "(uint8), normalised by 'minmax'" in warning


def test_the_mode_of_the_training_is_named_first():
    """Bytes that were not normalised: their type's whole range, as the training's, and not what the sample shows."""
    parts = tissue(20, 230)
    (warning,) = strange_values(looks(parts, Normalization()), [SEEN], Normalization(), BYTES)
    low, high = np.percentile(np.stack(parts) / 255, (1, 99))
    assert f"normalize.mode to 'minmax', under which they would be {low:.3g} to {high:.3g};" in warning


def test_no_mode_is_named_where_none_helps():
    """Training by whole volumes' deviations is not mended by percentiles of a volume far off."""
    seen = looks(tissue(1000, 1001, "float32"), Normalization())
    found = looks(tissue(0, 200), BYTES)
    (warning,) = strange_values(found, [seen], BYTES, Normalization())
    assert "normalize.mode to" not in warning
    assert "take another checkpoint" in warning


def test_one_volume_of_training_that_is_alike_is_enough():
    """A network of two stains knows both."""
    found = looks(tissue(100, 3900, "uint16"), WORDS)
    assert strangeness(found, [SEEN, looks(tissue(200, 3000, "uint16"), WORDS)]) == ""


def test_each_channel_must_be_alike():
    """A second channel that is sixteen times too dark is not made good by the first."""
    pairs = [np.concatenate(pair) for pair in zip(tissue(20, 230), tissue(20, 230), strict=True)]
    seen = looks(pairs, BYTES)
    pairs = [np.concatenate(pair) for pair in zip(tissue(20, 230), tissue(1, 14), strict=True)]
    assert strangeness(looks(pairs, BYTES), [seen]) == "narrow"


def test_a_sample_that_holds_one_value_is_compared_with_nothing_and_says_so():
    """Sixteen boxes of fill say nothing of what lies between them."""
    found = looks([np.zeros((1, 4, 16, 16), np.uint8)] * 16, BYTES)
    assert strangeness(found, [SEEN]) == ""
    (warning,) = strange_values(found, [SEEN], BYTES, BYTES)
    assert "16 boxes" in warning
    assert "one value alone" in warning


@pytest.mark.parametrize("seen", [[], [looks([np.zeros((1, 4, 4, 4), np.uint8)], BYTES)]])
def test_a_checkpoint_that_knows_nothing_of_its_training_is_compared_with_nothing(seen):
    """Older and foreign ones do not say."""
    assert strangeness(looks(tissue(100, 3900, "uint16"), WORDS), seen) == ""


# --- voxels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "seen", "ndim", "told"),
    [
        ((10.0, 10.0, 10.0), [(10.0, 10.0, 10.0)], 3, False),
        ((40.0, 40.0, 40.0), [(10.0, 10.0, 10.0)], 3, True),
        ((10.0, 10.0, 40.0), [(10.0, 10.0, 10.0)], 3, True),
        ((8.0, 10.0, 12.5), [(10.0, 10.0, 10.0)], 3, False),
        ((7.9, 10.0, 10.0), [(10.0, 10.0, 10.0)], 3, True),
        ((10.0, 10.0, 12.6), [(10.0, 10.0, 10.0)], 3, True),
        ((40.0, 40.0, 40.0), [(10.0, 10.0, 10.0), (40.0, 40.0, 40.0)], 3, False),
        ((29.0, 4.0, 4.0), [(50.0, 4.0, 4.0)], 2, False),
        ((4.0, 4.0), [(50.0, 4.0, 4.0)], 2, False),
        ((50.0, 8.0, 8.0), [(50.0, 4.0, 4.0)], 2, True),
        ((50.0, 8.0, 8.0), [], 2, False),
    ],
)
def test_voxels_of_another_size_than_all_of_training_are_told(sizes, seen, ndim, told):
    """A network of slices does not mind how far apart they are."""
    assert bool(list(strange_voxels(sizes, seen, ndim))) == told


# --- whole numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "low", "high", "rule", "step"),
    [
        ("uint32", 0, 2**24, Normalization(), None),
        ("uint32", 0, 2**24 + 2, Normalization(), 2),
        ("uint32", 0, 2**32 - 1, spanning("minmax", 0, 2**32 - 1), 256),
        ("uint32", 2**31, 2**31 + 4000, spanning("percentile", 2**31, 2**31 + 4000), None),
        ("int32", 0, 4000, spanning("minmax", -(2**31), 2**31 - 1), 256),
        ("uint16", 0, 65535, WORDS, None),
        ("float32", 0, 2.0**30, Normalization(), None),
        ("uint64", 0, 2**30, Normalization(), 64),
    ],
)
def test_integers_that_float32_cannot_hold_are_told(dtype, low, high, rule, step):
    """Two that differ would look the same to the network; the rule's own arithmetic shows which."""
    parts = [np.linspace(low, high, 64).astype(dtype).reshape(1, 4, 4, 4)]
    warnings = list(lost_bits(looks(parts, rule), rule))
    assert len(warnings) == (step is not None)
    if step:
        assert f"less than {step} apart" in warnings[0]
        assert "loses bits" in warnings[0]
        top = np.arange(high - step, high, dtype=dtype)
        assert len(set(rule.apply(top).tolist())) < step

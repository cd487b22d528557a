from dataclasses import dataclass, field

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.geometry.box import Box
from pipeline.core.normalization import Normalization
from pipeline.core.statistics import BINS
from pipeline.errors import PlanError
from pipeline.planning import statistics
from pipeline.planning.statistics import measured
from pipeline.volumes.volume import Volume, open_volume


@dataclass(frozen=True)
class Watched(Volume):
    """A volume that remembers the boxes that were read of it."""

    boxes: list[Box] = field(default_factory=list)

    def read(self, box):
        self.boxes.append(box)
        return super().read(box)


def stored(folder, array, chunks=(4, 8, 8)):
    """A Zarr array on disk, opened; a channel axis is one chunk."""
    chunks = (*array.shape[:-3], *chunks)
    names = "czyx"[-array.ndim :]  # else some shapes could be a picture with its colours last
    zarr.create_array(str(folder / "volume.zarr"), data=array, chunks=chunks, dimension_names=names, overwrite=True)
    volume = open_volume(str(folder / "volume.zarr"))
    return Watched(volume.description, volume.array)


def noise(dtype, shape=(9, 17, 13), seed=0):
    """Skewed values, so that mean, median and middle are three numbers; the ends of the type among them."""
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return random.gamma(2.0, 50.0, shape).astype(dtype)
    if dtype == "bool":
        return random.random(shape) < 0.3
    limits = np.iinfo(dtype)
    span = min(int(limits.max) - int(limits.min), 2**40)
    array = (limits.min + (random.random(shape) ** 3 * span).astype(np.int64)).astype(dtype)
    array.flat[:2] = limits.min, limits.max if span < 2**40 else limits.min + span
    return array


@pytest.fixture
def _in_small_boxes(monkeypatch):
    """Some kilobytes at once, so that a volume of two thousand voxels takes several reads."""
    monkeypatch.setattr(statistics, "READ_BYTES", 600)


SMALL_BOXES = pytest.mark.usefixtures("_in_small_boxes")
SHAPES = {"one channel": (9, 17, 13), "three channels": (3, 9, 17, 13)}
NARROW, WIDE = ["bool", "uint8", "int8", "uint16", "int16"], ["uint32", "int32", "float16", "float32", "float64"]


# --- against numpy on the whole -------------------------------------------------------------------------------------------


@SMALL_BOXES
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [*NARROW, *WIDE])
def test_zscore_is_of_the_whole_volume(tmp_path, dtype, shape):
    """Merged box by box, mean and deviation are those that numpy finds at once, all channels together."""
    array = noise(dtype, shape)
    found = measured(Normalization("zscore"), stored(tmp_path, array), nonfinite="fail")
    wide = array.astype(np.float64)
    assert found.mode == "zscore"
    assert found.offset == pytest.approx(wide.mean(), rel=1e-12)
    assert found.scale == pytest.approx(1 / wide.std(), rel=1e-12)


@SMALL_BOXES
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("low", "high"), [(1.0, 99.0), (0.0, 100.0), (0.13, 50.0), (33.3, 33.4)])
def test_percentiles_of_small_integers_are_exact(tmp_path, dtype, shape, low, high):
    """A histogram of every value is the whole truth: numpy's percentiles, interpolation included."""
    array = noise(dtype, shape)
    found = measured(Normalization("percentile", low=low, high=high), stored(tmp_path, array), nonfinite="fail")
    bottom, top = np.percentile(array.astype(np.float64), (low, high))
    assert (found.mode, found.low, found.high) == ("percentile", low, high)
    assert found.offset == pytest.approx(bottom, rel=1e-12, abs=1e-12)
    assert found.scale == pytest.approx(1 / (top - bottom) if top > bottom else 1, rel=1e-9)


@SMALL_BOXES
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", WIDE)
def test_percentiles_of_wide_values_are_exact_to_a_bin(tmp_path, dtype, shape):
    """Of more than 16 bits, a fixed number of bins over the range bounds both memory and error."""
    array = noise(dtype, shape).astype(dtype)
    wide = array.astype(np.float64)
    found = measured(Normalization("percentile", low=2.0, high=95.0), stored(tmp_path, array), nonfinite="fail")
    bottom, top = np.percentile(wide, (2.0, 95.0))
    bin_width = np.ptp(wide) / (BINS - 1)
    assert abs(found.offset - bottom) <= bin_width
    assert abs(1 / found.scale - (top - bottom)) <= 2 * bin_width


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("bool", 0, 1), ("uint8", 0, 255), ("int8", -128, 127), ("uint16", 0, 65535)]
)
def test_minmax_takes_integers_by_their_type(tmp_path, dtype, low, high):
    """Two crops of one picture are scaled alike, and not a voxel is read."""
    volume = stored(tmp_path, np.zeros((4, 8, 8), dtype))
    found = measured(Normalization("minmax"), volume, nonfinite="fail")
    assert (found.offset, found.scale) == (low, 1 / (high - low))
    assert volume.boxes == []


@SMALL_BOXES
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_minmax_takes_floats_by_their_range(tmp_path, dtype):
    """A float's type has no useful range; the volume's own is used."""
    array = noise(dtype)
    found = measured(Normalization("minmax"), stored(tmp_path, array), nonfinite="fail")
    assert found.offset == float(array.min())
    assert found.scale == 1 / (float(array.max()) - float(array.min()))


def test_no_normalisation_reads_nothing(tmp_path):
    """A pass over a terabyte for two numbers that nobody uses would be a day."""
    volume = stored(tmp_path, noise("float32"))
    assert measured(Normalization(), volume, nonfinite="fail") == Normalization()
    assert volume.boxes == []


@pytest.mark.parametrize("mode", ["minmax", "zscore", "percentile"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_constant_volume_is_no_division_by_zero(tmp_path, mode, dtype):
    """An empty crop is a volume too."""
    volume = stored(tmp_path, np.full((4, 8, 8), 7, dtype))
    found = measured(Normalization(mode), volume, nonfinite="fail")
    assert np.isfinite(found.apply(np.full((1, 1, 1, 1), 7, dtype))).all()
    if mode != "minmax" or dtype == "float32":
        assert (found.offset, found.scale) == (7, 1)


@SMALL_BOXES
def test_a_small_deviation_on_a_large_mean_is_kept(tmp_path):
    """The sum of squares would lose all its digits here; merging means does not."""
    array = (10**7 + noise("float64") / 1000).astype(np.float64)
    found = measured(Normalization("zscore"), stored(tmp_path, array), nonfinite="fail")
    assert found.scale == pytest.approx(1 / array.std(), rel=1e-6)


# --- reading --------------------------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    shape=st.tuples(*[st.integers(1, 20)] * 3),
    chunks=st.tuples(*[st.integers(1, 9)] * 3),
    at_once=st.integers(1, 20_000),
)
def test_a_pass_reads_each_chunk_once(tmp_path, monkeypatch, shape, chunks, at_once):
    """Boxes partition the volume along whole chunks: none is decoded twice, and the sums count each voxel once."""
    monkeypatch.setattr(statistics, "READ_BYTES", at_once)
    # thousands of reads take minutes
    few = tuple(min(max(c, -(-n // 4)), n) for c, n in zip(chunks, shape, strict=True))
    volume = stored(tmp_path, noise("uint8", (2, *shape)), few)
    measured(Normalization("zscore"), volume, nonfinite="fail")
    seen = np.zeros(shape, int)
    for box in volume.boxes:
        seen[box.within(Box.of_shape(shape))] += 1
        assert all(a % c == 0 for a, c in zip(box.start, volume.description.chunks, strict=True))
        assert 2 * box.voxels <= max(at_once, 2 * np.prod(volume.description.chunks, dtype=int) * 8)
    assert (seen == 1).all()


@pytest.mark.parametrize("mode", ["zscore", "percentile", "minmax"])
def test_how_much_is_read_at_once_does_not_matter(tmp_path, monkeypatch, mode):
    """The plan's statistics must not depend on a constant of the code, beyond rounding."""
    volume = stored(tmp_path, noise("float32"))
    found = []
    for at_once in (1, 5_000, 10**9):
        monkeypatch.setattr(statistics, "READ_BYTES", at_once)
        found.append(measured(Normalization(mode), volume, nonfinite="fail"))
    assert len({(rule.mode, rule.low, rule.high) for rule in found}) == 1
    np.testing.assert_allclose(
        [[r.offset, r.scale] for r in found], [[found[0].offset, found[0].scale]] * 3, rtol=1e-12
    )


# --- values that are not finite -------------------------------------------------------------------------------------------


def spoilt():
    """Two NaN and an infinity far from the origin, where the last box is."""
    array = noise("float32")
    array[8, 16, 10:13] = np.nan, np.inf, np.nan
    return array


@SMALL_BOXES
@pytest.mark.parametrize("mode", ["minmax", "zscore", "percentile"])
def test_values_that_are_not_finite_are_refused_by_their_place(tmp_path, mode):
    """One NaN would make every voxel of the output NaN."""
    volume = stored(tmp_path, spoilt())
    with pytest.raises(PlanError) as refused:
        measured(Normalization(mode), volume, nonfinite="fail")
    text = str(refused.value)
    for part in ("volume.zarr'", "values that are not finite", str(volume.boxes[-1]), "set input.nonfinite to 'zero'"):
        assert part in text


@SMALL_BOXES
@pytest.mark.parametrize("mode", ["minmax", "zscore", "percentile"])
def test_values_that_are_not_finite_count_as_zero_where_asked(tmp_path, mode):
    """Statistics see what the network will see."""
    good = np.where(np.isfinite(spoilt()), spoilt(), 0)
    folders = [tmp_path / name for name in ("spoilt", "good")]
    found, expected = (
        measured(Normalization(mode), stored(folder, array), nonfinite="zero")
        for folder, array in zip(folders, (spoilt(), good), strict=True)
    )
    assert found == expected
    assert np.isfinite([found.offset, found.scale]).all()

import numpy as np
import pytest

from pipeline.core.geometry.box import Box
from pipeline.errors import ConfigError
from pipeline.evaluation.evaluation import THRESHOLDS
from pipeline.evaluation.levels import FLOAT_SCALE, Levels
from tests.evaluation.cases import stored


def read(tmp_path, values):
    """Levels of a prediction of these values."""
    volume = stored(tmp_path, "prediction", np.asarray(values).reshape(1, 1, -1), (1, 1, 4096))
    levels = Levels.of(volume)
    return levels, levels.read(Box.of_shape(volume.shape)).ravel()


def test_a_float_is_on_its_side_of_every_threshold(tmp_path):
    """Products round: some of 4000 probabilities times 4000 fall below the level that they are the edge of."""
    edges = np.arange(FLOAT_SCALE + 1) / FLOAT_SCALE
    values = np.concatenate([edges, np.nextafter(edges[1:], 0), np.nextafter(edges[:-1], 1)])
    levels, found = read(tmp_path, values)
    assert np.array_equal(found, np.searchsorted(edges, values, side="right") - 1)
    for threshold in (*THRESHOLDS, 0.01, 0.975):
        assert np.array_equal(found >= levels.cut(threshold), values >= threshold)


def test_a_byte_is_255_times_a_probability(tmp_path):
    """51 of 255 is 0.2 and no less; the levels are the bytes, so histograms of them lose nothing."""
    levels, found = read(tmp_path, np.arange(256, dtype=np.uint8))
    assert np.array_equal(found, np.arange(256))
    assert [levels.cut(t) for t in (0.2, 0.5, 1 / 255, 0.999)] == [51, 128, 1, 255]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.float32([-3.0, 0.2, 4.5]), ("from -3 to 4.5", "Set output.activation to 'sigmoid'")),
        (np.float32([0.1, np.nan, 0.2]), ("from nan to nan", "from 0 to 1")),
        (np.float32([0.1, 1.001]), ("from 0.1 to 1.001",)),
        (np.uint16([0, 65535]), ("dtype uint16", "floats from 0 to 1, or uint8")),
        (np.bool_([False, True]), ("dtype bool",)),
    ],
)
def test_what_is_no_probability_is_refused(tmp_path, values, told):
    """Logits compared at 0.5 give figures that look right and are not."""
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, values)
    assert all(part in str(refused.value) for part in ("prediction.zarr'", *told))


def test_two_channels_are_refused(tmp_path):
    """Which of them is the membrane is not for us to guess."""
    with pytest.raises(ConfigError, match="2 channels"):
        Levels.of(stored(tmp_path, "prediction", np.zeros((2, 3, 4, 5), np.uint8)))

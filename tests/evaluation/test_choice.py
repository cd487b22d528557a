import numpy as np
import pytest
import zarr

from pipeline.core.volume import Space
from pipeline.evaluation.choice import chosen
from pipeline.evaluation.evaluation import compare
from pipeline.volumes.volume import Volume, open_volume


def stored(folder, array, name, scale=None):
    """A volume, with a scale where one is given."""
    zarr.create_array(str(folder / f"{name}.zarr"), data=array)
    volume = open_volume(str(folder / f"{name}.zarr"))
    if scale is None:
        return volume
    described = volume.description.__class__(
        **{**vars_of(volume.description), "space": Space(scale, (0.0,) * 3, ("nanometer",) * 3)}
    )
    return Volume(described, volume.array)


def vars_of(value):
    """The fields of a frozen value with slots."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


@pytest.mark.parametrize(
    ("values", "scale", "expected"),
    [
        ([0, 255], None, ("mask", "yx", "slices")),
        ([0, 1, 2], None, ("instances", "zyx", "volume")),
        ([0, 1, 2], (50.0, 4.0, 4.0), ("instances", "yx", "slices")),
        ([0, 1, 2], (8.0, 8.0, 8.0), ("instances", "zyx", "volume")),
    ],
)
def test_labels_are_taken_for_what_they_hold_and_slices_for_how_far_apart_they_are(tmp_path, values, scale, expected):
    """The stated rule: a user who says nothing gets what the field would do, and is told."""
    labels = np.random.default_rng(0).choice(np.array(values, dtype=np.uint8), (4, 8, 8))
    prediction = stored(tmp_path, np.full((4, 8, 8), 0.5, np.float32), "prediction", scale)
    rule = chosen(prediction, stored(tmp_path, labels, "labels"))
    assert (rule.labels_are, rule.neighbours, rule.segments) == expected


def test_what_is_said_is_not_guessed(tmp_path):
    """Two ids may be two instances of one cell type after all."""
    labels = stored(tmp_path, np.array([[[0, 7], [7, 0]]], dtype=np.uint8), "labels")
    prediction = stored(tmp_path, np.full((1, 2, 2), 0.5, np.float32), "prediction")
    rule = chosen(prediction, labels, labels_are="instances", neighbours="zyx", segments="volume")
    assert (rule.labels_are, rule.neighbours, rule.segments) == ("instances", "zyx", "volume")


def test_stored_volumes_are_compared_and_what_they_were_taken_for_is_told(tmp_path):
    """The rows say it, and so does the JSON."""
    mask = np.full((2, 12, 12), 255, dtype=np.uint8)
    mask[:, :, 5:7] = 0
    stored(tmp_path, mask, "labels")
    stored(tmp_path, (mask == 0).astype(np.float32), "prediction")
    found = compare(str(tmp_path / "prediction.zarr"), str(tmp_path / "labels.zarr"))
    assert found.v_rand.best == 1.0
    assert ("taken for", "membrane against mask; touching along yx, segments by slices") in found.rows()
    assert found.to_dict()["rule"]["labels_are"] == "mask"

import json

import numpy as np
import pytest
import zarr
from scipy import ndimage

from pipeline.core.geometry.box import Box
from pipeline.core.targets import membranes
from pipeline.errors import ConfigError
from pipeline.training import preparation
from pipeline.training.border import border_weight
from pipeline.training.preparation import TargetRule, prepare, target_rule
from pipeline.training.recipe import DataConfig, LossConfig
from pipeline.volumes.volume import open_volume
from tests.training.training_cases import cells

EVEN = (1.0, 1.0, 1.0)


@pytest.fixture
def labels(tmp_path):
    """Cells as a volume."""
    zarr.create_array(str(tmp_path / "labels.zarr"), data=cells(), chunks=(8, 16, 16))
    return open_volume(str(tmp_path / "labels.zarr"))


def rule(**changed):
    """Membranes of instances in a volume, with border weights."""
    given = {"target": "membrane", "labels_are": "instances", "neighbours": "zyx", "ignore": None, "classes": 1}
    return TargetRule(**{**given, "sigma": 2.0, "sampling": EVEN, **changed})


def test_blocks_give_what_the_whole_gives(labels, tmp_path, monkeypatch):
    """Membranes and weights do not end where a block does: each sees its neighbours, and cells beyond."""
    box = Box((0, 0, 0), (24, 40, 36))
    ids = cells()[:, :, :36]
    monkeypatch.setitem(preparation.BLOCK, "zyx", (7, 16, 11))
    found = prepare(labels, box, rule(), tmp_path / "prepared")
    membrane = membranes(ids)
    assert np.array_equal(found.target(), membrane)
    expected = border_weight(np.where(membrane, 0, ids), sigma=2.0, sampling=EVEN)
    assert np.abs(found.border() - expected).max() < 1e-3  # float16
    assert found.counts == (int((membrane == 0).sum()), int(membrane.sum()))


def test_labels_beyond_the_box_are_not_seen(labels, tmp_path):
    """They may be those of the validation."""
    found = prepare(labels, Box((0, 0, 0), (10, 40, 40)), rule(), tmp_path / "prepared")
    assert not found.target()[9, 5, 5]  # instances end at z 10


def test_what_an_earlier_sitting_prepared_is_taken_and_what_it_did_not_finish_is_made(labels, tmp_path):
    """A kill half way leaves files, but no record of them."""
    box, folder = Box((0, 0, 0), (24, 40, 40)), tmp_path / "prepared"
    first = prepare(labels, box, rule(), folder)
    written = first.target_path.stat().st_mtime_ns
    assert prepare(labels, box, rule(), folder) == first
    assert first.target_path.stat().st_mtime_ns == written
    next(folder.glob("*.json")).unlink()
    first.target_path.write_bytes(b"torn")
    assert np.array_equal(prepare(labels, box, rule(), folder).target(), membranes(cells()))


def test_another_rule_is_another_file(labels, tmp_path):
    """A rule that changed must not meet old targets."""
    box, folder = Box((0, 0, 0), (24, 40, 40)), tmp_path / "prepared"
    paths = {prepare(labels, box, r, folder).target_path for r in (rule(), rule(target="foreground"), rule(sigma=3.0))}
    assert len(paths) == 3


def test_a_mask_s_cells_are_its_connected_parts_slice_by_slice():
    """As in ISBI 2012, where 0 is membrane and 255 cell: two cells that touch only in the next slice are two."""
    mask = np.full((2, 20, 20), 255, dtype=np.uint8)
    mask[0, :, 9:11] = 0
    target, weight = rule(labels_are="mask", neighbours="yx").apply(mask)
    assert np.array_equal(target == 1, mask == 0)
    parts = ndimage.label(mask[0])[0]
    assert np.allclose(weight[0], border_weight(parts, sigma=2.0, sampling=(1.0, 1.0)))
    assert not weight[1].any()


def test_classes_are_taken_as_they_are_and_refused_beyond_the_network_s(labels):
    """A class that there is no channel for would be learnt as another."""
    found, weight = rule(target="classes", classes=3, sigma=None, ignore=9).apply(np.array([[[0, 1, 2, 9]]]))
    assert found.ravel().tolist() == [0, 1, 2, 255]
    assert weight is None
    with pytest.raises(ConfigError, match="0 to 3"):
        rule(target="classes", classes=3, sigma=None).apply(np.array([[[0, 3]]]))


@pytest.mark.parametrize(
    ("ndim", "sizes", "expected"),
    [(3, (10.0, 10.0, 10.0), "zyx"), (3, (50.0, 4.0, 4.0), "yx"), (2, (10.0, 10.0, 10.0), "yx")],
)
def test_instances_touch_along_z_where_slices_are_near(ndim, sizes, expected):
    """The stated rule of `neighbours: auto`, and lengths in units of the finest axis that counts."""
    volume = {"image": "a", "labels": "b"}
    found = target_rule(DataConfig(volumes=[volume]), LossConfig(), classes=1, ndim=ndim, sizes=sizes)
    assert found.neighbours == expected
    assert found.sampling[2] == 1.0


def test_the_digest_is_of_the_labels(labels, tmp_path):
    """The checkpoint says what it was made of."""
    box = Box((0, 0, 0), (24, 40, 40))
    one = prepare(labels, box, rule(), tmp_path / "one")
    changed = cells()
    changed[5, 5, 5] = 77
    zarr.create_array(str(tmp_path / "changed.zarr"), data=changed, chunks=(8, 16, 16))
    other = prepare(open_volume(str(tmp_path / "changed.zarr")), box, rule(), tmp_path / "other")
    assert one.sha256 != other.sha256
    assert json.loads(next((tmp_path / "one").glob("*.json")).read_text())["sha256"] == one.sha256


def test_what_is_ignored_tells_nothing_of_what_lies_beside_it():
    """No membrane at the edge of what was labelled, no border weight along it, and no cell joined through it."""
    ids = np.array([[[7, 7, 7, 99, 99, 8, 8]]])
    target, weight = rule(ignore=99, neighbours="yx").apply(ids)
    assert target.ravel().tolist() == [0, 0, 0, 255, 255, 0, 0]
    alone = rule(neighbours="yx").apply(np.where(ids == 99, 0, ids))[1]
    assert np.array_equal(weight, alone)
    mask = np.array([[[255, 255, 9, 255, 255]]], dtype=np.uint8)
    joined = rule(labels_are="mask", neighbours="yx", ignore=9).apply(mask)[1]
    assert joined.any()
    negative = rule(ignore=-1, neighbours="yx").apply(np.where(ids == 99, -1, ids))
    assert np.array_equal(negative[0], target)
    assert np.array_equal(negative[1], weight)


def test_a_mask_s_cell_is_one_however_large_its_slice(tmp_path, monkeypatch):
    """A ring that closes outside a block would be two cells in it, with a border between them."""
    monkeypatch.setitem(preparation.BLOCK, "yx", (1, 16, 16))
    mask = np.zeros((1, 60, 60), dtype=np.uint8)
    mask[0, 5:55, 5:55] = 255
    mask[0, 8:52, 8:40] = 0
    zarr.create_array(str(tmp_path / "mask.zarr"), data=mask, chunks=(1, 16, 16))
    found = prepare(
        open_volume(str(tmp_path / "mask.zarr")),
        Box.of_shape(mask.shape),
        rule(labels_are="mask", neighbours="yx"),
        tmp_path / "prepared",
    )
    assert not found.border().any()


def test_a_torn_record_never_stands(labels, tmp_path, monkeypatch):
    """It is renamed into place, so a kill leaves none or a whole one."""
    seen = []
    monkeypatch.setattr(preparation, "replace", lambda path, content: seen.append((path.name, content)))
    prepare(labels, Box((0, 0, 0), (8, 8, 8)), rule(), tmp_path / "prepared")
    assert len(seen) == 1
    assert not list((tmp_path / "prepared").glob("*.json"))

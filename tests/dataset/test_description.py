"""What describes a volume and computes nothing is brought up to date where readers find it, and no tile is computed for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import zarr
from zarr.storage import LocalStore

from pipeline.outputs.rundir import RunDirectory
from pipeline.places.objects import ObjectStore
from pipeline.publishing.publication import read_current
from tests.dataset.dataset_cases import SHAPE, DataSet, make_dataset
from tests.dataset.test_reprocess import go
from tests.pipeline_cases import random_volume


def image_of_scale(path: Path, z: float) -> None:
    """An image of one level; the voxel size of one that is there is mended."""
    if not path.exists():
        zarr.create_group(LocalStore(path)).create_array("0", data=random_volume(SHAPE), chunks=(8, 12, 12))
    group = zarr.open_group(LocalStore(path), mode="r+")
    axes = [{"name": name, "type": "space", "unit": "um"} for name in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [z, 4.0, 4.0]}]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}


@pytest.fixture(params=["link", "pointer"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> DataSet:
    """One image, to be published in either way."""
    made = make_dataset(tmp_path, volumes=0)
    image_of_scale(made.volume("v00"), 0.0)
    if request.param == "link":
        return made
    return made.having(
        output={"url": f"memory://told-{tmp_path.name.replace('_', '-')}/segmented"}, staging=str(tmp_path / "staging")
    )


def what_readers_see(dataset: DataSet) -> dict[str, Any]:
    """The document of the image that is current."""
    image = read_current(f"{dataset.content['output']['url']}/v00").image
    content = ObjectStore(image).read("zarr.json") if "://" in image else (Path(image) / "zarr.json").read_bytes()
    return json.loads(content)["attributes"]


def scale_of(attributes: dict[str, Any]) -> list[float]:
    """The voxel size that an image's metadata tell."""
    return attributes["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"]


def test_a_voxel_size_that_was_mended_reaches_readers_without_a_tile(dataset, pooled, monkeypatch):
    """The old one stood in the output for ever: the fingerprint is the same, and the version was there and verified."""
    assert go(dataset) == {"v00": "done"}
    assert scale_of(what_readers_see(dataset)) == [1.0, 1.0, 1.0]
    fingerprint = read_current(f"{dataset.content['output']['url']}/v00").fingerprint
    image_of_scale(dataset.volume("v00"), 30.0)
    home = next((dataset.config.home / "v00" / "versions").iterdir())
    ledger = (home / "v00.ome.zarr.run" / "ledger.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.dataset.reprocess.open_pool", lambda *_: pytest.fail("workers are asked for"))
        assert go(dataset) == {"v00": "skipped"}
    seen = what_readers_see(dataset)
    assert scale_of(seen) == [30.0, 4.0, 4.0]
    assert seen["ome"]["multiscales"][0]["axes"][0]["unit"] == "micrometer"
    assert read_current(f"{dataset.content['output']['url']}/v00").fingerprint == fingerprint
    assert (home / "v00.ome.zarr.run" / "ledger.jsonl").read_bytes() == ledger
    assert RunDirectory(home / "v00.ome.zarr").load_plan().source.space.scale == (30.0, 4.0, 4.0)
    reason = json.loads((dataset.config.home / "summary.json").read_text())["outcomes"][0]["reason"]
    assert "brought up to a voxel size of 30 x 4 x 4 micrometer, from unknown" in reason
    assert go(dataset) == {"v00": "skipped"}
    assert "brought up" not in json.loads((dataset.config.home / "summary.json").read_text())["outcomes"][0]["reason"]


def test_metadata_that_cannot_be_brought_up_are_said_to_be_stale(dataset, pooled, monkeypatch):
    """A store that may only be read shows what it showed, and the summary says so."""
    assert go(dataset) == {"v00": "done"}
    image_of_scale(dataset.volume("v00"), 30.0)
    with monkeypatch.context() as patch:
        patch.setattr(
            "pipeline.stages.describe", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
        )
        assert go(dataset) == {"v00": "skipped"}
    reason = json.loads((dataset.config.home / "summary.json").read_text())["outcomes"][0]["reason"]
    assert "its metadata still tell a voxel size of unknown, the input tells 30 x 4 x 4 micrometer" in reason
    assert go(dataset) == {"v00": "skipped"}
    assert scale_of(what_readers_see(dataset)) == [30.0, 4.0, 4.0]

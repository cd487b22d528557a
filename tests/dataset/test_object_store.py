"""A dataset whose inputs and outputs are on an object store: computed in a folder, published there, and found again there."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.places.objects import ObjectStore
from pipeline.places.stores import s3
from pipeline.publishing.publication import read_current
from tests.dataset.dataset_cases import DataSet, make_dataset
from tests.dataset.test_reprocess import go


def image_of(output: str, name: str) -> str:
    """The URL of the image that readers of a volume are sent to."""
    return read_current(f"{output}/{name}").image


def array_at(url: str) -> np.ndarray:
    """The voxels of an image there."""
    return zarr.open_group(url, mode="r")["0"][...]


@pytest.fixture
def dataset(tmp_path: Path, bucket: str) -> DataSet:
    """Two volumes in a bucket, and outputs to another place in it."""
    made = make_dataset(tmp_path, volumes=2)
    s3().put(str(tmp_path / "volumes"), f"{bucket}/volumes", recursive=True)
    return made.having(
        volumes=f"{bucket}/volumes", output={"url": f"{bucket}/segmented"}, staging=str(tmp_path / "staging")
    )


@pytest.mark.slow
def test_a_data_set_on_an_object_store_is_published_there_and_known_by_what_lies_there(dataset, tmp_path):
    """Skipping, a lost staging folder, a new model and going back need no copy of an image here, and compute nothing twice."""
    output = dataset.content["output"]["url"]
    assert Counter(go(dataset).values()) == {"done": 2}
    first = image_of(output, "v01")
    expected = dataset.expected("v01", seed=1)
    assert np.abs(array_at(first) - expected).max() <= 1e-5 * np.ptp(expected)
    assert not list((tmp_path / "staging").rglob("*.ome.zarr"))
    assert {"summary.html", "summary.json", "summary.csv"} <= set(ObjectStore(output).children(""))
    assert ObjectStore(first.removesuffix(".ome.zarr") + ".ome.zarr.run").read("report.html")

    shutil.rmtree(tmp_path / "staging")
    assert Counter(go(dataset).values()) == {"skipped": 2}

    dataset.register(seed=2)
    assert Counter(go(dataset).values()) == {"done": 2}
    assert image_of(output, "v01") != first
    shutil.rmtree(tmp_path / "staging")
    back = dataset.having(model={"version": 1})
    assert Counter(go(back).values()) == {"done": 2}
    assert image_of(output, "v01") == first
    assert [outcome["tiles"] for outcome in _summary(output)["outcomes"]] == [0, 0]


def test_a_version_that_was_damaged_in_the_store_is_not_shown_again(dataset, tmp_path):
    """Going back trusts no name: every object is compared with the ledger before readers are sent to it."""
    output = dataset.content["output"]["url"]
    dataset = dataset.having(volumes=f"{dataset.content['volumes']}/v00.zarr")
    go(dataset)
    first = image_of(output, "v00")
    dataset.register(seed=2)
    go(dataset)
    store = ObjectStore(first)
    chunk = next(key for key in store.sizes() if "/c/" in key)
    content = store.read(chunk)
    store.write(chunk, bytes(len(content)))
    second = image_of(output, "v00")
    assert go(dataset.having(model={"version": 1})) == {"v00": "failed"}
    assert "is not in the store as its run wrote it" in _summary(output)["outcomes"][0]["reason"]
    assert image_of(output, "v00") == second


@pytest.fixture
def in_memory(tmp_path: Path, request: pytest.FixtureRequest) -> DataSet:
    """One volume, and an output in a store of this process."""
    made = make_dataset(tmp_path, volumes=1)
    url = f"memory://{request.node.name.translate(str.maketrans('', '', '_[]-'))}/segmented"
    return made.having(output={"url": url}, staging=str(tmp_path / "staging"))


def test_a_version_that_somebody_deleted_in_the_store_is_made_again(in_memory, tmp_path, pooled):
    """There and in the staging folder, as errors say; the pointer that still names it does not make it done."""
    output = in_memory.content["output"]["url"]
    go(in_memory)
    first = read_current(f"{output}/v00")
    store = ObjectStore(f"{output}/v00")
    for key in store.sizes("versions"):
        store.delete(key)
    shutil.rmtree(tmp_path / "staging" / "v00" / "versions")
    assert go(in_memory) == {"v00": "done"}
    assert read_current(f"{output}/v00").published > first.published
    expected = in_memory.expected("v00", seed=1)
    assert np.abs(array_at(first.image) - expected).max() <= 1e-5 * np.ptp(expected)
    assert go(in_memory) == {"v00": "skipped"}


def test_a_model_whose_versions_removal_was_killed_may_be_set_back(in_memory, tmp_path, pooled, monkeypatch):
    """What it left is neither taken for a version nor for tiles that are done."""
    dataset = in_memory.having(keep={"versions": 0, "days": 0})
    go(dataset)
    first = image_of(dataset.content["output"]["url"], "v00")
    dataset.register(seed=2)
    delete = ObjectStore.delete

    def dies(self, key):
        delete(self, key)
        if key.endswith("ome.zarr/zarr.json"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "delete", dies)
        with pytest.raises(KeyboardInterrupt):
            go(dataset)
    back = dataset.having(model={"version": 1})
    assert go(back) == {"v00": "done"}
    assert image_of(dataset.content["output"]["url"], "v00") == first
    expected = dataset.expected("v00", seed=1)
    assert np.abs(array_at(first) - expected).max() <= 1e-5 * np.ptp(expected)


@pytest.mark.parametrize("then", ["again", "another model"])
def test_a_go_that_was_killed_right_after_the_switch_leaves_no_image_here(
    in_memory, tmp_path, pooled, monkeypatch, then
):
    """The staging disk would hold each image for as long as its version lives."""

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.publishing.by_pointer.PointedPublication.free", dies)
        with pytest.raises(KeyboardInterrupt):
            go(in_memory)
    (image,) = (tmp_path / "staging").rglob("*.ome.zarr")
    if then == "again":
        assert go(in_memory) == {"v00": "skipped"}
    else:
        in_memory.register(seed=2)
        assert go(in_memory) == {"v00": "done"}
    assert not list((tmp_path / "staging").rglob("*.ome.zarr"))
    assert image.with_name("v00.ome.zarr.run").is_dir()


def _summary(output: str) -> dict:

    return json.loads(ObjectStore(output).read("summary.json"))

"""A dataset whose inputs and outputs are on an object store: computed in a folder, published there, and found again there."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.storage.objects import ObjectStore, s3
from pipeline.storage.publication import read_current
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


def _summary(output: str) -> dict:


    return json.loads(ObjectStore(output).read("summary.json"))

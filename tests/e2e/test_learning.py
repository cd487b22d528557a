"""From labels to a prediction, with nothing but the command line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from ruamel.yaml import YAML

from pipeline.config import read_config
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.registry import versions
from pipeline.training.recipe import TrainConfig
from tests.e2e.commands import Command
from tests.training.training_cases import cells, image_of, recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(migrated_home, tmp_path_factory):
    """Where Prefect keeps its database."""
    return shutil.copytree(migrated_home, tmp_path_factory.mktemp("prefect"), dirs_exist_ok=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, home):
    """A folder in which `halotile train` ran: its recipe names a registry, and a path by an environment variable."""
    folder = tmp_path_factory.mktemp("trained")
    config = recipe(folder, steps=60, register_as={"registry": str(folder / "models"), "name": "tiny"})
    content = json.loads(config.model_dump_json(exclude_none=True).replace(str(folder), "${TINY_DATA}"))
    with (folder / "train.yaml").open("w") as file:
        YAML(typ="safe").dump(content, file)
    os.environ["TINY_DATA"] = str(folder)
    command = Command(["train", folder / "train.yaml", "--set", "every.picture=20"], home)
    assert command.wait() == 0, command.error
    return folder, command


def names(folder):
    """Of what a folder holds."""
    return {path.name for path in folder.iterdir()}


def test_a_trained_network_is_scored_and_registered(trained):
    """One command: checkpoint, figures, TensorBoard's logs, and a version in the registry."""
    folder, command = trained
    assert "V_rand" in command.out
    assert "registered  tiny, version 1" in command.out
    assert "training: 60 of 60, loss" in command.error
    assert {"checkpoint.safetensors", "metrics.json", "evaluation.json", "logs"} <= names(folder / "out")
    (entry,) = versions(folder / "models")
    assert str(folder) not in json.dumps(load_checkpoint(entry.path).provenance)  # a machine's paths stay there
    assert entry.metrics["auc"] == json.loads((folder / "out" / "metrics.json").read_text())["auc"] > 0.9
    assert {"recipe.json", "evaluation.json"} <= names(entry.path.parent)


def test_the_same_command_again_finds_all_done(trained, home):
    """It neither trains nor registers a second time."""
    folder, _ = trained
    command = Command(["train", folder / "train.yaml"], home)
    assert command.wait() == 0, command.error
    assert "training:" not in command.error
    assert len(versions(folder / "models")) == 1


def test_a_run_names_a_registered_model_and_its_prediction_is_evaluated(trained, home, tmp_path):
    """`model: {name, version}` in place of a path; then `evaluate` against labels in another format."""
    folder, _ = trained
    run = {
        "input": {"url": str(folder / "image.zarr")},
        "output": {"url": str(tmp_path / "out.zarr"), "activation": "sigmoid", "dtype": "uint8"},
        "model": {"name": "tiny", "version": "latest", "registry": str(folder / "models")},
    }
    with (tmp_path / "run.yaml").open("w") as file:
        YAML(typ="safe").dump(run, file)
    command = Command(["run", tmp_path / "run.yaml"], home)
    assert command.wait() == 0, command.error
    plan = json.loads((tmp_path / "out.zarr.run" / "plan.json").read_text())
    assert "models/tiny/1/checkpoint.safetensors" in json.dumps(plan)
    tifffile.imwrite(tmp_path / "labels.tif", cells(), metadata={"axes": "ZYX"})
    arguments = ["evaluate", tmp_path / "out.zarr", tmp_path / "labels.tif", "--output", tmp_path / "found.json"]
    command = Command([*arguments, "--box", "16:24,0:40,0:40", "--thresholds", "0.5"], home)
    assert command.wait() == 0, command.error
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["pixels"]["auc"] > 0.9
    assert found["box"] == {"start": [16, 0, 0], "stop": [24, 40, 40]}
    assert "variation of information" in command.out


def test_an_unknown_model_is_refused_by_what_there_is(trained, home, tmp_path):
    """A misspelt name must not cost a plan."""
    folder, _ = trained
    run = tmp_path / "run.yaml"
    run.write_text(
        f"input: {{url: {folder}/image.zarr}}\noutput: {{url: {tmp_path}/out.zarr}}\n"
        f"model: {{name: tinny, registry: {folder}/models}}\n"
    )
    command = Command(["plan", run], home)
    assert command.wait() == 2
    assert "tiny" in command.error


def test_a_volume_is_converted_and_a_checkpoint_exported(trained, home, tmp_path):
    """TIFF to OME-Zarr, voxel for voxel; the package's own test is in tests/test_export.py."""
    folder, _ = trained
    tifffile.imwrite(tmp_path / "image.tif", image_of(cells()), metadata={"axes": "ZYX"})
    target = tmp_path / "image.ome.zarr"
    command = Command(["convert", tmp_path / "image.tif", target, "--voxel-size-nm", "10", "10", "10"], home)
    assert command.wait() == 0, command.error
    assert np.array_equal(zarr.open_array(str(target / "0"))[:], image_of(cells()))
    arguments = [folder / "out" / "checkpoint.safetensors", tmp_path / "tiny.zip", "--license", "MIT"]
    command = Command(["export", *arguments, "--sample", target], home)
    assert command.wait() == 0, command.error
    assert (tmp_path / "tiny.zip").stat().st_size > 1000
    command = Command(["models", folder / "models"], home)
    assert command.wait() == 0
    assert "tiny 1" in command.out


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["steps=0"], "steps: should be greater than or equal to 1"),
        (["network.depht=2"], "did you mean 'depth'?"),
        (["patch=[8, 15, 16]"], "the next that it can is (8, 16, 16)"),
        (["data.target=classes"], "has none: set it to 0"),
        (["output=/proc/nowhere"], "cannot be written"),
    ],
)
def test_a_recipe_that_cannot_train_is_refused(trained, home, overrides, told):
    """Status 2, and what to do."""
    folder, _ = trained
    command = Command(["train", folder / "train.yaml", *(a for o in overrides for a in ("--set", o))], home)
    assert command.wait() == 2
    assert told in command.error
    assert "Traceback" not in command.error


def test_the_recipes_that_ship_are_recipes(monkeypatch):
    """Their keys and their patches; the data need not be there."""
    monkeypatch.setenv("HALOTILE_TEST_DATA", "/data")
    folder = Path(__file__).parents[2] / "configs"
    isbi = read_config(TrainConfig, folder / "train-isbi-2d.yaml", ["network.width=64"])
    assert isbi.network.architecture.width == 64
    read_config(TrainConfig, folder / "train-em-3d.yaml")
    paper = read_config(TrainConfig, folder / "train-isbi-2d-paper.yaml")
    assert (paper.optimiser.name, paper.optimiser.momentum, paper.batch) == ("sgd", 0.99, 1)

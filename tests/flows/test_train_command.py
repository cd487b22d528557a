"""The 16-bit trap as a user meets it: refused, forced, and told of wherever the network goes from there."""

import json

import numpy as np
import pytest
import zarr

from flows.commands.app import app
from flows.commands.status import status
from pipeline.outputs.rundir import RunDirectory
from pipeline.reports.page import page as page_of
from pipeline.stages.report import summary
from tests.training.training_cases import cells, image_of, recipe


@pytest.fixture
def command(capsys):
    """The command, in this process: its status, and what it said."""

    def run(*arguments):
        code = status(
            lambda: app([*map(str, arguments)], exit_on_error=False, print_error=True, result_action="return_value")
        )
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def recipe_file(tmp_path):
    """A recipe of one that knows nothing of the trap: values / 65535, and a network that cannot move far."""
    config = recipe(
        tmp_path,
        steps=10,
        normalize={"mode": "minmax"},
        optimiser={"name": "adam", "learning_rate": 1e-12, "momentum": 0.9},
        register_as={"registry": str(tmp_path / "models"), "name": "tiny"},
    )
    image = image_of(cells()).astype(np.uint16) * 16
    zarr.create_array(str(tmp_path / "image.zarr"), data=image, chunks=(8, 16, 16), overwrite=True)
    path = tmp_path / "train.yaml"
    path.write_text(config.model_dump_json(exclude_none=True))
    return path


def test_what_teaches_nothing_is_refused_and_what_was_forced_is_told_of_everywhere(recipe_file, command, tmp_path):
    """No page on the way from labels to a prediction is green by mistake."""
    code, _, told = command("train", recipe_file)
    assert code == 2
    assert "image.zarr" in told
    assert "normalize.mode to 'percentile'" in told
    assert "--force-range" in told

    code, said, told = command("train", recipe_file, "--force-range")
    assert code == 0, told
    assert "learned: false" in said.splitlines()[-1]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["learned"] is False
    code, said, told = command("train", recipe_file)
    assert code == 0, told
    assert "learned: false" in said.splitlines()[-1]

    _, said, _ = command("models", tmp_path / "models")
    assert "learned: false" in said
    _, said, _ = command("inspect", tmp_path / "out" / "checkpoint.safetensors")
    assert "false: its training found nothing" in said
    assert "uint16, as the network sees it 0.0" in said

    run = tmp_path / "run.yaml"
    other = tmp_path / "other.zarr"
    zarr.create_array(str(other), data=image_of(cells()), chunks=(8, 16, 16))
    content = {
        "input": {"url": str(other)},
        "output": {"url": str(tmp_path / "out.zarr")},
        "model": {"name": "tiny", "registry": str(tmp_path / "models")},
        "cluster": {"workers": 1},
    }
    run.write_text(json.dumps(content))
    code, said, told = command("plan", run)
    assert code == 0, told
    said = " ".join(said.split())  # rows are folded
    assert "learned: false" in said
    assert "seen nothing like this volume" in said  # 8 bits, of which the network saw a sixteenth
    directory = RunDirectory(str(tmp_path / "out.zarr"))
    plan = directory.load_plan()
    page = page_of(plan, summary(plan, directory))
    assert "learned: false" in page
    assert "far wider than" in page
    assert [warning for warning in summary(plan, directory)["warnings"] if "learned: false" in warning]

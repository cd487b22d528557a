"""A published package of bioimage.io from the command line: many tiles give what was published."""

import json

import numpy as np
import pytest

from tests.e2e.test_run import command
from tests.networks.package_cases import broad_package
from tests.pipeline_cases import Run, save_array

BROAD = "models/bioimageio_unet2d_nuclei_broad"


@pytest.fixture(scope="module")
def package(shared_data, tmp_path_factory):
    """The nuclei package, with the file of its network's program in place of the scripted one, which is not at hand."""
    return broad_package(shared_data / BROAD, tmp_path_factory.mktemp("package") / "nuclei")


def run_of(folder, package, **sections) -> Run:
    """A run over the published input, in tiles of 128."""
    volume = np.load(package / "test_input.npy")[0]
    content = {
        "input": {"url": str(save_array(folder / "in.zarr", volume, (1, 128, 128)))},
        "output": {"url": str(folder / "out.zarr"), "shards": "none", **sections.pop("output", {})},
        "model": {"checkpoint": str(package)},
        "tiles": {"core": [1, 128, 128]},
        "compute": {"device": "cpu", "dtype": "float32", "threads": 1},
        "cluster": {"workers": 1, "memory_gb": 4},
        **sections,
    }
    (folder / "run.yaml").write_text(json.dumps(content))
    return Run(folder, content, None, volume)


@pytest.mark.network
def test_many_tiles_of_a_published_package_are_its_published_output(pooled, package, tmp_path, capsys):
    """Its rule with the volume's statistics, its network, its sigmoid; the YAML says none of them."""
    assert command("import", package, tmp_path / "nuclei.safetensors") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "declared y 32, x 32; needed y 58, x 58: y 26, x 26 more than declared" in shown
    run = run_of(tmp_path, package)
    assert command("run", run.yaml, "--no-prefect") == 0
    expected = np.load(package / "test_output.npy")[0]
    assert run.plan.grid.counts == (1, 4, 4)
    assert np.abs(run.array().reshape(expected.shape) - expected).max() <= 1e-5

"""A published package of bioimage.io from the command line: many tiles give what was published."""

import json

import numpy as np
import pytest

from pipeline.errors import ModelError
from pipeline.registry import register
from tests.e2e.test_run import command
from tests.networks.package_cases import broad_package, small_package, zipped
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


def test_inspect_shows_a_package_beside_what_it_declares(tmp_path, capsys):
    """Whatever somebody has of it: stride, halo and extents by its graph, weights, processing, licence, citation."""
    package = small_package(tmp_path / "small")
    shown = []
    for source in (package, package / "rdf.yaml", zipped(package, tmp_path / "small.zip")):
        assert command("inspect", source) == 0
        shown.append(" ".join(capsys.readouterr().out.split()))
    for told in (
        "stride 1 x 2 x 2",
        "halo declared y 2, x 2; needed y 4, x 4: y 2, x 2 more than declared",
        "extents y declared 32 + n 2, multiples of 2 by the graph; x declared",
        "weights taken torchscript, 'weights.pt2'",
        "package a small network, format 0.5.4, licence MIT",
        "cite nothing 10.5281/zenodo.5108853",
        "of the range off the published output, over 32 x 40 voxels",
    ):
        assert all(told in one for one in shown), told


def test_a_door_for_checkpoints_of_ours_says_that_a_package_is_none(tmp_path, capsys):
    """An export is of our own UNet, and a registry holds files."""
    package = small_package(tmp_path / "small")
    for source in (package, zipped(package, tmp_path / "small.zip")):
        assert command("export", source, tmp_path / "out", "--license", "MIT") == 2
        assert "is an imported network, of another library" in capsys.readouterr().err
    with pytest.raises(ModelError, match="is a folder, and a registry holds files"):
        register(tmp_path / "registry", "small", package)
    entry = register(tmp_path / "registry", "small", tmp_path / "small.zip")
    assert command("inspect", entry.path) == 0
    assert "a package of bioimage.io" in capsys.readouterr().out

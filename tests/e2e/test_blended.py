"""Networks that look at their whole input, by blended windows: through the command line, and nowhere shown as exact."""

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr
from torch import nn

from pipeline import stages
from pipeline.cluster.worker import let_go
from pipeline.config import validated
from pipeline.core.network.unet import Architecture
from pipeline.core.plan import Plan
from pipeline.core.tiles.lattice import BlendedWindow
from pipeline.dataset.pass_ import volumes_of
from pipeline.dataset.settings import DatasetConfig
from pipeline.dataset.volume import _refuse_inexact
from pipeline.errors import StorageError
from pipeline.inference import session
from tests.dataset.dataset_cases import make_dataset, shared_with
from tests.e2e.test_run import command
from tests.networks.network_cases import Normed, Residual, randomise, save_program
from tests.networks.test_blending import Slices, by_a_loop
from tests.pipeline_cases import Run, done_entries, make_run, stored_objects

SHAPE = (21, 27, 30)
WINDOW = {"core": [8, 6, 8], "overlap": [8, 8, 8]}
EQUAL = 1e-6
"""Of the output's range, float32."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The network's file, imported once, and the network."""
    folder = tmp_path_factory.mktemp("normed")
    network = randomise(Normed()).float()
    save_program(folder / "net.pt2", network)
    assert command("import", folder / "net.pt2", folder / "net.safetensors") == 0
    return folder / "net.safetensors", network


def blended_run(folder, checkpoint, **sections) -> Run:
    """A run of it over a volume whose contrast differs from place to place."""
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, SHAPE)
    volume = (noise * np.linspace(0.1, 1, SHAPE[1])[:, np.newaxis]).astype(np.uint8)
    run = make_run(folder, architecture=Architecture(3, 1, 1), shape=SHAPE, volume=volume)
    model = {"checkpoint": str(checkpoint[0]), "exact": False, "window": WINDOW}
    content = {**run.content, "model": model, "compute": {"device": "cpu", "threads": 1, "dtype": "float32"}}
    return Run(folder, content, checkpoint[1], volume).having(**sections)


def expected(run: Run) -> np.ndarray:
    """A plain loop of sliding windows over the module, float64, (K, Z, Y, X)."""
    volume = torch.from_numpy(run.volume.astype(np.float32) / np.float32(255)).double()
    window = BlendedWindow((8, 6, 8), (8, 8, 8), "gaussian")
    return by_a_loop(randomise(Normed()), volume[..., None], window)


@pytest.fixture(scope="module")
def finished(workers, checkpoint, tmp_path_factory) -> Run:
    """A run that the command did, whole."""

    @contextmanager
    def shared(*_: object, **__: object):
        yield workers
        workers.client.run(let_go)

    run = blended_run(tmp_path_factory.mktemp("blended"), checkpoint, tiles={"core": [16, 12, 16]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "open_pool", shared)
        assert command("run", run.yaml, "--no-prefect") == 0
    return run


def test_the_output_is_that_of_a_plain_loop_over_the_module(finished):
    """And not of one pass: both are told in the report."""
    wanted = expected(finished)
    assert len(finished.plan.grid) == 2 * 3 * 2
    assert np.abs(finished.array() - wanted).max() <= EQUAL * np.ptp(wanted)
    report = json.loads((finished.directory.path / "report.json").read_text())
    assert report["exact"] is False
    assert 1e-3 < report["mismatch"]["largest"] < 2
    assert report["mismatch"]["windows"] >= 2
    page = (finished.directory.path / "report.html").read_text()
    assert "mismatch" in page
    assert "one pass over z, y, x" in page


def test_an_output_that_is_not_exact_says_so_wherever_it_is_seen(finished, capsys):
    """In its own attributes, the plan, and what verifies it."""
    mark = dict(zarr.open_group(str(finished.output), mode="r").attrs)["halotile"]
    assert mark == {"fingerprint": finished.plan.fingerprint, "state": "complete", "exact": False}
    assert command("verify", finished.yaml) == 0
    assert "not exact: blended windows, core 8 x 6 x 8, overlap 8 x 8 x 8, blend gaussian" in capsys.readouterr().out
    verification = json.loads((finished.directory.path / "verification.json").read_text())
    assert (verification["complete"], verification["exact"]) == (True, False)
    plan = finished.plan
    assert Plan.from_json(plan.to_json()) == plan
    assert {key: value for key, value in plan.identity().items() if key in ("model.exact", "model.window")} == {
        "model.exact": False,
        "model.window": {"core": [8, 6, 8], "overlap": [8, 8, 8], "blend": "gaussian"},
    }
    assert command("plan", finished.yaml, "--measure") == 0
    shown = capsys.readouterr().out
    assert "expected time" in shown
    assert "blended windows of 16 x 14 x 16" in shown
    assert "24 windows, of which tiles that share them compute 120, 5.00 x" in shown


def test_bytes_are_the_same_by_other_tiles_and_after_a_run_that_was_cut(finished, checkpoint, pooled, tmp_path):
    """The lattice is the volume's: tiles, workers and sessions do not show. Other chunks would: they are given."""
    run = blended_run(
        tmp_path / "other", checkpoint, tiles={"core": [8, 24, 30]}, output={"chunks": [8, 12, 10], "shards": "none"}
    )
    assert command("run", run.yaml, "--no-prefect") == 0
    assert run.array().tobytes() == finished.array().tobytes()
    wanted = stored_objects(run.output)
    lines = run.directory.ledger_path.read_bytes().splitlines(keepends=True)
    run.directory.ledger_path.write_bytes(b"".join(lines[: len(lines) // 2]))
    assert command("run", run.yaml, "--no-prefect") == 0
    assert stored_objects(run.output) == wanted
    assert sorted(set(done_entries(run.directory))) == list(range(len(run.plan.grid)))


def test_automatic_tiles_are_of_whole_windows(checkpoint, tmp_path):
    """So that few windows are computed twice."""
    run = blended_run(tmp_path, checkpoint)
    stages.plan(run.now)
    assert all(core % step == 0 for core, step in zip(run.plan.core, WINDOW["core"], strict=True))


def test_what_cannot_be_blended_is_refused_in_words(checkpoint, tmp_path, capsys):
    """Windows for what can be exact, halos, extents that no pass takes, another window for tiles that are there."""

    def refusal(run: Run) -> str:
        assert command("plan", run.yaml) == 2
        return capsys.readouterr().err

    run = blended_run(tmp_path, checkpoint)
    assert "tiles.halo [8, 8, 8] was given, but model.exact is false" in refusal(run.having(tiles={"halo": [8, 8, 8]}))
    odd = {**WINDOW, "overlap": [8, 7, 8]}
    run = run.having(tiles={"halo": "auto"}, model={"window": odd})
    assert "windows of 13 voxels along y" in refusal(run)
    assert "set the overlap there to 8" in refusal(run)
    save_program(tmp_path / "local.pt2", randomise(Residual()))
    assert command("import", tmp_path / "local.pt2", tmp_path / "local.safetensors") == 0
    run = run.having(model={"window": WINDOW, "checkpoint": str(tmp_path / "local.safetensors")})
    assert "can be exact" in refusal(run)
    run = run.having(model={"exact": True, "checkpoint": str(checkpoint[0])})
    assert "window is given, but exact is not false" in refusal(run)
    run = run.having(model={"exact": False, "window": None})
    assert "no window says what is blended" in refusal(run)


class Unpadded(nn.Module):
    """Instance norm between convolutions that pad nothing: it gives less than it reads."""

    shape = (1, 1, 20, 20, 20)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv3d(1, 4, 3), nn.InstanceNorm3d(4), nn.Conv3d(4, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


def imported(path, network, shape=None):
    """A network's checkpoint, as `halotile import` writes it."""
    save_program(path.with_suffix(".pt2"), randomise(network), shape)
    assert command("import", path.with_suffix(".pt2"), path) == 0
    return str(path)


@pytest.mark.parametrize("door", ["plan", "run"])
def test_what_has_no_blended_windows_is_refused_before_anything_is_written(door, checkpoint, tmp_path, capsys):
    """Networks without padding, overlap of slices that are images of their own, other passes and other networks in a mean."""
    unpadded = imported(tmp_path / "unpadded.safetensors", Unpadded())
    flat = imported(tmp_path / "flat.safetensors", Slices(), (1, 1, 16, 16))
    run = blended_run(tmp_path, checkpoint)
    window = {"core": [1, 8, 8], "overlap": [0, 8, 8]}
    for model, compute, word in [
        ({"checkpoint": unpadded}, {}, "is a network without padding, of which a window gives less than it reads"),
        ({"checkpoint": flat, "window": {**window, "overlap": [2, 8, 8]}}, {}, "Set its first number to 0."),
        ({}, {"augment": "flips"}, "compute.augment is 'flips', but model.exact is false"),
        ({}, {"augment": "rotations"}, "compute.augment is 'rotations', but model.exact is false"),
        (
            {"checkpoint": None, "ensemble": [{"checkpoint": str(checkpoint[0])}, {"checkpoint": unpadded}]},
            {},
            "blended windows are of one network, and ensemble names several",
        ),
    ]:
        keys = {key: value for key, value in {**run.content["model"], **model}.items() if value is not None}
        content = {**run.content, "model": keys, "compute": {**run.content["compute"], **compute}}
        run.yaml.write_text(json.dumps(content))
        assert command(door, run.yaml, *(["--no-prefect"] if door == "run" else [])) == 2
        assert word in capsys.readouterr().err
        assert not run.output.exists()
        assert not run.directory.plan_path.exists()
    run.having(model={"checkpoint": flat, "window": window})  # the control: slices that share nothing are taken
    assert command("plan", run.yaml) == 0


def test_another_window_is_another_run(finished, capsys):
    """The control: it would give other values, so what is there is not gone on with."""
    other = json.loads(finished.yaml.read_text())
    other["model"]["window"] = {**WINDOW, "blend": "linear"}
    (finished.folder / "other.yaml").write_text(json.dumps(other))
    assert command("plan", finished.folder / "other.yaml") == 2
    assert "model.window: " in capsys.readouterr().err


def test_a_dataset_shows_blended_outputs_only_where_its_yaml_says_so(workers, checkpoint, tmp_path, monkeypatch):
    """Readers of an image are told by its attributes, readers of the YAML by its keys."""
    data = make_dataset(tmp_path, volumes=1)
    content = {**data.content, "model": {"checkpoint": str(checkpoint[0]), "exact": False, "window": WINDOW}}
    data.yaml.write_text(json.dumps(content))
    with shared_with(workers, monkeypatch):
        assert command("reprocess", data.yaml, "--no-prefect") == 0
    image = zarr.open_group(str(data.current("v00")), mode="r")
    assert image.attrs["halotile"]["exact"] is False
    record = json.loads((data.current("v00").parent / "published.json").read_text())
    assert record["about"]["exact"] is False
    (member,), _ = volumes_of(validated(DatasetConfig, content, source="here"))
    plan = member.publication().directory(record["fingerprint"]).load_plan()
    _refuse_inexact(member, plan)
    silent = {**content, "model": {"checkpoint": str(checkpoint[0])}}
    with pytest.raises(StorageError, match=r"does not say so\. Nothing of it is published"):
        _refuse_inexact(replace(member, config=validated(DatasetConfig, silent, source="here")), plan)

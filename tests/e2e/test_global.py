"""Networks that look at their whole input, with the statistics of the whole volume: by the command line, what one pass of them gives."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zarr
from torch import nn

from pipeline import stages
from pipeline.core.frozen import WholeVolume
from pipeline.errors import StorageError
from pipeline.inference import survey as surveying
from pipeline.networks.checkpoint import checkpoint_bytes, load_checkpoint
from pipeline.networks.evaluate import one_pass, placed
from pipeline.networks.frozen import localised, measured
from tests.e2e.test_frozen import EQUAL, extended, network, off, run_of  # noqa: F401 - the fixture
from tests.e2e.test_run import command
from tests.e2e.test_survey import cut_off
from tests.networks.test_frozen import checkpoint_of
from tests.pipeline_cases import Run, stored_objects


def global_run(folder, network, **keys) -> Run:  # noqa: F811 - its value
    """A run of 12 tiles by statistics of the whole volume."""
    run = run_of(folder, network)
    content = {**run.content, "model": {**run.content["model"], "statistics": "global"}, **keys}
    run.yaml.write_text(json.dumps(content))
    return Run(run.folder, content, run.network, run.volume)


def own_pass(run) -> torch.Tensor:
    """One pass of the network as it is, over the whole volume."""
    with torch.inference_mode():
        return run.network(extended(run))


def test_tiles_by_statistics_of_the_whole_volume_are_the_networks_own_pass(network, tmp_path, pooled, capsys):  # noqa: F811
    """What it takes is said first; the output is that of one pass, which frozen by a sample is far from; the report says what it took."""
    run = global_run(tmp_path / "global", network)
    assert command("plan", run.yaml) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "global: of the whole volume, by 4 passes of the survey" in printed
    assert "x one pass, before any tile" in printed
    assert not run.directory.statistics_path.exists()
    assert command("run", run.yaml, "--no-prefect") == 0
    assert len(run.plan.grid) == 12
    assert off(run, own_pass(run)) <= EQUAL
    assert command("verify", run.yaml) == 0
    report = run.directory.read_json(run.directory.report_path)
    assert report["frozen"]["passes"] == 4
    assert report["frozen"]["multiply_adds"] == run.plan.model.frozen.multiply_adds > 0
    assert not list(run.directory.path.glob("norms-*"))
    assert not run.directory.survey_path.exists()
    checkpoint = load_checkpoint(network[1])
    graph, weights = checkpoint.architecture.graph, placed(checkpoint, torch.device("cpu"), torch.float32)
    fixed = localised(checkpoint, measured(graph, weights, [extended(run)[..., :16, :16, :16]], (2, 2, 2)).numbers)
    by_sample = one_pass(fixed.architecture.graph, placed(fixed, torch.device("cpu"), torch.float32), extended(run))
    assert off(run, by_sample) > 10 * EQUAL


def test_other_tiles_have_the_same_statistics_and_are_another_plan(network, tmp_path, pooled):  # noqa: F811
    """To the rounding of float32 maps; the same plan has the same digest, whatever its output is called."""
    runs = [global_run(tmp_path / name, network) for name in ("one", "again")]
    other = global_run(tmp_path / "other", network, tiles={"core": [8, 32, 20]})
    found = [stages.survey(run.now) for run in (*runs, other) if stages.plan(run.now)]
    assert found[0].digest == found[1].digest != found[2].digest
    assert runs[0].plan.fingerprint == runs[1].plan.fingerprint != other.plan.fingerprint
    numbers = [statistics.frozen.numbers for statistics in found]
    for node, tensors in numbers[0].items():
        np.testing.assert_allclose(tensors, numbers[2][node], rtol=0, atol=1e-5 * np.abs(tensors).max())
    assert isinstance(runs[0].plan.model.frozen, WholeVolume)
    assert type(runs[0].plan).from_json(runs[0].plan.to_json()).model.frozen == runs[0].plan.model.frozen


def test_a_survey_that_ended_midway_goes_on_in_its_pass_with_the_same_bytes(network, tmp_path, pooled, monkeypatch):  # noqa: F811
    """In the third of four passes of 12 tiles: what two and a half have is kept, and no part of it is looked at again."""
    whole, ended = (global_run(tmp_path / name, network) for name in ("whole", "ended"))
    given = []
    dispatch = surveying.dispatch

    def watched(pool, work, indices, **options):
        given.append(len(indices))
        return dispatch(pool, work, indices, **options)

    with monkeypatch.context() as patch:
        patch.setattr(surveying, "dispatch", watched)
        assert command("run", whole.yaml, "--no-prefect") == 0
    assert given == [12, 12, 12, 12]
    stages.plan(ended.now)
    counted = 0

    def ending(pool, work, indices, **options):
        nonlocal counted
        outcomes = dispatch(pool, work, indices, **options)
        for outcome in outcomes:
            yield outcome
            counted += 1
            if counted == 29:
                outcomes.close()
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(surveying, "dispatch", ending)
        with pytest.raises(KeyboardInterrupt):
            stages.survey(ended.now)
    assert not ended.directory.statistics_path.exists()
    kept = len(list(ended.directory.parts()))
    assert 29 <= kept < 36
    given.clear()
    with monkeypatch.context() as patch:
        patch.setattr(surveying, "dispatch", watched)
        assert command("run", ended.yaml, "--no-prefect") == 0
    assert given == [36 - kept, 12]
    assert ended.directory.statistics_path.read_bytes() == whole.directory.statistics_path.read_bytes()
    assert stored_objects(ended.output) == stored_objects(whole.output)


def test_a_part_of_other_voxels_counts_for_nothing(network, tmp_path, pooled, monkeypatch):  # noqa: F811
    """A survey that was cut off, its input written again, and planned anew: it begins at the first pass, and ends with the true numbers."""
    run = global_run(tmp_path, network)
    stages.plan(run.now)
    with pytest.raises(KeyboardInterrupt), cut_off(monkeypatch, after=5):
        stages.survey(run.now)
    assert len(list(run.directory.parts())) >= 5
    other = Run(run.folder, run.content, run.network, (255 - run.volume // 2).astype(np.uint8))
    zarr.open_array(str(tmp_path / "input.zarr"), mode="r+")[...] = other.volume
    stages.plan(run.now, input_changed="redo")
    assert stages.follow(run.now).computed == 12
    assert off(other, own_pass(other)) <= EQUAL


def test_a_worker_that_finds_other_statistics_refuses(network, tmp_path, pooled, monkeypatch):  # noqa: F811
    """The numbers before a pass lie in a file under its digest: without it no tile is looked at."""
    run = global_run(tmp_path, network, cluster={"workers": 2, "memory_gb": 4, "retries": 0})
    stages.plan(run.now)
    with monkeypatch.context() as patch:
        patch.setattr(type(run.directory), "write_norms", lambda *_: None)
        with pytest.raises(StorageError, match="removed under the workers"):
            stages.survey(run.now)
    assert not list(run.directory.parts())


class Slices(nn.Module):
    """2D, with a norm over each slice."""

    shape = (1, 1, 16, 16)

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x):
        return F.instance_norm(self.conv(x))


def test_what_cannot_be_global_is_refused_in_words(network, tmp_path, capsys):  # noqa: F811
    """A sample beside it; several networks; windows; passes over the volume turned."""
    run = global_run(tmp_path, network)
    for model, more, word in [
        ({"frozen_from": {"patches": 3}}, {}, "frozen_from is given, but statistics are global"),
        (
            {"checkpoint": None, "statistics": None, "ensemble": [{"checkpoint": str(network[1])}] * 2},
            {},
            "of one network alone",
        ),
        ({"exact": False, "window": {"core": [8, 8, 8], "overlap": [8, 8, 8]}}, {}, "statistics are global"),
        ({}, {"compute": {"dtype": "float32", "augment": "flips"}}, "the volume turned has other statistics"),
    ]:
        changed = {key: value for key, value in {**run.content["model"], **model}.items() if value is not None}
        run.yaml.write_text(json.dumps({**run.content, "model": changed, **more}))
        assert command("plan", run.yaml) == 2
        assert word in " ".join(capsys.readouterr().err.split())
    planar = tmp_path / "planar.safetensors"
    planar.write_bytes(checkpoint_bytes(checkpoint_of(Slices().eval())))
    run.yaml.write_text(json.dumps({**run.content, "model": {**run.content["model"], "checkpoint": str(planar)}}))
    assert command("plan", run.yaml) == 2
    assert "each of the 20 slices is an image with statistics of its own" in " ".join(capsys.readouterr().err.split())

"""Flips, rotations: by the command, against the mean of whole passes of the module, each over the extended volume as it is turned."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr

from pipeline import stages
from pipeline.config import RunConfig, validated
from pipeline.core.network.unet import Architecture
from pipeline.core.normalization import Normalization
from pipeline.core.plan import Plan
from pipeline.errors import ConfigError, ModelError, PlanError
from pipeline.networks.checkpoint import load_checkpoint, save_checkpoint
from pipeline.networks.importing.network import import_network
from pipeline.networks.predictors import predictor_of
from pipeline.planning.ensemble import named_networks
from pipeline.registry import register
from tests.e2e.test_imported import EQUAL, forget_imports, halve, imported_run
from tests.e2e.test_run import command
from tests.networks.network_cases import Residual, randomise, save_program
from tests.pipeline_cases import make_run, one_pass, random_network, save_array, stored_objects

WAYS = {
    "none": [(0, [])],
    "flips": [(0, flips) for flips in ([], [1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3])],
    "rotations": [(swap, flips) for swap in (0, 1) for flips in ([], [1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3])],
}


def small(run):
    """An imported run whose volume is a corner of its own, with odd extents."""
    volume = run.volume[:13, :18, :21]
    save_array(run.folder / "small.zarr", volume)
    found = run.having(input={"url": str(run.folder / "small.zarr")}, tiles={"core": [8, 8, 12]})
    return replace(found, volume=volume)


def mean_of_passes(volume, augment, forward):
    """Of an array (C, Z, Y, X) that needs no more extension: turned, computed, turned back; `flips` are axes of it."""
    passes = []
    for swap, flips in WAYS[augment]:
        turned = volume.swapaxes(2, 3) if swap else volume
        given = np.flip(forward(np.ascontiguousarray(np.flip(turned, flips))), flips)
        passes.append(given.swapaxes(2, 3) if swap else given)
    return np.mean(passes, 0, dtype=np.float64)


def extended(volume, stride):
    """The volume mirrored at its far ends to a multiple of the stride, as the network reads it."""
    pads = [(0, 0), *((0, -n % s) for n, s in zip(volume.shape[1:], stride, strict=True))]
    return np.pad(volume.astype(np.float32) / 255, pads, mode="reflect")


def difference(found, expected):
    """Of the output's range."""
    return float(np.abs(found.reshape(expected.shape) - expected).max() / np.ptp(expected))


def sigmoid(logits):
    """In float64."""
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def test_a_run_with_flips_is_the_mean_of_eight_passes(pooled, tmp_path, capsys):
    """After the activation: the mean of logits, through it, is another."""
    run = make_run(
        tmp_path,
        architecture=Architecture(3, 1, 2),
        shape=(9, 15, 11),
        tiles={"core": [8, 8, 8]},
        output={"activation": "sigmoid"},
        compute={"dtype": "float32", "augment": "flips"},
    )
    assert command("run", run.yaml, "--no-prefect") == 0
    shown = capsys.readouterr().out
    assert "of 8 passes, after the activation" in shown
    assert "x the 8 passes" in shown
    volume = extended(run.volume[np.newaxis], (2, 2, 2))
    inside = (slice(None), *(slice(0, n) for n in run.volume.shape))
    found = run.array()
    assert (
        difference(found, mean_of_passes(volume, "flips", lambda x: sigmoid(one_pass(run.network, x)))[inside]) <= EQUAL
    )
    assert (
        difference(found, sigmoid(mean_of_passes(volume, "flips", lambda x: one_pass(run.network, x)))[inside]) > 1e-4
    )
    assert difference(found, sigmoid(one_pass(run.network, volume))[inside]) > 1e-2
    report = json.loads(run.directory.report_path.read_text())
    assert (report["augment"], report["passes"]) == ("flips", 8)
    assert command("verify", run.yaml) == 0


def test_a_run_of_an_imported_network_with_rotations_is_the_mean_of_sixteen(pooled, tmp_path, capsys):
    """Its reach differs between sides: 4 before, 5 after."""
    run = small(imported_run(tmp_path, "residual", capsys)).having(compute={"augment": "rotations"})
    assert command("run", run.yaml, "--no-prefect") == 0
    volume = extended(run.volume[np.newaxis], (2, 2, 2))

    def forward(x):
        with torch.inference_mode():
            return run.network(torch.from_numpy(x)[None])[0].numpy()

    expected = mean_of_passes(volume, "rotations", forward)
    assert difference(run.array(), expected[(slice(None), *(slice(0, n) for n in run.volume.shape))]) <= EQUAL


def test_voxels_that_are_longer_along_y_than_along_x_are_not_turned(tmp_path):
    """What the network would see then is no volume that it knows."""
    run = make_run(tmp_path, architecture=Architecture(3, 1, 2), shape=(8, 16, 16), compute={"augment": "rotations"})
    plan = stages.plan(run.now)
    assert plan.mean is not None
    assert (plan.mean.passes, "compute.augment" in plan.identity()) == (16, True)
    scale = {"coordinateTransformations": [{"type": "scale", "scale": [30.0, 4.0, 8.0]}]}
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    group = zarr.create_group(str(tmp_path / "image.zarr"))
    group.create_array("0", data=run.volume)
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "0", **scale}]}]}
    other = run.having(input={"url": str(tmp_path / "image.zarr")}, output={"url": str(tmp_path / "other.zarr")})
    with pytest.raises(PlanError, match=r"a voxel is 4 long along y and 8 along x.*Set compute.augment to 'flips'"):
        stages.plan(other.now)
    stages.plan(other.having(compute={"augment": "flips"}).now)


# --- ensembles ----------------------------------------------------------------------------------------------------------


def ensemble_run(folder, capsys, **sections):
    """A run of three networks of different strides and halos: two of ours, and an imported one whose reach has two sides."""
    run = small(imported_run(folder, "residual", capsys))
    others = [random_network(Architecture(3, depth, 2, out_channels=2), seed=depth) for depth in (1, 2)]
    for depth, network in enumerate(others, start=1):
        torch.save(network.state_dict(), folder / f"unet{depth}.pt")
    members = [
        {"checkpoint": str(folder / "unet1.pt"), "weight": 1},
        {"checkpoint": str(folder / "net.pt2"), "weight": 0.5},  # as its library wrote it
        {"checkpoint": str(folder / "unet2.pt"), "weight": 2.5},
    ]
    content = {**run.content, "model": {"ensemble": members}}
    found = type(run)(folder, content, run.network, run.volume).having(**sections)
    return found, [others[0], run.network, others[1]]


def forward_of(network):
    """One pass of a module over an array (C, Z, Y, X), float32."""

    def forward(x):
        with torch.inference_mode():
            return network(torch.from_numpy(x)[None])[0].numpy()

    return forward


def passes_of(networks, volume, augment="none"):
    """Of each network its own passes over the volume, extended to its own stride; the imported one has 2."""
    return [
        mean_of_passes(extended(volume[np.newaxis], (s, s, s)), augment, forward_of(network))[
            (slice(None), *(slice(0, n) for n in volume.shape))
        ]
        for network, s in zip(networks, (2, 2, 4), strict=False)
    ]


def test_an_ensemble_is_the_mean_of_its_networks_by_weight(pooled, tmp_path, capsys):
    """Each on the volume as it would be extended for it alone; the tiles are those of the largest stride and halo."""
    run, networks = ensemble_run(tmp_path, capsys)
    assert command("run", run.yaml, "--no-prefect") == 0
    shown = capsys.readouterr().out
    assert "of 3 passes" in shown
    assert "0.625 of the mean: unet2.pt" in shown
    assert "imported from a program of torch.export (.pt2)" in shown
    assert load_checkpoint(run.directory.kept_path(1)).sha256 == run.plan.model.members[1].sha256
    first, second, third = passes_of(networks, run.volume)
    assert difference(run.array(), 0.25 * first + 0.125 * second + 0.625 * third) <= EQUAL
    assert difference(run.array(), (first + second + third) / 3) > 1e-2
    plan = run.plan
    assert (plan.grid.stride, plan.halo, len(plan.grid) > 8) == ((4, 4, 4), (24, 24, 24), True)
    assert Plan.from_json(plan.to_json()) == plan
    report = json.loads(run.directory.report_path.read_text())
    assert [member["weight"] for member in report["ensemble"]] == [1.0, 0.5, 2.5]
    assert command("verify", run.yaml) == 0


@pytest.mark.network
def test_an_ensemble_is_of_whatever_a_run_takes_alone(pooled, tmp_path, capsys, monkeypatch):
    """Two files of a library, one of ours without padding from a registry, and a state_dict. The run keeps what it imported, which serves again."""
    run, (first, residual, _) = ensemble_run(tmp_path, capsys)
    other = randomise(Residual(), seed=1).float()
    save_program(tmp_path / "other.pt2", other)
    bare = random_network(Architecture(3, 1, 2, out_channels=2, padding="valid"), seed=3)
    torch.save(bare.state_dict(), tmp_path / "bare.pt")
    register(tmp_path / "registry", "bare", tmp_path / "bare.pt")
    members = [
        {"name": "bare", "registry": str(tmp_path / "registry"), "padding": "valid", "weight": 3},
        {"checkpoint": str(tmp_path / "net.pt2")},
        {"checkpoint": str(tmp_path / "other.pt2"), "weight": 2},
        {"checkpoint": str(tmp_path / "unet1.pt"), "weight": 2},
    ]
    run = run.having(model={"ensemble": members})
    assert command("run", run.yaml, "--no-prefect") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "0.25 of the mean: other.pt2" in shown
    assert "imported from a program of torch.export (.pt2)" in shown

    second, third, ours = (
        passes_of([network], run.volume)[0] for network in (residual, other, first)
    )  # each has stride 2
    unpadded = one_pass(bare, run.volume[np.newaxis].astype(np.float32) / 255)
    expected = (3 * unpadded + second + 2 * third + 2 * ours) / 8
    assert difference(run.array(), expected) <= EQUAL
    assert difference(run.array(), (unpadded + second + third + ours) / 4) > 1e-2  # by no weight
    assert not run.directory.kept_path(0).exists()
    assert [load_checkpoint(run.directory.kept_path(n)).sha256 for n in (1, 2)] == [
        member.sha256 for member in run.plan.model.members[1:3]
    ]

    wanted, plan, imports = stored_objects(run.output), run.plan, []
    assert Plan.from_json(plan.to_json()) == plan

    def again(path, **more):
        imports.append(path.name)
        return import_network(path, **more)

    halve(run)
    run.directory.kept_path(2).write_bytes(b"damaged")
    forget_imports()
    monkeypatch.setattr("pipeline.planning.network.import_network", again)
    assert command("run", run.yaml, "--no-prefect") == 0
    assert (imports, stored_objects(run.output)) == (["other.pt2"], wanted)


def test_each_network_of_an_ensemble_has_keys_of_its_own(tmp_path, monkeypatch):
    """Class, arguments, trust and output of one say nothing of another; beside them all they are refused, with where they belong."""
    asked = []

    def read(path, *, output, of, trust):
        asked.append((path.name, output, of and (of.name, dict(of.arguments)), trust))
        return import_network(path)

    save_program(tmp_path / "net.pt2", randomise(Residual()).float())
    monkeypatch.setattr("pipeline.planning.network.import_network", read)
    forget_imports()
    whole = {"checkpoint": str(tmp_path / "net.pt2")}
    wide = {**whole, "architecture": {"class": "biapy.Wide", "arguments": {"double": 2}}, "trust": True, "output": 1}
    run = {"input": {"url": "a"}, "output": {"url": "b"}}
    config = validated(RunConfig, {**run, "model": {"ensemble": [whole, wide]}}, source="run.yaml")
    assert len({network.sha256 for network in named_networks(config.model)}) == 1
    assert asked == [("net.pt2", 0, None, False), ("net.pt2", 1, ("biapy.Wide", {"double": 2}), True)]
    with pytest.raises(ConfigError, match=r"trust stand beside it.*each member has for itself"):
        validated(RunConfig, {**run, "model": {"ensemble": [whole, wide], "trust": True}}, source="run.yaml")


def test_an_ensemble_with_flips_is_the_mean_of_both(pooled, tmp_path, capsys):
    """Eight passes a network."""
    run, networks = ensemble_run(tmp_path, capsys, compute={"augment": "flips"}, tiles={"core": [8, 12, 24]})
    assert command("run", run.yaml, "--no-prefect") == 0
    first, second, third = passes_of(networks, run.volume, "flips")
    assert difference(run.array(), 0.25 * first + 0.125 * second + 0.625 * third) <= EQUAL


def test_the_identity_of_an_ensemble_is_of_all_its_networks_and_weights(tmp_path, capsys):
    """Where one is another, or counts for more, the output is another."""
    run, _ = ensemble_run(tmp_path, capsys)
    plan = stages.plan(run.now)
    members = run.content["model"]["ensemble"]
    heavier = run.having(model={"ensemble": [*members[:2], {**members[2], "weight": 3}]})
    changed = stages.plan(heavier.now)
    assert changed.fingerprint != plan.fingerprint
    torch.save(random_network(Architecture(3, 2, 2, out_channels=2), seed=9).state_dict(), tmp_path / "unet2.pt")
    with pytest.raises(ModelError, match=r"unet2.pt' changed after the plan was made"):
        predictor_of(load_checkpoint(changed.model.checkpoint), run.directory.located(changed))
    assert stages.plan(heavier.now).fingerprint != changed.fingerprint


def test_networks_that_predict_other_things_have_no_mean(tmp_path, capsys):
    """Told with the files' names, and what to do; all at once."""
    run, _ = ensemble_run(tmp_path, capsys)
    members = run.content["model"]["ensemble"]
    torch.save(random_network(Architecture(3, 1, 2)).state_dict(), tmp_path / "one.pt")
    found = load_checkpoint(tmp_path / "unet1.pt")
    save_checkpoint(tmp_path / "scored.safetensors", replace(found, normalization=Normalization("zscore", 0, 1)))
    others = [{"checkpoint": str(tmp_path / name)} for name in ("one.pt", "scored.safetensors")]
    content = {**run.content, "model": {"ensemble": [*members, *others]}}
    del content["normalize"]
    with pytest.raises(ModelError) as refused:
        stages.plan(type(run)(tmp_path, content, run.network, run.volume).now)
    text = str(refused.value)
    assert "unet1.pt' has 2 output channels, and" in text
    assert "one.pt' has 1. Take" in text
    assert "scored.safetensors' with 'zscore'" in text
    assert "set normalize, for all" in text


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"ensemble": [{"checkpoint": "a.pt"}]}, "ensemble has 1 member"),
        ({"ensemble": [{"checkpoint": "a.pt"}, {"checkpoint": "b.pt"}], "checkpoint": "c.pt"}, "checkpoint stand"),
        ({"ensemble": [{"checkpoint": "a.pt"}, {"weight": 2}]}, "checkpoint: required"),
        (
            {"ensemble": [{"checkpoint": "a.pt"}, {"checkpoint": "b.pt", "weight": 0}]},
            r"ensemble.1.weight: should be greater than 0",
        ),
        ({"ensemble": {"checkpoint": "a.pt"}}, "a list is needed"),
        ({"ensemble": [{"checkpoint": "a.pt"}, {"name": "em"}]}, "no registry says where it is kept"),
    ],
)
def test_what_is_no_ensemble_is_refused(model, told, tmp_path):
    """Before a file is opened."""
    run = make_run(tmp_path, architecture=Architecture(3, 1, 2), shape=(8, 16, 16))
    with pytest.raises(ConfigError, match=told):
        validated(RunConfig, {**run.content, "model": model}, source="run.yaml")

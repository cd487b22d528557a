"""Flips, rotations: by the command, against the mean of whole passes of the module, each over the extended volume as it is turned."""

import json

import numpy as np
import pytest
import torch
import zarr

from pipeline import stages
from pipeline.core.network.unet import Architecture
from pipeline.errors import PlanError
from tests.e2e.test_imported import EQUAL, imported_run
from tests.e2e.test_run import command
from tests.pipeline_cases import make_run, one_pass

WAYS = {
    "flips": [(0, flips) for flips in ([], [1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3])],
    "rotations": [(swap, flips) for swap in (0, 1) for flips in ([], [1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3])],
}


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
        shape=(13, 27, 21),
        tiles={"core": [8, 16, 16]},
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
    run = imported_run(tmp_path, "residual", capsys).having(compute={"augment": "rotations"})
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

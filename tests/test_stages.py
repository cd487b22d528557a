"""Being told to end, however this process was started."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from pipeline import stages
from pipeline.core.ledger import TileRecord
from pipeline.core.network.unet import Architecture
from pipeline.core.volume import Space
from pipeline.errors import PlanError, VerificationError
from pipeline.outputs.image import Image
from pipeline.planning import resolve
from tests.e2e.commands import ROOT
from tests.pipeline_cases import make_run, random_volume, stored_objects

WAITS = """
import signal, sys, threading
from pipeline.stages import driving
from pipeline.outputs.rundir import RunDirectory

def terminated(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, terminated)  # as the command does
directory = RunDirectory(sys.argv[1])
with driving(directory):
    directory.ask_to_cancel()
    try:
        threading.Event().wait(30)
    except KeyboardInterrupt:
        print("ended in order")
"""


@pytest.mark.parametrize(
    "handler", [signal.SIG_DFL, signal.SIG_IGN], ids=["in the foreground", "in a script's background"]
)
def test_cancel_reaches_a_driver_that_ignores_ctrl_c_too(tmp_path, handler):
    """`nohup halotile run ... &` in a script: the shell has it ignore SIGINT, and `halotile cancel` must end it all the same."""
    found = subprocess.run(
        [sys.executable, "-c", WAITS, tmp_path / "output"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    )
    assert found.stdout == "ended in order\n", found.stderr


# --- the noun -----------------------------------------------------------------------------------------------------------


def test_a_run_that_was_given_to_the_plan_stage_has_its_plan(tmp_path):
    """It is handed from stage to stage: the plan stage may read nothing through it that the next one would find outdated."""
    run = make_run(tmp_path, architecture=Architecture(3, 1, 4), shape=(8, 12, 12))
    before, after = run.now, run.having(input={"nonfinite": "zero"}).now
    with pytest.raises(PlanError, match=r"no plan in '.*output\.zarr\.run'\. Run `halotile plan`"):
        _ = before.plan
    assert stages.plan(before) == before.plan
    assert stages.plan(after) == after.plan == after.output.plan
    assert after.plan.fingerprint != before.plan.fingerprint  # values stay as they were read


def test_a_run_has_its_plan_with_the_paths_of_its_configuration(tmp_path):
    """Stores are moved between two sittings; what is stored says where they were."""
    (tmp_path / "before").mkdir()
    run = make_run(tmp_path / "before", architecture=Architecture(3, 1, 4), shape=(8, 12, 12))
    stored = stages.plan(run.now)
    moved = (tmp_path / "before").rename(tmp_path / "after")
    urls = {"input": {"url": str(moved / "input.zarr")}, "output": {"url": str(moved / "output.zarr")}}
    here = replace(run, folder=moved).having(**urls, model={"checkpoint": str(moved / "weights.pt")}).now
    assert here.plan.fingerprint == stored.fingerprint
    assert (here.plan.source.url, here.plan.output.url) == (urls["input"]["url"], urls["output"]["url"])
    assert here.directory.load_plan().output.url == stored.output.url != here.plan.output.url


# --- the sequence -------------------------------------------------------------------------------------------------------


def test_every_stage_of_the_sequence_is_a_file_and_a_function_of_its_name():
    """Where to look for one, and what runs it alone."""
    here = Path(stages.__file__).parent
    for stage in stages.SEQUENCE:
        assert (here / f"{stage.name}.py").is_file()
        assert getattr(stages, stage.name).__module__ == f"pipeline.stages.{stage.name}"


def test_what_follows_a_plan_are_the_stages_in_order(tmp_path):
    """The command, the flow and a dataset go over them, and tell what came of them."""
    run = make_run(tmp_path, architecture=Architecture(3, 1, 4), shape=(8, 12, 12), log={"format": "json"})
    stages.plan(run.now)
    all_done(run)
    told = []
    account = stages.follow(run.now, stages.Host(on_report=told.append))
    assert [json.loads(line)["stage"] for line in run.directory.log_path.read_text().splitlines()] == [
        stage.name for stage in stages.SEQUENCE
    ]
    assert json.loads(json.dumps(told)) == [json.loads(run.directory.report_path.read_text())]
    assert account.to_dict() == {**told[0], "computed": 0}


def test_a_stage_that_fails_is_the_last(tmp_path):
    """The negative control: nothing is reported of an output that is not what its ledger says."""
    run = make_run(tmp_path, architecture=Architecture(3, 1, 4), shape=(8, 12, 12))
    stages.plan(run.now)
    all_done(run)
    next(path for path in (run.output / "0/c").rglob("*") if path.is_file()).unlink()
    told = []
    with pytest.raises(VerificationError, match="1 are not as written"):
        stages.follow(run.now, stages.Host(on_report=told.append))
    assert told == []
    assert run.directory.verification_path.is_file()
    assert not run.directory.report_path.exists()


def test_accounts_of_stages_add_up():
    """A second stage of tiles computes more of them; the report is whole."""
    found = stages.Account(computed=2) + stages.Account(computed=3) + stages.Account(report={"output": "here"})
    assert found.to_dict() == {"output": "here", "computed": 5}


# --- what describes and does not compute --------------------------------------------------------------------------------


def image_of(folder, transforms, unit="um"):
    """An OME-Zarr image of one level; the metadata of one that is there are mended."""
    path = folder / "image.ome.zarr"
    if not path.exists():
        zarr.create_group(LocalStore(path)).create_array("0", data=random_volume((8, 12, 12)), chunks=(8, 12, 12))
    document = json.loads((path / "zarr.json").read_text())
    axes = [{"name": name, "type": "space", "unit": unit} for name in "zyx"]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": transforms}]}
    document["attributes"] = {"ome": {"version": "0.5", "multiscales": [image]}}
    (path / "zarr.json").write_text(json.dumps(document))
    return str(path)


def scale(*sizes):
    """A transformation as it stands in metadata."""
    return [{"type": "scale", "scale": list(sizes)}]


def all_done(run):
    """Have every tile of a run's plan done, as workers would leave it: of values that do not matter here."""
    output, plan = Image(run.plan), run.plan
    output.create()
    with run.directory.driver(), run.directory.ledger() as ledger:
        for tile in plan.grid:
            array = np.ones((1, *tile.core.shape), plan.output.dtype)
            units = {}
            for unit in output.finest.units(tile.core):
                units |= output.finest.write(unit, array[(slice(None), *unit.within(tile.core))])
            ledger.append(TileRecord(tile.index, "done", plan.fingerprint, units))


@pytest.mark.parametrize(
    ("first", "was"),
    [
        ((scale(float("nan"), 4, 4), "um"), "unknown"),
        ((scale(2, 4, 4), "nm"), (2, 4, 4)),
        ((scale(30, 4, 4), 5), "no unit"),
    ],
)
def test_a_voxel_size_that_was_mended_reaches_plan_and_output_without_a_tile(tmp_path, first, was):
    """Same fingerprint, so the old size stood in the output for ever; NaN there is no JSON, and a unit of 5 was a traceback."""
    run = make_run(tmp_path, architecture=Architecture(3, 1, 4), shape=(8, 12, 12)).having(
        input={"url": image_of(tmp_path, *first)}
    )
    stages.plan(run.now)
    before, warnings = run.plan, run.plan.warnings
    assert before.source.space.is_unknown or was != "unknown"
    all_done(run)
    assert stages.infer(run.now).tiles == 0
    document = json.loads(
        (run.output / "zarr.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")
    )
    ledger, objects = run.directory.ledger_path.read_bytes(), stored_objects(run.output)

    image_of(tmp_path, [*scale(30, 4, 4), {"type": "translation", "translation": [15, 0, 0]}], "µm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolve, "sampled", lambda *_, **__: pytest.fail("numbers are looked for again"))
        stages.plan(run.now)
    assert run.plan.fingerprint == before.fingerprint
    assert run.plan.source.space == Space((30.0, 4.0, 4.0), (15.0, 0.0, 0.0), ("micrometer",) * 3)
    assert run.plan.warnings == ()
    assert any("unknown" in warning for warning in warnings) or was == (2, 4, 4)
    assert stages.infer(run.now).tiles == 0
    image = json.loads((run.output / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
    assert image != document["attributes"]["ome"]["multiscales"][0]
    assert [axis["unit"] for axis in image["axes"]] == ["micrometer"] * 3
    assert image["datasets"][0]["coordinateTransformations"] == [
        {"type": "scale", "scale": [30.0, 4.0, 4.0]},
        {"type": "translation", "translation": [15.0, 0.0, 0.0]},
    ]
    assert stages.verify(run.now).complete
    assert run.directory.ledger_path.read_bytes() == ledger
    assert stored_objects(run.output) == objects

    image_of(tmp_path, [])  # and nothing is known any more: what an earlier plan wrote would be false
    group = zarr.open_group(LocalStore(run.output))
    group.attrs["omero"] = {"channels": []}
    stages.plan(run.now)
    assert stages.infer(run.now).tiles == 0
    attributes = json.loads((run.output / "zarr.json").read_text())["attributes"]
    assert attributes["ome"]["multiscales"][0]["axes"] == [{"name": name, "type": "space"} for name in "zyx"]
    assert attributes["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"] == scale(1.0, 1.0, 1.0)
    assert attributes["omero"] == {"channels": []}
    assert stages.verify(run.now).complete

"""What a checkpoint says of its training, in the plan and on the report's page."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.core.appearance import appearance_of
from pipeline.core.machine import Machine
from pipeline.core.network.unet import Architecture
from pipeline.core.normalization import Normalization, spanning
from pipeline.core.plan import Plan
from pipeline.errors import ModelError
from pipeline.networks.checkpoint import METADATA_KEY, load_checkpoint, save_checkpoint
from pipeline.planning.resolve import make_plan
from pipeline.reports.inspection import inspect_path
from pipeline.reports.rows import plan_rows
from pipeline.volumes.volume import Volume
from tests.pipeline_cases import make_run

SMALL = Architecture(ndim=3, depth=1, width=2)
MACHINE = Machine(cores=2, memory_bytes=4 * 10**9)


def tissue(low, high, dtype, shape=(20, 64, 64)):
    """A volume of values between two, more of them in the middle."""
    return (low + (high - low) * np.random.default_rng(0).beta(3, 3, shape)).astype(dtype)


def trained_run(folder, volume, *, mode="minmax", learned=True, seen=None, **sections):
    """A run of a checkpoint that was trained on 8 bits, over a volume."""
    run = make_run(folder, architecture=SMALL, shape=volume.shape, volume=volume)
    rule = spanning("minmax", 0, 255)
    known = appearance_of(
        [tissue(20, 230, "uint8", (1, 16, 64, 64))], rule, dtype="uint8", voxel_size_nm=(10.0, 10.0, 10.0)
    )
    checkpoint = replace(
        load_checkpoint(folder / "weights.pt", padding="same"),
        padding_known=True,
        normalization=Normalization(mode),
        training_data=(known,) if seen is None else seen,
        learned=learned,
        provenance={"validation": {"auc": 0.512}},
    )
    save_checkpoint(folder / "trained.safetensors", checkpoint)
    content = {**run.content, "model": {"checkpoint": str(folder / "trained.safetensors")}}
    del content["normalize"]
    return replace(run, content=content).having(**sections)


def strange(plan):
    """Warnings about values."""
    return [warning for warning in plan.warnings if "seen nothing like" in warning]


def test_twelve_bits_in_sixteen_are_told_of_in_plan_page_and_json(tmp_path):
    """The network sees 0.002 to 0.06 where it was trained on 0.1 to 0.9."""
    plan = make_plan(trained_run(tmp_path, tissue(100, 3900, "uint16")).config, MACHINE)
    (warning,) = strange(plan)
    assert "Set normalize.mode to 'percentile'" in warning
    assert "uint16" in warning
    assert plan.sample.channels[0].range[1] < 0.06
    rows = plan_rows(plan)
    assert ("warning", warning) in rows
    assert any(name == "values" and "1st to 99th percentile of" in value for name, value in rows)
    content = json.loads(plan.to_json())
    assert warning in content["warnings"]
    assert Plan.from_json(plan.to_json()) == plan


def test_the_mode_that_the_warning_names_ends_it(tmp_path):
    """A remedy that is none would be worse than no word. That the rule is another than training's is still told."""
    run = trained_run(tmp_path, tissue(100, 3900, "uint16"), normalize={"mode": "percentile"})
    plan = make_plan(run.config, MACHINE)
    assert not strange(plan)
    assert [warning for warning in plan.warnings if "was trained with 'minmax'" in warning]


def test_what_the_network_has_seen_is_not_told_of(tmp_path):
    """Nor does a checkpoint that says nothing of its training, or a volume for which that is so, cost a look."""
    plan = make_plan(trained_run(tmp_path, tissue(10, 200, "uint8")).config, MACHINE)
    assert plan.sample is not None
    assert [warning for warning in plan.warnings if "voxel size" not in warning] == []


def test_an_older_checkpoint_is_compared_with_nothing(tmp_path, monkeypatch):
    """Of ours or of others: there is nothing to compare with, and nothing is read for it."""
    monkeypatch.setattr("pipeline.planning.resolve.appearance", lambda *_: pytest.fail("it looked"))
    plan = make_plan(trained_run(tmp_path, tissue(100, 3900, "uint16"), seen=(), learned=None).config, MACHINE)
    assert plan.sample is None
    assert not strange(plan)
    assert all(name != "values" for name, _ in plan_rows(plan))


def test_the_sample_is_no_part_of_the_fingerprint(tmp_path):
    """A run that was begun before anybody looked goes on."""
    plan = make_plan(trained_run(tmp_path, tissue(100, 3900, "uint16")).config, MACHINE)
    older = json.loads(plan.to_json())
    del older["sample"]
    found = Plan.from_json(json.dumps(older))
    assert found.sample is None
    assert found.fingerprint == plan.fingerprint


def test_a_sample_is_drawn_once_and_takes_few_reads(tmp_path, monkeypatch):
    """Sixteen boxes at most, whatever the volume; none where a plan that is there has looked."""
    run = trained_run(tmp_path, tissue(100, 3900, "uint16", (64, 80, 80)))
    read, boxes = Volume.read, []

    def counting(volume, box):
        boxes.append(box)
        return read(volume, box)

    monkeypatch.setattr(Volume, "read", counting)
    plan = make_plan(run.config, MACHINE)
    assert 0 < len(boxes) <= 16
    boxes.clear()
    again = make_plan(run.config, MACHINE, earlier=plan, governs=True)
    assert not boxes
    assert (again.sample, again.warnings, again.fingerprint) == (plan.sample, plan.warnings, plan.fingerprint)
    assert make_plan(run.config, MACHINE, rough=True).sample is None


def test_a_box_that_cannot_be_read_costs_the_plan_nothing(tmp_path):
    """The run will fail there by its tile's name; all else is done before."""
    volume = tissue(100, 3900, "uint16", (32, 96, 96))
    run = trained_run(tmp_path, volume)
    chunks = sorted(path for path in (tmp_path / "input.zarr" / "c").rglob("*") if path.is_file())
    for chunk in chunks[::7]:
        chunk.write_bytes(b"torn")
    assert strange(make_plan(run.config, MACHINE))


def test_values_that_are_not_finite_are_no_hindrance(tmp_path):
    """`input.nonfinite: zero` runs are sampled too."""
    volume = tissue(20, 230, "float32")
    volume[::2] = np.nan
    run = trained_run(tmp_path, volume, mode="none", input={"nonfinite": "zero"})
    plan = make_plan(run.config, MACHINE)
    assert strange(plan)
    assert plan.sample.channels[0].range[0] > 0


def test_a_network_that_has_learned_nothing_is_told_of(tmp_path):
    """On every plan and every page."""
    plan = make_plan(trained_run(tmp_path, tissue(10, 200, "uint8"), learned=False).config, MACHINE)
    (warning,) = (told for told in plan.warnings if "learned" in told)
    assert "learned: false" in warning
    assert "held-out AUC 0.512 is below 0.6" in warning


def test_inspection_shows_what_a_network_was_trained_on(tmp_path):
    """Before a run is written for it."""
    trained_run(tmp_path, tissue(10, 200, "uint8"), learned=False)
    rows = dict(inspect_path(str(tmp_path / "trained.safetensors")))
    assert rows["learned"].startswith("false")
    assert rows["trained on"].startswith("uint8, as the network sees it 0.")
    assert rows["trained on"].endswith("voxels of 10 x 10 x 10 nm")


@pytest.mark.parametrize("metadata", [{"learned": "no"}, {"training_data": [{"dtype": "uint8"}]}, {"training_data": 3}])
def test_a_record_that_cannot_be_is_refused(tmp_path, metadata):
    """Like all metadata: it may not be half believed."""
    trained_run(tmp_path, tissue(10, 200, "uint8", (8, 20, 20)))
    path = tmp_path / "trained.safetensors"
    with safe_open(str(path), framework="pt") as file:
        said = json.loads(file.metadata()[METADATA_KEY])
    save_file(load_file(path), tmp_path / "changed.safetensors", {METADATA_KEY: json.dumps(said | metadata)})
    with pytest.raises(ModelError, match="cannot be understood"):
        load_checkpoint(tmp_path / "changed.safetensors")

"""The survey: numbers of the whole volume, measured by the workers, whoever is killed; and tiles that stand by them and no others."""

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from flows.commands.app import app
from flows.commands.status import status
from pipeline import stages
from pipeline.core.ledger import StatisticsRecord, TileRecord
from pipeline.core.machine import Machine
from pipeline.core.network.unet import Architecture
from pipeline.core.normalization import Normalization
from pipeline.core.statistics import Parts, Statistics
from pipeline.errors import InferenceError, PlanError, StorageError
from pipeline.inference import survey as surveying
from pipeline.planning import statistics
from pipeline.planning.resolve import make_plan
from pipeline.volumes.volume import Volume, open_volume
from tests.e2e.commands import alive, wait_until
from tests.e2e.test_kills import started  # noqa: F401 - the fixture
from tests.pipeline_cases import Run, done_entries, make_run, one_pass, save_array, stored_objects

NETWORK = Architecture(3, 1, 2)
SHAPE = (32, 32, 64)


@pytest.fixture
def _small_boxes(monkeypatch):
    """Boxes of a few thousand values, so that a small volume is many parts."""
    monkeypatch.setattr(statistics, "READ_BYTES", 2**15)


def run_of(folder: Path, mode: str = "percentile", dtype: str = "float32", **sections) -> Run:
    """A run of four tiles by the whole volume's statistics."""
    folder.mkdir(exist_ok=True)
    keys = {"tiles": {"core": [16, 16, 64]}, "normalize": {"mode": mode}, **sections}
    return make_run(folder, architecture=NETWORK, shape=SHAPE, dtype=dtype, **keys)


def command(*arguments: object) -> int:
    """`halotile ARGUMENTS` in this process."""
    called = [str(argument) for argument in arguments]
    return status(lambda: app(called, exit_on_error=False, print_error=True, result_action="return_value"))


@pytest.fixture
def _never_measured(monkeypatch):
    """No part of a pass is given to anybody."""
    monkeypatch.setattr(surveying, "dispatch", lambda *_, **__: pytest.fail("it is measured"))


# --- measured by workers --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_small_boxes")
@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        ("percentile", "float32"),
        ("percentile", "uint16"),
        ("zscore", "uint8"),
        ("zscore", "float64"),
        ("minmax", "float32"),
    ],
)
def test_workers_measure_what_one_process_does_to_the_last_bit(tmp_path, pooled, mode, dtype):
    """In 16 parts, as they come; and the record of the parts goes once the numbers stand."""
    run = run_of(tmp_path, mode, dtype)
    plan = stages.plan(run.now)
    assert len(Parts(SHAPE, plan.survey.box)) == 16
    assert not run.directory.statistics_path.exists()
    found = stages.survey(run.now)
    volume = open_volume(str(tmp_path / "input.zarr"))
    assert found.normalization == statistics.measured(Normalization(mode), volume, nonfinite="fail")
    assert found == run.directory.load_statistics()
    assert not run.directory.survey_path.exists()
    assert not run.output.exists()


@pytest.mark.usefixtures("_never_measured")
def test_a_rule_whose_numbers_are_known_has_nothing_to_survey(tmp_path):
    """The range of a type is no question to a terabyte: no file, no worker, and the fingerprint that it always had."""
    run = run_of(tmp_path, "minmax", "uint8")
    plan = stages.plan(run.now)
    assert plan.survey is None
    assert plan.normalization.scale == 1 / 255
    assert stages.survey(run.now) is None
    assert not run.directory.statistics_path.exists()


def test_tiles_stand_by_what_the_first_record_of_their_ledger_says(tmp_path, pooled):
    """And what people are told are the numbers that were used: on the page, in the report, in the verification."""
    run = run_of(tmp_path)
    plan = stages.plan(run.now)
    account = stages.follow(run.now)
    measured = run.directory.load_statistics()
    first, *rest = run.directory.records()
    assert first == StatisticsRecord(plan.fingerprint, measured.digest, json.loads(measured.to_json()))
    assert not any(isinstance(record, StatisticsRecord) for record in rest)
    assert account.report["normalization"] == measured.to_dict()
    assert json.loads(run.directory.verification_path.read_text())["statistics"] == measured.digest
    numbers = measured.normalization
    assert f"(value - {numbers.offset:g}) * {numbers.scale:g}" in (run.directory.path / "report.html").read_text()
    low, high = np.percentile(run.volume.astype(np.float64), (1, 99))
    expected = one_pass(run.network, ((run.volume - low) / (high - low))[np.newaxis])[0]
    assert np.abs(run.array() - expected).max() <= 1e-5 * np.ptp(expected)


@pytest.mark.slow
def test_a_run_has_its_workers_started_once_for_all_its_stages(tmp_path, monkeypatch):
    """To start them twice would cost a small run as much as its tiles do."""
    from pipeline.cluster import local  # noqa: PLC0415 - of this test only

    begun = []
    start = local.start

    def counted(config, spec, folder):
        begun.append(spec)
        return start(config, spec, folder)

    monkeypatch.setattr(local, "start", counted)
    run = run_of(tmp_path)
    stages.plan(run.now)
    assert stages.follow(run.now).computed == 4
    assert len(begun) == 1


# --- planned by a sample --------------------------------------------------------------------------------------------------


def voxels_read(monkeypatch) -> list[int]:
    """How many voxels each read of a volume takes, from now on."""
    read, voxels = Volume.read, []

    def counting(volume, box):
        voxels.append(box.voxels)
        return read(volume, box)

    monkeypatch.setattr(Volume, "read", counting)
    return voxels


@pytest.mark.parametrize("mode", ["percentile", "zscore", "minmax"])
def test_a_plan_reads_its_sample_and_no_pass(tmp_path, monkeypatch, mode):
    """Of ten terabytes a plan is made in seconds: a constant number of boxes, whatever the volume's size."""
    shape = (64, 256, 256)
    run = make_run(
        tmp_path,
        architecture=NETWORK,
        shape=shape,
        dtype="float32",
        normalize={"mode": mode},
        tiles={"core": [64, 64, 64]},
    )
    voxels = voxels_read(monkeypatch)
    plan = make_plan(run.config, Machine(cores=2, memory_bytes=4 * 10**9))
    assert plan.survey.sample == len(voxels) == statistics.SAMPLE_BOXES
    assert max(voxels) <= 2**16
    voxels.clear()
    again = make_plan(run.config, Machine(cores=2, memory_bytes=4 * 10**9), earlier=plan, governs=True)
    assert voxels == []
    assert (again.fingerprint, again.normalization) == (plan.fingerprint, plan.normalization)
    statistics.measured(plan.normalization, open_volume(str(tmp_path / "input.zarr")), nonfinite="fail")
    assert sum(voxels) >= np.prod(shape)  # the negative control: what a pass is


def test_what_the_plan_resolved_by_its_sample_stands(tmp_path, pooled, monkeypatch):
    """The survey's numbers are others than the sample's; neither tiles nor precision nor fingerprint follow them."""
    monkeypatch.setattr(statistics, "_sample_boxes", lambda volume: [next(Parts(volume.shape, (4, 4, 4)).boxes(0))])
    run = run_of(tmp_path, "zscore")
    plan = stages.plan(run.now)
    stages.follow(run.now)
    assert run.plan == plan
    assert run.directory.load_statistics().normalization != plan.normalization
    assert stages.plan(run.now) == plan


def test_the_plan_says_what_the_survey_will_cost(tmp_path, capsys):
    """Passes and bytes, before anybody starts a worker; and that its own numbers are a sample's."""
    run = run_of(tmp_path)
    assert command("plan", run.yaml, "--measure") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "survey up to 4 passes, up to 0.001 GB read" in told
    assert "from a sample of 4 boxes; the survey measures the whole volume" in told


def test_tiles_are_not_computed_by_the_numbers_of_a_sample(tmp_path):
    """The stages can be run alone; infer before survey is refused."""
    run = run_of(tmp_path)
    stages.plan(run.now)
    with pytest.raises(PlanError, match="are not measured yet: the stage `survey` comes before"):
        stages.infer(run.now)
    assert done_entries(run.directory) == []
    assert not run.output.exists()  # with one, what is asked for could not be changed any more


# --- killed and resumed ---------------------------------------------------------------------------------------------------

WATCH = """
import os, pathlib, sys, time

here = pathlib.Path(__file__).parent

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "pipeline.planning.resolve":
            import pipeline.planning.statistics
            pipeline.planning.statistics.READ_BYTES = 2**15
        if name == "pipeline.cluster.survey":
            import pipeline.core.statistics as statistics
            boxes = statistics.Parts.boxes
            def watched(parts, part):
                with (here / "looked").open("a") as file:
                    file.write(f"{part}\\n")
                while part == 12 and (here / "held").exists():
                    time.sleep(0.05)
                return boxes(parts, part)
            statistics.Parts.boxes = watched

sys.meta_path.insert(0, Watch())
"""


@pytest.mark.slow
def test_a_survey_that_was_killed_goes_on_where_it_was(started, tmp_path, pooled, monkeypatch):  # noqa: F811 - the fixture
    """`kill -9` in the middle of a pass: what parts gave is kept, no part of it is read again, and the bytes are those of a calm run."""
    watch = tmp_path / "watch"
    watch.mkdir()
    (watch / "sitecustomize.py").write_text(textwrap.dedent(WATCH))
    (watch / "held").touch()
    calm, run = (run_of(tmp_path / name, "percentile", "uint8") for name in ("calm", "killed"))
    with monkeypatch.context() as patch:
        patch.setattr(statistics, "READ_BYTES", 2**15)
        stages.plan(calm.now)
    stages.follow(calm.now)

    monkeypatch.setenv("PYTHONPATH", f"{watch}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    first = started("run", run.yaml, "--no-prefect")
    wait_until(lambda: len(list(run.directory.parts())) >= 8 or not first.is_running())
    assert first.is_running(), first.error
    family = first.family()
    first.kill()
    first.wait()
    wait_until(lambda: not alive(family))
    kept = {record.part for record in run.directory.parts()}
    assert 8 <= len(kept) < 16
    assert 12 not in kept
    assert not run.directory.statistics_path.exists()

    (watch / "held").unlink()
    (watch / "looked").unlink()
    second = started("run", run.yaml, "--no-prefect")
    assert second.wait() == 0, second.error
    looked = [int(line) for line in (watch / "looked").read_text().split()]
    assert sorted(looked) == sorted(set(range(16)) - kept)
    assert run.directory.load_statistics().normalization == calm.directory.load_statistics().normalization
    assert run.plan.fingerprint == calm.plan.fingerprint
    assert stored_objects(run.output) == stored_objects(calm.output)


@pytest.mark.usefixtures("_small_boxes")
def test_a_damaged_record_costs_its_part_and_no_other(tmp_path, pooled, monkeypatch):
    """A torn last line, and one with a flipped bit: both parts are measured again; the numbers are the same."""
    run = run_of(tmp_path, "zscore")
    stages.plan(run.now)
    with pytest.raises(KeyboardInterrupt), cut_off(monkeypatch, after=10):
        stages.survey(run.now)
    lines = run.directory.survey_path.read_bytes().split(b"\n")
    assert len(lines) == 11
    lines[3] = lines[3].replace(b'"part"', b'"pbrt"')
    run.directory.survey_path.write_bytes(b"\n".join(lines[:-2]) + b"\n" + lines[-2][:40])
    kept = {record.part for record in run.directory.parts()}
    assert len(kept) == 8
    given = []
    dispatch = surveying.dispatch

    def watched(pool, work, indices, **options):
        given.extend(indices)
        return dispatch(pool, work, indices, **options)

    monkeypatch.setattr(surveying, "dispatch", watched)
    found = stages.survey(run.now)
    assert sorted(given) == sorted(set(range(16)) - kept)
    volume = open_volume(str(tmp_path / "input.zarr"))
    assert found.normalization == statistics.measured(Normalization("zscore"), volume, nonfinite="fail")


@contextmanager
def cut_off(monkeypatch, after: int) -> Iterator[None]:
    """A survey whose driver is asked to end once so many parts are in."""
    dispatch = surveying.dispatch

    def some(*arguments, **options):
        outcomes = dispatch(*arguments, **options)
        for number, outcome in enumerate(outcomes, start=1):
            yield outcome
            if number == after:
                outcomes.close()
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(surveying, "dispatch", some)
        yield


# --- other numbers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def done(tmp_path, pooled) -> Run:
    """A run that is done."""
    run = run_of(tmp_path)
    stages.plan(run.now)
    stages.follow(run.now)
    return run


def edited(run: Run) -> Statistics:
    """Other numbers in statistics.json, with a digest that fits them."""
    found = run.directory.load_statistics()
    other = replace(found, normalization=replace(found.normalization, offset=found.normalization.offset + 1e-9))
    run.directory.write_statistics(other)
    return other


def test_tiles_of_other_numbers_are_refused_by_name(done, capsys):
    """Half of a volume by one normalisation and half by another is wrong everywhere and looks right."""
    measured, objects = done.directory.load_statistics(), stored_objects(done.output)
    other = edited(done)
    for stage in (stages.survey, stages.infer, stages.verify, stages.report):
        with pytest.raises(StorageError, match="has other numbers than those by which 4 of 4 tiles") as refused:
            stage(done.now)
        for fact in (
            "statistics.json",
            repr(other.normalization.offset),
            repr(measured.normalization.offset),
            "ledger.jsonl",
        ):
            assert fact in str(refused.value)
    assert command("run", done.yaml, "--no-prefect") == 2
    assert "Delete '" in capsys.readouterr().err
    assert stored_objects(done.output) == objects
    done.directory.statistics_path.unlink()  # what the words say
    assert stages.follow(done.now).computed == 0
    assert done.directory.load_statistics() == measured


def test_other_numbers_before_the_first_tile_are_the_runs_own(tmp_path, pooled):
    """The negative control: it is the tiles that refuse. Where none is done there is nothing to mix."""
    run = run_of(tmp_path)
    stages.plan(run.now)
    stages.survey(run.now)
    other = edited(run)
    assert stages.follow(run.now).computed == 4
    assert run.directory.progress(run.plan).surveyed.digest == other.digest


@pytest.mark.parametrize(
    "spoil", [Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(path.read_bytes()[:99])]
)
def test_statistics_that_are_lost_or_damaged_are_put_back_from_the_ledger(done, spoil, monkeypatch):
    """A pass over ten terabytes for two numbers that stand in the ledger would be a day."""
    measured = done.directory.load_statistics()
    spoil(done.directory.statistics_path)
    monkeypatch.setattr(surveying, "dispatch", lambda *_, **__: pytest.fail("it is measured"))
    assert stages.verify(done.now).complete
    assert stages.follow(done.now).computed == 0
    assert done.directory.load_statistics() == measured


# --- input that is bad, or changes ----------------------------------------------------------------------------------------


def test_values_that_are_not_finite_are_refused_by_their_place_before_any_tile(tmp_path, pooled, capsys, monkeypatch):
    """One NaN that the plan's sample does not touch; what to do is said, and that done it goes on."""
    monkeypatch.setattr(statistics, "_sample_boxes", lambda volume: [next(Parts(volume.shape, (4, 4, 4)).boxes(0))])
    run = run_of(tmp_path, "zscore")
    dispatch, attempts = surveying.dispatch, []

    def watched(*arguments, **options):
        assert options["retries"] > 0
        for outcome in dispatch(*arguments, **options):
            attempts.extend([outcome.attempt] * outcome.failed)
            yield outcome

    monkeypatch.setattr(surveying, "dispatch", watched)
    volume = run.volume.copy()
    volume[31, 31, 63] = np.nan
    save_array(tmp_path / "input.zarr", volume, (16, 16, 16), overwrite=True)
    assert command("run", run.yaml, "--no-prefect") == 2
    assert "holds 1 values that are not finite" in capsys.readouterr().err
    assert attempts == [1]  # they are so at any attempt
    assert done_entries(run.directory) == []
    assert command("run", run.having(input={"nonfinite": "zero"}).yaml, "--no-prefect") == 0


def test_voxels_that_change_while_they_are_measured_are_noticed(tmp_path, pooled, monkeypatch):
    """Half of the numbers of the old voxels, half of the new: they are never written."""
    run = run_of(tmp_path)
    stages.plan(run.now)
    dispatch = surveying.dispatch

    def changing(*arguments, **options):
        os.utime(tmp_path / "input.zarr/c/0/0/0")
        return dispatch(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(surveying, "dispatch", changing)
        with pytest.raises(InferenceError, match="changed while it was read: 1 chunk is written again"):
            stages.survey(run.now)
    assert not run.directory.statistics_path.exists()
    assert not run.directory.survey_path.exists()  # the input may be put back, and nothing would tell of these parts
    stages.plan(run.now, input_changed="redo")
    assert stages.follow(run.now).computed == 4


def test_numbers_go_with_the_voxels_that_they_were_measured_of(tmp_path, pooled):
    """Written again in other chunks, and once more in the first: a plan of each, and no numbers of what was there before."""
    run = run_of(tmp_path)
    first = stages.plan(run.now)
    before = stages.survey(run.now)
    save_array(tmp_path / "input.zarr", run.volume + 1000, (32, 32, 32), overwrite=True)
    stages.plan(run.now)
    assert run.directory.load_statistics() is None
    chunks = first.source.chunks
    save_array(tmp_path / "input.zarr", run.volume + 2000, chunks, overwrite=True)
    assert stages.plan(run.now).fingerprint == first.fingerprint
    stages.follow(run.now)
    low = np.percentile((run.volume + 2000).astype(np.float64), 1)
    assert run.directory.load_statistics().normalization.offset == pytest.approx(low)
    assert before.normalization.offset != pytest.approx(low)  # the control: these it would have been


def meanwhile(monkeypatch, what) -> None:
    """Have something done by others while a plan is made, after the run's state was looked at."""
    from pipeline.stages import plan as planning  # noqa: PLC0415 - the module, which has the name of its function

    resolve = sys.modules[planning.__module__]._resolve

    def late(*arguments, **options):
        resolved = resolve(*arguments, **options)
        what()
        return resolved

    monkeypatch.setattr(sys.modules[planning.__module__], "_resolve", late)


def test_tiles_that_others_finish_while_a_redo_is_planned_are_computed_again(done, monkeypatch):
    """They were computed of the earlier voxels, by the earlier numbers."""
    last = [record for record in done.directory.records() if isinstance(record, TileRecord)][-1]
    with done.directory.ledger() as ledger:
        ledger.append(replace(last, state="invalid", units={}))

    def finish():
        with done.directory.ledger() as ledger:
            ledger.append(last)

    os.utime(done.yaml.parent / "input.zarr/c/0/0/0")
    with monkeypatch.context() as patch:
        meanwhile(patch, finish)
        plan = stages.plan(done.now, input_changed="redo")
    progress = done.directory.progress(plan)
    assert (progress.count("done"), progress.stand_by, progress.surveyed) == (0, "", None)
    assert stages.follow(done.now).computed == 4


def test_a_plan_that_others_made_meanwhile_is_not_written_over(tmp_path, monkeypatch):
    """Theirs may have begun; whoever runs again plans on what is there."""
    run = run_of(tmp_path)
    stages.plan(run.now)
    other = run.having(tiles={"core": [32, 16, 64]})
    with monkeypatch.context() as patch:
        meanwhile(patch, lambda: run.directory.write(run.directory.plan_path, theirs.to_json()))
        theirs = make_plan(other.config, Machine(1, 2**32))
        with pytest.raises(StorageError, match="Another process planned or began"):
            stages.plan(run.now)
    assert run.directory.load_plan().fingerprint == theirs.fingerprint


def test_voxels_that_change_between_survey_and_tiles_are_not_published(tmp_path, pooled):
    """The numbers are of voxels that are not there any more: whoever computes them again measures them again."""
    run = run_of(tmp_path)
    stages.plan(run.now)
    stages.survey(run.now)
    os.utime(tmp_path / "input.zarr/c/0/0/0")
    with pytest.raises(
        InferenceError, match=r"changed while it was read: 1 chunk is written again .* Nothing is published"
    ):
        stages.infer(run.now)
    stages.plan(run.now, input_changed="redo")
    assert not run.directory.statistics_path.exists()
    assert stages.follow(run.now).computed == 4


# --- plans of before ------------------------------------------------------------------------------------------------------

BEGUN = Path(__file__).parent / "begun-0.1"
"""A run by percentiles that 0.1 planned and began: two of its four tiles are done. Files as it left them."""


@pytest.fixture
def begun(tmp_path) -> Run:
    """A copy of it, whose input was counted where it lies now."""
    shutil.copytree(BEGUN, tmp_path, dirs_exist_ok=True)
    volume = zarr.open_array(str(tmp_path / "input.zarr"), mode="r")[...]
    content = {
        "input": {"url": str(tmp_path / "input.zarr")},
        "output": {"url": str(tmp_path / "output.zarr")},
        "model": {"checkpoint": str(tmp_path / "weights.pt"), "padding": "same"},
        "normalize": {"mode": "percentile", "low": 2.0, "high": 97.5},
        "compute": {"device": "cpu", "threads": 1},
        "cluster": {"workers": 2, "memory_gb": 4},
        "log": {"format": "json"},
    }
    from tests.pipeline_cases import random_network  # noqa: PLC0415 - of this fixture only

    run = Run(tmp_path, content, random_network(NETWORK), volume).having()
    plan = json.loads(run.directory.plan_path.read_text())
    _, inventory = stages.count_input(run.config)
    plan["stored"] = asdict(inventory.stored)
    run.directory.plan_path.write_text(json.dumps(plan))
    run.directory.write_inventory(inventory)
    return run


@pytest.mark.usefixtures("_never_measured")
def test_a_run_that_0_1_began_goes_on_with_the_numbers_of_its_plan(begun, pooled):
    """Its fingerprint covers them, so its tiles hold: nothing is measured, and only the others are computed."""
    old = begun.plan
    assert (old.identity_version, old.survey) == (1, None)
    assert old.fingerprint == "7f0791b08b3b4d8d6a0f9a7003d3e2b413d788c03e53cc6dfb270008ff3377c3"
    objects = stored_objects(begun.output)
    stages.plan(begun.now)
    assert begun.plan.fingerprint == old.fingerprint
    assert stages.follow(begun.now).computed == 2
    assert not begun.directory.statistics_path.exists()
    assert objects.items() <= stored_objects(begun.output).items() | objects.items()
    assert done_entries(begun.directory) == [0, 1, 2, 3]
    low, high = np.percentile(begun.volume, (2.0, 97.5))
    assert (begun.plan.normalization.offset, begun.plan.normalization.scale) == (low, 1 / (high - low))


def test_a_run_that_0_1_began_is_refused_by_name_under_another_rule(begun, capsys):
    """The negative control: it holds by its rule, and by no other."""
    other = begun.having(normalize={"mode": "percentile", "low": 3.0, "high": 97.5})
    assert command("run", other.yaml, "--no-prefect") == 2
    error = capsys.readouterr().err
    assert "was begun with another plan" in error
    assert "  normalize: {'mode': 'percentile'" in error
    assert len([r for r in begun.directory.records() if isinstance(r, TileRecord)]) == 2


def test_a_run_that_0_1_began_is_surveyed_once_its_input_has_changed(begun, pooled):
    """`redo`: numbers are measured again, by the survey from now on, and no tile of the old ones stays."""
    os.utime(begun.folder / "input.zarr/c/0/0/0")
    before = begun.plan
    with pytest.raises(StorageError, match="--input-changed redo"):
        stages.plan(begun.now)
    stages.plan(begun.now, input_changed="redo")
    assert (begun.plan.identity_version, begun.plan.survey.passes) == (2, 1)
    assert begun.plan.fingerprint != before.fingerprint
    assert stages.follow(begun.now).computed == 4
    assert begun.directory.load_statistics().normalization == before.normalization  # the voxels are the same


@pytest.mark.usefixtures("_never_measured")
def test_numbers_of_a_plan_that_0_1_made_are_taken_over_by_a_plan_that_replaces_it(begun, pooled):
    """Other tiles over the same voxels, before anything was begun: another pass would find the same numbers."""
    shutil.rmtree(begun.output)
    begun.directory.ledger_path.unlink()
    other = begun.having(tiles={"core": [16, 16, 24]})
    plan = stages.plan(other.now)
    assert (plan.identity_version, plan.survey.passes) == (2, 1)
    old = json.loads((BEGUN / "output.zarr.run" / "plan.json").read_text())["normalization"]
    assert stages.survey(other.now).normalization == Normalization(**old)

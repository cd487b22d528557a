"""Networks that look at their whole input, with frozen statistics: by the command line, exact by tiles, measured once."""

import json
import os
import signal
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import stages
from pipeline.core.frozen import Sample
from pipeline.core.machine import Machine
from pipeline.core.network.unet import Architecture
from pipeline.errors import InferenceError, PlanError, StorageError
from pipeline.inference import frozen as measuring
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.networks.evaluate import one_pass
from pipeline.networks.frozen import localised, measured
from pipeline.planning.resolve import bytes_of_sample, make_plan
from tests.core.test_cost import ValuesAlive
from tests.e2e.test_kills import started  # noqa: F401 - the fixture
from tests.e2e.test_run import command
from tests.networks.network_cases import Normed, randomise, save_program
from tests.pipeline_cases import Run, make_run, random_volume, save_array, stored_objects

EQUAL = 1e-5
"""Of the output's range, float32."""

SHAPE = (20, 30, 40)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The module, and its import."""
    folder = tmp_path_factory.mktemp("network")
    module = randomise(Normed()).float()
    save_program(folder / "net.pt2", module)
    assert command("import", folder / "net.pt2", folder / "net.safetensors") == 0
    return module, folder / "net.safetensors"


def volume_of(seed=0):
    """Noise that is not alike everywhere."""
    noise = random_volume(SHAPE, "uint8", seed) // 2
    return (noise + np.linspace(0, 120, SHAPE[2]).astype(np.uint8)).astype(np.uint8)


def run_of(folder, network, volume=None, **frozen_from) -> Run:
    """A run of 12 tiles by frozen statistics."""
    folder.mkdir(exist_ok=True)
    model = {"checkpoint": str(network[1]), "statistics": "frozen"}
    if frozen_from:
        model["frozen_from"] = {"patch": [16, 16, 16], "patches": 6, **frozen_from}
    volume = volume_of() if volume is None else volume
    keys = {"tiles": {"core": [16, 16, 16]}, "compute": {"dtype": "float32"}}
    run = make_run(folder, architecture=Architecture(3, 1, 1), shape=SHAPE, volume=volume, **keys)
    content = {**run.content, "model": model}
    run.yaml.write_text(json.dumps(content))
    return Run(run.folder, content, network[0], volume)


def extended(run) -> torch.Tensor:
    """The volume as the network sees it, mirrored to whole strides; 1 C Z Y X."""
    pads = [(0, -n % 2) for n in SHAPE]
    return torch.from_numpy(np.pad(run.volume.astype(np.float32) / 255, pads, mode="reflect"))[None, None]


def off(run, expected) -> float:
    """Largest difference of the output from a pass, as a share of its range."""
    expected = expected[(0, slice(None), *(slice(0, n) for n in SHAPE))].numpy()
    return float(np.abs(run.array() - expected).max() / np.ptp(expected))


def frozen_pass(run) -> torch.Tensor:
    """One pass of the network by the statistics that the run has measured."""
    statistics = run.directory.load_statistics()
    fixed = localised(load_checkpoint(run.content["model"]["checkpoint"]), statistics.frozen.numbers)
    weights = {name: tuple(w.float() for w in tensors) for name, tensors in fixed.weights.items()}
    return one_pass(fixed.architecture.graph, weights, extended(run))


def test_tiles_by_frozen_statistics_are_one_pass_of_the_frozen_network(network, tmp_path, pooled, capsys):
    """From the library's file to a verified output; the report says how far that is from the network's own pass."""
    run = run_of(tmp_path, network, seed=3)
    assert command("plan", run.yaml) == 0
    assert "6 patches of 16 x 16 x 16 voxels of the volume itself (seed 3)" in capsys.readouterr().out
    assert command("run", run.yaml, "--no-prefect") == 0
    assert len(run.plan.grid) == 12
    assert off(run, frozen_pass(run)) <= EQUAL
    with torch.inference_mode():
        own = network[0](extended(run))
    assert off(run, own) > 10 * EQUAL  # statistics of a sample are others
    assert command("verify", run.yaml) == 0
    content = run.directory.read_json(run.directory.report_path)
    frozen = content["frozen"]
    assert 0 < frozen["frozen"] < 0.5
    assert 0 < frozen["sliding"] < 0.5
    assert len(frozen["parts"]) == 3
    assert "frozen or not" in (run.directory.path / "report.html").read_text()


def test_frozen_over_the_whole_volume_tiles_are_the_networks_own_pass(network, tmp_path, pooled):
    """A patch as large as the volume has no context, and is all of it."""
    run = run_of(tmp_path, network, patches=1, patch=list(SHAPE))
    assert command("run", run.yaml, "--no-prefect") == 0
    assert run.plan.model.frozen.context == (0, 0, 0)
    with torch.inference_mode():
        assert off(run, network[0](extended(run))) <= EQUAL


def test_a_survey_that_ended_midway_ends_with_the_same_bytes(network, tmp_path, pooled, monkeypatch):
    """And what it has measured is measured once: where its file is lost, the ledger has it."""
    whole, ended = (run_of(tmp_path / name, network, seed=1) for name in ("whole", "ended"))
    assert command("run", whole.yaml, "--no-prefect") == 0

    def failing(*_):
        raise InferenceError("ended")

    with monkeypatch.context() as patched:
        patched.setattr(measuring, "freeze", failing)
        assert command("run", ended.yaml, "--no-prefect") != 0
    assert not ended.directory.statistics_path.exists()
    assert command("run", ended.yaml, "--no-prefect") == 0
    assert stored_objects(ended.output) == stored_objects(whole.output)
    numbers = ended.directory.statistics_path.read_bytes()
    assert numbers == whole.directory.statistics_path.read_bytes()
    monkeypatch.setattr(measuring, "freeze", lambda *_: pytest.fail("it is measured again"))
    ended.directory.statistics_path.unlink()
    stages.survey(ended.now)
    assert ended.directory.statistics_path.read_bytes() == numbers


def test_tiles_of_other_statistics_are_refused(network, tmp_path, pooled):
    """The digest in the ledger is that of the numbers."""
    run = run_of(tmp_path, network, seed=1)
    assert command("run", run.yaml, "--no-prefect") == 0
    there = run.directory.load_statistics()
    numbers = {node: tuple(tuple(2 * v for v in w) for w in t) for node, t in there.frozen.numbers.items()}
    run.directory.write_statistics(type(there)(there.normalization, there.over, type(there.frozen)(numbers)))
    with pytest.raises(StorageError, match="other numbers"):
        stages.verify(run.now)


def test_statistics_may_come_from_another_volume(network, tmp_path, pooled):
    """Such as that of training, by its own normalisation; where it lies is not in the fingerprint, what and how is."""
    other = save_array(tmp_path / "other.zarr", volume_of(1) // 3)
    runs = [run_of(tmp_path / str(seed), network, seed=seed, url=str(other)) for seed in (0, 1)]
    plans = [stages.plan(run.now) for run in runs]
    itself = stages.plan(run_of(tmp_path / "itself", network, seed=0).now)
    assert len({plan.fingerprint for plan in (*plans, itself)}) == 3
    assert plans[0].model.frozen.metadata
    assert str(other) not in json.dumps(plans[0].identity())
    found = [stages.survey(run.now).frozen.numbers for run in runs]
    assert found[0].keys() == found[1].keys()
    assert found[0] != found[1]


@pytest.mark.parametrize("elsewhere", [{}, {"device": "cpu", "workers": 8}], ids=["here", "on other machines"])
def test_a_sample_must_fit_the_process_that_measures_it_wherever_the_workers_are(network, tmp_path, elsewhere):
    """The driver holds the maps of all patches; jobs of SLURM and pods have memory of their own, and do not help."""
    run = run_of(tmp_path, network, seed=0)
    needed = bytes_of_sample(load_checkpoint(network[1]).architecture.graph, stages.plan(run.now).model.frozen)
    large = Machine(cores=8, memory_bytes=64 * 10**9, **elsewhere)
    assert make_plan(run.config, replace(large, driver_bytes=needed)).model.frozen
    with pytest.raises(PlanError, match="of this process, wherever the workers are, and the machine has"):
        make_plan(run.config, replace(large, driver_bytes=needed - 1))


def test_memory_that_a_sample_takes_is_bound_before_it_is_measured(network):
    """By what the plan reckons: maps of all patches, and what is made of them on the way."""

    class BytesAlive(ValuesAlive):
        def _take(self, storage, _):
            super()._take(storage, storage.nbytes() // 4)

    checkpoint = load_checkpoint(network[1])
    graph = checkpoint.architecture.graph
    sample = Sample("graph", (64, 64, 64), (32, 32, 32), (4, 4, 4), 6, 0)
    patches = [torch.rand(1, 1, 32, 32, 32) for _ in range(sample.patches)]
    watch = BytesAlive()
    with torch.inference_mode(), watch:
        measured(graph, checkpoint.weights, patches, sample.context)
    assert 4 * watch.most <= bytes_of_sample(graph, sample) <= 6 * 4 * watch.most


def test_what_cannot_be_frozen_is_refused_in_words(network, tmp_path, capsys):
    """Nobody asked; more than memory holds; a volume of another kind."""
    run = run_of(tmp_path, network, seed=0)
    for change, word in [
        ({"statistics": None, "frozen_from": None}, "Set model.statistics to frozen"),
        ({"statistics": None}, "Set model.statistics to frozen"),
        ({"frozen_from": {"patches": 10_000, "patch": [512, 512, 512]}}, "the machine has"),
        (
            {"frozen_from": {"url": str(save_array(tmp_path / "flat.zarr", np.zeros((64, 64), np.uint8)))}},
            "of the same kind",
        ),
        (
            {"checkpoint": None, "statistics": None, "ensemble": [{"checkpoint": str(network[1])}] * 2},
            "Statistics are frozen of one network alone",
        ),
        (
            {"exact": False, "window": {"core": [8, 8, 8], "overlap": [8, 8, 8]}},
            "exact is false and statistics are frozen",
        ),
    ]:
        model = {key: value for key, value in {**run.content["model"], **change}.items() if value is not None}
        run.yaml.write_text(json.dumps({**run.content, "model": model}))
        assert command("plan", run.yaml) == 2
        assert word in capsys.readouterr().err


# --- killed and resumed ---------------------------------------------------------------------------------------------------

WATCH = """
import os, pathlib, signal, sys

EVENT, NUMBER = (pathlib.Path(__file__).parent / "event").read_text().split()
seen = 0

def killed(event, function):
    def watched(*arguments, **options):
        global seen
        seen += event == EVENT
        if event == EVENT and seen == int(NUMBER):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return watched

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "pipeline.inference.frozen":
            import pipeline.networks.frozen as measuring
            measuring._statistics = killed("norm", measuring._statistics)
            measuring.distances = killed("distances", measuring.distances)
        if name == "pipeline.stages.survey":
            from pipeline.outputs.rundir import RunDirectory
            RunDirectory.write_statistics = killed("write", RunDirectory.write_statistics)
            RunDirectory.drop_parts = killed("written", RunDirectory.drop_parts)

sys.meta_path.insert(0, Watch())
"""

EVENTS = [
    "norm 2",  # of the whole sample: the first is fixed
    pytest.param("norm 1", marks=pytest.mark.fault),
    pytest.param("norm 5", marks=pytest.mark.fault),  # of a part of it
    pytest.param("distances 1", marks=pytest.mark.fault),  # all is measured, and nothing kept
    pytest.param("write 1", marks=pytest.mark.fault),
    pytest.param("written 1", marks=pytest.mark.fault),
]


@pytest.mark.slow
@pytest.mark.parametrize("event", EVENTS)
def test_a_frozen_survey_that_was_killed_ends_with_the_same_bytes(
    event,
    network,
    started,  # noqa: F811 - the fixture
    tmp_path,
    pooled,
    monkeypatch,
    capsys,
):
    """`kill -9` of the driver at a step of the measurement; meanwhile every command says what is there, and what is not."""
    watch = tmp_path / "watch"
    watch.mkdir()
    (watch / "sitecustomize.py").write_text(textwrap.dedent(WATCH))
    (watch / "event").write_text(event)
    calm, run = (run_of(tmp_path / name, network, seed=1) for name in ("calm", "killed"))
    assert command("run", calm.yaml, "--no-prefect") == 0
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{watch}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        first = started("run", run.yaml, "--no-prefect")
        assert first.wait() == -signal.SIGKILL, first.error
    assert run.directory.statistics_path.exists() == event.startswith("written")
    assert not run.output.exists()
    capsys.readouterr()

    assert command("verify", run.yaml) == 2
    assert "Nothing was verified" in capsys.readouterr().err
    report = stages.report(run.now)
    assert report["tiles"] == {"total": 12, "done": 0}
    assert (report["frozen"] is None) == (not event.startswith("written"))
    assert command("plan", run.yaml, "--measure") == 0
    assert "statistics of norms" in capsys.readouterr().out
    assert not run.output.exists()

    assert command("run", run.yaml, "--no-prefect") == 0
    assert run.directory.statistics_path.read_bytes() == calm.directory.statistics_path.read_bytes()
    assert stored_objects(run.output) == stored_objects(calm.output)
    assert command("verify", run.yaml) == 0

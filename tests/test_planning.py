"""What `auto` becomes: dtype, spec and memory, and the measured expectation; refusals are in tests/e2e/test_refusals.py."""

import time
from dataclasses import replace

import numpy as np
import pytest

from pipeline.cluster.pool import machine
from pipeline.core.machine import Machine
from pipeline.core.network.receptive import least_halo
from pipeline.core.network.stream import Stream
from pipeline.core.network.unet import Architecture
from pipeline.core.normalization import Normalization
from pipeline.core.tiles.cost import multiply_adds, turn_multiply_adds
from pipeline.core.tiles.tiling import MEMORY_SHARE
from pipeline.errors import ConfigError, PlanError
from pipeline.networks.checkpoint import load_checkpoint, save_checkpoint
from pipeline.planning import measure, resolve
from pipeline.planning.measure import expectation
from pipeline.planning.resolve import make_plan, worker_choices, workers_that_fit
from tests.pipeline_cases import Run, make_run

SOLID = Architecture(3, 1, 4)
MACHINE = Machine(cores=8, memory_bytes=32 * 10**9)


def run_of(folder, *, shape=(24, 40, 36), architecture=SOLID, **sections) -> Run:
    """A run in which all that may be left to the planner is."""
    keys = {
        "compute": {"device": "cpu", "threads": "auto", **sections.pop("compute", {})},
        "cluster": {"workers": "auto", "memory_gb": "auto", **sections.pop("cluster", {})},
    }
    return make_run(folder, architecture=architecture, shape=shape, **keys, **sections)


# --- what a package declares -------------------------------------------------------------------------------------------


def declared_run(folder, *, activation="sigmoid", **output):
    """A run by a checkpoint that came of a package."""
    folder = folder / str(activation)
    folder.mkdir()
    run = run_of(folder, output=output)
    found = load_checkpoint(run.config.model.checkpoint)
    rule = Normalization("fixed", 3.0, 0.25)
    save_checkpoint(folder / "declared.safetensors", replace(found, activation=activation, normalization=rule))
    model = {"checkpoint": str(folder / "declared.safetensors")}
    content = {key: keys for key, keys in run.content.items() if key != "normalize"} | {"model": model}
    return replace(run, content=content)


def test_what_a_package_declares_is_taken_where_nothing_is_asked(tmp_path):
    """Fixed numbers need no survey, and a sigmoid gives what eight bits hold."""
    plan = make_plan(declared_run(tmp_path, dtype="uint8").config, MACHINE)
    assert (plan.output.activation, plan.survey) == ("sigmoid", None)
    assert (plan.numbers.mode, plan.numbers.offset, plan.numbers.scale) == ("fixed", 3.0, 0.25)


def test_a_plan_warns_of_what_contradicts_a_package(tmp_path):
    """Both are somebody's choice; the one of the YAML is done."""
    run = declared_run(tmp_path, activation="none").having(
        normalize={"mode": "minmax"}, output={"activation": "sigmoid"}
    )
    plan = make_plan(run.config, MACHINE)
    assert (plan.output.activation, plan.normalization.mode) == ("sigmoid", "minmax")
    assert [
        w for w in plan.warnings if "output.activation is 'sigmoid', but the network's package declares 'none'" in w
    ]
    assert [w for w in plan.warnings if "normalize.mode is 'minmax', but the checkpoint was trained with 'fixed'" in w]
    same = declared_run(tmp_path).having(output={"activation": "sigmoid"})
    assert not [w for w in make_plan(same.config, MACHINE).warnings if "declares" in w or "trained with" in w]


def test_eight_bits_need_a_range_that_somebody_names(tmp_path):
    """A network of ours gives logits; so does a package that declares nothing."""
    for activation in (None, "none"):
        with pytest.raises(ConfigError, match="means nothing for raw logits"):
            make_plan(declared_run(tmp_path, activation=activation, dtype="uint8").config, MACHINE)


# --- dtype --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bfloat16(monkeypatch):
    """Hardware that multiplies bfloat16, or not."""
    return lambda there: monkeypatch.setattr(resolve, "computes_bfloat16", lambda _: there)


def dtype_of(folder, output="uint8", activation="sigmoid", **compute):
    """What the plan computes in, and why."""
    run = run_of(folder, compute={"dtype": "auto", **compute}, output={"dtype": output, "activation": activation})
    found = make_plan(run.config, MACHINE).compute
    return found.dtype, found.reason


def test_bfloat16_is_taken_where_nobody_can_see_the_difference(tmp_path, bfloat16):
    """A tolerance that was stated, and met in a region of the volume itself."""
    bfloat16(True)
    dtype, reason = dtype_of(tmp_path, tolerance=0.5)
    assert dtype == "bfloat16"
    assert "within 0.5" in reason


def test_float32_is_kept_where_the_difference_would_show(tmp_path, bfloat16):
    """Random weights of full variance differ by more than one step of eight bits."""
    bfloat16(True)
    dtype, reason = dtype_of(tmp_path, tolerance=1e-9)
    assert dtype == "float32"
    assert "more than 1e-09" in reason
    assert "compute.tolerance" in reason


def test_eight_bits_show_one_step(tmp_path, bfloat16, monkeypatch):
    """The default tolerance is what a uint8 output can show, to the step."""
    bfloat16(True)
    exact = np.full((1, 8, 8, 8), 0.5, np.float32)
    for difference, expected in [(0.9 / 255, "bfloat16"), (1.1 / 255, "float32")]:
        answers = iter([exact, exact + np.float32(difference)])
        monkeypatch.setattr(resolve, "predicted", lambda *_, answers=answers: next(answers))
        (tmp_path / expected).mkdir()
        assert dtype_of(tmp_path / expected)[0] == expected


def test_a_float32_output_shows_everything_unless_a_tolerance_says_otherwise(tmp_path, bfloat16):
    """Whoever asks for float32 gets float32."""
    bfloat16(True)
    dtype, reason = dtype_of(tmp_path, output="float32", activation="none")
    assert (dtype, "float32 output shows every difference" in reason) == ("float32", True)


def test_hardware_without_bfloat16_computes_in_float32(tmp_path, bfloat16):
    """Emulated it would be slower, and worse."""
    bfloat16(False)
    assert dtype_of(tmp_path, tolerance=0.5) == ("float32", "the hardware has no bfloat16")


def test_what_is_asked_for_is_not_probed(tmp_path, bfloat16, monkeypatch):
    """The probe costs a second, and no plan that needs none waits for it."""
    bfloat16(True)
    monkeypatch.setattr(resolve, "predicted", None)
    assert dtype_of(tmp_path, dtype="bfloat16") == ("bfloat16", "as asked for")


def test_a_governing_plan_keeps_its_dtype(tmp_path, bfloat16):
    """A run that was begun in one precision ends in it, on whatever machine."""
    bfloat16(True)
    keys = {"output": {"dtype": "uint8", "activation": "sigmoid"}}
    run = run_of(tmp_path, compute={"dtype": "auto", "tolerance": 0.5}, **keys)
    first = make_plan(run.config, MACHINE)
    bfloat16(False)
    again = make_plan(run.config, MACHINE, earlier=first, governs=True)
    assert again.compute == first.compute
    assert again.fingerprint == first.fingerprint


# --- workers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "threads", "expected"),
    [
        (3, 2, [(3, 2)]),
        (3, "auto", [(3, 2)]),
        ("auto", 4, [(2, 4)]),
        ("auto", 100, [(1, 100)]),
        ("auto", "auto", [(1, 8), (2, 4), (4, 2), (8, 1)]),
    ],
)
def test_workers_use_the_whole_machine(tmp_path, workers, threads, expected):
    """Compute threads in all are the machine's cores, however they are shared, unless the user says otherwise."""
    run = run_of(tmp_path, compute={"threads": threads}, cluster={"workers": workers})
    assert worker_choices(run.config, MACHINE, "cpu") == expected


def test_one_process_a_gpu(tmp_path, monkeypatch):
    """Two processes on one card take each other's memory."""
    monkeypatch.setattr(resolve, "device_count", lambda _: 4)
    assert worker_choices(run_of(tmp_path).config, MACHINE, "cuda") == [(4, 2)]


def test_workers_and_threads_are_chosen_together(tmp_path):
    """Of one small volume many workers would each compute a halo; threads share one."""
    run = run_of(tmp_path, architecture=Architecture(3, 3, 4), shape=(64, 64, 64))
    plan = make_plan(run.config, MACHINE)
    assert plan.compute.threads == 8
    assert plan.amplification == 1.0


def test_a_plan_for_few_workers_runs_with_as_many_as_the_memory_holds(tmp_path):
    """A governing plan's tiles are what they are: fewer processes start, none is refused, none is ended for memory."""
    run = run_of(tmp_path, cluster={"workers": 1})
    plan = make_plan(run.config, MACHINE)
    many = run.having(cluster={"workers": 8})
    small = Machine(cores=8, memory_bytes=int(3.5 * plan.cost.worker_bytes / MEMORY_SHARE))
    again = make_plan(many.config, small, earlier=plan, governs=True)
    assert again.fingerprint == plan.fingerprint
    assert workers_that_fit(many.config, small, again) == 3
    assert workers_that_fit(many.config, MACHINE, again) == 8
    given = many.having(cluster={"memory_gb": 1})  # the user knows
    assert workers_that_fit(given.config, small, again) == 8


def test_no_worker_fits_a_machine_without_memory(tmp_path):
    """The refusal speaks of the spec with the most memory a worker."""
    with pytest.raises(PlanError, match=r"A worker has 0\.5 GB"):
        make_plan(run_of(tmp_path).config, replace(MACHINE, memory_bytes=5 * 10**8))


# --- the expected time --------------------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize("shape", [(24, 40, 36), (200, 24, 24)], ids=["a short column", "a long column"])
def test_the_expected_time_is_near_the_time_that_it_takes(tmp_path, shape):
    """A plan says what it will cost; the bounds are wide, since a busy machine says anything."""
    run = run_of(
        tmp_path, shape=shape, architecture=Architecture(3, 1, 16), cluster={"workers": 1}, compute={"threads": 1}
    )
    plan = make_plan(run.config, MACHINE)
    found = expectation(plan, 1, load_checkpoint(plan.model.checkpoint))
    assert found.seconds == max(found.compute_seconds, found.read_seconds) > 0
    assert found.compute_seconds == pytest.approx(plan.cost.multiply_adds / found.multiply_adds_a_second)
    predictor = measure.predictor_of(load_checkpoint(plan.model.checkpoint), plan)
    started = time.perf_counter()
    for tile in plan.grid:
        for _ in predictor.predict(tile, predictor.zeros(tile)):
            pass
    seconds = time.perf_counter() - started
    assert seconds / 10 < found.compute_seconds < seconds * 10


def test_more_workers_take_less_time_and_never_less_than_their_share(tmp_path, monkeypatch):
    """The busiest worker rules: three tiles on two workers take as long as four."""
    run = run_of(tmp_path, tiles={"core": [24, 40, 12]})
    plan = make_plan(run.config, MACHINE)
    assert len(plan.grid) == 3
    monkeypatch.setattr(measure, "_arithmetic_rate", lambda *_: 1e6)
    monkeypatch.setattr(measure, "_seconds_a_voxel_decoded", lambda _: 0.0)
    one, two, three, four = (expectation(plan, n, load_checkpoint(plan.model.checkpoint)).seconds for n in (1, 2, 3, 4))
    assert (two, three, four) == pytest.approx((2 * one / 3, one / 3, one / 3))


def test_a_turns_arithmetic_is_the_tiles_over_its_turns():
    """A long column is its steady turn, over and over."""
    stream = Stream.over(SOLID.graph, (4000, 16, 16), (4000, 16, 16), least_halo(SOLID.graph), 8)
    schedule = stream.schedule(stream.grid.tile(0))
    assert turn_multiply_adds(schedule) * 500 == multiply_adds(schedule)


# --- workers elsewhere --------------------------------------------------------------------------------------------------

JOBS = {"kind": "slurm", "workers": 3, "memory_gb": 4, "slurm": {"walltime": "01:00:00", "cores": 5}}


def jobs_of(folder, gpus=0, **compute):
    """A run on jobs of SLURM, and what those are to have."""
    cluster = {**JOBS, "slurm": {**JOBS["slurm"], "gpus": gpus}}
    run = run_of(folder, compute={"device": "auto", **compute}, cluster=cluster)
    return run.config, machine(run.config.cluster)


def test_jobs_are_planned_for_what_they_ask_and_not_for_this_machine(tmp_path):
    """The plan is made on a login node, which is neither as large nor as small as a job."""
    config, offered = jobs_of(tmp_path)
    assert replace(offered, driver_bytes=None) == Machine(cores=15, memory_bytes=12 * 10**9, workers=3, device="cpu")
    found = make_plan(config, offered)
    assert (found.compute.device, found.compute.threads) == ("cpu", 5)
    assert found.cost.worker_bytes <= 4 * 10**9
    assert workers_that_fit(config, offered, found) == 3


def test_cards_that_cannot_be_seen_must_be_described(tmp_path, monkeypatch):
    """Tiles that do not fit a card fail each on each; and a login node has none to look at."""
    monkeypatch.setattr(resolve, "visible_cards", tuple)
    config, offered = jobs_of(tmp_path, gpus=1)
    with pytest.raises(ConfigError, match=r"Set compute\.device_memory_gb to the free memory of the smallest"):
        make_plan(config, offered)


def test_a_plan_for_cards_elsewhere_computes_on_them_in_a_type_that_was_not_guessed(tmp_path, monkeypatch):
    """bfloat16 is taken where it was tried; there it can be asked for."""
    monkeypatch.setattr(resolve, "visible_cards", tuple)
    config, offered = jobs_of(tmp_path, gpus=1, device_memory_gb=16)
    found = make_plan(config, offered).compute
    assert (found.device, found.dtype) == ("cuda", "float32")
    assert "no card here to try bfloat16 on" in found.reason


# --- what is told -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "at", "value", "mode", "warned"),
    [
        ("uint32", (12, 20, 18), 2**24, "none", False),
        ("uint32", (12, 20, 18), 2**24 + 1, "none", True),
        ("uint32", (0, 0, 0), 2**32 - 1, "none", True),
        ("uint32", (23, 39, 35), 2**31, "none", True),
        ("int64", (12, 20, 18), -(2**40), "none", True),
        ("uint64", (12, 20, 18), 2**63, "none", True),
        ("float64", (12, 20, 18), 1e9, "none", True),
        ("float64", (12, 20, 18), 0.1, "none", False),
        ("int32", (5, 5, 30), 2**30, "minmax", True),
        ("float32", (12, 20, 18), 2**30, "none", False),
        ("uint16", (12, 20, 18), 2**16 - 1, "none", False),
    ],
)
def test_values_that_float32_cannot_tell_apart_are_said(tmp_path, dtype, at, value, mode, warned):
    """uint32 above 2^24 loses bits on the way into the network; nobody said so."""
    volume = np.zeros((24, 40, 36), dtype)
    volume[at] = value
    volume[11, 11, 11] = 1
    run = make_run(tmp_path, architecture=SOLID, shape=volume.shape, volume=volume, normalize={"mode": mode})
    found = [w for w in make_plan(run.config, MACHINE).warnings if "it loses bits" in w]
    assert bool(found) is warned


def test_what_the_input_does_not_tell_stands_in_the_plan(tmp_path):
    """Once, beside the other warnings."""
    run = run_of(tmp_path)
    (told,) = [w for w in make_plan(run.config, MACHINE).warnings if "no axes are told" in w]
    assert told == "no axes are told, read as zyx, and the voxel size is unknown; set input.axes if they are others"

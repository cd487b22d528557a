import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.network.receptive import receptive_radius
from pipeline.core.network.unet import Architecture
from pipeline.core.normalization import Normalization
from pipeline.core.plan import Compute, Cost, Model, OutputSpec, Plan, output_bytes
from pipeline.core.statistics import Statistics, Survey
from pipeline.core.volume import Description, Space
from pipeline.errors import PlanError

ARCHITECTURE = Architecture(ndim=3, depth=1, width=4, in_channels=2)
SPACE = Space((40.0, 4.0, 4.0), (20.0, 0.0, 0.0), ("nanometer", "nanometer", None))
PLAN = Plan(
    source=Description("/data/in.zarr", 1, "czyx", 2, (50, 60, 70), "uint16", (16, 32, 32), SPACE, "ab" * 32),
    nonfinite="fail",
    output=OutputSpec("/data/out.zarr", "zyx", "uint8", "sigmoid", (8, 16, 16), (16, 32, 32)),
    model=Model("/models/em.safetensors", "cd" * 32, ARCHITECTURE, 12345),
    normalization=Normalization("percentile", 10.25, 1.0 / 3.0, 0.5, 99.5),
    core=(16, 32, 32),
    halo=(8, 8, 8),
    slab=8,
    compute=Compute("cpu", "float32", 4, "bfloat16 is no faster here"),
    cost=Cost(10**15, 9 * 10**14, 10**9, 2 * 10**9, 10**9, 10**9),
    environment={"torch": "2.13.0", "processor": "fast"},
    warnings=("Voxels are large.",),
    identity_version=1,
)

SURVEYED = replace(PLAN, survey=Survey((16, 32, 64), 1, 10**9, 16), identity_version=2)
"""The same with a survey, which measures what the plan has a sample of."""


def having(plan, name, value):
    """The plan with another value at a path such as `source.shape`."""
    first, _, rest = name.partition(".")
    return replace(plan, **{first: having(getattr(plan, first), rest, value) if rest else value})


CHANGES = {
    "algorithm": ("version", PLAN.version + 1),
    "input.metadata": ("source.metadata_sha256", "ef" * 32),
    "input.shape": ("source.shape", (50, 60, 71)),
    "input.dtype": ("source.dtype", "int16"),
    "input.level": ("source.level", 0),
    "input.axes": ("source.axes", "zyx"),
    "input.nonfinite": ("nonfinite", "zero"),
    "model.weights": ("model.sha256", "ef" * 32),
    "model.architecture": ("model.architecture.padding", "valid"),
    "normalize": ("normalization.offset", 10.25000000001),
    "output.dtype": ("output.dtype", "float32"),
    "output.activation": ("output.activation", "softmax"),
    "output.chunks": ("output.chunks", (8, 16, 32)),
    "output.shards": ("output.shards", None),
    "output.codecs": ("output.codecs", "raw"),
    "tiles.core": ("core", (16, 32, 64)),
    "tiles.halo": ("halo", (8, 8, 10)),
    "tiles.slab": ("slab", 16),
    "compute.device": ("compute.device", "cuda"),
    "compute.dtype": ("compute.dtype", "bfloat16"),
    "compute.threads": ("compute.threads", 5),
}
"""A change of each part of the identity, by its name."""

WHERE_ASKED = {
    "compute.augment": ("compute.augment", "flips"),
}
"""The same of what is in the identity only where it is not as always: plans of earlier versions keep their fingerprints."""

OF_A_SURVEY = {
    "low": ("normalization.low", 0.25),
    "mode": ("normalization.mode", "zscore"),
    "boxes": ("survey.box", (8, 32, 64)),
}
"""Changes of what a survey measures, or of the last bits that it finds."""

NOT_OF_A_SURVEY = {
    "normalization": Normalization("percentile", 9.75, 0.25, 0.5, 99.5),
    "survey.bytes_read": 3,
    "survey.sample": 2,
    "statistics": Statistics(Normalization("percentile", 9.5, 0.25, 0.5, 99.5), {}),
}
"""Numbers of a sample, and those that the survey has measured: the ledger says by which tiles were computed."""

NEUTRAL = {
    "source.url": "/elsewhere/in.zarr",
    "source.space": Space.unknown(3),
    "output.url": "/elsewhere/out.zarr",
    "model.checkpoint": "/elsewhere/em.pt",
    "compute.reason": "as asked for",
    "cost": Cost(1, 1, 1, 1, 1, 1),
    "environment": {"torch": "2.14.0"},
    "warnings": (),
}
"""Changes that leave the output's bytes as they are."""


# --- as JSON ------------------------------------------------------------------------------------------------------------


def test_a_plan_round_trips_through_json():
    """Workers read the plan that the driver wrote: a value that changed on the way would change the output."""
    assert Plan.from_json(PLAN.to_json()) == PLAN
    assert Plan.from_json(SURVEYED.to_json()) == SURVEYED


def test_a_plan_of_a_later_identity_is_refused():
    """What its fingerprint covers is not known here."""
    content = {**json.loads(PLAN.to_json()), "identity_version": 3}
    with pytest.raises(ValueError, match="its identity is of version 3, and this version knows 1 and 2"):
        Plan.from_json(json.dumps(content))


def test_a_plan_without_shards_round_trips():
    """None is not an empty list."""
    plan = having(PLAN, "output.shards", None)
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.output.write_unit == plan.output.chunks


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_statistics_round_trip_exactly(offset, scale):
    """The last bit of a statistic is part of the output's bytes."""
    plan = replace(PLAN, normalization=Normalization("zscore", offset, scale))
    assert Plan.from_json(plan.to_json()) == plan


def test_a_reader_of_the_json_finds_its_tiles_counted():
    """People and scripts read plan.json too."""
    content = json.loads(PLAN.to_json())
    assert (content["tiles"], content["counts"]) == (len(PLAN.grid), [4, 2, 3])
    assert content["fingerprint"] == PLAN.fingerprint


@pytest.mark.parametrize("key", CHANGES)
def test_a_plan_that_was_changed_by_hand_is_refused(key):
    """Its fingerprint would vouch for bytes that another plan wrote."""
    changed = json.loads(having(PLAN, *CHANGES[key]).to_json())
    changed["fingerprint"] = PLAN.fingerprint
    with pytest.raises(ValueError, match="fingerprint"):
        Plan.from_json(json.dumps(changed))


@given(st.integers(0, len(PLAN.to_json()) - 1), st.characters(codec="ascii"))
def test_a_changed_character_is_an_error_wherever_it_matters(place, character):
    """A damaged plan must not run as another plan; what it may still be is the same plan under other paths or notes."""
    text = PLAN.to_json()
    try:
        found = Plan.from_json(text[:place] + character + text[place + 1 :])
    except (ValueError, KeyError, TypeError):
        return
    assert found.identity() == PLAN.identity()


def leaves(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all that a JSON document holds, branches included."""
    yield path
    if isinstance(content, dict | list):
        for key, child in content.items() if isinstance(content, dict) else enumerate(content):
            yield from leaves(child, (*path, key))


def damaged(path, value):
    """The plan's JSON with another value at a path."""
    content = whole = {"plan": json.loads(PLAN.to_json())}
    *parents, last = ("plan", *path)
    for key in parents:
        content = content[key]
    content[last] = value
    return json.dumps(whole["plan"])


@pytest.mark.parametrize("value", [None, 3, "text", [], {}, [1, 2], True], ids=str)
def test_a_plan_of_wrong_types_is_one_of_three_errors(value):
    """A run directory that was written by another version is reported as such, not as a defect of this one."""
    for path in leaves(json.loads(PLAN.to_json())):
        try:
            found = Plan.from_json(damaged(path, value))
        except (ValueError, KeyError, TypeError):
            continue
        assert found.identity() == PLAN.identity(), path


# --- identity -----------------------------------------------------------------------------------------------------------


def test_the_table_of_changes_covers_the_identity():
    """A field that is added to the identity must be added to these tests."""
    assert list(CHANGES) == list(PLAN.identity())


@pytest.mark.parametrize("key", WHERE_ASKED)
def test_what_is_as_always_is_no_part_of_the_identity(key):
    """And what is not, is: it changes the output's bytes."""
    changed = having(PLAN, *WHERE_ASKED[key])
    assert key not in PLAN.identity()
    assert key in changed.identity()
    assert changed.fingerprint != PLAN.fingerprint
    assert Plan.from_json(changed.to_json()) == changed


@pytest.mark.parametrize("key", CHANGES)
def test_a_fingerprint_changes_with_each_part_of_the_identity(key):
    """Each of them changes the output's bytes, so tiles of the two plans must not be mixed."""
    changed = having(PLAN, *CHANGES[key])
    assert changed.fingerprint != PLAN.fingerprint
    (line,) = PLAN.differences(changed)
    assert line.startswith(f"{key}: ")


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_fingerprint_does_not_change_with_what_leaves_the_bytes_alone(name):
    """A dataset that was moved, or a new version of torch, must not cost a day of work."""
    changed = having(PLAN, name, NEUTRAL[name])
    assert changed != PLAN
    assert changed.fingerprint == PLAN.fingerprint
    assert PLAN.differences(changed) == []


@pytest.mark.parametrize("key", OF_A_SURVEY)
def test_a_fingerprint_covers_the_rule_of_a_survey(key):
    """The same plan measures the same numbers, to the last bit."""
    changed = having(SURVEYED, *OF_A_SURVEY[key])
    assert changed.fingerprint != SURVEYED.fingerprint != PLAN.fingerprint
    assert changed.surveyed_over != SURVEYED.surveyed_over


@pytest.mark.parametrize("name", NOT_OF_A_SURVEY)
def test_a_fingerprint_does_not_cover_the_numbers_of_a_survey(name):
    """They come after the plan; and nobody waits for a pass over ten terabytes to know which run this is."""
    changed = having(SURVEYED, name, NOT_OF_A_SURVEY[name])
    assert changed.fingerprint == SURVEYED.fingerprint
    assert Plan.from_json(changed.to_json()).fingerprint == SURVEYED.fingerprint


def test_the_numbers_of_a_sample_are_not_given_for_those_of_the_whole():
    """Tiles by them would look right, and be wrong everywhere."""
    assert PLAN.numbers == PLAN.normalization
    with pytest.raises(PlanError, match="are not measured yet"):
        _ = SURVEYED.numbers
    measured = NOT_OF_A_SURVEY["statistics"]
    assert replace(SURVEYED, statistics=measured).numbers == measured.normalization


def test_what_was_measured_holds_for_another_plan_of_the_same_voxels_and_no_other():
    """A new model over a thousand volumes reads none of them for numbers that are known."""
    found = Statistics(PLAN.normalization, SURVEYED.surveyed_over)
    other = replace(SURVEYED, core=(32, 32, 32), model=replace(PLAN.model, sha256="ef" * 32))
    assert other.measured_by(PLAN) == other.measured_by(replace(SURVEYED, statistics=found)) == found
    assert other.measured_by(SURVEYED) is None  # it has not measured yet
    assert PLAN.measured_by(replace(SURVEYED, statistics=found)) is None  # it has its numbers
    for earlier in (PLAN, replace(SURVEYED, statistics=found)):
        for name, value in [("source.level", 0), ("nonfinite", "zero"), ("normalization.low", 2.0)]:
            assert having(other, name, value).measured_by(earlier) is None


def test_workers_are_no_part_of_a_plan():
    """The same bytes come of any number of workers, so a plan does not even know it."""
    assert "workers" not in PLAN.to_json()
    assert "retries" not in PLAN.to_json()


def test_differences_name_both_values():
    """A refused store is told with what it was made for, and what is asked for now."""
    changed = replace(PLAN, core=(32, 32, 32))
    assert PLAN.differences(changed) == ["tiles.core: [16, 32, 32] here, [32, 32, 32] there"]


# --- what a plan knows --------------------------------------------------------------------------------------------------


def test_a_plan_gives_its_grid():
    """Grids are never stored: they follow from a dozen numbers."""
    stream, grid = PLAN.stream, PLAN.grid
    assert (stream.graph, stream.slab) == (ARCHITECTURE.graph, PLAN.slab)
    assert (grid.volume, grid.core) == ((50, 60, 70), PLAN.core)
    assert (grid.stride, grid.margin) == (ARCHITECTURE.stride, receptive_radius(ARCHITECTURE.graph))


def test_amplification_is_work_done_by_work_needed():
    """The report's three figures of efficiency."""
    assert PLAN.amplification == pytest.approx(10 / 9)
    assert PLAN.read_amplification == 10**9 / (50 * 60 * 70)
    assert PLAN.decoding_amplification == 2 * 10**9 / (50 * 60 * 70)


def test_a_plan_tells_how_many_slices_a_tile_reads_at_once():
    """Chunks of 16 slices under slabs of 8: to read less than a chunk would be to decode it twice."""
    assert PLAN.read_slices == 16
    assert having(PLAN, "source.chunks", (3, 32, 32)).read_slices == 9


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("uint8", 1)])
def test_output_bytes_count_channels_and_type(dtype, size):
    """A disk that is too small is refused before anything is written."""
    assert output_bytes(3, (10, 20, 30), dtype) == 3 * 6000 * size


def test_a_plan_of_0_1_is_read_and_is_the_same_plan():
    """Runs that were begun go on, and versions that were published count as done: a plan of 0.1, as it was stored."""
    found = Plan.from_json((Path(__file__).parent / "plan-0.1.json").read_text(encoding="utf-8"))
    assert found.fingerprint == "2ba3576ca0fa7e5a2a1b95c7e9b0506065532b3e709bbad69ea1e604ff5d6ca1"
    assert found == PLAN
    assert (found.identity_version, found.survey, found.numbers) == (1, None, PLAN.normalization)
    assert (len(found.grid), found.read_slices) == (24, 16)

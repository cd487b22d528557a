"""Deployments on a real Prefect server with a real worker: schedules, cancelling, kills, and what each costs the database."""

from __future__ import annotations

import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import deployment, progress
from pipeline import stages
from pipeline.core.network.unet import Architecture
from tests.e2e.commands import ROOT, alive, wait_until
from tests.pipeline_cases import Run, done_entries, make_run, stored_objects
from tests.sites.postgres_cases import postgres
from tests.sites.prefect_cases import Site, engines, eventually, family, kill_family

pytestmark = [pytest.mark.site, pytest.mark.timeout(900)]  # a machine that does other things is three times as slow

LOST_SECONDS = 40
"""As short as the command allows: a run gives a sign of life every 30 s."""


@pytest.fixture(scope="module")
def place() -> Iterator[Site]:
    """A server on SQLite; what these tests start ends with them."""
    with tempfile.TemporaryDirectory(prefix="halotile-prefect-") as home:
        found = Site(Path(home))
        try:
            found.start_server()
            found.halotile("deploy", "--lost-after", LOST_SECONDS)
            yield found
        finally:
            found.end()


@pytest.fixture
def worker(place: Site):
    """A worker of the work pool, for one test."""
    found = place.start_worker()
    yield found
    kill_family(found.pid)
    found.wait()


def quick(folder: Path, *, tiles: int = 16) -> Run:
    """A run of so many tiles that is over at once."""
    folder.mkdir(parents=True)
    return make_run(folder, architecture=Architecture(3, 1, 2), shape=(tiles * 2, 32, 32), tiles={"core": [8, 16, 16]})


def slow(folder: Path) -> Run:
    """32 tiles of enough work to be hit in mid-tile."""
    folder.mkdir(parents=True)
    return make_run(folder, architecture=Architecture(3, 2, 64), shape=(29, 59, 63), tiles={"core": [16, 16, 16]})


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a slow run writes that nothing disturbs."""
    run = slow(tmp_path_factory.mktemp("calm") / "run")
    stages.plan(run.now)
    stages.infer(run.now)
    return stored_objects(run.output)


def computing(run: Run, *, further: int = 2) -> None:
    """Wait until so many tiles more are done."""
    before = len(done_entries(run.directory))
    wait_until(lambda: len(done_entries(run.directory)) >= before + further, 240)


# --- deployments --------------------------------------------------------------------------------------------------------


def test_a_schedule_runs_by_itself(place, worker, tmp_path):
    """Nobody is there at two at night; in the morning the run is done, and its page says how."""
    run = quick(tmp_path / "run")
    said = place.halotile("deploy", run.yaml, "--name", "scheduled", "--cron", "* * * * *")
    assert "halotile-inference/scheduled at '* * * * *' UTC" in said
    runs = eventually(
        lambda: [r for r in place.runs_of("scheduled") if r["state_type"] == "COMPLETED"],
        150,
        "a scheduled run completed",
    )
    place.ask(f"/deployments/{place.deployment('scheduled')['id']}", method="DELETE")
    assert runs[0]["auto_scheduled"]
    assert runs[0]["name"] == "output.zarr"
    assert "halotile" in runs[0]["tags"]
    artifacts = place.artifacts_of(runs[0]["id"])
    assert artifacts["halotile-progress"] == 100
    assert run.plan.fingerprint in artifacts["halotile-report"]
    assert sorted(done_entries(run.directory)) == list(range(16))


def test_deploying_again_duplicates_nothing(place, tmp_path):
    """`halotile deploy` belongs into scripts, which run it each time; and a secret stays a name."""
    run = quick(tmp_path / "run").having(input={"url": "${DATA}/input.zarr"})
    place.extra = {"DATA": str(tmp_path / "run")}
    for _ in range(2):
        place.halotile("deploy", run.yaml, "--name", "nightly", "--cron", "0 2 * * *", "--timezone", "Europe/Berlin")
    names = Counter(f"{d['name']}" for d in place.ask("/deployments/filter"))
    assert (names["segment"], names["train"], names["nightly"]) == (1, 1, 1)
    assert [pool["name"] for pool in place.ask("/work_pools/filter")] == ["halotile"]
    assert len(place.ask("/automations/filter")) == 1
    found = place.deployment("nightly")
    assert [s["schedule"] for s in found["schedules"]] == [
        {"cron": "0 2 * * *", "timezone": "Europe/Berlin", "day_or": True}
    ]
    assert found["parameters"]["config"]["input"]["url"] == "${DATA}/input.zarr"
    assert found["global_concurrency_limit"]["limit"] == 1
    assert found["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    place.halotile("deploy", run.yaml, "--name", "nightly")
    assert place.deployment("nightly")["schedules"] == []
    place.ask(f"/deployments/{found['id']}", method="DELETE")


def test_prefects_own_command_deploys_the_same(place):
    """Who keeps deployments in a prefect.yaml takes ours; its example never runs by itself."""
    ours = place.deployment("segment")
    place.command("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", ROOT / "deploy" / "prefect.yaml")
    theirs = place.deployment("segment")
    assert theirs["updated"] > ours["updated"]
    assert not any(schedule["active"] for schedule in place.deployment("nightly")["schedules"])
    for key in ("entrypoint", "tags", "work_pool_name", "parameter_openapi_schema"):
        assert ours[key] == theirs[key]
    assert theirs["job_variables"]["env"].items() <= ours["job_variables"]["env"].items()


# --- the life of a run --------------------------------------------------------------------------------------------------


def test_cancelled_on_the_page_it_ends_in_order_and_the_next_run_resumes(place, worker, calm, tmp_path):
    """Cancelling costs the tiles in flight, and nothing else."""
    run = slow(tmp_path / "run")
    place.halotile("deploy", run.yaml, "--name", "cancelled")
    first = place.started("cancelled")
    computing(run)
    processes = family(engines(worker)[0].pid)
    place.ask(f"/flow_runs/{first}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})

    assert place.ended(first, 60)["state_type"] == "CANCELLED"
    wait_until(lambda: not alive(processes))
    history = place.ask(f"/flow_run_states/?flow_run_id={first}", method="GET")
    assert "finished tiles are kept; run again to resume" in [state["message"] for state in history]
    eventually(lambda: place.tasks_of(first).get("infer") == "CANCELLED", 240, "the task was Cancelled")
    kept = done_entries(run.directory)
    assert 2 <= len(kept) < 32

    place.completed(place.started("cancelled"))
    assert Counter(done_entries(run.directory)) == Counter(range(32))
    assert stored_objects(run.output) == calm


def test_killed_it_is_crashed_and_the_next_run_resumes(place, calm, tmp_path):
    """Out of memory; then a lost machine, flow and worker at once; then a night without a worker."""
    run = slow(tmp_path / "run")
    place.halotile("deploy", run.yaml, "--name", "killed", "--lost-after", LOST_SECONDS)
    worker = place.start_worker()
    first = place.started("killed")
    computing(run)
    processes = family(engines(worker)[0].pid)
    engines(worker)[0].kill()
    assert place.ended(first, 30)["state_type"] == "CRASHED"
    wait_until(lambda: not alive(processes))

    second = place.started("killed")
    computing(run)
    kill_family(worker.pid)
    worker.wait()
    lost = place.ended(second, LOST_SECONDS + 60)
    assert lost["state_type"] == "CRASHED"
    assert f"no heartbeat for {LOST_SECONDS} s" in lost["state"]["message"]
    assert len(done_entries(run.directory)) < 32

    missed = [place.started("killed", seconds_ago=60 * n) for n in range(4, 0, -1)]
    worker = place.start_worker()
    states = Counter(place.ended(flow_run)["state_type"] for flow_run in missed)
    assert states == {"COMPLETED": 1, "CANCELLED": 3}
    assert Counter(done_entries(run.directory)) == Counter(range(32))
    assert stored_objects(run.output) == calm
    kill_family(worker.pid)
    worker.wait()


def test_a_run_that_is_terminated_is_cancelled_with_130(place, tmp_path):
    """What a batch system sends first: the page, the exit status and the last line all say the same."""
    run = slow(tmp_path / "run")
    process = place.start("halotile", "run", run.yaml, log="terminated.log")
    computing(run)
    processes = family(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    wait_until(lambda: not alive(processes))
    assert place.log("terminated.log").rstrip().endswith("interrupted; what is finished is kept, run again to resume")
    (found,) = [r for r in place.ask("/flow_runs/filter") if str(run.output) in str(r["parameters"])]
    assert (found["state_type"], found["state"]["message"]) == (
        "CANCELLED",
        "finished tiles are kept; run again to resume",
    )
    expected = {"plan": "COMPLETED", "survey": "COMPLETED", "infer": "CANCELLED"}
    eventually(lambda: place.tasks_of(found["id"]) == expected, 240, "its tasks were told")


def test_the_database_grows_by_as_much_for_many_tiles_as_for_few(place, tmp_path):
    """Tiles are no tasks, log lines or events: Prefect's server hangs at some thousands."""
    by_time = {  # what is told every so many seconds, however many tiles there are
        "log": progress.LINE_SECONDS,
        "prefect.artifact.updated": progress.ARTIFACT_SECONDS,
        "prefect.artifact-collection.updated": progress.ARTIFACT_SECONDS,  # the first run of all has created it instead
        "prefect.artifact-collection.created": progress.ARTIFACT_SECONDS,
        "prefect.flow-run.heartbeat": deployment.HEARTBEAT_SECONDS,
    }
    grown, took = [], []
    for tiles in (16, 128):
        run = quick(tmp_path / f"{tiles}", tiles=tiles)
        started = time.monotonic()
        place.halotile("run", run.yaml)
        took.append(time.monotonic() - started)
        assert len(done_entries(run.directory)) == tiles
        (found,) = [r for r in place.ask("/flow_runs/filter") if str(run.output) in str(r["parameters"])]
        grown.append(place.settled_rows_of(found["id"]))
    few, many = grown
    print(took, few, many, sep="\n")
    assert few["task_run"] == 1 + len(stages.SEQUENCE)  # the plan, and what follows it
    assert few["artifact"] == 2
    for name in few | many:
        more = 2 + max(took) / by_time[name] if name in by_time else 0
        assert abs(many[name] - few[name]) <= more, f"{name}: {few[name]} rows for 16 tiles, {many[name]} for 128"


# --- PostgreSQL ---------------------------------------------------------------------------------------------------------


def test_the_servers_script_on_postgresql(tmp_path):
    """Start, a run, a schedule, an upgrade with its backup, a stop: what who operates a server does in a year."""
    with postgres() as url, tempfile.TemporaryDirectory(prefix="halotile-prefect-") as home:
        place = Site(Path(home), extra={"PREFECT_API_DATABASE_CONNECTION_URL": url})
        script = ROOT / "deploy" / "server" / "server.sh"
        try:
            assert "healthy: " in place.script(script, "start")
            place.halotile("run", quick(tmp_path / "run").yaml)
            place.halotile("deploy", quick(tmp_path / "nightly").yaml, "--name", "nightly", "--cron", "* * * * *")
            worker = place.start_worker()
            eventually(
                lambda: [r for r in place.runs_of("nightly") if r["state_type"] == "COMPLETED"],
                150,
                "a scheduled run completed",
            )
            kill_family(worker.pid)
            worker.wait()
            place.ask(f"/deployments/{place.deployment('nightly')['id']}", method="DELETE")
            assert "backup " in place.script(script, "upgrade")
            (backup,) = (Path(home) / "backups").iterdir()
            assert backup.read_bytes().startswith(b"PGDMP")
            (found,) = [
                r for r in place.ask("/flow_runs/filter") if r["name"] == "output.zarr" and not r["deployment_id"]
            ]
            assert found["state_type"] == "COMPLETED"
            assert place.artifacts_of(found["id"])["halotile-progress"] == 100
        finally:
            assert "stopped" in place.script(script, "stop")
        assert not place.is_healthy()

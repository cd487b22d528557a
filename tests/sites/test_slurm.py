"""Runs on a real SLURM: jobs are cancelled, killed and end at their walltime, drivers die, and the bytes are the same."""

import time
from pathlib import Path

import psutil
import pytest

from pipeline.core.ledger import TileRecord
from tests.dataset.dataset_cases import make_dataset
from tests.e2e.commands import Command, wait_until
from tests.pipeline_cases import Run, sessions, stored_objects
from tests.sites.site_cases import PRELOAD, TILES, Slurm, done, site_run, slurm_run

pytestmark = [pytest.mark.site, pytest.mark.timeout(900)]


def computing(command: Command, run: Run, tiles: int) -> None:
    """Wait until so many tiles are done, and the run still goes on."""
    wait_until(lambda: done(run) >= tiles or not command.is_running())
    assert command.is_running(), command.wait() or command.error


def test_lost_jobs_are_replaced_while_the_run_goes_on(slurm, calm, started, tmp_path):
    """A drained node, an operator's scancel, the out-of-memory killer: the run keeps its spec, and no byte differs."""
    hog = tmp_path / "hog"
    run = slurm_run(tmp_path, hog=hog, slow=3)
    command = started("run", run.yaml)
    computing(command, run, tiles=3)
    spec = slurm.jobs(state="RUNNING")
    assert len(spec) == 2

    cancelled = min(spec)
    slurm.call("scancel", cancelled)
    wait_until(lambda: len(slurm.jobs(state="RUNNING") - {cancelled}) == 2)
    computing(command, run, tiles=done(run) + 1)

    spec = slurm.jobs(state="RUNNING")
    hog.touch()
    wait_until(lambda: not hog.exists())
    wait_until(lambda: len(slurm.jobs(state="RUNNING") - spec) == 1)
    computing(command, run, tiles=done(run) + 1)

    assert command.wait() == 0, command.error
    assert stored_objects(run.output) == calm
    logs = [path.read_text() for path in run.directory.path.glob("*/*.err")]
    assert any("exceeded memory limit" in text for text in logs)
    wait_until(lambda: not slurm.jobs())


def test_a_walltime_shorter_than_the_run_costs_no_byte(slurm, machines, calm, started, tmp_path):
    """Jobs leave before they are ended, and are replaced. The network is not loopback here: it is encrypted."""
    run = slurm_run(tmp_path, walltime="00:01:30", host=machines.here, slow=8)
    command = started("run", run.yaml)
    seen: set[str] = set()

    def over() -> bool:
        seen.update(slurm.jobs())
        return not command.is_running()

    wait_until(over, 300)
    assert command.wait() == 0, command.error
    assert stored_objects(run.output) == calm
    assert len(seen) > 2
    wait_until(lambda: not slurm.jobs())


def test_an_interrupted_driver_cancels_its_jobs_and_a_killed_one_leaves_none(slurm, calm, started, tmp_path):
    """What a login node does to drivers. The next run takes up what is there, and no job is paid for and forgotten."""
    (tmp_path / "my data").mkdir()  # two words to a shell
    run = slurm_run(tmp_path / "my data", slow=2)
    command = started("run", run.yaml)
    computing(command, run, tiles=3)
    command.process.terminate()
    assert command.wait(30) == 130
    assert "Traceback" not in command.error
    wait_until(lambda: not slurm.jobs())
    kept = done(run)
    assert 3 <= kept < TILES

    command = started("run", run.yaml)
    computing(command, run, tiles=kept + 3)
    family = command.family()
    command.kill()
    command.wait()
    wait_until(lambda: not slurm.jobs())
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    kept = done(run)
    assert kept < TILES
    assert [*run.directory.jobs_path.glob("tls-*/key.pem")]

    command = started("run", run.yaml)
    assert command.wait() == 0, command.error
    assert not [*run.directory.jobs_path.glob("tls-*")]
    assert stored_objects(run.output) == calm
    wait_until(lambda: not slurm.jobs())


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("cluster.slurm.partition=nobodys", "invalid partition"),
        ("cluster.memory_gb=900", "node configuration is not available"),
    ],
)
def test_what_slurm_refuses_is_told_in_its_words(slurm, started, tmp_path, key, words):
    """A partition with a typo, or a node that nobody has, must not become a run that waits for workers for ever."""
    command = started("run", slurm_run(tmp_path).yaml, "--set", key)
    assert command.wait(60) in (1, 2)
    assert words in command.error
    assert "Traceback" not in command.error
    assert not slurm.jobs()


def test_jobs_that_end_before_their_worker_joins_are_not_submitted_for_ever(slurm, started, tmp_path):
    """A Python that the nodes lack would else be tried every five seconds, by every job, for the day that a queue may take."""
    run = slurm_run(tmp_path)
    broken = {**run.content["cluster"]["slurm"], "prologue": ["echo no such module >&2", "exit 7"]}
    command = started("run", run.having(cluster={"slurm": broken}).yaml)
    assert command.wait(120) == 1, command.error
    assert "jobs of SLURM, one after another, ended before their worker had joined" in command.error
    assert "no such module" in command.error
    assert "Traceback" not in command.error
    wait_until(lambda: not slurm.jobs())


BATCH = ("--mem=3G", "--cpus-per-task=1", "--nodes=1")

LOCAL = {"kind": "local", "workers": 1, "memory_gb": 2}


def made(folder: Path, cluster: dict) -> Run:
    """A run in a folder of its own."""
    folder.mkdir()
    return site_run(folder, cluster=cluster)


def test_batch_jobs_write_the_same_bytes_and_go_on_after_their_walltime(slurm, machines, calm, tmp_path):
    """A node, an allocation whose scheduler, driver and workers are tasks of one srun, and an array of a run a line.

    The allocation is not on loopback, so its tasks share certificates that the scheduler's has made.

    The first two get the walltime's warning, as `--signal=B:TERM@120` sends it, but when they are at work: they end in
    order, are queued again, and resume.
    """
    node = made(tmp_path / "node", LOCAL)
    allocation = made(tmp_path / "allocation", {"kind": "slurm-allocation", "memory_gb": 2, "host": machines.here})
    lines = [made(tmp_path / name, LOCAL) for name in ("one", "two words")]
    catalogue = tmp_path / "runs.txt"
    catalogue.write_text(f"# two runs\n{lines[0].yaml}\n\n  {lines[1].yaml}  \n")

    slowly = f"--export=ALL,{PRELOAD.removeprefix('export ')},SITE_SLOW=2"
    node_job = slurm.submit(*BATCH, f"--output={node.folder}/log", slowly, "deploy/slurm/node.sbatch", node.yaml)
    spec = ("--ntasks=4", "--nodes=2", "--cpus-per-task=1", "--mem-per-cpu=2800M", slowly)
    allocation_job = slurm.submit(
        *spec, f"--output={allocation.folder}/log", "deploy/slurm/allocation.sbatch", allocation.yaml
    )
    array = slurm.submit(*BATCH, "--array=1-3", f"--output={tmp_path}/log-%a", "deploy/slurm/array.sbatch", catalogue)
    for run, job in (node, node_job), (allocation, allocation_job):
        wait_until(lambda run=run: done(run) >= 1)
        slurm.call("scancel", "--batch", "--signal=TERM", job)

    jobs = {node_job: 0, allocation_job: 0, f"{array}_1": 0, f"{array}_2": 0, f"{array}_3": 2}
    finished(slurm, jobs, *tmp_path.rglob("log*"))
    for run in (node, allocation):
        assert "queued again to go on (sitting 1 is over)" in (run.folder / "log").read_text()
        assert len(sessions(run.directory)) == 2
    assert "has no run 3" in (tmp_path / "log-3").read_text()
    assert [stored_objects(run.output) == calm for run in (node, allocation, *lines)] == [True] * 4
    assert not list(allocation.directory.jobs_path.iterdir())  # nobody finds a key there
    assert {r.worker for r in allocation.directory.records() if isinstance(r, TileRecord)} == {"2", "3"}


def test_a_batch_job_that_is_cancelled_stays_so(slurm, tmp_path):
    """SIGTERM is the walltime's warning, but also the first word of scancel: that one may not queue the job again."""
    run = made(tmp_path / "run", LOCAL)
    log = tmp_path / "log"
    job = slurm.submit(*BATCH, f"--output={log}", "deploy/slurm/node.sbatch", run.yaml)
    wait_until(lambda: done(run) >= 1)
    slurm.call("scancel", job)
    wait_until(lambda: not slurm.jobs())
    assert slurm.ended(job)["JobState"] == "CANCELLED"
    assert "queued again" not in log.read_text()
    assert "Traceback" not in log.read_text()


def test_an_allocation_whose_driver_is_killed_ends(slurm, tmp_path):
    """Nobody pays until the walltime for a scheduler and workers that nobody drives."""
    run = made(tmp_path / "run", {"kind": "slurm-allocation", "memory_gb": 2})
    spec = ("--ntasks=3", "--nodes=1", "--cpus-per-task=1", "--mem-per-cpu=2800M")
    job = slurm.submit(*spec, f"--output={tmp_path}/log", "deploy/slurm/allocation.sbatch", run.yaml)
    wait_until(lambda: done(run) >= 1)
    pid = int((run.directory.path / "driver.lock").read_text().partition("-")[0])
    psutil.Process(pid).kill()
    wait_until(lambda: not slurm.jobs())
    assert slurm.ended(job)["JobState"] == "FAILED"


def finished(slurm: Slurm, statuses: dict[str, int], *logs: Path) -> None:
    """Wait until jobs are over, with these exit statuses. One that was queued again need not wait its two minutes.

    It must a little: a node that is given a job twice at once takes the second for the first, whose credential is void.
    """

    def over() -> bool:
        for job in slurm.jobs(reason="BeginTime"):
            time.sleep(5)
            slurm.call("scontrol", "update", f"jobid={job}", "StartTime=now")
        return not slurm.jobs()

    wait_until(over, 400)
    found = {job: slurm.ended(job)["ExitCode"] for job in statuses}
    assert found == {job: f"{status}:0" for job, status in statuses.items()}, [log.read_text() for log in logs]


def test_a_dataset_is_done_in_an_allocation_and_by_jobs(slurm, machines, tmp_path):
    """Many volumes, one spec: the tasks of one srun, and then, for a new model, a job a worker submitted from here."""
    allocation = {"kind": "slurm-allocation", "memory_gb": 2, "host": machines.here}
    dataset = make_dataset(tmp_path, volumes=4, cluster=allocation)
    dataset = dataset.having(cluster={"workers": "auto"})
    spec = (
        "--ntasks=4",
        "--nodes=2",
        "--cpus-per-task=1",
        "--mem-per-cpu=2800M",
        "--export=ALL,HALOTILE_COMMAND=reprocess",
    )
    job = slurm.submit(*spec, f"--output={tmp_path}/log", "deploy/slurm/allocation.sbatch", dataset.yaml)
    finished(slurm, {job: 0}, tmp_path / "log")
    assert set(dataset.states().values()) == {"done"}

    dataset.register(seed=2)
    asked = {"walltime": "00:10:00", "cores": 1, "prologue": [PRELOAD]}
    jobs = dataset.having(cluster={"kind": "slurm", "workers": 2, "slurm": asked})
    command = Command(["reprocess", jobs.yaml, "--no-prefect"], tmp_path / "prefect")
    assert command.wait(200) == 0, command.error
    assert set(jobs.states().values()) == {"done"}
    assert "noise version 2" in jobs.summary["outcomes"][0]["model"]

"""Runs on a real SLURM: jobs are cancelled, killed and end at their walltime, drivers die, and the bytes are the same."""

import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.commands import Command, wait_until
from tests.pipeline_cases import Run, stored_objects
from tests.site.site_cases import PRELOAD, TILES, Slurm, done, site_run, slurm_run

pytestmark = [pytest.mark.site, pytest.mark.timeout(600)]


def computing(command: Command, run: Run, tiles: int) -> None:
    """Wait until so many tiles are done, and the run still goes on."""
    wait_until(lambda: done(run) >= tiles or not command.is_running(), 150)
    assert command.is_running(), command.wait() or command.error


def test_lost_jobs_are_replaced_while_the_run_goes_on(slurm, calm, started, tmp_path):
    """A drained node, an operator's scancel, the out-of-memory killer: the run keeps its crew, and no byte differs."""
    hog = tmp_path / "hog"
    run = slurm_run(tmp_path, hog=hog)
    command = started("run", run.yaml)
    computing(command, run, tiles=3)
    crew = slurm.jobs(state="RUNNING")
    assert len(crew) == 2

    cancelled = min(crew)
    slurm.call("scancel", cancelled)
    wait_until(lambda: len(slurm.jobs(state="RUNNING") - {cancelled}) == 2, 30)
    computing(command, run, tiles=done(run) + 1)

    crew = slurm.jobs(state="RUNNING")
    hog.touch()
    wait_until(lambda: not hog.exists(), 30)
    wait_until(lambda: len(slurm.jobs(state="RUNNING") - crew) == 1, 60)
    computing(command, run, tiles=done(run) + 1)

    assert command.wait() == 0, command.error
    assert stored_objects(run.output) == calm
    logs = [path.read_text() for path in run.directory.path.glob("*/*.err")]
    assert any("exceeded memory limit" in text for text in logs)
    wait_until(lambda: not slurm.jobs(), 15)


def test_a_walltime_shorter_than_the_run_costs_no_byte(slurm, namespaces, calm, started, tmp_path):
    """Jobs leave before they are ended, and are replaced. The network is not loopback here: it is encrypted."""
    run = slurm_run(tmp_path, walltime="00:01:30", host="10.77.0.1", slow=4)
    command = started("run", run.yaml)
    seen: set[str] = set()

    def over() -> bool:
        seen.update(slurm.jobs())
        return not command.is_running()

    wait_until(over, 300)
    assert command.wait() == 0, command.error
    assert stored_objects(run.output) == calm
    assert len(seen) > 2
    wait_until(lambda: not slurm.jobs(), 15)


def test_an_interrupted_driver_cancels_its_jobs_and_a_killed_one_leaves_none(slurm, calm, started, tmp_path):
    """What a login node does to drivers. The next run takes up what is there, and no job is paid for and forgotten."""
    run = slurm_run(tmp_path)
    command = started("run", run.yaml)
    computing(command, run, tiles=4)
    command.process.terminate()
    assert command.wait(30) == 130
    assert "Traceback" not in command.error
    wait_until(lambda: not slurm.jobs(), 10)
    kept = done(run)
    assert 4 <= kept < TILES

    command = started("run", run.yaml)
    computing(command, run, tiles=kept + 4)
    family = command.family()
    command.kill()
    command.wait()
    wait_until(lambda: not slurm.jobs(), 60)
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    kept = done(run)
    assert kept < TILES

    command = started("run", run.yaml)
    assert command.wait() == 0, command.error
    assert stored_objects(run.output) == calm
    wait_until(lambda: not slurm.jobs(), 15)


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


BATCH = ("--mem=3G", "--cpus-per-task=1", "--nodes=1")


def test_a_batch_job_on_one_node_goes_on_after_its_walltime(slurm, calm, tmp_path):
    """`node.sbatch`: the job's warning ends the sitting in order, and the job queues itself until the run is done."""
    run = site_run(tmp_path, cluster={"kind": "local", "workers": 1, "memory_gb": 2})
    log = tmp_path / "log"
    preload = PRELOAD.removeprefix("export ")
    job = slurm.submit(
        *BATCH, "--time=1", "--signal=B:TERM@5", f"--output={log}", f"--export=ALL,{preload},SITE_SLOW=2",
        "deploy/slurm/node.sbatch", run.yaml,
    )  # fmt: skip
    finished(slurm, {job: 0}, log)
    assert "queued again to go on (sitting 1 is over)" in log.read_text()
    assert stored_objects(run.output) == calm


def test_a_batch_job_that_is_cancelled_stays_so(slurm, tmp_path):
    """SIGTERM is the walltime's warning, but also the first word of scancel: that one may not queue the job again."""
    run = site_run(tmp_path, cluster={"kind": "local", "workers": 1, "memory_gb": 2})
    log = tmp_path / "log"
    job = slurm.submit(*BATCH, f"--output={log}", "deploy/slurm/node.sbatch", run.yaml)
    wait_until(lambda: done(run) >= 1, 60)
    slurm.call("scancel", job)
    wait_until(lambda: not slurm.jobs(), 30)
    assert slurm.ended(job)["JobState"] == "CANCELLED"
    assert "queued again" not in log.read_text()


def test_an_allocation_over_several_nodes_writes_the_same_bytes(slurm, calm, tmp_path):
    """`allocation.sbatch`: the scheduler, the driver and the workers are tasks of one srun."""
    run = site_run(tmp_path, cluster={"kind": "slurm-allocation", "memory_gb": 2})
    log = tmp_path / "log"
    job = slurm.submit(
        "--ntasks=4", "--nodes=2", "--cpus-per-task=1", "--mem-per-cpu=2800M", f"--output={log}",
        "deploy/slurm/allocation.sbatch", run.yaml,
    )  # fmt: skip
    finished(slurm, {job: 0}, log)
    assert stored_objects(run.output) == calm
    assert {r.worker for r in run.directory.records() if hasattr(r, "worker")} == {"2", "3"}


def test_an_array_takes_a_run_a_line(slurm, calm, tmp_path):
    """`array.sbatch`: a catalogue of runs, with its comments; a task without a line says so and fails alone."""
    runs = []
    for name in ("one", "two words"):
        (tmp_path / name).mkdir()
        runs.append(site_run(tmp_path / name, cluster={"kind": "local", "workers": 1, "memory_gb": 2}))
    catalogue = tmp_path / "runs.txt"
    catalogue.write_text(f"# two runs\n{runs[0].yaml}\n\n  {runs[1].yaml}  \n")
    array = slurm.submit(*BATCH, "--array=1-3", f"--output={tmp_path}/log-%a", "deploy/slurm/array.sbatch", catalogue)
    finished(slurm, {f"{array}_1": 0, f"{array}_2": 0, f"{array}_3": 2}, *tmp_path.glob("log-*"))
    assert [stored_objects(run.output) == calm for run in runs] == [True, True]
    assert "has no run 3" in (tmp_path / "log-3").read_text()


def finished(slurm: Slurm, statuses: dict[str, int], *logs: Path) -> None:
    """Wait until jobs are over, with these exit statuses. One that was queued again need not wait its two minutes.

    It must a little: a node that is given a job twice at once takes the second for the first, whose credential is void.
    """

    def over() -> bool:
        for job in slurm.jobs(reason="BeginTime"):
            time.sleep(5)
            slurm.call("scontrol", "update", f"jobid={job}", "StartTime=now")
        return not slurm.jobs()

    wait_until(over, 300)
    told = "\n".join(log.read_text() for log in logs if log.is_file())
    for job, status in statuses.items():
        assert slurm.ended(job)["ExitCode"] == f"{status}:0", told

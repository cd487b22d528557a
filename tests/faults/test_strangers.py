"""Another user of the machine, while runs of further kinds go on; and the controls: open doors are found where there are some."""

import stat

import pytest

from tests import strangers
from tests.e2e.commands import wait_until
from tests.e2e.test_kills import computing, held_up, slow, started  # noqa: F401 - the last is a fixture
from tests.pipeline_cases import done_entries

pytestmark = pytest.mark.fault


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_a_run_that_says_none_is_open_and_its_pages_are_on_loopback(started, tmp_path, host):  # noqa: F811 - the fixture
    """`none` must remain possible; a stranger then gets in, which shows that he would find a door that was left open."""
    pytest.importorskip("bokeh")
    run = slow(tmp_path, tiles=32)
    keys = {"security": "none", "dashboard": "true", "host": host}
    command = started("run", run.yaml, "--no-prefect", *(f"--set=cluster.{key}={value}" for key, value in keys.items()))
    computing(command, run, tiles=1)
    with held_up(run, tile=16):
        found = strangers.let_in(command.family())
        listens = {
            c.laddr for process in command.family() for c in process.net_connections("tcp") if c.status == "LISTEN"
        }
    open_, pages = ([port for port, answers in found.items() if name in answers] for name in ("silence", "GET /status"))
    assert (len(open_), len(pages)) == (5, 1)
    assert {place.ip for place in listens if place.port in open_} == {host}
    assert {place.ip for place in listens if place.port in pages} == {"127.0.0.1"}


@pytest.mark.parametrize(("security", "answers"), [("auto", set()), ("none", {"silence"})])
def test_an_allocation_on_a_shared_node_lets_nobody_in(started, tmp_path, monkeypatch, security, answers):  # noqa: F811
    """Its tasks share certificates by files, which this user alone can read, and which go with the run."""
    run = slow(tmp_path, tiles=32).having(cluster={"kind": "slurm-allocation", "workers": "auto", "security": security})
    for name, value in {"JOB_ID": "7", "STEP_ID": "0", "NTASKS": "3", "CPUS_PER_TASK": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    tasks = []
    for number in range(3):
        monkeypatch.setenv("SLURM_PROCID", str(number))
        tasks.append(started("run", run.yaml, "--no-prefect"))
    wait_until(lambda: len(done_entries(run.directory)) >= 1 or not tasks[1].is_running())
    assert tasks[1].is_running(), tasks[1].wait() or tasks[1].error
    with held_up(run, tile=16):
        family = [process for task in tasks for process in task.family()]
        assert set(map(frozenset, strangers.let_in(family).values())) == {frozenset(answers)}
        keys = [*run.directory.jobs_path.glob("tls-*/*.pem")]
        assert len(keys) == (3 if security == "auto" else 0)
        assert {stat.S_IMODE(path.stat().st_mode) for path in keys} <= {0o600}
        assert {stat.S_IMODE(path.parent.stat().st_mode) for path in keys} <= {0o700}
    if security == "none":
        for task in tasks:  # a door that was open to nonsense has what the stranger said to digest, and may not end
            task.kill_all() if task.is_running() else task.wait()
        return
    assert tasks[1].wait(200) == 0, tasks[1].error
    for task in tasks:
        task.wait(60)
    assert not list(run.directory.jobs_path.glob("tls-*"))

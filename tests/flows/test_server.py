"""Against real servers and real kills: each driver is a process of its own, as a user's is."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from prefect import get_client
from prefect.context import refresh_global_settings_context
from prefect.settings import get_current_settings

from flows.server.embedded import EmbeddedServer, prefect_api, start_unless_configured
from pipeline.errors import PipelineError
from tests import strangers

GONE_SECONDS = 10.0

REPORTING = """
    import json, os
    from flows.server.embedded import prefect_api, start_unless_configured

    server = start_unless_configured()
    from prefect import flow, get_client, task
    from prefect.settings import get_current_settings

    @task
    def inverse(number):
        return 1 / number

    @flow
    def inverses(last):
        return [inverse(number) for number in range(20, last, -1)]

    before = dict(os.environ)
    with prefect_api(server=server):
        count = len(inverses(0))
    try:
        with prefect_api(), get_client(sync_client=True) as client:
            states = [run.state_name for run in client.read_flow_runs()]
            inverses(-1)
    except ZeroDivisionError:
        url = get_current_settings().api.url
        print(json.dumps({"count": count, "states": states, "url": url, "restored": before == dict(os.environ)}))
"""

HOLDING = """
    import os, subprocess, sys, time
    from flows.server.embedded import EmbeddedServer

    server = EmbeddedServer()
    server.wait_healthy()
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A PREFECT_HOME of our own, with no API configured; the first server here migrates its database."""
    path = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            patch.delenv(name)
        patch.setenv("PREFECT_HOME", str(path))
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        patch.chdir(path)
        yield path
    refresh_global_settings_context()


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Prefect reads the environment once: what a test puts there must not be left for those after it."""
    yield
    refresh_global_settings_context()


@pytest.fixture
def server(home: Path) -> Iterator[EmbeddedServer]:
    """One that is starting."""
    found = EmbeddedServer()
    yield found
    found.stop()


def drive(script: str) -> subprocess.Popen[str]:
    """A driver whose output is a pipe: a server that outlived it and held the pipe would keep us waiting."""
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)


def of_server(pid: int | None = None) -> list[psutil.Process]:
    """Supervisor and server below a process, the supervisor first; a dead one that nobody has reaped says no command."""
    found = [p for p in psutil.Process(pid).children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    return [process for process in found if any("supervisor.py" in part for part in process.cmdline())]


def alive(processes: list[psutil.Process], seconds: float = GONE_SECONDS) -> list[psutil.Process]:
    """Those that still run when the time is over; a dead one that nobody has reaped does not run."""
    deadline = time.monotonic() + seconds
    while left := [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return left


def healthy(url: str) -> bool:
    """Whether the API answers."""
    with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
        return answer.status == 200 and json.load(answer) is True


def test_a_flow_reports_to_the_embedded_server_and_its_history_stays(home: Path) -> None:
    """Nothing was set up, nothing is left set, and a failing run's last state is as sure as the first's."""
    with drive(REPORTING) as driver:
        told, _ = driver.communicate(timeout=120)
    assert json.loads(told) == {"count": 20, "states": ["Completed"], "url": None, "restored": True}
    with contextlib.closing(sqlite3.connect(home / "prefect.db")) as database:
        flows = database.execute("select state_type from flow_run order by created").fetchall()
        tasks = database.execute("select state_type, count(*) from task_run group by 1 order by 1").fetchall()
    assert flows == [("COMPLETED",), ("FAILED",)]
    assert tasks == [("COMPLETED", 40), ("FAILED", 1)]


def test_a_killed_driver_leaves_no_server(home: Path) -> None:
    """Its other children, one of them forked without exec, must not keep the server's lifeline open."""
    with drive(HOLDING) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        others = [p for p in psutil.Process(driver.pid).children() if p not in of_server(driver.pid)]
        processes = of_server(driver.pid)
        driver.kill()
        left = alive(processes)
        survived = len(alive(others, 0))
        for process in others:
            process.kill()
    assert len(processes) == 2
    assert not left
    assert survived == 2


def test_a_driver_killed_during_start_up_leaves_no_server(home: Path) -> None:
    """Nobody may be waiting for a message at that time."""
    with drive(
        "import time; from flows.server.embedded import EmbeddedServer; EmbeddedServer(); time.sleep(60)"
    ) as driver:
        while len(processes := of_server(driver.pid)) < 2:
            time.sleep(0.05)
        driver.kill()
        assert not alive(processes)


def test_a_killed_supervisor_leaves_no_server(server: EmbeddedServer) -> None:
    """The last of the three could be orphaned as well."""
    server.wait_healthy()
    processes = of_server()
    processes[0].kill()
    assert len(processes) == 2
    assert not alive(processes)


def test_the_server_asks_everybody_for_the_secret_of_its_run(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every user of the machine reaches its port, could read all runs and start others. Workers of Dask need it least of all."""
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "somebody:else")  # of the user's own server
    with prefect_api(server=server) as url, get_client(sync_client=True) as client:
        client.read_flow_runs()
        answers = strangers.let_in(of_server())
        assert answers == {int(url.split(":")[2].partition("/")[0]): {"GET /api/health"}}
        assert server.secret not in os.environ.values()
        assert not any(server.secret in part for process in of_server() for part in process.cmdline())
        asked: list[object] = []
        # without a context
        thread = threading.Thread(target=lambda: asked.append(get_current_settings().api.auth_string))
        thread.start()
        thread.join()
        assert [value.get_secret_value() for value in asked] == [server.secret]
    assert get_current_settings().api.auth_string.get_secret_value() == "somebody:else"


def test_a_terminated_job_keeps_its_server_until_the_driver_ends(server: EmbeddedServer) -> None:
    """A batch system signals every process of a job; the driver still has to report that it was cancelled."""
    url = server.wait_healthy()
    processes = of_server()
    for process in processes:
        for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
            process.send_signal(number)
    time.sleep(0.5)
    assert healthy(url)
    server.stop()
    assert not alive(processes, 0)


def test_a_server_that_ends_early_is_told_with_its_log(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's own words are what tells a broken database from a broken installation."""
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////nowhere/prefect.db")
    log = home / "server.log"
    log.write_text("of an earlier run\n")
    with pytest.raises(PipelineError, match="ended with status 3") as caught, prefect_api(server=EmbeddedServer(log)):
        pass
    text = str(caught.value)
    assert "unable to open database file" in text
    assert "fastapi<0.151" in text
    assert "of an earlier run" not in text
    assert log.read_text().startswith("of an earlier run\n")
    assert str(pickle.loads(pickle.dumps(caught.value))) == text
    assert not of_server()


def test_a_server_that_is_late_is_told_and_ended(server: EmbeddedServer) -> None:
    """A start that hangs must not hang the driver."""
    with pytest.raises(PipelineError, match=r"was not ready after 0\.1 s"):
        server.wait_healthy(0.1)
    server.stop()
    assert not of_server()


def test_a_configured_api_is_used_and_no_server_started(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs a server wants the runs there."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert start_unless_configured() is None
    with prefect_api() as url:
        assert url == "http://127.0.0.1:9/api"
        assert not of_server()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("profiles.toml", 'active = "ours"\n[profiles.ours]\nPREFECT_API_URL = "http://ours/api"\n'),
        ("prefect.toml", '[api]\nurl = "http://ours/api"\n'),
        ("pyproject.toml", '[tool.prefect.api]\nurl = "http://ours/api"\n'),
        (".env", "PREFECT_API_URL=http://ours/api\n"),
    ],
)
def test_each_file_that_prefect_reads_can_name_the_api(home: Path, name: str, text: str) -> None:
    """The short way round `import prefect` must not miss what Prefect itself would find."""
    (home / name).write_text(text)
    try:
        with drive("from flows.server.embedded import configured_api; print(configured_api())") as driver:
            told, _ = driver.communicate(timeout=60)
    finally:
        (home / name).unlink()
    assert told == "http://ours/api\n"


def test_nothing_slow_is_imported_before_the_server_starts(home: Path) -> None:
    """The point of starting early."""
    script = """
        import sys
        from flows.server.embedded import configured_api
        print(configured_api(), "prefect" in sys.modules, "pydantic" in sys.modules)
    """
    with drive(script) as driver:
        told, _ = driver.communicate(timeout=60)
    assert told == "None False False\n"


@pytest.mark.slow
def test_servers_that_start_together_on_a_fresh_home_all_start(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job array's drivers do; of three that migrate one fresh database without a lock, one fails."""
    monkeypatch.setenv("PREFECT_HOME", str(home / "fresh"))
    servers = [EmbeddedServer() for _ in range(3)]
    try:
        urls = {server.wait_healthy() for server in servers}
    finally:
        for server in servers:
            server.stop()
    assert len(urls) == 3

"""A Prefect server and a worker as processes of their own, asked over HTTP as the page in a browser does."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.e2e.commands import ROOT

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")

START_SECONDS = 120


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def eventually(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """What a condition gives once it is true; the server records most things some seconds late."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"within {seconds} s it did not happen that {what}"
        time.sleep(0.1)
    return found


@dataclass
class Site:
    """A server on a port of its own with a home of its own, and the processes that were started for it.

    Args:
        home: PREFECT_HOME; logs lie there too.
        extra: Environment beside what every process here gets.
    """

    home: Path
    extra: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    processes: list[subprocess.Popen] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        return clean | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(self.port),
            "PREFECT_SERVER_UI_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "COLUMNS": "400",
            **self.extra,
        }

    # --- processes ----------------------------------------------------------------------------------------------------

    def start(self, *arguments: object, log: str) -> subprocess.Popen:
        """A process in a session of its own, which ends with the site at the latest."""
        with (self.home / log).open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *map(str, arguments)],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def start_server(self) -> None:
        self.start("prefect", "server", "start", log="server.log")
        eventually(self.is_healthy, START_SECONDS, f"the server was healthy: {self.log('server.log')}")

    def start_worker(self) -> subprocess.Popen:
        return self.start("prefect", "worker", "start", "--pool", "halotile", log="worker.log")

    def end(self) -> None:
        """Kill what was started here, and its children."""
        for process in self.processes:
            kill_family(process.pid)
            process.wait()

    def command(self, module: str, *arguments: object) -> str:
        """What a command says that must succeed."""
        return self.script(sys.executable, "-m", module, *arguments)

    def halotile(self, *arguments: object) -> str:
        return self.command("halotile", *arguments)

    def script(self, *command: object) -> str:
        """What a program says that must succeed; its output goes to a file, since a server may keep a pipe open."""
        with tempfile.TemporaryFile("w+") as out:
            words = [str(word) for word in command]
            done = subprocess.run(
                words, cwd=ROOT, env=self.environment, stdout=out, stderr=out, timeout=240, check=False
            )
            out.seek(0)
            said = out.read()
        assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{said[-4000:]}"
        return said

    def log(self, name: str) -> str:
        """The end of a process' output."""
        path = self.home / name
        return path.read_text(errors="replace")[-4000:] if path.is_file() else "(none)"

    # --- the API ------------------------------------------------------------------------------------------------------

    def ask(self, path: str, content: Any = None, *, method: str = "POST") -> Any:
        """A request, in JSON; errors raise. A server on SQLite says 503 while another request has locked it; reads that get no answer are repeated."""
        asked = {} if content is None and method == "POST" else content
        reads = method == "GET" or path.endswith("/filter")
        for attempt in range(20):
            try:
                found = httpx.request(method, f"{self.url}{path}", json=asked, timeout=60, trust_env=False)
            except httpx.ReadTimeout:
                if not reads or attempt >= 3:
                    raise
                continue
            if found.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(0.5)
        assert found.is_success, f"{method} {path}: {found.status_code} {found.text[:600]}"
        return found.json() if found.content else None

    def is_healthy(self) -> bool:
        with contextlib.suppress(httpx.HTTPError, AssertionError):
            return self.ask("/health", method="GET") is True
        return False

    def deployment(self, name: str, flow: str = "halotile-inference") -> dict[str, Any]:
        return self.ask(f"/deployments/name/{flow}/{name}", method="GET")

    def started(self, name: str, *, seconds_ago: float = 0) -> str:
        """A new run of a deployment that was due so long ago; gives its id."""
        due = (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat()
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due}}
        deployment = self.deployment(name)["id"]
        return self.ask(f"/deployments/{deployment}/create_flow_run", {"state": state})["id"]

    def run(self, flow_run: str) -> dict[str, Any]:
        return self.ask(f"/flow_runs/{flow_run}", method="GET")

    def runs_of(self, name: str) -> list[dict[str, Any]]:
        """Runs of a deployment, by the time they were due."""
        chosen = {"deployments": {"name": {"any_": [name]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return self.ask("/flow_runs/filter", chosen)

    def tasks_of(self, flow_run: str) -> dict[str, str]:
        """States of a run's tasks, by name."""
        found = self.ask("/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}})
        return {task["name"]: task["state_type"] for task in found}

    def artifacts_of(self, flow_run: str) -> dict[str, Any]:
        found = self.ask("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run]}}})
        return {artifact["key"]: artifact["data"] for artifact in found}

    def ended(self, flow_run: str, seconds: float = 300) -> dict[str, Any]:
        """A run once its state is final."""

        def final() -> dict[str, Any] | None:
            found = self.run(flow_run)
            return found if found["state_type"] in FINAL else None

        return eventually(final, seconds, f"run {flow_run} ended: {self.log('worker.log')}")

    def completed(self, flow_run: str, seconds: float = 300) -> dict[str, Any]:
        found = self.ended(flow_run, seconds)
        assert found["state_type"] == "COMPLETED", f"{found['state']}\n{self.log('worker.log')}"
        return found

    # --- below the API ------------------------------------------------------------------------------------------------

    def rows_of(self, flow_run: str) -> Counter[str]:
        """Rows that SQLite holds of one flow run, by table, and of events by their name; not what others leave meanwhile."""
        of_tasks = "select id from task_run where flow_run_id = ?"
        counted = {
            "task_run": "flow_run_id = ?",
            "flow_run_state": "flow_run_id = ?",
            "task_run_state": f"task_run_id in ({of_tasks})",
            "artifact": "flow_run_id = ?",
            "log": "flow_run_id = ?",
        }
        with contextlib.closing(sqlite3.connect(f"file:{self.home}/prefect.db?mode=ro", uri=True)) as database:
            found = Counter(
                {
                    table: database.execute(f"select count(*) from {table} where {which}", [flow_run]).fetchone()[0]
                    for table, which in counted.items()
                }
            )
            named = database.execute(
                "select event, count(*) from events where instr(resource_id || related_resource_ids, ?) group by event",
                [flow_run],
            )
            found.update(dict(named))
        return found

    def settled_rows_of(self, flow_run: str) -> Counter[str]:
        """Rows of a run once they have not grown for eight seconds: the server records events when it has time."""
        found, since = self.rows_of(flow_run), time.monotonic()
        while time.monotonic() - since < 8:
            time.sleep(0.3)
            if (now := self.rows_of(flow_run)) != found:
                found, since = now, time.monotonic()
        return found


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it; none where it has ended."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_family(pid: int) -> None:
    """`kill -9` of a process and all below it, as when their machine is lost."""
    found = family(pid)
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGSTOP)  # none may see another die, and tell
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def engines(worker: subprocess.Popen) -> list[psutil.Process]:
    """The processes of flows that a worker runs."""
    found = []
    for process in family(worker.pid)[1:]:
        with contextlib.suppress(psutil.Error):
            if "prefect.engine" in process.cmdline():
                found.append(process)
    return found

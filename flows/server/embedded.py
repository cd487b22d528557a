"""The Prefect API that a driver's flow runs report to: the configured one, else an embedded server.

Users start no server. The embedded one keeps Prefect's usual database, so `prefect server start` shows the history
later; `flows.server.supervisor` sees to it that it ends with this process. To have it start while other things happen:

    server = start_unless_configured(log_path)  # returns at once
    from flows.inference import infer           # 3 s; the server needs 4 s, and 12 s the first time ever
    with prefect_api(server=server):
        infer(...)

Whoever reaches a Prefect server may read and start runs, and every user of the machine reaches its port. So it asks for a secret
of its own, which it has from its environment and this process from memory; nobody else has it, Dask's workers included.

Importing Prefect costs 1.6 s, and its flows 3 s, so this module does so only where settings change.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import PipelineError

START_SECONDS = 120.0
"""Limit of a start: migrations on a slow disk, and other drivers that migrate the same database first."""

STOP_SECONDS = 15.0
"""Limit of an end; the supervisor has killed the server by then."""

ANSWER_SECONDS = 10.0
"""Limit of a connection to a server that runs on this machine."""

SEND_SECONDS = 5.0
"""Limit for sending the reports that are still queued in this process, for each of the two queues."""

LEAN = {
    "PREFECT_SERVER_EVENTS_STREAM_OUT_ENABLED": "false",  # nobody watches
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",  # none are used, and they cost 3 s of the first start
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",  # or the next `prefect server start` takes it as done
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",  # automations are for a server that stays
}
"""What the embedded server does without; the user's environment comes before these."""

EMBEDDED = {
    "PREFECT_SERVER_API_BASE_PATH": "/api",
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",  # like Prefect's own ephemeral server: no scheduler, no late runs
    "PREFECT__SERVER_FINAL": "1",  # one application in its process
}

CLIENT = {
    "client.max_retries": 3,  # should the server die, the run goes on without it 45 s after its stages; with the usual 5 it is 157 s
    "flows.heartbeat_frequency": None,  # for automations that find dead runs; its thread ends a second late
}
"""What this process does otherwise with an embedded server; names of Prefect's settings."""

_ENDED = (
    "Likely Prefect 3.8 does not work with these versions (it needs fastapi<0.151 and sqlalchemy<2.1), or its database "
    "cannot be opened. Install deploy/constraints.txt, repair the database, set PREFECT_HOME to another folder"
)
_LATE = (
    "Likely the disk is slow, the machine busy, or another run is migrating the same database. "
    "Try again, set PREFECT_HOME to a folder on a local disk"
)


@contextlib.contextmanager
def prefect_api(log_path: Path | None = None, *, server: EmbeddedServer | None = None) -> Iterator[str]:
    """A Prefect API for the flow runs of this process: the configured one, else an embedded server.

    While it is open, Prefect's settings and the environment point to it. At the end the reports of flow runs are
    recorded, the embedded server is ended and everything is as it was. For synchronous code.

    Args:
        log_path: Where the output of an embedded server goes, appended; nowhere if not given.
        server: One that is already starting, from `start_unless_configured`. It is ended here.

    Yields:
        The URL of the API.

    Raises:
        PipelineError: The embedded server did not start.
    """
    server = server or start_unless_configured(log_path)
    if server is None:
        yield str(configured_api())
        return
    try:
        with _reporting_to(server.wait_healthy(), server.secret) as url:
            yield url
    finally:
        server.stop()


def start_unless_configured(log_path: Path | None = None) -> EmbeddedServer | None:
    """A server that is starting; none if the user configured an API."""
    return None if configured_api() else EmbeddedServer(log_path)


def configured_api() -> str | None:
    """The URL that the user configured: in the environment, in a project's files or in the active profile.

    Prefect is asked only if it is imported already or one of its files might name a URL. Where nobody runs a server
    that is rare, and the server starts 1.6 s earlier.
    """
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    if "prefect" not in sys.modules and not _may_be_configured():
        return None
    from prefect.settings import get_current_settings  # noqa: PLC0415  slow, and seldom needed

    return get_current_settings().api.url


def _may_be_configured() -> bool:
    """Whether one of the files that Prefect reads holds what can name an API, or another profile or home."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    signs = {
        Path(".env"): "PREFECT_",
        Path("prefect.toml"): "",
        Path("pyproject.toml"): "[tool.prefect",
        Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml"): "API_URL",
    }
    return any(path.is_file() and sign in path.read_text("utf-8", "replace") for path, sign in signs.items())


@contextlib.contextmanager
def _reporting_to(url: str, secret: str) -> Iterator[str]:
    """Point Prefect in this process to an embedded server, in all threads, until its reports are sent."""
    from prefect import context  # noqa: PLC0415  slow
    from prefect.settings import temporary_settings  # noqa: PLC0415

    ours = {"api.url": url, "api.auth_string": secret, **CLIENT}
    unproxied = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1")))
    try:
        with _environment({"PREFECT_API_URL": url, "NO_PROXY": unproxied, "no_proxy": unproxied}):
            context.refresh_global_settings_context()
            with temporary_settings(ours):
                # For threads that start without a context. By the environment they would find the secret too, but so would
                # every process that this one starts.
                context.GLOBAL_SETTINGS_CONTEXT = context.get_settings_context()
                try:
                    yield url
                finally:
                    _send_reports()
    finally:
        context.refresh_global_settings_context()


def _send_reports() -> None:
    """Send the task states and log lines that Prefect's background threads still hold.

    Prefect does so when the interpreter ends, which is after the server. These threads would also outlive the settings
    and report the next flow run to this server.
    """
    for module, queue in ("prefect.events.worker", "EventsWorker"), ("prefect.logging.handlers", "APILogWorker"):
        if module in sys.modules:
            getattr(sys.modules[module], queue).drain_all(timeout=SEND_SECONDS)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class EmbeddedServer:
    """A Prefect server that starts when this object is made, and ends with this process, however that ends.

    The supervisor holds the other end of a socket of ours, and kills the server on the spot when ours is gone. No child
    keeps ours open: `exec` closes it (Python's files are not inheritable), and after a bare `fork` our handler does.

    Args:
        log_path: Where its output goes, appended; nowhere if not given. Never to this process's own output: an orphan
            that holds a pipe keeps its reader waiting.
    """

    def __init__(self, log_path: Path | None = None) -> None:
        self._began = time.monotonic()
        self._url = ""
        self.secret = f"halotile:{secrets.token_urlsafe(32)}"
        """What it asks everybody for who asks more than whether it is healthy."""
        self._kept: Path | None = None
        self._log = log_path.open("a+b") if log_path else tempfile.TemporaryFile("a+b")  # noqa: SIM115  until stop()
        self._logged_before = os.fstat(self._log.fileno()).st_size
        self._channel, theirs = socket.socketpair()
        os.register_at_fork(after_in_child=self._channel.close)
        with theirs:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).with_name("supervisor.py"))],
                stdin=theirs.fileno(),
                stdout=self._log,
                stderr=self._log,
                env={**LEAN, **os.environ, **EMBEDDED, "PREFECT_SERVER_API_AUTH_STRING": self.secret},
                start_new_session=True,
            )

    def wait_healthy(self, timeout_seconds: float = START_SECONDS) -> str:
        """Wait until it accepts requests, its database migrated.

        Args:
            timeout_seconds: Counted from the start.

        Returns:
            The URL of its API.

        Raises:
            PipelineError: It ended, or was not ready in time; with the end of its log.
        """
        if not self._url:
            word, _, number = self._receive(self._began + timeout_seconds).partition(" ")
            if word != "ready":
                raise PipelineError(self._failure(number, timeout_seconds))
            self._url = f"http://127.0.0.1:{number}/api"
        return self._url

    def has_ended(self) -> bool:
        """Whether nobody answers any more where it accepted requests."""
        place = urlsplit(self._url)
        try:
            socket.create_connection((place.hostname, place.port), ANSWER_SECONDS).close()
        except OSError:
            return True
        return self._supervisor.poll() is not None

    def keep_log(self, path: Path) -> None:
        """Append its output to `path` when it ends: it may start before there is a folder for it."""
        self._kept = path

    def abandon(self) -> None:
        """End it at once, whatever it has not recorded; nothing if it has ended."""
        self._channel.close()
        self._supervisor.wait()
        self._close_log()

    def _close_log(self) -> None:
        if self._kept and not self._log.closed:
            self._log.seek(0)
            with self._kept.open("ab") as kept:
                shutil.copyfileobj(self._log, kept)
        self._log.close()

    def stop(self) -> None:
        """End it after it has recorded what it was told; nothing if it has ended."""
        with contextlib.suppress(OSError):
            self._channel.sendall(b"stop\n")
        try:
            self._supervisor.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()  # the server notices, and ends itself
            self._supervisor.wait()
        finally:
            self._channel.close()
            self._close_log()

    def _receive(self, deadline: float) -> str:
        """The supervisor's first message; empty when there was none in time."""
        message = b""
        while b"\n" not in message:
            self._channel.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                part = self._channel.recv(4096)
            except TimeoutError:
                return ""
            except ConnectionResetError:
                part = b""
            message += part or b"exited with its supervisor\n"
        return message.decode().splitlines()[0]

    def _failure(self, status: str, timeout_seconds: float) -> str:
        """What was tried, what was found, why, and what to do. `status` is empty when the server still tries."""
        seconds = time.monotonic() - self._began
        end = f"ended {status} after {seconds:.1f} s" if status else f"was not ready after {timeout_seconds:g} s"
        packages = ", ".join(f"{name} {version(name)}" for name in ("prefect", "fastapi", "sqlalchemy"))
        return (
            f"Prefect's embedded server {end}. It ran with {packages} on PREFECT_HOME "
            f"{os.environ.get('PREFECT_HOME') or '~/.prefect'}. The end of its log:\n{self._log_tail()}\n"
            f"{_ENDED if status else _LATE}, or set PREFECT_API_URL to a Prefect server that runs."
        )

    def _log_tail(self, lines: int = 12) -> str:
        """The last lines of this start; read without moving the place where the server writes."""
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), 8192, max(self._logged_before, size - 8192)).decode(errors="replace")
        return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or "    (nothing)"

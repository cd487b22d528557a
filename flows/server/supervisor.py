"""Keep the embedded Prefect server alive for as long as its driver, and no longer.

    driver  <== socket pair ==>  supervisor  <== socket pair ==>  server
    embedded.py                  supervise()                      serve()

The child's end of each pair is its standard input. Nobody else holds an end, so end-of-file says that the partner is
gone, however it went: the kernel closes a killed process's files too. So nothing here looks up a process by its number.

    server -> supervisor -> driver    `ready PORT`      accepts requests, the database is migrated
    supervisor -> driver              `exited ...`      the last message, whatever happened
    driver -> supervisor -> server    `stop`            record what has arrived, then end

End-of-file without `stop` kills what is below it, at once; SQLite's journal survives that. The signals that a terminal
or a batch system sends to every process of a job are ignored here: the driver must be able to report how its run ended.

The file runs as a script, the supervisor without site-packages: 13 MB, up in 30 ms.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import gc
import hmac
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STOP_SECONDS = 8.0
"""Between `stop` and the kill; an idle server needs 0.3 s."""

RECORD_SECONDS = 5.0
"""At most this long a stopping server still records the events that have arrived, 30 to 40 a second."""


def supervise() -> None:
    """Start the server, pass messages on, and end it when the driver says so or is gone."""
    _ignore_job_signals()  # the server inherits this
    driver = socket.socket(fileno=os.dup(0))
    server, theirs = socket.socketpair()
    command = [sys.executable, "-P", __file__, "serve"]
    process = subprocess.Popen(command, stdin=theirs.fileno(), start_new_session=True)
    theirs.close()
    try:
        _relay(driver, server)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
        _send(driver, f"exited with status {process.wait()}\n".encode())


def _relay(driver: socket.socket, server: socket.socket) -> None:
    """Pass messages on until either side is gone, or the time for stopping is over."""
    partner = {driver: server, server: driver}
    seconds = None
    while readable := select.select([driver, server], [], [], seconds)[0]:
        for side in readable:
            message = _receive(side)
            if not (message and _send(partner[side], message)):
                return
            if side is driver:
                seconds = STOP_SECONDS


def _receive(partner: socket.socket) -> bytes:
    """What the partner wrote; nothing when it is gone, or went without reading what was written to it."""
    try:
        return partner.recv(4096)
    except ConnectionResetError:
        return b""


def _send(partner: socket.socket, message: bytes) -> bool:
    try:
        partner.sendall(message)
    except OSError:
        return False
    return True


def _ignore_job_signals() -> None:
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
        signal.signal(number, signal.SIG_IGN)


def serve() -> None:
    """Be the server: Prefect's API on a free port of the loopback interface, until the supervisor is gone."""
    lifeline = Lifeline()
    lifeline.start()
    gc.disable()  # importing makes no garbage worth looking for

    import uvicorn  # noqa: PLC0415  the supervisor, in this same file, has neither of the two
    from prefect.server.api.server import create_app  # noqa: PLC0415
    from prefect.settings import get_current_settings  # noqa: PLC0415

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio lets it delay
    listener.bind(("127.0.0.1", 0))  # bound before it is told: no race for the port
    secret = get_current_settings().server.api.auth_string
    if secret is None:
        raise RuntimeError(
            "The server was started without a secret, PREFECT_SERVER_API_AUTH_STRING: it would serve anybody."
        )
    app = Guard(create_app(), secret.get_secret_value())
    config = uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=1)
    with contextlib.ExitStack() as start_up:
        start_up.enter_context(_alone(get_current_settings().home))

        async def started() -> None:
            """Uvicorn calls this first when it accepts requests, and would again every 30 s."""
            config.callback_notify = None
            start_up.close()
            _ignore_job_signals()  # Uvicorn listens to them
            gc.enable()
            os.write(0, f"ready {listener.getsockname()[1]}\n".encode())

        config.callback_notify = started
        lifeline.server = uvicorn.Server(config)
        lifeline.server.run(sockets=[listener])
    os._exit(0)  # tearing down what was imported takes another 1.3 s


class Guard:
    """An ASGI application whose every request must carry the secret, but `GET /api/health`.

    Prefect looks at the requests of its API only, and lets a second one of these pass. Its web sockets ask for the secret themselves.
    """

    def __init__(self, app: Any, secret: str) -> None:
        self._app = app
        self._expected = b"Basic " + base64.b64encode(secret.encode())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or self._passes(scope):
            await self._app(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Basic")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"exception_message": "Unauthorized"}'})

    def _passes(self, scope: Any) -> bool:
        if (scope["method"], scope["path"]) == ("GET", "/api/health"):
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Let one server at a time start on this PREFECT_HOME: two that migrate one fresh database break each other.

    Held for 12 s by the first ever, and for 0.3 s by any later one, so fifty drivers may well start at once. The kernel
    lets go of the lock of a killed process.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "halotile-server.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:  # a network file system without locks
            sys.stderr.write(f"Starting without a lock on {home}: {error}.\n")
        yield


class Lifeline(threading.Thread):
    """End this process: gracefully when the supervisor asks for it, at once when the supervisor is gone."""

    def __init__(self) -> None:
        super().__init__(name="lifeline", daemon=True)
        self.server: Any = None

    def run(self) -> None:
        with contextlib.suppress(OSError):
            if os.read(0, 64) and self.server is not None:
                self._record()
                self.server.should_exit = True
                os.read(0, 64)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    def _record(self) -> None:
        """Wait until the events that have arrived are in the database.

        Prefect's client sends the states of task runs as events; the server queues them in memory, and drops the queue
        when it shuts down.
        """
        deadline = time.monotonic() + RECORD_SECONDS
        while time.monotonic() < deadline and not self._idle():
            time.sleep(0.02)

    def _idle(self) -> bool:
        from prefect.server.utilities.messaging.memory import METRICS  # noqa: PLC0415  long imported when it comes to this

        events = METRICS["events"]
        return not self.server.server_state.tasks and events["published"] == events["consumed"]


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else supervise()

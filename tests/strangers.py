"""Another user of the machine, who tries every port of some processes: what gets an answer is what anybody could ask.

It runs by itself, by the standard library alone, as a user who owns nothing (where the tests are root): it knows of Halotile and
Dask only what is on the wire.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NOBODY = 65534
SECONDS = 30.0
"""For an answer; whoever refuses closes at once."""

REQUESTS = (
    "GET /", "GET /health", "GET /info/main/workers.html", "GET /json/counts.json", "GET /status", "GET /metrics", "GET /docs",
    "GET /openapi.json", "GET /ui-settings", "GET /api/health", "GET /api/ready", "GET /api/admin/version", "GET /api/openapi.json",
    "GET /api/health/../flows/filter", "POST /api/health", "POST /api/flows/filter", "POST /api/flow_runs/filter", "GET /api//health",
)  # fmt: skip


def let_in(processes: Iterable[object]) -> dict[int, set[str]]:
    """What a stranger gets an answer to, by port; ports that answer nothing have an empty set.

    Args:
        processes: Of psutil; all the TCP ports that they listen on are tried.
    """
    from pipeline.cluster.security import own_certificates, temporary_files  # noqa: PLC0415 - not for the stranger

    ports = {
        (connection.laddr.ip, connection.laddr.port)
        for process in processes
        for connection in process.net_connections("tcp")  # type: ignore[attr-defined] - one of psutil's
        if connection.status == "LISTEN"
    }
    with tempfile.TemporaryDirectory() as folder:
        temporary_files(Path(folder) / "tls", own_certificates())  # a good one, but not of the run
        command = [sys.executable, "-I", __file__, json.dumps([*ports]), f"{folder}/tls"]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=240)
    return {int(port): set(answers) for port, answers in json.loads(found.stdout).items()}


def readable_environments(pids: Iterable[int]) -> set[int]:
    """Of which processes the stranger can read the environment."""
    script = f"import os, sys\nos.setgid({NOBODY}); os.setuid({NOBODY})\nfor pid in sys.argv[1:]:\n try: open(f'/proc/{{pid}}/environ').read()\n except OSError: pass\n else: print(pid)"
    found = subprocess.run(
        [sys.executable, "-I", "-c", script, *map(str, pids)], stdout=subprocess.PIPE, text=True, check=True
    )
    return set(map(int, found.stdout.split()))


# --- the stranger ------------------------------------------------------------------------------------------------------


def main(ports: list[tuple[str, int]], certificates: Path) -> None:
    """Print what each port answers to."""
    own = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    own.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    nobodys = ssl.create_default_context()
    for context in own, nobodys:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    "".encode("idna")  # sockets load it when they first connect, and nobody may read where it lies
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    questions: dict[str, Callable[[tuple[str, int]], bool]] = {
        "TLS": lambda port: shook_hands(nobodys, port),
        "TLS with another certificate": lambda port: shook_hands(own, port),
        "web socket": lambda port: listened(port, ""),
        "web socket of Prefect's": lambda port: listened(port, "Sec-WebSocket-Protocol: prefect\r\n"),
        **{line: lambda port, line=line: answered(port, line) for line in REQUESTS},
    }
    with ThreadPoolExecutor(16) as threads:
        greeted = list(
            threads.map(lambda port: got_in(lambda port: spoke(socket.create_connection(port, SECONDS)), port), ports)
        )
        answers: dict[int, list[str]] = {port[1]: [] for port in ports}
        for port, greets in zip(ports, greeted, strict=True):
            answers[port[1]] += ["silence"] * greets
        # further nonsense may stop one that listens to it
        rest = [port for port, greets in zip(ports, greeted, strict=True) if not greets]
        asked = {
            (port, question): threads.submit(got_in, ask, port) for port in rest for question, ask in questions.items()
        }
    for (port, question), found in asked.items():
        answers[port[1]] += [question] * found.result()
    print(json.dumps(answers))


def got_in(ask: Callable[[tuple[str, int]], bool], port: tuple[str, int]) -> bool:
    """Whether a question was answered, by whatever its kind calls an answer."""
    try:
        return ask(port)
    except TimeoutError:
        raise
    except OSError:  # ssl.SSLError too
        return False


def spoke(connection: socket.socket) -> bool:
    """Whether it said something that is no alert of TLS: Dask's listeners greet first. Whoever waits for TLS is asked nonsense."""
    with connection:
        connection.settimeout(2.0 if isinstance(connection, ssl.SSLSocket) else 1.0)
        try:
            said = connection.recv(1)
        except TimeoutError:
            connection.settimeout(SECONDS)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            said = connection.recv(1)
        return said not in (b"", b"\x15") and b"HTTP" not in said + connection.recv(3)


def shook_hands(context: ssl.SSLContext, port: tuple[str, int]) -> bool:
    """The same by TLS. A web server that speaks none waits for the rest of a line."""
    try:
        connection = context.wrap_socket(socket.create_connection(port, SECONDS / 5))
    except TimeoutError:
        return False
    return spoke(connection)


def request(port: tuple[str, int], line: str, headers: str = "") -> socket.socket:
    """A connection over which something was asked, with a wrong secret."""
    connection = socket.create_connection(port, SECONDS)
    wrong = base64.b64encode(b"halotile:wrong").decode()
    length = "Content-Length: 2\r\nContent-Type: application/json\r\n" if line.startswith("POST") else ""
    head = f"{line} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic {wrong}\r\n{length}{headers}\r\n"
    connection.sendall(head.encode() + (b"{}" if length else b""))
    return connection


def answered(port: tuple[str, int], line: str) -> bool:
    """Whether a request is answered by more than that it is not allowed, or that there is no such page."""
    with request(port, line, "Connection: close\r\n") as connection:
        head = connection.recv(12)
    return head.startswith(b"HTTP/1.1 ") and head[9:12] not in (b"401", b"403", b"400")


def listened(port: tuple[str, int], headers: str) -> bool:
    """Whether a web socket stays open for one that shows a wrong secret."""
    key = base64.b64encode(os.urandom(16)).decode()
    upgrade = f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{headers}"
    with request(port, "GET /api/events/in", upgrade) as connection, connection.makefile("rb") as answer:
        if not answer.readline().startswith(b"HTTP/1.1 101"):
            return False
        while answer.readline().strip():
            pass
        said = b'{"type": "auth", "token": "wrong"}'
        connection.sendall(bytes([0x81, 0x80 | len(said), 0, 0, 0, 0]) + said)  # a text, masked by nothing
        return bool((first := answer.read(1)) and first[0] & 0x0F != 8)  # 8 closes


if __name__ == "__main__":
    main([tuple(port) for port in json.loads(sys.argv[1])], Path(sys.argv[2]))

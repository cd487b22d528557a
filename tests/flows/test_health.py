"""One look at a configured Prefect server before anything starts: ten seconds, and words."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_KEY,
    PREFECT_CLIENT_CUSTOM_HEADERS,
    temporary_settings,
)

from flows.server.health import check_api
from pipeline.errors import ConfigError

NO_FLOW = (404, "application/json", json.dumps({"detail": "Flow not found"}))


@contextmanager
def served(status: int, kind: str, body: str, *, seconds: float = 0.0) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server with one answer to everything, after a while; gives its URL, and the headers that it saw."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(dict(self.headers))
            time.sleep(seconds)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    """A proxy of the machine that tests is not theirs, nor is the server that other tests of this process started."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with temporary_settings(restore_defaults={PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_CLIENT_CUSTOM_HEADERS}):
        yield


def test_a_server_that_takes_connections_and_never_answers_is_refused_in_time(monkeypatch):
    """Prefect's client alone asked again for 541 s, without a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        monkeypatch.setenv("PREFECT_API_URL", url)
        began = time.monotonic()
        with pytest.raises(
            ConfigError, match=rf"'{url}', from the variable PREFECT_API_URL, does not answer within 0.5 s"
        ):
            check_api(url, 0.5)
        assert time.monotonic() - began < 20


def test_a_server_that_is_slow_or_has_no_flow_yet_is_fine():
    """It is asked once, and it has the time that it was given."""
    with served(*NO_FLOW, seconds=0.5) as (url, seen):
        check_api(url)
    assert len(seen) == 1


def test_a_server_gets_what_prefects_client_sends():
    """Or a server behind a password would look closed to those who have it."""
    sent = {"api.auth_string": "me:pass", "client.custom_headers": {"X-Gate": "open"}}
    with served(*NO_FLOW) as (url, seen), temporary_settings(sent):
        check_api(url)
    assert seen[0]["X-Gate"] == "open"
    assert seen[0]["Authorization"] == f"Basic {base64.b64encode(b'me:pass').decode()}"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, "application/json", "{}"), r"asks who we are \(401\).*PREFECT_API_AUTH_STRING.*PREFECT_API_KEY"),
        ((200, "text/html", "<html>"), r"page of HTML \(200\): that is no Prefect API"),
        ((404, "application/json", '{"detail": "Not Found"}'), r"not as a Prefect API does \(404"),
        ((200, "application/json", "[]"), r"not as a Prefect API does \(200"),
        ((200, "text/plain", "pong"), r"not as a Prefect API does \(200: pong"),
        ((500, "text/plain", "no room"), r"an error \(500\): no room"),
    ],
)
def test_what_is_no_server_for_us_is_refused_in_words(answer, words):
    """Whatever listens at a port that somebody mistyped."""
    with served(*answer) as (url, _), pytest.raises(ConfigError, match=words):
        check_api(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:9/api", "cannot be reached .*refused"),
        ("localhost:4200/api", "cannot be reached .*protocol"),
        ("https://[::/api", "cannot be reached .*IPv6"),
    ],
)
def test_a_url_at_which_nothing_can_be_is_refused_in_words(url, words):
    """With its URL, and where that came from."""
    with pytest.raises(ConfigError, match=words):
        check_api(url)

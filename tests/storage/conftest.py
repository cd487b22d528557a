"""A server that speaks as S3 does, in this process: quick, and no judge of signatures, which tests/sites are."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from moto.server import ThreadedMotoServer

from pipeline.places.stores import s3


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Its endpoint."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment that leads every client there, as a user would set it; gives what changes it."""
    given = {
        "ENDPOINT_URL": s3_server,
        "ACCESS_KEY_ID": "test",
        "SECRET_ACCESS_KEY": "testtest",
        "DEFAULT_REGION": "us-east-1",
    }
    for name, value in (given | {"EC2_METADATA_DISABLED": "true"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return monkeypatch


@pytest.fixture
def bucket(s3_environment: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket."""
    name = f"test-{uuid.uuid4().hex}"
    s3().mkdir(name)
    return f"s3://{name}"

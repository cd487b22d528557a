"""A bucket of a real server that speaks S3."""

import fsspec
import pytest


@pytest.fixture(scope="session")
def s3_server():
    """Its address."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """The URL of a bucket; what a client needs is in the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # one made for another server would go on asking that
    fsspec.filesystem("s3").makedirs("catalogue", exist_ok=True)
    yield "s3://catalogue"
    fsspec.get_filesystem_class("s3").clear_instance_cache()

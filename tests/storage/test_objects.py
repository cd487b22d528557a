"""What object stores are asked, and how their refusals are told."""

import hashlib
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.places import objects, remote, stores
from pipeline.places.objects import ObjectStore, told
from pipeline.places.stores import s3
from pipeline.publishing.publication import open_publication, read_current
from pipeline.volumes.volume import open_volume


@pytest.fixture(params=["s3", "memory"])
def store(request):
    """An empty store: a server's, and one of fsspec's that needs none."""
    if request.param == "memory":
        return ObjectStore(f"memory://{request.node.name}/set/brain")
    return ObjectStore(f"{request.getfixturevalue('bucket')}/set/brain")


def test_objects_are_written_listed_read_and_removed_by_their_keys(store, tmp_path):
    """The few things that publishing asks, the same of every store."""
    assert store.sizes() == {}
    assert store.children("versions") == []
    assert store.read("current.json") is None
    store.delete("current.json")
    (tmp_path / "file").write_bytes(b"12345")
    store.send(tmp_path / "file", "versions/a/0/c/1")
    store.write("versions/b/.gone", b"")
    store.write("current.json", b"{}")
    store.write("current.json", b"{ }")
    assert store.sizes() == {"versions/a/0/c/1": 5, "versions/b/.gone": 0, "current.json": 3}
    assert store.sizes("versions/a") == {"versions/a/0/c/1": 5}
    assert store.children("versions") == ["a", "b"]
    assert store.read("current.json") == b"{ }"
    assert store.modified("current.json").tzinfo is not None
    store.delete("current.json")
    assert store.read("current.json") is None


def test_an_object_is_hashed_in_pieces(store, monkeypatch):
    """A shard may be larger than what a machine has room for, times the threads."""
    monkeypatch.setattr(objects, "PIECE", 7)
    for content in (b"", b"0123456", b"0123456789" * 5):
        store.write("x", content)
        assert store.digest("x", len(content)) == hashlib.sha256(content).hexdigest()


def test_a_large_file_is_sent_in_parts_and_comes_back_whole(bucket, tmp_path):
    """More than a hundred megabytes go up as a multipart upload, which shows only when it is complete."""
    store, path = ObjectStore(bucket), tmp_path / "large"
    path.write_bytes(bytes(range(256)) * 2**10 * 450)
    store.send(path, "large")
    assert store.digest("large", path.stat().st_size) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_others_change_is_seen_at_once(bucket):
    """Listings of fsspec remember; a version that was just removed elsewhere would still be there."""
    first = ObjectStore(f"{bucket}/x")
    assert first.sizes() == {}
    assert subprocess.run(
        [
            sys.executable,
            "-c",
            f"from pipeline.places.objects import ObjectStore; ObjectStore('{bucket}/x').write('a', b'1')",
        ],
        check=True,
    )
    assert first.sizes() == {"a": 1}


def test_threads_share_one_client_and_another_environment_gets_another(s3_environment):
    """A client holds connections: one a thread would use up what a process may open."""
    found = [s3()]
    thread = threading.Thread(target=lambda: found.append(s3()))
    thread.start()
    thread.join()
    assert found[0] is found[1]
    s3_environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert s3() is not found[0]


# --- refusals -----------------------------------------------------------------------------------------------------------


@contextmanager
def refusing(status, code):
    """A server that answers every request so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = f"<Error><Code>{code}</Code><Message>because of {code}</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        do_HEAD = do_PUT = do_DELETE = do_GET  # noqa: N815 - the names of http.server

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


ASKED = {
    "open_volume": open_volume,
    "read_current": read_current,
    "versions": lambda url: open_publication(url, "brain", "/nowhere/staging").versions(),
}


@pytest.mark.parametrize("ask", ASKED)
@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "AccessDenied", r"the store refuses it \((AccessDenied|403): .*\)\. Check AWS_PROFILE"),
        (403, "InvalidAccessKeyId", r"the store refuses it .* AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (404, "NoSuchBucket", "there is no bucket 'brains'"),
        (501, "NotImplemented", r"the store cannot be reached, or failed \((NotImplemented|501)"),
    ],
)
def test_what_a_store_refuses_is_told_with_what_to_do(s3_environment, ask, status, code, words):
    """Forbidden, absent or broken: each has another remedy, and none is a traceback of a client's library."""
    with refusing(status, code) as endpoint:
        s3_environment.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StorageError, match=rf"'s3://brains/em/brain' could not be \w+: {words}"):
            ASKED[ask]("s3://brains/em/brain")


@pytest.mark.parametrize("ask", ASKED)
def test_a_store_that_is_not_there_is_told_within_seconds(s3_environment, monkeypatch, ask):
    """A server that is down, or a typo in its address, must not hang a run for minutes."""
    monkeypatch.setattr(stores, "OPENING_SECONDS", 1)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        s3_environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(StorageError, match=r"the store cannot be reached.*Check AWS_ENDPOINT_URL"):
            ASKED[ask]("s3://brains/em/brain")


def test_a_store_that_does_not_answer_is_given_up(s3_environment, monkeypatch):
    """It accepts and is silent, as behind a broken proxy; ten seconds as it is set, here a tenth of a second."""
    monkeypatch.setattr(remote, "STALLED_SECONDS", 0.1)
    monkeypatch.setattr(stores, "OPENING_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        s3_environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StorageError, match=r"the store cannot be reached, or failed \(error sending request"):
            open_volume("s3://brains/em")


def test_no_credentials_are_told_as_such(s3_environment, tmp_path):
    """The commonest beginning: nothing is set."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        s3_environment.delenv(name)
    s3_environment.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    s3_environment.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match=r"refuses it \(NoCredentialsError: .*AWS_ACCESS_KEY_ID"):
        open_volume("s3://brains/em")


def test_a_package_that_is_not_installed_is_named_with_its_extra():
    """Object stores are an extra; whoever lacks it must not search for it."""
    script = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from flows.cli import main; sys.argv = ['halotile', 'inspect', 's3://bucket/x']; main()"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "the package for s3:// is not installed here. To have it, run: cd " in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("zip://a.zarr::s3://bucket/a.zip", r"is a chain of stores \('::'\)"),
        ("nosuch://bucket/x", "nosuch:// is no protocol that fsspec knows"),
        ("gs://bucket/x", r"the package for gs:// is not installed here. Run: pip install gcsfs"),
        ("s3://user:secret@bucket/x", "carries a user or a password"),
    ],
)
def test_urls_that_lead_nowhere_are_refused(url, words):
    """Each with its reason, and no secret in it."""
    with pytest.raises(StorageError, match=words) as found:
        open_volume(url)
    assert "secret" not in str(found.value)


@pytest.mark.parametrize("url", ["sftp://host/set/brain", "http://host/set/brain"])
def test_outputs_go_only_where_an_object_is_replaced_in_one_step(url, tmp_path):
    """Over SFTP or FTP a reader could meet half a pointer."""
    for ask in (read_current, lambda url: open_publication(url, "brain", str(tmp_path))):
        with pytest.raises(StorageError, match="an object is not replaced in one step"):
            ask(url)


def test_an_output_on_a_store_needs_a_staging_folder():
    """Versions are computed on a file system first."""
    with pytest.raises(StorageError, match="Name a staging folder"):
        open_publication("memory://set/brain", "brain")


def test_defects_of_ours_are_not_told_as_the_stores():
    """A TypeError is no refusal of a server: it must show its traceback."""
    with pytest.raises(TypeError), told("s3://bucket/x", "be read"):
        raise TypeError("ours")


def test_an_error_of_a_local_file_is_told_with_its_name():
    """What cannot be read here is no fault of the store."""
    with (
        pytest.raises(StorageError, match=r"because of '/nowhere' here \(No such file"),
        told("s3://bucket/x", "be published"),
    ):
        Path("/nowhere").read_bytes()

"""A request to end: whatever lies at its place, the thread that heeds it goes on, and says what it does not heed."""

import os
import stat

import pytest

from pipeline.outputs.cancel_request import MOST_BYTES, CancelRequest

TOKEN = "12-node-ab"


@pytest.fixture
def request_(tmp_path) -> CancelRequest:
    """One whose file is not there yet."""
    return CancelRequest(tmp_path / "cancel")


def test_the_driver_that_is_named_is_asked_to_end_once(request_, caplog):
    """What was read is swept away: it must not end the next sitting."""
    request_.path.write_text(TOKEN)
    assert request_.is_for(TOKEN)
    assert not request_.is_for(TOKEN)
    assert not caplog.records


def _huge(path):
    path.touch()
    os.truncate(path, 2**40)


ODD = {
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "empty": lambda path: path.touch(),
    "huge": _huge,
    "too long": lambda path: path.write_text(TOKEN * MOST_BYTES),
    "a folder": lambda path: path.mkdir(),
    "a folder with things in it": lambda path: (path / "deeper").mkdir(parents=True),
    "a pipe": os.mkfifo,
    "a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "a link onto itself": lambda path: path.symlink_to(path.name),
    "a link to a folder": lambda path: path.symlink_to(path.parent),
    "words of a person": lambda path: path.write_text("please"),
    "another driver": lambda path: path.write_text(f"{TOKEN}c"),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_what_is_no_request_is_not_heeded_and_told_once(request_, caplog, make):
    """An exception here would end the thread, and no later request would be heeded."""
    make(request_.path)
    assert not any(request_.is_for(TOKEN) for _ in range(3))
    (told,) = caplog.messages
    assert told.startswith(f"'{request_.path}' is not heeded: it ")
    assert told.endswith(". To end a run: halotile cancel")


def test_a_request_that_cannot_be_swept_away_is_heeded_all_the_same(request_, monkeypatch):
    """A folder that turned read-only must not make a run endless."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    request_.path.write_text(TOKEN)
    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    assert request_.is_for(TOKEN)

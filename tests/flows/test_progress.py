"""What of a run's advance reaches Prefect's server."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from uuid import uuid4

import pytest
from httpx import ConnectError
from prefect.logging.handlers import APILogHandler

from flows import progress
from flows.progress import ProgressArtifact
from flows.server.api_log import keep_tiles_from_prefect


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The updates that a server would get; an hour passes between any two looks at the clock."""
    found: list[float] = []
    clock = iter(range(0, 10**10, 3600))
    monkeypatch.setattr(progress, "create_progress_artifact", lambda **_: uuid4())
    monkeypatch.setattr(progress, "update_progress_artifact", lambda _, progress: found.append(progress))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    return found


def test_a_hundred_updates_are_told_of_however_many_tiles(told):
    """A volume of a million tiles must not cost Prefect's server a million requests."""
    artifact = ProgressArtifact("key", "of a test")
    for done in range(1, 20_001):
        artifact.tell(100 * done / 20_000)
    assert 90 <= len(told) <= 101
    assert told[-1] == 100
    assert told == sorted(told)


def test_a_quick_run_is_told_of_once(told, monkeypatch):
    """Within seconds nobody looks; the end is told whatever was told before."""
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: 0.0))
    artifact = ProgressArtifact("key", "of a test")
    for done in range(1, 101):
        artifact.tell(done)
    assert told == [100]


def test_a_server_that_is_gone_costs_the_picture_and_not_the_run(told, monkeypatch, caplog):
    """Hours of computing do not depend on who watches."""

    def refused(*_: object, **__: object) -> None:
        told.append(-1.0)
        raise ConnectError("gone")

    monkeypatch.setattr(progress, "update_progress_artifact", refused)
    # Prefect's set-up of loggers, if it was, took it
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)
    caplog.set_level(logging.WARNING, "pipeline")
    artifact = ProgressArtifact("key", "of a test")
    for done in (10, 20, 100):
        artifact.tell(done)
    assert told == [-1.0]
    assert "no longer shown" in caplog.text


def test_lines_about_a_tile_stay_off_prefects_server():
    """A line a tile, or a failure of each, would fill its database; they are in run.log."""
    log, api = logging.getLogger("pipeline"), APILogHandler()
    log.addHandler(api)
    try:
        keep_tiles_from_prefect()
        records = [
            log.makeRecord("pipeline", logging.ERROR, "", 1, "said", (), None, extra=e) for e in ({}, {"tile": 3})
        ]
        assert [bool(api.filter(record)) for record in records] == [True, False]
    finally:
        log.removeHandler(api)

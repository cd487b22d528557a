"""What real workers log, in the driver's log."""

import functools
import json
import logging
import os
import signal
from collections.abc import Iterator
from contextvars import ContextVar

import pytest
from distributed import Client, LocalCluster

from pipeline.cluster.forwarding import forward
from pipeline.config import LogConfig
from pipeline.logs import log, logged
from tests.cluster import work

DEBUG, INFO = logging.DEBUG, logging.INFO
QUIET = {"dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL}
mood = ContextVar("mood", default="unknown")


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """One worker process, which is replaced when it dies."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", **QUIET) as cluster,
        Client(cluster) as found,
    ):
        yield found


@pytest.fixture
def opened(tmp_path):
    """A log of a run, and what it holds."""

    def records():
        path = tmp_path / "run.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def open_log(level):
        return logged(tmp_path / "run.log", LogConfig(level=level, format="json"), run="out.zarr", stage="infer")

    open_log.records = records
    return open_log


def say(client: Client, level: int, *indices: int) -> list[int]:
    """Have tasks log."""
    return client.gather(client.map(functools.partial(work.say, level), indices, pure=False))


def test_what_a_worker_logs_is_here_before_its_result_and_with_its_fields(client, opened):
    """A tile that is done in the ledger and not in the log would look lost."""
    with opened("debug"), forward(client, "debug"):
        say(client, DEBUG, 7, 8)
        found = opened.records()
    assert [(r["tile"], r["worker"], r["message"]) for r in found] == [(i, "n1-3", f"said of {i}") for i in (7, 8)]
    assert {(r["run"], r["stage"], r["level"]) for r in found} == {("out.zarr", "infer", "DEBUG")}


def test_workers_send_no_more_than_the_level_asks_for(client, opened):
    """A million tiles must not send two million lines that nobody keeps."""
    arrived = []
    with opened("info"), forward(client, "info"):
        log.addFilter(arrived.append)
        try:
            say(client, DEBUG, 1)
            say(client, INFO, 2)
        finally:
            log.removeFilter(arrived.append)
    assert [record.tile for record in arrived] == [2]


def test_nothing_comes_before_it_is_open_nor_after(client, opened):
    """The negative control; and a worker is left as it was, for the next run on it."""
    with opened("debug"):
        say(client, logging.ERROR, 1)
        with forward(client, "debug"):
            say(client, DEBUG, 2)
        say(client, logging.ERROR, 3)
        assert list(client.run(lambda: logging.getLogger("pipeline").level).values()) == [logging.NOTSET]
    assert [record["tile"] for record in opened.records()] == [2]


def test_a_worker_that_comes_later_is_heard_too(client, opened):
    """Workers die and are replaced, and those of a queue come when they come."""
    with opened("debug"), forward(client, "debug"):
        (first,) = say(client, DEBUG, 1)
        os.kill(first, signal.SIGKILL)
        (second,) = say(client, DEBUG, 2)
    assert first != second
    assert [record["tile"] for record in opened.records()] == [1, 2]


def test_opened_again_after_an_interruption_each_line_comes_once(client, opened):
    """An interrupted run leaves its plugin on workers that stay; the next one takes its place, with its own level."""
    with opened("debug"):
        with pytest.raises(KeyboardInterrupt), forward(client, "debug"):
            raise KeyboardInterrupt
        with forward(client, "info"):
            say(client, DEBUG, 1)
            say(client, INFO, 2)
    assert [record["tile"] for record in opened.records() if "tile" in record] == [2]


def test_records_are_handled_in_the_context_of_the_caller(client):
    """Prefect knows by it whose page a line belongs on; the client's thread knows nothing of that."""
    moods = []

    def note(_):
        moods.append(mood.get())
        return False

    mood.set("good")
    log.addFilter(note)
    try:
        with forward(client, "info"):
            say(client, INFO, 1)
    finally:
        log.removeFilter(note)
    assert moods == ["good"]


def test_a_worker_in_the_drivers_own_process_logs_once(opened):
    """It would hear itself, and answer, without end."""
    with (
        LocalCluster(n_workers=1, processes=False, **QUIET) as cluster,
        Client(cluster) as client,
        opened("debug"),
        forward(client, "debug"),
    ):
        say(client, DEBUG, 1)
    assert [record["tile"] for record in opened.records()] == [1]


def test_a_client_that_is_closed_inside_ends_it_without_a_word(opened):
    """What closed it is the error to see."""
    with LocalCluster(n_workers=1, processes=False, **QUIET) as cluster:
        client = Client(cluster)
        with forward(client, "debug"):
            client.close()

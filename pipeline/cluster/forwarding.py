"""What workers log, in the driver's log: each record as it was, with the fields that it carries.

Dask brings it: a handler on each worker publishes records under a topic, to which the driver's client listens. Workers
that join later get the same plugin. The scheduler keeps the last thousand records at most, and the driver none.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from logging.handlers import QueueHandler
from queue import SimpleQueue
from typing import Any

from distributed import Client, Worker, WorkerPlugin
from distributed.client import ClosedClientError

from pipeline.cluster.scheduler import ANSWER_SECONDS, ask, loop_of

TOPIC = "halotile-log"

LOOK_SECONDS = 1.0
"""Between two looks whether the connection is still the same."""

log = logging.getLogger("pipeline")


@contextmanager
def forward(client: Client, level: str) -> Iterator[None]:
    """While open, handle here what the workers log, as if it had been logged here and now.

    Records are handled in the context of the caller, though in the client's thread: what is true of this thread (its
    run and stage, Prefect's task) is true of them. Records of a task are here before its result is. The log never
    fails a run: workers that cannot be reached go on unheard.

    Args:
        client: Connected to the workers.
        level: debug, info, warning or error: what they log, and send.
    """
    here = copy_context()

    async def begin() -> None:
        client.subscribe_topic(TOPIC, lambda event: here.run(_handle, event[1]))
        await client.register_plugin(_Forwarding(level))

    try:
        ask(client, begin)
    except OSError as error:
        log.warning("what some workers log will be missing: %s", error)
    kept = asyncio.run_coroutine_threadsafe(_keep(client, begin), loop_of(client).asyncio_loop)
    try:
        yield
    finally:
        kept.cancel()
        with suppress(ClosedClientError):
            client.unsubscribe_topic(TOPIC)  # it waits for nobody: the run may end because nobody answers any more
    with suppress(OSError, ValueError):
        if client.status == "running":
            ask(client, lambda: client.unregister_worker_plugin(_Forwarding.name))


async def _keep(client: Client, begin: Callable[[], Awaitable[None]]) -> None:
    """Begin again where the connection was made anew: its other end, the same or another scheduler, knows nothing of it."""
    stream = client.scheduler_comm
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        present = client.scheduler_comm
        if client.status == "running" and present is not stream:
            with suppress(OSError):
                await asyncio.wait_for(begin(), ANSWER_SECONDS)
                stream = present


class _Forwarding(WorkerPlugin):
    """Makes a worker log at a level, and publish it. A second one takes the place of the first."""

    name = TOPIC

    def __init__(self, level: str) -> None:
        self._level = level.upper()
        self._driver = _this_process()
        self._before = logging.NOTSET
        self._handler: _Publisher | None = None

    def setup(self, worker: Worker) -> None:
        if self._driver == _this_process():  # a worker in the driver's process: what it logs is here already
            return
        self._handler = _Publisher(worker)
        self._before = log.level
        log.addHandler(self._handler)
        log.setLevel(self._level)

    def teardown(self, worker: Worker) -> None:  # noqa: ARG002 - the plugin's signature
        if self._handler:
            log.removeHandler(self._handler)
            log.setLevel(self._before)


class _Publisher(QueueHandler):
    """Publishes records, their text and traceback made; one that cannot be sent fails no tile.

    Not by Dask's own `Client.forward_logging`: the scheduler puts an address into the field `worker` of what it passes on.
    """

    def __init__(self, worker: Worker) -> None:
        super().__init__(SimpleQueue())  # which stays empty: the worker is what takes them
        self._worker = worker

    def enqueue(self, record: logging.LogRecord) -> None:
        self._worker.log_event(TOPIC, {"record": vars(record)})


def _handle(published: dict[str, Any]) -> None:
    record = logging.makeLogRecord(published["record"])
    logging.getLogger(record.name).handle(record)


def _this_process() -> tuple[str, int]:
    return (socket.gethostname(), os.getpid())

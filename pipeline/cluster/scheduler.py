"""What a run asks of its scheduler, and for how long it waits for the answers.

Dask waits for an answer, for the greeting of a new connection, and for news of tiles as long as the connection is open. One
through a proxy (`kubectl port-forward`, a tunnel), or to a process that is stopped, can be open for ever and say nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from distributed import Client
from distributed.client import ClosedClientError
from distributed.core import Status, rpc
from distributed.security import Security
from distributed.utils import LoopRunner, sync
from tornado.platform.asyncio import BaseAsyncIOLoop

from pipeline.errors import InferenceError

log = logging.getLogger("pipeline")

ANSWER_SECONDS = 30.0
"""For an answer."""

GONE_SECONDS = 240.0
"""So long without any answer, the scheduler is given up; longer than Dask's client tries to connect."""

PULSE_SECONDS = 15.0
"""Between two looks whether news would still come."""

SILENT_SECONDS = 90.0
"""So long after the first that was in vain, the connection is made anew."""


async def greet(address: str, security: Security | None, seconds: float) -> None:
    """Find out whether a scheduler answers; Dask's client would wait for ever for one that takes the connection and is silent.

    Raises:
        OSError: It does not, within so many seconds.
        TypeError: `tls://` without certificates.
    """
    arguments = (security or Security()).get_connection_args("client")
    async with rpc(address, connection_args=arguments, timeout=seconds) as there:
        await _within(seconds, there.identity(n_workers=0))


def greet_here(address: str, security: Security | None, seconds: float) -> None:
    """The same, where no loop of Dask's runs yet."""
    runner = LoopRunner()  # in a thread of its own: this one may have a loop, and an interrupt ends the waiting
    runner.start()
    try:
        sync(runner.loop, greet, address, security, seconds)
    finally:
        runner.stop()


def ask(client: Client, question: Callable[[], Awaitable[Any]]) -> Any:
    """Ask a scheduler, and give its answer.

    Args:
        client: Connected to it.
        question: Called in the client's loop, where its methods give something to wait for.

    Raises:
        OSError: The connection is down, or no answer came in time (TimeoutError).
        RuntimeError: The client closes its connections just now.
    """

    async def asked() -> Any:
        return await _within(ANSWER_SECONDS, question())

    return client.sync(asked)


async def _within(seconds: float, answer: Awaitable[Any]) -> Any:
    try:
        return await asyncio.wait_for(answer, seconds)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {seconds:g} s") from error


class Attendance:
    """Who of a scheduler's workers is there, without those that are about to leave.

    Not by `Client.scheduler_info`: the client itself refreshes what that returns, without the workers, so now and then it
    says that there are none.

    Args:
        client: Connected to the scheduler.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._pulse = _Pulse(client)
        self._in_vain = math.inf  # when it first was in vain, since the last time that all was well
        self.seen: set[str] = set()
        """Addresses of those that were there at the last look."""

    def look(self) -> set[str]:
        """Look who is there, and give their addresses; while the connection is down, those of the last look.

        Raises:
            InferenceError: The scheduler is given up.
        """
        scheduler = self._client.scheduler
        if scheduler is None:
            raise scheduler_gone()
        try:
            workers = ask(self._client, lambda: scheduler.identity(n_workers=-1))["workers"]
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) or self._client.status not in ("running", "connecting"):
                raise scheduler_gone() from error
            self._in_vain = min(self._in_vain, time.monotonic())
            if isinstance(error, TimeoutError):
                loop_of(self._client).add_callback(_drop_questions, self._client)
        else:
            leaving = Status.closing_gracefully.name
            self.seen = {address for address, worker in workers.items() if worker.get("status") != leaving}
            self._in_vain = math.inf if self._client.status == "running" else min(self._in_vain, time.monotonic())
        if time.monotonic() - self._in_vain > GONE_SECONDS:
            raise scheduler_gone()
        self._pulse.feel()
        return self.seen


class _Pulse:
    """Whether news of tiles would come. There are none for as long as a tile takes, so the scheduler is asked to send some.

    Questions have connections of their own, which are made anew when one fails: that they are answered says nothing.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._topic = f"halotile-pulse-{uuid.uuid4().hex}"
        self._asked = -math.inf
        self._came = False
        self._missed: float | None = None  # since when what was asked for does not come

    def feel(self) -> None:
        """To be called often; has the connection made anew where nothing comes."""
        now = time.monotonic()
        if self._client.status != "running":
            self._came, self._missed = False, None  # Dask's client is at it
            return
        if now - self._asked > PULSE_SECONDS:
            self._asked = now
            loop_of(self._client).add_callback(self._ask)
        stream = self._client.scheduler_comm
        if self._missed is not None and now - self._missed > SILENT_SECONDS and stream is not None:
            log.warning(
                "the scheduler answers, but for %.0f s none of its news has come; connecting anew", now - self._missed
            )
            self._missed = None
            loop_of(self._client).add_callback(stream.abort)
            loop_of(self._client).add_callback(_drop_questions, self._client)

    async def _ask(self) -> None:
        if self._client.scheduler is None:  # it was given up meanwhile
            return
        try:
            if not self._came:  # the first time; or the scheduler was started anew, and does not know who listens
                self._client.subscribe_topic(self._topic, self._hear)
            self._came = False
            await asyncio.wait_for(self._client.log_event(self._topic, None), ANSWER_SECONDS)
        except (OSError, RuntimeError, ClosedClientError):  # a look says more of it, or the run is over
            return
        if not self._came and self._missed is None:
            self._missed = time.monotonic()

    def _hear(self, _: Any) -> None:
        self._came, self._missed = True, None


def loop_of(client: Client) -> BaseAsyncIOLoop:
    """The loop in which a client talks, in a thread of its own.

    Raises:
        RuntimeError: It was never started.
    """
    if not isinstance(client.loop, BaseAsyncIOLoop):
        raise RuntimeError("A client of Dask was asked for its loop before it was started.")
    return client.loop


def _drop_questions(client: Client) -> None:
    """End those that are unanswered, and their connections: Dask waits for a tile's result without end."""
    if client.scheduler is not None and client.scheduler.address is not None:
        client.rpc.remove(client.scheduler.address, reason="no answer came")


def scheduler_gone() -> InferenceError:
    """The error of a run whose scheduler was given up."""
    return InferenceError(
        "The scheduler does not answer any more: it, its machine, or the network between is gone. Run again to resume: "
        "finished tiles are kept."
    )

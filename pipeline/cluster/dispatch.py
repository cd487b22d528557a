"""How tiles reach workers: by index only, each worker's few in a line of its own, whatever happens to the workers.

`core.assignments` decides on tiles and `core.foreman` on workers; this is the shell around the two. It tells them who is there and what
ended, and carries out what they say. Neither this process nor the scheduler grows with the volume: a future is forgotten as its outcome is read.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import itertools
import logging
import math
import queue
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from distributed import Future, KilledWorker
from distributed.client import ClosedClientError
from distributed.comm import CommClosedError

from pipeline.cluster.pool import Pool
from pipeline.cluster.scheduler import ask, loop_of, scheduler_gone
from pipeline.core.assignments import Assignments, Attempt, Outcome
from pipeline.core.foreman import Event, Foreman, Landed, Prepared, Spared
from pipeline.errors import InferenceError

log = logging.getLogger("pipeline")

LOOK_SECONDS = 1.0
"""Between two looks at who is there."""

GIVEN_UP = (asyncio.CancelledError, concurrent.futures.CancelledError, CommClosedError)
"""What Dask's futures end with when they are given up (the second kind; the first is the loop's own), or cannot be fetched."""


@dataclass(frozen=True, slots=True)
class Work:
    """What workers do.

    Args:
        prepare: Run once on each worker before its first tile; gives the time (seconds since the epoch) at which the worker
            will end, None where it will not.
        compute: Run for each index.
        run: Makes keys unique: a key that once failed would fail at once when submitted again.
    """

    prepare: Callable[[], float | None]
    compute: Callable[[int], Any]
    run: str


def dispatch(
    pool: Pool,
    work: Work,
    indices: Iterable[int],
    *,
    retries: int,
    on_ready: Callable[[], None] = lambda: None,
    is_cancelled: Callable[[], bool] = lambda: False,
    now: Callable[[], float] = time.time,
) -> Generator[Outcome]:
    """Run `work` for all indices; outcomes come as they complete.

    Workers may come and go at any time. One that vanishes costs the tile that it was at, which is tried again elsewhere, by
    itself; see `core.assignments`. One whose time runs out gets no tile that it could not finish, and is let go.

    Args:
        pool: Workers.
        work: Functions, small when pickled; sent with every tile.
        indices: In the order of submission; consumed lazily.
        retries: Further attempts of a tile that failed, or whose worker vanished.
        on_ready: Called when the first worker is.
        is_cancelled: Asked every second.
        now: The clock by which workers end, seconds since the epoch.

    Raises:
        KeyboardInterrupt: It was cancelled.
        InferenceError: There is no worker, and none comes; or none can load the network; or the scheduler is gone.
    """
    shell = _Dispatcher(pool, work, Assignments(indices, retries), on_ready, now)
    try:
        for outcomes in shell.run():
            if is_cancelled():
                raise KeyboardInterrupt
            yield from outcomes
    except ClosedClientError as error:
        raise scheduler_gone() from error
    finally:
        shell.drop_all()


class _Dispatcher:
    def __init__(
        self, pool: Pool, work: Work, assignments: Assignments, on_ready: Callable[[], None], now: Callable[[], float]
    ) -> None:
        self._pool, self._work, self._assignments, self._on_ready, self._now = pool, work, assignments, on_ready, now
        self._client = pool.client
        self._foreman = Foreman(
            assignments, workers=pool.workers, wait_seconds=pool.wait_seconds, clock=time.monotonic(), warn=_warn
        )
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._futures: dict[int | str, Future[Any]] = {}  # of attempts by serial, of preparations by worker
        self._joined = itertools.count()
        self._looked = -math.inf
        pool.sharing.listen(lambda: self._events.put(Spared()))

    def run(self) -> Iterator[list[Outcome]]:
        """What became of tiles, at least once a second."""
        while not self._assignments.finished:
            if time.monotonic() - self._looked >= LOOK_SECONDS:
                self._looked = time.monotonic()
                yield self._look()
            for attempt in self._assignments.assign(self._now()) if self._is_connected else ():
                self._give(attempt)
            for worker in self._pool.sharing.spare(self._assignments.idle()):
                self._assignments.leave(worker)
            for event in self._take_events(max(LOOK_SECONDS - (time.monotonic() - self._looked), 0.001)):
                yield self._take(event)

    def drop_all(self) -> None:
        """Forget what is in flight: on a cluster that goes on without us, it shall not compute for nobody."""
        for future in self._futures.values():
            future.release()
        self._futures.clear()

    # --- what comes in ----------------------------------------------------------------------------------------------

    def _take_events(self, seconds: float) -> Iterator[Event]:
        """All that has ended; waits so long for the first."""
        try:
            yield self._events.get(timeout=seconds)
            while True:
                yield self._events.get_nowait()
        except queue.Empty:
            return

    def _take(self, event: Event) -> list[Outcome]:
        match event:
            case Spared():
                self._looked = -math.inf
            case Prepared() if self._forget(event.worker):
                never_yet = not self._foreman.ever_ready
                self._foreman.prepare(event)
                if never_yet and self._foreman.ever_ready:
                    self._on_ready()
            case Landed() if self._forget(event.attempt.serial):
                if event.cause == "vanished":
                    self._forget_all(event.attempt.worker)
                return self._foreman.land(event, self._now())
        return []  # also of what was given up before

    def _look(self) -> list[Outcome]:
        """Look at the workers: meet the new ones, give up those that are gone, let go of those whose time is over."""
        sharing, foreman = self._pool.sharing, self._foreman
        present = sharing.present(self._assignments.useful)
        outcomes: list[Outcome] = []
        if self._is_connected:  # what a worker would be given now would be lost with it, were it gone
            foreman.count_breaks()
            for worker in foreman.gone(present):
                self._forget_all(worker)
                outcomes += foreman.lose(worker)
            for worker in foreman.meet(present):
                self._prepare(worker)
            if spent := foreman.spent(self._now()):
                self._let_go(spent)
        message = self._pool.tend()
        foreman.be_patient(time.monotonic(), wanting=sharing.wanting(), told=message)
        return outcomes

    def _let_go(self, workers: list[str]) -> None:
        with suppress(OSError):  # the connection is down: they get no tile, and the next look lets them go
            ask(self._client, lambda: self._client.retire_workers(workers, close_workers=True, remove=True))
            self._foreman.let_go(workers)
            log.info("%d worker(s) near the end of their time let go: %s", len(workers), ", ".join(workers))

    @property
    def _is_connected(self) -> bool:
        return self._client.status == "running"

    def _forget(self, known: int | str) -> bool:
        """Release the future of an attempt or of a worker's preparation; whether there was one."""
        future = self._futures.pop(known, None)
        if future is not None:
            future.release()
        return future is not None

    def _forget_all(self, worker: str) -> None:
        self._forget(worker)
        for serial in self._assignments.line(worker):
            self._forget(serial)

    # --- what goes out ----------------------------------------------------------------------------------------------

    def _prepare(self, worker: str) -> None:
        key = f"prepare-{self._work.run}-{next(self._joined)}"
        self._submit(worker, functools.partial(Prepared, worker), self._work.prepare, key=key, worker=worker)

    def _give(self, attempt: Attempt) -> None:
        key = f"tile-{self._work.run}-{attempt.index}-{attempt.number}-{attempt.serial}"
        ended = functools.partial(Landed, attempt)
        self._submit(attempt.serial, ended, self._work.compute, attempt.index, key=key, worker=attempt.worker)

    def _submit(
        self,
        known: int | str,
        ended: functools.partial[Landed] | functools.partial[Prepared],
        function: Callable[..., Any],
        *arguments: int,
        key: str,
        worker: str,
    ) -> None:
        """To this worker and no other, in the order of submission."""
        priority = -known if isinstance(known, int) else 0
        future = self._client.submit(
            function, *arguments, key=key, workers=[worker], pure=False, retries=0, priority=priority, fifo_timeout=0
        )
        self._futures[known] = future
        loop_of(self._client).add_callback(self._follow, ended, future)

    async def _follow(
        self, ended: functools.partial[Landed] | functools.partial[Prepared], future: Future[Any]
    ) -> None:
        """Bring what ended to the queue; in the client's loop, so that nobody waits for one of many."""
        try:
            result = await self._client.gather(future, asynchronous=True)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - told as the attempt's outcome
            self._events.put(_failure(ended, error))
        else:
            self._events.put(ended(result))


def _failure(ended: functools.partial[Landed] | functools.partial[Prepared], error: BaseException) -> Event:
    """What an error of Dask's says of an attempt or a preparation."""
    if isinstance(error, KilledWorker):
        return ended(cause="vanished")
    if not isinstance(error, GIVEN_UP):
        return ended(error=error)
    broke = isinstance(error, CommClosedError) or getattr(error, "reason", "") == "scheduler-connection-lost"
    if broke or ended.func is Prepared:
        return ended(cause="broken")
    return ended(error=InferenceError(f"the scheduler lost it: {error}"))


def _warn(text: str) -> None:
    log.warning("%s", text)

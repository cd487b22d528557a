"""How tiles reach workers: by index only, each worker's few in a line of its own, whatever happens to the workers.

`core.roster` decides; this is the shell around it. It tells the roster who joined, who left and what landed, and carries out
what it says. Neither this process nor the scheduler grows with the volume: a future is forgotten as its outcome is read.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
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
from pipeline.cluster.scheduler import answered, loop_of, scheduler_gone
from pipeline.core.roster import Attempt, Outcome, Roster
from pipeline.errors import InferenceError

log = logging.getLogger("pipeline")

LOOK_SECONDS = 1.0
"""Between two looks at who is there."""

GIVEN_UP = (asyncio.CancelledError, concurrent.futures.CancelledError, CommClosedError)
"""What Dask's futures end with when they are given up (the second kind; the first is the loop's own), or cannot be fetched."""

UNFIT_LIMIT = 3
"""So many workers that could not load the network, and none that could, end the run."""

BREAKS_LIMIT = 10
"""So many broken connections in a row, without a tile that was done meanwhile, end the run."""

SAY_SECONDS = 300.0
"""Between two words that there is no worker."""


@dataclass(frozen=True, slots=True)
class Work:
    """What workers do.

    Args:
        prepare: Run once on each worker before its first tile; gives the time (seconds since the epoch) at which the worker
            will end, None where it will not.
        infer: Run for each index.
        run: Makes keys unique: a key that once failed would fail at once when submitted again.
    """

    prepare: Callable[[], float | None]
    infer: Callable[[int], Any]
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
    itself; see `core.roster`. One whose time runs out gets no tile that it could not finish, and is let go.

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
    shell = _Shell(pool, work, Roster(indices, retries), on_ready, now)
    try:
        for outcomes in shell.run():
            if is_cancelled():
                raise KeyboardInterrupt
            yield from outcomes
    except ClosedClientError as error:
        raise scheduler_gone() from error
    finally:
        shell.drop_all()


def _nobody(seconds: float, told: str = "") -> InferenceError:
    """The error of a run that has no workers."""
    return InferenceError(
        f"No worker was there for {seconds / 60:.3g} minutes (cluster.wait_minutes). {told or 'None came back in time.'} Likely "
        "the memory is too small (see cluster.memory_gb, and the limits of the machine), something outside ends the "
        "processes, or they cannot reach the scheduler. Run again to resume: finished tiles are kept."
    )


class _VanishedError(Exception):
    """The worker is gone."""


_Landing = tuple[Attempt | str | None, Any, BaseException | None]
"""What ended: an attempt, or the preparation of a worker; nothing: look who is there."""


class _Shell:
    def __init__(
        self, pool: Pool, work: Work, roster: Roster, on_ready: Callable[[], None], now: Callable[[], float]
    ) -> None:
        self._pool, self._work, self._roster, self._on_ready, self._now = pool, work, roster, on_ready, now
        self._client = pool.client
        self._landings: queue.SimpleQueue[_Landing] = queue.SimpleQueue()
        self._futures: dict[int | str, Future[Any]] = {}  # of attempts by serial, of preparations by worker
        self._unfit: dict[str, BaseException] = {}
        self._joined = itertools.count()
        self._ever_ready = False
        self._failed_loads = 0  # since the last that could
        self._breaks, self._broken = 0, False  # of the connection, since the last tile; whether it did just now
        self._letting_go: set[str] = set()
        self._last_seen = self._last_said = time.monotonic()
        self._looked = -math.inf
        pool.staff.listen(lambda: self._landings.put((None, None, None)))

    def run(self) -> Iterator[list[Outcome]]:
        """What became of tiles, at least once a second."""
        while not self._roster.finished:
            if time.monotonic() - self._looked >= LOOK_SECONDS:
                self._looked = time.monotonic()
                yield self._look()
            for attempt in self._roster.assign(self._now()) if self._connected else ():
                self._submit(attempt, self._work.infer, attempt.index, key=self._key(attempt), worker=attempt.worker)
            for worker in self._pool.staff.spare(self._roster.idle()):
                self._roster.leave(worker)
            for landing in self._landed(max(LOOK_SECONDS - (time.monotonic() - self._looked), 0.001)):
                yield self._take(*landing)

    def drop_all(self) -> None:
        """Forget what is in flight: on a cluster that goes on without us, it shall not compute for nobody."""
        for future in self._futures.values():
            future.release()
        self._futures.clear()

    # --- what comes in ----------------------------------------------------------------------------------------------

    def _landed(self, seconds: float) -> Iterator[_Landing]:
        """All that has landed; waits so long for the first."""
        try:
            yield self._landings.get(timeout=seconds)
            while True:
                yield self._landings.get_nowait()
        except queue.Empty:
            return

    def _take(self, what: Attempt | str | None, result: Any, error: BaseException | None) -> list[Outcome]:
        if what is None:
            self._looked = -math.inf
            return []
        known = what if isinstance(what, str) else what.serial
        if (future := self._futures.pop(known, None)) is None:
            return []  # given up before
        future.release()
        if isinstance(what, str):
            self._prepared(what, result, error)
            return []
        if isinstance(error, KilledWorker):
            return self._gone(what.worker)
        if isinstance(error, GIVEN_UP):
            return self._lost(what, error)
        self._breaks = 0
        return self._roster.land(what, self._now(), result, error)

    def _lost(self, attempt: Attempt, error: BaseException) -> list[Outcome]:
        """The connection broke, and with it all that was under way was given up; else something was wrong with this one."""
        if not isinstance(error, CommClosedError) and getattr(error, "reason", "") != "scheduler-connection-lost":
            return self._roster.land(attempt, self._now(), error=InferenceError(f"the scheduler lost it: {error}"))
        self._broken = True
        self._roster.take_back(attempt, self._now())
        return []

    def _prepared(self, worker: str, until: float | None, error: BaseException | None) -> None:
        if error is None:
            if not self._ever_ready:
                self._ever_ready = True
                self._on_ready()
            self._failed_loads = 0
            self._roster.ready(worker, math.inf if until is None else until)
            return
        if isinstance(error, GIVEN_UP):
            self._broken = True
            self._roster.leave(worker)  # it is met anew
            return
        if isinstance(error, KilledWorker):
            self._roster.leave(worker)
            error = _VanishedError()
        self._set_aside(worker, error)

    def _set_aside(self, worker: str, error: BaseException) -> None:
        """A worker that cannot load the network gets no tile; nor is it let go, lest the next one gets its broken machine.

        Raises:
            The error, where no worker can.
        """
        self._unfit[worker] = error
        self._failed_loads += 1
        limit = UNFIT_LIMIT if isinstance(error, _VanishedError) else min(self._pool.workers, UNFIT_LIMIT)
        if not self._roster.fit and self._failed_loads >= limit:
            raise _of_loading(error)
        log.warning("worker %s cannot load the network and gets no tile: %s", worker, _of_loading(error))

    # --- who is there -----------------------------------------------------------------------------------------------

    def _look(self) -> list[Outcome]:
        present = self._pool.staff.present(self._roster.useful)
        if not self._connected:  # what it would be given now would be lost with it, were it gone
            self._be_patient(self._pool.tend())
            return []
        self._count_breaks()
        outcomes = [outcome for worker in self._roster.workers - present for outcome in self._gone(worker)]
        for worker in present - self._roster.workers:  # also one that is back under its old address
            self._roster.join(worker)
            self._unfit.pop(worker, None)
            self._letting_go.discard(worker)
            key = f"prepare-{self._work.run}-{next(self._joined)}"
            self._submit(worker, self._work.prepare, key=key, worker=worker)
        if spent := [worker for worker in self._roster.spent(self._now()) if worker not in self._letting_go]:
            with suppress(OSError):  # the connection is down: they get no tile, and the next look lets them go
                answered(self._client, lambda: self._client.retire_workers(spent, close_workers=True, remove=True))
                self._letting_go.update(spent)
                log.info("%d worker(s) near the end of their time let go: %s", len(spent), ", ".join(spent))
        self._be_patient(self._pool.tend())
        return outcomes

    @property
    def _connected(self) -> bool:
        return self._client.status == "running"

    def _count_breaks(self) -> None:
        self._breaks += self._broken
        self._broken = False
        if self._breaks >= BREAKS_LIMIT:
            raise InferenceError(
                f"The connection to the scheduler broke {self._breaks} times, and no tile was done meanwhile. Likely it is ended again "
                "and again (too little memory?), or the network to it is. Run again to resume: finished tiles are kept."
            )

    def _gone(self, worker: str) -> list[Outcome]:
        """It vanished, with all that it was given."""
        prepared = self._futures.pop(worker, None)
        if prepared is not None:
            prepared.release()
            self._roster.leave(worker)
            self._set_aside(worker, _VanishedError())
            return []
        for serial in self._roster.line(worker):
            if future := self._futures.pop(serial, None):
                future.release()
        if worker in self._roster.workers and worker not in self._letting_go:
            log.warning("worker %s is gone; the tile that it was at is tried again by itself", worker)
        return self._roster.leave(worker)

    def _be_patient(self, told: str) -> None:
        now = time.monotonic()
        if self._roster.workers - set(self._unfit) or not (self._unfit or self._pool.staff.wanting()):
            self._last_seen = now  # or they are at the tiles of others
        waited = now - self._last_seen
        if waited > self._pool.wait_seconds:
            told_by_workers = [error for error in self._unfit.values() if not isinstance(error, _VanishedError)]
            raise told_by_workers[0] if told_by_workers else _nobody(waited, told)
        if now - max(self._last_seen, self._last_said) > SAY_SECONDS:
            self._last_said = now
            log.warning("no worker for %.0f minutes; %s", waited / 60, told or "waiting")

    # --- what goes out ----------------------------------------------------------------------------------------------

    def _key(self, attempt: Attempt) -> str:
        return f"tile-{self._work.run}-{attempt.index}-{attempt.number}-{attempt.serial}"

    def _submit(
        self, what: Attempt | str, function: Callable[..., Any], *arguments: int, key: str, worker: str
    ) -> None:
        """To this worker and no other, in the order of submission."""
        known, serial = (what, 0) if isinstance(what, str) else (what.serial, what.serial)
        future = self._client.submit(
            function, *arguments, key=key, workers=[worker], pure=False, retries=0, priority=-serial, fifo_timeout=0
        )
        self._futures[known] = future
        loop_of(self._client).add_callback(self._follow, what, future)

    async def _follow(self, what: Attempt | str, future: Future[Any]) -> None:
        """Bring an outcome to the queue; in the client's loop, so that nobody waits for one of many."""
        try:
            result = await self._client.gather(future, asynchronous=True)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - told as the attempt's outcome
            self._landings.put((what, None, error))
        else:
            self._landings.put((what, result, None))


def _of_loading(error: BaseException) -> BaseException:
    if not isinstance(error, _VanishedError):
        return error
    return InferenceError(
        "Worker processes died while they loaded the network. Likely the memory is too small (see cluster.memory_gb, and the "
        "limits of the machine), or something outside ends the processes."
    )

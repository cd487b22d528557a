"""Who of a cluster's workers computes for a run: all of them, or those that it has of several runs' common ones.

Runs that share workers stand in a line, in the order in which they came. A worker belongs to one of them at a time, so its
network and buffers are loaded for one. The first in line has as many as it can use, the next what is left. One is never taken
away: a run gives back those that it has no tile for, at the latest when it ends, and whoever is first in line and can use
them has them at once. So a run's last tiles and the next run's first ones are computed side by side.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from distributed import Client

from pipeline.cluster.scheduler import Attendance

KNOWN_SECONDS = 0.5
"""For so long it is taken for granted who is there."""


class WorkerSharing(Protocol):
    """Workers that a run may give tiles to."""

    def present(self, useful: float) -> set[str]:
        """Addresses of those that it has now, after having asked for so many."""

    def spare(self, workers: list[str]) -> list[str]:
        """It has no tile for these; gives those that it has no more."""

    def wanting(self) -> bool:
        """Whether nobody is there, for anyone."""

    def listen(self, wake: Callable[[], None]) -> None:
        """Have this called when others were spared."""


class AllWorkers:
    """All workers of a scheduler, for one run."""

    def __init__(self, client: Client) -> None:
        self._attendance = Attendance(client)

    def present(self, useful: float) -> set[str]:  # noqa: ARG002 - all are, whether it can use them or not
        return self._attendance.look()

    def spare(self, workers: list[str]) -> list[str]:  # noqa: ARG002 - nobody else wants them
        return []

    def wanting(self) -> bool:
        return not self._attendance.seen

    def listen(self, wake: Callable[[], None]) -> None:
        """Nobody spares any."""


class SharedWorkers:
    """Workers that several runs, each in a thread of its own, have in common."""

    def __init__(self, client: Client) -> None:
        self._attendance = Attendance(client)
        self.lock = threading.RLock()
        self._line: list[Lease] = []
        self._holders: dict[str, Lease] = {}
        self._looked = float("-inf")

    @contextmanager
    def share(self) -> Iterator[Lease]:
        """Stand in the line until the run ends; gives the lease."""
        share = Lease(self)
        with self.lock:
            self._line.append(share)
        try:
            yield share
        finally:
            with self.lock:
                self._line.remove(share)
                self._holders = {worker: holder for worker, holder in self._holders.items() if holder is not share}
            self._wake()

    def look(self) -> set[str]:
        """Look who is there."""
        if time.monotonic() - self._looked > KNOWN_SECONDS:
            self._attendance.look()
            self._looked = time.monotonic()
        return self._attendance.seen

    def claim(self, share: Lease) -> set[str]:
        """Give a run the workers that it lacks and that those before it in the line leave; returns all that it has."""
        there = self.look()
        self._holders = {worker: holder for worker, holder in self._holders.items() if worker in there}
        free = sorted(there - set(self._holders))
        mine = {worker for worker, holder in self._holders.items() if holder is share}
        share.lacks = max(share.useful - len(mine), 0)
        before = self._line[: self._line.index(share)]
        left = len(free) - sum(other.lacks for other in before)
        taken = free[: int(max(min(left, share.lacks), 0))]
        self._holders.update(dict.fromkeys(taken, share))
        share.lacks -= len(taken)
        return mine | set(taken)

    def release(self, workers: list[str]) -> None:
        """Whoever has them has no tile for them."""
        with self.lock:
            for worker in workers:
                self._holders.pop(worker, None)
        self._wake()

    def _wake(self) -> None:
        with self.lock:
            line = list(self._line)
        for share in line:
            share.wake()


class Lease:
    """What one run has of common workers; see `WorkerSharing`."""

    def __init__(self, common: SharedWorkers) -> None:
        self._common = common
        self.useful = self.lacks = 0.0
        self.wake: Callable[[], None] = lambda: None

    def present(self, useful: float) -> set[str]:
        with self._common.lock:
            self.useful = useful
            return self._common.claim(self)

    def spare(self, workers: list[str]) -> list[str]:
        if workers:
            self._common.release(workers)
        return workers

    def wanting(self) -> bool:
        with self._common.lock:
            return not self._common.look()

    def listen(self, wake: Callable[[], None]) -> None:
        self.wake = wake

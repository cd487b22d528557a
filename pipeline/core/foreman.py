"""What becomes of workers: who is fit, who is let go, how long a run is patient. Events in, words and outcomes out.

    join --prepare--> ready ----> tiles, as assigned -------> spent: let go
             |                        |
             +--> unfit: set aside    +--> gone: its tile is suspect

The assignments say who computes which tile. This says what a run makes of workers that cannot load the network, that vanish, whose
time runs out, and of a connection that breaks again and again; and when it ends because of them. Like them it knows no
cluster and no clock, so every order of faults can be played.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipeline.core.assignments import Assignments, Attempt, Outcome
from pipeline.errors import InferenceError

UNFIT_LIMIT = 3
"""So many workers that could not load the network, and none that could, end the run."""

BREAKS_LIMIT = 10
"""So many broken connections in a row, without a tile that was done meanwhile, end the run."""

SAY_SECONDS = 300.0
"""Between two words that there is no worker."""

Cause = Literal["itself", "vanished", "broken"]
"""Why something ended: by itself, well or not; its worker is gone; the connection broke, and all was given up with it."""


@dataclass(frozen=True, slots=True)
class Landed:
    """An attempt has ended.

    Args:
        attempt: Which.
        result: What the function returned.
        error: Why it failed; None where it did not.
        cause: What ended it; result and error are of those that ended by themselves.
    """

    attempt: Attempt
    result: object = None
    error: BaseException | None = None
    cause: Cause = "itself"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A worker has loaded the network, or has not.

    Args:
        worker: Which.
        until: When it will be ended, seconds since the epoch; None where it will not.
        error: Why it could not; None where it could.
        cause: As of `Landed`.
    """

    worker: str
    until: float | None = None
    error: BaseException | None = None
    cause: Cause = "itself"


@dataclass(frozen=True, slots=True)
class Spared:
    """Another run has given workers back: look who is there."""


Event = Landed | Prepared | Spared


class VanishedError(Exception):
    """The worker is gone."""


class Foreman:
    """The workers of a run.

    Args:
        assignments: Its tiles.
        workers: How many are wanted.
        wait_seconds: How long the run may be without any.
        clock: Now, by a clock that never goes back.
        warn: Called with each warning for a person.
    """

    def __init__(
        self,
        assignments: Assignments,
        *,
        workers: int,
        wait_seconds: float,
        clock: float,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._assignments, self._workers, self._wait_seconds, self._warn = assignments, workers, wait_seconds, warn
        self._unfit: dict[str, BaseException] = {}
        self._preparing: set[str] = set()
        self._leaving: set[str] = set()
        self._failed_loads = 0  # since the last that could
        self._breaks, self._broken = 0, False  # of the connection, since the last tile; whether it did just now
        self._last_seen = self._last_said = clock
        self.ever_ready = False
        """Whether any worker ever could load the network."""

    # --- what ended -------------------------------------------------------------------------------------------------

    def land(self, event: Landed, now: float) -> list[Outcome]:
        """An attempt has ended.

        Args:
            event: How.
            now: By the clock by which workers end.
        """
        if event.cause == "vanished":
            return self.lose(event.attempt.worker)
        if event.cause == "broken":
            self._broken = True
            self._assignments.take_back(event.attempt, now)
            return []
        self._breaks = 0
        return self._assignments.land(event.attempt, now, event.result, event.error)

    def prepare(self, event: Prepared) -> None:
        """A worker has loaded the network, or has not.

        Raises:
            The error that it met, where no worker can.
        """
        if event.worker not in self._preparing:
            return
        self._preparing.discard(event.worker)
        if event.cause == "broken":
            self._broken = True
            self._assignments.leave(event.worker)  # it is met anew
        elif event.cause == "vanished":
            self._assignments.leave(event.worker)
            self._set_aside(event.worker, VanishedError())
        elif event.error is not None:
            self._set_aside(event.worker, event.error)
        else:
            self.ever_ready = True
            self._failed_loads = 0
            self._assignments.ready(event.worker, math.inf if event.until is None else event.until)

    def _set_aside(self, worker: str, error: BaseException) -> None:
        """A worker that cannot load the network gets no tile; nor is it let go, lest the next one gets its broken machine.

        Raises:
            The error, where no worker can.
        """
        self._unfit[worker] = error
        self._failed_loads += 1
        limit = UNFIT_LIMIT if isinstance(error, VanishedError) else min(self._workers, UNFIT_LIMIT)
        if not self._assignments.fit and self._failed_loads >= limit:
            raise _of_loading(error)
        self._warn(f"worker {worker} cannot load the network and gets no tile: {_of_loading(error)}")

    # --- who is there -----------------------------------------------------------------------------------------------

    def gone(self, present: set[str]) -> set[str]:
        """Workers that were there at the last look, and are not now."""
        return self._assignments.workers - present

    def lose(self, worker: str) -> list[Outcome]:
        """It vanished, with all that it was given.

        Raises:
            InferenceError: It was about to load the network, as were too many others.
        """
        if worker in self._preparing:
            self.prepare(Prepared(worker, cause="vanished"))
            return []
        if worker in self._assignments.workers and worker not in self._leaving:
            self._warn(f"worker {worker} is gone; the tile that it was at is tried again by itself")
        return self._assignments.leave(worker)

    def meet(self, present: set[str]) -> set[str]:
        """Take up workers that are new, or back under their old address, and return them: they are to load the network."""
        new = present - self._assignments.workers
        for worker in new:
            self._assignments.join(worker)
        self._preparing |= new
        self._leaving -= new
        self._unfit = {worker: error for worker, error in self._unfit.items() if worker not in new}
        return new

    def spent(self, now: float) -> list[str]:
        """Workers to be let go: they have no time for another tile."""
        return [worker for worker in self._assignments.spent(now) if worker not in self._leaving]

    def let_go(self, workers: list[str]) -> None:
        """Note that they were told to end: nobody wonders when they are gone."""
        self._leaving.update(workers)

    # --- when it is enough ------------------------------------------------------------------------------------------

    def count_breaks(self) -> None:
        """Called at each look while there is a connection.

        Raises:
            InferenceError: It broke again and again.
        """
        self._breaks += self._broken
        self._broken = False
        if self._breaks >= BREAKS_LIMIT:
            raise InferenceError(
                f"The connection to the scheduler broke {self._breaks} times, and no tile was done meanwhile. Likely it is ended again "
                "and again (too little memory?), or the network to it is. Run again to resume: finished tiles are kept."
            )

    def be_patient(self, clock: float, *, wanting: bool, told: str = "") -> None:
        """Called at each look.

        Args:
            clock: Now, by a clock that never goes back.
            wanting: Whether nobody is there, for any run.
            told: Report of what starts the workers, such as the state of their jobs.

        Raises:
            InferenceError: There was no worker for too long; or what those that are there said of the network.
        """
        if self._assignments.workers - set(self._unfit) or not (self._unfit or wanting):
            self._last_seen = clock  # or they are at the tiles of others
        waited = clock - self._last_seen
        if waited > self._wait_seconds:
            told_by_workers = [error for error in self._unfit.values() if not isinstance(error, VanishedError)]
            raise told_by_workers[0] if told_by_workers else _nobody(waited, told)
        if clock - max(self._last_seen, self._last_said) > SAY_SECONDS:
            self._last_said = clock
            self._warn(f"no worker for {waited / 60:.0f} minutes; {told or 'waiting'}")


def _nobody(seconds: float, told: str) -> InferenceError:
    """The error of a run that has no workers."""
    return InferenceError(
        f"No worker was there for {seconds / 60:.3g} minutes (cluster.wait_minutes). {told or 'None came back in time.'} Likely "
        "the memory is too small (see cluster.memory_gb, and the limits of the machine), something outside ends the "
        "processes, or they cannot reach the scheduler. Run again to resume: finished tiles are kept."
    )


def _of_loading(error: BaseException) -> BaseException:
    if not isinstance(error, VanishedError):
        return error
    return InferenceError(
        "Worker processes died while they loaded the network. Likely the memory is too small (see cluster.memory_gb, and the "
        "limits of the machine), or something outside ends the processes."
    )

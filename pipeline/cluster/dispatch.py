"""How tiles reach workers: by index only, a bounded number at a time, in order, each tried a bounded number of times.

Neither this process nor the scheduler grows with the volume: a future is forgotten as soon as its outcome is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from distributed import Client, Future, KilledWorker, as_completed
from distributed.scheduler import NoWorkerError

from pipeline.errors import InferenceError

TILES_AHEAD = 2
"""Tiles in flight a worker: one that runs, one that waits so that the worker never does."""


_NOBODY = (
    "No worker process is left, and none came back in time. Likely the memory is too small (see cluster.memory_gb, and the "
    "limits of the machine), or something outside ends the processes. Run again to resume: finished tiles are kept."
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a tile ended, after its last attempt.

    Args:
        index: The tile.
        attempt: The attempt that ended it, 1 the first.
        result: What the function gave; None where it failed.
        error: Why it failed; None where it did not.
    """

    index: int
    attempt: int
    result: Any = None
    error: BaseException | None = None


def dispatch(
    client: Client, function: Callable[[int], Any], indices: Iterable[int], *, workers: int, retries: int, run: str
) -> Iterator[Outcome]:
    """Run `function(index)` for all indices on the workers; outcomes come as they complete.

    A worker that dies costs the tiles that were with it: the scheduler gives them to another. Tiles that were there
    when two workers died are suspects, most of them innocent: each is tried again at the end with no other in flight,
    so that none fails for another's guilt.

    Args:
        client: Connected to the workers.
        function: Small when pickled; sent with every tile.
        indices: In the order of submission; consumed lazily.
        workers: Sets how many are in flight.
        retries: Further attempts of a tile that failed.
        run: Makes keys unique: a key that once failed would fail at once when submitted again.

    Raises:
        InferenceError: No worker is left, and none comes back.
    """
    flight = _Flight(client, function, run)
    source = iter(indices)
    suspects: list[Outcome] = []
    for index in _first(source, workers * TILES_AHEAD):
        flight.submit(index, attempt=1)
    for outcome in flight.landings(retries):
        if isinstance(outcome.error, KilledWorker):
            suspects.append(outcome)
        else:
            yield outcome
        for index in _first(source, 1):
            flight.submit(index, attempt=1)
    for suspect in suspects:
        flight.submit(suspect.index, attempt=suspect.attempt + 1)
        yield from map(_blamed, flight.landings(retries))


def _blamed(outcome: Outcome) -> Outcome:
    if not isinstance(outcome.error, KilledWorker):
        return outcome
    return replace(
        outcome,
        error=InferenceError(
            "its worker process died each time, also when it ran alone. Likely the memory is too small (see "
            "cluster.memory_gb, and the limits of the machine), or something outside ends the process."
        ),
    )


def on_every_worker(client: Client, function: Callable[[], Any]) -> None:
    """Run `function()` once on each worker, in its task thread, and wait; what it raises is raised here.

    Raises:
        InferenceError: Workers died of it, more than once, or none is left.
    """
    addresses = client.scheduler_info(n_workers=-1)["workers"]
    futures = [  # a worker that dies is replaced under another address
        client.submit(function, workers=[address], allow_other_workers=True, pure=False) for address in addresses
    ]
    try:
        client.gather(futures)
    except NoWorkerError as error:
        raise InferenceError(_NOBODY) from error
    except KilledWorker as error:
        raise InferenceError(
            "Worker processes died while they loaded the network. Likely the memory is too small (see cluster.memory_gb, "
            "and the limits of the machine), or something outside ends the processes."
        ) from error


class _Flight:
    """The tiles in flight."""

    def __init__(self, client: Client, function: Callable[[int], Any], run: str) -> None:
        self._client, self._function, self._run = client, function, run
        self._tries: dict[str, tuple[int, int]] = {}
        self._completed = as_completed(loop=client.loop)

    def submit(self, index: int, *, attempt: int) -> None:
        key = f"tile-{self._run}-{index}-{attempt}"
        self._tries[key] = (index, attempt)
        self._completed.add(self._client.submit(self._function, index, key=key, pure=False, retries=0))

    def landings(self, retries: int) -> Iterator[Outcome]:
        """Outcomes until none is in flight; a tile that failed is submitted again, unless its workers died."""
        for future in self._completed:
            outcome = self._land(future)
            if outcome.error is None or outcome.attempt > retries or isinstance(outcome.error, KilledWorker):
                yield outcome
            else:
                self.submit(outcome.index, attempt=outcome.attempt + 1)

    def _land(self, future: Future) -> Outcome:
        index, attempt = self._tries.pop(future.key)
        error = future.exception() if future.status != "finished" else None
        if isinstance(error, NoWorkerError):
            raise InferenceError(_NOBODY) from error
        result = future.result() if error is None else None
        future.release()
        return Outcome(index, attempt, result, error)


def _first(source: Iterator[int], count: int) -> Iterator[int]:
    for _ in range(count):
        try:
            yield int(next(source))
        except StopIteration:
            return

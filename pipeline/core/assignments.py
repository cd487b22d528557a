"""Who computes which tile: events in, assignments out. It knows no cluster and no clock, so every fault can be played.

    source --assign--> a worker's line --land--> Outcome
                          |  head runs, the others wait behind it
                          +--leave--> head: suspect, tried again with a worker to itself; the others: back, unblamed

Every tile is given to one worker by name, and each worker has a short line of them. So when a worker vanishes it is known
which tile it was at: that one is suspected, those that waited behind it are not. A suspect gets a worker to itself, at least
once (it may have been done, and only the news of it was lost); should that worker vanish too, no other tile is lost with it,
and after a bounded number of tries the tile is set aside and named. The rest goes on meanwhile.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import length_hint

from pipeline.errors import FINAL

TILES_AHEAD = 2
"""Tiles in a worker's line: one that runs, one that waits so that the worker never does."""

MOST_AHEAD = 24
"""The same where a tile takes less time than the news of it."""

AHEAD_SECONDS = 0.2
"""Work that a line should hold."""

MOST_SUSPECTS = 4
"""While so many are suspected (or two a worker), no new tile is begun: where all tiles end their workers that is seen soon."""

DRAIN_FACTOR = 1.25
DRAIN_SECONDS = 10.0
"""A worker whose time runs out begins no tile that might take longer: so many of the longest so far, and this besides."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A tile in a worker's line.

    Args:
        serial: Counts attempts of all tiles; tells them apart.
        index: The tile.
        number: 1 the tile's first.
        worker: Who has it.
        alone: No other tile is with that worker.
    """

    serial: int
    index: int
    number: int
    worker: str
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a tile ended, after its last attempt.

    Args:
        index: The tile.
        attempt: The attempt that ended it, 1 the first.
        result: What the function returned; None where it failed.
        error: Why it failed; None where it did not, or where its worker vanished.
        vanished: Its worker was gone each time.
    """

    index: int
    attempt: int
    result: object = None
    error: BaseException | None = None
    vanished: bool = False

    @property
    def failed(self) -> bool:
        return self.vanished or self.error is not None


@dataclass(slots=True)
class _WorkerState:
    """A worker, as its assignments see it."""

    fit: bool = False
    until: float = math.inf
    line: deque[Attempt] = field(default_factory=deque)
    began: float = 0.0
    has_done_one: bool = False


class Assignments:
    """Tiles still to do, and who has which.

    Args:
        indices: Tiles, in order; consumed no sooner than there is room in a line.
        retries: Further attempts of a tile that failed, or whose worker vanished.
    """

    def __init__(self, indices: Iterable[int], retries: int) -> None:
        self._source = iter(indices)
        self._retries = retries
        self._hands: dict[str, _WorkerState] = {}
        self._again: deque[tuple[int, int]] = deque()  # tile, attempt
        self._suspects: deque[tuple[int, int]] = deque()
        self._serial = 0
        self._longest = self._mean = 0.0
        self._left: float = length_hint(indices, 0) or math.inf
        self._next: int | None = None
        self._take()

    # --- what is known ----------------------------------------------------------------------------------------------

    @property
    def workers(self) -> set[str]:
        return set(self._hands)

    def line(self, worker: str) -> list[int]:
        """Serials of the attempts that a worker has."""
        hand = self._hands.get(worker)
        return [attempt.serial for attempt in hand.line] if hand else []

    @property
    def fit(self) -> int:
        """Workers that may be given tiles."""
        return sum(hand.fit for hand in self._hands.values())

    @property
    def useful(self) -> float:
        """Workers that could have a tile now: one for each that is given to nobody, and those that are at one."""
        return sum(bool(hand.line) for hand in self._hands.values()) + self._to_give

    @property
    def _to_give(self) -> float:
        return (self._left if self._next is not None else 0) + len(self._again) + len(self._suspects)

    def idle(self) -> list[str]:
        """Workers that have no tile, and that none is left for."""
        if self._to_give:
            return []
        return [worker for worker, hand in self._hands.items() if hand.fit and not hand.line]

    @property
    def in_flight(self) -> int:
        return sum(len(hand.line) for hand in self._hands.values())

    @property
    def finished(self) -> bool:
        return self._next is None and not (self._again or self._suspects or self.in_flight)

    # --- events -----------------------------------------------------------------------------------------------------

    def join(self, worker: str) -> None:
        """A worker is there, but not ready."""
        self._hands[worker] = _WorkerState()

    def ready(self, worker: str, until: float = math.inf) -> None:
        """It may be given tiles, and has time until then."""
        if worker in self._hands:
            self._hands[worker].fit, self._hands[worker].until = True, until

    def leave(self, worker: str) -> list[Outcome]:
        """It is gone. What waited behind its head goes to others; the head is tried alone, or has been often enough."""
        hand = self._hands.pop(worker, None)
        if hand is None or not hand.line:
            return []
        head, *behind = hand.line
        self._again.extendleft((attempt.index, attempt.number) for attempt in reversed(behind))
        if head.alone and head.number > self._retries:
            return [Outcome(head.index, head.number, vanished=True)]
        self._suspects.append((head.index, head.number + 1))
        return []

    def land(
        self, attempt: Attempt, now: float, result: object = None, error: BaseException | None = None
    ) -> list[Outcome]:
        """An attempt has ended; nothing where it had been taken from its worker before. An error that is final is not tried again."""
        hand = self._hands.get(attempt.worker)
        if hand is None or attempt not in hand.line:
            return []
        if hand.line[0] == attempt:
            self._learn(now - hand.began)
        hand.line.remove(attempt)
        hand.began = now
        if error is None:
            hand.has_done_one = True
            return [Outcome(attempt.index, attempt.number, result)]
        if attempt.number > self._retries or isinstance(error, FINAL):
            return [Outcome(attempt.index, attempt.number, error=error)]
        self._again.append((attempt.index, attempt.number + 1))
        return []

    def take_back(self, attempt: Attempt, now: float) -> None:
        """Its worker is not at it any more, and neither is to blame; it does not count."""
        hand = self._hands.get(attempt.worker)
        if hand is None or attempt not in hand.line:
            return
        hand.line.remove(attempt)
        hand.began = now
        (self._suspects if attempt.alone else self._again).append((attempt.index, attempt.number))

    # --- decisions --------------------------------------------------------------------------------------------------

    def assign(self, now: float) -> Iterator[Attempt]:
        """Fill the lines of those that are fit; a suspect waits for one whose line is empty, half of them at most."""
        hands = {worker: hand for worker, hand in self._hands.items() if hand.fit and not _has_suspect(hand)}
        for worker in self._kept_for_suspects(hands, now):
            hand = hands.pop(worker)
            if not hand.line:
                yield self._given(worker, hand, *self._suspects.popleft(), now=now, alone=True)
        for length in range(self._depth()):  # in turns, so that few tiles are spread over all
            for worker, hand in hands.items():
                if len(hand.line) <= length and self._has_time(hand, now) and (tile := self._take_next()):
                    yield self._given(worker, hand, *tile, now=now)

    def _kept_for_suspects(self, hands: dict[str, _WorkerState], now: float) -> list[str]:
        """Those with the shortest lines."""
        if not self._suspects:
            return []
        busy = sum(_has_suspect(hand) for hand in self._hands.values())
        room = max(min(max(self.fit // 2, 1) - busy, len(self._suspects)), 0)
        able = [worker for worker, hand in hands.items() if self._has_time(hand, now)]
        return sorted(able, key=lambda worker: len(hands[worker].line))[:room]

    def spent(self, now: float) -> list[str]:
        """Workers without a tile that have no time for another: to be let go."""
        return [
            worker
            for worker, hand in self._hands.items()
            if hand.fit and not hand.line and not self._has_time(hand, now)
        ]

    def _given(
        self, worker: str, hand: _WorkerState, index: int, number: int, *, now: float, alone: bool = False
    ) -> Attempt:
        self._serial += 1
        attempt = Attempt(self._serial, index, number, worker, alone)
        if not hand.line:
            hand.began = now
        hand.line.append(attempt)
        return attempt

    def _has_time(self, hand: _WorkerState, now: float) -> bool:
        """Whether one more tile can end before its worker does. One that has done none gets one: else none ever would."""
        if hand.until == math.inf or not (hand.has_done_one or hand.line):
            return True
        return now + DRAIN_FACTOR * self._longest * (len(hand.line) + 1) + DRAIN_SECONDS <= hand.until

    def _take_next(self) -> tuple[int, int] | None:
        if self._again:
            return self._again.popleft()
        if self._next is None or len(self._suspects) >= max(MOST_SUSPECTS, 2 * self.fit):
            return None
        index = self._next
        self._left -= 1
        self._take()
        return index, 1

    def _take(self) -> None:
        self._next = next((int(index) for index in self._source), None)

    def _learn(self, seconds: float) -> None:
        self._longest = max(self._longest, seconds)
        self._mean = seconds if not self._mean else 0.9 * self._mean + 0.1 * seconds

    def _depth(self) -> int:
        if not self._mean:
            return TILES_AHEAD
        return min(max(TILES_AHEAD, math.ceil(AHEAD_SECONDS / self._mean)), MOST_AHEAD)


def _has_suspect(hand: _WorkerState) -> bool:
    return bool(hand.line) and hand.line[0].alone

"""When a volume that somebody is still writing counts as complete: nothing about it changed for long enough.

A look gives a signature of all that a volume's files are, apart from their content. A volume is complete at a look where an
earlier look, long enough before, saw the same signature, and no look since then saw another one.

**Clocks.** Times of different clocks are never compared: each clock has its own first look at a signature, whereas a change
that one watcher sees counts for all. So watchers whose clocks are skewed, however much, only wait longer. Nor are times of
files compared with a clock: copies keep old ones.

**A clock that is set back** makes nothing complete early. A look is judged by what its clock shows, and the first look at a
signature is recorded no earlier than the latest that this clock ever showed. So time stands still until the clock is again where
it was. A clock that jumps *forward* cannot be told from one that ran: use one that is not set, such as seconds since boot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CLOCKS = 32
"""That an observation keeps at most, the ones met last: machines restart, and each time have a new clock."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at one volume.

    Args:
        signature: What was seen.
        clock: Whose times these are.
        began: What the clock showed before, in seconds.
        ended: And after.
    """

    signature: str
    clock: str
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Observation:
    """What all looks at a volume so far come to.

    Args:
        signature: What the last one saw.
        since: By clock, the end of the first look of the unbroken row that saw it.
    """

    signature: str
    since: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one more look makes of it.

    Args:
        observation: To be remembered.
        complete: Nothing changed for long enough.
        seconds_left: Until it is complete, if nothing changes; 0 where it is.
    """

    observation: Observation
    complete: bool
    seconds_left: float


def judged(previous: Observation | None, look: Look, quiet_seconds: float, latest: float = float("-inf")) -> Judgement:
    """Judge a volume by one more look.

    Args:
        previous: What earlier looks came to; None where there was none.
        look: The new one.
        quiet_seconds: How long nothing may have changed; more than 0.
        latest: The latest that this clock ever showed.
    """
    since = dict(previous.since) if previous and previous.signature == look.signature else {}
    since.setdefault(look.clock, max(look.ended, latest))
    left = since[look.clock] + quiet_seconds - look.began
    kept = dict(list(since.items())[-CLOCKS:])
    return Judgement(Observation(look.signature, kept), left <= 0, max(left, 0.0))

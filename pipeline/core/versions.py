"""Versions of one volume's output, and the rule by which old ones go."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class Version:
    """One version of an output, finished or not. Times carry their zone.

    Args:
        fingerprint: Of its plan.
        begun: When work on it began.
        published: When readers were first shown it, the last time that this happened; None where they never were.
    """

    fingerprint: str
    begun: datetime
    published: datetime | None = None

    @property
    def dated(self) -> datetime:
        """What orders versions: when it was published, or else when it was begun."""
        return self.published or self.begun


@dataclass(frozen=True, slots=True)
class Keep:
    """Which old versions stay; one stays where either says so.

    Args:
        versions: So many of the newest, beside the current one.
        days: Those that readers were sent to less than so many days ago, so that none is cut off.
    """

    versions: int = 1
    days: float = 7.0


def expired(
    versions: Sequence[Version], current: str | None, keep: Keep, now: datetime, spare: Collection[str] = ()
) -> list[str]:
    """The fingerprints of the versions that may go, oldest first.

    A version was left by its readers when the next one was published; where that is not known, since clocks differ, when it
    was published itself, or the current one was. One that was never published counts from when it was begun.

    Args:
        versions: All that there are, in any order.
        current: The one that readers are sent to; never goes. None where there is none.
        keep: The rule.
        now: The time.
        spare: Others that must not go, such as one that is being computed.
    """
    others = sorted((v for v in versions if v.fingerprint != current), key=lambda v: (v.dated, v.fingerprint))
    candidates = others[: max(len(others) - keep.versions, 0)]
    age = timedelta(days=keep.days)
    return [
        v.fingerprint for v in candidates if v.fingerprint not in spare and now - _left(v, versions, current) >= age
    ]


def _left(version: Version, versions: Sequence[Version], current: str | None) -> datetime:
    """When readers were sent elsewhere."""
    if version.published is None:
        return version.begun
    later = [v.published for v in versions if v.published is not None and v.published > version.published]
    if later:
        return min(later)
    return max([version.published, *(v.dated for v in versions if v.fingerprint == current)])

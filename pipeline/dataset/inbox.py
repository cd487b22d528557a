"""Which volumes of an inbox are complete: told by the uploader's markers, or because nothing about them changes any more.

**Marker.** `VOLUME.done`, say, beside the volume, or beside the plate, collection or file that holds it, written when all else is. Nothing
else counts then. This is the sure way.

**Quiet.** Each look lists a volume's files, with sizes and times of change (of the inode too), or an object's ETag; `core.arrival`
says when nothing has changed for long enough. An upload that pauses for longer is taken for complete: no listing can tell the two
apart. So `quiet_seconds` must be longer than the longest pause, and longer than a network file system caches times (NFS: 60 s). Then
the volume is opened; one that cannot be is `unreadable`, and looked at again next time.

Several watchers may look at once: they share what they saw (`observations`). That is no lock on a volume: who then takes it up must
see to it that nobody else does.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil

from pipeline.core.arrival import Judgement, Look, judged
from pipeline.core.volume import FINEST, Selection
from pipeline.dataset.catalogue import Entry, read_catalogue
from pipeline.dataset.observations import Observations, Seen
from pipeline.dataset.outcome import reason_of
from pipeline.dataset.rows import Source
from pipeline.dataset.search import LeftOut
from pipeline.errors import ConfigError, StorageError
from pipeline.places.listing import children, signature_of
from pipeline.volumes.foreign import foreign_place
from pipeline.volumes.volume import open_volume

log = logging.getLogger("pipeline")

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

State = Literal["growing", "complete", "unreadable"]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A volume of an inbox, as of one look.

    Args:
        entry: The volume.
        state: `unreadable`: nothing changes any more, or its marker is there, but it cannot be opened.
        signature: Of its files, or of its marker; another one means that it was uploaded anew. Empty where there is none yet.
        seconds_left: Until it counts as complete if nothing changes; None where that is not known.
        why: For a person.
    """

    entry: Entry
    state: State
    signature: str
    seconds_left: float | None
    why: str


class Inbox:
    """An inbox that watchers look at.

    Args:
        source: As of a catalogue; mostly a folder, a prefix or a pattern. It may be empty.
        observations: The file that its watchers share; not used with a marker.
        quiet_seconds: How long nothing may have changed.
        marker: Suffix of the file that tells a volume complete, such as `.done`; in place of `quiet_seconds`.
        selection: Of the dataset: what of its volumes is read, where an entry says nothing else.
        clock: A name for the wall clock, the same for all watchers whose clocks are kept together, so that their looks add up. None:
            this machine's seconds since boot, which nobody can set; then two looks of the same machine are needed.
        without: Folders or prefixes where nothing is a volume.

    Raises:
        ConfigError: Neither `quiet_seconds` nor a marker, or both; or they mean nothing.
    """

    def __init__(
        self,
        source: Source,
        observations: Path,
        *,
        quiet_seconds: float | None = None,
        marker: str | None = None,
        selection: Selection = FINEST,
        clock: str | None = None,
        without: Sequence[str] = (),
    ) -> None:
        if (quiet_seconds is None) == (marker is None):
            raise ConfigError(
                f"An inbox needs one rule that tells a complete volume: quiet_seconds is {quiet_seconds}, marker is {marker!r}. "
                "Set one of them."
            )
        if quiet_seconds is not None and not 0 < quiet_seconds < float("inf"):
            raise ConfigError(f"quiet_seconds is {quiet_seconds}; expected a time, such as 600.")
        if marker is not None and (not marker or "/" in marker):
            raise ConfigError(f"marker is {marker!r}; expected a suffix for the volume's name, such as .done.")
        self.source, self.quiet_seconds, self.marker = source, quiet_seconds, marker
        self.selection, self.clock, self.without = selection, clock, without
        self.observations = Observations(Path(observations))
        self.left_out: tuple[LeftOut, ...] = ()
        """What the last look found that is no volume, markers aside."""

    def look(self, now: float | None = None, *, done: Collection[str] = ()) -> list[Arrival]:
        """Look at each volume once.

        Args:
            now: Seconds by the wall clock, in place of this machine's own; see `clock`.
            done: Locations that need no look, and are not in the answer: listing a large volume takes a while.

        Raises:
            ConfigError: The source cannot be understood.
            StorageError: The source cannot be listed, or the observations cannot be kept.
        """
        known = frozenset() if self.marker else frozenset(self.observations.read().volumes)
        catalogue = read_catalogue(self.source, may_be_empty=True, without=self.without)
        entries = [entry for entry in catalogue if entry.url not in done]
        self.left_out = tuple(one for one in catalogue.left_out if not (self.marker and one.url.endswith(self.marker)))
        if self.marker:
            there: dict[str, frozenset[str]] = {}
            return [self._look_for_marker(entry, there) for entry in entries]
        return self._by_quiet(entries, now, known - {entry.url for entry in catalogue})

    # --- the two rules ----------------------------------------------------------------------------------------------

    def _look_for_marker(self, entry: Entry, there: dict[str, frozenset[str]]) -> Arrival:
        try:
            return self._find_marker(entry, there)
        except StorageError as error:
            return Arrival(entry, "unreadable", "", None, str(error))

    def _find_marker(self, entry: Entry, there: dict[str, frozenset[str]]) -> Arrival:
        """`there` holds names by folder, so that each folder is listed once a look."""
        for place in dict.fromkeys((entry.store, entry.url)):
            folder = place.rpartition("/")[0]
            if folder not in there:
                there[folder] = frozenset(item.name for item in children(folder or "/") or ())
            mark = f"{place}{self.marker}"
            if mark.rpartition("/")[2] in there[folder]:
                return self._open(entry, _signature(mark), f"'{mark}' is there")
        return Arrival(entry, "growing", "", None, f"no '{entry.store}{self.marker}' yet")

    def _by_quiet(self, entries: Iterable[Entry], now: float | None, gone: Collection[str]) -> list[Arrival]:
        """`gone` were observed before this look began, and were not found by it: none that another watcher adds meanwhile."""
        looks = {entry: self._look(entry, now) for entry in entries}
        with self.observations.changing() as seen:
            for url in gone:
                seen.volumes.pop(url, None)
            judgements = {
                entry: self._judge(seen, entry.url, look) for entry, look in looks.items() if isinstance(look, Look)
            }
        return [
            self._arrival(entry, look, judgements[entry]) if isinstance(look, Look) else look
            for entry, look in looks.items()
        ]

    def _look(self, entry: Entry, now: float | None) -> Look | Arrival:
        clock, began = self._time(now)
        try:
            signature = _signature(entry.url)
        except StorageError as error:
            return Arrival(entry, "unreadable", "", None, str(error))
        return Look(signature, clock, began, self._time(now)[1])

    def _time(self, now: float | None) -> tuple[str, float]:
        """What the clock is called, and what it shows."""
        if now is None and self.clock is None:
            return since_boot()
        return self.clock or f"wall clock of {platform.node()}", time.time() if now is None else now

    def _judge(self, seen: Seen, url: str, look: Look) -> Judgement:
        latest = seen.clocks.get(look.clock, look.ended)
        judgement = judged(seen.volumes.get(url), look, self.quiet_seconds or 0.0, latest)
        seen.clocks[look.clock] = max(latest, look.ended)
        seen.volumes[url] = judgement.observation
        return judgement

    def _arrival(self, entry: Entry, look: Look, judgement: Judgement) -> Arrival:
        if judgement.complete:
            return self._open(entry, look.signature, f"unchanged for {self.quiet_seconds:g} s")
        why = f"unchanged since it was first seen so; {judgement.seconds_left:.0f} s more"
        if judgement.observation.since[look.clock] > look.ended:
            why += f" as the clock '{look.clock}' was set back. If it is right now, delete '{self.observations.path}'"
        return Arrival(entry, "growing", look.signature, judgement.seconds_left, why)

    def _open(self, entry: Entry, signature: str, why: str) -> Arrival:
        try:
            open_volume(entry.url, replace(self.selection, **entry.reading))
        except Exception as error:  # one volume that nobody foresaw does not end the look at the others
            log.debug("%s cannot be opened", entry.name, exc_info=True)
            return Arrival(entry, "unreadable", signature, None, f"{why}, but: {reason_of(error)}")
        return Arrival(entry, "complete", signature, 0.0, why)


def _signature(url: str) -> str:
    """Of a volume's files, all levels of it."""
    place = foreign_place(url)
    return signature_of(str(place.path) if place else url)


def since_boot() -> tuple[str, float]:
    """A clock that nobody sets, which all processes of a machine share until it starts again: its name, and what it shows in seconds."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        space = Path("/proc/self/ns/time")  # containers may count from another moment
        boot = BOOT_ID.read_text(encoding="ascii").strip()
        return f"boot {boot}{f' {space.readlink()}' if space.is_symlink() else ''}", time.clock_gettime(
            time.CLOCK_BOOTTIME
        )
    return f"boot of {platform.node()} at {psutil.boot_time():.0f}", time.monotonic()

"""New volumes of an inbox: those that are complete and were not done before are segmented and published.

Several watchers may be at it at once. Each volume has a lock, and a mark that is read again under it: whoever comes second finds
that it was done, or tried, since he looked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pipeline.dataset.inbox import Arrival, Inbox
from pipeline.dataset.outcome import MARK, Outcome, read_mark, write_mark
from pipeline.dataset.reprocess import reprocess
from pipeline.dataset.round import Round, with_one_model
from pipeline.dataset.settings import DatasetConfig
from pipeline.dataset.volume import VolumeOfSet
from pipeline.errors import BusyError
from pipeline.storage.rundir import RunDirectory

log = logging.getLogger("pipeline")


def watch(config: DatasetConfig, on_begin: Callable[[Round], Callable[[Outcome], None]], **how: Any) -> Round:
    """Look at the inbox once, and do what is complete and new.

    Args:
        config: The set; its `volumes` is the inbox.
        on_begin: Given the round; gives what is told of each volume that is done now.
        how: As of `reprocess`.

    Raises:
        ConfigError, StorageError, ModelError: The inbox or the model cannot be read.
    """
    found = with_one_model(config)
    rule = found.watch
    observations = RunDirectory(found.home).path / "inbox.json"
    inbox = Inbox(
        found.source,
        observations,
        quiet_seconds=None if rule.marker else 60 * rule.quiet_minutes,
        marker=rule.marker,
        level=found.input.level,
        axes=found.input.axes,
        clock=rule.clock,
    )
    arrivals = inbox.look()
    volumes = [_volume(found, arrival) for arrival in arrivals]
    waiting = [
        volume.outcome("waiting", arrival.why)
        for volume, arrival in zip(volumes, arrivals, strict=True)
        if arrival.state != "complete" and volume.mark is None
    ]
    new = [v for v, arrival in zip(volumes, arrivals, strict=True) if arrival.state == "complete" and _is_due(v)]
    round_ = Round(found, new, known=[*_marks(found), *waiting], left_out=inbox.left_out)
    log.info("%d volume(s) in the inbox: %d new and complete, %d not yet", len(volumes), len(new), len(waiting))
    tell = on_begin(round_)
    try:
        changed = [volume for volume in new if volume.mark and volume.mark.state in ("done", "skipped")]
        for volume in changed:
            tell(_changed(volume))
        reprocess([volume for volume in new if volume not in changed], tell, **how)
    finally:
        round_.close()
    return round_


def _volume(config: DatasetConfig, arrival: Arrival) -> VolumeOfSet:
    volume = VolumeOfSet(config, arrival.entry, arrival.signature)
    return replace(volume, mark=read_mark(volume.folder))


def _is_due(volume: VolumeOfSet) -> bool:
    """Whether a complete volume was never tried, or failed less often than it may, or has changed since."""
    mark = volume.mark
    if mark is None:
        return True
    if mark.signature != volume.signature:
        return mark.signature != ""  # a reprocess did it, which looks at no files
    return mark.state == "failed" and mark.attempts < volume.config.watch.attempts


def _changed(volume: VolumeOfSet) -> Outcome:
    """A volume that was done, and has other files now. Its content is no part of a fingerprint, so it cannot be told from before."""
    reason = (
        "Its files have changed since its output was made from them, and the output still is of the old ones. To make it "
        f"again, delete the folder '{volume.folder}'; to keep both, bring the new files under another name."
    )
    before = volume.mark
    outcome = replace(
        volume.outcome("failed", reason), attempts=volume.config.watch.attempts, seen=before.seen if before else ""
    )
    try:
        with volume.publication().exclusive():
            return write_mark(volume.folder, outcome)
    except BusyError as error:
        return volume.outcome("busy", str(error))


def _marks(config: DatasetConfig) -> list[Outcome]:
    """What became of the set's volumes so far."""
    marks = (read_mark(path.parent) for path in sorted(config.home.glob(f"*/{MARK}")))
    return [mark for mark in marks if mark]

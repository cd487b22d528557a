"""New volumes of an inbox: those that are complete and were not done before are segmented and published.

Several watchers may be at it at once. Each volume has a lock, and a mark that is read again under it: whoever comes second finds
that it was done, or tried, since he looked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pipeline.dataset.inbox import Inbox
from pipeline.dataset.outcome import MARK, Outcome, read_mark
from pipeline.dataset.pass_ import Pass, is_summary, places, with_one_model
from pipeline.dataset.reprocess import reprocess
from pipeline.dataset.search import LeftOut
from pipeline.dataset.settings import DatasetConfig
from pipeline.dataset.volume import Member

log = logging.getLogger("pipeline")


def watch(
    config: DatasetConfig,
    on_begin: Callable[[Pass], Callable[[Outcome], None]],
    *,
    now: float | None = None,
    **how: Any,
) -> Pass:
    """Look at the inbox once, and do what is complete and new.

    Args:
        config: The set; its `volumes` is the inbox.
        on_begin: Given the pass; gives what is told of each volume that is done now.
        now: As of `Inbox.look`.
        how: As of `reprocess`.

    Raises:
        ConfigError, StorageError, ModelError: The inbox or the model cannot be read.
    """
    resolved = with_one_model(config)
    rule = resolved.watch
    observations = resolved.directory.path / "inbox.json"
    inbox = Inbox(
        resolved.source,
        observations,
        quiet_seconds=None if rule.marker else 60 * rule.quiet_minutes,
        marker=rule.marker,
        selection=resolved.input.selection,
        clock=rule.clock,
        without=places(resolved),
    )
    looked = inbox.look(now)
    arrivals = [a for a in looked if not is_summary(a.entry.name)]
    misnamed = [
        LeftOut(a.entry.url, "its output would lie where the summary does: rename it")
        for a in looked
        if is_summary(a.entry.name)
    ]
    unmarked = [Member(resolved, arrival.entry, arrival.signature) for arrival in arrivals]
    volumes = [replace(volume, mark=read_mark(volume.folder)) for volume in unmarked]
    waiting = [
        volume.outcome("waiting", arrival.why)
        for volume, arrival in zip(volumes, arrivals, strict=True)
        if arrival.state != "complete" and volume.mark is None
    ]
    new = [v for v, arrival in zip(volumes, arrivals, strict=True) if arrival.state == "complete" and _is_due(v)]
    pass_ = Pass(resolved, new, known=[*_marks(resolved), *waiting], left_out=[*inbox.left_out, *misnamed])
    log.info("%d volume(s) in the inbox: %d new and complete, %d not yet", len(volumes), len(new), len(waiting))
    tell = on_begin(pass_)
    try:
        reprocess(new, tell, **how)
    finally:
        pass_.close()
    return pass_


def _is_due(volume: Member) -> bool:
    """Whether a complete volume was never tried, or failed less often than it may, or has changed since."""
    mark = volume.mark
    if mark is None or mark.signature != volume.signature:  # what a reprocess did has none yet
        return True
    return mark.state == "failed" and mark.attempts < volume.config.watch.attempts


def _marks(config: DatasetConfig) -> list[Outcome]:
    """What became of the set's volumes so far."""
    marks = (read_mark(path.parent) for path in sorted(config.home.glob(f"*/{MARK}")))
    return [mark for mark in marks if mark]

"""Datasets as Prefect flows: a sub-flow per volume, none per tile, and no task in it.

A server records a task run with a dozen rows. Hundreds of small volumes, each with five tasks, would keep it busier than the
workers; so a volume's stages are lines of its sub-flow's log, and what is tried again is the volume, by the next run.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from httpx import HTTPError
from prefect import Flow, flow, runtime
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Failed

from flows.interruption import cancel_when_asked
from flows.progress import ProgressArtifact, tell_dashboard
from flows.server.api_log import keep_tiles_from_prefect
from flows.server.orphans import end_orphans
from pipeline.cluster.pool import StartedWorkers
from pipeline.core.printable import one_line
from pipeline.dataset.outcome import Outcome
from pipeline.dataset.pass_ import Pass, log_pass, volumes_of
from pipeline.dataset.reprocess import reprocess
from pipeline.dataset.settings import DatasetConfig
from pipeline.dataset.summary import Summary, failures
from pipeline.dataset.volume import DatasetWorkers, Member, segment
from pipeline.dataset.watch import watch
from pipeline.errors import DatasetError

log = logging.getLogger("pipeline")

ROWS = 500
"""Volumes in the artifact's table at most; the others are in the summary's files."""

_cancel_when_asked = cancel_when_asked("finished volumes are kept")


VOLUME_FLOW = "halotile-volume"
"""Name of the sub-flow of each volume."""

Hearer = Callable[[Outcome, Summary], None]


def _volume_flow(
    volume: Member, team: DatasetWorkers, on_outcome: Callable[[Outcome], None]
) -> Flow[[str, str], str | State]:
    """The sub-flow of a volume. Its parameters are what Prefect's page says of it; the volume reaches it in a closure."""

    @flow(name=VOLUME_FLOW, flow_run_name="{name}", persist_result=False, validate_parameters=False)
    @cancel_when_asked("finished tiles are kept")
    def segment_volume(name: str, url: str) -> str | State:  # noqa: ARG001 - what Prefect's page says of it
        """One volume of a dataset: plan, survey, infer, verify, report, publish.

        Args:
            name: Of the volume.
            url: Where it lies.
        """
        outcome = segment(volume, team)
        on_outcome(outcome)
        return Failed(message=outcome.reason[:1000]) if outcome.state == "failed" else outcome.state

    return segment_volume


def _as_sub_flow(volume: Member, team: DatasetWorkers) -> Outcome:
    outcomes: list[Outcome] = []
    segment_volume = _volume_flow(volume, team, outcomes.append)
    try:
        # its end would cost a second; the parent has one
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            state: State = segment_volume(volume.name, one_line(volume.entry.url), return_state=True)
    except (HTTPError, PrefectException) as error:  # costs the volume's place on the page, not the volume
        log.warning("%s is not shown as it is on Prefect's page: %s", volume.name, str(error).splitlines()[0])
        return outcomes[0] if outcomes else segment(volume, team)
    if state.is_cancelled():
        raise KeyboardInterrupt
    if not outcomes:  # Prefect itself failed
        return volume.outcome("failed", f"its flow run ended as {state.name}: {state.message}")
    return outcomes[0]


def _run_name() -> str:
    config = runtime.flow_run.parameters["config"]
    return Path(config.output.url if isinstance(config, DatasetConfig) else config["output"]["url"]).name


@flow(name="halotile-dataset", flow_run_name=_run_name, persist_result=False)
@_cancel_when_asked
def reprocess_dataset(config: DatasetConfig, moved: bool = False) -> Summary:
    """Have every volume of a dataset segmented and published. Running it again does what is left.

    Gives the summary. A volume that fails does not stop the others; in the end the run fails, naming it.

    Args:
        config: The dataset.
        moved: Whether volumes may lie elsewhere, or have other times, than when they were done or begun: their voxels are the same.
    """
    return _go_over(config, partial(_reprocess_pass, moved=moved), stage="reprocess", prefect=True)


def reprocess_dataset_with(on_outcome: Hearer, started: StartedWorkers | None = None) -> Flow[..., Summary | State]:
    """The same flow for a process that has more to give it than values: these reach it in a closure, since parameters go to the server.

    Args:
        on_outcome: Told of each volume.
        started: The set's workers, which are started already.
    """

    @functools.wraps(reprocess_dataset.fn)
    def reprocess_here(config: DatasetConfig, moved: bool = False) -> Summary:
        go = partial(_reprocess_pass, moved=moved)
        return _go_over(config, go, stage="reprocess", prefect=True, on_outcome=on_outcome, started=started)

    declare = flow(name=reprocess_dataset.name, flow_run_name=_run_name, persist_result=False)
    return declare(_cancel_when_asked(reprocess_here))


@flow(name="halotile-watch", flow_run_name=_run_name, persist_result=False)
@_cancel_when_asked
def watch_inbox(config: DatasetConfig) -> Summary:
    """Segment and publish the volumes of an inbox that are complete and were not done. For a schedule; several may run at once.

    Gives the summary.

    Args:
        config: The dataset; its `volumes` is the inbox.
    """
    return _go_over(config, watch, stage="watch", prefect=True)


def watch_inbox_with(on_outcome: Hearer, started: StartedWorkers | None = None) -> Flow[..., Summary | State]:
    """As `reprocess_dataset_with`."""

    @functools.wraps(watch_inbox.fn)
    def watch_here(config: DatasetConfig) -> Summary:
        return _go_over(config, watch, stage="watch", prefect=True, on_outcome=on_outcome, started=started)

    declare = flow(name=watch_inbox.name, flow_run_name=_run_name, persist_result=False)
    return declare(_cancel_when_asked(watch_here))


# --- with Prefect or without ------------------------------------------------------------------------------------------


Go = Callable[..., Pass]


def _reprocess_pass(
    config: DatasetConfig, on_begin: Callable[[Pass], Callable[[Outcome], None]], *, moved: bool = False, **how: Any
) -> Pass:
    """All volumes of the catalogue."""
    volumes, left_out = volumes_of(config, moved=moved)
    pass_ = Pass(config, volumes, left_out=left_out)
    try:
        reprocess(pass_.volumes, on_begin(pass_), **how)
    finally:
        pass_.close()
    return pass_


def _go_over(
    config: DatasetConfig,
    go: Go,
    *,
    stage: Literal["reprocess", "watch"],
    prefect: bool,
    on_outcome: Hearer = lambda *_: None,
    started: StartedWorkers | None = None,
) -> Summary:
    """Go over a dataset, and raise in the end where volumes failed.

    Args:
        config: The set.
        go: `_reprocess_pass`, or `watch`.
        stage: Which of them, for the log; watchers may work side by side.
        prefect: Whether each volume is a sub-flow, and the summary an artifact.
        on_outcome: Told of each volume.
        started: Workers that are started already.

    Raises:
        DatasetError: Volumes failed, by name; the others are done.
    """
    if prefect:
        keep_tiles_from_prefect()
        end_orphans(VOLUME_FLOW)

    def begin(pass_: Pass) -> Callable[[Outcome], None]:
        bar = ProgressArtifact("halotile-progress", config.output.url) if prefect else None

        def tell(outcome: Outcome) -> None:
            pass_.tell(outcome)
            summary = pass_.summary
            on_outcome(outcome, summary)
            if bar:
                bar.tell(100 * len(summary.outcomes) / summary.volumes)

        return tell

    with log_pass(config, alone=stage == "reprocess", stage=stage):
        one = _as_sub_flow if prefect else segment
        pass_ = go(config, begin, segment_one=one, on_dashboard=tell_dashboard, started=started)
        summary = pass_.summary
        if prefect:
            _show(summary)
        if pass_.failed:
            raise DatasetError(
                f"{summary.line()}.\n{failures(pass_.failed)}\nThe others are done and published; running again does only what is left. "
                f"See '{config.home / 'summary.html'}'."
            )
        return summary


def reprocess_plainly(
    config: DatasetConfig, on_outcome: Hearer, started: StartedWorkers | None = None, *, moved: bool = False
) -> Summary:
    """The same as the flow, without Prefect."""
    go = partial(_reprocess_pass, moved=moved)
    return _go_over(config, go, stage="reprocess", prefect=False, on_outcome=on_outcome, started=started)


def watch_plainly(
    config: DatasetConfig, on_outcome: Hearer, started: StartedWorkers | None = None, *, now: float | None = None
) -> Summary:
    """The same as the flow, without Prefect; `now` as of `Inbox.look`."""
    go = partial(watch, now=now)
    return _go_over(config, go, stage="watch", prefect=False, on_outcome=on_outcome, started=started)


def _show(summary: Summary) -> None:
    """The table on Prefect's page: what needs somebody first."""
    rows = [
        {
            "volume": outcome.name,
            "state": outcome.state,
            "why": outcome.why[:300],
            "voxels": outcome.voxels or "",
            "seconds": outcome.seconds or "",
            "version": outcome.fingerprint[:12],
            "model": outcome.model,
        }
        for outcome in summary.ordered[:ROWS]
    ]
    try:
        create_table_artifact(rows, key="halotile-summary", description=f"{summary.output}\n\n{summary.line()}")
    except (HTTPError, PrefectException) as error:
        log.warning("the summary is not on Prefect's page, but in the dataset's folder: %s", str(error).splitlines()[0])

"""The main job as a Prefect flow: one task a stage, never one a tile. Tiles are Dask's, inside the infer task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, TypedDict

from httpx import HTTPError
from prefect import flow, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import PrefectException
from prefect.tasks import Task

from flows.interruption import cancelled_when_asked, finished
from flows.progress import following, tell_dashboard
from flows.server.api_log import keep_tiles_from_prefect
from pipeline import stages
from pipeline.config import RunConfig
from pipeline.errors import PipelineError
from pipeline.registry import with_model

log = logging.getLogger("pipeline")


def _unexpected(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Retry what nobody foresaw. An error raised on purpose has been tried as often as it is worth."""
    return not isinstance(state.result(raise_on_failure=False), PipelineError)


class _Stage(TypedDict):
    cache_policy: CachePolicy
    persist_result: bool
    retry_condition_fn: Callable[[Task[..., Any], TaskRun, State[Any]], bool]
    retry_delay_seconds: int


_STAGE: _Stage = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retry_condition_fn": _unexpected,
    "retry_delay_seconds": 5,
}

_cancelled_when_asked = cancelled_when_asked("finished tiles are kept")


@task(name="plan", task_run_name="plan", retries=1, **_STAGE)
@_cancelled_when_asked
def plan_stage(config: RunConfig, input_changed: Literal["redo", "keep"] | None = None) -> str:
    """Load the plan and confirm that it is this configuration's; makes it where there is none."""
    return stages.plan(stages.Run(config), input_changed=input_changed).fingerprint


def _show(content: dict[str, Any]) -> None:
    """The figures of a report, as an artifact of the flow run."""
    try:
        create_markdown_artifact(_markdown(content), key="halotile-report", description=content["output"])
    except (HTTPError, PrefectException, OSError) as error:  # costs the figures on the page, not the run
        log.warning("the report is not on Prefect's page, but in the run's folder: %s: %s", type(error).__name__, error)


_HOST = stages.Host(following=following, on_dashboard=tell_dashboard, on_report=_show)


def _task_of(stage: stages.Stage) -> Task[[stages.Run], stages.Account | State]:
    """The task that does a stage."""

    def work(run: stages.Run) -> stages.Account:
        return stage.work(run, _HOST)

    work.__name__ = work.__qualname__ = f"{stage.name}_stage"  # Prefect tells tasks apart by it
    return task(name=stage.name, task_run_name=stage.name, retries=1, **_STAGE)(_cancelled_when_asked(work))


TASKS = tuple(map(_task_of, stages.SEQUENCE))
"""What follows the plan, a task a stage."""

_reports: ContextVar[list[dict[str, Any]] | None] = ContextVar("flows.inference.reports", default=None)


@contextmanager
def kept(reports: list[dict[str, Any]]) -> Iterator[None]:
    """Have what a flow gives that is called in here, even where its server cannot take it any more."""
    before = _reports.set(reports)
    try:
        yield
    finally:
        _reports.reset(before)


def _run_name() -> str:
    config = runtime.flow_run.parameters["config"]
    return Path(config.output.url if isinstance(config, RunConfig) else config["output"]["url"]).name


@flow(name="halotile-inference", flow_run_name=_run_name, persist_result=False)
@_cancelled_when_asked
def infer_volume(config: RunConfig, input_changed: Literal["redo", "keep"] | None = None) -> dict[str, Any]:
    """Segment one volume: plan -> infer -> verify -> report. Running it again resumes.

    Gives the report's content, and under `computed` the number of tiles that this run computed.

    Args:
        config: The run.
        input_changed: Where the input is not as it was planned: redo the tiles that read what changed, or keep them.
    """
    keep_tiles_from_prefect()
    config = with_model(config)
    finished(plan_stage(config, input_changed))
    run, account = stages.Run(config), stages.Account()
    with stages.driving(run.directory):
        for stage in TASKS:
            account += finished(stage(run))
    content = account.to_dict()
    if (reports := _reports.get()) is not None:
        reports.append(content)
    return content


def _markdown(content: dict[str, Any]) -> str:
    infer = content["stages"]["infer"]
    rows = {
        "output": content["output"],
        "tiles": f"{content['tiles']['done']} of {content['tiles']['total']}",
        "infer": f"{infer['seconds']} s in {infer['sessions']} session(s)",
        "arithmetic": f"{content['amplification']} x one pass",
        "fingerprint": content["fingerprint"],
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])

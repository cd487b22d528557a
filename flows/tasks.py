"""The stages of a run as Prefect tasks: one per stage, never one per tile."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal, TypedDict

from httpx import HTTPError
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import PrefectException
from prefect.tasks import Task

from flows.interruption import cancel_when_asked
from flows.progress import following, tell_dashboard, tell_survey
from pipeline import stages
from pipeline.cluster.pool import StartedWorkers
from pipeline.errors import PipelineError

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

_cancel_when_asked = cancel_when_asked("finished tiles are kept")


@task(name="plan", task_run_name="plan", retries=1, **_STAGE)
@_cancel_when_asked
def plan_stage(run: stages.Run, input_changed: Literal["redo", "keep"] | None = None) -> str:
    """Load the plan and confirm that it is this run's; makes it where there is none."""
    return stages.plan(run, input_changed=input_changed).fingerprint


def _show(content: dict[str, Any]) -> None:
    """The figures of a report, as an artifact of the flow run."""
    try:
        create_markdown_artifact(_markdown(content), key="halotile-report", description=content["output"])
    except (HTTPError, PrefectException, OSError) as error:  # costs the figures on the page, not the run
        log.warning("the report is not on Prefect's page, but in the run's folder: %s: %s", type(error).__name__, error)


def _task_of(stage: stages.Stage, host: stages.Host) -> Task[[stages.Run], stages.Account | State]:
    """The task that does a stage."""

    def work(run: stages.Run) -> stages.Account:
        return stage.work(run, host)

    work.__name__ = work.__qualname__ = f"{stage.name}_stage"  # Prefect tells tasks apart by it
    return task(name=stage.name, task_run_name=stage.name, retries=1, **_STAGE)(_cancel_when_asked(work))


def following_tasks(started: StartedWorkers | None = None) -> list[Task[[stages.Run], stages.Account | State]]:
    """What follows the plan, a task per stage.

    Args:
        started: Workers of the run that are started already.
    """
    host = stages.Host(
        following=following, on_survey=tell_survey, on_dashboard=tell_dashboard, on_report=_show, started=started
    )
    return [_task_of(stage, host) for stage in stages.SEQUENCE]


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

"""The main job as a Prefect flow: one task per stage (`flows.tasks`), never one per tile. Tiles are Dask's, inside the infer task.

Deployments name the flow by this module: `flows.inference.infer_volume` stands on servers, and in copies of deploy/prefect.yaml.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from prefect import Flow, flow, runtime
from prefect.client.schemas.objects import State

from flows.interruption import cancel_when_asked, result_of
from flows.server.api_log import keep_tiles_from_prefect
from flows.tasks import following_tasks, plan_stage
from pipeline import stages
from pipeline.cluster.pool import StartedWorkers
from pipeline.config import RunConfig
from pipeline.outputs.rundir import Driver
from pipeline.registry import with_model

_cancel_when_asked = cancel_when_asked("finished tiles are kept")


def _run_name() -> str:
    config = runtime.flow_run.parameters["config"]
    return Path(config.output.url if isinstance(config, RunConfig) else config["output"]["url"]).name


@flow(name="halotile-inference", flow_run_name=_run_name, persist_result=False)
@_cancel_when_asked
def infer_volume(config: RunConfig, input_changed: Literal["redo", "keep"] | None = None) -> dict[str, Any]:
    """Segment one volume: plan -> survey -> infer -> verify -> report. Running it again resumes.

    Gives the report's content, and under `computed` the number of tiles that this run computed.

    Args:
        config: The run.
        input_changed: Where the input is not as it was planned: redo the tiles that read what changed, or keep them.
    """
    return _segment(stages.Run(with_model(config)), input_changed)


def infer_volume_with(
    driver: Driver | None, started: StartedWorkers | None, on_content: Callable[[dict[str, Any]], None]
) -> Flow[..., dict[str, Any] | State]:
    """The same flow for a process that has more to give it than values: these reach it in a closure, since parameters go to the server.

    Args:
        driver: Of the output, where this process is it already.
        started: Workers of the run that are started already.
        on_content: Told what the flow gives, even where its server cannot take it any more.
    """

    @functools.wraps(infer_volume.fn)
    def infer_here(config: RunConfig, input_changed: Literal["redo", "keep"] | None = None) -> dict[str, Any]:
        content = _segment(stages.Run(with_model(config), driver), input_changed, started)
        on_content(content)
        return content

    return flow(name=infer_volume.name, flow_run_name=_run_name, persist_result=False)(_cancel_when_asked(infer_here))


def _segment(
    run: stages.Run, input_changed: Literal["redo", "keep"] | None, started: StartedWorkers | None = None
) -> dict[str, Any]:
    keep_tiles_from_prefect()
    result_of(plan_stage(run, input_changed))
    account = stages.Account()
    with stages.drive(run) as run, stages.workers_kept(run, started) as workers:
        for stage in following_tasks(workers):
            account += result_of(stage(run))
    return account.to_dict()

"""The main job as a Prefect flow: one task a stage (`flows.tasks`), never one a tile. Tiles are Dask's, inside the infer task.

Deployments name the flow by this module: `flows.inference.infer_volume` stands on servers, and in copies of deploy/prefect.yaml.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

from prefect import flow, runtime

from flows.interruption import cancelled_when_asked, finished
from flows.server.api_log import keep_tiles_from_prefect
from flows.tasks import TASKS, plan_stage
from pipeline import stages
from pipeline.config import RunConfig
from pipeline.registry import with_model

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
@cancelled_when_asked("finished tiles are kept")
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

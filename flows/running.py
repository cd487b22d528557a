"""A run from a terminal: through Prefect, or the stages by themselves. What both print besides is `flows.printing`'s."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from flows.printing import print_plan
from flows.server import EmbeddedServer, prefect_api, start_unless_configured
from pipeline.config import RunConfig
from pipeline.errors import PipelineError


def run_volume(config: RunConfig, *, prefect: bool) -> dict[str, Any]:
    """Plan, infer, verify, report; gives the report's content, and under `computed` the tiles of this sitting.

    Args:
        config: The run.
        prefect: Whether it is a flow, told to a server.
    """
    run = _with_prefect if prefect else _without_prefect
    if config.cluster.kind != "slurm-allocation":
        return run(config)
    from pipeline import stages  # noqa: PLC0415 - slow; other kinds start the server first

    with stages.part_in_cluster(config):
        return run(config)


def _with_prefect(config: RunConfig) -> dict[str, Any]:
    server = start_unless_configured()  # it takes seconds, and so does what follows
    try:
        from pipeline import stages  # noqa: PLC0415 - the server starts meanwhile

        print_plan(stages.plan(config))
        with stages.driving(config), stages.workers_starting(config):
            print(
                "starting Prefect's side and the workers: seconds, half a minute the first time ever", file=sys.stderr
            )
            return _through_prefect(config, server)
    finally:
        if server:
            server.abandon()


def _without_prefect(config: RunConfig) -> dict[str, Any]:
    from flows.progress import shown, tell_dashboard  # noqa: PLC0415 - slow, and not needed elsewhere
    from pipeline import stages  # noqa: PLC0415 - slow, and not needed elsewhere

    print_plan(stages.plan(config))
    with stages.driving(config):
        with shown(config.output.url) as on_advance:
            computed = stages.infer(config, on_advance, tell_dashboard).tiles
        stages.verify(config)
        return {**stages.report(config), "computed": computed}


def _through_prefect(config: RunConfig, server: EmbeddedServer | None) -> dict[str, Any]:
    """Run the flow; the server starts while Prefect is imported."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # errors are told here, once
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_API_LEVEL", "INFO")  # log.level: debug writes two lines a tile
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "pipeline")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")  # of threads that know of no run
    from httpx import HTTPError  # noqa: PLC0415 - once the settings stand
    from prefect.exceptions import CancelledRun  # noqa: PLC0415 - once the settings stand

    from flows.inference import infer_volume  # noqa: PLC0415 - once the settings stand

    if server:
        server.keep_log(Path(f"{config.output.url}.run") / "prefect.log")
    with prefect_api(server=server) as url:
        try:
            return infer_volume(config)
        except CancelledRun as error:
            raise KeyboardInterrupt from error
        except RuntimeError as error:  # what Prefect makes of a connection that is refused
            if not isinstance(error.__cause__, HTTPError):
                raise
            raise PipelineError(
                f"Prefect's server at '{url}' cannot be reached ({error.__cause__}). Start it or correct PREFECT_API_URL; "
                "where none is configured, a run brings its own. Nothing was computed."
            ) from error

"""A run or a dataset from a terminal: through Prefect, or by itself. What both print besides is `flows.printing`'s."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from flows.printing import print_plan, say
from flows.server.embedded import EmbeddedServer, configured_api, prefect_api, start_unless_configured
from flows.server.health import check_api
from flows.server.proxies import settle_proxies
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.places.credentials import redacted

if TYPE_CHECKING:
    from pipeline.cluster.pool import StartedWorkers
    from pipeline.dataset.outcome import Outcome
    from pipeline.dataset.settings import DatasetConfig
    from pipeline.dataset.summary import Summary
    from pipeline.stages import Run

Result = TypeVar("Result")


def run_volume(
    config: RunConfig, *, prefect: bool, input_changed: Literal["redo", "keep"] | None = None
) -> dict[str, Any]:
    """Plan, survey, infer, verify, report; gives the report's content, and under `computed` the tiles of this session.

    Args:
        config: The run.
        prefect: Whether it is a flow, told to a server.
        input_changed: What to do where the input is not as it was planned; see `stages.plan`.
    """
    run = _with_prefect if prefect else _without_prefect
    if config.cluster.kind != "slurm-allocation":
        return run(config, input_changed)
    from pipeline import stages  # noqa: PLC0415 - slow; other kinds start the server first

    with stages.part_in_cluster(config.cluster, config.compute, stages.Run(config).directory) as joined:
        return run(config, input_changed, joined)


def _with_prefect(
    config: RunConfig, input_changed: Literal["redo", "keep"] | None, joined: StartedWorkers | None = None
) -> dict[str, Any]:
    server = _server(config.cluster.kind)  # it takes seconds, and so does what follows
    try:
        load_settings()
        from pipeline import stages  # noqa: PLC0415 - the server starts meanwhile

        run = stages.Run(config)
        print_plan(stages.plan(run, input_changed=input_changed))
        with stages.drive(run) as run, stages.workers_starting(run, joined) as started:
            print(
                "starting Prefect's side and the workers: seconds, half a minute the first time ever", file=sys.stderr
            )
            return _through_prefect(run, started, server)
    finally:
        if server:
            server.abandon()


def _server(kind: str) -> EmbeddedServer | None:
    """A Prefect server of our own, which starts; None where one is configured, which has shown that it answers.

    Raises:
        ConfigError: The configured one cannot be used, or none can be spoken to through the proxies that are named.
    """
    prepare_prefect()
    if url := configured_api():
        load_settings()
        check_api(url, needs_more=kind == "kubernetes")
        return None
    settle_proxies(None, needs_more=kind == "kubernetes")
    return start_unless_configured()


def _without_prefect(
    config: RunConfig, input_changed: Literal["redo", "keep"] | None, joined: StartedWorkers | None = None
) -> dict[str, Any]:
    from pipeline import stages  # noqa: PLC0415 - slow, and not needed elsewhere

    run = stages.Run(config)
    print_plan(stages.plan(run, input_changed=input_changed))
    return _stages(run, joined)


def _stages(run: Run, started: StartedWorkers | None) -> dict[str, Any]:
    """What follows the plan; what is done already is not done again."""
    from flows.progress import show, tell_dashboard, tell_survey  # noqa: PLC0415 - slow, and not needed elsewhere
    from pipeline import stages  # noqa: PLC0415 - slow, and not needed elsewhere

    host = stages.Host(following=show, on_survey=tell_survey, on_dashboard=tell_dashboard, started=started)
    return stages.follow(run, host).to_dict()


def _through_prefect(run: Run, started: StartedWorkers | None, server: EmbeddedServer | None) -> dict[str, Any]:
    """Run the flow; the server starts while Prefect is imported."""
    prepare_prefect()
    from flows.inference import infer_volume_with  # noqa: PLC0415 - once the settings stand
    from flows.interruption import result_of  # noqa: PLC0415 - once the settings stand

    contents: list[dict[str, Any]] = []
    segment = infer_volume_with(run.driver, started, contents.append)

    def alone() -> dict[str, Any]:
        return contents[0] if contents else _stages(run, started)

    return report_to(lambda: result_of(segment(run.config)), Path(f"{run.config.output.url}.run"), server, alone)


def prepare_prefect() -> None:
    """Set what Prefect reads when it is imported."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # errors are told here, once
    # a report that cannot be sent costs no line each
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_API_LEVEL", "INFO")  # log.level: debug writes two lines per tile
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "pipeline")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")  # of threads that know of no run


def load_settings() -> None:
    """Have Prefect read its files and variables: what is wrong with them is told before anything is computed, and once."""
    complaints = io.StringIO()
    with redirect_stderr(complaints):
        import prefect.context  # noqa: F401, PLC0415 - once what it reads is set
    sys.stderr.write(complaints.getvalue())


def report_to(
    flow: Callable[[], Result], folder: Path, server: EmbeddedServer | None, alone: Callable[[], Result]
) -> Result:
    """Call a flow, which reports to a server. One that dies meanwhile costs the reports, not the work.

    Args:
        flow: The call.
        folder: Where the log of a server of our own goes.
        server: One of our own; None where another is configured.
        alone: What is left of the work, without a server: it takes up what the flow has done.

    Raises:
        KeyboardInterrupt: It was cancelled.
        PipelineError: A server of our own cannot be reached, or what the flow raises.
    """
    from httpx import HTTPError  # noqa: PLC0415 - once the settings stand
    from prefect.exceptions import CancelledRun  # noqa: PLC0415 - once the settings stand

    if server:
        server.keep_log(folder / "prefect.log")
    with prefect_api(server=server) as url:
        try:
            return flow()
        except CancelledRun as error:
            raise KeyboardInterrupt from error
        except PipelineError:
            raise
        except Exception as error:  # whatever Prefect makes of it
            if server is None:
                if not _is_lost(error, url):
                    raise
                warning = (
                    f"Prefect's server at '{redacted(url)}' does not take this run's reports any more ({type(error).__name__}); its page "
                    "does not know the end, and shows the run as Running until somebody deletes it there. The run goes on without "
                    "the server. Start it again before the next one."
                )
            elif server.has_ended():
                warning = (
                    f"Prefect's own server of this run has ended ({type(error).__name__}); its page does not show what follows. The run "
                    f"goes on without it. '{folder / 'prefect.log'}' may say why."
                )
            # a connection that is refused
            elif isinstance(error, RuntimeError) and isinstance(error.__cause__, HTTPError):
                raise _unreachable(url, error.__cause__) from error
            else:
                raise
            say(f"halotile: warning: {warning}", error=True)
    return alone()


def _is_lost(error: Exception, url: str) -> bool:
    """Whether an error is between this process and a configured server, rather than one of the work."""
    from httpx import HTTPError  # noqa: PLC0415 - once the settings stand

    if isinstance(error, HTTPError) or isinstance(error.__cause__, HTTPError):
        return True
    try:
        check_api(url)
    except ConfigError:
        return True
    return False


def _unreachable(url: str, cause: Exception) -> PipelineError:
    return PipelineError(
        f"Prefect's server at '{url}' cannot be reached ({cause}). Start it or correct PREFECT_API_URL; where none is configured, a "
        "run brings its own. What was computed by then is kept: run again to resume."
    )


def run_dataset(
    config: DatasetConfig, *, prefect: bool, on_outcome: Callable[[Outcome, Summary], None], moved: bool = False
) -> Summary:
    """Go over a dataset.

    Args:
        config: The set.
        prefect: Whether it is a flow, told to a server.
        on_outcome: Told of each volume.
        moved: Whether volumes may lie elsewhere than when they were done.

    Raises:
        DatasetError: Volumes failed; the others are done.
    """
    return _over(
        config,
        lambda dataset, started: dataset.reprocess_dataset_with(on_outcome, started)(config, moved=moved),
        lambda dataset, started: dataset.reprocess_plainly(config, on_outcome, started, moved=moved),
        prefect=prefect,
    )


def run_watch(config: DatasetConfig, *, prefect: bool, on_outcome: Callable[[Outcome, Summary], None]) -> Summary:
    """Look at the inbox of a dataset once; see `run_dataset`."""
    return _over(
        config,
        lambda dataset, started: dataset.watch_inbox_with(on_outcome, started)(config),
        lambda dataset, started: dataset.watch_plainly(config, on_outcome, started),
        prefect=prefect,
    )


def _over(
    config: DatasetConfig,
    flow: Callable[[ModuleType, StartedWorkers | None], Summary],
    plain: Callable[[ModuleType, StartedWorkers | None], Summary],
    *,
    prefect: bool,
) -> Summary:
    """The flow, or the same without Prefect; either is given the module of both, and the workers of an allocation."""
    server = _server(config.cluster.kind) if prefect else None
    try:
        prepare_prefect()
        from flows import dataset  # noqa: PLC0415 - once the settings stand, while the server starts

        with _allocation(config) as joined:
            if not prefect:
                return plain(dataset, joined)
            folder = Path(f"{config.home}.run")
            return report_to(lambda: flow(dataset, joined), folder, server, lambda: plain(dataset, joined))
    finally:
        if server:
            server.abandon()


@contextmanager
def _allocation(config: DatasetConfig) -> Iterator[StartedWorkers | None]:
    """As one of many tasks of an allocation, be what it is to be; see `stages.part_in_cluster`."""
    if config.cluster.kind != "slurm-allocation":
        yield None
        return
    from pipeline import stages  # noqa: PLC0415 - slow, and not needed elsewhere

    with stages.part_in_cluster(config.cluster, config.compute, config.directory) as joined:
        yield joined

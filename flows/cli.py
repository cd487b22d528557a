"""The command `halotile`: a door. It reads arguments, calls a stage or the flow, and turns errors into exit status.

Exit status: 0 done, 1 failed, 2 refused (usage errors too), 3 verification failed, 130 interrupted.
Heavy imports wait until a command needs them: `--help` imports neither torch nor Prefect.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Parameter

from pipeline import __version__
from pipeline.errors import REFUSALS, PipelineError, VerificationError

if TYPE_CHECKING:
    from flows.server import EmbeddedServer
    from pipeline.config import RunConfig

DONE, FAILED, REFUSED, UNVERIFIED, INTERRUPTED = 0, 1, 2, 3, 130

app = App(
    name="halotile",
    version=__version__,
    help="Exact UNet inference over microscopy volumes that are larger than any machine.",
    help_epilogue="Exit status: 0 done, 1 failed, 2 refused, 3 verification failed, 130 interrupted.",
    suppress_keyboard_interrupt=False,  # `status` tells it
)

Config = Annotated[Path, Parameter(help="The run's YAML; configs/example.yaml explains every key.")]
Overrides = Annotated[
    list[str] | None,
    Parameter(name="--set", help="Override a key: --set tiles.core='[64, 128, 128]'. May be given again.", negative=()),
]


@app.command
def plan(
    config: Config,
    *,
    measure: Annotated[
        bool, Parameter(help="Compute a few slabs, and print how long the run will take.", negative=())
    ] = False,
    set_: Overrides = None,
) -> int:
    """Dry run: print tiles, halo, amplification, memory and bytes to write; write plan.json."""
    from pipeline import stages  # noqa: PLC0415 - see above

    asked = _read(config, set_)
    found = stages.plan(asked)
    _print_plan(found, stages.measure(asked) if measure else None)
    print(f"plan written to {found.output.url}.run/plan.json; `halotile run {config}` does it")
    return DONE


@app.command
def run(config: Config, *, set_: Overrides = None) -> int:
    """Segment a volume: plan, infer, verify, report. Run it again to resume."""
    from flows.server import start_unless_configured  # noqa: PLC0415 - see above

    found = _read(config, set_)
    server = start_unless_configured()  # it takes seconds, and so does what follows
    try:
        from pipeline import stages  # noqa: PLC0415 - see above

        _print_plan(stages.plan(found))
        with stages.driving(found), stages.workers_starting(found):
            print(
                "starting Prefect's side and the workers: seconds, half a minute the first time ever", file=sys.stderr
            )
            content = _through_prefect(found, server)
    finally:
        if server:
            server.abandon()
    directory = f"{found.output.url}.run"
    infer = content["stages"]["infer"]
    verified = content["stages"]["verify"]
    computed = content["computed"]
    told = (
        f"{computed} tile{'s'[: computed != 1]} computed"
        if computed
        else "nothing to compute: all tiles were done already"
    )
    print(f"done: {told}; {verified['valid']} of {verified['tiles']} verified; infer {infer['seconds']:.1f} s in all")
    print(f"output  {found.output.url}\nreport  {directory}/report.html")
    return DONE


def _through_prefect(config: RunConfig, server: EmbeddedServer | None) -> dict:
    """Run the flow; the server starts while Prefect is imported."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # errors are told here, once
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "pipeline")
    from httpx import HTTPError  # noqa: PLC0415 - see above

    from flows.inference import infer_volume  # noqa: PLC0415 - see above
    from flows.server import prefect_api  # noqa: PLC0415 - see above

    if server:
        server.keep_log(Path(f"{config.output.url}.run") / "prefect.log")
    with prefect_api(server=server) as url:
        try:
            return infer_volume(config)
        except RuntimeError as error:  # what Prefect makes of a connection that is refused
            if not isinstance(error.__cause__, HTTPError):
                raise
            raise PipelineError(
                f"Prefect's server at '{url}' cannot be reached ({error.__cause__}). Start it or correct PREFECT_API_URL; "
                "where none is configured, a run brings its own. Nothing was computed."
            ) from error


@app.command
def verify(config: Config, *, set_: Overrides = None) -> int:
    """Compare every stored byte of the output with the ledger; tiles that differ are marked, and a run mends them."""
    from pipeline import stages  # noqa: PLC0415 - see above

    found = stages.verify(_read(config, set_))
    print(f"verified: {found.valid} of {found.tiles} tiles, {found.objects} objects")
    return DONE


@app.command
def inspect(path: Annotated[str, Parameter(help="A Zarr store, or a checkpoint.")]) -> int:
    """Print what a store or a checkpoint is: shape, chunks, axes; stride, receptive radius, parameters, arithmetic."""
    from pipeline.inspection import inspect_path  # noqa: PLC0415 - see above

    _print_rows(inspect_path(path))
    return DONE


@app.command
def train(config: Config, *, set_: Overrides = None) -> int:
    """Train a network; writes checkpoint.safetensors and metrics.json into the recipe's output folder."""
    from flows.training import train_network  # noqa: PLC0415 - see above

    checkpoint = train_network(config, set_ or ())
    print(f"checkpoint  {checkpoint}\nmetrics     {checkpoint.parent / 'metrics.json'}")
    return DONE


def _read(path: Path, overrides: list[str] | None) -> RunConfig:
    from pipeline.config import RunConfig, read_config  # noqa: PLC0415 - see above

    return read_config(RunConfig, path, overrides or ())


def _print_plan(found, expectation=None) -> None:  # noqa: ANN001 - a Plan and an Expectation, not imported here
    from pipeline.report import expectation_rows, plan_rows  # noqa: PLC0415 - see above

    _print_rows([*plan_rows(found), *(expectation_rows(expectation) if expectation else [])])


def _print_rows(rows: list[tuple[str, str]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - see above
    from rich.table import Table  # noqa: PLC0415 - see above

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    width = None if sys.stdout.isatty() else 200  # a log need not fold rows
    Console(markup=False, highlight=False, width=width).print(table)


def main() -> None:
    """Run the command and leave with its exit status. SIGTERM ends it as Ctrl-C does: in order."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(status(lambda: app(exit_on_error=False, print_error=True, result_action="return_value")))


def status(command: Callable[[], int | None]) -> int:
    """The exit status of a command; errors raised on purpose are told without a traceback."""
    try:
        return command() or DONE
    except CycloptsError:
        return REFUSED
    except VerificationError as error:
        return _told("verification failed", error, UNVERIFIED)
    except REFUSALS as error:
        return _told("refused", error, REFUSED)
    except PipelineError as error:
        return _told("failed", error, FAILED)
    except KeyboardInterrupt:
        print("halotile: interrupted; finished tiles are kept, run again to resume", file=sys.stderr)
        return INTERRUPTED


def _told(word: str, error: PipelineError, code: int) -> int:
    print(f"halotile: {word}: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()

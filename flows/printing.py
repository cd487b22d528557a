"""What the commands print: rows, a plan, the end of a run, a bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.core.printable import lines, one_line
from pipeline.places.credentials import redacted

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.dataset.outcome import Outcome
    from pipeline.dataset.settings import DatasetConfig
    from pipeline.dataset.summary import Summary


def say(*rows: str, error: bool = False) -> None:
    """Print rows, one line each: what files, models and volumes are called acts on no terminal, and begins no line."""
    text = "\n".join(one_line(redacted(row)) for row in rows)
    print(text, file=sys.stderr if error else sys.stdout, flush=error)


def message_of(error: object) -> str:
    """What is told of an error, or of anything of several lines: escaped like that, the lines after the first indented."""
    return lines(redacted(str(error)))


def print_plan(plan: Any, expectation: Any = None) -> None:
    """What a run will do, and, where that was measured, how long it will take."""
    from pipeline.reports.rows import expectation_rows, plan_rows  # noqa: PLC0415 - `--help` needs none of it

    print_rows([*plan_rows(plan), *(expectation_rows(expectation) if expectation else [])])


def print_rows(rows: list[tuple[str, str]]) -> None:
    """Names and values, in two columns."""
    from rich.console import Console  # noqa: PLC0415 - `--help` needs none of it
    from rich.table import Table  # noqa: PLC0415 - `--help` needs none of it

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(one_line(name), one_line(redacted(value)))
    width = None if sys.stdout.isatty() else 200  # a log need not fold rows
    Console(markup=False, highlight=False, width=width).print(table)


def print_end(config: RunConfig, content: dict[str, Any]) -> None:
    """What became of a run, and where it lies."""
    directory = f"{config.output.url}.run"
    infer = content["stages"]["infer"]
    verified = content["stages"]["verify"]
    computed = content["computed"]
    done = (
        f"{computed} tile{'s'[: computed != 1]} computed"
        if computed
        else "nothing to compute: all tiles were done already"
    )
    say(
        f"done: {done}; {verified['valid']} of {verified['tiles']} verified; infer {infer['seconds']:.1f} s in all",
        f"output  {config.output.url}",
        f"report  {directory}/report.html",
    )


def print_outcome(outcome: Outcome, summary: Summary) -> None:
    """A line for each volume, as it ends."""
    place = f"{len(summary.outcomes)}/{summary.volumes}"
    detail = outcome.why[:200] or f"{outcome.seconds:.1f} s, version {outcome.fingerprint[:12]}"
    say(f"{place:>9}  {outcome.state:<7}  {outcome.name}  {detail}", error=True)


def print_summary(config: DatasetConfig, summary: Summary) -> None:
    """What became of a dataset, and where it lies."""
    say(f"done: {summary.line()}", f"output   {summary.output}", f"summary  {config.home / 'summary.html'}")


@contextmanager
def bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing in a log; it is moved by what is done, of all."""
    from rich.console import Console  # noqa: PLC0415 - `--help` needs none of it
    from rich.progress import Progress  # noqa: PLC0415 - `--help` needs none of it

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        row = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(row, completed=done, total=total)

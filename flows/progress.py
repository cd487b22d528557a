"""How far a run is: a bar on a terminal, a line now and then in a log, and an artifact on Prefect's page."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from flows.printing import say
from pipeline.core.printable import one_line
from pipeline.inference.session import Advance

log = logging.getLogger("pipeline")

ARTIFACT_SECONDS = 5.0
ARTIFACT_PERCENT = 1.0
"""Updates of the artifact cost the server 10 ms each: they are at least so long, and so far, apart."""

LINE_SECONDS = 15.0


@contextmanager
def following(output: str) -> Iterator[Callable[[Advance], None]]:
    """Gives what the infer stage tells of its advance; must be inside a Prefect run.

    Args:
        output: Path of the output, named in the artifact.
    """
    follower = _Follower(ProgressArtifact("halotile-progress", output), Path(output).name)
    with follower.bar:
        yield follower.tell
    follower.settle()


@contextmanager
def show(output: str) -> Iterator[Callable[[Advance], None]]:
    """As `following`, without Prefect: a bar on a terminal, lines in a log."""
    follower = _Follower(None, Path(output).name)
    with follower.bar:
        yield follower.tell
    follower.settle()


def tell_dashboard(link: str) -> None:
    """Print where Dask shows its workers."""
    say(f"Dask's dashboard: {link}", error=True)


def tell_survey(word: str) -> None:
    """Print how far the survey is."""
    say(word, error=True)


class ProgressArtifact:
    """A bar on the page of a Prefect run, moved some hundred times at most, however many tiles or steps there are.

    Args:
        key: Its name.
        description: What it is of.
    """

    def __init__(self, key: str, description: str) -> None:
        self._artifact: UUID | None = None
        try:
            artifact = create_progress_artifact(progress=0.0, key=key, description=description)
            self._artifact = artifact  # type: ignore[assignment]  # typed as if it might have to be awaited
        except (HTTPError, PrefectException, OSError) as error:  # as below
            log.warning("progress is not shown on Prefect's page: %s: %s", type(error).__name__, error)
        self._moved, self._percent = time.monotonic(), 0.0

    def tell(self, percent: float) -> None:
        """Move it, unless it was moved just now. The end is always told."""
        early = time.monotonic() - self._moved < ARTIFACT_SECONDS or percent - self._percent < ARTIFACT_PERCENT
        if self._artifact is None or (early and percent < 100):
            return
        self._moved, self._percent = time.monotonic(), percent
        try:
            update_progress_artifact(self._artifact, progress=percent)
        except (HTTPError, PrefectException, OSError) as error:  # costs the picture of the advance, not the advance
            log.warning("progress is no longer shown on Prefect's page: %s: %s", type(error).__name__, error)
            self._artifact = None


class _Follower:
    def __init__(self, artifact: ProgressArtifact | None, name: str) -> None:
        self._artifact = artifact
        self._terminal = sys.stderr.isatty()
        self._line_printed = 0.0
        self._last: Advance | None = None
        self._row: TaskID | None = None
        self._name = one_line(name)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("tiles"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not self._terminal,
        )

    def tell(self, advance: Advance) -> None:
        now, self._last = time.monotonic(), advance
        if self._terminal:
            self._move_bar(advance)
        elif now - self._line_printed > LINE_SECONDS:
            self._line_printed = now
            say(_line(self._name, advance), error=True)
        if self._artifact and advance.done < advance.total:  # the end is told once, by `settle`
            self._artifact.tell(100 * advance.done / advance.total)

    def settle(self) -> None:
        """The last word, whatever was throttled."""
        if self._last is not None and not self._terminal:
            say(_line(self._name, self._last), error=True)
        if self._artifact:
            self._artifact.tell(100.0)

    def _move_bar(self, advance: Advance) -> None:
        if self._row is None:
            self._row = self.bar.add_task(self._name, total=advance.total, completed=advance.done - 1, rate="")
        self.bar.update(self._row, completed=advance.done, rate=_rate(advance))


def _rate(advance: Advance) -> str:
    return f"{advance.voxels / max(advance.seconds, 1e-9) / 1e6:.2f} Mvoxel/s"


def _line(name: str, advance: Advance) -> str:
    seconds = advance.seconds * (advance.total - advance.done) / max(advance.computed, 1)
    return f"{name}: {advance.done} of {advance.total} tiles, {_rate(advance)}, about {seconds:.0f} s left"

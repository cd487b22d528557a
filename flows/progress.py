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

from pipeline.inference import Advance

log = logging.getLogger("pipeline")

ARTIFACT_SECONDS = 5.0
"""An update of the artifact costs the server 10 ms and a row."""

LINE_SECONDS = 15.0


@contextmanager
def following(output: str) -> Iterator[Callable[[Advance], None]]:
    """Gives what the infer stage tells of its advance; must be inside a Prefect run.

    Args:
        output: Path of the output, named in the artifact.
    """
    artifact = create_progress_artifact(progress=0.0, key="halotile-progress", description=output)
    follower = _Follower(artifact, Path(output).name)  # type: ignore[arg-type]
    with follower.bar:
        yield follower.tell
    follower.settle()


@contextmanager
def shown(output: str) -> Iterator[Callable[[Advance], None]]:
    """The same without Prefect: a bar on a terminal, lines in a log."""
    follower = _Follower(None, Path(output).name)
    with follower.bar:
        yield follower.tell
    follower.settle()


def tell_dashboard(link: str) -> None:
    """Print where Dask shows its workers."""
    print(f"Dask's dashboard: {link}", file=sys.stderr, flush=True)


class _Follower:
    def __init__(self, artifact: UUID | None, name: str) -> None:
        self._artifact: UUID | None = artifact
        self._terminal = sys.stderr.isatty()
        self._said_artifact = self._said_line = 0.0
        self._last: Advance | None = None
        self._row: TaskID | None = None
        self._name = name
        self.bar = Progress(
            TextColumn("{task.description}"),
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
        elif now - self._said_line > LINE_SECONDS:
            self._said_line = now
            print(_line(self._name, advance), file=sys.stderr, flush=True)
        if now - self._said_artifact > ARTIFACT_SECONDS:
            self._said_artifact = now
            self._update_artifact(100 * advance.done / advance.total)

    def settle(self) -> None:
        """The last word, whatever was throttled."""
        if self._last is not None and not self._terminal:
            print(_line(self._name, self._last), file=sys.stderr, flush=True)
        self._update_artifact(100.0)

    def _update_artifact(self, percent: float) -> None:
        """A server that cannot be reached costs the picture of the advance, not the advance."""
        if self._artifact is None:
            return
        try:
            update_progress_artifact(self._artifact, progress=percent)
        except (HTTPError, PrefectException, OSError) as error:
            log.warning("progress is no longer shown on Prefect's page: %s: %s", type(error).__name__, error)
            self._artifact = None

    def _move_bar(self, advance: Advance) -> None:
        if self._row is None:
            self._row = self.bar.add_task(self._name, total=advance.total, completed=advance.done - 1, rate="")
        self.bar.update(self._row, completed=advance.done, rate=_rate(advance))


def _rate(advance: Advance) -> str:
    return f"{advance.voxels / max(advance.seconds, 1e-9) / 1e6:.2f} Mvoxel/s"


def _line(name: str, advance: Advance) -> str:
    seconds = advance.seconds * (advance.total - advance.done) / max(advance.computed, 1)
    return f"{name}: {advance.done} of {advance.total} tiles, {_rate(advance)}, about {seconds:.0f} s left"

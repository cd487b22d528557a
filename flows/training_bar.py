"""How far a training run is: a bar on a terminal, a line now and then in a log. Knows nothing of Prefect."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pipeline.stages.learn import Advance

LINE_SECONDS = 15.0


class TrainingBar:
    """Tells each advance. It may be sent to the process that trains."""

    def __init__(self) -> None:
        self.moved = False
        self._bar: Progress | None = None
        self._rows: dict[str, TaskID] = {}
        self._printed = 0.0

    def __getstate__(self) -> dict[str, object]:
        """An empty one: a terminal's bar is no thing to send."""
        return {"moved": False, "_bar": None, "_rows": {}, "_printed": 0.0}

    def __call__(self, advance: Advance) -> None:
        """Tell one."""
        self.moved = True
        last = advance.done == advance.total
        if sys.stderr.isatty():
            self._move(advance)
            if last and self._bar and advance.phase == "training":
                self._bar.stop()
        elif last or time.monotonic() - self._printed > LINE_SECONDS:
            self._printed = time.monotonic()
            print(_line(advance), file=sys.stderr, flush=True)

    def _move(self, advance: Advance) -> None:
        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
            )
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._bar.start()
        if advance.phase not in self._rows:
            start = 0 if advance.phase == "preparing" else max(advance.done - 10, 0)
            self._rows[advance.phase] = self._bar.add_task(
                advance.phase, total=advance.total, completed=start, detail=""
            )
        self._bar.update(self._rows[advance.phase], completed=advance.done, detail=_detail(advance))

    def stop(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def _detail(advance: Advance) -> str:
    if advance.phase != "training":
        return "voxels of labels"
    metrics = "".join(f", {name} {value:.4f}" for name, value in advance.metrics.items() if "threshold" not in name)
    return f"loss {advance.loss:.4f}{metrics}, {advance.samples_per_second:.2f} samples/s"


def _line(advance: Advance) -> str:
    left = ""
    if advance.phase == "training" and advance.seconds_left is not None:
        left = f", about {advance.seconds_left:.0f} s left"
    return f"{advance.phase}: {advance.done} of {advance.total}, {_detail(advance)}{left}"

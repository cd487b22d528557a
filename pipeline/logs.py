"""What the pipeline logs, in `OUTPUT.run/run.log`: a record a line, with run, stage, tile and worker where they are known.

A record knows where it comes from in one of three ways, the first that says something:

    what it carries itself    `about(tile=3, worker="1").debug(...)`; a worker's, which arrive through Dask, say all four
    the context               that a stage set by `logged`; two runs in two threads of one process keep apart by it
    the log that is open      for records of threads that know nothing

The context is a context variable, since a record reaches its handler through the standard library, which takes no argument of ours.
"""

from __future__ import annotations

import copy
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from pipeline.config import LogConfig
from pipeline.core.printable import json_escaped, lines, one_line
from pipeline.places.credentials import redacted

log = logging.getLogger("pipeline")

FIELDS = ("run", "stage", "tile", "worker")

IN_FULL = 20
"""Tiles that fail in a row, with none done between, of which each is told; of more only their number."""

_present: ContextVar[dict[str, str]] = ContextVar("pipeline.logs.present")


@contextmanager
def logged(path: Path, config: LogConfig, *, run: str, stage: str) -> Iterator[None]:
    """Send what the pipeline logs to a file too, and last why the stage ended, where it did not end well.

    A file that cannot be written, on a full disk, is left alone: it must not bury what it causes.

    Args:
        path: Appended to; made with the first record, in a folder that must be there.
        config: Level and format.
        run: Name of the output.
        stage: plan, survey, infer, verify or report.
    """
    handler = _RunLog(path, config, {"run": run, "stage": stage})
    before = _present.set(handler.present)
    _open_logs.add(handler)
    try:
        yield
    except BaseException as error:
        handler.tell_end(error)
        raise
    finally:
        _open_logs.remove(handler)
        _present.reset(before)
        with suppress(OSError):
            handler.close()


def about(**fields: str | int) -> logging.LoggerAdapter[logging.Logger]:
    """The pipeline's logger, whose records say what they are about: `tile`, `worker`; on a worker also `run`, `stage`."""
    return logging.LoggerAdapter(log, fields)


class FailedTiles:
    """Tells failures of tiles: of those in a row, `IN_FULL` by name and the rest by number.

    A volume whose input is gone has as many failures as tiles; the ledger holds each.
    """

    def __init__(self) -> None:
        self.in_a_row = 0

    def tell(self, tile: int, error: str) -> None:
        self.in_a_row += 1
        if self.in_a_row <= IN_FULL:
            about(tile=tile).error("%s", error)

    def end_row(self) -> None:
        """A tile was done, or none is left."""
        if self.in_a_row > IN_FULL:
            log.error("%d more tiles failed in that row; the ledger names them", self.in_a_row - IN_FULL)
        self.in_a_row = 0


# --- the handler --------------------------------------------------------------------------------------------------------


class _RunLog(logging.FileHandler):
    """Writes the records of one stage of one run."""

    def __init__(self, path: Path, config: LogConfig, present: dict[str, str]) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self.present = present
        self.setLevel(config.level.upper())
        self.setFormatter(_JsonLine() if config.format == "json" else _TextLine())

    def emit(self, record: logging.LogRecord) -> None:
        known = _with_fields(record, self.present)
        if vars(known)["run"] == self.present["run"]:
            with suppress(OSError):  # it may not be opened
                super().emit(known)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        if not isinstance(sys.exception(), OSError):
            return super().handleError(record)
        stream = self.stream
        self.stream = None  # opened anew by the next record
        with suppress(OSError):
            if stream is not None:
                stream.close()
        return None

    def tell_end(self, error: BaseException) -> None:
        """Straight into the file: whoever calls the stage tells the error elsewhere."""
        first = str(error).split("\n")[0]
        text = f"ended by {type(error).__name__}{': ' * bool(first)}{first}"
        self.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, text, (), None))


def _with_fields(record: logging.LogRecord, otherwise: dict[str, str]) -> logging.LogRecord:
    """A copy that says where it comes from: other handlers take the record as it was."""
    known = copy.copy(record)
    known.__dict__.update({**otherwise, **_present.get({}), **_fields(record)})
    return known


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Those that it has, in the order of `FIELDS`."""
    return {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}


class _OpenLogs:
    """The logs that are open in this process; the logger lets through what any of them wants, and what it did before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handlers: list[logging.Handler] = []
        self._level_before = self._passed_before = logging.NOTSET
        self._last_resort: logging.Handler | None = None

    def add(self, handler: logging.Handler) -> None:
        with self._lock:
            if not self._handlers:
                self._begin()
            self._handlers.append(handler)
            log.addHandler(handler)
            log.setLevel(min(self._passed_before, *(opened.level for opened in self._handlers)))

    def remove(self, handler: logging.Handler) -> None:
        with self._lock:
            self._handlers.remove(handler)
            log.removeHandler(handler)
            levels = [opened.level for opened in self._handlers]
            log.setLevel(min(self._passed_before, *levels) if levels else self._level_before)
            if not levels and self._last_resort:
                log.removeHandler(self._last_resort)

    def _begin(self) -> None:
        self._level_before, self._passed_before = log.level, log.getEffectiveLevel()
        self._last_resort = None if log.hasHandlers() else logging.lastResort
        if self._last_resort:  # warnings go to the terminal where nobody takes them; a file must not end that
            log.addHandler(self._last_resort)


_open_logs = _OpenLogs()


# --- lines --------------------------------------------------------------------------------------------------------------


class _TerminalLine(logging.Formatter):
    """The message; it may have several lines, and what is in it acts on no terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return lines(redacted(super().format(record)))


class _TextLine(logging.Formatter):
    """`2026-11-22T18:00:00.125Z DEBUG infer tile=12 worker=n1-3: done in 3.1 s`; the run is that of the folder.

    One line a record, whatever names of files hold; a traceback follows, indented.
    """

    def format(self, record: logging.LogRecord) -> str:
        where = [
            value if name == "stage" else f"{name}={value}" for name, value in _fields(record).items() if name != "run"
        ]
        whole = super().format(record)
        message, traceback = redacted(record.message), redacted(whole[len(record.message) :]).lstrip("\n")
        head = f"{' '.join([_time(record), record.levelname, *where])}: {message}"
        return "\n".join([one_line(head), *(f"    {one_line(line)}" for line in traceback.split("\n") if traceback)])


class _JsonLine(JsonFormatter):
    """One object: time, level, run, stage, tile, worker, message; what is not known is left out."""

    def __init__(self) -> None:
        super().__init__(json_ensure_ascii=False)

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        fields = {"time": _time(record), "level": record.levelname, **_fields(record), "message": record.message}
        for name, value in {**fields, **message_dict}.items():
            log_data[name] = redacted(value) if isinstance(value, str) else value

    def format(self, record: logging.LogRecord) -> str:
        return json_escaped(super().format(record))


def _time(record: logging.LogRecord) -> str:
    """UTC, ISO 8601, to the millisecond."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


if logging.lastResort:  # what Python shows of warnings that no handler takes, whether a log is open or none
    logging.lastResort.setFormatter(_TerminalLine())

"""A process that has imported everything, and runs the command in children that end, or whose files fail, at one event.

An event is something that a run does to a file of its own: opening, writing, flushing, renaming, removing one, making a folder. So
a run has as many moments at which to fail as it has events, and each is tried without a second of luck. Workers and their cluster
are left out: tiles are computed one after the other by the driver itself, which is given the real worker's function.

    python -m tests.faults.zygote [dataset], then a JSON object a line:
        {"arguments": ["run", YAML], "below": [FOLDERS], "at": N or null, "count": 1,
         "fault": "kill" | "cut" | NAME OF A SIGNAL | NAME OF AN ERRNO}
    gives one back:
        {"status": N or null where it was killed, "events": [...], "said": "..."}
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import flows.progress
from flows.commands import running
from flows.commands.app import _terminate, app
from flows.commands.status import status as status_of
from pipeline import stages
from pipeline.cluster import survey as worker_survey
from pipeline.cluster import worker
from pipeline.core.assignments import Outcome
from pipeline.inference import session, survey

EXT4_IOC_SHUTDOWN, WITHOUT_LOG = 0x8004587D, 2
"""Linux: the file system stops at once, and what its journal has not on disk is lost, as when the power goes."""


class Faults:
    """Counts the events below some folders, and lets things go wrong at one.

    Args:
        below: The folders.
        at: Number of the event, from 0; None where nothing goes wrong.
        fault: What happens there.
        count: At how many events in a row it does; a disk stays full.
    """

    def __init__(self, below: list[str], at: int | None, fault: str, count: int) -> None:
        self.below = tuple(below)
        self.at, self.fault, self.count = at, fault, count
        self.events: list[str] = []

    def happens(self, what: str, path: object) -> None:
        """One event."""
        place = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        if isinstance(place, bytes) or not place.startswith(self.below) or place.endswith("run.log"):
            return
        number = len(self.events)
        self.events.append(f"{what} {Path(place).name}")
        if self.at is None or not self.at <= number < self.at + self.count:
            return
        if self.fault == "cut":
            handle = os.open(self.below[0].removesuffix("/"), os.O_RDONLY)
            fcntl.ioctl(handle, EXT4_IOC_SHUTDOWN, struct.pack("I", WITHOUT_LOG))
        if self.fault in ("kill", "cut"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, self.fault))
            return
        code = getattr(errno, self.fault)
        raise OSError(code, os.strerror(code), place if what != "fsync" and what != "write" else None)


class _File:
    """An open file whose writes are events."""

    def __init__(self, file: Any, path: Path, faults: Faults) -> None:
        self._file, self._path, self._faults = file, path, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: Any) -> int:
        self._faults.happens("write", self._path)
        return self._file.write(content)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def install(faults: Faults) -> None:
    """Let every event of this process pass through `faults`."""
    opened, fsync, pwrite, ftruncate = Path.open, os.fsync, os.pwrite, os.ftruncate

    def of(handle: Any) -> str:
        number = handle if isinstance(handle, int) else handle.fileno()
        return str(Path(f"/proc/self/fd/{number}").readlink())

    def open_(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        faults.happens(f"open {mode}", path)
        file = opened(path, mode, *arguments, **options)
        return _File(file, path, faults) if set(mode) & set("wa+") else file

    def before(what: str, call: Callable[..., Any], place: Callable[[Any], object]) -> Callable[..., Any]:
        def called(first: Any, *arguments: Any, **options: Any) -> Any:
            faults.happens(what, place(first))
            return call(first, *arguments, **options)

        return called

    Path.open = open_  # type: ignore[method-assign]
    os.fsync = before("fsync", fsync, of)
    os.pwrite = before("write", pwrite, of)
    os.ftruncate = before("truncate", ftruncate, of)
    for name in ("replace", "rename", "unlink", "remove", "mkdir", "scandir", "listdir"):
        setattr(os, name, before(name, getattr(os, name), lambda path: path))


# --- one child ----------------------------------------------------------------------------------------------------------


def serial(
    pool: object,
    work: Any,
    indices: Any,
    *,
    retries: int,
    on_ready: Callable[[], None] = lambda: None,
    is_cancelled: Callable[[], bool],
) -> Iterator[Outcome]:
    """`cluster.dispatch.dispatch` without a cluster."""
    work.prepare()
    on_ready()
    for index in indices:
        yield attempted(work, int(index), retries)


def attempted(work: Any, index: int, retries: int) -> Outcome:
    """A tile, tried as often as it may be."""
    for attempt in range(1, retries + 2):
        try:
            return Outcome(index, attempt, work.compute(index))
        except Exception as error:  # noqa: BLE001 - as the scheduler does
            last = error
    return Outcome(index, retries + 1, error=last)


@contextmanager
def nobody(*_: object, **__: object) -> Iterator[SimpleNamespace]:
    """A pool of no workers."""
    yield SimpleNamespace(workers=1, start_seconds=0.0, client=None)


def alone_with_datasets() -> None:
    """Datasets have no pool either."""
    from pipeline.dataset import reprocess  # noqa: PLC0415 - of campaigns with datasets only

    reprocess.open_pool = nobody
    reprocess.forward = nobody
    reprocess.dashboard_link = lambda *_: None
    reprocess.SharedPool = lambda _: SimpleNamespace(lend=nobody)


def child(job: dict[str, Any], faults: Faults) -> int:
    """Run the command as the job asks; gives its exit status."""
    torch.set_num_threads(1)
    session.dispatch = survey.dispatch = serial
    session._own = nobody
    there = SimpleNamespace(name="0")
    worker.get_worker = worker_survey.get_worker = lambda: there
    if job["arguments"][0] == "reprocess":
        alone_with_datasets()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    install(faults)
    called = [*job["arguments"], *(["--no-prefect"] if job["arguments"][0] in ("run", "reprocess") else [])]
    return status_of(lambda: app(called, exit_on_error=False, print_error=True, result_action="return_value"))


def forked(job: dict[str, Any]) -> dict[str, Any]:
    """A job in a child of its own."""
    ours, theirs = os.pipe()
    said = os.memfd_create("said")
    pid = os.fork()
    if pid == 0:
        os.dup2(said, 1)
        os.dup2(said, 2)
        faults = Faults(job["below"], job.get("at"), job.get("fault", ""), job.get("count", 1))
        try:
            status = child(job, faults)
        except BaseException:  # noqa: BLE001 - what a user would see
            traceback.print_exc()
            status = 70
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(theirs, json.dumps({"status": status, "events": faults.events}).encode()[:60_000])
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as answer:
        content = answer.read()
    os.waitpid(pid, 0)
    os.lseek(said, 0, os.SEEK_SET)
    with os.fdopen(said, errors="replace") as file:
        text = file.read()
    return {**(json.loads(content) if content else {"status": None, "events": []}), "said": text}


def main() -> None:
    """Answer jobs until there are no more."""
    assert stages, running
    app.resolved_commands()  # or each child imports its command's module anew
    assert flows.progress
    if "dataset" in sys.argv:
        running.prepare_prefect()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(forked(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()

"""The run directory beside an output (`OUTPUT.run/`): its artifacts, its ledger and its locks.

Two locks make one writer a tile. `driver.lock` is held by the driver; it names the driver's token. In `tiles.lock` a worker
holds the byte whose number is its tile's while it computes and writes it. So a worker that was cut off, and whose tile was
given to another, is waited for; a driver that starts right after another's death waits until no byte is held; and a worker
that finds another token than its own driver's begins nothing more. The kernel lets go of the locks of a dead process; NFS 4
and Lustre (mounted with `flock`) have them across machines.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, TextIO

from pipeline.core.ledger import Progress, Session, TileRecord, parse_lines
from pipeline.core.plan import Plan
from pipeline.durable import replace
from pipeline.errors import PipelineError, StorageError
from pipeline.locks import is_taken, taken, without_locks
from pipeline.storage.cancel_request import CancelRequest

TAKEOVER_SECONDS = 900.0
SYNC_SECONDS = 1.0

_held: dict[Path, int] = {}
"""Driver locks of this process, by run directory, with how often each was entered."""


_cancelled: set[str] = set()
"""Tokens of drivers of this process that were asked to end."""


class RunDirectory:
    """The run directory of one output.

    Args:
        output: Path of the output store; the directory is `OUTPUT.run`.
    """

    def __init__(self, output: str | Path) -> None:
        self.output = Path(output).resolve()  # one directory, and one lock, whatever links lead to the output
        self.path = self.output.with_name(self.output.name + ".run")
        self.plan_path = self.path / "plan.json"
        self.origin_path = self.path / "origin.json"
        self.ledger_path = self.path / "ledger.jsonl"
        self.log_path = self.path / "run.log"
        self.verification_path = self.path / "verification.json"
        self.report_path = self.path / "report.json"
        self.tiles_lock_path = self.path / "tiles.lock"
        self.cancel = CancelRequest(self.path / "cancel")
        self.jobs_path = self.path / "jobs"

    # --- artifacts --------------------------------------------------------------------------------------------------

    def write(self, path: Path, text: str) -> None:
        """Replace an artifact atomically and durably."""
        replace(path, text.encode(), shared=True)

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        """Replace an artifact of JSON atomically and durably."""
        self.write(path, json.dumps(content, indent=2) + "\n")

    def read_json(self, path: Path) -> dict[str, Any] | None:
        """An artifact, or None where it was not made yet."""
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def load_plan(self) -> Plan | None:
        """The plan, or None where there is none.

        Raises:
            StorageError: There is one that cannot be read.
        """
        if not self.plan_path.is_file():
            return None
        try:
            return Plan.from_json(self.plan_path.read_text(encoding="utf-8"))
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"Plan '{self.plan_path}' cannot be read ({type(error).__name__}: {error}): it was changed by hand or "
                "written by another version. Delete the run directory and the output to start over."
            ) from error

    # --- ledger -----------------------------------------------------------------------------------------------------

    def records(self) -> Iterator[TileRecord | Session]:
        """The ledger, in order; empty where there is none.

        Raises:
            StorageError: It is damaged.
        """
        if not self.ledger_path.is_file():
            return
        with self.ledger_path.open(encoding="utf-8", errors="replace") as file:
            try:
                yield from parse_lines(file)
            except ValueError as error:
                raise StorageError(
                    f"Ledger '{self.ledger_path}' is damaged: {error}. Remove that line: its tile is computed again."
                ) from error

    def progress(self, plan: Plan) -> Progress:
        """What the ledger adds up to for this plan."""
        progress = Progress(len(plan.grid), plan.fingerprint)
        for record in self.records():
            if isinstance(record, TileRecord):
                progress.add(record)
        return progress

    @contextmanager
    def ledger(self) -> Iterator[LedgerWriter]:
        """The ledger, open for the driver to append to. A last line torn by a kill is cut off first."""
        with self.ledger_path.open("ab+", buffering=0) as file:
            _cut_torn_line(file)
            writer = LedgerWriter(file)
            try:
                yield writer
            finally:
                writer.sync()

    # --- locks ------------------------------------------------------------------------------------------------------

    @contextmanager
    def driver(self) -> Iterator[str]:
        """Be the one driver of this output; gives its token. May be entered again within the process.

        Raises:
            StorageError: Another process drives it.
        """
        key = self.path.absolute()
        if key in _held:
            _held[key] += 1
            try:
                yield self.driver_token()
            finally:
                _held[key] -= 1
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "driver.lock").open("a+") as file:
            self._lock_or_refuse(file)
            token = f"{os.getpid()}-{socket.gethostname()}-{uuid.uuid4().hex}"
            file.truncate(0)
            file.write(token)
            file.flush()
            _held[key] = 1
            try:
                yield token
            finally:
                del _held[key]

    def driver_token(self) -> str:
        """Of the present driver, or of the last."""
        return (self.path / "driver.lock").read_text()

    def is_driven(self) -> bool:
        """Whether a driver is at this output now, on this machine or another."""
        try:
            with (self.path / "driver.lock").open("rb") as file:
                return is_taken(file)
        except FileNotFoundError:
            return False

    def ask_to_cancel(self) -> None:
        """Ask the present driver to end; see `heed`."""
        self.write(self.cancel.path, self.driver_token())

    def heed(self, token: str) -> bool:
        """Whether the driver of this token was asked to end since the last look; what was meant for another is swept away."""
        if not self.cancel.is_for(token):
            return False
        _cancelled.add(token)
        return True

    def is_cancelled(self, token: str) -> bool:
        """Whether this process saw that the driver of this token was asked to end."""
        return token in _cancelled

    def _lock_or_refuse(self, file: TextIO) -> None:
        if not taken(file):
            file.seek(0)
            pid, _, rest = file.read().partition("-")
            host = rest.rpartition("-")[0]
            raise StorageError(
                f"Output '{self.output}' is being written by another run (process {pid} on {host}, lock '{file.name}'). "
                "Wait until it ends, end it (`halotile cancel`), or give this run another output.url."
            )

    def wait_for_orphans(self, seconds: float) -> None:
        """Wait until no worker of an earlier driver is at a tile; none begins another, since this driver's token stands.

        Raises:
            StorageError: One still is.
        """
        with self.tiles_lock_path.open("a+") as file:
            if not _locked(file, 0, 0, seconds):
                raise StorageError(
                    f"Workers of an earlier run still write to '{self.output}' after {seconds:.0f} s "
                    f"(lock '{file.name}'). End them, then run again."
                )

    @contextmanager
    def tile(self, index: int, token: str, seconds: float = TAKEOVER_SECONDS) -> Iterator[None]:
        """Hold a tile, as a worker; waits for one that still is at it, though it was given up for lost.

        One tile at a time a process: the kernel keeps these locks by process and file.

        Args:
            index: Of the tile.
            token: Of the driver that gave it.
            seconds: To wait at most.

        Raises:
            StorageError: Another driver has taken over, or the other worker does not end.
        """
        with self.tiles_lock_path.open("a+") as file:
            if not _locked(file, index, 1, seconds):
                raise StorageError(
                    f"Another worker, which was given up for lost, is still at tile {index} of '{self.output}' after "
                    f"{seconds:.0f} s (lock '{file.name}'). End it, then run again."
                )
            if self.driver_token() != token:
                raise StorageError(f"Another driver has taken over '{self.output}': this worker writes nothing more.")
            yield


def _locked(file: TextIO, start: int, length: int, seconds: float) -> bool:
    """Lock bytes of a file for this process, and wait so long for it; length 0: to the end of all numbers.

    Raises:
        StorageError: The file system has no locks.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise without_locks(file.name, error) from error
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        else:
            return True


class LedgerWriter:
    """Appends records. Every line reaches the system at once, and the disk at most a second later."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._synced = time.monotonic()

    def append(self, record: TileRecord | Session) -> None:
        """Append a record.

        Raises:
            PipelineError: It cannot be written; no part of it is left.
        """
        line = record.to_line().encode()
        size = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()
        except OSError as error:
            self._file.truncate(size)
            raise PipelineError(
                f"Ledger '{self._file.name}' cannot be written ({error}): what is done is not recorded any more. Make room "
                "or repair the file system, then run again: tiles recorded so far are kept."
            ) from error

    def sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def _cut_torn_line(file: FileIO) -> None:
    size, reach, tail = file.seek(0, os.SEEK_END), 2**20, b""
    while b"\n" not in tail and len(tail) < size:
        file.seek(max(size - reach, 0))
        tail, reach = file.read(), 2 * reach
    if tail and not tail.endswith(b"\n"):
        file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)

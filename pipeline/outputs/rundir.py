"""The run directory beside an output (`OUTPUT.run/`): its artifacts, its ledger and its locks.

Two locks make one writer a tile. `driver.lock` is held by the driver; it names the driver's token. In `tiles.lock` a worker
holds the byte whose number is its tile's, within those of its stage, while it computes and writes it. So a worker that was cut off, and whose tile was
given to another, is waited for; a driver that starts right after another's death waits until no byte is held; and a worker
that does not find its own driver's token writes nothing more: it looks before it begins a tile, and before each object.

A token ends with its driver, and before: with the infer stage, a second line of `driver.lock` closes the tiles. A driver that was
killed leaves its token behind, but not its lock: a worker looks whether that is held, too. Whichever comes next, a run or `verify`,
puts its own token in that place. `verify` holds all bytes while it looks, so that nobody writes meanwhile. The kernel lets go of
the locks of a dead process; NFS 4 and Lustre (mounted with `flock`) have them across machines.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, TextIO

from pipeline.core.ledger import INFER, TILED, Progress, Record, parse_lines, replay
from pipeline.core.plan import Plan
from pipeline.core.statistics import PartRecord, Statistics
from pipeline.core.stored import Inventory, Stored
from pipeline.core.strict_json import json_text
from pipeline.errors import FileError, StorageError
from pipeline.main_guard import leave_if_run_again
from pipeline.outputs.cancel_request import CancelRequest
from pipeline.outputs.documents import parsed
from pipeline.places.durable import file_error, in_words, make_folder, replace, sweep, sync
from pipeline.places.locks import is_taken, taken, without_locks
from pipeline.volumes.counted import counted
from pipeline.volumes.inventory import from_bytes, to_bytes
from pipeline.volumes.volume import Volume

log = logging.getLogger("pipeline")

TAKEOVER_SECONDS = 900.0
SYNC_SECONDS = 1.0
"""At most, between the writing of a line of the ledger and its flush to the disk."""

LONGEST_LINE = 2**28
"""Characters of a line of the ledger; a tile of a million objects takes a third of it."""

STAGE_BYTES = 2**48
"""Bytes of `tiles.lock` that a stage has: more than any volume has tiles, and room for thousands of stages in a file's offsets."""

CLOSED = "closed"
"""Second line of `driver.lock`, once the driver has no workers any more."""

_warned: set[tuple[Path, int]] = set()
"""Damaged lines of ledgers that this process has warned of."""


class RunDirectory:
    """The run directory of one output.

    Args:
        output: Path of the output store; the directory is `OUTPUT.run`.
    """

    def __init__(self, output: str | Path) -> None:
        self.output = Path(os.path.realpath(output))  # one directory, and one lock, whatever links lead to the output
        self.path = self.output.with_name(self.output.name + ".run")
        self.plan_path = self.path / "plan.json"
        self.origin_path = self.path / "origin.json"
        self.inventory_path = self.path / "input.npz"
        self.statistics_path = self.path / "statistics.json"
        self.survey_path = self.path / "survey.jsonl"
        self.ledger_path = self.path / "ledger.jsonl"
        self.log_path = self.path / "run.log"
        self.verification_path = self.path / "verification.json"
        self.report_path = self.path / "report.json"
        self.network_path = self.path / "model" / "network.safetensors"
        self.mismatch_path = self.path / "mismatch.json"
        self.tiles_lock_path = self.path / "tiles.lock"
        self.cancel = CancelRequest(self.path / "cancel")
        self.jobs_path = self.path / "jobs"
        self._lock_path = self.path / "driver.lock"
        self._sees_locks = True

    # --- artifacts --------------------------------------------------------------------------------------------------

    def write(self, path: Path, content: str | bytes) -> None:
        """Replace an artifact atomically and durably.

        Raises:
            FileError: The system refuses; the old one is there.
        """
        with in_words(path, "be written"):
            replace(path, content.encode() if isinstance(content, str) else content, shared=True)

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        """Replace an artifact of JSON atomically and durably."""
        self.write(path, json_text(content, indent=2) + "\n")

    def read_json(self, path: Path) -> dict[str, Any] | None:
        """An artifact, or None where it was not made yet.

        Raises:
            ValueError: It is empty, cut or damaged.
            FileError: The system refuses to read it.
        """
        with in_words(path, "be read"):
            if not path.is_file():
                return None
            document = parsed(path.read_bytes())
        if document is None:
            raise ValueError("it is no JSON object: empty, cut, or damaged")
        return document

    def load_plan(self) -> Plan | None:
        """The plan, or None where there is none.

        Raises:
            StorageError: There is one that cannot be read.
        """
        if not self.plan_path.is_file():
            return None
        try:
            with in_words(self.plan_path, "be read"):
                return Plan.from_json(self.plan_path.read_text(encoding="utf-8"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StorageError(
                f"Plan '{self.plan_path}' cannot be read ({type(error).__name__}: {error}): it was changed by hand or "
                "written by another version. Delete the run directory and the output to start over."
            ) from error

    def write_inventory(self, inventory: Inventory) -> None:
        """Keep what was counted of the input, atomically and durably; a plan holds its sum."""
        self.write(self.inventory_path, to_bytes(inventory))

    def load_inventory(self, stored: Stored) -> Inventory | None:
        """The inventory whose sum a plan holds; None where it is lost, damaged, or another's."""
        if not self.inventory_path.is_file():
            return None
        with in_words(self.inventory_path):
            inventory = from_bytes(self.inventory_path.read_bytes())
        return inventory if inventory and inventory.stored.signature == stored.signature else None

    def counted(self, plan: Plan, volume: Volume) -> Volume:
        """The input of a plan, which refuses to read as fill what the plan counted as stored.

        Raises:
            StorageError: What was counted is lost.
        """
        if plan.stored is None:
            return volume
        inventory = self.load_inventory(plan.stored)
        if inventory is None:
            raise StorageError(
                f"'{self.inventory_path}' is not what the plan beside it counted of its input: it is lost or damaged. Run `halotile "
                "run` again: it counts anew."
            )
        return counted(volume, inventory)

    def kept_path(self, number: int = 0) -> Path:
        """Where what came of the import of a network is kept; of an ensemble, of its network of that number, from 0."""
        return self.network_path.with_stem(f"network-{number}") if number else self.network_path

    def located(self, plan: Plan) -> Plan:
        """A plan whose networks lie where they are read: those that were imported are kept here."""
        paths = (str(self.kept_path(n)) if one.source else one.checkpoint for n, one in enumerate(plan.model.alone))
        return plan.with_checkpoints(list(paths))

    def checkpoint_path(self, plan: Plan) -> Path:
        """Where the network of a plan lies, of an ensemble the first."""
        return Path(self.located(plan).model.checkpoint)

    # --- survey -----------------------------------------------------------------------------------------------------

    def load_statistics(self) -> Statistics | None:
        """What the survey has measured; None where it has not, or its file is not whole: it can be made again."""
        try:
            content = self.read_json(self.statistics_path)
            return Statistics.from_dict(content) if content else None
        except (ValueError, KeyError, TypeError) as error:
            log.warning("'%s' is passed over, and made again: it is damaged (%s)", self.statistics_path, error)
            return None

    def write_statistics(self, statistics: Statistics) -> None:
        """Write the statistics, atomically and durably; the records of parts are of no more use."""
        self.write(self.statistics_path, statistics.to_json())
        self.drop_parts()

    def drop_parts(self) -> None:
        """Remove the records of parts of passes, and what workers were told of these."""
        self._drop(self.survey_path)
        for path in self.path.glob("norms-*"):
            self._drop(path)

    def drop_survey(self) -> None:
        """Forget what was measured, in whole and in part: it is of other voxels."""
        self.drop_parts()
        self._drop(self.statistics_path)

    def write_norms(self, of: str, numbers: Mapping[str, Any]) -> None:
        """Tell workers the statistics of norms that stand before a pass, under its digest: a file of its own, which is never written over."""
        self.write_json(self._norms_of(of), {"numbers": numbers})

    def load_norms(self, of: str) -> dict[str, Any]:
        """What `write_norms` wrote.

        Raises:
            StorageError: It is not there, or not whole.
        """
        path = self._norms_of(of)
        try:
            content = self.read_json(path)
        except ValueError as error:
            raise StorageError(f"'{path}' is damaged ({error}). Run again: the survey writes it anew.") from error
        if content is None:
            raise StorageError(
                f"'{path}' is not there, which this run's survey wrote: it was removed under the workers."
            )
        numbers: dict[str, Any] = content["numbers"]
        return numbers

    def _norms_of(self, of: str) -> Path:
        return self.path / f"norms-{of[:32]}.json"

    def _drop(self, path: Path) -> None:
        with in_words(path, "be removed"):
            if path.exists():
                path.unlink()
                sync(self.path)

    def parts(self) -> Iterator[PartRecord]:
        """The records of parts of a survey that is not over, in order; damaged lines are passed over: they are measured again."""
        if not self.survey_path.is_file():
            return
        with in_words(self.survey_path, "be read"), self.survey_path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if record := PartRecord.from_line(line):
                    yield record

    # --- ledger -----------------------------------------------------------------------------------------------------

    def records(self) -> Iterator[Record]:
        """The ledger, in order; empty where there is none. A damaged line is passed over, with a warning.

        Raises:
            StorageError: It is of another version.
            FileError: The system refuses to read it.
        """
        if not self.ledger_path.is_file():
            return
        try:
            with self.ledger_path.open(encoding="utf-8", errors="replace", newline="\n") as file:
                yield from parse_lines(iter(lambda: file.readline(LONGEST_LINE), ""), self._warn)
        except ValueError as error:
            raise StorageError(
                f"Ledger '{self.ledger_path}' cannot be read: {error}. A newer version has written it: use that one."
            ) from error
        except OSError as error:
            raise file_error(self.ledger_path, error, "be read") from error

    def _warn(self, number: int, why: str) -> None:
        if (self.ledger_path, number) not in _warned:
            _warned.add((self.ledger_path, number))
            log.warning(
                "line %d of ledger '%s' is damaged (%s) and counts for nothing: where it said that a tile is done, that tile is "
                "computed again",
                *(number, self.ledger_path, why),
            )

    def progress(self, plan: Plan) -> Progress:
        """What the ledger adds up to for this plan."""
        progress = Progress(len(plan.grid), plan.fingerprint)
        replay(self.records(), progress)
        return progress

    def ledger(self) -> AbstractContextManager[LedgerWriter]:
        """The ledger, open for the driver to append to. A last line torn by a kill is cut off first.

        Raises (on entering and leaving):
            FileError: The system refuses; what went wrong before comes first.
        """
        return self._appended(self.ledger_path)

    def survey_ledger(self) -> AbstractContextManager[LedgerWriter]:
        """The same for the records of parts of a survey."""
        return self._appended(self.survey_path)

    @contextmanager
    def _appended(self, path: Path) -> Iterator[LedgerWriter]:
        with in_words(path, "be written"):
            is_new = not path.exists()
            file = path.open("ab+", buffering=0)
        with file:
            with in_words(path, "be written"):
                _cut_torn_line(file)
                if is_new:
                    sync(self.path)
            writer = LedgerWriter(file)
            try:
                yield writer
            except BaseException:
                try:
                    writer.close()
                except FileError as error:
                    log.warning("%s", error)
                raise
            writer.close()

    # --- locks ------------------------------------------------------------------------------------------------------

    @contextmanager
    def driver(self) -> Iterator[Driver]:
        """Be the one driver of this output; who calls stages hands the driver on to them, since nobody else may be another.

        Raises:
            StorageError: Another drives it, in this process or elsewhere.
        """
        leave_if_run_again()
        with in_words(self.path, "be made"):
            make_folder(self.path)
        with in_words(self._lock_path):
            self._lock_path.touch()
            file = self._lock_path.open("r+", encoding="utf-8", errors="replace")
        with file:
            self._lock_or_refuse(file)
            driver = Driver(self, file)
            with in_words():
                _rewrite(file, driver.token)
                sweep(self.path)
            try:
                yield driver
            finally:
                with suppress(OSError):  # what went wrong before comes first
                    _rewrite(file, "")

    def driver_token(self) -> str:
        """Of the present driver; empty once it has ended, and that of the last where it was killed."""
        with in_words(self._lock_path, "be read"):
            return self._lock_path.read_text(encoding="utf-8", errors="replace").split("\n")[0]

    def meet_driver(self, token: str) -> None:
        """As a worker that begins: learn whether locks of the driver's machine reach this one; a warning where they do not.

        Then only tokens are compared here, and one of a driver that was killed stands until the next. On the driver's own machine
        there is nothing to learn: a lock that nobody holds is that of a driver that has ended.
        """
        host = token.partition("-")[2].rpartition("-")[0]
        self._sees_locks = host == socket.gethostname() or self.is_driven()
        if not self._sees_locks:
            log.warning(
                "the lock '%s' of the driver on %s is not seen on %s: the driver has ended, or this file system keeps locks within a "
                "machine. They keep two writers from each other. Mount it with locks between machines (Lustre: -o flock, not "
                "localflock; NFS: without nolock and local_lock)",
                *(self._lock_path, host, socket.gethostname()),
            )

    def refuse_late(self, token: str) -> None:
        """As a worker, before anything is written: end where the driver of this token has no workers any more.

        Raises:
            StorageError: It has ended or was killed, has closed its tiles, or another has taken over.
        """
        with in_words(self._lock_path, "be read"), self._lock_path.open("rb") as file:
            lives = not self._sees_locks or is_taken(file)
            holder = file.read().decode(errors="replace")
        if holder == token and lives:
            return
        why = "Another driver has taken over, or its own has ended"
        if holder == token:
            why = "The driver of this worker was killed"
        elif holder.startswith(token):
            why = "The stage of this worker has ended"
        raise StorageError(f"{why}: output '{self.output}' is left alone, and this worker writes nothing more.")

    def is_driven(self) -> bool:
        """Whether a driver is at this output now, on this machine or another."""
        try:
            with self._lock_path.open("rb") as file:
                return is_taken(file)
        except FileNotFoundError:
            return False

    def ask_to_cancel(self) -> None:
        """Ask the present driver to end; see `Driver.heed`."""
        self.write(self.cancel.path, self.driver_token())

    def _lock_or_refuse(self, file: TextIO) -> None:
        if not taken(file):
            file.seek(0)
            pid, _, rest = file.read().partition("-")
            host = rest.rpartition("-")[0]
            raise StorageError(
                f"Output '{self.output}' is being written by another run (process {pid} on {host}, lock '{file.name}'). "
                "Wait until it ends, end it (`halotile cancel`), or give this run another output.url."
            )

    def _tiles_lock(self) -> TextIO:
        with in_words(self.tiles_lock_path):
            return self.tiles_lock_path.open("a+")

    @contextmanager
    def tiles_at_rest(self, seconds: float) -> Iterator[None]:
        """Hold all tiles, as the driver, so that nobody writes meanwhile; waits for whoever is at one.

        Nothing in here may open `tiles.lock`: the kernel would let go of it when that is closed.

        Raises:
            StorageError: One still is.
        """
        with self._tiles_lock() as file:
            if not _locked(file, 0, 0, seconds):
                raise StorageError(
                    f"Workers of an earlier run still write to '{self.output}' after {seconds:.0f} s "
                    f"(lock '{file.name}'). End them, then run again."
                )
            yield

    @contextmanager
    def tile(self, index: int, token: str, seconds: float = TAKEOVER_SECONDS, *, stage: str = INFER) -> Iterator[None]:
        """Hold a tile, as a worker; waits for one that still is at it, though it was given up for lost.

        One tile at a time a process: the kernel keeps these locks by process and file.

        Args:
            index: Of the tile.
            token: Of the driver that gave it.
            seconds: To wait at most.
            stage: Whose tile it is.

        Raises:
            StorageError: The token is void, or the other worker does not end.
        """
        with self._tiles_lock() as file:
            if not _locked(file, lock_byte(index, stage), 1, seconds):
                raise StorageError(
                    f"Another worker, which was given up for lost, is still at tile {index} of '{self.output}' after "
                    f"{seconds:.0f} s (lock '{file.name}'). End it, then run again."
                )
            self.refuse_late(token)
            yield


def lock_byte(index: int, stage: str = INFER) -> int:
    """The byte of `tiles.lock` that whoever writes a tile holds: no two stages have one in common.

    Raises:
        ValueError: A stage has not as many.
    """
    if not 0 <= index < STAGE_BYTES:
        raise ValueError(f"Tile {index} of stage '{stage}' has no byte of tiles.lock: a stage has {STAGE_BYTES}.")
    return TILED.index(stage) * STAGE_BYTES + index


def _rewrite(file: TextIO, content: str) -> None:
    """In place, since the lock is the file's; written before the rest is cut off, since workers read it meanwhile."""
    new = content.encode()
    os.pwrite(file.fileno(), new, 0)
    os.ftruncate(file.fileno(), len(new))
    os.fsync(file.fileno())  # over NFS nobody else sees it before


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


class Driver:
    """The right to write to an output, which its holder hands on to the stages that it calls; it ends with `RunDirectory.driver`.

    Args:
        directory: Whose driver this is.
        lock: `driver.lock`, open and locked; the first thing that is written there is the token.

    Attributes:
        token: Names this driver to its workers, and to whoever asks it to end.
    """

    def __init__(self, directory: RunDirectory, lock: TextIO) -> None:
        self.directory = directory
        self.token = f"{os.getpid()}-{socket.gethostname()}-{uuid.uuid4().hex}"
        self._lock = lock
        self._cancelled = threading.Event()

    def open_tiles(self) -> None:
        """Let the workers that have the token begin tiles, from now on."""
        self._write(self.token)

    def close_tiles(self) -> None:
        """Let no worker begin a tile, or write an object, from now on. Whoever is at one still may end it."""
        self._write(f"{self.token}\n{CLOSED}")

    def _write(self, content: str) -> None:
        with in_words(Path(self._lock.name), "be written"):
            _rewrite(self._lock, content)

    def heed(self) -> bool:
        """Whether this driver was asked to end since the last look; what was meant for another is swept away."""
        if not self.directory.cancel.is_for(self.token):
            return False
        self._cancelled.set()
        return True

    def is_cancelled(self) -> bool:
        """Whether `heed` saw that this driver was asked to end."""
        return self._cancelled.is_set()


class LedgerWriter:
    """Appends records. Every line reaches the system at once, and the disk a second later, or this raises.

    After a flush that failed nobody knows what the disk has: the system may have dropped what it could not write, and call it
    written the next time. So nothing more is appended. The run ends, and the next one goes by what is there to be read.
    """

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._guard = threading.Lock()
        self._flush: threading.Timer | None = None
        self._error: FileError | None = None

    def append(self, record: Record | PartRecord) -> None:
        """Append a record.

        Raises:
            FileError: It cannot be written, or an earlier one could not be flushed; no part of it is left.
        """
        line = record.to_line().encode()
        with self._guard:
            self._refuse()
            size = self._file.seek(0, os.SEEK_END)
            try:
                if self._file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                self._undo(size)
                raise self._in_words(error) from error
            if self._flush is None:
                self._flush = threading.Timer(SYNC_SECONDS, self._flush_late)
                self._flush.daemon = True
                self._flush.start()

    def ends_with(self, record: Record | PartRecord) -> bool:
        """Whether a record is the last one that was appended whole; an interruption may come on either side of that."""
        line = record.to_line().encode()
        with self._guard:
            end = self._file.seek(0, os.SEEK_END)
            self._file.seek(max(end - len(line), 0))
            return self._file.read() == line

    def close(self) -> None:
        """Flush what was appended.

        Raises:
            FileError: It cannot be flushed, or could not be before.
        """
        with self._guard:
            if self._flush:
                self._flush.cancel()
                self._flush = None
            self._refuse()
            self._sync()
            self._refuse()

    def _flush_late(self) -> None:
        with self._guard:
            if self._flush is not None:  # else it was closed meanwhile
                self._flush = None
                self._sync()

    def _sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self._error = self._in_words(error)

    def _refuse(self) -> None:
        if self._error:
            raise self._error

    def _undo(self, size: int) -> None:
        try:
            self._file.truncate(size)
        except OSError as error:
            self._error = self._in_words(error)

    def _in_words(self, error: OSError) -> FileError:
        return FileError(
            f"Ledger '{self._file.name}' cannot be written ({error.strerror or error}): what is done is not recorded any more. Make "
            "room or repair the file system, then run again: tiles recorded so far are kept."
        )


def _cut_torn_line(file: FileIO) -> None:
    size, reach, tail = file.seek(0, os.SEEK_END), 2**20, b""
    while b"\n" not in tail and len(tail) < size:
        file.seek(max(size - reach, 0))
        tail, reach = file.read(), 2 * reach
    if tail and not tail.endswith(b"\n"):
        file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)

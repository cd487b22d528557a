"""Locks between processes, on whatever machine sees the file. The kernel lets go of them when their process ends, however it ends.

Who holds one holds it alone. Who only looks shares it for an instant, since flock(2) has no question without a lock. So a lock that
is refused is shared by lookers, or held: which of the two, a shared one tells, and lookers are waited for.
"""

from __future__ import annotations

import fcntl
import random
import time
from typing import IO, TextIO

from pipeline.errors import StorageError

LOOKED_AT_SECONDS = 10.0
"""To wait for lookers, at most: each takes microseconds, unless it was stopped in between."""


def taken(file: TextIO) -> bool:
    """Lock an open file for this process alone; False where another has it. Whoever only looks is no other.

    Raises:
        StorageError: The file system has no locks.
    """
    deadline = time.monotonic() + LOOKED_AT_SECONDS
    while not _locked(file, fcntl.LOCK_EX):
        if is_taken(file) or time.monotonic() > deadline:
            return False
        time.sleep(random.uniform(0, 0.002))  # two who begin at once look at one another
    return True


def is_taken(file: IO[str] | IO[bytes]) -> bool:
    """Whether another holds an open file's lock; this process must not hold it by the same file.

    Raises:
        StorageError: The file system has no locks.
    """
    if not _locked(file, fcntl.LOCK_SH):
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _locked(file: IO[str] | IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise without_locks(file.name, error) from error
    return True


def wait_for(file: TextIO) -> None:
    """The same, after whoever has it.

    Raises:
        StorageError: The file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise without_locks(file.name, error) from error


def without_locks(name: str, error: OSError) -> StorageError:
    """The error of a file system that cannot lock a file."""
    return StorageError(
        f"'{name}' cannot be locked ({error}): this file system has no locks between processes. They keep two writers from each "
        "other. Mount it with them (Lustre: -o flock; NFS: version 4, or lockd), or put the folder elsewhere."
    )

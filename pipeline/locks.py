"""Locks between processes, on whatever machine sees the file. The kernel lets go of them when their process ends, however it ends."""

from __future__ import annotations

import fcntl
from typing import TextIO

from pipeline.errors import StorageError


def taken(file: TextIO) -> bool:
    """Lock an open file for this process alone; False where another has it.

    Raises:
        StorageError: The file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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

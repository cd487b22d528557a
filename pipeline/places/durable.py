"""Files that are whole or not there, whatever ends the process or the machine; and what the system refuses, in words.

A file is on disk once it was flushed *and* its folder was: the folder holds its name. So is a folder, once the one above was.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import FileError

PARTS = (".part", ".partial")
"""Endings of what a writer that was killed leaves beside the file that it made; the second is zarr's own."""

_ADVICE = {
    errno.ENOSPC: "Make room there",
    errno.EDQUOT: "Make room there, or ask for a larger quota",
    errno.EROFS: "Mount the file system so that it can be written; one that turned read-only by itself is damaged",
    errno.EACCES: "Change the permissions of the file or of its folders",
    errno.EPERM: "Change the permissions of the file or of its folders",
    errno.EMFILE: "Raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "Close programs that hold many files open",
    errno.ESTALE: "Mount the file system again: its server has lost the file",
    errno.EIO: "See to the disk or its server (`dmesg` says more)",
    errno.ENAMETOOLONG: "Choose a shorter name",
}


def file_error(path: str | Path | None, error: OSError, doing: str = "be read or written") -> FileError:
    """What the system refuses, in words.

    Args:
        path: Of the file; what the error names where None.
        error: What the system said.
        doing: What was tried, after "cannot".
    """
    place = path or error.filename
    name = f"'{place}'" if place else "A file"
    why = error.strerror or str(error) or type(error).__name__
    advice = _ADVICE.get(error.errno or 0, "See to the file system")
    return FileError(f"{name} cannot {doing} ({why}). {advice}, then run again: what is finished is kept.")


@contextmanager
def in_words(path: str | Path | None = None, doing: str = "be read or written") -> Iterator[None]:
    """What the system refuses in here is a `FileError` that names the file.

    Args:
        path: Of the file; what the system names where None.
        doing: What is tried, after "cannot".
    """
    try:
        yield
    except OSError as error:
        raise file_error(path, error, doing) from error


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """An error in here names the file: not the part that was to become it, and not nothing, as one of an open file does."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def replace(path: Path, content: bytes, *, shared: bool = False, permit: Callable[[], None] = lambda: None) -> None:
    """Replace a file atomically and durably.

    Args:
        path: The file.
        content: All of it.
        shared: Others may write it at the same time, and the last one holds. Without, a process that is killed here leaves no more
            than one part-written file, which the next writer takes for itself.
        permit: Called right before the file is replaced; what it raises leaves the old one.

    Raises:
        OSError: The system refuses. The file is the old one or, where its folder could not be flushed, the new one.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part" if shared else f"{path.name}.part")
    try:
        with _about(path), part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        permit()
        with _about(path):
            part.replace(path)
    except Exception:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file durably; one that is not there is removed already.

    Raises:
        OSError: The system refuses.
    """
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return
    sync(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above that are missing, durably.

    Raises:
        OSError: The system refuses.
    """
    missing = [place for place in (folder, *folder.parents) if not place.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing or [folder]:  # one that is there may have been made by somebody who has not flushed it yet
        sync(place.parent)


def sweep(folder: Path) -> None:
    """Remove what killed writers left half-written in a folder. Nobody may be writing there.

    Raises:
        OSError: The system refuses.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix in PARTS and not path.is_dir():
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder: a full disk under the page cache tells nobody before this.

    Raises:
        OSError: The system refuses.
    """
    with _about(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            # file systems without such a flush
            if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
                raise
        finally:
            os.close(handle)

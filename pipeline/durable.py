"""Files that are whole or not there, whatever ends the process or the machine."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def replace(path: Path, content: bytes, *, shared: bool = False) -> None:
    """Replace a file atomically and durably.

    Args:
        path: The file.
        content: All of it.
        shared: Others may write it at the same time, and the last one holds. Without, a process that is killed here leaves no more
            than one part-written file, which the next writer takes for itself.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part" if shared else f"{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder: a full disk under the page cache tells nobody before this."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

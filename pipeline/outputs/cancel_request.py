"""The file that asks a driver to end: `OUTPUT.run/cancel`, which holds the driver's token and nothing else."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

log = logging.getLogger("pipeline")

MOST_BYTES = 1024
"""Of a request; a token has some hundred."""


class CancelRequest:
    """What lies at the place of a request. Whatever that is, looking at it raises nothing.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reasons: set[str] = set()

    def is_for(self, token: str) -> bool:
        """Whether the driver of this token is asked to end. The file is removed once read, for whomever it was.

        What is no request is not heeded: the log says so once, also where the file cannot be removed.
        """
        try:
            content = _content(self.path)
        except FileNotFoundError:
            return False
        except OSError as error:
            self._warn_once(f"it cannot be read ({error.strerror or error})")
            return False
        if content is None:
            self._warn_once(f"it is no text of at most {MOST_BYTES} bytes in a file")
        elif content != token:
            self._warn_once("it does not name this run's driver")
        self._sweep()
        return content == token

    def _sweep(self) -> None:
        try:
            self.path.unlink()
        except FileNotFoundError:  # another look has
            pass
        except OSError as error:
            log.debug("'%s' cannot be removed (%s)", self.path, error)

    def _warn_once(self, why: str) -> None:
        if why not in self._reasons:
            self._reasons.add(why)
            log.warning("'%s' is not heeded: %s. To end a run: halotile cancel", self.path, why)


def _content(path: Path) -> str | None:
    """The text of a small file; None for anything else, which is not read."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe that nobody writes to would hold the one who looks
    try:
        content = os.read(handle, MOST_BYTES + 1) if stat.S_ISREG(os.fstat(handle).st_mode) else b""
    finally:
        os.close(handle)
    try:
        return content.decode("utf-8").strip() if 0 < len(content) <= MOST_BYTES else None
    except UnicodeDecodeError:
        return None

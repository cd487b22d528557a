"""What watchers of an inbox saw so far: one JSON file that they share.

It is replaced as a whole, so a kill leaves the old one or the new one, and under a lock, so that no watcher's looks are lost. The
lock is held while the file is read and written, never while volumes are listed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from pipeline.core.arrival import Observation
from pipeline.core.strict_json import json_text
from pipeline.errors import StorageError
from pipeline.places.durable import make_folder, replace
from pipeline.places.locks import taken

LOCK_SECONDS = 60.0
"""After which a lock is no longer waited for: it is held for milliseconds."""

FORMAT = 1


@dataclass(slots=True)
class Seen:
    """What the file holds.

    Args:
        clocks: The latest time that each clock ever showed, in seconds.
        volumes: Observations by location.
    """

    clocks: dict[str, float] = field(default_factory=dict)
    volumes: dict[str, Observation] = field(default_factory=dict)


class Observations:
    """The file.

    Args:
        path: Where it is kept; a `.lock` lies beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = path.with_name(f"{path.name}.lock")

    def read(self) -> Seen:
        """What it holds now; nothing where it is not there yet.

        Raises:
            StorageError: It cannot be read.
        """
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, not {FORMAT}")
            clocks = {str(clock): float(seconds) for clock, seconds in content["clocks"].items()}
            return Seen(clocks, {url: _observation(**fields) for url, fields in content["volumes"].items()})
        except FileNotFoundError:
            return Seen()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(
                f"Observations '{self.path}' cannot be read ({type(error).__name__}: {error}): changed by hand, or written by another "
                "version. Delete the file: volumes are then waited for anew."
            ) from error

    @contextmanager
    def changing(self) -> Iterator[Seen]:
        """What it holds, to be changed in place; written at the end, unless an error ends it.

        Raises:
            StorageError: It cannot be read or written, or another watcher does not let it go.
        """
        try:
            make_folder(self.path.parent)
            with self._lock.open("a") as lock:
                self._wait(lock)
                seen = self.read()
                yield seen
                content = {
                    "format": FORMAT,
                    "clocks": seen.clocks,
                    "volumes": {url: asdict(one) for url, one in seen.volumes.items()},
                }
                replace(self.path, json_text(content, indent=1).encode())
        except OSError as error:
            raise StorageError(
                f"Observations '{self.path}' cannot be written ({error}). They need a folder that all watchers may write, with locks "
                "(NFS: version 4; Lustre: -o flock), and room."
            ) from error

    def _wait(self, lock: TextIO) -> None:
        until = time.monotonic() + LOCK_SECONDS
        while not taken(lock):
            if time.monotonic() > until:
                raise StorageError(
                    f"Another watcher has held '{self._lock}' for {LOCK_SECONDS:.0f} s. Is it stopped? End it, and look again."
                )
            time.sleep(0.02)


def _observation(signature: str, since: dict[str, float]) -> Observation:
    return Observation(str(signature), {str(clock): float(seconds) for clock, seconds in since.items()})

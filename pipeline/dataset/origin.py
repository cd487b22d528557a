"""What a version was made from: where the voxels lay, and a signature of the files that held them.

A fingerprint knows shapes and settings, not voxels. So what is resumed, or counts as done, is compared with the files as they
are now: tiles of an upload that broke off are not mixed with those of the one that came after it.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.durable import make_folder
from pipeline.errors import StorageError
from pipeline.storage.listing import signature_of
from pipeline.storage.rundir import RunDirectory
from pipeline.storage.volume import open_volume

log = logging.getLogger("pipeline")

MOST_FILES = 1_000_000
"""Of a volume, to list them: some minutes on a parallel file system, and a thousand requests of a store."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where voxels come from.

    Args:
        url: Where they lie.
        files: SHA-256 of places, sizes and times of the files that hold them; empty where it was not kept.
    """

    url: str
    files: str = ""

    def differs(self, other: Origin) -> bool:
        """Whether the files are known to be others; wherever they lie."""
        return bool(self.files and other.files and self.files != other.files)


def origin_of(config: RunConfig) -> Origin:
    """What a run would be made from now. Lists the files of the level that it reads, unless there are too many.

    Raises:
        StorageError: It cannot be opened, or its files may not be listed.
    """
    asked = config.input
    found = open_volume(asked.url, level=asked.level, axes=asked.axes)
    if found.files > MOST_FILES:
        log.warning("%s: its %d files are not listed, so nobody notices when they change meanwhile", asked.url, found.files)
        return Origin(asked.url)
    return Origin(asked.url, signature_of(found.place))


def read_origin(image: Path) -> Origin | None:
    """What the tiles of an image were computed from; None where nothing was computed yet.

    Raises:
        StorageError: It is there and cannot be read.
    """
    directory = RunDirectory(image)
    try:
        said = directory.read_json(directory.origin_path)
        return Origin(said["url"], said["files"]) if said else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"'{directory.origin_path}' does not say what its tiles were computed from ({type(error).__name__}: {error}). "
            f"Delete '{image.parent}' to compute them again."
        ) from error


def write_origin(image: Path, origin: Origin) -> None:
    """Say what the tiles of an image are computed from; before the first is."""
    directory = RunDirectory(image)
    make_folder(directory.path)
    directory.write_json(directory.origin_path, asdict(origin))

"""What a version was made from: where the voxels lay, and a signature of the files that held them.

A fingerprint knows shapes and settings, not voxels. So what is resumed, or counts as done, is compared with the files as they
are now: tiles of an upload that broke off are not mixed with those of the one that came after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.config import RunConfig
from pipeline.core.stored import Inventory
from pipeline.errors import StorageError
from pipeline.outputs.rundir import RunDirectory
from pipeline.places.durable import make_folder
from pipeline.stages import count_input


@dataclass(frozen=True, slots=True)
class Origin:
    """Where voxels come from.

    Args:
        url: Where they lie.
        files: SHA-256 of places, sizes and times of the files that hold them, the signature that a plan keeps too; empty where it
            was not kept.
        inventory: What is stored of them, where it was just counted.
    """

    url: str
    files: str = ""
    inventory: Inventory | None = field(default=None, compare=False, repr=False)

    def differs(self, other: Origin) -> bool:
        """Whether the files are known to be others; wherever they lie."""
        return bool(self.files and other.files and self.files != other.files)


def origin_of(config: RunConfig) -> Origin:
    """What a run would be made from now. Lists the files of the level that it reads; looks at a sample of them where they are too many.

    Raises:
        StorageError: It cannot be opened, its files may not be looked at, or nothing of it is stored.
    """
    _, inventory = count_input(config)
    return Origin(config.input.url, inventory.stored.signature, inventory)


def read_origin(directory: RunDirectory) -> Origin | None:
    """What the tiles of a run were computed from; None where nothing was computed yet.

    Raises:
        StorageError: It is there and cannot be read.
    """
    try:
        content = directory.read_json(directory.origin_path)
        return Origin(content["url"], content["files"]) if content else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"'{directory.origin_path}' does not say what its tiles were computed from ({type(error).__name__}: {error}). "
            f"Delete '{directory.output.parent}' to compute them again."
        ) from error


def write_origin(directory: RunDirectory, origin: Origin) -> None:
    """Say what the tiles of a run are computed from; before the first is."""
    make_folder(directory.path)
    directory.write_json(directory.origin_path, {"url": origin.url, "files": origin.files})

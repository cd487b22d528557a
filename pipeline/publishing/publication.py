"""What readers of a volume's output see, and how they are sent to another version at once.

OUTPUT/versions/FINGERPRINT/NAME.ome.zarr, NAME.ome.zarr.run/, published.json
OUTPUT/current          on a file system: a link to the image of one version (linked.py)
OUTPUT/current.json     on an object store: an object that names one (pointed.py)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from pipeline.core.locations import is_url, protocol
from pipeline.core.versions import Keep, Version
from pipeline.errors import StorageError
from pipeline.outputs.rundir import RunDirectory
from pipeline.places.objects import ATOMIC, ObjectStore, told
from pipeline.publishing.by_link import LinkedPublication, read_link
from pipeline.publishing.by_pointer import PointedPublication, read_pointer
from pipeline.publishing.version_folder import Published


class Publication(Protocol):
    """The versions of one volume, one of which readers see. An object belongs to one thread."""

    output: str
    """`DATASET/NAME`, a path or a URL."""

    folder: Path
    """The local folder of this volume: the output itself, or `STAGING/NAME`."""

    def image(self, fingerprint: str) -> Path:
        """Where the image of a version is computed."""

    def directory(self, fingerprint: str) -> RunDirectory:
        """The run directory of a version."""

    def current(self) -> Published | None:
        """What readers see; None where nothing was published."""

    def versions(self) -> list[Version]:
        """What there is, finished or not, by fingerprint."""

    def publish(self, fingerprint: str, about: Mapping[str, Any]) -> Published:
        """Send readers to a version, at once; refuses one that is not finished and verified."""

    def describe(self, fingerprint: str, ome: Mapping[str, Any]) -> None:
        """Bring the metadata of a published image up to date where readers find it; its voxels stay."""

    def is_kept(self, fingerprint: str) -> bool:
        """Whether a version is whole where readers find it, and its image is there alone."""

    def recall(self, fingerprint: str) -> None:
        """Bring a version's run directory back to where it is computed, where it is not there."""

    def free(self, fingerprint: str) -> None:
        """Remove what a published version needs no more where it was computed."""

    def expire(self, keep: Keep, now: datetime, spare: Collection[str] = ()) -> list[str]:
        """Remove the versions that may go, and return which; never the current one, one that is written, or `spare`."""

    def is_tidy(self, current: str, keep: Keep, now: datetime) -> bool:
        """Whether a look at the local folder finds nothing to free or to expire beside the current version."""

    def discard(self, fingerprint: str) -> None:
        """Remove a version that readers never saw, to begin it anew; refuses one that they did."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Be the one who writes this volume; raises `BusyError` at once where somebody else is. May be entered again."""


def open_publication(output: str, name: str, staging: str | None = None) -> Publication:
    """The publication of one volume: by a link on a file system, by a pointer on an object store.

    Args:
        output: `DATASET/NAME`, a path or a URL.
        name: Of the volume.
        staging: Folder where versions are computed before they go to an object store; not used on a file system.

    Raises:
        StorageError: The store cannot replace an object in one step, its package is not installed, or staging is lacking.
    """
    if not _is_stored(output):
        return LinkedPublication(_path(output), name)
    if staging is None:
        raise StorageError(
            f"Output '{output}' is an object store, and versions are computed on a file system first. Name a staging folder, "
            "which all machines that compute can reach."
        )
    return PointedPublication(output, name, Path(staging) / name)


def read_current(output: str) -> Published:
    """What readers of an output see, of either kind.

    Raises:
        StorageError: Nothing was published there, or it cannot be read.
    """
    if _is_stored(output):
        store = ObjectStore(output)
        with told(store.url, "be read"):
            published = read_pointer(store)
    else:
        published = read_link(_path(output))
    if published is None:
        raise StorageError(
            f"Nothing is published at '{output}': there is no 'current' of a volume's output. Name the output of one volume "
            "(DATASET/NAME), or publish a version first."
        )
    return published


def _is_stored(output: str) -> bool:
    """Whether an output is on an object store.

    Raises:
        StorageError: It is on something that is neither that nor a file system.
    """
    if not is_url(output) or protocol(output) in ("file", "local"):
        return False
    if protocol(output) not in ATOMIC:
        raise StorageError(
            f"Output '{output}' cannot be published to: over {protocol(output)}:// an object is not replaced in one step, and "
            "readers could meet half of one. Use a path, or s3://, gs:// or az://."
        )
    return True


def _path(output: str) -> Path:
    return Path(output.partition("://")[2] if is_url(output) else output).expanduser()

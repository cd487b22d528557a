"""Publishing on a file system: `OUTPUT/current` is a relative symbolic link to the image of one version.

The switch is rename(2) of a link that was made beside it: readers that resolve `current` find the old version or the new one,
never none, whatever ends the publisher. All that the new one holds is durable before.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.core.versions import Keep, Version, expired
from pipeline.errors import StorageError
from pipeline.outputs.rundir import RunDirectory
from pipeline.places.durable import sync
from pipeline.publishing.version_folder import RECORD, VERSIONS, Published, VersionFolder, published_in

LINK = "current"

LOOKS = 20
"""At a link that is switched between two looks."""


class LinkedPublication:
    """The versions of one volume on a file system, one of which readers see.

    Args:
        output: `DATASET/NAME`.
        name: Of the volume.
    """

    def __init__(self, output: Path, name: str) -> None:
        self._there = VersionFolder(output, name)
        self.output = str(self._there.folder)
        self.folder = self._there.folder

    def image(self, fingerprint: str) -> Path:
        return self._there.image(fingerprint)

    def directory(self, fingerprint: str) -> RunDirectory:
        return self._there.directory(fingerprint)

    def current(self) -> Published | None:
        """What readers see. A link whose version was deleted, or is being made again, counts as none."""
        target = _target(self.folder / LINK)
        return None if target is None or _is_gone((self.folder / target).with_name(RECORD)) else read_link(self.folder)

    def versions(self) -> list[Version]:
        return self._there.versions()

    def exclusive(self) -> AbstractContextManager[None]:
        return self._there.exclusive()

    def describe(self, fingerprint: str, ome: Mapping[str, Any]) -> None:
        """Readers read what was computed, and its run has written its metadata."""

    def is_kept(self, fingerprint: str) -> bool:  # noqa: ARG002 - a version is computed where readers find it
        return False

    def recall(self, fingerprint: str) -> None:
        """All of a version is here."""

    def free(self, fingerprint: str) -> None:
        """Readers read what was computed."""

    def publish(self, fingerprint: str, about: Mapping[str, Any]) -> Published:
        """Send readers to a version. What is current already stays as it is.

        Raises:
            StorageError: The version is not finished or not verified, or the file system refuses; readers see what they saw.
            BusyError: Somebody else writes there.
        """
        with self._in_words(f"version {fingerprint} could not be published"), self.exclusive():
            self._there.check_whole(fingerprint)
            now = self.current()
            if now is not None:
                self._there.shown(now.fingerprint)
            if now is not None and now.fingerprint == fingerprint:
                return now
            self._there.announce(fingerprint)
            image = self.image(fingerprint)
            published = Published(fingerprint, str(image), datetime.now(UTC), dict(about))
            self._there.write_record(published)
            self._there.make_durable(fingerprint)
            self._switch(Path(VERSIONS, fingerprint, image.name))
            self._there.shown(fingerprint)
            return published

    def _switch(self, target: Path) -> None:
        for left in self.folder.glob(f".{LINK}-*"):  # of publishers that were killed here
            left.unlink()
        beside = self.folder / f".{LINK}-{uuid.uuid4().hex}"
        beside.symlink_to(target)
        beside.replace(self.folder / LINK)
        sync(self.folder)

    def expire(self, keep: Keep, now: datetime, spare: Collection[str] = ()) -> list[str]:
        """Remove the versions that may go; never the current one, nor one that a run writes to, nor those of `spare`.

        Raises:
            StorageError: One could not be removed, or what is current cannot be determined.
            BusyError: Somebody else writes there.
        """
        with self._in_words("old versions could not be removed"), self.exclusive():
            current = read_link(self.folder)
            going = expired(self.versions(), current.fingerprint if current else None, keep, now, spare)
            gone = [fingerprint for fingerprint in going if not self._there.is_driven(fingerprint)]
            for fingerprint in gone:
                self._there.hide(fingerprint)
            self._there.sweep()
            return gone

    def is_tidy(self, current: str, keep: Keep, now: datetime) -> bool:
        return self._there.is_tidy(current, keep, now)

    def discard(self, fingerprint: str) -> None:
        """Remove a version that readers never saw, to begin it anew.

        Raises:
            StorageError: It was published, or cannot be removed.
            BusyError: Somebody else writes there.
        """
        with self._in_words(f"version {fingerprint} could not be removed"), self.exclusive():
            if self._there.record(fingerprint).is_file() and not self._is_unseen(fingerprint):
                raise self._there.refuse_published(fingerprint)
            self._there.hide(fingerprint)
            self._there.sweep()

    def _is_unseen(self, fingerprint: str) -> bool:
        target = _target(self.folder / LINK)
        is_current = target is not None and target.parts[1] == fingerprint
        return not is_current and self._there.is_unseen(fingerprint)

    @contextmanager
    def _in_words(self, what: str) -> Iterator[None]:
        """Turn what the file system refuses into an error that says what readers see now."""
        try:
            yield
        except OSError as error:
            link = self.folder / LINK
            seen = f"Readers see '{os.readlink(link)}'" if link.is_symlink() else "Readers see nothing yet"  # noqa: PTH115 - as it stands
            raise StorageError(
                f"Output '{self.folder}': {what} ({error}). {seen}. Make room or repair the file system, then do it again."
            ) from error


def read_link(folder: Path) -> Published | None:
    """What `current` leads to; None where nothing was published.

    The link is read once, and looked at again only where its version has gone meanwhile.

    Raises:
        StorageError: It leads to nothing, or is no link of ours.
    """
    folder = folder.absolute()
    left = LOOKS
    while True:
        target = _target(folder / LINK)
        if target is None:
            return None
        image = folder / target
        try:
            record = (image.parent / RECORD).read_bytes()
            published = published_in(record, str(folder), str(image.parent / RECORD))
        except FileNotFoundError:
            published = None
        if published is not None and Path(published.image) == image and image.is_dir():
            return published
        left -= 1
        if left == 0 or _target(folder / LINK) == target:
            raise StorageError(
                f"'{folder / LINK}' leads to '{target}', which is not there as it was published: somebody removed it, or copied the "
                f"output in part. Copy it again; or delete '{VERSIONS}/{target.parts[1]}' there and run again: it is made anew."
            )


def _is_gone(path: Path) -> bool:
    """Whether there is surely nothing: where the file system cannot tell, its error goes up."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    return False


def _target(link: Path) -> Path | None:
    """Where the link leads, relative to its folder; None where there is nothing at its place."""
    if not os.path.lexists(link):
        return None
    target = Path(os.readlink(link)) if link.is_symlink() else None  # noqa: PTH115 - as it stands
    if target is None or len(target.parts) != 3 or target.parts[0] != VERSIONS:
        raise StorageError(
            f"'{link}' is not a link into '{VERSIONS}', as publishing makes them{f', but leads to {target}' if target else ''}. "
            "Move it away, then publish again."
        )
    return target

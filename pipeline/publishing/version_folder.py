"""The local folder of one volume: its versions, each with the run that made it, and the lock of whoever writes there.

    FOLDER/.lock                                   held by the one who writes
    FOLDER/versions/FINGERPRINT/NAME.ome.zarr      the image of a version
    FOLDER/versions/FINGERPRINT/NAME.ome.zarr.run/ its run directory
    FOLDER/versions/FINGERPRINT/published.json     written just before readers are sent to it
    FOLDER/versions/FINGERPRINT/unseen             from before that until they were: nobody can have it open

A version goes in two steps, a rename to a hidden name and the removal of the tree, so that nobody finds half of one. What a
removal that was killed left is swept by the next.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from pipeline.core.versions import Keep, Version, expired
from pipeline.errors import BusyError, StorageError
from pipeline.outputs.documents import stored
from pipeline.outputs.level import DOCUMENT
from pipeline.outputs.metadata import FINGERPRINT_ATTRIBUTE
from pipeline.outputs.rundir import RunDirectory
from pipeline.outputs.store import store_at
from pipeline.places.durable import make_folder, replace, sync
from pipeline.places.locks import taken

FORMAT = 1
"""Of `published.json` and of `current.json`, which are the same document."""

VERSIONS, RECORD, GONE, UNSEEN = "versions", "published.json", ".gone", "unseen"

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
"""Fingerprints and names of volumes: one folder each, never hidden, never above the output."""


@dataclass(frozen=True, slots=True)
class Published:
    """What readers are sent to.

    Args:
        fingerprint: Of its plan.
        image: The image's path or URL; that of one version, so it stays what it is while others are published.
        published: When, with its zone.
        about: What its publisher noted.
    """

    fingerprint: str
    image: str
    published: datetime
    about: Mapping[str, Any] = field(default_factory=dict)


def record_of(version: Published, name: str) -> bytes:
    """The document that says of a version that it was published; the image's place in it is relative to the output."""
    content = {
        "format": FORMAT,
        "fingerprint": version.fingerprint,
        "image": f"{VERSIONS}/{version.fingerprint}/{name}.ome.zarr",
        "published": version.published.isoformat(),
        "about": dict(version.about),
    }
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def published_in(record: bytes, output: str, place: str) -> Published:
    """What such a document says.

    Args:
        record: Its bytes.
        output: Path or URL of the output that it is of.
        place: Where it lies, for the message.

    Raises:
        StorageError: It is none.
    """
    try:
        content = json.loads(record)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        if str(content["image"]).split("/")[:-1] != [VERSIONS, content["fingerprint"]]:
            raise ValueError(f"image '{content['image']}' of version {content['fingerprint']}")
        when = datetime.fromisoformat(content["published"])
        return Published(content["fingerprint"], f"{output}/{content['image']}", when, dict(content["about"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"'{place}' does not say what is published ({type(error).__name__}: {error}): it was changed by hand, or written "
            f"by a newer version than this one, which reads format {FORMAT}. Publish again, or update Halotile."
        ) from error


class VersionFolder:
    """The versions of one volume on a file system. An object of this class belongs to one thread.

    Args:
        folder: `DATASET/NAME`, or `STAGING/NAME`.
        name: Of the volume.
    """

    def __init__(self, folder: Path, name: str) -> None:
        if not _PART.fullmatch(name):
            raise StorageError(
                f"'{name}' cannot be the name of a volume's output. Use letters, digits, '.', '_', '+' and '-', no '.' first."
            )
        self.folder = folder.absolute()
        self.name = name
        self._entered = 0

    def home(self, fingerprint: str) -> Path:
        """The folder of a version."""
        if not _PART.fullmatch(fingerprint):
            raise StorageError(f"'{fingerprint}' is no fingerprint of a version of '{self.folder}'.")
        return self.folder / VERSIONS / fingerprint

    def image(self, fingerprint: str) -> Path:
        return self.home(fingerprint) / f"{self.name}.ome.zarr"

    def directory(self, fingerprint: str) -> RunDirectory:
        """The run directory of a version."""
        return RunDirectory(self.image(fingerprint))

    def record(self, fingerprint: str) -> Path:
        return self.home(fingerprint) / RECORD

    def versions(self) -> list[Version]:
        """What is there, by fingerprint; folders that hold no version of this volume are passed over."""
        root = self.folder / VERSIONS
        names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        return [self._version(name) for name in names if _PART.fullmatch(name) and self._holds_one(name)]

    def _holds_one(self, fingerprint: str) -> bool:
        return self.image(fingerprint).is_dir() or self.directory(fingerprint).path.is_dir()

    def _version(self, fingerprint: str) -> Version:
        paths = [self.directory(fingerprint).plan_path, self.home(fingerprint)]
        begun = next(path for path in paths if path.exists()).stat().st_mtime
        record = self.record(fingerprint)
        published = published_in(record.read_bytes(), str(self.folder), str(record)) if record.is_file() else None
        return Version(fingerprint, datetime.fromtimestamp(begun, UTC), published.published if published else None)

    def check_whole(self, fingerprint: str) -> None:
        """Refuse a version that is not finished and verified.

        Raises:
            StorageError: It is not.
        """
        problem = _unfinished(self.image(fingerprint), fingerprint) or _unverified(
            self.directory(fingerprint), fingerprint
        )
        if problem:
            raise StorageError(
                f"Version {fingerprint} of '{self.folder}' cannot be published: {problem}. Run it to its end and verify it "
                "(`halotile run`), then publish it again. What readers see has not changed."
            )

    def make_durable(self, fingerprint: str) -> None:
        """Flush what a run need not: the names in all folders of a version, and its metadata. Chunks were, one by one."""
        for folder, _, files in os.walk(self.home(fingerprint), topdown=False):
            for path in (*(Path(folder, file) for file in files if file.endswith(".json")), Path(folder)):
                sync(path)
        for above in (self.folder / VERSIONS, self.folder, self.folder.parent):
            sync(above)

    def write_record(self, version: Published) -> None:
        """Say of a version that it was published.

        Raises:
            StorageError: The file system refuses.
        """
        record = self.record(version.fingerprint)
        try:
            replace(record, record_of(version, self.name))
        except OSError as error:
            raise StorageError(
                f"Version {version.fingerprint} could not be published: '{record}' cannot be written ({error}). What readers see "
                "has not changed. Make room or repair the file system, then publish it again."
            ) from error

    def announce(self, fingerprint: str) -> None:
        """Say, before a version's record is written, that readers were not sent to it yet; not of one that has a record."""
        if not self.record(fingerprint).is_file():
            (self.home(fingerprint) / UNSEEN).touch()
            sync(self.home(fingerprint))

    def shown(self, fingerprint: str) -> None:
        """Say that readers were sent to a version. Whoever sends them elsewhere says so first of what is current, for one who was killed."""
        (self.home(fingerprint) / UNSEEN).unlink(missing_ok=True)

    def is_unseen(self, fingerprint: str) -> bool:
        """Whether readers surely were never sent to a version, unless it is the current one."""
        return (self.home(fingerprint) / UNSEEN).exists()

    # --- removal --------------------------------------------------------------------------------------------------------

    def is_driven(self, fingerprint: str) -> bool:
        """Whether a run writes to a version now."""
        return self.directory(fingerprint).is_driven()

    def hide(self, fingerprint: str) -> None:
        """Begin the removal of a version, which `sweep` ends: it is none any more. One that is not there is removed already."""
        home = self.home(fingerprint)
        if home.is_dir():
            home.rename(home.with_name(f"{GONE}-{fingerprint}-{uuid.uuid4().hex}"))
            sync(home.parent)

    def refuse_published(self, fingerprint: str) -> StorageError:
        """The error of a version that cannot be begun anew, since readers may have it open."""
        return StorageError(
            f"Version {fingerprint} of '{self.folder}' is asked for again, but it was published once, and made from files that "
            "have changed since. Where the voxels are the same (only moved, or touched), run once with --moved. Otherwise delete "
            f"'{VERSIONS}/{fingerprint}' in the output, and in the staging folder where there is one, and run again: readers who "
            "have it open lose it."
        )

    def sweep(self) -> None:
        """End the removals that were begun, those of killed processes too."""
        for left in self._begun():
            shutil.rmtree(left)

    def _begun(self) -> list[Path]:
        root = self.folder / VERSIONS
        return [*root.glob(f"{GONE}-*"), *root.glob(f"*/{GONE}-*")]

    def is_tidy(self, current: str, keep: Keep, now: datetime) -> bool:
        """Whether nothing is here that may go, and no removal that was begun."""
        return not self._begun() and not expired(self.versions(), current, keep, now)

    # --- the lock ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Be the one who writes here; ends with the process, however it ends. May be entered again by the same object.

        Raises:
            BusyError: Somebody else is.
            StorageError: The file system has no locks.
        """
        if self._entered:
            self._entered += 1
            try:
                yield
            finally:
                self._entered -= 1
            return
        make_folder(self.folder)
        with (self.folder / ".lock").open("a+") as file:
            _lock_or_refuse(file, self.folder)
            self._entered = 1
            try:
                yield
            finally:
                self._entered = 0


def _lock_or_refuse(file: TextIO, folder: Path) -> None:
    if not taken(file):
        file.seek(0)
        raise BusyError(
            f"Output '{folder}' is being written by another ({file.read() or 'unknown'}, lock '{file.name}'). "
            "Wait until it ends, or end it."
        )
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()


def _unfinished(image: Path, fingerprint: str) -> str | None:
    """What the group's metadata lack, in words."""
    try:
        document = stored(store_at(str(image)), DOCUMENT)
        if document is None:
            return f"'{image}' is no output of a run: there is no '{DOCUMENT}', or it is damaged"
        mark = document["attributes"][FINGERPRINT_ATTRIBUTE]
        own, state = mark["fingerprint"], mark["state"]
    except (OSError, KeyError, TypeError) as error:
        return f"'{image}' is no output of a run ({type(error).__name__}: {error})"
    if own != fingerprint:
        return f"'{image}' says that it was made for {own}"
    return None if state == "complete" else f"'{image}' is {state}"


def _unverified(directory: RunDirectory, fingerprint: str) -> str | None:
    """What the verification lacks, in words."""
    try:
        report = directory.read_json(directory.verification_path)
        if report is None:
            return f"it was not verified: there is no '{directory.verification_path}'"
        if report["fingerprint"] != fingerprint:
            return f"'{directory.verification_path}' is of {report['fingerprint']}"
        return None if report["complete"] is True else f"its verification found {_lacks(report)}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"'{directory.verification_path}' cannot be read ({type(error).__name__}: {error})"


def _lacks(report: dict[str, Any]) -> str:
    tiles, metadata = report["missing"] + report["invalid"], report.get("metadata", ())
    return (
        f"that {tiles} tiles lack"
        if tiles
        else f"its metadata damaged ({metadata[0] if metadata else 'nothing is said'})"
    )

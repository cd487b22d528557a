"""Publishing on an object store: `OUTPUT/current.json` is a small object that names one version.

A version is computed in a folder of a file system, uploaded, read back, and only then named: one PUT, which is atomic. An
upload that was killed goes on: each object is looked at, and sent only where its bytes are not there. The group's metadata go
last, so that until then there is no image for readers of OME-Zarr.

A version goes in steps: it is hidden in the staging folder; in the store go a mark that says so, the group's metadata, all else,
the mark; then what was hidden. What carries a mark is no version any more, and is swept by the next removal.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import file_digest
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core.ledger import TileRecord
from pipeline.core.versions import Keep, Version, expired
from pipeline.errors import StorageError
from pipeline.outputs.level import DOCUMENT
from pipeline.outputs.rundir import RunDirectory
from pipeline.places.durable import PARTS, make_folder, sync
from pipeline.places.durable import replace as durable
from pipeline.places.objects import ObjectStore, told
from pipeline.publishing.version_folder import (
    GONE,
    RECORD,
    VERSIONS,
    Published,
    VersionFolder,
    published_in,
    record_of,
)

log = logging.getLogger("pipeline")

POINTER = "current.json"

PLAN = "plan.json"

ARTIFACTS = (
    PLAN,
    "origin.json",
    "statistics.json",
    "ledger.jsonl",
    "verification.json",
    "report.html",
    "report.json",
    "mismatch.json",
    "slices.png",
    "thumbnail.png",
)
"""Of the run directory: those that are there go up with the image."""

AT_ONCE = 8
"""Objects under way; each may take 100 MB of memory."""

BATCH = 1000
"""Objects that are handed to the threads at once."""

Made = TypeVar("Made")


class PointedPublication:
    """The versions of one volume on an object store, one of which readers see.

    One writer a volume is ensured by a lock in the staging folder: where several machines write a dataset, they share it.

    Args:
        output: URL, `s3://bucket/dataset/NAME`.
        name: Of the volume.
        staging: The folder where versions are computed: `STAGING/NAME`.
    """

    def __init__(self, output: str, name: str, staging: Path) -> None:
        self.output = output.rstrip("/")
        self._there = VersionFolder(staging, name)
        self.folder = self._there.folder
        self._store = ObjectStore(self.output)

    def image(self, fingerprint: str) -> Path:
        return self._there.image(fingerprint)

    def directory(self, fingerprint: str) -> RunDirectory:
        return self._there.directory(fingerprint)

    def exclusive(self) -> AbstractContextManager[None]:
        return self._there.exclusive()

    def current(self) -> Published | None:
        """What readers see. A pointer whose version was deleted, or is being made again, counts as none."""
        with told(self.output, "be read"):
            return self._current()

    def _current(self) -> Published | None:
        published = read_pointer(self._store)
        return published if published and self._is_whole(published.fingerprint) else None

    def _is_whole(self, fingerprint: str) -> bool:
        """Whether all of a version was uploaded: the group's metadata go last, and are removed first."""
        return self._store.read(self._group(fingerprint)) is not None

    def _group(self, fingerprint: str) -> str:
        """The key of an image's own metadata."""
        return f"{VERSIONS}/{fingerprint}/{self.image(fingerprint).name}/{DOCUMENT}"

    def versions(self) -> list[Version]:
        """What is in the staging folder and in the store, by fingerprint; published is what the store says to be."""
        with told(self.output, "be listed"):
            stored = {version.fingerprint: version for version in self._stored()}
        local = {v.fingerprint: Version(v.fingerprint, v.begun) for v in self._there.versions()}
        return [_merged(local.get(name), stored.get(name)) for name in sorted({*local, *stored})]

    def _stored(self) -> Iterator[Version]:
        for name in self._store.children(VERSIONS):
            home = f"{VERSIONS}/{name}"
            if self._store.read(_mark(name)) is not None:
                continue
            if record := self._store.read(f"{home}/{RECORD}"):
                when = published_in(record, self.output, f"{self.output}/{home}/{RECORD}").published
                yield Version(name, when, when)
            elif keys := self._store.sizes(home):  # an upload that was killed
                yield Version(name, self._store.modified(min(keys)))

    # --- publishing -----------------------------------------------------------------------------------------------------

    def publish(self, fingerprint: str, about: Mapping[str, Any]) -> Published:
        """Upload a version and send readers to it. One that is current already is only looked through, and mended.

        Raises:
            StorageError: The version is not finished or not verified, or the store refuses; readers see what they saw.
            BusyError: Somebody else writes it.
        """
        with self.exclusive(), told(self.output, "be published"):
            is_here = self.image(fingerprint).is_dir()
            if is_here:
                self._there.check_whole(fingerprint)
            now = self._current()
            image = f"{self.output}/{VERSIONS}/{fingerprint}/{self.image(fingerprint).name}"
            is_current = now is not None and now.fingerprint == fingerprint
            published = now if now and is_current else Published(fingerprint, image, datetime.now(UTC), dict(about))
            if now:
                self._there.shown(now.fingerprint)
            if is_here:
                self._there.announce(fingerprint)
            self._there.write_record(published)
            if is_here:
                self._upload(fingerprint)
            else:
                self._check_stored(fingerprint)
                # its date tells others' ages
                self._store.write(f"{VERSIONS}/{fingerprint}/{RECORD}", record_of(published, self._there.name))
            if not is_current:
                self._store.write(POINTER, record_of(published, self._there.name))
                self._there.shown(fingerprint)
            return published

    def describe(self, fingerprint: str, ome: Mapping[str, Any]) -> None:
        """Bring the metadata of a published image up to date, in one PUT; its voxels, and what others wrote beside, stay.

        Raises:
            StorageError: The store refuses, or holds no such image.
            BusyError: Somebody else writes it.
        """
        with self.exclusive(), told(self.output, "be described"):
            key = self._group(fingerprint)
            try:
                document = json.loads(self._store.read(key) or b"")
                attributes = document["attributes"]
                attributes["ome"] = {**attributes.get("ome", {}), **ome}
            except (ValueError, KeyError, TypeError) as error:
                raise StorageError(
                    f"'{self.output}/{key}' is no metadata of an image ({error}). Publish the version again."
                ) from error
            self._store.write(key, json.dumps(document, indent=2, allow_nan=False).encode())

    # --- what is in the store alone ---------------------------------------------------------------------------------------

    def is_kept(self, fingerprint: str) -> bool:
        """Whether a version is whole in the store, and its image is there alone."""
        with told(self.output, "be looked at"):
            return not self.image(fingerprint).exists() and self._is_stored(fingerprint)

    def _is_stored(self, fingerprint: str) -> bool:
        """Whether a version is whole in the store, and is not being removed."""
        return self._is_whole(fingerprint) and self._store.read(_mark(fingerprint)) is None

    def recall(self, fingerprint: str) -> None:
        """Bring a version's run directory back to the staging folder, where it is not there: its plan, ledger, reports.

        Only that of a whole version: the ledger of another would say that tiles are done which are nowhere.
        """
        run = self.directory(fingerprint).path
        if run.is_dir():
            return
        with told(self.output, "be recalled"), self.exclusive():
            if not self._is_stored(fingerprint):
                return
            artifacts = {name: self._store.read(f"{VERSIONS}/{fingerprint}/{run.name}/{name}") for name in ARTIFACTS}
            if artifacts[PLAN] is None:
                return
            part = run.with_name(f"{run.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            make_folder(part)
            for name, content in artifacts.items():
                if content is not None:
                    durable(part / name, content)
            part.rename(run)
            sync(run.parent)

    def free(self, fingerprint: str) -> None:
        """Remove the image of a published version from the staging folder; its run directory stays."""
        image = self.image(fingerprint)
        if image.is_dir():
            hidden = image.with_name(f"{GONE}-{uuid.uuid4().hex}")
            image.rename(hidden)
            shutil.rmtree(hidden)

    def _check_stored(self, fingerprint: str) -> None:
        """Compare what is in the store with the ledger, all of it.

        Raises:
            StorageError: It is not what its run wrote.
        """
        prefix = f"{VERSIONS}/{fingerprint}/{self.image(fingerprint).name}"
        vouched = self._vouched(fingerprint, prefix)
        sizes = self._store.sizes(prefix)

        def differs(key: str) -> str | None:
            return None if key in sizes and self._store.digest(key, sizes[key]) == vouched[key] else key

        wrong = [key for key in _in_threads(differs, vouched) if key]
        if wrong or not vouched:
            raise StorageError(
                f"Version {fingerprint[:12]} of '{self.output}' is not in the store as its run wrote it: {len(wrong)} objects differ, "
                f"such as '{wrong[0] if wrong else prefix}'. Delete the version there and in '{self._there.home(fingerprint)}', then "
                "run again. Readers see what they saw."
            )

    def _upload(self, fingerprint: str) -> None:
        home, image = self._there.home(fingerprint), self.image(fingerprint)
        prefix = f"{VERSIONS}/{fingerprint}"
        self._store.delete(_mark(fingerprint))
        sizes = self._store.sizes(prefix)
        files = {f"{prefix}/{path.relative_to(home).as_posix()}": path for path in self._files(fingerprint)}
        group, record = self._group(fingerprint), f"{prefix}/{RECORD}"
        vouched = self._vouched(fingerprint, f"{prefix}/{image.name}")
        _check_present(vouched, files, image)

        def settle(key: str) -> int:
            return self._settle(key, files[key], vouched.get(key), sizes.get(key))

        strangers = [key for key in sizes if key.startswith(f"{prefix}/{image.name}/") and key not in files]
        _in_threads(self._store.delete, strangers)
        sent = sum(_in_threads(settle, [key for key in files if key not in (group, record)]))
        sent += settle(record) + settle(group)
        log.info("version %s: %d objects in '%s', %d of them sent now", fingerprint[:12], len(files), self.output, sent)

    def _files(self, fingerprint: str) -> Iterator[Path]:
        """What goes up, without what killed writers left half-written."""
        image, run = self.image(fingerprint), self.directory(fingerprint).path
        yield from (path for path in sorted(image.rglob("*")) if path.is_file() and path.suffix not in PARTS)
        yield from (path for path in (run / name for name in ARTIFACTS) if path.is_file())
        yield image.parent / RECORD

    def _vouched(self, fingerprint: str, prefix: str) -> dict[str, str]:
        """What the ledger says that each object of the image is, by key: its SHA-256."""
        digests: dict[str, str | None] = {}
        for record in self.directory(fingerprint).records():
            if isinstance(record, TileRecord) and record.state == "done" and record.fingerprint == fingerprint:
                digests.update((f"{prefix}/{unit}", digest) for unit, digest in record.units.items())
        return {key: digest for key, digest in digests.items() if digest}

    def _settle(self, key: str, path: Path, vouched: str | None, size: int | None) -> int:
        """Make sure that an object has its bytes, by reading it back; return how often it was sent: 0 or 1."""
        wanted = vouched or _digest(path)
        length = path.stat().st_size
        if size == length and self._store.digest(key, length) == wanted:
            return 0
        self._store.send(path, key)
        digest = self._store.digest(key, length)
        if digest == wanted:
            return 1
        if _digest(path) != wanted:
            raise StorageError(
                f"'{path}' is not what its run wrote: it has SHA-256 {_digest(path)[:12]}, the ledger says {wanted[:12]}. It was "
                "changed after it was verified: run it again (`halotile run` mends it), then publish it. Readers see what they saw."
            )
        raise StorageError(
            f"'{self.output}/{key}' came back as other bytes than were sent (SHA-256 {digest[:12]}, sent {wanted[:12]}). Publish "
            "again; where it stays so, the store is damaged or something else writes there. Readers see what they saw."
        )

    # --- removal --------------------------------------------------------------------------------------------------------

    def expire(self, keep: Keep, now: datetime, spare: Collection[str] = ()) -> list[str]:
        """Remove the versions that may go, here and there; never the current one, nor one that a run writes to, nor `spare`.

        Raises:
            StorageError: One could not be removed, or what is current cannot be determined.
            BusyError: Somebody else writes there.
        """
        with self.exclusive(), told(self.output, "be rid of old versions"):
            self._sweep()
            current = read_pointer(self._store)
            going = expired(self.versions(), current.fingerprint if current else None, keep, now, spare)
            gone = [fingerprint for fingerprint in going if not self._there.is_driven(fingerprint)]
            for fingerprint in gone:
                self._remove(fingerprint)
            self._there.sweep()
            return gone

    def is_tidy(self, current: str, keep: Keep, now: datetime) -> bool:
        """By the staging folder alone: what only the store has, since that folder was lost, goes after the next switch."""
        return not self.image(current).exists() and self._there.is_tidy(current, keep, now)

    def discard(self, fingerprint: str) -> None:
        """Remove a version that readers never saw, here and there, to begin it anew.

        Raises:
            StorageError: It was published, or cannot be removed.
            BusyError: Somebody else writes there.
        """
        with self.exclusive(), told(self.output, "be rid of an unfinished version"):
            if self._is_whole(fingerprint) and not self._is_unseen(fingerprint):
                raise self._there.refuse_published(fingerprint)
            self._remove(fingerprint)
            self._there.sweep()

    def _is_unseen(self, fingerprint: str) -> bool:
        """By the staging folder: where that was lost, nobody knows, and the version counts as seen."""
        current = read_pointer(self._store)
        return not (current and current.fingerprint == fingerprint) and self._there.is_unseen(fingerprint)

    def _sweep(self) -> None:
        """Finish the removals that were killed in the store. What a run makes anew here meanwhile stays."""
        for name in self._store.children(VERSIONS):
            if self._store.read(_mark(name)) is not None:
                if self.image(name).exists() or self._there.is_driven(name):
                    self._remove_stored(name)
                else:
                    self._remove(name)

    def _remove(self, fingerprint: str) -> None:
        """Remove a version, first here: a run directory alone would say that tiles are done which are nowhere.

        It is only hidden here, and `sweep` removes it: so what a kill leaves in the store is known from here.
        """
        self._there.hide(fingerprint)
        self._remove_stored(fingerprint)

    def _remove_stored(self, fingerprint: str) -> None:
        keys = self._store.sizes(f"{VERSIONS}/{fingerprint}")
        if not keys:
            return
        mark, group = _mark(fingerprint), self._group(fingerprint)
        self._store.write(mark, b"")
        self._store.delete(group)
        _in_threads(self._store.delete, [key for key in keys if key not in (mark, group)])
        self._store.delete(mark)


def read_pointer(store: ObjectStore) -> Published | None:
    """What the pointer of an output names; None where nothing was published.

    Raises:
        StorageError: It cannot be understood.
    """
    record = store.read(POINTER)
    return None if record is None else published_in(record, store.url, f"{store.url}/{POINTER}")


def _mark(fingerprint: str) -> str:
    """The key of what says that a version is being removed."""
    return f"{VERSIONS}/{fingerprint}/{GONE}"


def _merged(local: Version | None, stored: Version | None) -> Version:
    """What is known of a version, of which at least one place has something; a run's own beginning counts."""
    if local and stored:
        return replace(stored, begun=local.begun)
    version = local or stored
    if version is None:
        raise ValueError("A version was asked for that neither this machine nor the store knows.")
    return version


def _check_present(vouched: Mapping[str, str], files: Mapping[str, Path], image: Path) -> None:
    lacking = [key for key in vouched if key not in files]
    if lacking:
        raise StorageError(
            f"'{image}' lacks {len(lacking)} objects that its ledger vouches for, such as '{lacking[0]}': it was changed after it "
            "was verified. Verify it and run it again, then publish it. Readers see what they saw."
        )


def _in_threads(do: Callable[[str], Made], keys: Iterable[str]) -> list[Made]:
    """`do` of each key, several at once; after the first error none is begun."""
    left = iter(keys)
    results: list[Made] = []
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="objects") as pool:
        try:
            while batch := list(islice(left, BATCH)):
                results += pool.map(do, batch)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return results


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()

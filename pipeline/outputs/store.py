"""Where the objects of an output lie, by key: `zarr.json`, `0/c/1/2/3`. Above this, nobody has a path of an output's inside.

What a store promises, so that levels and images need no lock and no second look: an object that was put is on disk, with its
name and all above it, before `put` returns; whatever ends a writer, the old object is there or the new one, never half of one.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from zarr.abc.store import Store as ZarrStore

from pipeline.places import durable
from pipeline.places.durable import PARTS
from pipeline.places.stores import local_store


def checksum(content: bytes) -> str:
    """SHA-256 of stored bytes, as `sha256sum` prints it."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that lies in a store.

    Args:
        key: By which it is found.
        is_folder: Whether it may hold others; only file systems have such.
    """

    key: str
    is_folder: bool = False

    @property
    def name(self) -> str:
        """The last part of its key."""
        return PurePosixPath(self.key).name

    @property
    def is_part(self) -> bool:
        """Whether it is what a killed writer left half-written."""
        return not self.is_folder and PurePosixPath(self.key).suffix in PARTS


class Store(Protocol):
    """Objects by key, put durably. One writer an object at a time; several may write different ones.

    All methods raise OSError where the system refuses, unless they say otherwise.
    """

    @property
    def place(self) -> str:
        """Where it lies, for people."""

    def is_occupied(self) -> bool:
        """Whether anything lies at its place, but an empty store or what a kill left of the first object."""

    def put(self, key: str, content: bytes, permit: Callable[[], None] = lambda: None) -> str:
        """Replace an object, or add it, durably; return its checksum.

        Args:
            key: Of the object.
            content: All of it.
            permit: Called right before the object takes its place; what it raises leaves the old one.
        """

    def get(self, key: str) -> bytes | None:
        """An object; None where there is none."""

    def checksum(self, key: str) -> str | None:
        """Checksum of an object as it lies there; None where there is none, or where the disk has lost it.

        Raises:
            FileError: The system refuses to read it, for another reason than a bad disk.
        """

    def remove(self, key: str, permit: Callable[[], None] = lambda: None) -> None:
        """Remove an object, durably; one that is not there is removed already. Of folders only an empty one goes."""

    def make_folder(self, key: str) -> None:
        """Make what is to hold objects, durably, where the store has folders. `put` makes those that it needs."""

    def children(self, key: str = "") -> Iterator[Entry]:
        """What lies directly below a key; nothing where there is no such folder."""

    def walk(self, key: str) -> Iterator[Entry]:
        """What lies below a key, however deep: of each folder its objects first, then its folders."""

    def as_zarr(self) -> ZarrStore:
        """The same store as zarr takes it, for reading only."""


def store_at(url: str) -> Store:
    """The store of an output."""
    return FolderStore(Path(url))


class FolderStore:
    """A folder of a file system. Links in its way are followed.

    Args:
        root: The folder; it need not be there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._flushed: set[Path] = set()

    @property
    def place(self) -> str:
        """The folder's path."""
        return str(self.root)

    def is_occupied(self) -> bool:
        """As of `Store`."""
        if not self.root.is_dir():
            return self.root.exists() or self.root.is_symlink()
        return any(path.suffix not in PARTS for path in self.root.iterdir())

    def put(self, key: str, content: bytes, permit: Callable[[], None] = lambda: None) -> str:
        """As of `Store`: written beside its place, flushed, renamed; then the folder is flushed."""
        path = self.root / key
        self._make_folder(path.parent)
        durable.replace(path, content, shared=True, permit=permit)
        return checksum(content)

    def get(self, key: str) -> bytes | None:
        """As of `Store`."""
        try:
            return (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def checksum(self, key: str) -> str | None:
        """As of `Store`.

        Raises:
            FileError: The system refuses to read it, for another reason than a bad disk.
        """
        try:
            content = self.get(key)
        except OSError as error:
            if error.errno == errno.EIO:
                return None
            raise durable.file_error(self.root / key, error, "be read") from error
        return None if content is None else checksum(content)

    def remove(self, key: str, permit: Callable[[], None] = lambda: None) -> None:
        """As of `Store`."""
        path = self.root / key
        permit()
        if path.is_dir() and not path.is_symlink():
            path.rmdir()  # refused where somebody keeps something in it
        else:
            durable.remove(path)

    def make_folder(self, key: str) -> None:
        """As of `Store`."""
        self._make_folder(self.root / key)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder durable before anybody speaks of what is in it; each is flushed once by each process.

        One that is there already may have been made a moment ago by another worker, which has not flushed it yet.
        """
        if folder in self._flushed and folder.is_dir():
            return
        if folder != self.root:
            self._make_folder(folder.parent)
        durable.make_folder(folder)
        self._flushed.add(folder)

    def children(self, key: str = "") -> Iterator[Entry]:
        """As of `Store`."""
        folder = self.root / key
        for path in folder.iterdir() if folder.is_dir() else ():
            yield self._entry(path, is_folder=path.is_dir())

    def walk(self, key: str) -> Iterator[Entry]:
        """As of `Store`; links are not followed."""
        for place, folders, names in os.walk(self.root / key):
            yield from (self._entry(Path(place, name), is_folder=False) for name in names)
            yield from (self._entry(Path(place, name), is_folder=True) for name in folders)

    def _entry(self, path: Path, *, is_folder: bool) -> Entry:
        return Entry(path.relative_to(self.root).as_posix(), is_folder)

    def as_zarr(self) -> ZarrStore:
        """As of `Store`."""
        return local_store(self.root, read_only=True)

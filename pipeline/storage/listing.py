"""What lies where, on a file system or an object store: folders, small files, and the stamps of a volume's files.

Nothing is cached, since others change what is there meanwhile, and no voxel is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec

from pipeline.errors import PipelineError, StorageError
from pipeline.storage.objects import code_of, is_remote, is_s3, refusal, s3

_STAMPS = ("ETag", "etag", "md5Hash", "content_md5", "generation", "LastModified", "last_modified", "created", "updated", "mtime")
"""What stores tell of an object that changes when it is written again."""


@dataclass(frozen=True, slots=True)
class Item:
    """Something in a folder.

    Args:
        url: Where it lies.
        folder: A folder, or a prefix of a store; else a file or an object.
        link: A symbolic link.
    """

    url: str
    folder: bool
    link: bool = False

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def children(url: str) -> list[Item] | None:
    """What lies directly in a folder or at a prefix, by name; None where there is no such folder.

    Raises:
        StorageError: It cannot be listed.
    """
    try:
        with _told(url):
            found = _local_children(url) if not is_remote(url) else _remote_children(url)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return sorted(found, key=lambda item: item.name)


def item_at(url: str) -> Item | None:
    """What lies at a location itself; None for nothing.

    Raises:
        StorageError: The store cannot be asked.
    """
    if not is_remote(url):
        return Item(url, os.path.isdir(url), os.path.islink(url)) if os.path.lexists(url) else None  # noqa: PTH112, PTH114 - a `Path` apiece costs as much
    try:
        with _told(url):
            system, path = _system(url)
            return Item(url, system.info(path)["type"] == "directory")
    except FileNotFoundError:
        return None


def small_files(urls: Sequence[str]) -> list[bytes | OSError | None]:
    """The content of each; None where there is none, an error where it is there but may not be read. A store is asked for all at once.

    Raises:
        StorageError: A store cannot be asked.
    """
    found: list[bytes | OSError | None] = [None if is_remote(url) else _local_file(url) for url in urls]
    asked: dict[int, tuple[Any, list[tuple[int, str]]]] = {}
    for i, url in enumerate(urls):
        if is_remote(url):
            with _told(url):
                system, path = _system(url)
            asked.setdefault(id(system), (system, []))[1].append((i, path))
    for system, wanted in asked.values():
        with _told(urls[wanted[0][0]]):
            answers = _contents(system, [path for _, path in wanted], of_s3=is_s3(urls[wanted[0][0]]))
            for (i, _), answer in zip(wanted, answers, strict=True):
                found[i] = _answer(answer)
    return found


def stamps(url: str) -> list[tuple[str, ...]]:
    """One row a file of a volume, by its place in it: place, size, and what changes when it is written. Empty where nothing is there.

    Files on a file system: times of change and of the inode, which copies that keep old times cannot set back.

    Raises:
        StorageError: Something in it may not be listed.
    """
    try:
        with _told(url):
            return sorted(_local_stamps(url) if not is_remote(url) else _remote_stamps(url))
    except (FileNotFoundError, NotADirectoryError):
        return []


def signature_of(url: str) -> str:
    """SHA-256 of the stamps of a volume's files: another one means that something was written.

    Raises:
        StorageError: Something in it may not be listed.
    """
    return hashlib.sha256(json.dumps(stamps(url)).encode()).hexdigest()


# --- a file system ------------------------------------------------------------------------------------------------------


def _local_children(url: str) -> list[Item]:
    with os.scandir(url) as entries:
        return [Item(f"{url.rstrip('/')}/{entry.name}", _is_folder(entry), entry.is_symlink()) for entry in entries]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether something in a folder is one itself. A link that leads round in a circle, or to what may not be looked at, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _local_file(url: str) -> bytes | OSError | None:
    try:
        with open(url, "rb") as file:  # noqa: PTH123 - as above
            return file.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        return error


def _local_stamps(root: str) -> Iterator[tuple[str, ...]]:
    """Links are followed, each folder once. Where something vanishes meanwhile, the rest of its folder is left out: so that look is like no other."""
    waiting, met = [root], set()
    if os.path.isfile(root):  # noqa: PTH113 - as above
        yield _stamp("", os.stat(root))  # noqa: PTH116 - as above
        return
    while waiting:
        try:
            folder = waiting.pop()
            found = os.stat(folder)  # noqa: PTH116 - as above
            if (found.st_dev, found.st_ino) in met:
                continue
            met.add((found.st_dev, found.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        waiting.append(entry.path)
                    else:
                        yield _stamp(entry.path.removeprefix(root).strip("/"), _stat(entry))
        except (FileNotFoundError, NotADirectoryError):
            continue


def _stat(entry: os.DirEntry[str]) -> os.stat_result:
    """Of what a link leads to; of the link itself, where it leads to no file."""
    try:
        return entry.stat(follow_symlinks=entry.is_file())
    except OSError:
        return entry.stat(follow_symlinks=False)


def _stamp(key: str, found: os.stat_result) -> tuple[str, ...]:
    return (key, str(found.st_size), str(found.st_mtime_ns), str(found.st_ctime_ns))


# --- object stores, by fsspec -------------------------------------------------------------------------------------------


def _system(url: str) -> tuple[Any, str]:
    """The store, and the location as it names it."""
    if is_s3(url):
        return s3(), s3()._strip_protocol(url).rstrip("/")
    system, path = fsspec.url_to_fs(url, use_listings_cache=False)
    return system, path.rstrip("/")


def _contents(system: Any, paths: list[str], *, of_s3: bool) -> list[Any]:
    """Objects, or why one could not be had. `cat` would take a `[` for a pattern, and S3's client ask for each size first."""
    return system.cat_ranges(paths, None, None, on_error="return", **({"max_concurrency": 1} if of_s3 else {}))


def _remote_children(url: str) -> list[Item]:
    system, path = _system(url)
    found = [(entry["name"].rstrip("/"), entry["type"] == "directory") for entry in system.ls(path, detail=True)]
    inside = [(name, folder) for name, folder in found if name != path]
    if found and not inside and not found[0][1]:
        raise NotADirectoryError(url)
    return [Item(f"{url.rstrip('/')}/{name.rpartition('/')[2]}", folder) for name, folder in inside]


def _remote_stamps(url: str) -> Iterator[tuple[str, ...]]:
    system, path = _system(url)
    for name, entry in system.find(path, detail=True).items():
        told = (str(entry[key]) for key in _STAMPS if entry.get(key) is not None)
        yield (name.removeprefix(path).strip("/"), str(entry.get("size")), *told)


def _answer(found: Any) -> bytes | OSError | None:
    """One that is not there, or may not be read, says something of a volume; what else goes wrong, of the store."""
    if isinstance(found, FileNotFoundError | NotADirectoryError | IsADirectoryError) and code_of(found) != "NoSuchBucket":
        return None
    if isinstance(found, Exception) and not isinstance(found, PermissionError):
        raise found
    return found


# --- errors -------------------------------------------------------------------------------------------------------------


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Tell what file systems and stores refuse; what is not there is for the caller.

    Raises:
        StorageError: Anything else.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:  # stores raise whatever their clients happen to meet
        absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        if absent and not (is_remote(url) and code_of(error) == "NoSuchBucket"):
            raise
        found = refusal(url, "be listed or read", error) if is_remote(url) else _of_files(url, error)
        if found is None:
            raise
        raise found from error


def _of_files(url: str, error: Exception) -> StorageError | None:
    if not isinstance(error, OSError):
        return None
    return StorageError(f"'{url}' could not be listed or read ({error.strerror or error}). Check the path, and who may read it.")

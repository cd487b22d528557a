"""What lies where, on a file system or an object store: folders, small files, and the stamps of a volume's files.

Nothing is cached, since others change what is there meanwhile, and no voxel is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec.asyn

from pipeline.core.locations import is_s3, is_url
from pipeline.errors import PipelineError, StorageError
from pipeline.places.objects import code_of, is_forbidden, refusal
from pipeline.places.stores import file_system

_STAMPS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "generation",
    "LastModified",
    "last_modified",
    "created",
    "updated",
    "mtime",
    "Content-MD5",
    "Digest",
    "Last-Modified",
)
"""What stores report of an object that changes when it is written again."""

_CONTENT = ("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "Digest")
"""Of these, what a copy of the object has too."""

GONE = (404, 410)
"""Statuses of what is not there."""

PROBES = 32
"""Objects that a store is asked for at once."""


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


@dataclass(frozen=True, slots=True)
class Look:
    """A file or an object, as a listing shows it.

    Args:
        row: Its place in what was looked at, its size, and what changes when it is written.
        mark: Of that, what a copy that keeps what it can has too: the time of change, or the ETag.
    """

    row: tuple[str, ...]
    mark: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.row[0]

    @property
    def size(self) -> int:
        """Bytes; -1 where the store does not say."""
        return int(self.row[1]) if self.row[1].isdecimal() else -1


def children(url: str) -> list[Item] | None:
    """What lies directly in a folder or at a prefix, by name; None where there is no such folder.

    Raises:
        StorageError: It cannot be listed.
    """
    try:
        with _in_words(url):
            items = _local_children(url) if not is_url(url) else _remote_children(url)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return sorted(items, key=lambda item: item.name)


def item_at(url: str) -> Item | None:
    """What lies at a location itself; None for nothing.

    Raises:
        StorageError: The store cannot be asked.
    """
    if not is_url(url):
        return Item(url, os.path.isdir(url), os.path.islink(url)) if os.path.lexists(url) else None  # noqa: PTH112, PTH114 - a `Path` apiece costs as much
    try:
        with _in_words(url):
            system, path = file_system(url)
            return Item(url, system.info(path)["type"] == "directory")
    except FileNotFoundError:
        return None


def small_files(urls: Sequence[str]) -> list[bytes | OSError | None]:
    """The content of each; None where there is none, an error where it is there but may not be read. A store is asked for all at once.

    Raises:
        StorageError: A store cannot be asked.
    """
    contents: list[bytes | OSError | None] = [None if is_url(url) else _local_file(url) for url in urls]
    by_system: dict[int, tuple[Any, list[tuple[int, str]]]] = {}
    for i, url in enumerate(urls):
        if is_url(url):
            with _in_words(url):
                system, path = file_system(url)
            by_system.setdefault(id(system), (system, []))[1].append((i, path))
    for system, wanted in by_system.values():
        with _in_words(urls[wanted[0][0]]):
            answers = _contents(system, [path for _, path in wanted], of_s3=is_s3(urls[wanted[0][0]]))
            for (i, _), answer in zip(wanted, answers, strict=True):
                contents[i] = _answer(answer)
    return contents


def stamps(url: str) -> list[tuple[str, ...]]:
    """One row a file of a volume, by its place in it: place, size, and what changes when it is written. Empty where nothing is there.

    Files on a file system: times of change and of the inode, which copies that keep old times cannot set back.

    Raises:
        StorageError: Something in it may not be listed.
    """
    return [look.row for look in looks(url)]


def looks(url: str) -> list[Look]:
    """The same, with what copies keep.

    Raises:
        StorageError: Something in it may not be listed.
    """
    try:
        with _in_words(url):
            return sorted(_local_looks(url) if not is_url(url) else _remote_looks(url), key=lambda look: look.row)
    except (FileNotFoundError, NotADirectoryError):
        return []


def looks_at(url: str, names: Sequence[str], *, lenient: bool = False) -> list[Look | None]:
    """The same of named objects below a location, which need not be listed for that; None for each that is not there.

    Args:
        url: The location.
        names: Of the objects, below it.
        lenient: An object that a store refuses counts as not there.

    Raises:
        StorageError: The store cannot be asked, or refuses an object.
    """
    if is_url(url):
        with _in_words(url):
            return _remote_looks_at(url, names, lenient=lenient)
    with _in_words(url):
        return [_local_look_at(url, name) for name in names]


def signature_of(url: str) -> str:
    """SHA-256 of the stamps of a volume's files: another one means that something was written.

    Raises:
        StorageError: Something in it may not be listed.
    """
    return signature(looks(url))


def signature(listing: Sequence[Look]) -> str:
    """SHA-256 of a listing."""
    return hashlib.sha256(json.dumps([look.row for look in listing]).encode()).hexdigest()


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


def _local_looks(root: str) -> Iterator[Look]:
    """Links are followed, each folder once. Where something vanishes meanwhile, the rest of its folder is left out: so that look is like no other."""
    waiting, met = [root], set()
    if os.path.isfile(root):  # noqa: PTH113 - as above
        yield _look("", os.stat(root))  # noqa: PTH116 - as above
        return
    while waiting:
        try:
            folder = waiting.pop()
            status = os.stat(folder)  # noqa: PTH116 - as above
            if (status.st_dev, status.st_ino) in met:
                continue
            met.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        waiting.append(entry.path)
                    else:
                        yield _look(entry.path.removeprefix(root).strip("/"), _stat(entry))
        except (FileNotFoundError, NotADirectoryError):
            continue


def _stat(entry: os.DirEntry[str]) -> os.stat_result:
    """Of what a link leads to; of the link itself, where it leads to no file."""
    try:
        return entry.stat(follow_symlinks=entry.is_file())
    except OSError:
        return entry.stat(follow_symlinks=False)


def _local_look_at(root: str, name: str) -> Look | None:
    try:
        return _look(name, os.stat(f"{root.rstrip('/')}/{name}"))  # noqa: PTH116 - as above
    except (FileNotFoundError, NotADirectoryError):
        return None


def _look(key: str, status: os.stat_result) -> Look:
    time = str(status.st_mtime_ns)
    return Look((key, str(status.st_size), time, str(status.st_ctime_ns)), (time,))


# --- object stores, by fsspec -------------------------------------------------------------------------------------------


def _contents(system: Any, paths: list[str], *, of_s3: bool) -> list[Any]:
    """Objects, or why one could not be had. `cat` would take a `[` for a pattern, and S3's client ask for each size first."""
    how = {"max_concurrency": 1} if of_s3 else {}
    answers: list[Any] = system.cat_ranges(paths, None, None, on_error="return", **how)
    return answers


def _remote_children(url: str) -> list[Item]:
    system, path = file_system(url)
    entries = [(entry["name"].rstrip("/"), entry["type"] == "directory") for entry in system.ls(path, detail=True)]
    inside = [(name, folder) for name, folder in entries if name != path]
    if entries and not inside and not entries[0][1]:
        raise NotADirectoryError(url)
    return [Item(f"{url.rstrip('/')}/{name.rpartition('/')[2]}", folder) for name, folder in inside]


def _remote_looks(url: str) -> Iterator[Look]:
    system, path = file_system(url)
    for name, entry in system.find(path, detail=True).items():
        yield _look_of(name.removeprefix(path).strip("/"), entry)


def _look_of(name: str, entry: Mapping[str, Any]) -> Look:
    changing = tuple(str(entry[key]) for key in _STAMPS if entry.get(key) is not None)
    content = tuple(str(entry[key]) for key in _CONTENT if entry.get(key) is not None)
    return Look((name, str(entry.get("size")), *changing), content or changing)


def _remote_looks_at(url: str, names: Sequence[str], *, lenient: bool) -> list[Look | None]:
    system, path = file_system(url)
    paths = [f"{path}/{name}" for name in names]
    if getattr(system, "async_impl", False):
        results = fsspec.asyn.sync(system.loop, _infos, system, paths)
    else:
        results = [_info(system, one) for one in paths]
    answers = [answer if isinstance(answer, Mapping) else _answer(answer) for answer in results]
    for answer in answers:
        if isinstance(answer, Exception) and not lenient:  # one that may not be looked at
            raise answer
    return [
        _look_of(name, answer) if isinstance(answer, Mapping) else None
        for name, answer in zip(names, answers, strict=True)
    ]


async def _infos(system: Any, paths: Sequence[str]) -> list[Any]:
    results: list[Any] = await fsspec.asyn._run_coros_in_chunks(
        [system._info(path) for path in paths], batch_size=PROBES, return_exceptions=True
    )
    return results


def _info(system: Any, path: str) -> Any:
    try:
        return system.info(path)
    except FileNotFoundError as error:
        return error


def _answer(result: bytes | Exception) -> bytes | OSError | None:
    """One that is not there, or may not be read, says something of a volume; what else goes wrong, of the store.

    fsspec says of whatever a server of http answers that it is not there, and gives the answer as the cause.
    """
    cause = result.__cause__ if isinstance(result, FileNotFoundError) else None
    if isinstance(cause, Exception) and getattr(cause, "status", None) not in (None, *GONE):
        result = cause
    if (
        isinstance(result, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        and code_of(result) != "NoSuchBucket"
    ):
        return None
    if isinstance(result, bytes | PermissionError):
        return result
    if is_forbidden(result):
        return PermissionError(*result.args)
    raise result


# --- errors -------------------------------------------------------------------------------------------------------------


@contextmanager
def _in_words(url: str) -> Iterator[None]:
    """Turn what file systems and stores refuse into an error in words; what is not there is for the caller.

    Raises:
        StorageError: Anything else.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:  # stores raise whatever their clients happen to meet
        absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        if absent and not (is_url(url) and code_of(error) == "NoSuchBucket"):
            raise
        storage_error = refusal(url, "be listed or read", error) if is_url(url) else _of_files(url, error)
        if storage_error is None:
            raise
        raise storage_error from error


def _of_files(url: str, error: Exception) -> StorageError | None:
    if not isinstance(error, OSError):
        return None
    return StorageError(
        f"'{url}' could not be listed or read ({error.strerror or error}). Check the path, and who may read it."
    )

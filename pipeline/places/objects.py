"""Object stores: requests to them, and their refusals in words."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pipeline.core.locations import UNLISTED, is_s3, protocol
from pipeline.errors import StorageError
from pipeline.installation import how_to_install
from pipeline.places.credentials import redacted
from pipeline.places.stores import file_system, refuse_unsafe

ATOMIC = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
"""Protocols of stores where an object is replaced in one step: a reader gets the old one or the new one."""

PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs"} | dict.fromkeys(("az", "abfs", "abfss"), "adlfs")
"""What to install for a protocol that no extra brings. No name is guessed from a URL: anybody may take it on the package index."""

PIECE = 2**25
"""Bytes that are read at once where an object is only looked at."""

_OURS = ("botocore", "aiobotocore", "aiohttp", "obstore", "s3fs", "gcsfs", "google", "adlfs", "azure")
"""Packages whose errors are a store's."""


class ObjectStore:
    """The objects below a URL; their keys are relative to it. Methods may be called from several threads.

    Args:
        url: Such as `s3://bucket/dataset/name`.

    Raises:
        StorageError: The URL carries credentials, or the package of its protocol is not installed.
    """

    def __init__(self, url: str) -> None:
        refuse_unsafe(url)
        self.url = url.rstrip("/")
        with told(self.url, "be opened"):
            self._system, self._root = file_system(self.url)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Bytes of each object below a prefix, by key."""
        entries = self._system.find(self._path(prefix), detail=True)
        return {self._key(path): int(entry["size"] or 0) for path, entry in entries.items()}

    def children(self, prefix: str) -> list[str]:
        """Names one step below a prefix."""
        try:
            paths = self._system.ls(self._path(prefix), detail=False)
        except FileNotFoundError as error:
            if code_of(error) == "NoSuchBucket":
                raise
            return []
        return sorted({path.rstrip("/").rpartition("/")[2] for path in paths})

    def _key(self, path: str) -> str:
        return path.removeprefix(f"{self._root}/")

    def read(self, key: str) -> bytes | None:
        """An object; None where there is none."""
        try:
            content: bytes = self._system.cat_file(self._path(key))
        except FileNotFoundError as error:
            if code_of(error) == "NoSuchBucket":
                raise
            return None
        return content

    def digest(self, key: str, size: int) -> str:
        """SHA-256 of an object of so many bytes, read in pieces."""
        digest = hashlib.sha256()
        for start in range(0, size, PIECE):
            digest.update(self._system.cat_file(self._path(key), start=start, end=min(start + PIECE, size)))
        return digest.hexdigest()

    def write(self, key: str, content: bytes) -> None:
        self._system.pipe_file(self._path(key), content)

    def send(self, path: Path, key: str) -> None:
        """Store a file as an object; a large one in parts, which show only when all are there."""
        self._system.put_file(str(path), self._path(key))

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is removed already."""
        try:
            self._system.rm_file(self._path(key))
        except FileNotFoundError as error:
            if code_of(error) == "NoSuchBucket":
                raise

    def modified(self, key: str) -> datetime:
        """When an object was stored."""
        moment: datetime = self._system.modified(self._path(key))
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@contextmanager
def told(url: str, what: str) -> Iterator[None]:
    """Turn what a store refuses into an error in words.

    Args:
        url: Of the store, or in it.
        what: What it should have been or done: `be read`.

    Raises:
        StorageError: It did not.
    """
    try:
        yield
    except Exception as error:
        if (storage_error := refusal(url, what, error)) is None:
            raise
        raise storage_error from error


def _how_to_have(kind: str, detail: str) -> str:
    if kind in ("s3", "s3a"):
        return f". To have it, {how_to_install('s3')}"
    return (
        f". Run: pip install {PACKAGES[kind]}"
        if kind in PACKAGES
        else f" ({detail}). Copy the volume to a path, or to S3."
    )


def refusal(url: str, what: str, error: Exception) -> StorageError | None:
    """What an error of fsspec or of a store's client means; None where it is no such error."""
    failure = f"'{url}' could not {what}"
    kind = protocol(url)
    detail = redacted(_in_short(error))
    if isinstance(error, ImportError):
        return StorageError(f"{failure}: the package for {kind}:// is not installed here{_how_to_have(kind, detail)}")
    if isinstance(error, ValueError) and "Protocol not known" in str(error):
        return StorageError(f"{failure}: {kind}:// is no protocol that fsspec knows. Check the URL.")
    if not isinstance(error, OSError) and not type(error).__module__.startswith(_OURS):
        return None
    if isinstance(error, OSError) and error.filename:
        return StorageError(
            f"{failure}, because of '{error.filename}' here ({error.strerror}). Repair that, then do it again."
        )
    code = code_of(error)
    if code == "NoSuchBucket":
        bucket = url.partition("://")[2].partition("/")[0]
        return StorageError(
            f"{failure}: there is no bucket '{bucket}'. Make it, or check the URL and AWS_ENDPOINT_URL."
        )
    name = code or ("" if type(error).__module__.startswith("obstore") else type(error).__name__)
    why = f"{name}: {detail}" if name else detail
    if is_forbidden(error) or "Credentials" in type(error).__name__:
        return StorageError(f"{failure}: the store refuses it ({why}). {_rights(kind)}")
    if isinstance(error, FileNotFoundError):
        return StorageError(f"{failure}: there is nothing there. {advice(url)}")
    where = "AWS_ENDPOINT_URL" if is_s3(url) else "the URL"
    return StorageError(
        f"{failure}: the store cannot be reached, or failed ({why}). Check {where} and the network, then do it again: what is stored "
        "already stays."
    )


def advice(url: str) -> str:
    """What to do where there is nothing."""
    return f"Check the URL{' and AWS_ENDPOINT_URL' if is_s3(url) else ''}."


def is_forbidden(error: BaseException) -> bool:
    """Whether a store refuses something to whoever asks."""
    refused = {"PermissionDeniedError", "UnauthenticatedError"}  # of obstore, of which not all that is told here is
    return (
        isinstance(error, PermissionError)
        or type(error).__name__ in refused
        or getattr(error, "status", None) in (401, 403)
    )


def _rights(kind: str) -> str:
    if kind in UNLISTED:
        return "It must be public: no user or password is sent to http and https."
    if kind not in ("s3", "s3a"):
        return "Check the credentials of its package, and what they may do there: list, read, and for outputs write and delete."
    return (
        "Check AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do there: list, read, and for outputs "
        "write and delete."
    )


_OF_OBSTORE = re.compile(
    r" in (?P<seconds>[\d.]+)s, after (?P<retries>\d+) retries"
    r"|(?:status code: )(?P<status>\d{3}[\w ]*)"
    r"|- HTTP error: (?P<fault>[^\n]*)"
    r"|<Message>(?P<message>[^<\n]*)"
)


def _in_short(error: Exception) -> str:
    """An error's first line, 200 characters of it; of obstore's, which hold a page of the server and how it was asked, what was met and for how long."""
    text = str(error)
    if not type(error).__module__.startswith("obstore"):
        return (text.splitlines() or [""])[0][:200]
    found: dict[str, str] = {}
    for match in _OF_OBSTORE.finditer(text.partition("\nDebug source")[0]):
        found = {name: value.strip() for name, value in match.groupdict().items() if value} | found
    met = [found[name] for name in ("status", "message", "fault") if name in found]
    asked = (
        [f"asked {int(found['retries']) + 1} times in {float(found['seconds']):.0f} s"] if "retries" in found else []
    )
    return ", ".join(met + asked)[:200] or text.splitlines()[0][:200]


def code_of(error: BaseException | None) -> str:
    """The store's own word for an error, such as `NoSuchBucket`; empty where it gave none."""
    if error is not None and type(error).__module__.startswith("obstore"):
        found = re.search(r"<Code>(\w+)</Code>", str(error))
        return found.group(1) if found else ""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""

"""The one place that makes a store of a path or a URL, and the only one that gives fsspec a URL.

zarr and fsspec take text, and read more into it than a path says: `a::b.zarr` is a chain of two stores to them, so that
another volume would be read, or an output written into its own input. So no path goes to them as text: a path makes a
`LocalStore` here, which asks the file system for just that name. A test holds all of the code to it.

Endpoint and credentials come from the environment, as those of every S3 client: AWS_ENDPOINT_URL, AWS_PROFILE,
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_REGION. A store that does not answer is given up after about a minute,
one that is not there when it is opened after seconds.

Volumes on S3 and http are read by obstore's clients (`remote.py`), one request an object; listing, looking and writing are s3fs's.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
from zarr.abc.store import Store
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from pipeline.core.locations import UNLISTED, is_s3, is_url, protocol
from pipeline.errors import StorageError
from pipeline.places.credentials import carried

ATTEMPTS, READ_SECONDS, CONNECT_SECONDS = 3, 10, 5
"""Of a request of s3fs, which lists, looks and writes."""

AGAIN = 4
"""Rounds of attempts that s3fs makes, for answers that end in the middle, and for those that are momentary."""

PATIENCE_SECONDS = 60
"""For which an object is asked for again where a volume is read, from the first time on."""

OPENING_SECONDS = 5
"""The same of the first thing that is read of a store."""

MOMENTARY = frozenset({429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""


def local_store(path: str | Path, *, read_only: bool = False) -> LocalStore:
    """The store in a folder, whatever its name holds."""
    return LocalStore(Path(path), read_only=read_only)


def input_store(place: str) -> Store:
    """The store at a path or a URL, for reading only.

    Raises:
        StorageError: The URL is a chain of stores, or carries credentials.
        ImportError: The package of its protocol is not installed; `objects.told` has words for it.
    """
    if not is_url(place):
        return local_store(place, read_only=True)
    refuse_unsafe(place)
    return _remote_store(place, PATIENCE_SECONDS)


def first_document(url: str) -> Buffer | None:
    """What lies at a URL as Zarr's own `zarr.json`; None where there is none. A server that is not there is told within seconds.

    Raises:
        ImportError: The package of its protocol is not installed.
        obstore.exceptions.BaseError: The store cannot be asked.
    """
    refuse_unsafe(url)
    return sync(_remote_store(url, OPENING_SECONDS).get("zarr.json", default_buffer_prototype()))


def _remote_store(url: str, seconds: float) -> Store:
    file_system(url)  # what lists and looks; where its package is not installed, that is told before anything is read
    if not is_s3(url) and protocol(url) not in UNLISTED:
        return FsspecStore.from_url(url, read_only=True)
    from pipeline.places.remote import RemoteStore, client_for  # noqa: PLC0415 - its library is large, and of no use to paths

    return RemoteStore(client_for(url, seconds), url, lambda: FsspecStore.from_url(url, read_only=True))


def file_system(url: str) -> tuple[Any, str]:
    """What fsspec has for the store of a URL, which remembers no listing, and the location as it names it.

    Raises:
        ImportError, ValueError: The package of its protocol is not installed, or there is no such protocol.
    """
    if is_s3(url):
        return s3(), s3()._strip_protocol(url).rstrip("/")
    system, path = fsspec.url_to_fs(url, use_listings_cache=False)
    return system, path.rstrip("/")


def refuse_unsafe(url: str) -> None:
    """Refuse a URL that is not of one store, or that carries what nobody should read.

    Raises:
        StorageError: It is a chain of stores, or carries credentials.
    """
    if kind := carried(url):
        raise StorageError(
            f"A URL of a store carries {kind}. Give them in the environment: AWS_PROFILE, AWS_ACCESS_KEY_ID."
        )
    if "::" in url:
        raise StorageError(
            f"'{url}' is a chain of stores ('::'), which is not supported. Unpack it, and name what was in it."
        )


def s3() -> Any:
    """The client of S3 that all threads of this process share; fsspec's own cache would keep one a thread, with its connections.

    Another is made where the environment that it was made of has changed.
    """
    return _s3(os.getpid(), frozenset((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


@cache
def _s3(process: int, variables: frozenset[tuple[str, str]]) -> Any:  # noqa: ARG001 - the key
    retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
    patience = {"retries": retries, "connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
    own = {"skip_instance_cache": True, "use_listings_cache": False}  # others change what is there meanwhile
    system = fsspec.filesystem("s3", config_kwargs=patience, max_concurrency=2, **own)
    system.retries = AGAIN
    sys.modules["s3fs.core"].set_custom_error_handler(_is_momentary)
    return system


def _is_momentary(error: Exception) -> bool:
    """Whether an answer says that the server is busy or broken for now."""
    response = getattr(error, "response", None) or {}
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode") in MOMENTARY

"""The one place that makes a store of a path or a URL, and the only one that gives fsspec a URL.

zarr and fsspec take text, and read more into it than a path says: `a::b.zarr` is a chain of two stores to them, so that
another volume would be read, or an output written into its own input. So no path goes to them as text: a path makes a
`LocalStore` here, which asks the file system for just that name. A test holds all of the code to it.

Endpoint and credentials come from the environment, as those of every S3 client: AWS_ENDPOINT_URL, AWS_PROFILE,
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_REGION. A store that does not answer is given up after about a minute,
one that is not there after seconds.
"""

from __future__ import annotations

import atexit
import os
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
from zarr.abc.store import Store
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from pipeline.core.locations import is_s3, is_url
from pipeline.errors import StorageError
from pipeline.places.credentials import carried

ATTEMPTS, READ_SECONDS, CONNECT_SECONDS = 3, 10, 5

AGAIN = 2
"""Rounds of attempts that s3fs makes, for answers that end in the middle."""


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
    if is_s3(place):
        return FsspecStore(s3(asynchronous=True), path=place.partition("://")[2].rstrip("/"), read_only=True)
    return FsspecStore.from_url(place, read_only=True)


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


def s3(*, asynchronous: bool = False) -> Any:
    """The client of S3 that all threads of this process share; fsspec's own cache would keep one a thread, with its connections.

    Another is made where the environment that it was made of has changed.

    Args:
        asynchronous: For use from the event loop of zarr, and only there.
    """
    variables = frozenset((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    return _s3(os.getpid(), asynchronous, variables)


@cache
def _s3(process: int, asynchronous: bool, variables: frozenset[tuple[str, str]]) -> Any:  # noqa: ARG001 - the key
    retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
    patience = {"retries": retries, "connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
    own = {"skip_instance_cache": True, "use_listings_cache": False}  # others change what is there meanwhile
    system = fsspec.filesystem("s3", asynchronous=asynchronous, config_kwargs=patience, max_concurrency=2, **own)
    system.retries = AGAIN
    if asynchronous:  # the others close themselves
        atexit.register(_close, system)
    return system


def _close(system: Any) -> None:
    """Close the connections from the loop that they belong to, which ends after this; else each complains at the end."""

    async def close() -> None:
        await (await system.set_session()).close()

    if system._s3 is not None:
        sync(close(), timeout=1)

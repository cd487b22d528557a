"""The one place that makes a store of a path or a URL.

zarr and fsspec take text, and read more into it than a path says: `a::b.zarr` is a chain of two stores to them, so that
another volume would be read, or an output written into its own input. So no path goes to them as text: a path makes a
`LocalStore` here, which asks the file system for just that name. A test holds all of the code to it.
"""

from __future__ import annotations

from pathlib import Path

from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from pipeline.places.objects import ObjectStore, is_remote, is_s3, s3


def local_store(path: str | Path, *, read_only: bool = False) -> LocalStore:
    """The store in a folder, whatever its name holds."""
    return LocalStore(Path(path), read_only=read_only)


def input_store(place: str) -> Store:
    """The store at a path or a URL, for reading only.

    Raises:
        StorageError: The URL is a chain of stores, carries credentials, or the package of its protocol is not installed.
    """
    if not is_remote(place):
        return local_store(place, read_only=True)
    ObjectStore(place)  # refuses what is no URL of one store
    if is_s3(place):
        return FsspecStore(s3(asynchronous=True), path=place.partition("://")[2].rstrip("/"), read_only=True)
    return FsspecStore.from_url(place, read_only=True)

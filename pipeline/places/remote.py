"""Stores that are read over S3 and http, by clients of obstore, which ask once for each object and wait for a store that is busy.

What fails for a moment is asked for again, with a growing pause that has chance in it: 429, 500, 503 and their like, a connection
that is refused, dropped or cut, and an answer that stalls. That goes on for a stated time, and no longer.

Endpoint, region, credentials and certificates of S3 are those that botocore finds, as for every client of S3.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from obstore.exceptions import BaseError, GenericError, PermissionDeniedError, UnauthenticatedError
from obstore.store import HTTPStore, S3Store
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import ObjectStore as ObstoreStore

from pipeline.core.locations import is_s3
from pipeline.errors import ForbiddenError

STALLED_SECONDS, CONNECT_SECONDS = 10, 5
"""Without a byte, after which a request is given up; and without a connection."""

REQUEST_SECONDS = 600
"""Of one request in all, however slowly its bytes come."""

PAUSE = {
    "init_backoff": timedelta(milliseconds=100),
    "max_backoff": timedelta(seconds=5),
    "base": 2,
}

MOST_RETRIES = 1_000
"""Time is the bound, and not how often."""

VALID = timedelta(minutes=10)
"""For which credentials that expire are good at least: botocore renews them earlier than that."""

AMAZON = ".amazonaws.com"


DOCUMENTS = frozenset({"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"})
"""Names of objects that say what a node is: zarr asks for those of both formats, and takes what is not there for the answer."""

NO_LENGTH = "Content-Length Header missing"
"""What obstore says of an answer whose length is not told before it, as programs give that make it while they send. Such are read by fsspec."""


class RemoteStore(ObstoreStore[Any]):
    """A store that is read over S3 or http: one request an object, and waits for a server that is busy.

    A server that lets nobody list refuses what is not there as it refuses what nobody may read. So a document that is refused is not
    there, and is remembered; a chunk that is refused is an error.

    Args:
        client: Of obstore.
        url: Of what lies in it.
        unmeasured: Makes a store that reads also what comes without its length.
        read_only: As of zarr's own.

    Attributes:
        refused: Why a document could not be had; None where each could, or was not there.
    """

    def __init__(self, client: Any, url: str, unmeasured: Callable[[], Store], *, read_only: bool = True) -> None:
        super().__init__(client, read_only=read_only)
        self.url = url.rstrip("/")
        self._unmeasured = unmeasured
        self.refused: BaseError | None = None

    def with_read_only(self, read_only: bool = False) -> RemoteStore:
        return type(self)(self.store, self.url, self._unmeasured, read_only=read_only)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """An object or a part of it; None where there is none.

        Raises:
            ForbiddenError: It may not be read, or is not there and nobody may know that.
        """
        prototype = prototype or default_buffer_prototype()
        try:
            return await super().get(key, prototype, byte_range)
        except (PermissionDeniedError, UnauthenticatedError) as error:
            if key.rpartition("/")[2] in DOCUMENTS:
                self.refused = error
                return None
            raise ForbiddenError(
                f"'{self.url}/{key}' could not be read: the store refuses it. Either it may not be read, or it is not there: a store "
                "that lets you not list it answers so for both. Have the right to list (on S3 s3:ListBucket), or the right to read it; or, where "
                "what is refused is what nobody wrote, set input.missing to 'fill'."
            ) from None
        except GenericError as error:
            if NO_LENGTH not in str(error):
                raise
            return await self._unmeasured().get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return await self.get(key) is not None


# --- clients ------------------------------------------------------------------------------------------------------------


def client_for(url: str, seconds: float) -> HTTPStore | S3Store:
    """A client for what lies below a URL of S3, http or https.

    Args:
        url: Such as `s3://bucket/volume.zarr`.
        seconds: For which it asks again.

    Raises:
        ImportError: The package for S3 is not installed.
        botocore.exceptions.NoCredentialsError: There are none.
    """
    if not is_s3(url):
        return HTTPStore(url, client_options=_options(), retry_config=_retries(seconds))
    bucket, _, prefix = url.partition("://")[2].rstrip("/").partition("/")
    settings = _settings(os.getpid(), frozenset((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))
    return S3Store(
        bucket,
        prefix=prefix or None,
        client_options=_options(settings.certificates),
        retry_config=_retries(seconds),
        credential_provider=settings.credentials,
        **_address(settings.client, bucket),
    )


def _options(certificates: bytes | None = None) -> Any:
    seconds = {"timeout": REQUEST_SECONDS, "read_timeout": STALLED_SECONDS, "connect_timeout": CONNECT_SECONDS}
    options: dict[str, object] = {name: timedelta(seconds=value) for name, value in seconds.items()}
    own = {"root_certificate": certificates} if certificates else {}
    return {**options, **own, "allow_http": True}


def _retries(seconds: float) -> Any:
    return {"backoff": PAUSE, "max_retries": MOST_RETRIES, "retry_timeout": timedelta(seconds=seconds)}


# --- S3 -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    """What botocore finds in environment and files.

    Args:
        client: Of botocore, which knows endpoint and region, and is asked where a bucket lies.
        credentials: What a store is given, as often as it asks.
        certificates: That are trusted beside the system's; None where there are none.
    """

    client: Any
    credentials: Any
    certificates: bytes | None


@cache
def _settings(process: int, variables: frozenset[tuple[str, str]]) -> _Settings:  # noqa: ARG001 - the key
    import botocore.exceptions  # noqa: PLC0415 - of an extra
    import botocore.session  # noqa: PLC0415

    session = botocore.session.Session()
    credentials = session.get_credentials()
    if credentials is None:
        raise botocore.exceptions.NoCredentialsError
    bundle = session.get_config_variable("ca_bundle")
    return _Settings(
        session.create_client("s3", region_name=session.get_config_variable("region") or "us-east-1"),
        lambda: _frozen(credentials),
        Path(bundle).read_bytes() if bundle else None,
    )


def _frozen(credentials: Any) -> dict[str, Any]:
    """Credentials as they are now. Those that expire are asked for again; botocore has renewed them by then."""
    frozen = credentials.get_frozen_credentials()
    expires = hasattr(credentials, "refresh_needed")
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        "expires_at": datetime.now(UTC) + VALID if expires else None,
    }


def _address(client: Any, bucket: str) -> dict[str, Any]:
    """Where a bucket is reached: Amazon's by its own name where it may be one, others by a path, unless the settings say otherwise."""
    endpoint, style = client.meta.endpoint_url, (client.meta.config.s3 or {}).get("addressing_style")
    region = client.meta.region_name
    if (urlsplit(endpoint).hostname or "").endswith(AMAZON):
        region = region_of(client, bucket) or region
        by_name = style != "path" and "." not in bucket
        return {"region": region, "virtual_hosted_style_request": by_name}
    if style == "virtual":
        scheme, _, host = endpoint.partition("://")
        return {"region": region, "endpoint": f"{scheme}://{bucket}.{host}", "virtual_hosted_style_request": True}
    return {"region": region, "endpoint": endpoint, "virtual_hosted_style_request": False}


def region_of(client: Any, bucket: str) -> str | None:
    """Where Amazon keeps a bucket, whatever region the environment names: it says so also to those who may not look into it."""
    from botocore.exceptions import ClientError  # noqa: PLC0415 - of an extra

    try:
        answer: Mapping[str, Any] = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region: str | None = headers.get("x-amz-bucket-region")
    return region

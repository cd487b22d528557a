"""Whether a location is a path or the URL of a store: decided here, and nowhere by what else a name may hold.

A path is what it says. `a::b.zarr`, `50%#?.zarr` and `we://ird` below a folder are names of folders; no library is asked to make
something else of them.
"""

from __future__ import annotations

import re

_OF_FILES = re.compile(r"(?:file|local)://", re.IGNORECASE)


def is_url(location: str) -> bool:
    """Whether a location is a URL, such as `s3://bucket/volume.zarr`; a path may hold `://` further on."""
    scheme, sign, _ = location.partition("://")
    return bool(scheme and sign) and "/" not in scheme


def protocol(url: str) -> str:
    """What stands before `://`, in small letters."""
    return url.partition("://")[0].lower()


def is_s3(url: str) -> bool:
    """Whether a URL is of S3 or of a store that speaks as it does."""
    return protocol(url) in ("s3", "s3a")


UNLISTED = ("http", "https")
"""Protocols of stores that only answer for an object whose name is known."""


def without_file_scheme(location: str) -> str:
    """The same, without the `file://` that stands before a path; the rest is the path as it is, nothing in it decoded."""
    scheme = _OF_FILES.match(location)
    return location[scheme.end() :] if scheme else location

"""The image that an array belongs to: `image.ome.zarr` of `image.ome.zarr/0`, where its metadata name that array.

A group of Zarr may say nothing of what lies in it, and a parent may be out of reach; then nothing is known of it, and that is no error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.core.locations import is_url
from pipeline.errors import StorageError
from pipeline.places.listing import small_files
from pipeline.volumes.ome import Multiscale, first_of, read_multiscales

STEPS = 3
"""Groups above an array that are asked: the path of a level is one or two names in all that we know."""


@dataclass(frozen=True, slots=True)
class Level:
    """An array as a level of an image.

    Args:
        image: The image.
        level: Which of its levels.
        warnings: What should be known of it.
    """

    image: Multiscale
    level: int
    warnings: tuple[str, ...] = ()


def level_of(url: str) -> tuple[Level | None, tuple[str, ...]]:
    """The level that the array at a location is, by the nearest group above that names it; and why one was not believed.

    Args:
        url: Of the array, a path or a URL. A store is asked for two small objects a step, all at once.
    """
    steps = list(_above(url))
    documents = [f"{parent}/{name}" for parent, _ in steps for name in ("zarr.json", ".zattrs")]
    try:
        contents = small_files(documents)
    except (StorageError, OSError):  # the array itself can be read, and that is what counts
        return None, ()
    warnings: list[str] = []
    for i, (parent, path) in enumerate(steps):
        for content in contents[2 * i : 2 * i + 2]:
            try:
                images = read_multiscales(_attributes(content), parent)
            except StorageError as error:
                warnings.append(f"what the group above says is not believed: {error}")
                continue
            naming = [(image, level) for image in images if (level := image.level_of(path)) is not None]
            if naming:
                image, level = naming[0]
                return Level(image, level, first_of([image for image, _ in naming])), tuple(warnings)
    return None, tuple(warnings)


def _above(url: str) -> Iterator[tuple[str, str]]:
    """Groups above an array, the nearest first, and its path below each."""
    scheme, sign, rest = url.partition("://") if is_url(url) else ("", "", os.path.abspath(url))  # noqa: PTH100 - links stay
    parts = rest.rstrip("/").split("/")
    for steps in range(1, min(STEPS, len(parts) - 1) + 1):
        yield f"{scheme}{sign}{'/'.join(parts[:-steps])}", "/".join(parts[-steps:])


def _attributes(content: bytes | OSError | None) -> Mapping[str, Any]:
    """Of a group's document; none where it is no such document."""
    if not isinstance(content, bytes):
        return {}
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(document, dict):
        return {}
    attributes = document.get("attributes") if "node_type" in document or "zarr_format" in document else document
    return attributes if isinstance(attributes, dict) else {}

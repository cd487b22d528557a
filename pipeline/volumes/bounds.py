"""What an array may be at most: sizes in metadata are believed only as far as a machine can hold them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod
from typing import Any

from pipeline.errors import StorageError

LONGEST = 2**26
"""Voxels along an axis of a volume. Of the largest scans there are, an axis has some 10^6; tables grow with an axis."""

MOST_BYTES = 2**62
"""Bytes of a volume: above, a place in it is no integer of a processor."""


def check_extents(shape: Sequence[Any], chunks: Sequence[Any], itemsize: int, url: str) -> None:
    """Refuse what no plan could be made for, and a chunk that no memory holds.

    Args:
        shape: Extents of the array.
        chunks: Of what is decoded at once.
        itemsize: Bytes of a value.
        url: For errors.

    Raises:
        StorageError: An extent is no whole number, below 1 or beyond bounds, or a chunk is larger than the memory.
    """
    layout = f"Volume '{url}' has shape {_listed(shape)} and chunks {_listed(chunks)}"
    if any(type(n) is bool or n != int(n) for n in (*shape, *chunks)):
        raise StorageError(f"{layout}: extents are whole numbers. Its metadata are damaged: copy it again.")
    if min(chunks, default=1) < 1:
        raise StorageError(
            f"{layout}: a chunk has at least one voxel along each axis. Its metadata are damaged: copy it again."
        )
    if max(shape, default=0) > LONGEST or prod(shape) * itemsize > MOST_BYTES:
        raise StorageError(
            f"{layout}: at most {LONGEST:,} voxels along an axis and {MOST_BYTES:,} bytes are planned for. Its metadata are "
            "damaged; or name a part of it as an array of its own."
        )
    needed, there = prod(chunks) * itemsize, memory_bytes()
    if needed > there:
        raise StorageError(
            f"{layout}: one chunk takes {needed:,} bytes when it is decoded, and this machine has {there:,} bytes of memory. "
            "Its metadata are damaged; or write it anew in smaller chunks."
        )


def memory_bytes() -> int:
    """Of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _listed(extents: Sequence[Any]) -> str:
    """Extents for an error, not all of hundreds."""
    text = ", ".join(str(n)[:24] for n in extents[:8])
    return f"({text}{', ...' if len(extents) > 8 else ''})"

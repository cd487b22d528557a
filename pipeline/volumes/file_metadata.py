"""What the metadata of an HDF5 or TIFF file say of its array: axes, sizes, origins and units, before it is a volume."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.errors import StorageError
from pipeline.installation import how_to_install

NAMED = 20
"""Datasets that a refusal names at most."""


@dataclass(frozen=True)
class Place:
    """A file that holds a volume.

    Args:
        kind: `HDF5` or `TIFF`.
        path: The file.
        inner: Dataset inside an HDF5 file.
    """

    kind: str
    path: Path
    inner: str = ""


@dataclass(frozen=True)
class Found:
    """What a file says of its array, before it is read as a volume; sizes, origins and units by axis.

    Args:
        warnings: What is written in the file and not believed.
        stored: Chunks that hold voxels, and how many there are.
        files: All that hold them, where they are more than the one that was named.
    """

    source: Any
    chunks: tuple[int, ...]
    names: str
    sizes: Mapping[str, float] = field(default_factory=dict)
    origins: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, str | None] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    stored: tuple[int, int] = (1, 1)
    files: tuple[str, ...] = ()


def lengths_of(values: Any) -> dict[str, float]:
    """Two or three lengths by axis, the last along x; nothing where they are none."""
    lengths = numbers_of(values)
    usable = len(lengths) in (2, 3) and all(length > 0 for length in lengths)
    return dict(zip("zyx"[-len(lengths) :], lengths, strict=True)) if usable else {}


def numbers_of(values: Any) -> list[float]:
    """Finite numbers, of whatever somebody wrote; none where one of them is no number."""
    try:
        numbers = np.asarray(values, dtype=np.float64).ravel().tolist()
    except (TypeError, ValueError):
        return []
    return numbers if all(map(isfinite, numbers)) else []


def shown(value: Any) -> str:
    """What somebody wrote, in one line for a warning."""
    return " ".join(str(value).split())[:60]


def strange_units(spellings: Mapping[str, Any], units: Mapping[str, str | None]) -> list[str]:
    """A warning for each unit that is written, is not empty, and is no length."""
    strange = {
        shown(spellings[axis]): None
        for axis, unit in units.items()
        if unit is None and shown(spellings.get(axis) or "")
    }
    return [f"unit unknown: '{unit}' is no unit of length that is known" for unit in strange]


def imported(name: str, url: str) -> ModuleType:
    """A package of the extra `train`.

    Raises:
        StorageError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise StorageError(
            f"Input '{url}' needs the package {name}, which is not installed here. To have it, {how_to_install('train')}"
        ) from error


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]

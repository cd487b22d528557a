"""Coordinate transformations of OME-Zarr, as far as they are a scale and a translation an axis; nothing else is guessed.

Source: OME-NGFF 0.4 and 0.5, section "multiscales": exactly one `scale`, then at most one `translation`, applied in their order. What
later versions say in other words and comes to the same (`identity`, `sequence`, a diagonal `affine`) is read as what it comes to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

MOST_TRANSFORMS = 100
"""That are looked at, however they are nested."""


class NotPlacedError(ValueError):
    """The metadata give no scale and translation per axis; says why."""


@dataclass(frozen=True, slots=True)
class Diagonal:
    """value -> value * scale + translation, per axis. The numbers are as they are written: they may be of no use.

    Args:
        scale: Size of a voxel per axis.
        translation: Centre of voxel 0 per axis.
    """

    scale: tuple[float, ...]
    translation: tuple[float, ...]

    def then(self, other: Diagonal) -> Diagonal:
        """This, and the other after it."""
        scale = tuple(a * b for a, b in zip(self.scale, other.scale, strict=True))
        moved = zip(self.translation, other.scale, other.translation, strict=True)
        return Diagonal(scale, tuple(t * s + o for t, s, o in moved))


def diagonal_of(transforms: Any, ndim: int, *, optional: bool = False) -> Diagonal:
    """What a list of transformations comes to.

    Args:
        transforms: As it stands in the metadata.
        ndim: Axes of the image.
        optional: Whether there need be none, nor a scale.

    Raises:
        NotPlacedError: It is not what the specification allows, or no scale and translation an axis.
        ValueError: It has numbers for another number of axes.
    """
    diagonal = Diagonal((1.0,) * ndim, (0.0,) * ndim)
    steps = list(_steps(transforms, 0)) if transforms is not None else []
    if not steps and not optional:
        raise NotPlacedError("there are no coordinateTransformations")
    counted = Counter(kind for kind, _ in steps)
    for kind in ("scale", "translation", "affine"):
        if counted[kind] > 1:
            raise NotPlacedError(
                f"there are {counted[kind]} transformations '{kind}', and the specification allows one"
            )
    if not optional and not counted.keys() & {"scale", "affine", "identity"}:
        raise NotPlacedError("there is no transformation 'scale'")
    for kind, step in steps:
        diagonal = diagonal.then(_diagonal(kind, step, ndim))
    return diagonal


def _steps(transforms: Any, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each transformation with its type, those of a sequence in its place."""
    if (
        not isinstance(transforms, Sequence)
        or isinstance(transforms, str)
        or len(transforms) > MOST_TRANSFORMS
        or depth > 2
    ):
        raise NotPlacedError("coordinateTransformations is no list of transformations")
    for step in transforms:
        kind = step.get("type") if isinstance(step, Mapping) else None
        if not isinstance(kind, str):
            raise NotPlacedError("a transformation has no type")
        if kind == "sequence":
            yield from _steps(step.get("transformations"), depth + 1)
        else:
            yield kind, step


def _diagonal(kind: str, step: Mapping[str, Any], ndim: int) -> Diagonal:
    nothing = Diagonal((1.0,) * ndim, (0.0,) * ndim)
    if kind == "identity":
        return nothing
    if "path" in step and kind not in step:
        raise NotPlacedError(f"the transformation '{kind}' stands in an array of its own ('path'), which is not read")
    if kind == "scale":
        return Diagonal(_numbers(step.get("scale"), kind, ndim), nothing.translation)
    if kind == "translation":
        return Diagonal(nothing.scale, _numbers(step.get("translation"), kind, ndim))
    if kind in ("affine", "rotation"):
        return _of_matrix(step.get(kind), kind, ndim)
    raise NotPlacedError(f"the transformation '{kind[:40]}' is no scale and no translation")


def _of_matrix(matrix: Any, kind: str, ndim: int) -> Diagonal:
    """A matrix that mixes no axes, a row an axis, its last column the translation; a rotation has none."""
    rows = matrix if isinstance(matrix, list | tuple) and all(isinstance(row, list | tuple) for row in matrix) else []
    if len(rows) == ndim + 1 and kind == "affine":  # homogeneous, as some write it
        *rows, last = rows
        if list(last) != [0] * ndim + [1]:
            raise NotPlacedError("the transformation 'affine' is no matrix of an affine map")
    width = ndim + (kind == "affine")
    if len(rows) != ndim or any(len(row) != width for row in rows):
        raise NotPlacedError(f"the transformation '{kind}' is no matrix of {ndim} rows")
    numbers = [_numbers(row, kind, width) for row in rows]
    if any(numbers[i][j] != 0 for i in range(ndim) for j in range(ndim) if i != j):
        raise NotPlacedError(f"the transformation '{kind}' mixes axes")
    translation = tuple(row[ndim] for row in numbers) if kind == "affine" else (0.0,) * ndim
    return Diagonal(tuple(numbers[i][i] for i in range(ndim)), translation)


def _numbers(values: Any, kind: str, count: int) -> tuple[float, ...]:
    """So many numbers; NaN for what is none.

    Raises:
        NotPlacedError: It is no list.
        ValueError: It has others than so many.
    """
    if not isinstance(values, list | tuple):
        raise NotPlacedError(f"the transformation '{kind}' has no numbers")
    if len(values) != count:
        raise ValueError(f"{count} axes, but a transformation of {len(values)} numbers")
    return tuple(map(number_of, values))


def number_of(value: Any) -> float:
    """A number of the metadata; NaN for what is none: a text, a truth value; infinity for an integer that no float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return float("nan")
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def is_size(value: float) -> bool:
    """Whether a number may be the size of a voxel."""
    return isfinite(value) and value > 0

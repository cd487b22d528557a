"""Axes as the sources name them, and as an array is read: the first source that names any is believed, and every
conflict is a warning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.core.volume import KNOWN_AXES
from pipeline.errors import StorageError

BY_NUMBER = {2: "yx", 3: "zyx", 4: "czyx"}
"""How an array without names of axes is read, by the number of them."""

_NAMES = {
    "z": "z depth plane planes slice slices section sections",
    "y": "y height row rows",
    "x": "x width col cols column columns",
    "c": "c ch channel channels",
    "t": "t time times frame frames timepoint timepoints",
}

_LETTERS = {name: letter for letter, names in _NAMES.items() for name in names.split()}

_PLACEHOLDER = re.compile(r"(phony_)?(dim|axis)[_-]?\d*")
"""Names that tools give to axes of which they know nothing, such as xarray's `dim_0`."""

_WIDEST_COLOUR, _NARROWEST_PICTURE = 4, 16
"""A last axis of 3 or 4 beside axes of more than 16 may be the colours of a picture."""


@dataclass(frozen=True, slots=True)
class Told:
    """Names of an array's axes, in order.

    Args:
        by: The source, as a user knows it: `dimension_names`.
        names: As they are written; None, or what is no text, names no axis.
        types: The specification's types, where they are written; `channel` and `time` say more than a name.
    """

    by: str
    names: tuple[object, ...]
    types: tuple[object, ...] = ()

    @property
    def letters(self) -> tuple[str, ...]:
        """A letter per axis, empty where the source names none; an unknown name stays as it is."""
        types = self.types or (None,) * len(self.names)
        return tuple(letter_of(name, kind) for name, kind in zip(self.names, types, strict=True))

    @property
    def plain(self) -> str:
        """The names as text; those that are not letters between commas."""
        labels = [name if isinstance(name, str) and name else "-" for name in self.names]
        return ("" if all(len(name) == 1 for name in labels) else ", ").join(labels)[:80]

    def __str__(self) -> str:
        """`'zyx' (dimension_names)`."""
        return f"'{self.plain}' ({self.by})"


def letter_of(name: object, kind: object = None) -> str:
    """The letter of an axis by its name or its type; empty where there is neither, an unknown name as it is."""
    word = name.strip().lower() if isinstance(name, str) else ""
    if word in _LETTERS:
        return _LETTERS[word]
    if kind in ("channel", "time"):
        return str(kind)[0]
    return "" if _PLACEHOLDER.fullmatch(word) or not word else word


@dataclass(frozen=True, slots=True)
class Reading:
    """How an array is read.

    Args:
        axes: One of `KNOWN_AXES`.
        is_told: Whether anybody said so, if only the configuration.
        warnings: What should be known of it.
    """

    axes: str
    is_told: bool = True
    warnings: tuple[str, ...] = ()


def read_as(sources: Sequence[Told], shape: Sequence[int], asked: str, url: str) -> Reading:
    """The axes of an array: as asked for; as the first source names them that names any; else by their number.

    Args:
        sources: Their names by each source, the most trusted first.
        shape: Of the array.
        asked: Of the configuration: axes, or `auto`.
        url: For messages.

    Raises:
        StorageError: They come to no volume, or nobody can know which is meant.
    """
    telling = [one for one in sources if any(one.letters)]
    if asked != "auto":
        axes = _checked(asked, asked, shape, url)
        first = next((one for one in telling if len(one.names) == len(shape)), None)
        against = (
            []
            if first is None or _agrees(axes, first.letters)
            else [f"input.axes '{axes}' governs, but the axes are told as {first}"]
        )
        return Reading(axes, warnings=tuple(against))
    if not telling:
        refuse_colours_last(shape, url)
        return Reading(
            _checked(BY_NUMBER.get(len(shape), ""), f"{len(shape)} axes without names", shape, url), is_told=False
        )
    first, *others = telling
    axes = _first_that_agrees(first.letters) if len(first.names) == len(shape) else ""
    axes = _checked(axes, first.plain, shape, url, first.by)
    warnings = [
        f"axes are told as {first}, which is believed, and as {one}"
        for one in others
        if not _same(first.letters, one.letters)
    ]
    if "" in first.letters:
        warnings.append(f"axes are told in part, as {first}: read as {axes}")
    return Reading(axes, warnings=tuple(warnings))


def nothing_told(reading: Reading) -> str:
    """A warning for an array without a voxel size, and maybe without names of axes."""
    if reading.is_told:
        return "voxel size unknown: nobody tells it"
    return f"no axes are told, read as {reading.axes}, and the voxel size is unknown; set input.axes if they are others"


def _agrees(axes: str, letters: Sequence[str]) -> bool:
    return all(letter in ("", axis) for axis, letter in zip(axes, letters, strict=True))


def _same(one: Sequence[str], other: Sequence[str]) -> bool:
    return len(one) == len(other) and all(not a or not b or a == b for a, b in zip(one, other, strict=True))


def _first_that_agrees(letters: Sequence[str]) -> str:
    options = [BY_NUMBER.get(len(letters), ""), *KNOWN_AXES]
    return next((axes for axes in options if len(axes) == len(letters) and _agrees(axes, letters)), "")


def _checked(axes: str, meant: str, shape: Sequence[int], url: str, by: str = "") -> str:
    if axes in KNOWN_AXES and len(axes) == len(shape):
        return axes
    remedy = ", or set input.axes to how they are stored; other orders must be stored anew" if len(shape) <= 4 else ""
    raise StorageError(
        f"Volume '{url}' has {len(shape)} axes, shape {tuple(shape)}, read as '{meant}'; expected {', '.join(KNOWN_AXES)}"
        f"{f'. They are told by {by}' if by else ''}. Name a store with these axes, one time point at a time{remedy}."
    )


def refuse_colours_last(shape: Sequence[int], url: str) -> None:
    """Refuse what may be a picture with its colours last, (H, W, 3): read as zyx it would be a stack three voxels wide.

    Raises:
        StorageError: It may be one.
    """
    if len(shape) not in (3, 4) or not _WIDEST_COLOUR - 1 <= shape[-1] <= _WIDEST_COLOUR:
        return
    if any(extent <= _NARROWEST_PICTURE for extent in shape[-3:-1]):
        return
    *front, height, width, colours = shape
    channels_first = (colours, *front, height, width)
    raise StorageError(
        f"Volume '{url}' has {len(shape)} axes without names, shape {tuple(shape)}: its last axis may be x, {colours} voxels wide, or the "
        f"channels of a picture, and nobody tells. If it is x, set input.axes to '{BY_NUMBER[len(shape)]}'. If it is channels "
        f"('{'z' * len(front)}yxc'), they must come first to be read: store it as {channels_first} and set input.axes to "
        f"'c{'z' * len(front)}yx'."
    )

"""Axes as the sources name them, and as an array is read: t, c, z, y, x in whatever order they are stored.

The first source that names any is believed, and every conflict is a warning. What is read is (c, z, y, x), with an extent of 1 for
each axis that the array has not; a time axis of one point, and an axis of another name and one voxel, are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.core.volume import KNOWN_AXES
from pipeline.errors import StorageError

BY_NUMBER = {2: "yx", 3: "zyx", 4: "czyx"}
"""How an array without names of axes is read, by the number of them."""

LETTERS = "tczyx"
"""Axes that an array may have, in the order of OME-Zarr."""

PASSED = "."
"""Letter of a stored axis of one voxel that is none of these."""

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

_EXPECTED = "expected some of t, c, z, y, x in any order, each once, with y and x"


@dataclass(frozen=True, slots=True)
class Told:
    """Names of an array's axes, in order.

    Args:
        by: The source, as a user knows it: `dimension_names`.
        names: As they are written; None, or what is no text, names no axis.
        types: The specification's types, where they are written; `channel` and `time` say more than a name.
        is_sure: Whether it knows: pages of a TIFF of which nothing is said are most often z.
    """

    by: str
    names: tuple[object, ...]
    types: tuple[object, ...] = ()
    is_sure: bool = True

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
        stored: A letter per stored axis, of `LETTERS`, or `PASSED`.
        is_told: Whether anybody said so, if only the configuration.
        warnings: What should be known of it.
    """

    stored: str
    is_told: bool = True
    warnings: tuple[str, ...] = ()

    @property
    def axes(self) -> str:
        """The volume's axes, one of `KNOWN_AXES`."""
        return "".join(axis for axis in "czyx" if axis in self.stored)


def why_no_axes(text: str) -> str:
    """Why a text cannot say which axes an array has; empty where it can, or says `auto`."""
    if text == "auto" or _is_order(text):
        return ""
    return f"{text!r} is no order of axes; {_EXPECTED}, such as yx, zyx, yxc or tczyx, or auto"


def read_as(sources: Sequence[Told], shape: Sequence[int], asked: str, url: str, *, follows: bool = False) -> Reading:
    """The axes of an array: as asked for; as the first source names them that names any; else by their number.

    Args:
        sources: Their names by each source, the most trusted first.
        shape: Of the array.
        asked: Of the configuration: axes as stored, or `auto`. Where they are fewer than the array has, those of one voxel are passed over.
        url: For messages.
        follows: Whether one of `KNOWN_AXES` that is asked for says which axes there are, and not in which order: where the
            source's own names come to the same, these say where each lies. So HDF5 and TIFF were always read.

    Raises:
        StorageError: They come to no volume, or nobody can know which is meant.
    """
    telling = [one for one in sources if any(one.letters)]
    first = next((one for one in telling if len(one.names) == len(shape)), None)
    by_name = _without_single(first.letters, shape) if first else ()
    if asked == "auto":
        return _read_as_told(telling, by_name, shape, url)
    if follows and asked in KNOWN_AXES and _axes_of(by_name) == asked:
        return Reading("".join(by_name))
    letters = _spread(asked, shape, first.letters if first else ("",) * len(shape))
    stored = _checked(letters, asked, shape, url)
    against = first is not None and first.is_sure and not _agrees(stored, first.letters)
    return Reading(
        stored, warnings=(f"input.axes '{asked}' governs, but the axes are told as {first}",) if against else ()
    )


def _read_as_told(telling: Sequence[Told], by_name: Sequence[str], shape: Sequence[int], url: str) -> Reading:
    """By the first who tells; where nobody is sure, a picture with its colours last is refused."""
    if not telling or not (telling[0].is_sure or telling[0].letters[-1] == "c"):
        refuse_colours_last(shape, url)
    if not telling:
        by_number = BY_NUMBER.get(len(shape), "")
        return Reading(_checked(by_number, f"{len(shape)} axes without names", shape, url), is_told=False)
    first, *others = telling
    is_in_part = "" in first.letters
    letters = (_filled(first.letters) if is_in_part else by_name) if len(first.names) == len(shape) else ()
    stored = _checked(letters, first.plain, shape, url, first.by)
    warnings = [
        f"axes are told as {first}, which is believed, and as {one}"
        for one in others
        if not _same(first.letters, one.letters)
    ]
    if is_in_part:
        warnings.append(f"axes are told in part, as {first}: read as {stored}")
    return Reading(stored, first.is_sure, tuple(warnings))


def nothing_told(reading: Reading) -> str:
    """A warning for an array without a voxel size, and maybe without names of axes."""
    if reading.is_told:
        return "voxel size unknown: nobody tells it"
    return f"no axes are told, read as {reading.axes}, and the voxel size is unknown; set input.axes if they are others"


def _is_order(letters: str) -> bool:
    """Whether each is a letter of an axis, none comes twice, and y and x are there."""
    return {"y", "x"} <= set(letters) <= set(LETTERS) and len(set(letters)) == len(letters)


def _axes_of(letters: Sequence[str]) -> str:
    """The volume's axes that stored ones come to, time left out; empty where they come to none."""
    named = "".join(letter for letter in letters if letter != PASSED)
    return "".join(axis for axis in "czyx" if axis in named) if _is_order(named) else ""


def _without_single(letters: Sequence[str], shape: Sequence[int]) -> tuple[str, ...]:
    """The letters, with axes of other names passed over where they have one voxel."""
    return tuple(
        PASSED if extent == 1 and letter and letter not in LETTERS else letter
        for letter, extent in zip(letters, shape, strict=True)
    )


def _spread(asked: str, shape: Sequence[int], told: Sequence[str]) -> str:
    """A letter per stored axis of those that are asked for, in their order; empty where they are not as many."""
    if len(asked) == len(shape):
        return asked
    keep = [extent > 1 or letter in ("y", "x") for extent, letter in zip(shape, told, strict=True)]
    letters = iter(asked)
    return "".join(next(letters) if kept else PASSED for kept in keep) if sum(keep) == len(asked) else ""


def _agrees(axes: str, letters: Sequence[str]) -> bool:
    return all(letter in ("", axis) or axis == PASSED for axis, letter in zip(axes, letters, strict=True))


def _same(one: Sequence[str], other: Sequence[str]) -> bool:
    return len(one) == len(other) and all(not a or not b or a == b for a, b in zip(one, other, strict=True))


def _filled(letters: Sequence[str]) -> str:
    """A usual order that has the letters which are there; empty where none has."""
    options = [BY_NUMBER.get(len(letters), ""), *KNOWN_AXES, LETTERS]
    return next((axes for axes in options if len(axes) == len(letters) and _agrees(axes, letters)), "")


def _checked(letters: Sequence[str], meant: str, shape: Sequence[int], url: str, by: str = "") -> str:
    """The letters as one text, where they are a volume's."""
    stored = "".join(letters) if all(len(letter) == 1 for letter in letters) else ""
    passed = [extent for letter, extent in zip(stored, shape, strict=False) if letter == PASSED]
    fits = len(stored) == len(shape) and all(extent == 1 for extent in passed)
    found = f"Volume '{url}' has {len(shape)} axes, shape {tuple(shape)}, read as '{meant}'"
    if not fits or not _is_order(stored.replace(PASSED, "")):
        remedy = "Set input.axes to how they are stored." if len(shape) <= len(LETTERS) else "Name an array that has."
        raise StorageError(f"{found}; {_EXPECTED}{f'. They are told by {by}' if by else ''}. {remedy}")
    points = shape[stored.index("t")] if "t" in stored else 1
    if points > 1:
        raise StorageError(
            f"{found}: {points} time points along t, and a run predicts one volume. Name an array of one time point, or set input.axes "
            "if that axis is no time."
        )
    return stored


def refuse_colours_last(shape: Sequence[int], url: str) -> None:
    """Refuse what may be a picture with its colours last, (H, W, 3): read as zyx it would be a stack three voxels wide.

    Raises:
        StorageError: It may be one.
    """
    if len(shape) not in (3, 4) or not _WIDEST_COLOUR - 1 <= shape[-1] <= _WIDEST_COLOUR:
        return
    if any(extent <= _NARROWEST_PICTURE for extent in shape[-3:-1]):
        return
    raise StorageError(
        f"Volume '{url}' has {len(shape)} axes without names, shape {tuple(shape)}: its last axis may be x, {shape[-1]} voxels wide, or the "
        f"channels of a picture, and nobody tells. If it is x, set input.axes to '{BY_NUMBER[len(shape)]}'; if it is channels, to "
        f"'{'z' * (len(shape) - 3)}yxc'."
    )

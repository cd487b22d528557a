"""Volumes in HDF5 and TIFF, read in place: a box at a time, never the whole file, and never written to.

Both packages are optional: what only runs stores in Zarr needs neither.

Threads may read at once: h5py holds one lock over the HDF5 library, and tifffile's view is read by zarr, all of whose
reads go through the one thread of its event loop (only decoding leaves it).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.geometry.axes import Reading, nothing_told, refuse_colours_last
from pipeline.core.locations import is_url
from pipeline.core.volume import KNOWN_AXES, Selection, Space
from pipeline.errors import PipelineError, StorageError
from pipeline.volumes.file_metadata import Found, Place, first_line
from pipeline.volumes.hdf5 import open_hdf5
from pipeline.volumes.tiff import open_series, open_tiff

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")


TIFF_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class ForeignArray:
    """A stored array that is sliced as numpy's are, its axes in an order of our own.

    Args:
        source: What holds the voxels: an HDF5 dataset, or zarr's view of a TIFF series.
        order: The source's axis behind each of ours; those that are left out have an extent of 1.
        format: Of the file, `HDF5` or `TIFF`.
        stored_chunks: What the file decodes at once, along the source's axes.
        url: For errors.
        stored: Chunks that hold voxels, and how many there are.
        files: That hold them.
    """

    source: Any
    order: tuple[int, ...]
    format: str
    stored_chunks: tuple[int, ...]
    url: str
    stored: tuple[int, int] = (1, 1)
    files: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape[axis] for axis in self.order)

    @property
    def dtype(self) -> np.dtype:
        dtype: np.dtype = self.source.dtype
        return dtype

    @property
    def chunks(self) -> tuple[int, ...]:
        return tuple(self.stored_chunks[axis] for axis in self.order)

    @property
    def ndim(self) -> int:
        return len(self.order)

    def __getitem__(self, selection: Any) -> np.ndarray:
        """Voxels of a selection by integers, slices of a positive step, and `...`; only the chunks it touches are read.

        Raises:
            StorageError: The file is damaged, or gone.
        """
        parts = _spelled_out(selection, self.shape)
        stored: list[int | slice] = [0] * len(self.source.shape)
        for axis, part in zip(self.order, parts, strict=True):
            stored[axis] = part if isinstance(part, slice) else slice(part, part + 1)
        try:
            voxels = np.asarray(self.source[tuple(stored)])
        except PipelineError:
            raise
        except Exception as error:  # decoders raise whatever they meet in a damaged file
            raise StorageError(
                f"{self.format} volume '{self.url}' cannot be read at {parts} ({first_line(error)}). "
                "The file is damaged, incomplete, or gone: copy it again."
            ) from error
        stored_order = sorted(self.order)
        voxels = voxels.transpose([stored_order.index(axis) for axis in self.order])
        return voxels[tuple(slice(None) if isinstance(part, slice) else 0 for part in parts)]


@dataclass(frozen=True)
class Foreign:
    """What a file holds, read as a volume.

    Args:
        array: Its voxels.
        axes: Of the array, one of `KNOWN_AXES`.
        space: Where they lie.
        warnings: What the file says of them and was not believed, and what it lacks.
    """

    array: ForeignArray
    axes: str
    space: Space
    warnings: tuple[str, ...] = ()


def foreign_place(url: str) -> Place | None:
    """The HDF5 or TIFF file that a location names; None where it names none.

    A folder is no such file, whatever its name: it may be a store.
    """
    if is_url(url):
        return None
    path = Path(url)
    if path.suffix.lower() in TIFF_SUFFIXES and not path.is_dir():
        return Place("TIFF", path)
    for folder in (path, *path.parents):
        if folder.suffix.lower() in HDF5_SUFFIXES and not folder.is_dir():
            inner = path.relative_to(folder).as_posix()
            return Place("HDF5", folder, "" if inner == "." else inner)
    return None


def open_foreign(place: Place, url: str, selection: Selection) -> Foreign:
    """Open a volume of a file.

    Args:
        place: The file.
        url: As it was asked for, for errors.
        selection: What of it is read: a level other than 0 of a TIFF with a pyramid; axes, where they are `auto`, are the
            file's, else by their number.

    Raises:
        StorageError: There is no such file, dataset, level or axes; it is damaged; or the package that reads it is missing.
    """
    with _understood(place, url):
        open_file = open_hdf5 if place.kind == "HDF5" else open_tiff
        description = open_file(place, url, selection.level)
    names, order = _read_as(description, selection.axes, url)
    space, files = _space(description, names), description.files or (str(place.path),)
    array = ForeignArray(description.source, order, place.kind, description.chunks, url, description.stored, files)
    return Foreign(array, names, space, (*description.warnings, *_warnings(description, selection.axes, names, space)))


def foreign_levels(place: Place, url: str) -> int:
    """How many resolution levels a file has; 1 but for a TIFF with a pyramid.

    Raises:
        StorageError: It cannot be opened.
    """
    with _understood(place, url):
        if place.kind == "HDF5":
            open_hdf5(place, url, 0)
            return 1
        file, series = open_series(place, url)
        with file:
            return len(series.levels)


@contextmanager
def _understood(place: Place, url: str) -> Iterator[None]:
    if not place.path.is_file():
        raise StorageError(f"Input '{url}' was asked for, but there is no file '{place.path}'. Check input.url.")
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:  # damaged files raise whatever their readers happen to meet
        raise StorageError(
            f"Input '{url}' is no readable {place.kind} file ({first_line(error)}). Check input.url, or copy it again."
        ) from error


def _spelled_out(selection: Any, shape: tuple[int, ...]) -> tuple[int | slice, ...]:
    """A selection as one integer or slice an axis, none negative."""
    parts = selection if isinstance(selection, tuple) else (selection,)
    if Ellipsis in parts:
        place = parts.index(Ellipsis)
        parts = (*parts[:place], *(slice(None),) * (len(shape) - len(parts) + 1), *parts[place + 1 :])
    parts += (slice(None),) * (len(shape) - len(parts))
    return tuple(
        slice(*part.indices(extent)) if isinstance(part, slice) else range(extent)[part]
        for part, extent in zip(parts, shape, strict=True)
    )


def _read_as(description: Found, asked: str, url: str) -> tuple[str, tuple[int, ...]]:
    """The volume's axes, and which stored axis is behind each.

    A plan opens its input again by the axes that it found: where the file's own names come to what is asked, they are
    followed, so that an order that was changed is changed again.

    Raises:
        StorageError: They come to no volume.
    """
    shape = description.source.shape
    if asked == "auto" and not _is_told(description.names):
        refuse_colours_last(shape, url)
    for letters in (_by_name(description.names, shape), _by_order(description.names, shape, asked)):
        names = "".join(axis for axis in "czyx" if axis in letters)
        if names in KNOWN_AXES and len(names) == len(letters.replace(".", "")) and asked in (names, "auto"):
            return names, tuple(letters.index(axis) for axis in names)
    stored_axes = f"the axes '{description.names}'" if description.names else f"{len(shape)} axes without names"
    raise StorageError(
        f"Volume '{url}' has {stored_axes}, shape {tuple(shape)}, and input.axes is '{asked}'; expected {', '.join(KNOWN_AXES)}, "
        "and others of extent 1. Save one time point at a time, or set input.axes to how its axes are stored."
    )


def _is_told(names: str) -> bool:
    """Whether a file says which axes it has; TIFF's `q` and `i` are axes of pages of which nothing is known."""
    return bool(names) and not set(names) & {"q", "i"}


def _warnings(description: Found, asked: str, names: str, space: Space) -> list[str]:
    """Warnings of what the file lacks, and where the configuration says something else than the file."""
    warnings = []
    letters = _by_name(description.names, description.source.shape).replace(".", "")
    if asked != "auto" and _is_told(description.names) and "".join(sorted(letters, key="czyx".find)) != names:
        warnings.append(f"input.axes '{asked}' governs, but the axes are told as '{description.names}'")
    reading = Reading(names, is_told=asked != "auto" or _is_told(description.names))
    if space.is_unknown and not any("voxel size unknown" in one for one in description.warnings):
        return [*warnings, nothing_told(reading)]
    missing = [axis for axis in names.removeprefix("c") if axis not in description.sizes]
    if missing and not space.is_unknown:
        warnings.append(f"voxel size along {', '.join(missing)} unknown, taken as 1 without a unit")
    if not reading.is_told:
        warnings.append(f"no axes are told, read as {names}; set input.axes if they are others")
    return warnings


def _by_name(names: str, shape: Sequence[int]) -> str:
    """A letter a stored axis, as the file names them; `.` for one of extent 1 that no volume has."""
    letters = "".join("." if n == 1 and axis not in "czyx" else axis for axis, n in zip(names, shape, strict=False))
    return re.sub("[qi]", "z", letters if "c" in letters else letters.replace("s", "c"))


def _by_order(names: str, shape: Sequence[int], asked: str) -> str:
    """A letter a stored axis, in the order asked for, or by their number; `.` for one of extent 1 that is too many."""
    if asked == "auto":
        return "" if names else {2: "yx", 3: "zyx", 4: "czyx"}.get(len(shape), "")
    spare = [n == 1 and axis not in "yx" for axis, n in zip(names or "?" * len(shape), shape, strict=True)]
    kept = [len(shape) == len(asked) or not dropped for dropped in spare]
    letters = iter(asked)
    return "".join(next(letters) if keep else "." for keep in kept) if sum(kept) == len(asked) else ""


def _space(description: Found, axes: str) -> Space:
    spatial = axes.removeprefix("c")
    if not any(axis in description.sizes for axis in spatial):
        return Space.unknown(len(spatial))
    return Space(
        tuple(description.sizes.get(axis, 1.0) for axis in spatial),
        tuple(description.origins.get(axis, 0.0) for axis in spatial),
        tuple(description.units.get(axis) if axis in description.sizes else None for axis in spatial),
    )

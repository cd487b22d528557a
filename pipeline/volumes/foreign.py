"""Volumes in HDF5 and TIFF, read in place: a box at a time, never the whole file, and never written to.

Both packages are optional: what only runs stores in Zarr needs neither.

Threads may read at once: h5py holds one lock over the HDF5 library, and tifffile's view is read by zarr, all of whose
reads go through the one thread of its event loop (only decoding leaves it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.geometry.axes import Reading, Told, nothing_told, read_as
from pipeline.core.locations import is_url
from pipeline.core.volume import Selection, Space
from pipeline.errors import PipelineError, StorageError
from pipeline.volumes.file_metadata import Found, Place, first_line
from pipeline.volumes.hdf5 import open_hdf5
from pipeline.volumes.tiff import open_series, open_tiff

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")


TIFF_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class ForeignArray:
    """A stored array that is sliced as numpy's are.

    Args:
        source: What holds the voxels: an HDF5 dataset, or zarr's view of a TIFF series.
        format: Of the file, `HDF5` or `TIFF`.
        chunks: What the file decodes at once.
        url: For errors.
        stored: Chunks that hold voxels, and how many there are.
        files: That hold them.
    """

    source: Any
    format: str
    chunks: tuple[int, ...]
    url: str
    stored: tuple[int, int] = (1, 1)
    files: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape)

    @property
    def dtype(self) -> np.dtype:
        dtype: np.dtype = self.source.dtype
        return dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, selection: Any) -> np.ndarray:
        """Voxels of a selection by integers, slices of a positive step, and `...`; only the chunks it touches are read.

        Raises:
            StorageError: The file is damaged, or gone.
        """
        parts = _spelled_out(selection, self.shape)
        whole = tuple(part if isinstance(part, slice) else slice(part, part + 1) for part in parts)
        try:
            voxels = np.asarray(self.source[whole])
        except PipelineError:
            raise
        except Exception as error:  # decoders raise whatever they meet in a damaged file
            raise StorageError(
                f"{self.format} volume '{self.url}' cannot be read at {parts} ({first_line(error)}). "
                "The file is damaged, incomplete, or gone: copy it again."
            ) from error
        return voxels[tuple(slice(None) if isinstance(part, slice) else 0 for part in parts)]


@dataclass(frozen=True)
class Foreign:
    """What a file holds, read as a volume.

    Args:
        array: Its voxels.
        reading: Which axes they have.
        space: Where they lie.
        warnings: What the file says of them and was not believed, and what it lacks.
    """

    array: ForeignArray
    reading: Reading
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
    shape = tuple(description.source.shape)
    told = _told(description.names, shape, place.kind)
    reading = read_as([told] if told else [], shape, selection.axes, url, follows=True)
    space, files = _space(description, reading.axes), description.files or (str(place.path),)
    array = ForeignArray(description.source, place.kind, description.chunks, url, description.stored, files)
    return Foreign(
        array, reading, space, (*description.warnings, *reading.warnings, *_warnings(description, reading, space))
    )


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


def _told(names: str, shape: Sequence[int], kind: str) -> Told | None:
    """The axes that a file names, by our letters; None where it names none.

    TIFF's samples `s` are channels, and so are colours beside one channel; its `q` and `i` are axes of pages of which nothing is known.
    """
    if not names:
        return None
    extents = dict(zip(names, shape, strict=True))
    letters = list(names)
    if extents.get("s", 1) > 1 and extents.get("c", 1) == 1:
        letters = [{"s": "c", "c": "s"}.get(letter, letter) for letter in letters]
    letters = ["z" if letter in "qi" and extent > 1 else letter for letter, extent in zip(letters, shape, strict=True)]
    return Told(kind, tuple(letters), is_sure=not set(names) & {"q", "i"})


def _warnings(description: Found, reading: Reading, space: Space) -> list[str]:
    """Warnings of what the file lacks."""
    if space.is_unknown and not any("voxel size unknown" in one for one in description.warnings):
        return [nothing_told(reading)]
    warnings = []
    missing = [axis for axis in reading.axes.removeprefix("c") if axis not in description.sizes]
    if missing and not space.is_unknown:
        warnings.append(f"voxel size along {', '.join(missing)} unknown, taken as 1 without a unit")
    if not reading.is_told:
        warnings.append(f"no axes are told, read as {reading.axes}; set input.axes if they are others")
    return warnings


def _space(description: Found, axes: str) -> Space:
    spatial = axes.removeprefix("c")
    if not any(axis in description.sizes for axis in spatial):
        return Space.unknown(len(spatial))
    return Space(
        tuple(description.sizes.get(axis, 1.0) for axis in spatial),
        tuple(description.origins.get(axis, 0.0) for axis in spatial),
        tuple(description.units.get(axis) if axis in description.sizes else None for axis in spatial),
    )

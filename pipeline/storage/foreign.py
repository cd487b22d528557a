"""Volumes in HDF5 and TIFF, read in place: a box at a time, never the whole file, and never written to.

Both packages are optional: what only runs stores in Zarr needs neither.

Threads may read at once: h5py holds one lock over the HDF5 library, and tifffile's view is read by zarr, all of whose
reads go through the one thread of its event loop (only decoding leaves it).

Sources: HDF5 attributes of Fiji's HDF5 plugin (`element_size_um`), of funlib and CREMI (`resolution`, `offset`), of
ilastik (`axistags`); TIFF 6.0; ImageJ's TIFF metadata; the OME-XML of OME-TIFF, 2016-06.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import zarr

from pipeline.core.volume import KNOWN_AXES, Space
from pipeline.errors import PipelineError, StorageError

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")
TIFF_SUFFIXES = (".tif", ".tiff")

PAGE_BYTES = 2**24
"""Pages in strips are decoded whole up to this size, strip by strip above: strips are often a few rows, and each costs a call."""

NAMED = 20
"""Datasets that a refusal names at most."""

UNITS = {
    "nanometer": ("nm", "nanometer", "nanometers", "nanometre", "nanometres"),
    "micrometer": ("um", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"),
    "millimeter": ("mm", "millimeter", "millimeters", "millimetre", "millimetres"),
    "angstrom": ("å", "angstrom", "angstroms"),
    "centimeter": ("cm", "centimeter", "centimeters", "centimetre", "centimetres"),
    "meter": ("m", "meter", "meters", "metre", "metres"),
    "inch": ("in", "inch", "inches"),
}
"""Units as files spell them, by their UDUNITS names."""

RESOLUTIONS = {"element_size_um": "micrometer", "resolution": "nanometer", "voxel_size": "nanometer"}
"""Attributes of HDF5 datasets that tell the size of a voxel, z, y, x, and the unit that they mean."""

_DAMAGE = re.compile(
    r"invalid page offset|invalid offset to |corrupted tag list|circular|ImageJ series metadata invalid"
)
"""What tifffile logs of a file whose pages cannot all be found, before it goes on with those that can."""


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
class ForeignArray:
    """A stored array that is sliced as numpy's are, its axes in an order of our own.

    Args:
        source: What holds the voxels: an HDF5 dataset, or zarr's view of a TIFF series.
        order: The source's axis behind each of ours; those that are left out have an extent of 1.
        format: Of the file, `HDF5` or `TIFF`.
        stored_chunks: What the file decodes at once, along the source's axes.
        url: For errors.
    """

    source: Any
    order: tuple[int, ...]
    format: str
    stored_chunks: tuple[int, ...]
    url: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.source.shape[axis] for axis in self.order)

    @property
    def dtype(self) -> np.dtype:
        return self.source.dtype

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
        asked = _spelled_out(selection, self.shape)
        stored: list[int | slice] = [0] * len(self.source.shape)
        for axis, part in zip(self.order, asked, strict=True):
            stored[axis] = part if isinstance(part, slice) else slice(part, part + 1)
        try:
            found = np.asarray(self.source[tuple(stored)])
        except Exception as error:  # decoders raise whatever they meet in a damaged file
            raise StorageError(
                f"{self.format} volume '{self.url}' cannot be read at {asked} ({_first_line(error)}). "
                "The file is damaged, incomplete, or gone: copy it again."
            ) from error
        kept = sorted(self.order)
        found = found.transpose([kept.index(axis) for axis in self.order])
        return found[tuple(slice(None) if isinstance(part, slice) else 0 for part in asked)]


@dataclass(frozen=True)
class Foreign:
    """What a file holds, read as a volume.

    Args:
        array: Its voxels.
        axes: Of the array, one of `KNOWN_AXES`.
        space: Where they lie.
    """

    array: ForeignArray
    axes: str
    space: Space


@dataclass(frozen=True)
class _Found:
    """What a file says of its array, before it is read as a volume. Sizes, origins and units by axis."""

    source: Any
    chunks: tuple[int, ...]
    names: str
    sizes: Mapping[str, float] = field(default_factory=dict)
    origins: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, str | None] = field(default_factory=dict)


def foreign_place(url: str) -> Place | None:
    """The HDF5 or TIFF file that a location names; None where it names none.

    A folder is no such file, whatever its name: it may be a store.
    """
    if "://" in url:
        return None
    path = Path(url)
    if path.suffix.lower() in TIFF_SUFFIXES and not path.is_dir():
        return Place("TIFF", path)
    for folder in (path, *path.parents):
        if folder.suffix.lower() in HDF5_SUFFIXES and not folder.is_dir():
            inner = path.relative_to(folder).as_posix()
            return Place("HDF5", folder, "" if inner == "." else inner)
    return None


def open_foreign(place: Place, url: str, *, level: int, axes: str) -> Foreign:
    """Open a volume of a file.

    Args:
        place: The file.
        url: As it was asked for, for errors.
        level: Of a TIFF with a pyramid; 0 otherwise.
        axes: Axes as stored, or `auto`: the file's, else by their number.

    Raises:
        StorageError: There is no such file, dataset, level or axes; it is damaged; or the package that reads it is missing.
    """
    with _understood(place, url):
        found = _hdf5(place, url, level) if place.kind == "HDF5" else _tiff(place, url, level)
    names, order = _read_as(found, axes, url)
    return Foreign(ForeignArray(found.source, order, place.kind, found.chunks, url), names, _space(found, names))


def foreign_levels(place: Place, url: str) -> int:
    """How many resolution levels a file has; 1 but for a TIFF with a pyramid.

    Raises:
        StorageError: It cannot be opened.
    """
    with _understood(place, url):
        if place.kind == "HDF5":
            _hdf5(place, url, 0)
            return 1
        file, series = _series(place, url)
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
            f"Input '{url}' is no readable {place.kind} file ({_first_line(error)}). Check input.url, or copy it again."
        ) from error


def _imported(name: str, url: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise StorageError(
            f"Input '{url}' needs the package {name}, which is not installed here. Run: pip install 'halotile[train]'"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


# --- axes and places ----------------------------------------------------------------------------------------------------


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


def _read_as(found: _Found, asked: str, url: str) -> tuple[str, tuple[int, ...]]:
    """The volume's axes, and which stored axis is behind each.

    A plan opens its input again by the axes that it found: where the file's own names come to what is asked, they are
    followed, so that an order that was changed is changed again.

    Raises:
        StorageError: They come to no volume.
    """
    shape = found.source.shape
    for letters in (_by_name(found.names, shape), _by_order(found.names, shape, asked)):
        names = "".join(axis for axis in "czyx" if axis in letters)
        if names in KNOWN_AXES and len(names) == len(letters.replace(".", "")) and asked in (names, "auto"):
            return names, tuple(letters.index(axis) for axis in names)
    told = f"the axes '{found.names}'" if found.names else f"{len(shape)} axes without names"
    raise StorageError(
        f"Volume '{url}' has {told}, shape {tuple(shape)}, and input.axes is '{asked}'; expected {', '.join(KNOWN_AXES)}, "
        "and others of extent 1. Save one time point at a time, or set input.axes to how its axes are stored."
    )


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


def _space(found: _Found, axes: str) -> Space:
    spatial = axes.removeprefix("c")
    if not any(axis in found.sizes for axis in spatial):
        return Space.unknown(len(spatial))
    return Space(
        tuple(found.sizes.get(axis, 1.0) for axis in spatial),
        tuple(found.origins.get(axis, 0.0) for axis in spatial),
        tuple(found.units.get(axis) if axis in found.sizes else None for axis in spatial),
    )


def _unit(spelling: Any) -> str | None:
    """UDUNITS' name of a unit; None for one that is no length, such as `pixel`."""
    told = spelling.decode("utf-8", "replace") if isinstance(spelling, bytes) else str(spelling)
    told = told.strip().lower().replace("\\u00b5", "u").replace("\u00b5", "u").replace("\u03bc", "u")
    return next((name for name, spellings in UNITS.items() if told in spellings), None)


def _sizes(values: Any) -> dict[str, float]:
    """Two or three lengths by axis, the last along x; nothing where they are none."""
    lengths = _numbers(values)
    usable = len(lengths) in (2, 3) and all(length > 0 for length in lengths)
    return dict(zip("zyx"[-len(lengths) :], lengths, strict=True)) if usable else {}


def _numbers(values: Any) -> list[float]:
    """Finite numbers, of whatever somebody wrote; none where one of them is no number."""
    try:
        found = np.asarray(values, dtype=np.float64).ravel().tolist()
    except (TypeError, ValueError):
        return []
    return found if all(map(isfinite, found)) else []


# --- HDF5 ---------------------------------------------------------------------------------------------------------------


def _hdf5(place: Place, url: str, level: int) -> _Found:
    """A dataset, described. The file is closed when the dataset is let go."""
    h5py = _imported("h5py", url)
    if level != 0:
        raise StorageError(f"input.level is {level}, but '{url}' is a plain array with level 0 alone. Leave it at 0.")
    file = h5py.File(place.path, "r")
    try:
        dataset = file.get(place.inner) if place.inner else None
        if not isinstance(dataset, h5py.Dataset):
            raise _no_dataset(h5py, file, place, url, dataset)
        _check_filters(h5py, dataset, url)
        shape = dataset.shape or ()
        chunks = dataset.chunks or (1,) * (len(shape) - 2) + tuple(shape[-2:])
        return _Found(dataset, chunks, _hdf5_axes(dataset.attrs, shape), *_hdf5_places(dataset.attrs))
    except BaseException:
        file.close()
        raise


def _no_dataset(h5py: ModuleType, file: Any, place: Place, url: str, found: Any) -> StorageError:
    there: dict[str, str] = {}

    def note(name: str, node: Any) -> bool | None:
        if isinstance(node, h5py.Dataset):
            there[name] = f"'{name}' {node.shape} {node.dtype}" if len(there) < NAMED else "and more"
        return True if len(there) > NAMED else None  # anything but None ends the visit

    file.visititems(note)
    listed = "; ".join(there.values()) or "no dataset at all"
    asked = f"'{place.inner}' is {'a group' if found is not None else 'not there'}" if place.inner else "none was named"
    first = next(iter(there), "raw")
    return StorageError(
        f"Input '{url}' should name a dataset of the HDF5 file '{place.path}', but {asked}. It holds: {listed}. "
        f"Append one of them to the file's name, such as '{place.path}/{first}'."
    )


def _check_filters(h5py: ModuleType, dataset: Any, url: str) -> None:
    """Refuse a compression that this HDF5 library does not know, before a run meets it in the first box."""
    created = dataset.id.get_create_plist()
    filters = [created.get_filter(i) for i in range(created.get_nfilters())]
    missing = [
        f"{code} {name.decode(errors='replace')}" for code, _, _, name in filters if not h5py.h5z.filter_avail(code)
    ]
    if missing:
        raise StorageError(
            f"Input '{url}' is compressed with the HDF5 filter {', '.join(missing)}, which is not installed here. "
            "Install hdf5plugin and set HDF5_PLUGIN_PATH to its plugins, or rewrite the dataset with gzip (h5repack)."
        )


def _hdf5_axes(attributes: Mapping[str, Any], shape: Sequence[int]) -> str:
    """Names of axes as ilastik (`axistags`) or an attribute `axes` tell them; nothing where none are told that fit."""
    try:
        names = "".join(axis["key"] for axis in json.loads(attributes["axistags"])["axes"])
    except (KeyError, TypeError, ValueError):
        names = attributes.get("axes", "")
    names = names.lower() if isinstance(names, str) else ""
    return names if len(names) == len(shape) else ""


def _hdf5_places(attributes: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float], dict[str, str | None]]:
    """Size, origin and unit by axis, where attributes tell them."""
    name = next((name for name in RESOLUTIONS if _sizes(attributes.get(name))), None)
    if name is None:
        return {}, {}, {}
    sizes = _sizes(attributes[name])
    if name == "element_size_um":
        return sizes, {}, dict.fromkeys(sizes, RESOLUTIONS[name])
    origin = _numbers(attributes.get("offset"))
    origins = dict(zip(sizes, origin, strict=True)) if len(origin) == len(sizes) else {}
    return sizes, origins, _hdf5_units(attributes.get("units", attributes.get("unit")), sizes, RESOLUTIONS[name])


def _hdf5_units(told: Any, sizes: Mapping[str, float], usual: str) -> dict[str, str | None]:
    """Unit by axis, of one name for all or one for each, the last along x; the usual one where none is told."""
    if told is None:
        return dict.fromkeys(sizes, usual)
    spelled = [told] * len(sizes) if isinstance(told, str | bytes) else np.ravel(told).tolist()[-len(sizes) :]
    return dict(zip(sizes, map(_unit, spelled), strict=False))


# --- TIFF ---------------------------------------------------------------------------------------------------------------


def _tiff(place: Place, url: str, level: int) -> _Found:
    """A series of pages as tifffile's zarr store, described. The file is closed when the array is let go."""
    file, series = _series(place, url)
    try:
        if level >= len(series.levels):
            raise StorageError(
                f"input.level is {level}, but '{url}' has levels 0 to {len(series.levels) - 1}. Choose one of them."
            )
        chosen = series.levels[level]
        _check_whole(file, chosen, url)
        sizes, units = _tiff_places(file, series)
        coarser = _coarser(series, chosen)
        array = zarr.open_array(series.aszarr(level=level, chunkmode=_chunk_mode(chosen)), mode="r", zarr_format=2)
    except BaseException:
        file.close()
        raise
    weakref.finalize(array, file.close)
    origins = {axis: (coarser[axis] - 1) / 2 * size for axis, size in sizes.items() if axis in coarser}
    sizes = {axis: size * coarser.get(axis, 1) for axis, size in sizes.items()}
    return _Found(array, array.chunks, chosen.axes.lower(), sizes, origins, units)


def _series(place: Place, url: str) -> tuple[Any, Any]:
    """The open file, and its image: the only series, or the one that all others are smaller than (thumbnails, labels)."""
    tifffile = _imported("tifffile", url)
    with _complaints("tifffile") as complaints:
        file = tifffile.TiffFile(place.path)
        try:
            series = sorted(file.series, key=lambda one: one.size, reverse=True)
            damage = next((text for text in complaints if _DAMAGE.search(text)), None)
            if damage or not series:
                raise StorageError(
                    f"Input '{url}' is a TIFF whose pages cannot all be found ({damage or 'it has none'}). "
                    "The file is damaged or incomplete: copy it again."
                )
            if len(series) > 1 and series[1].size == series[0].size:
                told = "; ".join(f"{one.axes} {one.shape}" for one in islice(series, NAMED))
                raise StorageError(
                    f"Input '{url}' holds {len(series)} images ({told}), and none is larger than all others. "
                    "Save the one that is meant in a file of its own."
                )
        except BaseException:
            file.close()
            raise
    return file, series[0]


@contextmanager
def _complaints(logger: str) -> Iterator[list[str]]:
    """What a logger is told meanwhile: tifffile logs damage, and reads what is left."""
    told: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    listened = logging.getLogger(logger)
    listened.addHandler(handler)
    try:
        yield told
    finally:
        listened.removeHandler(handler)


def _check_whole(file: Any, series: Any, url: str) -> None:
    """Refuse what would be read as zeros, or raise in mid-run.

    Raises:
        StorageError: Pages are missing, lie behind the file's end, or are compressed in a way that cannot be read here.
    """
    if series.kind == "ome" and any(page is None for page in series):
        missing = sum(page is None for page in series)
        raise StorageError(
            f"Input '{url}' is an OME-TIFF of {len(series)} planes, {missing} of which are in no file that is there; they "
            "would be read as zeros. Put its other files beside it."
        )
    page = series.keyframe
    behind = series.dataoffset + series.nbytes if series.dataoffset is not None else 0
    if behind > file.filehandle.size:
        raise StorageError(
            f"Input '{url}' should hold {behind} bytes, but the file ends at {file.filehandle.size}. Copy it again."
        )
    decoders = _imported("tifffile", url).TIFF.DECOMPRESSORS
    try:
        decoders[page.compression]
    except KeyError as error:
        raise StorageError(
            f"Input '{url}' is a TIFF with the compression {page.compression!r}, which tifffile cannot read alone. "
            "Run: pip install imagecodecs"
        ) from error


def _chunk_mode(series: Any) -> int:
    """0: tiles and strips are what is decoded at once; 2: whole pages are."""
    page = series.keyframe
    return 0 if page.is_tiled or page.nbytes > PAGE_BYTES else 2


def _coarser(series: Any, chosen: Any) -> dict[str, int]:
    """How many voxels of level 0 one of the chosen level spans, by axis."""
    pairs = zip(series.axes.lower(), series.shape, chosen.shape, strict=True)
    return {axis: max(round(fine / coarse), 1) for axis, fine, coarse in pairs}


def _tiff_places(file: Any, series: Any) -> tuple[dict[str, float], dict[str, str | None]]:
    """Size and unit by axis, of ImageJ's metadata or OME-XML; plain TIFF tells dots per inch, which mean nothing here."""
    if file.is_ome and file.ome_metadata:
        return _ome_places(file.ome_metadata, file.series.index(series))
    told = file.imagej_metadata
    if not told:
        return {}, {}
    sizes = {
        "z": abs((_numbers(told.get("spacing")) or [1.0])[0]),
        "y": _inverse(series.keyframe, "YResolution"),
        "x": _inverse(series.keyframe, "XResolution"),
    }
    unit = _unit(told.get("unit", ""))
    if unit is None and set(sizes.values()) == {1.0}:
        return {}, {}
    usable = {axis: size for axis, size in sizes.items() if isfinite(size) and size > 0}
    return usable, dict.fromkeys(usable, unit)


def _inverse(page: Any, tag: str) -> float:
    """Length a pixel, of a tag that tells pixels a length."""
    found = page.tags.get(tag)
    count, length = found.value if found is not None else (1, 1)
    return length / count if count else 0.0


def _ome_places(xml: str, index: int) -> tuple[dict[str, float], dict[str, str | None]]:
    """Physical sizes of the `index`-th image of an OME-XML; micrometre where it names no unit (OME 2016-06, Pixels)."""
    try:
        pixels = [node for node in ElementTree.fromstring(xml).iter() if node.tag.endswith("}Pixels")]
    except ElementTree.ParseError:
        return {}, {}
    told = pixels[index].attrib if index < len(pixels) else {}
    found = {axis: _numbers(told.get(f"PhysicalSize{axis.upper()}")) for axis in "zyx"}
    sizes = {axis: values[0] for axis, values in found.items() if values and values[0] > 0}
    return sizes, {axis: _unit(told.get(f"PhysicalSize{axis.upper()}Unit", "um")) for axis in sizes}

"""A dataset of an HDF5 file, described and left where it is.

Sources: attributes of Fiji's HDF5 plugin (`element_size_um`), of funlib and CREMI (`resolution`, `offset`), of ilastik
(`axistags`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.core.geometry.axes import letter_of
from pipeline.core.geometry.lengths import unit_of
from pipeline.errors import StorageError
from pipeline.volumes.file_metadata import (
    NAMED,
    Found,
    Place,
    first_line,
    imported,
    lengths_of,
    numbers_of,
    shown,
    strange_units,
)
from pipeline.volumes.virtual import Elsewhere, located

CACHE_BYTES = 2**26
"""Of decoded chunks, kept for the next box that touches them: patches overlap."""

RESOLUTIONS = {"element_size_um": "micrometer", "resolution": "nanometer", "voxel_size": "nanometer"}
"""Attributes of HDF5 datasets that hold the size of a voxel, z, y, x, and the unit that they mean."""


def open_hdf5(place: Place, url: str, level: int) -> Found:
    """A dataset, described. The file is closed when the dataset is let go."""
    h5py = imported("h5py", url)
    if level != 0:
        raise StorageError(f"input.level is {level}, but '{url}' is a plain array with level 0 alone. Leave it at 0.")
    file = h5py.File(place.path, "r", rdcc_nbytes=CACHE_BYTES)
    try:
        dataset = file.get(place.inner) if place.inner else None
        if not isinstance(dataset, h5py.Dataset):
            raise _no_dataset(h5py, file, place, url, dataset)
        _check_filters(h5py, dataset, url)
        shape = dataset.shape or ()
        chunks = dataset.chunks or (1,) * (len(shape) - 2) + tuple(shape[-2:])
        axes, ignored = _hdf5_axes(dataset)
        sizes, origins, units, warnings = _hdf5_places(dataset.attrs)
        source = located(dataset, url)
        files = tuple(map(str, (place.path, *source.needed))) if isinstance(source, Elsewhere) else ()
        return Found(source, chunks, axes, sizes, origins, units, (*ignored, *warnings), _stored(dataset), files)
    except BaseException:
        file.close()
        raise


def _stored(dataset: Any) -> tuple[int, int]:
    """Chunks that hold voxels, and how many there are; one where the dataset has none, or its voxels lie in other files."""
    if dataset.is_virtual or dataset.external:
        return 1, 1
    if not dataset.chunks:
        return int(dataset.id.get_storage_size() > 0), 1
    return dataset.id.get_num_chunks(), prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))


def dataset_names(path: str) -> list[str]:
    """Datasets of a file that may be volumes: numbers, along two axes at least. No more than `NAMED` and one are looked for.

    Raises:
        StorageError: The file cannot be opened.
    """
    h5py = imported("h5py", path)
    names: list[str] = []

    def note(name: str, node: Any) -> bool | None:
        if isinstance(node, h5py.Dataset) and node.ndim >= 2 and node.dtype.kind in "buif":
            names.append(name)
        return True if len(names) > NAMED else None  # anything but None ends the visit

    try:
        with h5py.File(path, "r") as file:
            file.visititems(note)
    except Exception as error:  # damaged files raise whatever their reader happens to meet
        raise StorageError(
            f"'{path}' is no readable HDF5 file ({first_line(error)}). It is incomplete or damaged, or being written: copy it again."
        ) from error
    return names


def _no_dataset(h5py: ModuleType, file: Any, place: Place, url: str, dataset: Any) -> StorageError:
    datasets: dict[str, str] = {}

    def note(name: str, node: Any) -> bool | None:
        if isinstance(node, h5py.Dataset):
            datasets[name] = f"'{name}' {node.shape} {node.dtype}" if len(datasets) < NAMED else "and more"
        return True if len(datasets) > NAMED else None  # anything but None ends the visit

    file.visititems(note)
    listed = "; ".join(datasets.values()) or "no dataset at all"
    fault = (
        f"'{place.inner}' is {'a group' if dataset is not None else 'not there'}" if place.inner else "none was named"
    )
    first = next(iter(datasets), "raw")
    return StorageError(
        f"Input '{url}' should name a dataset of the HDF5 file '{place.path}', but {fault}. It holds: {listed}. "
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


def _hdf5_axes(dataset: Any) -> tuple[str, tuple[str, ...]]:
    """Names of axes as ilastik (`axistags`), an attribute `axes` or HDF5's labels of dimensions have them; and what was not believed."""
    warnings: list[str] = []
    for by, names in _names_of_axes(dataset):
        letters = "".join(map(letter_of, names))
        if not letters:
            continue
        if len(names) == len(letters) == dataset.ndim:
            return letters, tuple(warnings)
        warnings.append(
            f"axes '{shown(', '.join(map(str, names)))}' are told by {by} of an array that has {dataset.ndim}: not believed"
        )
    return "", tuple(warnings)


def _names_of_axes(dataset: Any) -> Iterator[tuple[str, list[Any]]]:
    attributes = dataset.attrs
    if "axistags" in attributes:
        try:
            yield "axistags", [axis["key"] for axis in json.loads(attributes["axistags"])["axes"]]
        except (KeyError, TypeError, ValueError, RecursionError):
            yield "axistags", ["what cannot be read"]
    axes = attributes.get("axes")
    if axes is not None:
        axes = axes.decode("utf-8", "replace") if isinstance(axes, bytes) else axes
        names = list(axes) if isinstance(axes, str) else np.ravel(axes).tolist()
        yield (
            "the attribute axes",
            [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names],
        )
    yield "its labels of dimensions", [dimension.label for dimension in dataset.dims]


def _hdf5_places(
    attributes: Mapping[str, Any],
) -> tuple[dict[str, float], dict[str, float], dict[str, str | None], tuple[str, ...]]:
    """Size, origin and unit by axis, where attributes have them; and what was not believed."""
    name = next((name for name in RESOLUTIONS if lengths_of(attributes.get(name))), None)
    strange = [
        f"{other} of {shown(attributes[other])}"
        for other in RESOLUTIONS
        if other != name and attributes.get(other) is not None
    ]
    if name is None:
        return (
            {},
            {},
            {},
            tuple(
                f"voxel size unknown: {one} is told, which is no size along two or three axes" for one in strange[:1]
            ),
        )
    sizes = lengths_of(attributes[name])
    warnings = [f"voxel size: {name} of {shown(attributes[name])} is believed; {one} is told, too" for one in strange]
    if name == "element_size_um":
        return sizes, {}, dict.fromkeys(sizes, RESOLUTIONS[name]), tuple(warnings)
    origin = numbers_of(attributes.get("offset"))
    origins = dict(zip(sizes, origin, strict=True)) if len(origin) == len(sizes) else {}
    if not origins and attributes.get("offset") is not None:
        warnings.append(f"origin unknown, taken as 0: an offset of {shown(attributes['offset'])} is told")
    units, strange = _hdf5_units(attributes.get("units", attributes.get("unit")), sizes, RESOLUTIONS[name])
    return sizes, origins, units, (*warnings, *strange)


def _hdf5_units(unit_names: Any, sizes: Mapping[str, float], usual: str) -> tuple[dict[str, str | None], list[str]]:
    """Unit by axis, of one name for all or one for each, the last along x; the usual one where none is written."""
    if unit_names is None:
        return dict.fromkeys(sizes, usual), []
    spelled = (
        [unit_names] * len(sizes)
        if isinstance(unit_names, str | bytes)
        else np.ravel(unit_names).tolist()[-len(sizes) :]
    )
    spelled = [*[None] * (len(sizes) - len(spelled)), *spelled]
    units = dict(zip(sizes, map(unit_of, spelled), strict=True))
    return units, strange_units(dict(zip(sizes, spelled, strict=True)), units)

"""An input volume, read as (C, Z, Y, X) boxes: a Zarr v2 or v3 array, one level of an OME-Zarr image, HDF5 or TIFF.

Never written to: it is opened read-only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.types import AnyArray

from pipeline.core.channels import chosen_channels
from pipeline.core.geometry.axes import Reading, Told, nothing_told, read_as
from pipeline.core.geometry.box import Box, Triple, per_axis
from pipeline.core.locations import is_url, without_file_scheme
from pipeline.core.volume import FINEST, KNOWN_AXES, Description, Selection, Space
from pipeline.errors import PipelineError, StorageError
from pipeline.places.objects import ObjectStore, advice, refusal, told
from pipeline.places.stores import first_document, input_store
from pipeline.volumes.bounds import check_extents
from pipeline.volumes.decoding import checked
from pipeline.volumes.foreign import ForeignArray, foreign_levels, foreign_place, open_foreign
from pipeline.volumes.ome import Multiscale, first_of, read_multiscales
from pipeline.volumes.parents import Level, level_of

XARRAY = "_ARRAY_DIMENSIONS"
"""Attribute in which xarray keeps the names of an array's axes."""


@dataclass(frozen=True)
class Volume:
    """A volume that can be read in boxes.

    Args:
        description: What it is.
        array: What is behind it, with its axes: shape, dtype, chunks, and slices as of numpy.
        warnings: What its metadata say and was not believed, and what they lack.
        letters: An axis of the array each, of t, c, z, y, x, or `.` for one that is passed over; empty where they are the description's axes.
    """

    description: Description
    array: AnyArray | ForeignArray | np.ndarray
    warnings: tuple[str, ...] = ()
    letters: str = ""

    @property
    def stored_axes(self) -> str:
        """A letter per axis of the array."""
        return self.letters or self.description.axes

    @property
    def shape(self) -> Triple:
        return self.description.shape

    @property
    def place(self) -> str:
        """Where its voxels are stored: the array's folder or prefix, or the file."""
        url = self.description.url
        if file := foreign_place(url):
            return str(file.path)
        return f"{url.rstrip('/')}/{self.stored.path}".rstrip("/")

    @property
    def stored(self) -> AnyArray:
        """The Zarr array that is behind it.

        Raises:
            TypeError: It is no Zarr array, but one of another format, or in memory.
        """
        if not isinstance(self.array, zarr.Array):
            raise TypeError(f"'{self.description.url}' is no Zarr array, but a {type(self.array).__name__}.")
        return self.array

    @property
    def format(self) -> str:
        """How it is stored: `Zarr v2`, `Zarr v3`, `HDF5` or `TIFF`."""
        if isinstance(self.array, ForeignArray):
            return self.array.format
        return f"Zarr v{self.stored.metadata.zarr_format}"

    @property
    def chunks(self) -> tuple[int, ...]:
        """Extents that are decoded at once, along the array's axes; all of an array in memory."""
        return self.array.shape if isinstance(self.array, np.ndarray) else self.array.chunks

    @property
    def shards(self) -> tuple[int, ...] | None:
        """Extents of a shard along the array's axes; None where there are none."""
        return self.array.shards if isinstance(self.array, zarr.Array) else None

    @property
    def unit(self) -> str:
        """What a stored object holds: `chunk` or `shard`."""
        return "shard" if self.shards else "chunk"

    @property
    def files(self) -> int:
        """How many files or objects hold its voxels, where none is missing."""
        if isinstance(self.array, ForeignArray):
            return 1
        array = self.stored
        return prod(-(-extent // part) for extent, part in zip(array.shape, array.shards or array.chunks, strict=True))

    def read(self, box: Box) -> np.ndarray:
        """Voxels of a box inside the volume, (C, Z, Y, X), the stored dtype.

        Raises:
            StorageError: They are damaged, or out of reach.
        """
        spans = dict(zip("zyx", per_axis(slice, box.start, box.stop), strict=True))
        chosen = self.description.chosen
        try:
            if not chosen:
                return self._read(spans)
            if self.chunks[self.stored_axes.index("c")] == 1:
                return np.concatenate([self._read(spans | {"c": slice(c, c + 1)}) for c in chosen])
            first = min(chosen)  # a chunk holds several: all between them are decoded once
            return self._read(spans | {"c": slice(first, max(chosen) + 1)})[[c - first for c in chosen]]
        except PipelineError:
            raise
        except Exception as error:  # file systems, stores and codecs raise anything, zlib.error and EOFError too
            url = self.description.url
            if is_url(url) and (refused := refusal(url, "be read", error)):
                raise refused from None
            raise StorageError(
                f"Volume '{self.description.url}' could not be read: the box {box} gave {type(error).__name__}: {error}. It is "
                "damaged or out of reach there; repair it."
            ) from error

    def _read(self, spans: Mapping[str, slice]) -> np.ndarray:
        """Voxels of a span of each axis, (C, Z, Y, X); of one that is not stored there is one, of one that is passed over the first."""
        stored, axes = self.stored_axes, self.description.axes
        first_or_all = [slice(None) if axis == "c" else slice(0, 1) for axis in stored]
        voxels = np.asarray(self.array[tuple(map(spans.get, stored, first_or_all))])
        voxels = voxels.reshape([n for axis, n in zip(stored, voxels.shape, strict=True) if axis in axes])
        kept = [axis for axis in stored if axis in axes]
        voxels = voxels.transpose([kept.index(axis) for axis in axes])
        return np.ascontiguousarray(np.expand_dims(voxels, [i for i, axis in enumerate("czyx") if axis not in axes]))


def open_volume(url: str, selection: Selection = FINEST) -> Volume:
    """Open a volume.

    Args:
        url: A Zarr array or an OME-Zarr group, its path or a URL such as `s3://bucket/volume.zarr`; a dataset of an HDF5 file
            (`FILE.h5/inner/dataset`), or a TIFF file.
        selection: What of it is read. Axes are, where they are `auto`, those of the image that it is a level of, else its own
            `dimension_names`, else xarray's `_ARRAY_DIMENSIONS`, else by their number.

    Raises:
        StorageError: There is no such store, level or axes, or its type is not numeric.
    """
    url = without_file_scheme(url)
    place = foreign_place(url)
    if place is not None:
        file = open_foreign(place, url, selection)
        opened = _Opened(file.array, file.reading, file.space, file.warnings)
    else:
        opened = _open_zarr(url, selection)
    array, stored = opened.array, opened.reading.stored
    if array.dtype.kind not in "buif":
        raise StorageError(f"Volume '{url}' has dtype {array.dtype}; expected integers or floats. Convert it first.")
    if 0 in array.shape:
        raise StorageError(f"Volume '{url}' has shape {array.shape}: there is no voxel to predict. Check input.url.")
    check_extents(array.shape, array.chunks, array.dtype.itemsize, url)
    channels = dict(zip(stored, array.shape, strict=True)).get("c", 1)
    chosen = chosen_channels(selection.channels, channels, opened.channel_names, url)
    return Volume(_description(url, selection, opened, chosen), array, opened.warnings, stored)


@dataclass(frozen=True, slots=True)
class _Opened:
    """An array, with what its metadata say."""

    array: AnyArray | ForeignArray
    reading: Reading
    space: Space
    warnings: tuple[str, ...] = ()
    channel_names: tuple[str, ...] = ()


def _open_zarr(url: str, selection: Selection) -> _Opened:
    with _understood(url):
        node = _open(url)
        image, warnings = _image(node, url)
        array = checked(_level(node, image.image if image else None, url, selection.level), url)
    sources = [*([image.image.axes] if image else []), *_own_axes(array)]
    reading = read_as(sources, array.shape, selection.axes, url)
    warnings += reading.warnings
    if image:
        space, unclear = image.image.space(
            selection.level if isinstance(node, zarr.Group) else image.level, reading.stored
        )
        unnamed = (
            () if reading.is_told else (f"no axes are told, read as {reading.axes}; set input.axes if they are others",)
        )
        return _Opened(array, reading, space, (*warnings, *unnamed, *unclear), image.image.channels)
    space = Space.unknown(len(reading.axes.removeprefix("c")))
    return _Opened(array, reading, space, (*warnings, nothing_told(reading)))


def _image(node: AnyArray | zarr.Group, url: str) -> tuple[Level | None, tuple[str, ...]]:
    """The image that a store is or is a level of, where there is one; and what should be known of it."""
    if isinstance(node, zarr.Array):
        level, warnings = level_of(url)
        return level, (*warnings, *(level.warnings if level else ()))
    images = read_multiscales(dict(node.attrs), url)
    return (Level(images[0], 0) if images else None), first_of(images)


def _own_axes(array: AnyArray) -> Iterator[Told]:
    """Names of axes in the metadata of the array itself."""
    if names := getattr(array.metadata, "dimension_names", None):
        yield Told("dimension_names", tuple(names))
    names = array.attrs.get(XARRAY)
    if names is not None:
        yield Told(XARRAY, tuple(names) if isinstance(names, list | str) else (str(names),))


def is_volume_file(url: str) -> bool:
    """Whether a location names a volume in an HDF5 or TIFF file, by its suffix; the file need not be there."""
    return foreign_place(without_file_scheme(url)) is not None


def store_levels(url: str) -> int:
    """How many resolution levels a store has; 1 for a plain array.

    Raises:
        StorageError: It is no store, or a group that is no image.
    """
    url = without_file_scheme(url)
    place = foreign_place(url)
    if place is not None:
        return foreign_levels(place, url)
    with _understood(url):
        node = _open(url)
        image = next(iter(read_multiscales(dict(node.attrs), url)), None) if isinstance(node, zarr.Group) else None
        _level(node, image, url, 0)
    return len(image.paths) if image else 1


def _open(url: str) -> AnyArray | zarr.Group:
    if not is_url(url) and not Path(url).exists():
        raise StorageError(f"Input '{url}' was asked for, but there is nothing there. Check input.url.")
    if not is_url(url):
        return zarr.open(input_store(url), mode="r", use_consolidated=False)  # a copy may be older than the arrays
    with told(url, "be read"):
        document = first_document(url)  # so that zarr need not ask for those of both formats
        store = input_store(url)
    try:
        return zarr.open(store, mode="r", use_consolidated=False, zarr_format=3 if document else 2)
    except FileNotFoundError as error:
        raise _absent(url, store) from error


def _absent(url: str, store: Store) -> StorageError:
    """What a store has in place of a volume: no bucket, nothing, what may not be read, or something else."""
    forbidden = getattr(store, "refused", None)  # of a `RemoteStore`
    if forbidden and (refused := refusal(url, "be read", forbidden)):
        return refused
    with told(url, "be read"):
        children = ObjectStore(url).children("")
    if not children:
        return StorageError(f"Input '{url}' was asked for, but there is nothing there. {advice(url)}")
    return _no_store(url, f"it holds {', '.join(children[:8])}")


def _no_store(url: str, detail: str) -> StorageError:
    return StorageError(
        f"Input '{url}' is not a Zarr array or group ({detail}). Expected a whole zarr.json, or .zarray or .zgroup, in "
        "it: check input.url, repair the store, or convert the volume to OME-Zarr. HDF5 and TIFF are known by their names: "
        "FILE.h5/dataset, FILE.tif."
    )


@contextmanager
def _understood(url: str) -> Iterator[None]:
    """Tell what zarr and file systems raise about a store that is none, or is damaged."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:  # damaged metadata and remote stores raise whatever they happen to meet
        refused = refusal(url, "be read", error) if is_url(url) else None
        detail = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise (refused or _no_store(url, detail)) from error


def _level(node: AnyArray | zarr.Group, multiscale: Multiscale | None, url: str, level: int) -> AnyArray:
    if isinstance(node, zarr.Array):
        if level != 0:
            raise StorageError(
                f"input.level is {level}, but '{url}' is a plain array with level 0 alone. Leave it at 0."
            )
        return node
    if multiscale is None:
        inner = ", ".join(sorted(node.keys())[:8]) or "nothing"
        raise StorageError(
            f"Group '{url}' has no OME-Zarr image metadata (multiscales); it holds {inner}. "
            "Name an array or an image group in input.url."
        )
    if level >= len(multiscale.paths):
        raise StorageError(
            f"input.level is {level}, but '{url}' has levels 0 to {len(multiscale.paths) - 1}. Choose one of them."
        )
    array = node.get(multiscale.paths[level])
    if not isinstance(array, zarr.Array):
        raise StorageError(
            f"Level {level} of '{url}' should be the array '{multiscale.paths[level]}', which is not there. "
            "The store is incomplete: copy it again."
        )
    return array


def _description(url: str, selection: Selection, opened: _Opened, chosen: tuple[int, ...]) -> Description:
    array, axes, stored = opened.array, opened.reading.axes, opened.reading.stored
    extent, chunk = (dict(zip(stored, values, strict=True)) for values in (array.shape, array.chunks))
    if isinstance(array, ForeignArray) and (selection.axes == "auto" or selection.axes in KNOWN_AXES):
        stored = axes  # the file itself says where each lies
    return Description(
        url=url,
        level=selection.level,
        axes=axes,
        channels=len(chosen) or extent.get("c", 1),
        shape=(extent.get("z", 1), extent["y"], extent["x"]),
        dtype=array.dtype.newbyteorder("=").name,
        chunks=(chunk.get("z", 1), chunk["y"], chunk["x"]),
        space=opened.space,
        metadata_sha256=_metadata_sha256(array, axes, extent, chunk),
        stored="" if stored == axes else stored,
        chosen=chosen,
    )


def _metadata_sha256(
    array: AnyArray | ForeignArray, axes: str, extent: Mapping[str, int], chunk: Mapping[str, int]
) -> str:
    """Digest of the document that says how the array is stored; attributes do not change what it holds.

    HDF5 and TIFF have no such document: there it is shape, dtype, chunks and axes.
    """
    if isinstance(array, ForeignArray):
        content: dict[str, Any] = {
            "shape": [extent[axis] for axis in axes],
            "dtype": array.dtype.newbyteorder("=").name,
            "chunks": [chunk[axis] for axis in axes],
            "axes": axes,
        }
    else:
        name = "zarr.json" if array.metadata.zarr_format == 3 else ".zarray"
        buffer = sync((array.store_path / name).get(default_buffer_prototype()))
        if buffer is None:
            raise StorageError(
                f"'{array.store_path / name}' was there a moment ago and is gone: the input is being written, or removed."
            )
        content = json.loads(buffer.to_bytes())
        content.pop("attributes", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

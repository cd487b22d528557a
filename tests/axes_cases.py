"""Every order of axes that has y and x, and writers that store one volume in it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
import zarr

from tests.pipeline_cases import random_volume

EXTENTS = {"t": 1, "c": 2, "z": 3, "y": 6, "x": 5}
SIZES = {"t": 1.0, "c": 1.0, "z": 40.0, "y": 4.0, "x": 8.0}

ORDERS = [
    "".join(order)
    for count in range(4)
    for others in itertools.combinations("tcz", count)
    for order in itertools.permutations((*others, "y", "x"))
]


def volume_of(order: str) -> np.ndarray:
    """What is to be read, (C, Z, Y, X)."""
    extents = [EXTENTS[axis] if axis in order else 1 for axis in "czyx"]
    return random_volume(tuple(extents), "uint16", seed=len(set(order) - {"t"}))


def stored_as(order: str) -> np.ndarray:
    """The same, in an order of axes."""
    voxels = volume_of(order)[np.newaxis]
    kept = voxels.reshape([n for axis, n in zip("tczyx", voxels.shape, strict=True) if axis in order])
    axes = [axis for axis in "tczyx" if axis in order]
    return np.ascontiguousarray(kept.transpose([axes.index(axis) for axis in order]))


def multiscales(order: str) -> list[dict[str, Any]]:
    """Metadata of an image in an order of axes, with a voxel size an axis."""
    units = {"space": {"unit": "nanometer"}}
    types = {"t": "time", "c": "channel"}
    axes = [{"name": a, "type": types.get(a, "space")} | units.get(types.get(a, "space"), {}) for a in order]
    scale = {"type": "scale", "scale": [SIZES[axis] for axis in order]}
    return [{"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}]


def by_zarr(path: Path, order: str) -> str:
    """OME-Zarr 0.5 by zarr-python."""
    group = zarr.create_group(str(path))
    array = stored_as(order)
    chunks = tuple(max(n // 2, 1) for n in array.shape) if len(order) < 4 else array.shape
    group.create_array("0", data=array, chunks=chunks)
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales(order)}
    return str(path)


def by_hand(path: Path, order: str) -> str:
    """OME-Zarr 0.4, its files written one by one: one raw chunk, separated by dots."""
    array = stored_as(order)
    (path / "0").mkdir(parents=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text(json.dumps({"multiscales": multiscales(order)}))
    document = {"zarr_format": 2, "shape": array.shape, "chunks": array.shape, "dtype": "<u2", "order": "C"}
    document |= {"compressor": None, "filters": None, "fill_value": 0}
    (path / "0/.zarray").write_text(json.dumps(document))
    (path / "0" / ".".join("0" * array.ndim)).write_bytes(array.tobytes())
    return str(path)


def by_h5py(path: Path, order: str) -> str:
    """HDF5 with ilastik's names of axes."""
    tags = json.dumps({"axes": [{"key": axis} for axis in order]})
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        dataset = file.create_dataset("raw", data=stored_as(order), chunks=True)
        dataset.attrs["axistags"] = tags
        dataset.attrs["resolution"] = [SIZES[axis] for axis in "zyx" if axis in order]
    return f"{path.with_suffix('.h5')}/raw"


def by_tifffile(path: Path, order: str) -> str:
    """TIFF with tifffile's names of axes."""
    tifffile.imwrite(
        path.with_suffix(".tif"), stored_as(order), photometric="minisblack", metadata={"axes": order.upper()}
    )
    return str(path.with_suffix(".tif"))


WRITERS = {writer.__name__: writer for writer in (by_zarr, by_hand, by_h5py, by_tifffile)}

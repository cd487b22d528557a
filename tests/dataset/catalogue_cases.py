"""Volumes, plates and collections that are small and real, on paths and in stores."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import tifffile
import zarr

from pipeline.core.volume import Space
from pipeline.dataset.catalogue import Catalogue
from pipeline.places.objects import ObjectStore
from pipeline.volumes.ome import image_attributes

VOXELS = np.arange(4 * 6 * 8, dtype="uint8").reshape(4, 6, 8)


def make_image(path: Path, zarr_format: int = 3) -> Path:
    """An OME-Zarr image of one level, 0.5 or 0.4."""
    ome = image_attributes(name="image", axes="zyx", space=Space.unknown(3))
    attributes = {"ome": ome} if zarr_format == 3 else {"multiscales": [{**ome["multiscales"][0], "version": "0.4"}]}
    group = zarr.create_group(path, zarr_format=zarr_format, attributes=attributes)
    group.create_array("0", data=VOXELS)
    return path


def make_array(path: Path, zarr_format: int = 3) -> Path:
    """A plain array."""
    zarr.create_array(path, data=VOXELS, zarr_format=zarr_format)
    return path


def make_group(path: Path, attributes: dict | None = None, zarr_format: int = 3) -> Path:
    """A group, of whatever attributes."""
    zarr.create_group(path, zarr_format=zarr_format, attributes=attributes or {})
    return path


def make_tiff(path: Path) -> Path:
    """A stack of slices."""
    tifffile.imwrite(path, VOXELS, photometric="minisblack", metadata={"axes": "ZYX"})
    return path


def make_hdf5(path: Path, *names: str) -> Path:
    """A file of volumes, and of what is none."""
    with h5py.File(path, "w") as file:
        for name in names:
            file.create_dataset(name, data=VOXELS)
        file.create_dataset("voxel_size", data=[1.0, 1.0, 1.0])
    return path


def make_plate(path: Path, wells: dict[str, list[str]], zarr_format: int = 3) -> Path:
    """A plate of wells (`A/1`) with their fields; a well whose fields are none is named, and not there."""
    plate = {"wells": [{"path": well, "rowIndex": 0, "columnIndex": 0} for well in wells]}
    wrapped = (lambda said: {"ome": {"version": "0.5", **said}}) if zarr_format == 3 else dict
    make_group(path, wrapped({"plate": plate}), zarr_format)
    for well, fields in wells.items():
        if fields:
            said = wrapped({"well": {"images": [{"path": field} for field in fields]}})
            make_group(path / well, said, zarr_format)
        for field in fields:
            make_image(path / well / field, zarr_format)
    return path


def make_collection(path: Path, images: list[str], series: list[str] | None = None, zarr_format: int = 3) -> Path:
    """What bioformats2raw writes: images in a group, and perhaps their list in the group `OME`."""
    wrapped = (lambda said: {"ome": {"version": "0.5", **said}}) if zarr_format == 3 else dict
    make_group(path, wrapped({"bioformats2raw.layout": 3}), zarr_format)
    if series is not None:
        make_group(path / "OME", wrapped({"series": series}), zarr_format)
    for image in images:
        make_image(path / image, zarr_format)
    return path


def make_bare(path: Path) -> Path:
    """An image as far as a listing sees: for many of them at little cost."""
    path.mkdir()
    ome = {"version": "0.5", "multiscales": [{"axes": [], "datasets": []}]}
    document = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}
    (path / "zarr.json").write_text(json.dumps(document))
    return path


def by_name(catalogue: Catalogue) -> dict[str, str]:
    """Locations by name."""
    return {entry.name: entry.url for entry in catalogue}


def reasons(catalogue: Catalogue) -> dict[str, str]:
    """Why something was left out, by its own name."""
    return {one.url.rpartition("/")[2]: one.why for one in catalogue.left_out}


def fill(url: str, folder: Path) -> None:
    """Copy a folder to a store."""
    store = ObjectStore(url)
    for file in folder.rglob("*"):
        if file.is_file():
            store.write(file.relative_to(folder).as_posix(), file.read_bytes())

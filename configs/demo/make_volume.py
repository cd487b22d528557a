"""Make the demo's volume: a crop of FIB-25 that is disjoint from the slices of training and validation.

python configs/demo/make_volume.py FIB25.h5 configs/demo/fib25-medulla.ome.zarr
"""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import zarr
from zarr.codecs import ZstdCodec

from pipeline.core.volume import Space
from pipeline.volumes.ome import image_attributes

SLICES = slice(127, 175)
"""z of the source; slices 0 to 123 trained and validated the demo's network."""

TEN_NANOMETERS = Space(scale=(10.0,) * 3, translation=(0.0,) * 3, units=("nanometer",) * 3)


def main(source: Path, target: Path) -> None:
    """Write the crop as OME-Zarr 0.5."""
    with h5py.File(source, "r") as file:
        crop = file["raw"][SLICES]
    ome = image_attributes(name="fib25-medulla", axes="zyx", space=TEN_NANOMETERS)
    zarr.create_group(target, zarr_format=3, attributes={"ome": ome})
    array = zarr.create_array(
        target,
        name="0",
        shape=crop.shape,
        dtype=crop.dtype,
        chunks=(24, 128, 128),
        compressors=[ZstdCodec(level=9)],
        dimension_names=["z", "y", "x"],
    )
    array[:] = crop


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Volumes in HDF5 and TIFF, read in place: as the packages that wrote them read them, box by box."""

import gc
import os
import struct
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from pipeline.core.geometry.box import Box
from pipeline.core.geometry.lengths import NANOMETERS
from pipeline.core.volume import Selection, Space
from pipeline.errors import StorageError
from pipeline.volumes import tiff
from pipeline.volumes.inventory import take_inventory
from pipeline.volumes.ome import image_attributes
from pipeline.volumes.volume import Volume, is_volume_file, open_volume, store_levels
from tests.pipeline_cases import random_volume

BOX = Box((1, 5, 3), (4, 29, 40))
SHAPE = (5, 33, 47)


def whole(volume: Volume) -> np.ndarray:
    """All voxels, (C, Z, Y, X)."""
    return volume.read(Box.of_shape(volume.shape))


def part(array: np.ndarray, box: Box) -> np.ndarray:
    """A box of (C, Z, Y, X), by numpy."""
    return array[(slice(None), *map(slice, box.start, box.stop))]


def save_hdf5(path: Path, array: np.ndarray, name: str = "raw", attributes: dict | None = None, **options) -> str:
    """A dataset of its own file; gives the location of the dataset."""
    with h5py.File(path, "a") as file:
        file.create_dataset(name, data=array, **options).attrs.update(attributes or {})
    return f"{path}/{name}"


def save_tiff(path: Path, array: np.ndarray, **options) -> str:
    """A TIFF by tifffile."""
    tifffile.imwrite(path, array, **options)
    return str(path)


# --- real files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype", "chunks", "scale", "unit"),
    [
        ("fib25_medulla_train2_share_z000-174.h5/raw", "uint8", (25, 125, 125), (10.0,) * 3, "nanometer"),
        ("fib25_medulla_train2_share_z000-174.h5/neuron_ids", "uint16", (25, 125, 125), (10.0,) * 3, "nanometer"),
        ("ovules_1135_mini.h5/label", "uint8", (25, 25, 25), (0.283718365, 0.126786421, 0.126786421), "micrometer"),
        ("pytorch3dunet_sample_patch.h5/raw", "uint16", (8, 25, 50), (1.0,) * 3, None),
        ("pytorch3dunet_sample_patch.h5/label", "int64", (8, 25, 25), (1.0,) * 3, None),
    ],
)
def test_real_hdf5_volumes_are_read_voxel_by_voxel(shared_data, name, dtype, chunks, scale, unit):
    """Public training volumes, with the voxel sizes that plant-seg and funlib tell."""
    url = shared_data / "volumes" / name
    volume = open_volume(str(url))
    with h5py.File(url.parent) as file:
        expected = file[url.name][...]
    found = volume.description
    assert (found.axes, found.dtype, found.chunks, volume.format) == ("zyx", dtype, chunks, "HDF5")
    assert found.space.scale == pytest.approx(scale, rel=1e-7)
    assert set(found.space.units) == {unit}
    np.testing.assert_array_equal(whole(volume)[0], expected)
    box = Box((3, 10, 20), (30, 60, 99))
    np.testing.assert_array_equal(volume.read(box), part(expected[np.newaxis], box))


@pytest.mark.parametrize(
    "name",
    [
        "volumes/stardist_img3d.tif",
        "volumes/stardist_mask3d.tif",
        "isbi2012/share_z00-19_volume.tif",
        "isbi2012/share_z00-19_labels.tif",
    ],
)
def test_real_tiff_stacks_are_read_voxel_by_voxel(shared_data, name):
    """Pages that no metadata names are slices along z."""
    volume = open_volume(str(shared_data / name))
    expected = tifffile.imread(shared_data / name)
    assert (volume.description.axes, volume.shape, volume.format) == ("zyx", expected.shape, "TIFF")
    assert volume.description.chunks == (1, *expected.shape[1:])
    np.testing.assert_array_equal(whole(volume)[0], expected)
    np.testing.assert_array_equal(volume.read(BOX), part(expected[np.newaxis], BOX))


# --- HDF5 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".hdf", ".H5"])
def test_a_dataset_deep_inside_is_named_behind_its_file(tmp_path, suffix):
    """As ilastik names it, whatever the suffix."""
    array = random_volume(SHAPE)
    url = save_hdf5(tmp_path / f"v{suffix}", array, "volumes/raw/finest")
    assert is_volume_file(url)
    np.testing.assert_array_equal(whole(open_volume(url))[0], array)


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", ">u2", "int32", "uint64", "int64", "float16", ">f4", "float64"]
)
def test_masks_labels_and_images_of_every_type_are_read_as_they_are(tmp_path, dtype):
    """Ids of uint64 do not fit a float, and masks are often boolean."""
    native = np.dtype(dtype).newbyteorder("=")
    array = random_volume(SHAPE, "uint8") > 99 if dtype == "bool" else random_volume(SHAPE, native.name)
    url = save_hdf5(tmp_path / "v.h5", array.astype(dtype))
    volume = open_volume(url)
    assert volume.description.dtype == native.name
    np.testing.assert_array_equal(whole(volume)[0], array)


def test_a_dataset_without_chunks_is_told_as_whole_slices(tmp_path):
    """Tiles are planned by what is decoded at once; contiguous data has no such unit of its own."""
    assert open_volume(save_hdf5(tmp_path / "v.h5", random_volume((2, *SHAPE)))).description.chunks == (1, 33, 47)
    chunked = save_hdf5(tmp_path / "c.h5", random_volume((2, *SHAPE)), chunks=(2, 3, 4, 5))
    assert open_volume(chunked).description.chunks == (3, 4, 5)


@pytest.mark.parametrize(
    ("attributes", "space"),
    [
        ({"element_size_um": [0.3, 0.1, 0.2]}, Space((0.3, 0.1, 0.2), (0.0,) * 3, ("micrometer",) * 3)),
        ({"resolution": [40, 4, 8]}, Space((40.0, 4.0, 8.0), (0.0,) * 3, ("nanometer",) * 3)),
        (
            {"resolution": [40, 4, 8], "offset": [80, 8, 0]},
            Space((40.0, 4.0, 8.0), (80.0, 8.0, 0.0), ("nanometer",) * 3),
        ),
        ({"resolution": [4, 1, 2], "unit": "um"}, Space((4.0, 1.0, 2.0), (0.0,) * 3, ("micrometer",) * 3)),
        ({"voxel_size": [4, 1, 2], "units": ["um"] * 3}, Space((4.0, 1.0, 2.0), (0.0,) * 3, ("micrometer",) * 3)),
        ({}, Space.unknown(3)),
        ({"resolution": "fine"}, Space.unknown(3)),
        ({"resolution": [0, 4, 4]}, Space.unknown(3)),
        ({"resolution": [1, 2, 3, 4]}, Space.unknown(3)),
        ({"resolution": h5py.Empty("f8")}, Space.unknown(3)),
    ],
)
def test_voxel_sizes_of_hdf5_attributes_place_the_volume(tmp_path, attributes, space):
    """What is no size is left alone: a wrong one would misplace the output without a word."""
    assert (
        open_volume(save_hdf5(tmp_path / "v.h5", random_volume(SHAPE), attributes=attributes)).description.space
        == space
    )


def test_ilastik_axes_are_followed(tmp_path):
    """ilastik exports channels last; read by their number, its z would be taken for channels."""
    array = random_volume((*SHAPE, 2))
    tags = '{"axes": [{"key": "z"}, {"key": "y"}, {"key": "x"}, {"key": "c"}]}'
    volume = open_volume(save_hdf5(tmp_path / "v.h5", array, "exported_data", {"axistags": tags}))
    assert (volume.description.axes, volume.description.channels, volume.shape) == ("czyx", 2, SHAPE)
    np.testing.assert_array_equal(volume.read(BOX), part(np.moveaxis(array, -1, 0), BOX))


@pytest.mark.parametrize("name", ["volumes", "labels", ""])
def test_a_name_that_is_no_dataset_is_refused_with_those_that_are_there(tmp_path, name):
    """The list is the answer: nobody remembers how a file of somebody else is laid out."""
    save_hdf5(tmp_path / "v.h5", random_volume(SHAPE), "volumes/raw")
    save_hdf5(tmp_path / "v.h5", random_volume((3, 4), "uint64"), "ids")
    with pytest.raises(
        StorageError, match=r"'ids' \(3, 4\) uint64; 'volumes/raw' \(5, 33, 47\) uint8.* Append one"
    ) as error:
        open_volume(str(tmp_path / "v.h5" / name))
    assert {"volumes": "is a group", "labels": "is not there", "": "none was named"}[name] in str(error.value)


def test_hdf5_damage_is_told_where_it_is_met_and_other_chunks_are_not_read(tmp_path):
    """The proof that a box reads its own chunks alone: the rest of the file is noise."""
    array = random_volume((6, 16, 16))
    url = save_hdf5(tmp_path / "v.h5", array, chunks=(1, 16, 16), fletcher32=True)
    with h5py.File(tmp_path / "v.h5") as file:
        stored = [file["raw"].id.get_chunk_info(i) for i in range(6)]
    with (tmp_path / "v.h5").open("r+b") as file:
        for chunk in stored:
            if chunk.chunk_offset[0] not in (2, 3):
                file.seek(chunk.byte_offset)
                file.write(random_volume((chunk.size,), seed=9).tobytes())
    volume = open_volume(url)
    np.testing.assert_array_equal(volume.read(Box((2, 0, 0), (4, 16, 16)))[0], array[2:4])
    with pytest.raises(StorageError, match=r"HDF5 volume .* cannot be read at .*damaged"):
        volume.read(Box((1, 0, 0), (3, 16, 16)))


def test_a_filter_that_is_not_installed_is_refused_when_opened(tmp_path, monkeypatch):
    """Found in the first box, after the plan and the workers, it would cost a queue's wait."""
    url = save_hdf5(tmp_path / "v.h5", random_volume(SHAPE), chunks=SHAPE, compression="gzip")
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: False)
    with pytest.raises(StorageError, match=r"HDF5 filter 1 deflate, which is not installed.*hdf5plugin"):
        open_volume(url)


# --- TIFF ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "chunks"),
    [
        ({"metadata": None}, (1, 33, 47)),
        ({"compression": "zlib", "predictor": True}, (1, 33, 47)),
        ({"rowsperstrip": 5, "compression": "zlib"}, (1, 33, 47)),
        ({"tile": (16, 32)}, (1, 16, 32)),
        ({"tile": (16, 16), "compression": "zlib"}, (1, 16, 16)),
        ({"imagej": True, "metadata": {"axes": "ZYX"}}, (1, 33, 47)),
        ({"ome": True, "metadata": {"axes": "ZYX"}}, (1, 33, 47)),
        ({"bigtiff": True, "byteorder": ">"}, (1, 33, 47)),
    ],
)
def test_every_kind_of_stack_is_read_voxel_by_voxel(tmp_path, options, chunks):
    """Pages, strips and tiles, raw and compressed, by three programs' conventions, hold one volume."""
    array = random_volume(SHAPE, "uint16")
    volume = open_volume(save_tiff(tmp_path / "v.tif", array, **options))
    found = volume.description
    assert (found.axes, found.shape, found.dtype, found.chunks) == ("zyx", SHAPE, "uint16", chunks)
    np.testing.assert_array_equal(whole(volume)[0], array)
    np.testing.assert_array_equal(volume.read(BOX), part(array[np.newaxis], BOX))


def test_strips_of_large_pages_are_read_one_by_one(tmp_path, monkeypatch):
    """A page of gigabytes must not be decoded whole for a box of it."""
    monkeypatch.setattr(tiff, "PAGE_BYTES", 33 * 47 - 1)
    array = random_volume(SHAPE)
    volume = open_volume(save_tiff(tmp_path / "v.tif", array, rowsperstrip=5, compression="zlib"))
    assert volume.description.chunks == (1, 5, 47)
    np.testing.assert_array_equal(volume.read(BOX), part(array[np.newaxis], BOX))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint32", "uint64", "float32"])
def test_types_of_tiff_are_kept(tmp_path, dtype):
    """One bit a pixel for masks, 64 for ids."""
    array = random_volume(SHAPE, "uint8") > 99 if dtype == "bool" else random_volume(SHAPE, dtype)
    volume = open_volume(save_tiff(tmp_path / "v.tiff", array, photometric="minisblack"))
    assert volume.description.dtype == dtype
    np.testing.assert_array_equal(whole(volume)[0], array)


@pytest.mark.parametrize("options", [{"imagej": True}, {"ome": True}])
@pytest.mark.parametrize("axes", ["auto", "czyx"])
def test_channels_between_slices_are_brought_in_front(tmp_path, options, axes):
    """ImageJ keeps ZCYX. A plan opens its input again by the axes that it found, which must give the same voxels."""
    array = random_volume((5, 2, 33, 47), "uint16")
    volume = open_volume(
        save_tiff(tmp_path / "v.tif", array, metadata={"axes": "ZCYX"}, **options), Selection(axes=axes)
    )
    assert (volume.description.axes, volume.description.channels, volume.shape) == ("czyx", 2, SHAPE)
    assert (volume.stored_axes, volume.array.shape) == ("zcyx", (5, 2, 33, 47))
    np.testing.assert_array_equal(volume.read(BOX), part(array.swapaxes(0, 1), BOX))


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colours_are_channels(tmp_path, planar):
    """An RGB picture is three channels, however its samples are interleaved."""
    array = random_volume((33, 47, 3) if planar == "contig" else (3, 33, 47))
    volume = open_volume(save_tiff(tmp_path / "v.tif", array, photometric="rgb", planarconfig=planar))
    assert (volume.description.axes, volume.description.channels, volume.shape) == ("cyx", 3, (1, 33, 47))
    np.testing.assert_array_equal(whole(volume)[:, 0], np.moveaxis(array, -1, 0) if planar == "contig" else array)


@pytest.mark.parametrize(
    ("shape", "stored", "axes", "shown"),
    [
        ((33, 47), "YX", "auto", "yx"),
        ((1, 33, 47), "TYX", "auto", "yx"),
        ((1, 5, 33, 47), "TZYX", "auto", "zyx"),
        ((5, 33, 47), "TYX", "zyx", "zyx"),
        ((5, 33, 47), "ZYX", "cyx", "cyx"),
        ((1, 5, 33, 47), "TZYX", "zyx", "zyx"),
    ],
)
def test_axes_of_one_voxel_are_dropped_and_given_axes_are_followed(tmp_path, shape, stored, axes, shown):
    """Stacks are often called time series by mistake; saying what they are must be enough."""
    array = random_volume(shape)
    volume = open_volume(save_tiff(tmp_path / "v.tif", array, metadata={"axes": stored}), Selection(axes=axes))
    assert volume.description.axes == shown
    np.testing.assert_array_equal(whole(volume).ravel(), array.ravel())


@pytest.mark.parametrize(
    ("shape", "stored", "axes", "told"),
    [
        (
            (5, 33, 47),
            "TYX",
            "auto",
            r"read as 'tyx': 5 time points along t",
        ),
        ((2, 5, 33, 47), "TZYX", "auto", "read as 'tzyx': 2 time points"),
        ((5, 33, 47), "ZYX", "zyb", "read as 'zyb'; expected some of"),
        ((5, 33, 47), "ZYX", "czyx", "read as 'czyx'"),
        ((5, 33, 47), "ZYX", "yx", "read as 'yx'"),
    ],
)
def test_axes_that_are_no_volume_are_refused(tmp_path, shape, stored, axes, told):
    """Time points side by side would be predicted as depth."""
    url = save_tiff(tmp_path / "v.tif", random_volume(shape), metadata={"axes": stored})
    with pytest.raises(StorageError, match=told):
        open_volume(url, Selection(axes=axes))


@pytest.mark.parametrize("unit", ["um", "micron", "\\u00B5m"])
def test_imagej_calibration_places_the_volume(tmp_path, unit):
    """Pixels a unit in the tags, the spacing in the description; Fiji escapes the micro sign."""
    metadata = {"axes": "ZYX", "spacing": 0.3, "unit": unit}
    url = save_tiff(tmp_path / "v.tif", random_volume(SHAPE), imagej=True, metadata=metadata, resolution=(10, 5))
    space = open_volume(url).description.space
    assert space == Space((0.3, 0.2, 0.1), (0.0,) * 3, ("micrometer",) * 3)


@pytest.mark.parametrize(
    "options", [{"imagej": True}, {"imagej": True, "metadata": {"axes": "ZYX", "unit": "pixel"}}, {}]
)
def test_a_tiff_without_calibration_lies_nowhere(tmp_path, options):
    """Dots per inch of a plain TIFF, and pixels of an ImageJ one, are no size of a voxel."""
    options = {"metadata": {"axes": "ZYX"}} | options
    resolution = {} if options.get("imagej") else {"resolution": (72, 72), "resolutionunit": "INCH"}
    url = save_tiff(tmp_path / "v.tif", random_volume(SHAPE), **options, **resolution)
    assert open_volume(url).description.space == Space.unknown(3)


def test_physical_sizes_of_ome_xml_place_the_volume_and_its_levels(tmp_path):
    """Units may differ between axes, and are micrometre where none is told (OME 2016-06)."""
    metadata = {"axes": "ZYX", "PhysicalSizeX": 4, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25, "PhysicalSizeZ": 2}
    array = random_volume((5, 32, 48))
    with tifffile.TiffWriter(tmp_path / "v.ome.tif", ome=True) as file:
        file.write(array, subifds=1, metadata=metadata)
        file.write(array[:, ::2, ::2], subfiletype=1)
    url = str(tmp_path / "v.ome.tif")
    fine, coarse = open_volume(url), open_volume(url, Selection(level=1))
    assert store_levels(url) == 2
    assert fine.description.space == Space((2.0, 0.25, 4.0), (0.0,) * 3, ("micrometer", "micrometer", "nanometer"))
    assert (coarse.shape, coarse.description.level) == ((5, 16, 24), 1)
    assert coarse.description.space == Space(
        (2.0, 0.5, 8.0), (0.0, 0.125, 2.0), ("micrometer", "micrometer", "nanometer")
    )
    np.testing.assert_array_equal(whole(coarse)[0], array[:, ::2, ::2])


def test_a_box_decodes_its_own_pages_alone(tmp_path):
    """The proof that a stack is read page by page: all other pages are noise, and are only told where they are met."""
    array = random_volume((6, 33, 47))
    url = save_tiff(tmp_path / "v.tif", array, compression="zlib")
    with tifffile.TiffFile(url) as file:
        stored = [(page.dataoffsets[0], page.databytecounts[0]) for page in file.pages]
    with (tmp_path / "v.tif").open("r+b") as file:
        for z, (offset, count) in enumerate(stored):
            if z not in (2, 3):
                file.seek(offset)
                file.write(b"\xff" * count)
    volume = open_volume(url)
    np.testing.assert_array_equal(volume.read(Box((2, 4, 5), (4, 30, 40)))[0], array[2:4, 4:30, 5:40])
    with pytest.raises(StorageError, match=r"TIFF volume .* cannot be read at .*damaged"):
        volume.read(Box((1, 0, 0), (3, 33, 47)))


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"imagej": True}, {"metadata": None}, {"ome": True}])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_stack_that_was_copied_in_part_is_refused(tmp_path, options, share):
    """tifffile reads such a file as its first slice, without an error: one slice would be predicted for a volume."""
    path = tmp_path / "v.tif"
    save_tiff(path, random_volume((40, 33, 47)), **({"metadata": {"axes": "ZYX"}} | options))
    stored = path.read_bytes()
    path.write_bytes(stored[: int(len(stored) * share)])
    with pytest.raises(StorageError, match=r"pages cannot all be found|file ends at|no readable TIFF"):
        open_volume(str(path))


def test_an_ome_tiff_whose_other_files_are_missing_is_refused(tmp_path):
    """The planes of files that were not copied along would be read as zeros."""
    array = random_volume(SHAPE)
    path = tmp_path / "v.ome.tif"
    save_tiff(path, array, ome=True, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as file:
        told = file.ome_metadata.replace('PlaneCount="5"', 'PlaneCount="3"')
    tifffile.tiffcomment(path, told.encode())
    with pytest.raises(StorageError, match="5 planes, 2 of which are in no file that is there"):
        open_volume(str(path))


def two_files(folder: Path, array: np.ndarray, **options) -> str:
    """An OME-TIFF of two files, half of the planes each; gives the first."""
    names = ("a.ome.tif", "b.ome.tif")
    ids = [uuid.uuid5(uuid.NAMESPACE_URL, name).urn for name in names]
    half, (z, y, x) = len(array) // 2, array.shape
    planes = "".join(
        f'<TiffData FirstZ="{i}" FirstC="0" FirstT="0" IFD="{i % half}" PlaneCount="1">'
        f'<UUID FileName="{names[i // half]}">{ids[i // half]}</UUID></TiffData>'
        for i in range(2 * half)
    )
    for number, name in enumerate(names):
        told = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{ids[number]}"><Image ID="Image:0"><Pixels '
            f'ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="{x}" SizeY="{y}" SizeZ="{z}" SizeC="1" SizeT="1">'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
        )
        with tifffile.TiffWriter(folder / name, ome=False) as file:
            for i in range(half):
                said = told if i == 0 else None
                file.write(array[number * half + i], description=said, metadata=None, contiguous=False, **options)
    return str(folder / names[0])


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_all_files_of_an_ome_tiff_are_read_and_counted(tmp_path, compression):
    """A run that goes by the first file alone does not notice that the second was written again, cut, or is gone."""
    array = random_volume((6, 33, 47))
    url = two_files(tmp_path, array, compression=compression, rowsperstrip=11)
    volume = open_volume(url)
    np.testing.assert_array_equal(whole(volume)[0], array)
    before = take_inventory(volume)
    assert str(before.stored) == "18 of 18 chunks"  # strips
    assert take_inventory(open_volume(url)).stored.signature == before.stored.signature
    other = tmp_path / "b.ome.tif"
    os.utime(other, (1, 1))
    assert take_inventory(open_volume(url)).stored.signature != before.stored.signature
    content = other.read_bytes()
    other.write_bytes(content[: len(content) // 2])
    with pytest.raises(StorageError):
        np.asarray(whole(open_volume(url)))
    other.unlink()
    with pytest.raises(StorageError, match="6 planes, 3 of which are in no file that is there"):
        open_volume(url)


def test_a_sparse_tiff_is_counted(tmp_path):
    """Tiles without a place are fill, as TIFF says: normal, and told."""
    url = save_tiff(tmp_path / "v.tif", random_volume((2, 32, 32)), tile=(16, 16), compression="zlib", metadata=None)
    assert str(take_inventory(open_volume(url)).stored) == "8 of 8 chunks"
    with tifffile.TiffFile(url) as file:
        tags = [file.pages[0].tags[name] for name in ("TileOffsets", "TileByteCounts")]
        fields = [(tag.valueoffset, {3: "<H", 4: "<I"}[tag.dtype]) for tag in tags]
    with Path(url).open("r+b") as file:
        for place, form in fields:
            file.seek(place)
            file.write(struct.pack(form, 0))
    volume = open_volume(url)
    assert str(take_inventory(volume).stored) == "7 of 8 chunks"
    assert not whole(volume)[0, 0, :16, :16].any()


def test_a_thumbnail_beside_an_image_is_passed_over_and_a_second_image_is_not(tmp_path):
    """The largest image is meant where it is alone in its size; among equals the choice would be a guess."""
    array = random_volume(SHAPE)
    for name, other in (("thumbnail", (11, 12)), ("twin", SHAPE[::-1])):
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as file:
            file.write(random_volume(other))
            file.write(array)
    np.testing.assert_array_equal(whole(open_volume(str(tmp_path / "thumbnail.tif")))[0], array)
    with pytest.raises(StorageError, match="holds 2 images"):
        open_volume(str(tmp_path / "twin.tif"))


def test_a_compression_without_its_package_is_refused_when_opened(tmp_path, monkeypatch):
    """tifffile decodes some compressions by itself, and others with imagecodecs alone."""
    url = save_tiff(tmp_path / "v.tif", random_volume(SHAPE), compression="zlib")
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", {1: None})
    with pytest.raises(StorageError, match=r"ADOBE_DEFLATE.*pip install imagecodecs"):
        open_volume(url)


# --- both ---------------------------------------------------------------------------------------------------------------


def stored_in(tmp_path: Path, kind: str, array: np.ndarray) -> str:
    """The same volume in a file of either kind, compressed, in chunks or tiles."""
    if kind == "HDF5":
        return save_hdf5(tmp_path / "v.h5", array, chunks=(2, 16, 16), compression="gzip")
    return save_tiff(tmp_path / "v.tif", array, tile=(16, 16), compression="zlib", metadata={"axes": "ZYX"})


@pytest.mark.parametrize("kind", ["HDF5", "TIFF"])
def test_threads_may_read_at_once(tmp_path, kind):
    """Training loads patches in threads; a shared file position would mix them up."""
    array = random_volume((12, 64, 80), "uint16")
    volume = open_volume(stored_in(tmp_path, kind, array))
    starts = np.random.default_rng(0).integers(0, (8, 40, 50), (200, 3)).tolist()
    boxes = [Box(tuple(start), tuple(a + n for a, n in zip(start, (4, 24, 30), strict=True))) for start in starts]
    with ThreadPoolExecutor(8) as pool:
        for box, found in zip(boxes, pool.map(volume.read, boxes), strict=True):
            np.testing.assert_array_equal(found, part(array[np.newaxis], box))


@pytest.mark.parametrize("kind", ["HDF5", "TIFF"])
@pytest.mark.parametrize(
    "selection",
    [..., 3, -1, (slice(None), 2), (..., slice(3, 9)), (slice(1, -1), ..., 5), (2, 3, 4), slice(0, 0), slice(1, 12, 3)],
)
def test_the_array_is_sliced_as_numpy_slices(tmp_path, kind, selection):
    """Other rooms slice `Volume.array` without asking what is behind it."""
    array = random_volume((12, 64, 80))
    found = open_volume(stored_in(tmp_path, kind, array)).array
    assert (found.shape, found.dtype, found.ndim) == (array.shape, array.dtype, 3)
    np.testing.assert_array_equal(found[selection], array[selection])


@pytest.mark.parametrize("kind", ["HDF5", "TIFF"])
def test_the_file_is_never_written_to_and_is_closed_in_the_end(tmp_path, kind):
    """The input is not ours; and what stays open warns, which is an error here."""
    url = stored_in(tmp_path, kind, random_volume((12, 64, 80)))
    path = next(tmp_path.iterdir())
    before = path.read_bytes()
    path.chmod(0o400)
    volume = open_volume(url)
    with pytest.raises(TypeError, match="item assignment"):
        volume.array[0] = 1
    whole(volume)
    assert str(path) in opened_files()
    del volume
    gc.collect()
    assert str(path) not in opened_files()
    assert path.read_bytes() == before


def opened_files() -> list[str]:
    """What this process has open."""
    return [str(link.resolve()) for link in Path("/proc/self/fd").iterdir()]


@pytest.mark.parametrize("kind", ["HDF5", "TIFF"])
def test_the_digest_changes_with_how_a_file_is_stored_and_read_alone(tmp_path, kind):
    """The fingerprint: another type or order of axes is another volume, another name of the file is not."""
    (tmp_path / "again").mkdir()
    (tmp_path / "other").mkdir()
    array = random_volume((12, 64, 80))
    url = stored_in(tmp_path, kind, array)
    again = stored_in(tmp_path / "again", kind, array[::-1])
    other = stored_in(tmp_path / "other", kind, array.astype("uint16"))
    first, *rest = (open_volume(u).description.metadata_sha256 for u in (url, again, other))
    assert [digest == first for digest in rest] == [True, False]
    assert open_volume(url, Selection(axes="cyx")).description.metadata_sha256 != first


@pytest.mark.parametrize(("name", "package"), [("v.h5/raw", "h5py"), ("v.tif", "tifffile")])
def test_a_missing_package_is_told_with_how_to_get_it(tmp_path, monkeypatch, name, package):
    """Both are optional: who runs stores in Zarr needs neither."""
    (tmp_path / name.partition("/")[0]).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StorageError, match=rf"needs the package {package}.*pip install .*-e '\.\[train\]'"):
        open_volume(str(tmp_path / name))


@pytest.mark.parametrize("name", ["v.h5/raw", "v.tif"])
def test_files_that_are_not_there_or_are_another_thing_are_refused(tmp_path, name):
    """The path, or the file's own header, says it before a reader's traceback does."""
    with pytest.raises(StorageError, match="there is no file"):
        open_volume(str(tmp_path / name))
    (tmp_path / name.partition("/")[0]).write_bytes(b"something else altogether")
    with pytest.raises(StorageError, match=r"is no readable (HDF5|TIFF) file"):
        open_volume(str(tmp_path / name))


@pytest.mark.parametrize("kind", ["HDF5", "TIFF"])
def test_a_level_that_a_file_lacks_is_refused(tmp_path, kind):
    """Only a TIFF may have a pyramid of its own."""
    url = stored_in(tmp_path, kind, random_volume((12, 64, 80)))
    assert store_levels(url) == 1
    with pytest.raises(StorageError, match=r"input.level is 1, but"):
        open_volume(url, Selection(level=1))


@pytest.mark.parametrize("array", [np.zeros((3, 0, 5), "uint8"), np.zeros((3, 4, 5), "complex64")])
def test_what_cannot_be_predicted_is_refused_in_hdf5_too(tmp_path, array):
    """No voxel, or no real number."""
    with pytest.raises(StorageError, match=r"there is no voxel to predict|has dtype complex64"):
        open_volume(save_hdf5(tmp_path / "v.h5", array))


@pytest.mark.parametrize("unit", NANOMETERS)
def test_every_unit_that_is_understood_can_be_written(unit):
    """The specification names the units; one that it does not know would fail when the output is made."""
    space = Space((1.0, 2.0), (0.0, 0.0), (unit, unit))
    assert image_attributes(name="i", axes="yx", space=space)["multiscales"][0]["axes"][0]["unit"] == unit


# --- HDF5 in other files ------------------------------------------------------------------------------------------------


def virtual(folder: Path, name: str = "part.h5") -> Path:
    """A virtual dataset `v` of two files' datasets."""
    layout = h5py.VirtualLayout(shape=(4, 8, 8), dtype="u1")
    for n, part in enumerate((name, "second.h5")):
        with h5py.File(folder / part, "w") as file:
            file["raw"] = np.full((2, 8, 8), n + 1, "u1")
        layout[2 * n : 2 * n + 2] = h5py.VirtualSource(part, "raw", shape=(2, 8, 8))
    with h5py.File(folder / "whole.h5", "w") as file:
        file.create_virtual_dataset("v", layout, fillvalue=0)
    return folder / "whole.h5"


def test_a_virtual_dataset_is_read_from_its_files(tmp_path):
    """It is how many instruments write; only what is missing is refused."""
    found = open_volume(f"{virtual(tmp_path)}/v").read(Box((0, 0, 0), (4, 8, 8)))
    assert np.unique(found[0, :2]).tolist() == [1]
    assert np.unique(found[0, 2:]).tolist() == [2]


@pytest.mark.parametrize("loss", ["moved", "cut", "another", "header"])
def test_a_virtual_dataset_whose_source_went_is_refused_by_name(tmp_path, loss):
    """HDF5 reads a source that it does not find as fill: the run ended done and verified, with the prediction of zeros."""
    whole, part = virtual(tmp_path), tmp_path / "part.h5"
    content = part.read_bytes()
    part.unlink()
    if loss == "cut":
        part.write_bytes(content[: len(content) // 2])
    if loss in ("another", "header"):
        with h5py.File(part, "w") as file:
            file.create_dataset("other" if loss == "another" else "raw", (2, 8, 8), "u1")
    with pytest.raises(StorageError, match=r"part\.h5"):
        open_volume(f"{whole}/v")


def test_a_source_that_goes_in_mid_run_is_an_error_of_the_next_read(tmp_path):
    """HDF5 opens sources when it reads; one that went by then is fill without a word."""
    volume = open_volume(f"{virtual(tmp_path)}/v")
    (tmp_path / "second.h5").rename(tmp_path / "elsewhere.h5")
    with pytest.raises(StorageError, match=r"second\.h5"):
        volume.read(Box((0, 0, 0), (4, 8, 8)))


@pytest.mark.parametrize("length", [None, 100])
def test_an_external_file_that_is_missing_or_short_is_refused(tmp_path, length):
    """HDF5 reads behind the end of an external file as zeros."""
    raw = tmp_path / "raw.bin"
    raw.write_bytes(bytes(range(256)) * 2)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("v", (8, 8, 8), "u1", external=[(str(raw), 0, 512)])
    assert open_volume(f"{tmp_path}/v.h5/v").read(Box((0, 0, 0), (8, 8, 8)))[0, 0, 0, 5] == 5
    raw.unlink()
    if length:
        raw.write_bytes(bytes(length))
    with pytest.raises(StorageError, match=r"raw\.bin"):
        open_volume(f"{tmp_path}/v.h5/v")


# --- TIFF that was copied in part ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
@pytest.mark.parametrize("tile", [None, (32, 32)])
@pytest.mark.parametrize("rest", ["cut", "zeros"])
def test_a_tiff_that_was_copied_in_part_is_refused_or_read_rightly(tmp_path, compression, tile, rest):
    """tifffile reads the pages that it finds, or fill: a file of 4 pages became one of 1, with a line in the log."""
    z, y, x = np.indices((4, 64, 64))
    voxels = (z * 300 + y * 7 + x).astype("uint16")
    path = tmp_path / "v.tif"
    tifffile.imwrite(path, voxels, compression=compression, tile=tile, photometric="minisblack")
    content = path.read_bytes()
    for place in (8, *(len(content) * n // 8 for n in range(1, 8)), len(content) - 1):
        ending = b"" if rest == "cut" else bytes(len(content) - place)
        path.write_bytes(content[:place] + ending)
        if compression is None and rest == "zeros":
            continue  # zeros in raw pages are voxels
        try:
            found = open_volume(str(path)).read(Box((0, 0, 0), voxels.shape))[0]
        except StorageError:
            continue
        np.testing.assert_array_equal(found, voxels)

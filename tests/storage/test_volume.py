"""Volumes as other tools wrote them, and as zarr writes them today."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from pipeline.core.geometry.box import Box
from pipeline.core.volume import Selection, Space
from pipeline.errors import StorageError
from pipeline.places.stores import s3
from pipeline.volumes.volume import Volume, is_volume_file, open_volume, store_levels
from tests.pipeline_cases import random_volume, save_array


def whole(volume: Volume) -> np.ndarray:
    """All voxels, (C, Z, Y, X)."""
    return volume.read(Box.of_shape(volume.shape))


def write_image(path: Path, array: np.ndarray, axes: str, multiscale: dict, *, zarr_format: int = 2) -> Path:
    """An OME-Zarr image of one array, its metadata given word by word: 0.4 in Zarr v2, 0.5 in v3."""
    group = zarr.create_group(str(path), zarr_format=zarr_format)
    group.create_array("s0", data=array, chunks=array.shape)
    described = [{"name": a, "type": "channel" if a == "c" else "space", "unit": "nanometer"} for a in axes]
    image = {"axes": described, **multiscale}
    group.attrs.update({"multiscales": [image]} if zarr_format == 2 else {"ome": {"multiscales": [image]}})
    return path


# --- stores of other tools ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["raw", "zlib", "gzip", "blosc"])
def test_every_codec_of_the_reference_store_gives_the_reference_picture(shared_data, codec):
    """Four codecs written by zarr-python 2 hold one picture; a wrong decoding shows at once."""
    root = shared_data / "zarr/zarr_implementations"
    picture = np.asarray(Image.open(root / "data/reference_image.png"))
    with pytest.raises(StorageError, match="its last axis may be x, 3 voxels wide, or the channels of a picture"):
        open_volume(str(root / "examples/zarr.zr" / codec))
    volume = open_volume(str(root / "examples/zarr.zr" / codec), Selection(axes="zyx"))
    assert (volume.description.axes, volume.description.dtype, volume.shape) == ("zyx", "uint8", (512, 512, 3))
    np.testing.assert_array_equal(whole(volume)[0], picture)


@pytest.mark.parametrize(
    ("name", "axes", "levels", "shape"),
    [
        ("image-01", "yx", 1, (1, 1000, 1000)),
        ("image-02", "yx", 1, (1, 200, 200)),
        ("image-03", "zyx", 1, (2, 100, 100)),
        ("image-04", "zyx", 2, (2, 64, 64)),
    ],
)
def test_the_example_images_of_the_specification_are_read(shared_data, name, axes, levels, shape):
    """OME-Zarr 0.4 of the reference examples; two of them have no chunk at all, which is fill and no damage."""
    url = str(shared_data / f"zarr/ome-zarr-examples/valid/{name}.zarr")
    volume = open_volume(url)
    assert (volume.description.axes, volume.shape, volume.description.dtype) == (axes, shape, "float64")
    assert set(volume.description.space.units) == {"micrometer"}
    assert store_levels(url) == levels
    assert whole(volume).shape == (1, *shape)


def test_a_level_is_chosen_by_its_index(shared_data):
    """Each level has its own extents and its own voxel size; the wrong pair would misplace the output."""
    url = str(shared_data / "zarr/ngio/test_image_zyx.zarr")
    fine, coarse = open_volume(url), open_volume(url, Selection(level=1))
    assert (fine.shape, fine.description.space.scale) == ((3, 64, 64), (2.0, 0.5, 0.5))
    assert (coarse.shape, coarse.description.space.scale) == ((3, 32, 32), (2.0, 1.0, 1.0))
    assert coarse.description.level == 1


def test_a_channel_axis_by_ngio_is_read_as_channels(shared_data):
    """The channel's scale is no voxel size and must not shift the others."""
    found = open_volume(str(shared_data / "zarr/ngio/test_image_czyx.zarr")).description
    assert (found.axes, found.channels, found.shape) == ("czyx", 2, (3, 64, 64))
    assert found.space == Space((2.0, 0.5, 0.5), (0.0, 0.0, 0.0), ("micrometer",) * 3)


@pytest.mark.parametrize("version", ["v0.4", "v0.5"])
def test_an_image_of_one_time_point_by_zarr_java_is_read(shared_data, version):
    """Five axes, of which time has one point: as bioformats2raw and others write every image."""
    url = str(shared_data / "zarr/zarr-java/ome" / version)
    volume = open_volume(url)
    assert (volume.stored_axes, volume.description.axes, volume.description.channels) == ("tczyx", "czyx", 2)
    np.testing.assert_array_equal(whole(volume), zarr.open(f"{url}/0", mode="r")[0])


@pytest.mark.parametrize("version", ["v0.4", "v0.5"])
def test_labels_by_zarr_java_are_read(shared_data, version):
    """Zarr v2 with `.` as separator, and v3, both of another implementation."""
    volume = open_volume(str(shared_data / "zarr/zarr-java/ome" / version / "labels/nuclei/0"))
    assert (volume.shape, volume.description.dtype) == ((8, 16, 16), "uint32")
    assert whole(volume).any()


def test_a_plate_is_no_image(shared_data):
    """A plate has wells, not voxels; the message names what it holds."""
    with pytest.raises(StorageError, match=r"no OME-Zarr image metadata \(multiscales\); it holds A, B"):
        open_volume(str(shared_data / "zarr/ome-zarr-examples/valid/plate-01.zarr"))


# --- arrays -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(("shape", "axes"), [((9, 7), "yx"), ((5, 9, 7), "zyx"), ((2, 5, 9, 7), "czyx")])
def test_arrays_without_metadata_are_read_by_their_number_of_axes(tmp_path, zarr_format, shape, axes):
    """A plain array of either format is a volume: 2D yx, 3D zyx, 4D czyx."""
    array = random_volume(shape, "uint16")
    volume = open_volume(str(save_array(tmp_path / "a.zarr", array, tuple(4 for _ in shape), zarr_format=zarr_format)))
    assert volume.description.axes == axes
    assert volume.description.channels == (shape[0] if "c" in axes else 1)
    assert volume.description.space == Space.unknown(len(axes.removeprefix("c")))
    np.testing.assert_array_equal(whole(volume).reshape(shape), array)


def test_given_axes_come_before_what_the_number_of_axes_suggests(tmp_path):
    """Three channels of a picture look like three slices until the run says otherwise."""
    array = random_volume((3, 9, 7))
    volume = open_volume(str(save_array(tmp_path / "a.zarr", array)), Selection(axes="cyx"))
    assert (volume.description.channels, volume.shape) == (3, (1, 9, 7))
    box = Box((0, 2, 1), (1, 8, 6))
    np.testing.assert_array_equal(volume.read(box), array[:, np.newaxis, 2:8, 1:6])


@pytest.mark.parametrize("asked", ["zy", "tzyx", "zzyx", "zy.", "zbx"])
def test_axes_that_do_not_fit_the_array_are_refused(tmp_path, asked):
    """Other orders would be predicted transposed without a word."""
    url = str(save_array(tmp_path / "a.zarr", random_volume((3, 9, 7))))
    with pytest.raises(StorageError, match=rf"3 axes, shape \(3, 9, 7\), read as '{asked}'"):
        open_volume(url, Selection(axes=asked))


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", [">u2", ">i4", ">f4", ">f8"])
def test_big_endian_values_are_read_as_the_numbers_they_are(tmp_path, zarr_format, dtype):
    """Microscopes write big-endian; torch refuses it, and swapped bytes would be noise."""
    array = random_volume((5, 9, 7), np.dtype(dtype).newbyteorder("=").name)
    options = {"serializer": zarr.codecs.BytesCodec(endian="big")} if zarr_format == 3 else {}
    stored = array if options else array.astype(dtype)
    volume = open_volume(str(save_array(tmp_path / "a.zarr", stored, zarr_format=zarr_format, **options)))
    assert volume.description.dtype == array.dtype.name
    np.testing.assert_array_equal(whole(volume)[0], array)


def test_metadata_is_hashed_apart_from_its_attributes(tmp_path):
    """The fingerprint must change where the array does, and not where somebody adds a remark."""
    array = random_volume((5, 9, 7))
    first = open_volume(str(save_array(tmp_path / "a.zarr", array))).description
    zarr.open_array(str(tmp_path / "a.zarr"), mode="r+").attrs["remark"] = "seen"
    again = open_volume(str(tmp_path / "a.zarr")).description
    other = open_volume(str(save_array(tmp_path / "b.zarr", array, (2, 4, 4)))).description
    assert first.metadata_sha256 == again.metadata_sha256 != other.metadata_sha256


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_format_and_the_shards_are_told(tmp_path, zarr_format):
    """What `inspect` shows, without asking what is behind a volume."""
    options = {"shards": (4, 8, 8)} if zarr_format == 3 else {}
    url = save_array(tmp_path / "a.zarr", random_volume((5, 9, 7)), (2, 4, 4), zarr_format=zarr_format, **options)
    volume = open_volume(str(url))
    assert (volume.format, volume.shards) == (f"Zarr v{zarr_format}", options.get("shards"))


@pytest.mark.parametrize("name", ["v.h5", "v.tif", "v.hdf5"])
def test_a_folder_is_a_store_whatever_its_name(tmp_path, name):
    """Names tell files of HDF5 and TIFF apart from stores; a folder can be neither of the two."""
    array = random_volume((5, 9, 7))
    url = str(save_array(tmp_path / name / "inner.zarr", array).parent / "inner.zarr")
    assert not is_volume_file(url)
    np.testing.assert_array_equal(whole(open_volume(url))[0], array)
    assert not is_volume_file(str(tmp_path / name))


@pytest.mark.parametrize(
    ("url", "is_file"),
    [
        ("a/v.h5/raw", True),
        ("a/v.H5/deep/raw", True),
        ("v.ome.tiff", True),
        ("v.tif/inner", False),
        ("v.zarr", False),
        ("weights.pt", False),
        ("s3://bucket/v.tif", False),
    ],
)
def test_files_are_known_by_their_names(url, is_file):
    """What is not there yet is asked for by name too; what is remote is a store."""
    assert is_volume_file(url) is is_file


# --- object stores --------------------------------------------------------------------------------------------------------


def uploaded(path: Path, bucket: str) -> str:
    """A store, copied to a bucket; gives its URL."""
    s3().put(str(path), f"{bucket}/{path.name}", recursive=True)
    return f"{bucket}/{path.name}"


@pytest.mark.parametrize("options", [{"zarr_format": 2}, {"zarr_format": 3}, {"zarr_format": 3, "shards": (4, 8, 8)}])
def test_a_volume_on_an_object_store_is_the_volume_on_disk(tmp_path, bucket, options):
    """Both formats and shards, which are read by ranges; equal descriptions but for the URL make equal fingerprints."""
    path = save_array(tmp_path / "a.zarr", random_volume((9, 20, 17)), (2, 4, 4), **options)
    local, remote = open_volume(str(path)), open_volume(uploaded(path, bucket))
    assert replace(remote.description, url=local.description.url) == local.description
    assert (remote.format, remote.shards) == (local.format, local.shards)
    np.testing.assert_array_equal(whole(remote), whole(local))
    box = Box((1, 3, 5), (8, 11, 16))
    np.testing.assert_array_equal(remote.read(box), local.read(box))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_image_on_an_object_store_has_its_levels_and_its_place(tmp_path, bucket, zarr_format):
    """OME-Zarr 0.4 and 0.5: the metadata of the group, and the array that it names."""
    transforms = [{"type": "scale", "scale": [40, 4, 4]}]
    multiscale = {"datasets": [{"path": "s0", "coordinateTransformations": transforms}]}
    path = write_image(tmp_path / "i", random_volume((3, 4, 5)), "zyx", multiscale, zarr_format=zarr_format)
    url = uploaded(path, bucket)
    assert store_levels(url) == 1
    assert open_volume(f"{url}/").description.space.scale == (40.0, 4.0, 4.0)
    np.testing.assert_array_equal(whole(open_volume(f"{url}/s0")), whole(open_volume(str(path))))


def test_threads_read_one_volume_on_an_object_store_at_once(tmp_path, bucket):
    """The engine reads ahead in a thread of its own, beside the one that opened it."""
    path = save_array(tmp_path / "a.zarr", random_volume((9, 20, 17)), (2, 4, 4), shards=(4, 8, 8))
    volume, expected = open_volume(uploaded(path, bucket)), whole(open_volume(str(path)))
    boxes = [Box((z, y, 0), (z + 1, y + 5, 17)) for z in range(9) for y in range(0, 20, 5)]
    with ThreadPoolExecutor(8) as pool:
        for box, found in zip(boxes, pool.map(volume.read, boxes), strict=True):
            np.testing.assert_array_equal(found[0], expected[0][box.within(Box.of_shape(volume.shape))])


def test_what_is_no_volume_on_an_object_store_is_told(tmp_path, bucket):
    """No bucket, nothing there, a folder of something else, a group that is no image: each in its own words."""
    zarr.create_group(str(tmp_path / "group.zarr"))
    group = uploaded(tmp_path / "group.zarr", bucket)
    s3().pipe_file(f"{bucket}/pictures/0001.tif", b"II*")
    s3().pipe_file(f"{bucket}/torn/zarr.json", b'{"zarr_format": 3, "node_ty')
    for url, words in (
        (f"{bucket}/gone.zarr", "was asked for, but there is nothing there. Check the URL and AWS_ENDPOINT_URL"),
        ("s3://no-such-bucket-here/x.zarr", "there is no bucket 'no-such-bucket-here'"),
        (f"{bucket}/pictures", r"is not a Zarr array or group \(it holds 0001.tif\)"),
        (f"{bucket}/torn", "is not a Zarr array or group"),
        (group, "has no OME-Zarr image metadata"),
    ):
        with pytest.raises(StorageError, match=words):
            open_volume(url)


# --- placement in space -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_scale_translation_and_units_are_carried_over(tmp_path, zarr_format):
    """An output that lies elsewhere than its input cannot be laid over it."""
    transforms = [{"type": "scale", "scale": [1, 40, 4, 4]}, {"type": "translation", "translation": [0, 80, 8, 2]}]
    multiscale = {"datasets": [{"path": "s0", "coordinateTransformations": transforms}]}
    path = write_image(tmp_path / "i", random_volume((2, 3, 4, 5)), "czyx", multiscale, zarr_format=zarr_format)
    space = open_volume(str(path)).description.space
    assert space == Space((40.0, 4.0, 4.0), (80.0, 8.0, 2.0), ("nanometer",) * 3)


def test_transformations_of_the_whole_image_come_after_those_of_a_level(tmp_path):
    """A level's scale and translation are scaled, and then shifted, by the image's: the order decides the place."""
    multiscale = {
        "datasets": [
            {
                "path": "s0",
                "coordinateTransformations": [
                    {"type": "scale", "scale": [2, 3, 4]},
                    {"type": "translation", "translation": [1, 1, 2]},
                ],
            }
        ],
        "coordinateTransformations": [
            {"type": "scale", "scale": [10, 10, 0.5]},
            {"type": "translation", "translation": [100, 0, 7]},
        ],
    }
    path = write_image(tmp_path / "i", random_volume((3, 4, 5)), "zyx", multiscale)
    space = open_volume(str(path)).description.space
    assert space.scale == (20.0, 30.0, 2.0)
    assert space.translation == (110.0, 10.0, 8.0)


def test_other_metadata_of_an_image_does_not_stand_in_the_way(tmp_path):
    """Viewers' blocks (omero) break the specification's models in the wild, and matter to no prediction."""
    path = write_image(tmp_path / "i", random_volume((3, 4, 5)), "zyx", {"datasets": [{"path": "s0"}]})
    zarr.open_group(str(path), mode="r+").attrs["omero"] = {"channels": [{"window": {"start": "none"}, "color": 7}]}
    assert open_volume(str(path)).description.space.scale == (1.0, 1.0, 1.0)


# --- refusals -----------------------------------------------------------------------------------------------------------


def test_nothing_at_the_url_is_refused(tmp_path):
    """The commonest mistake: a path that is not there."""
    with pytest.raises(StorageError, match=r"'.*/gone.zarr' was asked for, but there is nothing there"):
        open_volume(str(tmp_path / "gone.zarr"))


@pytest.mark.parametrize("kind", ["empty folder", "file", "folder of pictures", "torn metadata"])
def test_what_is_no_store_is_refused(tmp_path, kind):
    """A folder or a file that is no Zarr is told to be none, whatever zarr makes of it."""
    path = tmp_path / "thing"
    if kind == "file":
        path.write_bytes(b"II*\0 a TIFF")
    else:
        path.mkdir()
    if kind == "folder of pictures":
        (path / "0001.tif").write_bytes(b"II*\0")
    if kind == "torn metadata":
        (path / "zarr.json").write_text('{"zarr_format": 3, "node_ty')
    with pytest.raises(StorageError, match="is not a Zarr array or group"):
        open_volume(str(path))


def test_an_array_of_an_unknown_codec_is_refused(tmp_path):
    """A codec that is not installed cannot be read; the message must not be a KeyError."""
    path = save_array(tmp_path / "a.zarr", random_volume((3, 4, 5)))
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "jpegxl9"}]
    (path / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(StorageError, match=r"is not a Zarr array or group.*jpegxl9"):
        open_volume(str(path))


def test_a_level_that_is_not_there_is_refused(tmp_path, shared_data):
    """Levels are counted from 0; a plain array has that one alone."""
    with pytest.raises(StorageError, match=r"input.level is 2, but .* has levels 0 to 1"):
        open_volume(str(shared_data / "zarr/ngio/test_image_zyx.zarr"), Selection(level=2))
    with pytest.raises(StorageError, match=r"input.level is 1, but .* is a plain array with level 0 alone"):
        open_volume(str(save_array(tmp_path / "a.zarr", random_volume((3, 4, 5)))), Selection(level=1))


def test_a_group_without_its_level_is_refused(tmp_path):
    """A store that was copied in part has metadata and no array."""
    path = write_image(tmp_path / "i", random_volume((3, 4, 5)), "zyx", {"datasets": [{"path": "s0"}, {"path": "s1"}]})
    with pytest.raises(StorageError, match=r"Level 1 of .* should be the array 's1', which is not there"):
        open_volume(str(path), Selection(level=1))


def test_metadata_that_cannot_be_understood_is_refused(tmp_path):
    """A scale of two numbers for three axes places nothing."""
    datasets = [{"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": [1, 2]}]}]
    path = write_image(tmp_path / "i", random_volume((3, 4, 5)), "zyx", {"datasets": datasets})
    with pytest.raises(StorageError, match=r"cannot be understood .*3 axes, but a transformation of 2"):
        open_volume(str(path))


def test_values_that_are_no_real_numbers_are_refused(tmp_path):
    """Complex numbers would lose their imaginary part without a word."""
    with pytest.raises(StorageError, match="has dtype complex64; expected integers or floats"):
        open_volume(str(save_array(tmp_path / "a.zarr", np.zeros((3, 4, 5), dtype="complex64"))))


def test_an_empty_volume_is_refused(tmp_path):
    """No voxel, no tile, no answer."""
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(3, 0, 5), chunks=(1, 1, 1), dtype="uint8")
    with pytest.raises(StorageError, match=r"has shape \(3, 0, 5\): there is no voxel to predict"):
        open_volume(str(tmp_path / "a.zarr"))


def test_the_input_is_opened_for_reading_only(tmp_path):
    """The input store is never written to: zarr itself must refuse."""
    volume = open_volume(str(save_array(tmp_path / "a.zarr", random_volume((3, 4, 5)))))
    with pytest.raises(ValueError, match="read-only"):
        volume.array[0, 0, 0] = 1


def test_an_array_on_an_object_store_is_read_as_the_image_it_is_a_level_of(tmp_path, bucket):
    """The parent is asked there, too; where it may not be read or is not there, nobody tells."""
    transforms = [{"type": "scale", "scale": [30, 4, 4]}]
    multiscale = {"datasets": [{"path": "s0", "coordinateTransformations": transforms}]}
    url = uploaded(write_image(tmp_path / "i", random_volume((3, 4, 5)), "cyx", multiscale), bucket)
    volume = open_volume(f"{url}/s0")
    assert (volume.description.axes, volume.description.space.scale, volume.warnings) == ("cyx", (4.0, 4.0), ())
    s3().rm_file(f"{url}/.zattrs" if s3().exists(f"{url}/.zattrs") else f"{url}/zarr.json")
    volume = open_volume(f"{url}/s0")
    assert volume.description.axes in ("zyx", "cyx")
    assert any("voxel size" in warning for warning in volume.warnings)

"""What is told of an array's axes and voxels is believed, or refused, or said: never dropped, and never made up."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from zarr.storage import LocalStore

from pipeline.core.geometry.axes import Told, letter_of, read_as
from pipeline.core.geometry.lengths import NANOMETERS, unit_of
from pipeline.core.volume import Selection, Space
from pipeline.errors import StorageError
from pipeline.reports.inspection import inspect_path
from pipeline.volumes.ome import image_attributes
from pipeline.volumes.volume import Volume, open_volume
from tests.pipeline_cases import random_volume

NAN, INF = float("nan"), float("inf")
GOOD = [{"type": "scale", "scale": [40, 4, 4]}]
NANOMETRES = Space((40.0, 4.0, 4.0), (0.0,) * 3, ("nanometer",) * 3)


def array_at(
    path: Path,
    shape: tuple[int, ...] = (3, 8, 9),
    *,
    zarr_format: int = 3,
    names: Any = None,
    attributes: dict | None = None,
) -> str:
    """A plain array, with what is told of it."""
    options = {"dimension_names": names} if zarr_format == 3 else {}
    array = random_volume(shape)
    zarr.create_array(
        LocalStore(path), data=array, chunks=shape, zarr_format=zarr_format, attributes=attributes, **options
    )
    return str(path)


def image_at(
    path: Path,
    transforms: Any,
    *,
    units: Any = "nanometer",
    axes: Any = "zyx",
    common: Any = None,
    shape: Any = (3, 8, 9),
) -> str:
    """An OME-Zarr 0.5 image of one level, whose metadata are written as they come, NaN too."""
    group = zarr.create_group(LocalStore(path))
    group.create_array("0", data=random_volume(shape), chunks=shape)
    units = units if isinstance(units, list) else [units] * len(axes)
    image: dict[str, Any] = {
        "axes": [{"name": name, "type": "space", "unit": unit} for name, unit in zip(axes, units, strict=True)],
        "datasets": [{"path": "0", "coordinateTransformations": transforms}],
        "coordinateTransformations": common,
    }
    add_images(path, [image])
    return str(path)


def add_images(path: Path, images: list[dict]) -> None:
    """Write a group's multiscales as they come."""
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"] = {"ome": {"version": "0.5", "multiscales": images}}
    (path / "zarr.json").write_text(json.dumps(document))


def said(volume: Volume) -> str:
    """All warnings of a volume."""
    return "\n".join(volume.warnings)


# --- who tells the axes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(("axes", "read"), [("cyx", "cyx"), ("zyx", "zyx"), ("CYX", "cyx")])
def test_an_array_is_read_as_the_image_it_is_a_level_of(tmp_path, zarr_format, axes, read):
    """`image.ome.zarr/0` of a cyx image was read as zyx with voxels of 1."""
    group = zarr.create_group(LocalStore(tmp_path / "i.zarr"), zarr_format=zarr_format)
    array = group.create_array("deep/0", data=random_volume((3, 8, 9)), chunks=(3, 8, 9))
    assert array.shape == (3, 8, 9)
    image = {
        "axes": [{"name": a, "unit": None if a in "cC" else "um"} for a in axes],
        "datasets": [
            {"path": "s", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1]}]},
            {"path": "deep/0", "coordinateTransformations": GOOD},
        ],
    }
    group.attrs.update({"multiscales": [image]} if zarr_format == 2 else {"ome": {"multiscales": [image]}})
    volume = open_volume(str(tmp_path / "i.zarr/deep/0"))
    assert volume.description.axes == read
    sizes = (40.0, 4.0, 4.0)[-len(volume.description.space.scale) :]
    assert volume.description.space == Space(sizes, (0.0,) * len(sizes), ("micrometer",) * len(sizes))
    assert volume.warnings == ()


def test_the_image_above_comes_first_then_dimension_names_then_xarray(tmp_path):
    """Three may tell; the first is believed, and who says otherwise is named."""
    url = image_at(tmp_path / "i.zarr", GOOD)
    path = tmp_path / "i.zarr/0/zarr.json"
    document = json.loads(path.read_text())
    document |= {"dimension_names": ["c", "y", "x"], "attributes": {"_ARRAY_DIMENSIONS": ["x", "y", "z"]}}
    path.write_text(json.dumps(document))
    for place in (url, f"{url}/0"):
        volume = open_volume(place)
        assert volume.description.axes == "zyx"
        assert "told as 'zyx' (multiscales), which is believed, and as 'cyx' (dimension_names)" in said(volume)
        assert "and as 'xyz' (_ARRAY_DIMENSIONS)" in said(volume)
    add_images(tmp_path / "i.zarr", [])
    assert open_volume(f"{url}/0").description.axes == "cyx"
    path.write_text(
        json.dumps(document | {"dimension_names": None, "attributes": {"_ARRAY_DIMENSIONS": ["channel", "y", "x"]}})
    )
    assert open_volume(f"{url}/0").description.axes == "cyx"


@pytest.mark.parametrize("by", ["dimension_names", "_ARRAY_DIMENSIONS 2", "_ARRAY_DIMENSIONS 3"])
@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["z", "y", "x"], "zyx"),
        (["C", "Y", "X"], "cyx"),
        (["depth", "height", "width"], "zyx"),
        (["Channel", "rows", "columns"], "cyx"),
        (["c", None, None], "cyx"),
        (["dim_0", "dim_1", "dim_2"], "zyx"),
        (["x", "y", "z"], "zyx"),
        (["y", "x", "c"], "cyx"),
        (["t", "y", "x"], None),
        (["time", "y", "x"], None),
        (["z", "z", "x"], None),
        (["x", None, None], None),
        (["band", "y", "x"], None),
    ],
)
def test_names_of_dimensions_are_read_or_refused(tmp_path, by, names, read):
    """xyz read as zyx is a volume that is transposed, and every page is green."""
    if by == "dimension_names":
        url = array_at(tmp_path / "a.zarr", names=names)
    else:
        url = array_at(tmp_path / "a.zarr", zarr_format=int(by[-1]), attributes={"_ARRAY_DIMENSIONS": names})
    if read is None:
        told = f"They are told by {by.split()[0]}. Set input.axes to how they are stored"
        with pytest.raises(StorageError, match="time points along t" if names[0] in ("t", "time") else told):
            open_volume(url)
        volume = open_volume(url, Selection(axes="zyx"))
        assert "input.axes 'zyx' governs, but the axes are told as" in said(volume)
        return
    volume = open_volume(url)
    assert volume.description.axes == read
    assert "voxel size unknown" in said(volume) or "voxel size is unknown" in said(volume)


def test_names_for_another_number_of_axes_are_refused(tmp_path):
    """Two names for three axes say that something is wrong; which one is right is for the user to say."""
    url = array_at(tmp_path / "a.zarr", attributes={"_ARRAY_DIMENSIONS": ["y", "x"]})
    with pytest.raises(StorageError, match=r"3 axes, shape .* read as 'yx'"):
        open_volume(url)
    assert open_volume(url, Selection(axes="zyx")).description.axes == "zyx"


@pytest.mark.parametrize("told", [c for n in (2, 3) for c in itertools.permutations("czyx", n)])
def test_axes_that_are_told_are_read_as_told_or_refused(told):
    """Of all orders of up to three names: those with y and x are read, and no other is."""
    names = "".join(told)
    if {"y", "x"} <= set(told):
        assert read_as([Told("by", told)], (5,) * len(told), "auto", "v").stored == names
    else:
        with pytest.raises(StorageError, match=f"read as '{names}'"):
            read_as([Told("by", told)], (5,) * len(told), "auto", "v")


def test_axes_that_nobody_tells_are_said_once(tmp_path):
    """One warning, of axes and voxel size together; none of axes where the run says them."""
    url = array_at(tmp_path / "a.zarr")
    assert open_volume(url).warnings == (
        "no axes are told, read as zyx, and the voxel size is unknown; set input.axes if they are others",
    )
    assert open_volume(url, Selection(axes="zyx")).warnings == ("voxel size unknown: nobody tells it",)


def test_a_type_says_more_than_a_name_that_is_not_known():
    """Channels are named after dyes, and typed."""
    assert [letter_of("dye", "channel"), letter_of("z", "space"), letter_of(None, None), letter_of("Foo", "space")] == [
        "c",
        "z",
        "",
        "foo",
    ]


# --- colours last -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zarr", "h5", "tif"])
@pytest.mark.parametrize("shape", [(20, 30, 3), (17, 17, 4), (5, 20, 30, 3)])
def test_a_picture_with_its_colours_last_is_refused_with_both_readings(tmp_path, kind, shape):
    """(H, W, 3) was read as a stack three voxels wide."""
    if kind == "tif" and len(shape) == 4:
        pytest.skip("tifffile names the axes of such a file itself")
    url = stored(tmp_path, kind, random_volume(shape))
    words = rf"{len(shape)} axes without names.* set input.axes to '{'cz'[-len(shape) + 2 :]}.*yx'; if it is channels, to 'z?yxc'"
    with pytest.raises(StorageError, match=words):
        open_volume(url)
    assert open_volume(url, Selection(axes="zyx" if len(shape) == 3 else "czyx")).shape[-1] == shape[-1]


@pytest.mark.parametrize("shape", [(20, 30, 5), (3, 20, 30), (16, 30, 3), (30, 16, 4), (20, 30, 2)])
def test_other_extents_are_read_by_their_number(tmp_path, shape):
    """The negative control: small and narrow volumes are volumes."""
    assert open_volume(array_at(tmp_path / "a.zarr", shape)).shape == shape


def test_a_picture_whose_axes_are_told_is_no_guess(tmp_path):
    """Only where nobody tells is there anything to ask."""
    assert open_volume(array_at(tmp_path / "a.zarr", (20, 30, 3), names=["z", "y", "x"])).shape == (20, 30, 3)


def stored(folder: Path, kind: str, array: np.ndarray) -> str:
    """An array without names in a file of a kind."""
    if kind == "zarr":
        zarr.create_array(LocalStore(folder / "v.zarr"), data=array)
        return str(folder / "v.zarr")
    if kind == "h5":
        with h5py.File(folder / "v.h5", "w") as file:
            file["raw"] = array
        return str(folder / "v.h5/raw")
    tifffile.imwrite(folder / "v.tif", array, photometric="minisblack")
    return str(folder / "v.tif")


# --- scales and transformations -----------------------------------------------------------------------------------------

SCALE = "a scale of"

UNKNOWN = {
    "zero": ([{"type": "scale", "scale": [0, 4, 4]}], SCALE),
    "negative": ([{"type": "scale", "scale": [40, -4, 4]}], SCALE),
    "NaN": ([{"type": "scale", "scale": [NAN, 4, 4]}], SCALE),
    "infinite": ([{"type": "scale", "scale": [40, 4, INF]}], SCALE),
    "text": ([{"type": "scale", "scale": ["40", 4, 4]}], SCALE),
    "truth": ([{"type": "scale", "scale": [True, 4, 4]}], SCALE),
    "null": ([{"type": "scale", "scale": [None, 4, 4]}], SCALE),
    "list": ([{"type": "scale", "scale": [[40], 4, 4]}], SCALE),
    "huge": ([{"type": "scale", "scale": [10**400, 4, 4]}], SCALE),
    "no numbers": ([{"type": "scale", "scale": "40"}], "has no numbers"),
    "no scale": ([{"type": "scale"}], "has no numbers"),
    "missing": (None, "there are no coordinateTransformations"),
    "none": ([], "there are no coordinateTransformations"),
    "no list": ("scale", "no list of transformations"),
    "mapping": ({"type": "scale", "scale": [1, 1, 1]}, "no list of transformations"),
    "no type": ([{"scale": [40, 4, 4]}], "has no type"),
    "two scales": (
        [*GOOD, {"type": "scale", "scale": [1, 1, 1]}],
        "2 transformations 'scale', and the specification allows one",
    ),
    "two translations": (
        [*GOOD, *[{"type": "translation", "translation": [1, 1, 1]}] * 2],
        "2 transformations 'translation'",
    ),
    "translation alone": ([{"type": "translation", "translation": [1, 1, 1]}], "no transformation 'scale'"),
    "in an array": ([{"type": "scale", "path": "s"}], "'path'"),
    "shear": ([{"type": "affine", "affine": [[40, 0, 0, 0], [0, 4, 1, 0], [0, 0, 4, 0]]}], "'affine' mixes axes"),
    "mirror": ([{"type": "affine", "affine": [[40, 0, 0, 0], [0, -4, 0, 0], [0, 0, 4, 0]]}], SCALE),
    "torn affine": ([{"type": "affine", "affine": [[40, 0, 0]]}], "no matrix of 3 rows"),
    "rotation": (
        [*GOOD, {"type": "rotation", "rotation": [[1, 0, 0], [0, 0, 1], [0, -1, 0]]}],
        "'rotation' mixes axes",
    ),
    "mapAxis": ([{"type": "mapAxis", "mapAxis": [0, 2, 1]}, *GOOD], "'mapAxis' is no scale"),
    "deep": (
        [
            {
                "type": "sequence",
                "transformations": [
                    {
                        "type": "sequence",
                        "transformations": [
                            {"type": "sequence", "transformations": [{"type": "sequence", "transformations": GOOD}]}
                        ],
                    }
                ],
            }
        ],
        "no list of",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_voxel_size_that_cannot_be_one_is_unknown_and_said(tmp_path, name):
    """Each was planned and copied: 0 and NaN to the output, the others as 1 micrometer or in part."""
    transforms, words = UNKNOWN[name]
    url = image_at(tmp_path / "i.zarr", transforms, units="micrometer")
    for place in (url, f"{url}/0"):
        volume = open_volume(place)
        assert volume.description.space == Space.unknown(3)
        assert "voxel size unknown: " in said(volume)
        assert words in said(volume)


KNOWN = {
    "scale": (GOOD, None),
    "translation": ([*GOOD, {"type": "translation", "translation": [0, 0, 0]}], None),
    "identity and scale": ([{"type": "identity"}, *GOOD], None),
    "sequence": ([{"type": "sequence", "transformations": GOOD}], None),
    "affine": ([{"type": "affine", "affine": [[40, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0]]}], None),
    "homogeneous": ([{"type": "affine", "affine": [[40, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]]}], None),
    "no turn": ([*GOOD, {"type": "rotation", "rotation": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}], None),
    "common": ([{"type": "scale", "scale": [4, 0.4, 0.4]}], [{"type": "scale", "scale": [10, 10, 10]}]),
    "empty common": (GOOD, []),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_comes_to_a_scale_an_axis_is_read_as_that(tmp_path, name):
    """Other words for the same are believed, exactly."""
    transforms, common = KNOWN[name]
    volume = open_volume(image_at(tmp_path / "i.zarr", transforms, common=common))
    assert volume.description.space == NANOMETRES
    assert volume.warnings == ()


def test_an_identity_alone_is_voxels_of_one(tmp_path):
    """It is told, so it is no missing transformation."""
    assert open_volume(image_at(tmp_path / "i.zarr", [{"type": "identity"}])).description.space == Space(
        (1.0,) * 3, (0.0,) * 3, ("nanometer",) * 3
    )


@pytest.mark.parametrize("value", [NAN, INF, "1", True])
def test_an_origin_that_cannot_be_one_is_taken_as_zero_and_said(tmp_path, value):
    """The voxel size is good all the same."""
    volume = open_volume(image_at(tmp_path / "i.zarr", [*GOOD, {"type": "translation", "translation": [value, 0, 0]}]))
    assert volume.description.space == NANOMETRES
    assert "origin unknown, taken as 0: a translation of " in said(volume)


def test_the_scale_of_a_channel_is_no_voxel_size(tmp_path):
    """Whatever it is, it stands in no one's way."""
    url = image_at(tmp_path / "i.zarr", [{"type": "scale", "scale": [0, 4, 4]}], axes="cyx")
    assert open_volume(url).description.space == Space((4.0, 4.0), (0.0, 0.0), ("nanometer",) * 2)
    again = open_volume(url, Selection(axes="zyx"))
    assert again.description.space == Space.unknown(3)
    assert "voxel size unknown: an axis that is read as space is told as 'cyx' (multiscales)" in said(again)


@pytest.mark.parametrize("first", ["a", ""])
def test_of_two_images_the_one_that_is_read_is_named(tmp_path, first):
    """The first was taken without a word; an array that is named by its path is read as that of its own image."""
    group = zarr.create_group(LocalStore(tmp_path / "i.zarr"))
    for name in "01":
        group.create_array(name, data=random_volume((3, 8, 9)))
    images = [
        {
            "name": name,
            "axes": [{"name": a, "unit": unit} for a in axes],
            "datasets": [{"path": path, "coordinateTransformations": GOOD}],
        }
        for name, axes, unit, path in ((first, "zyx", "nm", "0"), ("b", "cyx", "um", "1"))
    ]
    add_images(tmp_path / "i.zarr", images)
    url = str(tmp_path / "i.zarr")
    volume = open_volume(url)
    assert volume.description.axes == "zyx"
    assert (
        f"holds 2 multiscale images, '{first}' (0); 'b' (1): the first is read. To read another, name its array, such as '{url}/1'"
        in said(volume)
    )
    other = open_volume(f"{url}/1")
    assert (other.description.axes, other.description.space.units, other.warnings) == ("cyx", ("micrometer",) * 2, ())


def test_a_parent_that_cannot_be_understood_stands_in_no_ones_way(tmp_path):
    """The refusal of a group advises naming the array; that must help."""
    url = image_at(tmp_path / "i.zarr", [{"type": "scale", "scale": [1, 2]}])
    with pytest.raises(StorageError, match="Name the array itself"):
        open_volume(url)
    with pytest.raises(StorageError, match="cannot be understood"):
        open_volume(url)
    (tmp_path / "i.zarr/zarr.json").write_text(
        '{"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"multiscales": [{}]}}}'
    )
    volume = open_volume(f"{url}/0")
    assert volume.description.axes == "zyx"
    assert "what the group above says is not believed" in said(volume)
    (tmp_path / "i.zarr/zarr.json").write_text("{")
    assert open_volume(f"{url}/0").description.axes == "zyx"


# --- units --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "unit"),
    [
        ("um", "micrometer"),
        ("µm", "micrometer"),
        ("μm", "micrometer"),
        ("\\u00B5m", "micrometer"),
        ("micron", "micrometer"),
        ("Microns", "micrometer"),
        ("MICROMETER", "micrometer"),
        ("micrometre", "micrometer"),
        ("nm", "nanometer"),
        ("Nanometres", "nanometer"),
        ("Å", "angstrom"),
        ("Ångström", "angstrom"),
        ("mm", "millimeter"),
        (" inch ", "inch"),
        (b"um", "micrometer"),
        ("Mm", None),
        ("pixel", None),
        ("ms", None),
        ("", None),
        (5, None),
        (True, None),
        (["nm"], None),
        ({"nm": 1}, None),
        ("nm" * 1000, None),
    ],
)
def test_units_are_written_by_the_specification_s_names(told, unit):
    """`um`, `µm` and `micron` were copied, and viewers know none of them."""
    assert unit_of(told) == unit


def test_every_name_of_the_specification_is_one():
    """And stays what it is."""
    assert all(unit_of(name) == name for name in NANOMETERS)
    assert len(NANOMETERS) == 26


@pytest.mark.parametrize(
    ("unit", "words"),
    [(5, "5 is no unit"), ("pixel", "'pixel' is no unit"), ({"nm": 1}, "is no unit"), ("x" * 500, "is no unit")],
)
def test_a_unit_that_is_none_is_unknown_and_said(tmp_path, unit, words):
    """`"unit": 5` ended in a traceback after all tiles."""
    volume = open_volume(image_at(tmp_path / "i.zarr", GOOD, units=unit))
    assert volume.description.space == Space((40.0, 4.0, 4.0), (0.0,) * 3, (None,) * 3)
    assert words in said(volume)
    assert len(volume.warnings) == 1


@pytest.mark.parametrize(
    "space",
    [
        Space((NAN, 4.0, 4.0), (0.0,) * 3, ("nanometer",) * 3),
        Space((0.0, 4.0, 4.0), (0.0,) * 3, ("nanometer",) * 3),
        Space((1.0, 4.0, 4.0), (INF, 0.0, 0.0), (5, None, "um")),
        Space((1.0, 4.0, 4.0), (0.0,) * 3, (5, None, "um")),
    ],
)
def test_what_an_older_plan_holds_is_written_as_json_that_readers_take(space):
    """A plan of an earlier version may hold anything that was told."""
    written = json.dumps(image_attributes(name="i", axes="zyx", space=space), allow_nan=False)
    assert '"um"' not in written


# --- other files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"element_size_um": [0, 1, 1]}, "voxel size unknown: element_size_um of [0 1 1]"),
        ({"element_size_um": [NAN, 1, 1]}, "voxel size unknown: element_size_um"),
        ({"resolution": [-4, 4, 4]}, "voxel size unknown: resolution"),
        ({"resolution": "fine"}, "voxel size unknown: resolution of fine"),
        ({"resolution": [4, 4, 4], "units": "pixel"}, "unit unknown: 'pixel'"),
        ({"resolution": [4, 4, 4], "units": 5}, "unit unknown: '5'"),
        ({"resolution": [4, 4, 4], "offset": [NAN, 0, 0]}, "origin unknown, taken as 0"),
        ({"axes": "yx"}, "axes 'y, x' are told by the attribute axes of an array that has 3"),
        ({"axistags": "{"}, "are told by axistags of an array that has 3: not believed"),
        ({}, "no axes are told, read as zyx, and the voxel size is unknown"),
    ],
)
def test_what_an_hdf5_file_tells_and_cannot_be_is_said(tmp_path, attributes, words):
    """Dropped without a word, as Zarr's were."""
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("raw", data=random_volume((3, 8, 9))).attrs.update(attributes)
    assert words in said(open_volume(str(tmp_path / "v.h5/raw")))


@pytest.mark.parametrize(
    ("metadata", "resolution", "words"),
    [
        ({"spacing": 0, "unit": "um"}, (10, 10), "voxel size unknown: ImageJ's metadata come to z 0"),
        ({"spacing": NAN, "unit": "um"}, (10, 10), "voxel size unknown: ImageJ's metadata"),
        ({"spacing": 2, "unit": "furlong"}, (10, 10), "unit unknown: 'furlong'"),
        ({"spacing": 2, "unit": "um"}, (0, 10), "voxel size unknown: ImageJ's metadata"),
    ],
)
def test_what_imagej_tells_and_cannot_be_is_said(tmp_path, metadata, resolution, words):
    """Tags of resolution may hold 0, and units anything."""
    tifffile.imwrite(
        tmp_path / "v.tif",
        random_volume((3, 18, 19)),
        imagej=True,
        metadata={"axes": "ZYX", **metadata},
        resolution=resolution,
    )
    assert words in said(open_volume(str(tmp_path / "v.tif")))


@pytest.mark.parametrize("size", ["0", "-1", "NaN", "large"])
def test_what_ome_xml_tells_and_cannot_be_is_said(tmp_path, size):
    """A size of 0 is no size."""
    metadata = {"axes": "ZYX", "PhysicalSizeX": 7.25, "PhysicalSizeY": 4, "PhysicalSizeZ": 2}
    tifffile.imwrite(tmp_path / "v.ome.tif", random_volume((3, 18, 19)), ome=True, metadata=metadata)
    content = (tmp_path / "v.ome.tif").read_bytes()
    (tmp_path / "v.ome.tif").write_bytes(
        content.replace(b'PhysicalSizeX="7.25"', b'PhysicalSizeX="%s"' % size.ljust(4).encode())
    )
    volume = open_volume(str(tmp_path / "v.ome.tif"))
    assert volume.description.space == Space.unknown(3)
    assert f"voxel size unknown: PhysicalSize is z 2, y 4, x {size}" in said(volume)


# --- for a person -------------------------------------------------------------------------------------------------------


def test_inspect_prints_what_is_unknown_and_why(tmp_path):
    """What a person looks at first."""
    rows = inspect_path(image_at(tmp_path / "i.zarr", UNKNOWN["NaN"][0]))
    assert ("", "voxel size unknown") in rows
    assert any(name == "warning" and "a scale of nan, 4, 4 (along z, y, x)" in text for name, text in rows)


@pytest.mark.parametrize(("sizes", "words"), [([1, 1, 1], "voxel size unknown: "), ([2, 1, 1], "unit unknown: ")])
def test_sizes_in_no_unit_are_said(tmp_path, sizes, words):
    """What a converter writes that knows nothing, our own too; and proportions without a length."""
    volume = open_volume(image_at(tmp_path / "i.zarr", [{"type": "scale", "scale": sizes}], units=None))
    assert volume.description.space == Space(tuple(map(float, sizes)), (0.0,) * 3, (None,) * 3)
    assert [words in warning for warning in volume.warnings] == [True]


@pytest.mark.parametrize("by", ["axes", "list", "bytes", "labels"])
def test_an_hdf5_file_tells_its_axes_in_many_ways(tmp_path, by):
    """A text, a list, and HDF5's own labels, of long names too."""
    names = ["Channel", "y", "x"] if by in ("list", "labels") else "cyx"
    with h5py.File(tmp_path / "v.h5", "w") as file:
        dataset = file.create_dataset("raw", data=random_volume((3, 8, 9)))
        if by == "labels":
            for dimension, name in zip(dataset.dims, names, strict=True):
                dimension.label = name
        else:
            dataset.attrs["axes"] = np.bytes_(names) if by == "bytes" else names
    assert open_volume(str(tmp_path / "v.h5/raw")).description.axes == "cyx"


def test_an_image_whose_axes_have_no_names_says_nothing_of_them(tmp_path):
    """Its scale is believed all the same."""
    volume = open_volume(image_at(tmp_path / "i.zarr", GOOD, axes=[5, 5, 5]))
    assert (volume.description.axes, volume.description.space) == ("zyx", NANOMETRES)
    assert volume.warnings == ("no axes are told, read as zyx; set input.axes if they are others",)

"""Axes in any order, of any number: every order of t, c, z, y, x that has y and x, by each kind of file, is one volume."""

import json

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from pipeline.core.channels import chosen_channels
from pipeline.core.geometry.box import Box
from pipeline.core.volume import Description, Selection, Space
from pipeline.errors import StorageError
from pipeline.volumes.inventory import take_inventory
from pipeline.volumes.volume import open_volume
from tests.axes_cases import ORDERS, SIZES, WRITERS, by_hand, by_zarr, volume_of
from tests.pipeline_cases import random_volume

BOX = Box((0, 2, 1), (1, 5, 5))


def wrong(found: np.ndarray, order: str, box: Box) -> bool:
    """Whether other voxels were read than those of the box, or in another shape."""
    expected = volume_of(order)[(slice(None), *map(slice, box.start, box.stop))]
    return found.shape != expected.shape or found.dtype != expected.dtype or found.tobytes() != expected.tobytes()


@pytest.mark.parametrize("writer", WRITERS)
def test_every_order_of_axes_is_read_as_one_volume(tmp_path, writer):
    """212 orders: voxels, extents, voxel sizes; told by the file, and by `input.axes`; again by what the plan keeps, with the same identity."""
    assert len(ORDERS) == 2 + 3 * 6 + 3 * 24 + 120
    failures = []
    for order in ORDERS:
        url = WRITERS[writer](tmp_path / order, order)
        axes = "".join(axis for axis in "czyx" if axis in order)
        volume = open_volume(url)
        known = volume.description
        whole = Box.of_shape(known.shape)
        again = open_volume(url, known.selection)
        asked = open_volume(url, Selection(axes=order))
        problems = [
            known.axes != axes,
            wrong(volume.read(whole), order, whole),
            wrong(volume.read(BOX), order, BOX),
            wrong(again.read(BOX), order, BOX),
            wrong(asked.read(BOX), order, BOX),
            again.description != known,
            asked.warnings != volume.warnings,
            Description.from_dict(json.loads(json.dumps(known.to_dict()))) != known,
            take_inventory(volume).box(0).start != (0, 0, 0),
        ]
        if writer != "by_tifffile":
            sizes = tuple(SIZES[axis] for axis in axes.removeprefix("c"))
            problems.append(known.space != Space(sizes, (0.0,) * len(sizes), ("nanometer",) * len(sizes)))
        if any(problems):
            failures.append((order, problems))
    assert not failures


def test_an_order_that_is_read_as_another_is_found_out(tmp_path):
    """The control of the test above: y and x exchanged, or z and y, are other voxels."""
    url = by_hand(tmp_path / "v", "zyx")
    for order in ("zxy", "yzx"):
        volume = open_volume(url, Selection(axes=order))
        assert wrong(volume.read(Box.of_shape(volume.shape)), "zyx", Box((0, 0, 0), (3, 6, 5)))
        assert volume.description.stored == order


def test_orders_of_one_shape_have_identities_of_their_own(tmp_path):
    """Of a cube, shape and metadata are the same however it is read, and the output is not."""
    voxels = random_volume((8, 8, 8))
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["raw"] = voxels
    zarr.create_array(str(tmp_path / "v.zarr"), data=voxels)
    for url in (str(tmp_path / "v.zarr"), f"{tmp_path}/v.h5/raw"):
        found = [open_volume(url, Selection(axes=axes)).description for axes in ("zyx", "xyz", "yxz")]
        assert [one.stored for one in found] == ["", "xyz", "yxz"]
        assert "stored" not in found[0].to_dict()
        for one, axes in zip(found, ([0, 1, 2], [2, 1, 0], [2, 0, 1]), strict=True):
            read = open_volume(url, one.selection).read(Box.of_shape((8, 8, 8)))[0]
            np.testing.assert_array_equal(read, voxels.transpose(axes))


@pytest.mark.parametrize("kind", ["zarr", "h5", "tif"])
def test_a_picture_with_its_colours_last_is_read_where_that_is_said(tmp_path, kind):
    """(H, W, 3) of which nobody tells anything."""
    voxels = random_volume((20, 30, 3))
    url = str(tmp_path / f"v.{kind}")
    if kind == "zarr":
        zarr.create_array(url, data=voxels)
    elif kind == "h5":
        with h5py.File(url, "w") as file:
            file["raw"] = voxels
        url += "/raw"
    else:
        tifffile.imwrite(url, voxels, photometric="minisblack", metadata=None)
    volume = open_volume(url, Selection(axes="yxc"))
    assert (volume.description.axes, volume.description.channels, volume.shape) == ("cyx", 3, (1, 20, 30))
    np.testing.assert_array_equal(volume.read(Box.of_shape(volume.shape))[:, 0], np.moveaxis(voxels, -1, 0))


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 20, 30, 3), {"photometric": "rgb"}),
        ((3, 3, 20, 30), {"photometric": "rgb", "planarconfig": "separate"}),
        ((3, 2, 20, 30), {"imagej": True, "metadata": {"axes": "ZCYX"}}),
        ((3, 1, 20, 30, 3), {"imagej": True, "photometric": "rgb", "metadata": {"axes": "ZCYXS"}}),
        ((1, 3, 2, 20, 30), {"imagej": True, "metadata": {"axes": "TZCYX"}}),
        ((2, 3, 20, 30), {"ome": True, "metadata": {"axes": "CZYX"}}),
        ((3, 2, 20, 30), {"ome": True, "metadata": {"axes": "ZCYX"}}),
        ((1, 2, 3, 20, 30), {"ome": True, "metadata": {"axes": "TCZYX"}}),
        ((3, 20, 30), {"metadata": {"axes": "IYX"}, "photometric": "minisblack"}),
        ((3, 20, 30), {"metadata": {"axes": "QYX"}, "photometric": "minisblack"}),
    ],
)
def test_axes_of_tiff_are_those_of_tifffile(tmp_path, shape, options):
    """Samples are channels, pages that nobody names are slices; what is asked of tifffile is what is read."""
    path = tmp_path / "v.tif"
    tifffile.imwrite(path, random_volume(shape), **options)
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        voxels, letters = series.asarray(), series.axes.lower()
    kept = [axis for axis, extent in zip(letters, voxels.shape, strict=True) if extent > 1]
    ours = ["z" if axis in "iq" else "c" if axis == "s" else axis for axis in kept]
    expected = np.squeeze(voxels).transpose([ours.index(axis) for axis in "czyx" if axis in ours])
    volume = open_volume(str(path))
    assert volume.description.channels == (expected.shape[0] if "c" in ours else 1)
    np.testing.assert_array_equal(np.squeeze(volume.read(Box.of_shape(volume.shape))), expected)


# --- channels -----------------------------------------------------------------------------------------------------------


def test_channels_are_chosen_by_index_or_name_in_the_order_that_is_asked_for():
    """The order in which they are stored says nothing of what a network was trained on; all of them in it are no choice."""
    names = ("DAPI", "", "actin", "2")
    assert chosen_channels([], 4, names, "v") == ()
    assert chosen_channels([0, 1, 2, 3], 4, names, "v") == ()
    assert chosen_channels(["actin", 0], 4, names, "v") == (2, 0)
    assert chosen_channels(["2"], 4, names, "v") == (3,)


@pytest.mark.parametrize(
    ("asked", "names", "told"),
    [
        ([4], (), "has 4 channel(s) and tells no names of them. Set it to numbers from 0 to 3."),
        ([-1], (), "asks for -1, which is none of them"),
        (["dapi"], ("DAPI", "", "actin"), "has the channels 0 'DAPI', 2 'actin'"),
        (["DAPI"], ("DAPI", "DAPI"), "is the name of 2 of them"),
        (["DAPI", 0], ("DAPI",), "more than once"),
        (["late"], ("a", "b", "c", "d", "late"), "is none of them"),
    ],
)
def test_channels_that_are_not_there_are_refused_with_those_that_are(asked, names, told):
    """A name is written as it stands in the metadata; more names than channels name none."""
    with pytest.raises(StorageError) as refused:
        chosen_channels(asked, 4, names, "v")
    assert told in str(refused.value)


@pytest.mark.parametrize("writer", ["by_zarr", "by_hand", "by_h5py", "by_tifffile"])
@pytest.mark.parametrize("order", ["czyx", "zcyx", "yxc", "tzyxc"])
def test_chosen_channels_are_read_and_no_other(tmp_path, writer, order):
    """In the order that is asked for, wherever the axis lies, and in however many chunks."""
    url = WRITERS[writer](tmp_path / "v", order)
    for asked in ([1], [1, 0]):
        volume = open_volume(url, Selection(channels=tuple(asked)))
        whole = Box.of_shape(volume.shape)
        assert (volume.description.channels, volume.description.chosen) == (len(asked), tuple(asked))
        np.testing.assert_array_equal(volume.read(whole), volume_of(order)[asked])
        again = open_volume(url, volume.description.selection)
        assert again.description == volume.description
        assert Description.from_dict(json.loads(json.dumps(volume.description.to_dict()))) == volume.description
    all_of_them = open_volume(url, Selection(channels=(0, 1))).description
    assert all_of_them == open_volume(url).description


@pytest.mark.parametrize("writer", [by_zarr, by_hand])
def test_channels_are_named_by_the_omero_metadata(tmp_path, writer):
    """Of 0.4 beside multiscales, of 0.5 under `ome`; also where the array itself is named, and where the block is damaged."""
    url = writer(tmp_path / "v", "czyx")
    omero = {"channels": [{"label": "DAPI"}, {"label": "actin"}]}
    group = zarr.open_group(url, mode="r+", use_consolidated=False)
    if writer is by_hand:
        group.attrs["omero"] = omero
    else:
        group.attrs["ome"] = dict(group.attrs["ome"]) | {"omero": omero}
    for place in (url, f"{url}/0"):
        assert open_volume(place, Selection(channels=("actin",))).description.chosen == (1,)
    for damaged in (None, [], {"channels": {}}, {"channels": [None, {"label": 3}]}):
        group.attrs["omero" if writer is by_hand else "ome"] = (
            damaged if writer is by_hand else dict(group.attrs["ome"]) | {"omero": damaged}
        )
        with pytest.raises(StorageError, match="tells no names"):
            open_volume(url, Selection(channels=("actin",)))
        assert open_volume(url).description.channels == 2

"""Conversion to OME-Zarr: the same voxels, placed alike, whole or not at all."""

import fcntl
import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from ome_zarr_models.v05.image import Image
from zarr.storage import LocalStore

from pipeline.core.geometry.box import Box
from pipeline.core.volume import Space
from pipeline.errors import StorageError
from pipeline.outputs import convert as module
from pipeline.outputs.convert import convert
from pipeline.outputs.store import FolderStore
from pipeline.volumes.volume import Volume, open_volume
from tests.pipeline_cases import mounted, random_volume, save_array

SHAPE = (9, 33, 47)


@pytest.fixture
def source(tmp_path):
    """A volume of 9 x 33 x 47 voxels in Zarr."""
    return str(save_array(tmp_path / "in.zarr", random_volume(SHAPE, "uint16"), (4, 16, 16)))


def whole(url: str | Path) -> np.ndarray:
    """All voxels, (C, Z, Y, X)."""
    volume = open_volume(str(url))
    return volume.read(Box.of_shape(volume.shape))


def files(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# --- what is written ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "volumes/fib25_medulla_train2_share_z000-174.h5/neuron_ids",
        "volumes/ovules_1135_mini.h5/raw",
        "volumes/stardist_mask3d.tif",
        "isbi2012/share_z00-19_volume.tif",
    ],
)
def test_real_volumes_are_the_same_after_conversion(shared_data, tmp_path, name):
    """Voxel by voxel, with type, axes, voxel size and units; zarr alone reads the other side."""
    url = str(shared_data / name)
    before, after = open_volume(url).description, convert(url, str(tmp_path / "out.zarr"))
    for key in ("axes", "channels", "shape", "dtype", "space", "level"):
        assert getattr(after, key) == getattr(before, key)
    np.testing.assert_array_equal(zarr.open_group(str(tmp_path / "out.zarr"), mode="r")["0"][...], whole(url)[0])


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", ">u4", "uint64", "int64", "float16", ">f4", "float64"])
def test_every_type_is_kept(tmp_path, dtype):
    """Ids of uint64 lose nothing on the way; byte order is the machine's afterwards."""
    native = np.dtype(dtype).newbyteorder("=").name
    array = random_volume(SHAPE, "uint8") > 99 if dtype == "bool" else random_volume(SHAPE, native)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["a"] = array.astype(dtype)
    assert convert(f"{tmp_path}/v.h5/a", str(tmp_path / "out.zarr"), chunks=(4, 8, 8)).dtype == native
    np.testing.assert_array_equal(whole(tmp_path / "out.zarr")[0], array)


@pytest.mark.parametrize(
    ("shape", "axes"), [((33, 47), "yx"), ((3, 33, 47), "cyx"), ((9, 33, 47), "zyx"), ((2, 9, 33, 47), "czyx")]
)
@pytest.mark.parametrize("shards", [None, (4, 16, 32)])
def test_all_axes_come_through(tmp_path, shape, axes, shards):
    """The array has the source's own axes, in zarr's names and in OME's."""
    url = str(save_array(tmp_path / "in.zarr", random_volume(shape)))
    found = convert(url, str(tmp_path / "out.zarr"), axes=axes, chunks=(2, 8, 16), shards=shards)
    array = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")["0"]
    assert (found.axes, array.shape, "".join(array.metadata.dimension_names)) == (axes, shape, axes)
    np.testing.assert_array_equal(array[...], random_volume(shape))


def test_channels_between_slices_are_in_front_afterwards(tmp_path):
    """ImageJ's ZCYX becomes czyx: an OME-Zarr reader expects that order."""
    array = random_volume((9, 2, 33, 47), "uint16")
    metadata = {"axes": "ZCYX", "spacing": 0.5, "unit": "um"}
    tifffile.imwrite(tmp_path / "v.tif", array, imagej=True, metadata=metadata, resolution=(10, 10))
    found = convert(str(tmp_path / "v.tif"), str(tmp_path / "out.ome.zarr"))
    assert (found.axes, found.space) == ("czyx", Space((0.5, 0.1, 0.1), (0.0,) * 3, ("micrometer",) * 3))
    np.testing.assert_array_equal(whole(tmp_path / "out.ome.zarr"), array.swapaxes(0, 1))


def test_the_image_is_what_the_specification_asks_for(source, tmp_path):
    """A second opinion: the models of ome-zarr-models read it as an image of version 0.5."""
    convert(source, str(tmp_path / "brain.ome.zarr"), voxel_size_nm=(40, 4, 4))
    group = zarr.open_group(str(tmp_path / "brain.ome.zarr"), mode="r")
    image = Image.from_zarr(group).ome_attributes.multiscales[0]
    assert (image.name, [axis.unit for axis in image.axes]) == ("brain", ["nanometer"] * 3)
    assert group["0"].metadata.zarr_format == 3


def test_a_voxel_size_that_is_given_replaces_the_source_s_and_keeps_the_place(tmp_path):
    """A volume that starts 20 voxels along z still starts there when its voxels get their true size."""
    scale, translation = {"type": "scale", "scale": [2, 1, 1]}, {"type": "translation", "translation": [40, 0, 3]}
    group = zarr.create_group(str(tmp_path / "in.zarr"))
    group.create_array("s", data=random_volume(SHAPE), chunks=SHAPE)
    datasets = [{"path": "s", "coordinateTransformations": [scale, translation]}]
    group.attrs["ome"] = {"multiscales": [{"axes": [{"name": a} for a in "zyx"], "datasets": datasets}]}
    kept = convert(str(tmp_path / "in.zarr"), str(tmp_path / "kept.zarr")).space
    given = convert(str(tmp_path / "in.zarr"), str(tmp_path / "given.zarr"), voxel_size_nm=(50, 4, 8)).space
    assert kept == Space((2.0, 1.0, 1.0), (40.0, 0.0, 3.0), (None,) * 3)
    assert given == Space((50.0, 4.0, 8.0), (1000.0, 0.0, 24.0), ("nanometer",) * 3)


def test_a_single_slice_takes_the_sizes_along_its_own_axes(tmp_path):
    """Three sizes are given, and a picture has no z."""
    url = str(save_array(tmp_path / "in.zarr", random_volume((33, 47))))
    found = convert(url, str(tmp_path / "out.zarr"), voxel_size_nm=(50, 4, 8)).space
    assert found == Space((4.0, 8.0), (0.0, 0.0), ("nanometer",) * 2)


@pytest.mark.parametrize(
    ("shape", "asked", "chunks", "shards"),
    [
        ((9, 33, 47), {}, (9, 33, 47), None),
        ((300, 100, 700), {}, (64, 64, 64), (128, 128, 256)),
        ((1, 3000, 300), {}, (1, 256, 256), (1, 2048, 512)),
        ((300, 100, 700), {"chunks": (100, 10, 60)}, (100, 10, 60), (100, 100, 240)),
        ((300, 100, 700), {"chunks": (32, 32, 32), "shards": (32, 32, 32)}, (32, 32, 32), None),
        ((300, 100, 700), {"chunks": (32, 32, 32), "shards": (64, 32, 96)}, (32, 32, 32), (64, 32, 96)),
    ],
)
def test_chunks_and_shards_fit_the_volume(shape, asked, chunks, shards):
    """Some 64 voxels an axis decode quickly; large shards keep the number of files small."""
    layout = module._layout(shape, asked.get("chunks"), asked.get("shards"))
    assert (layout.chunks, layout.shards) == (chunks, shards)


# --- how it is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [(4, 16, 16), (2, 8, 8)])
def test_each_voxel_is_read_once_and_each_unit_written_once(source, tmp_path, monkeypatch, shards):
    """A box is whole write units of bounded size: neither memory nor reads grow, and no unit is read to be written."""
    monkeypatch.setattr(module, "BOX_BYTES", 2 * 4 * 16 * 40)
    boxes, stored, fetched = [], Counter(), Counter()
    read, put, get = Volume.read, FolderStore.put, LocalStore.get

    def noted_read(self, box):
        boxes.append(box)
        return read(self, box)

    def noted_put(self, key, content, permit=lambda: None):
        stored[key] += 1
        return put(self, key, content, permit)

    async def noted_get(self, key, *args, **kwargs):
        found = await get(self, key, *args, **kwargs)
        fetched[key] += found is not None and str(self.root).endswith(".part")
        return found

    monkeypatch.setattr(Volume, "read", noted_read)
    monkeypatch.setattr(FolderStore, "put", noted_put)
    monkeypatch.setattr(LocalStore, "get", noted_get)
    told = []
    convert(
        source, str(tmp_path / "out.zarr"), chunks=(2, 8, 8), shards=shards, on_advance=lambda *now: told.append(now)
    )
    assert len(boxes) > 2
    assert max(box.voxels for box in boxes) <= 4 * 16 * 40
    assert sum(box.voxels for box in boxes) == 9 * 33 * 47
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    units = [key for key in stored if key.startswith("0/c/")]
    assert len(units) == np.prod([-(-n // s) for n, s in zip(SHAPE, shards, strict=True)])
    assert {stored[key] for key in units} == {1}
    assert not any(fetched[key] for key in units)
    assert told[-1] == (9 * 33 * 47, 9 * 33 * 47)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_two_conversions_write_the_same_bytes(source, tmp_path):
    """What was converted twice can be compared by its files."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        convert(source, str(tmp_path / name / "out.zarr"), chunks=(2, 8, 8))
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_changed_byte_is_found_by_its_checksum(source, tmp_path):
    """Every object carries a checksum, as the output of a run does."""
    convert(source, str(tmp_path / "out.zarr"), chunks=(2, 8, 8), shards=(2, 8, 8))
    path = next(p for p in (tmp_path / "out.zarr/0/c").rglob("*") if p.is_file())
    stored = bytearray(path.read_bytes())
    stored[len(stored) // 2] ^= 1
    path.write_bytes(stored)
    with pytest.raises(StorageError, match="checksum"):
        whole(tmp_path / "out.zarr")


# --- whole or not at all ------------------------------------------------------------------------------------------------


def test_an_interrupted_conversion_leaves_neither_the_target_nor_its_part(source, tmp_path):
    """A half-written image under the target's name would be taken for the volume."""

    def interrupted(done: int, total: int) -> None:
        assert (tmp_path / "out.zarr.part").is_dir()
        assert not (tmp_path / "out.zarr").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, str(tmp_path / "out.zarr"), on_advance=interrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["in.zarr"]


def test_what_a_killed_conversion_left_is_removed(source, tmp_path):
    """A kill leaves `.part`, with objects of another layout; none of them may come into the image."""
    clean, target = tmp_path / "clean.zarr", tmp_path / "out.zarr"
    convert(source, str(clean))
    killed = (
        "import os, sys; from pipeline.outputs.convert import convert;"
        "convert(sys.argv[1], sys.argv[2], chunks=(2, 8, 8), on_advance=lambda *now: os.kill(os.getpid(), 9))"
    )
    python = [os.sys.executable, "-c", killed, source, str(target)]
    assert subprocess.run(python, cwd=Path(__file__).parents[2], check=False).returncode == -9
    assert (tmp_path / "out.zarr.part/0/c").is_dir()
    assert not target.exists()
    convert(source, str(target))
    assert files(target) == {key: stored.replace(b'"clean"', b'"out"') for key, stored in files(clean).items()}
    assert not (tmp_path / "out.zarr.part").exists()


def test_a_part_that_another_process_writes_is_left_alone(source, tmp_path):
    """Two writers would mix two volumes in one image."""
    part = tmp_path / "out.zarr.part"
    part.mkdir()
    with (part / module.LOCK).open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="Another process is writing"):
            convert(source, str(tmp_path / "out.zarr"))
    assert (part / module.LOCK).exists()


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_no_left_over_is_not_deleted(source, tmp_path, kind):
    """A name that ends in `.part` proves nothing: only what a conversion makes is removed."""
    part = tmp_path / "out.zarr.part"
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.txt").write_text("years")
    if kind == "folder":
        (tmp_path / "precious").rename(part)
    elif kind == "file":
        part.write_text("years")
    else:
        part.symlink_to(tmp_path / "precious")
    before = files(tmp_path)
    with pytest.raises(StorageError, match="what lies there is none"):
        convert(source, str(tmp_path / "out.zarr"))
    assert files(tmp_path) == before


def test_a_full_disk_is_told_and_leaves_nothing(source, tmp_path):
    """The message names the disk, and the part gives its room back."""
    with mounted(tmp_path / "small", "-o", "size=16k"):
        with pytest.raises(StorageError, match="No space left on device"):
            convert(source, str(tmp_path / "small/out.zarr"))
        assert not list((tmp_path / "small").iterdir())


# --- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "empty folder", "file", "dangling link"])
def test_a_target_that_is_there_is_refused(source, tmp_path, kind):
    """Nothing is ever overwritten, not even by what is the same."""
    target = tmp_path / "out.zarr"
    if kind == "image":
        convert(source, str(target))
    elif kind == "empty folder":
        target.mkdir()
    elif kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "gone")
    before = files(tmp_path)
    with pytest.raises(StorageError, match="is there already, and nothing is ever overwritten"):
        convert(source, str(target))
    assert files(tmp_path) == before


def test_a_target_made_meanwhile_is_not_overwritten(source, tmp_path):
    """An hour may pass between the first look and the last."""
    target = tmp_path / "out.zarr"

    def meddle(done: int, total: int) -> None:
        target.mkdir(exist_ok=True)
        (target / "mine").write_text("mine")

    with pytest.raises(StorageError, match="made by somebody else meanwhile"):
        convert(source, str(target), on_advance=meddle)
    assert files(target) == {"mine": b"mine"}


@pytest.mark.parametrize("name", ["in.zarr/out.zarr", "in.zarr/deeper/out.zarr", "link/out.zarr"])
def test_a_target_inside_the_source_is_refused(tmp_path, name):
    """The input store is never written to: neither the array that is read, nor the group around it."""
    group = zarr.create_group(str(tmp_path / "in.zarr"))
    group.create_array("s", data=random_volume(SHAPE), chunks=SHAPE)
    (tmp_path / "link").symlink_to(tmp_path / "in.zarr")
    before = files(tmp_path)
    with pytest.raises(StorageError, match="lie in one another"):
        convert(str(tmp_path / "in.zarr/s"), str(tmp_path / name))
    assert files(tmp_path) == before


def test_a_source_that_lies_where_the_part_would_be_is_refused(source, tmp_path):
    """Salvaging `out.zarr.part` into `out.zarr` would delete the source as a left-over first."""
    convert(source, str(tmp_path / "x.zarr"))
    (tmp_path / "x.zarr").rename(tmp_path / "out.zarr.part")
    before = files(tmp_path)
    with pytest.raises(StorageError, match="lie in one another"):
        convert(str(tmp_path / "out.zarr.part"), str(tmp_path / "out.zarr"))
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"chunks": (0, 8, 8)}, r"Chunks of \(0, 8, 8\)"),
        ({"chunks": (2, 8, 8), "shards": (2, 12, 8)}, r"Ask for shards of \(2, 16, 8\)"),
        ({"voxel_size_nm": (40, 0, 4)}, "each must be more than 0"),
        ({"voxel_size_nm": (40, float("nan"), 4)}, "each must be more than 0"),
        ({"axes": "xyq"}, "xyq"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(source, tmp_path, options, told):
    """An hour of writing must not end in a refusal."""
    with pytest.raises(StorageError, match=told):
        convert(source, str(tmp_path / "out.zarr"), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["in.zarr"]


def test_an_order_of_axes_that_is_told_is_written_as_zyx(source, tmp_path):
    """What MATLAB and ITK call xyz opens in viewers, and as what it is."""
    convert(source, str(tmp_path / "out.zarr"), axes="xyz")
    assert np.array_equal(whole(tmp_path / "out.zarr")[0], whole(source)[0].transpose(2, 1, 0))


def test_a_remote_target_is_refused(source):
    """A rename is what makes an image whole, and object stores have none."""
    with pytest.raises(StorageError, match="is remote"):
        convert(source, "s3://bucket/out.zarr")


def test_a_damaged_source_stops_the_conversion_and_leaves_nothing(source, tmp_path):
    """Zeros for what cannot be read would be found by nobody."""
    array = random_volume(SHAPE)
    tifffile.imwrite(tmp_path / "v.tif", array, compression="zlib")
    with tifffile.TiffFile(tmp_path / "v.tif") as file:
        offset, count = file.pages[5].dataoffsets[0], file.pages[5].databytecounts[0]
    with (tmp_path / "v.tif").open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * count)
    with pytest.raises(StorageError, match=r"TIFF volume .* cannot be read"):
        convert(str(tmp_path / "v.tif"), str(tmp_path / "out.zarr"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.zarr", "v.tif"]


def test_the_metadata_of_the_part_name_the_image_after_the_target(source, tmp_path):
    """`.part` is nobody's name."""
    convert(source, str(tmp_path / "brain.ome.zarr"))
    stored = json.loads((tmp_path / "brain.ome.zarr/zarr.json").read_text())
    assert stored["attributes"]["ome"]["multiscales"][0]["name"] == "brain"
    assert not (tmp_path / "brain.ome.zarr" / module.LOCK).exists()


def test_a_source_that_goes_while_it_is_converted_leaves_no_image(source, tmp_path, monkeypatch):
    """What is absent is not converted as fill, and what changed meanwhile gets no name."""
    for what, told in {"moved": "was there when it was counted", "touched": "changed while it was converted"}.items():
        left = [what]

        def meanwhile(*_: int, left: list[str] = left) -> None:
            if left and left.pop() == "moved":
                Path(source).rename(f"{source}.moved")
            else:
                os.utime(next(path for path in Path(source).rglob("0") if path.is_file()))

        monkeypatch.setattr(module, "BOX_BYTES", 1)
        with pytest.raises(StorageError, match=told):
            convert(source, str(tmp_path / "out.zarr"), chunks=(4, 16, 16), shards=(4, 16, 16), on_advance=meanwhile)
        assert not list(tmp_path.glob("out.zarr*"))
        if what == "moved":
            Path(f"{source}.moved").rename(source)


def test_a_header_without_voxels_is_not_converted_unasked(tmp_path):
    """A copy that broke off at once would become a whole image of zeros."""
    zarr.create_array(str(tmp_path / "in.zarr"), shape=SHAPE, chunks=(4, 16, 16), dtype="uint8")
    with pytest.raises(StorageError, match="has a header and no voxels"):
        convert(str(tmp_path / "in.zarr"), str(tmp_path / "out.zarr"))
    convert(str(tmp_path / "in.zarr"), str(tmp_path / "out.zarr"), missing="fill")

"""The output: whole write units, each written once, and what other tools make of the store."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import ome_zarr_models.v05
import pytest
import yaozarrs
import zarr
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from pipeline.core.geometry.box import Box
from pipeline.core.ledger import Units
from pipeline.core.plan import Plan
from pipeline.core.volume import Space
from pipeline.errors import StorageError
from pipeline.outputs.image import Image
from pipeline.outputs.sink import UnitSink
from pipeline.places import durable
from tests.pipeline_cases import output_plan, random_volume

LAYOUTS = {
    "a shard a core": {},
    "shards of a part of the core": {"core": (8, 16, 8), "shards": (4, 8, 8)},
    "a shard larger than the volume": {"core": (16, 32, 16), "shards": (16, 32, 16)},
    "no shards": {"shards": None},
    "two channels": {"channels": 2},
    "two channels, no shards": {"channels": 2, "shards": None},
    "8 bits": {"dtype": "uint8"},
}


@dataclass
class Counts:
    """Objects put, by key, and those that were there when they were read, in whatever way."""

    puts: Counter = field(default_factory=Counter)
    reads: Counter = field(default_factory=Counter)


@pytest.fixture
def counted(monkeypatch) -> Counts:
    """Counts of what is written and read below an array's `c`."""
    counts = Counts()
    replace, opened = durable.replace, Path.open

    def key(path):
        return str(path)[str(path).rindex("/0/c/") + 1 :] if "/0/c/" in str(path) else None

    def counted_replace(path, content, **options):
        counts.puts[key(path)] += 1
        replace(path, content, **options)

    def counted_open(path, mode="r", *arguments, **options):
        counts.reads[key(path)] += "r" in mode and path.is_file()
        return opened(path, mode, *arguments, **options)

    monkeypatch.setattr(durable, "replace", counted_replace)
    monkeypatch.setattr(Path, "open", counted_open)  # zarr's local store reads through it as well
    return counts


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS.keys())
def plan(request, tmp_path) -> Plan:
    """Plans of every layout."""
    return output_plan(tmp_path / "o.zarr", **request.param)


def values(plan: Plan, seed: int = 1) -> np.ndarray:
    """What to write, (C, Z, Y, X); no value is fill."""
    channels = plan.model.architecture.out_channels
    array = random_volume((channels, *plan.source.shape), "uint8", seed) | 1
    return array.astype(plan.output.dtype)


def write_all(output: Image, array: np.ndarray) -> Units:
    """Write every tile of a plan, slab by slab, as the engine would."""
    written: Units = {}
    whole = Box.of_shape(output.plan.source.shape)
    for tile in output.plan.grid:
        sink = UnitSink(output.finest, tile.core)
        for part in tile.core.split((output.plan.slab, *output.plan.core[1:])):
            sink.add(part, array[(slice(None), *part.within(whole))])
        written |= sink.finish()
    return written


def objects(output: Image) -> dict[str, Path]:
    """The stored files of the array by key, metadata left out."""
    return {str(p.relative_to(output.store.root)): p for p in (output.store.root / "0/c").rglob("*") if p.is_file()}


def made(plan: Plan) -> Image:
    """The output of a plan, created."""
    output = Image(plan)
    output.create()
    return output


# --- one writer a write unit --------------------------------------------------------------------------------------------


def test_each_write_unit_is_written_once_and_none_is_read_back(plan, counted):
    """Reading back what was written is how parallel writers lose data, and doubles the traffic."""
    output = made(plan)
    written = write_all(output, values(plan))
    assert {key: count for key, count in counted.puts.items() if key} == dict.fromkeys(written, 1)
    assert not [key for key, count in counted.reads.items() if count and key]


def test_the_keys_of_all_units_are_the_objects_of_the_store(plan):
    """Verification looks objects up by these keys; a wrong one would make it blind."""
    output = made(plan)
    write_all(output, values(plan))
    expected = {
        key for tile in plan.grid for unit in output.finest.units(tile.core) for key in output.finest.keys(unit)
    }
    assert expected == set(objects(output))


def test_what_was_written_is_read_with_zarr_alone(plan):
    """The output is for other tools; zarr must give the same voxels, axes and all."""
    output, array = made(plan), values(plan)
    write_all(output, array)
    found = zarr.open_group(str(output.store.root), mode="r")["0"]
    np.testing.assert_array_equal(found[...].reshape(array.shape), array)
    assert found.metadata.dimension_names == tuple(plan.output.axes)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(output.finest.read(Box.of_shape(plan.source.shape)), array)


def test_stored_checksums_are_those_of_the_files(plan):
    """`sha256sum` on the file gives the ledger's figure: anybody can verify without this program."""
    output = made(plan)
    written = write_all(output, values(plan))
    assert written == {key: hashlib.sha256(path.read_bytes()).hexdigest() for key, path in objects(output).items()}
    assert all(output.store.checksum(key) == checksum for key, checksum in written.items())


def test_a_tile_that_runs_twice_writes_the_same_bytes(plan):
    """Retries and restarts are safe only because of this."""
    output, array = made(plan), values(plan)
    write_all(output, array)
    before = {key: path.read_bytes() for key, path in objects(output).items()}
    write_all(Image(plan), array)
    assert before == {key: path.read_bytes() for key, path in objects(output).items()}


def test_an_object_that_is_there_already_is_replaced_unread(plan, counted):
    """zarr reads an existing shard before it writes one: a torn one would raise, an old one would be merged."""
    output = made(plan)
    wanted = write_all(output, values(plan))
    write_all(output, values(plan, seed=9))
    for number, path in enumerate(objects(output).values()):
        stored = path.read_bytes()
        path.write_bytes([stored[: len(stored) // 2], b"", b"x" * 99, stored][number % 4])
    counted.reads.clear()
    assert write_all(output, values(plan)) == wanted
    assert not [key for key, count in counted.reads.items() if count and key]
    np.testing.assert_array_equal(output.finest.read(Box.of_shape(plan.source.shape)), values(plan))


def test_an_object_is_the_old_one_or_the_new_one_at_every_moment(plan, monkeypatch):
    """A writer that is killed between a removal and a write leaves zeros, which read as data."""
    output = made(plan)
    before = write_all(output, values(plan, seed=9))
    replace, seen = Path.replace, []

    def looked_at(path, target):
        if "/0/c/" in str(target):
            seen.append(output.store.checksum(str(Path(target).relative_to(output.store.root))))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", looked_at)
    write_all(output, values(plan))
    assert sorted(seen) == sorted(before.values())


def test_a_writer_that_may_write_no_more_leaves_the_old_object(plan):
    """A worker that wakes late finds its token void; what it computed meanwhile goes nowhere."""
    output = made(plan)
    before = write_all(output, values(plan, seed=9))

    def refuse():
        raise StorageError("void")

    for tile in plan.grid:
        sink = UnitSink(output.finest, tile.core, refuse)
        with pytest.raises(StorageError, match="void"):
            sink.add(tile.core, values(plan)[(slice(None), *tile.core.within(Box.of_shape(plan.source.shape)))])
    assert {key: output.store.checksum(key) for key in before} == before
    assert set(objects(output)) == set(before)


def test_what_a_killed_writer_left_half_written_is_swept(plan):
    """A kill in mid-write leaves a part beside the object; nobody else would ever remove it. Earlier versions left `.partial`."""
    output = made(plan)
    write_all(output, values(plan))
    for path in [*objects(output).values(), output.store.root / "zarr.json", output.store.root / "0/zarr.json"]:
        path.with_name(f"{path.name}.0123456789abcdef.part").write_bytes(b"torn")
        path.with_suffix(".0123456789abcdef.partial").write_bytes(b"torn")
    kept = set(objects(made(output_plan(output.store.root.with_name("o2.zarr")))))
    assert output.sweep() == []
    assert not [path for path in output.store.root.rglob("*") if path.suffix in (".part", ".partial")]
    assert kept <= set(objects(output))


def test_objects_that_no_unit_has_are_swept_and_what_is_no_object_is_left(tmp_path):
    """Readers take a chunk's name for a chunk. What people put there is theirs."""
    output = made(output_plan(tmp_path / "o.zarr"))
    write_all(output, values(output.plan))
    before = set(objects(output))
    strays, theirs = (
        {"0/c/9/9/9", "0/c/9/9/8", "0/c/5", "0/c/2/0/0"},
        {"0/c/notes.txt", "0/c/01", "0/notes", "labels", "0/c/0/-1"},
    )
    for key in strays | theirs:
        (output.store.root / key).parent.mkdir(parents=True, exist_ok=True)
        (output.store.root / key).write_bytes(b"not ours")
    found = output.contents()
    assert (set(found.others), set(found.strays)) == (theirs, strays)
    assert set(output.sweep()) == strays
    assert set(objects(output)) == before | {key for key in theirs if "/c/" in key}


def test_all_fill_units_leave_no_object_and_the_record_says_so(plan):
    """A missing object is an answer here, and only the ledger can tell it from a lost one."""
    output, array = made(plan), values(plan)
    write_all(output, array)
    first = plan.grid.tile(0).core
    array[(slice(None), *first.within(Box.of_shape(plan.source.shape)))] = 0
    written = write_all(output, array)
    empty = {key for unit in output.finest.units(first) for key in output.finest.keys(unit)}
    assert {key for key, checksum in written.items() if checksum is None} == empty
    assert empty.isdisjoint(objects(output))
    np.testing.assert_array_equal(output.finest.read(Box.of_shape(plan.source.shape)), array)


def test_negative_zero_is_no_fill(tmp_path):
    """-0.0 equals 0.0 and has other bits: an object that depends on which tile came first would break equal bytes."""
    output = made(output_plan(tmp_path / "o.zarr"))
    array = np.zeros((1, *output.plan.source.shape), dtype="float32")
    array[:, :4] = -0.0
    first, second = write_all(output, array), write_all(Image(output.plan), array)
    assert first == second
    np.testing.assert_array_equal(output.finest.read(Box.of_shape(output.plan.source.shape)), array)


def test_a_sink_holds_only_units_that_have_begun(tmp_path):
    """Memory of a tall tile is bounded by a layer of units, not by the tile."""
    plan = output_plan(tmp_path / "o.zarr", shape=(32, 16, 16), core=(32, 16, 16), shards=(4, 8, 8))
    output, array = made(plan), values(plan)
    sink = UnitSink(output.finest, plan.grid.tile(0).core)
    for z in range(0, 32, 2):
        box = Box((z, 0, 0), (z + 2, 16, 16))
        sink.add(box, array[:, z : z + 2])
        assert len(sink._begun) <= 4
        assert len(objects(output)) == 4 * ((z + 2) // 4)
    assert set(sink.finish()) == set(objects(output))


def test_a_core_that_was_not_covered_is_not_called_done(tmp_path):
    """Half a tile must never be recorded."""
    output = made(output_plan(tmp_path / "o.zarr"))
    tile = output.plan.grid.tile(0)
    sink = UnitSink(output.finest, tile.core)
    sink.add(Box((0, 0, 0), (2, 8, 8)), values(output.plan)[:, :2, :8, :8])
    with pytest.raises(StorageError, match="left 1 write units incomplete"):
        sink.finish()


# --- checksums of the data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["a shard a core", "no shards"])
def test_a_flipped_byte_anywhere_in_an_object_raises_on_reading(tmp_path, layout):
    """Default sharding guards its index alone; the codec on the data makes every reader notice, whatever its tool."""
    output = made(output_plan(tmp_path / "o.zarr", **LAYOUTS[layout]))
    write_all(output, values(output.plan))
    path = next(iter(sorted(objects(output).values())))
    whole = path.read_bytes()
    for place in np.random.default_rng(0).choice(len(whole), 40, replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises((ValueError, RuntimeError)):
            zarr.open_array(str(output.store.root), path="0", mode="r")[...]


# --- what other tools make of it ----------------------------------------------------------------------------------------


@pytest.fixture(params=["zyx", "czyx", "yx", "cyx"])
def published(request, tmp_path) -> Image:
    """Finished outputs of all kinds of axes."""
    axes = request.param
    spatial = axes.removeprefix("c")
    thin = {"shape": (1, 12, 9), "core": (1, 8, 8), "chunks": (1, 4, 4), "shards": (1, 8, 8)} if "z" not in axes else {}
    space = Space((40.0, 4.0, 4.0)[-len(spatial) :], (20.0, 2.0, 0.0)[-len(spatial) :], ("nanometer",) * len(spatial))
    plan = output_plan(tmp_path / "o.ome.zarr", channels=3 if "c" in axes else 1, axes=spatial, space=space, **thin)
    output = made(plan)
    write_all(output, values(plan))
    output.publish()
    return output


def attributes(output: Image) -> dict:
    """The group's attributes as they lie on disk."""
    return json.loads((output.store.root / "zarr.json").read_text())["attributes"]


def test_the_output_is_valid_for_yaozarrs(published):
    """The stricter validator: it also opens the arrays and compares axes, shapes and names."""
    yaozarrs.validate_zarr_store(str(published.store.root))


def test_the_output_is_valid_for_ome_zarr_models(published):
    """The models that most Python tools of the field read with."""
    image = ome_zarr_models.v05.Image.from_zarr(zarr.open_group(str(published.store.root), mode="r"))
    dataset = image.ome_attributes.multiscales[0].datasets[0]
    spatial = len(published.plan.source.space.scale)
    assert tuple(dataset.coordinateTransformations[0].scale)[-spatial:] == published.plan.source.space.scale


def test_the_output_is_valid_by_the_specifications_own_schema(published, shared_data):
    """The schema is what the standard's text is checked by."""
    folder = shared_data / "conformance/ngff-spec-0.5/schemas"
    schemas = {path.name: json.loads(path.read_text()) for path in folder.glob("*.schema")}
    registry = Registry().with_resources(
        (s["$id"], Resource.from_contents(s)) for s in schemas.values() if "$schema" in s
    )
    Draft202012Validator(schemas["image.schema"], registry=registry).validate(attributes(published))


def test_placement_is_carried_to_the_output(published):
    """Scale, translation and units of the input, and nothing for the channel."""
    image = attributes(published)["ome"]["multiscales"][0]
    scale, translation = image["datasets"][0]["coordinateTransformations"]
    lead = [1.0] if "c" in published.plan.output.axes else []
    assert scale["scale"] == [*lead, *published.plan.source.space.scale]
    assert translation["translation"] == [*(0.0 for _ in lead), *published.plan.source.space.translation]
    assert [a.get("unit") for a in image["axes"]] == [*(None for _ in lead), *published.plan.source.space.units]
    assert "".join(a["name"] for a in image["axes"]) == published.plan.output.axes


def test_a_channel_axis_of_one_is_dropped(tmp_path):
    """One channel is a volume, several are an image of channels; the axes say which."""
    one, two = (made(output_plan(tmp_path / f"{n}.zarr", channels=n)) for n in (1, 2))
    assert zarr.open_array(str(one.store.root), path="0", mode="r").shape == (6, 12, 9)
    assert zarr.open_array(str(two.store.root), path="0", mode="r").shape == (2, 6, 12, 9)


def test_the_image_appears_only_when_it_is_published(tmp_path):
    """A half-written output must not be taken for an image by whoever finds it."""
    output = made(output_plan(tmp_path / "o.zarr"))
    assert "ome" not in attributes(output)
    assert attributes(output)["halotile"]["state"] == "incomplete"
    output.publish()
    assert attributes(output)["ome"]["version"] == "0.5"
    assert attributes(output)["halotile"] == {"fingerprint": output.plan.fingerprint, "state": "complete"}


# --- whose store it is --------------------------------------------------------------------------------------------------


def test_a_store_is_ours_by_its_fingerprint_alone(tmp_path):
    """Resuming into another plan's store would mix two predictions."""
    output = Image(output_plan(tmp_path / "o.zarr"))
    assert output.state() == "absent"
    output.create()
    assert output.state() == "ours"
    assert Image(output_plan(tmp_path / "o.zarr", dtype="uint8")).state() == "foreign"


@pytest.mark.parametrize("kind", ["file", "folder", "array", "group"])
def test_anything_else_at_its_place_is_foreign(tmp_path, kind):
    """Nothing is ever overwritten, be it a store, a file or somebody's folder."""
    path = tmp_path / "o.zarr"
    if kind == "file":
        path.write_text("notes")
    elif kind == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("notes")
    elif kind == "array":
        zarr.create_array(str(path), shape=(3,), chunks=(3,), dtype="uint8")
    else:
        zarr.create_group(str(path))
    assert Image(output_plan(path)).state() == "foreign"


@pytest.mark.parametrize("left", ["an empty folder", "a torn first file", "a group without its array"])
def test_a_store_that_a_kill_left_half_made_is_made_good(tmp_path, left):
    """A driver killed in its first second must not leave an output that the same command then refuses."""
    output = Image(output_plan(tmp_path / "o.zarr"))
    if left == "a group without its array":
        output.create()
        for path in sorted((output.store.root / "0").rglob("*"), reverse=True):
            path.unlink()
        (output.store.root / "0").rmdir()
    else:
        output.store.root.mkdir()
    if left == "a torn first file":
        (output.store.root / "zarr.0123456789abcdef.partial").write_bytes(b'{"zarr_fo')
    assert output.state() in ("absent", "ours")
    output.create()
    output.sweep()
    assert not list(output.store.root.rglob("*.partial"))
    assert output.state() == "ours"
    assert output.metadata(complete=False).differences == ()
    write_all(output, values(output.plan))


def test_the_group_is_ours_from_its_first_byte(tmp_path, monkeypatch):
    """Metadata that names its plan only at the second write is foreign to a driver that restarts between the two."""
    plan = output_plan(tmp_path / "o.zarr")
    documents = []
    write = Path.replace

    def keep(path, target):
        if Path(target).name == "zarr.json":
            documents.append((Path(target), json.loads(Path(path).read_text())))
        return write(path, target)

    monkeypatch.setattr(Path, "replace", keep)
    Image(plan).create()
    path, first = documents[0]
    assert path == Image(plan).store.root / "zarr.json"
    assert first["attributes"]["halotile"]["fingerprint"] == plan.fingerprint

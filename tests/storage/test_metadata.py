"""An output's metadata: every key that we wrote is compared and put back, and whatever others added is named and left."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.core.geometry.box import Box
from pipeline.core.ledger import TileRecord
from pipeline.core.volume import Space
from pipeline.errors import StorageError
from pipeline.outputs.image import Image
from pipeline.outputs.rundir import RunDirectory
from tests.pipeline_cases import output_plan


@pytest.fixture
def output(tmp_path) -> Image:
    """A published output, placed in space, its plan beside it."""
    space = Space((40.0, 4.0, 4.0), (20.0, 2.0, 0.0), ("nanometer",) * 3)
    plan = output_plan(tmp_path / "o.ome.zarr", channels=2, space=space)
    directory = RunDirectory(plan.output.url)
    directory.path.mkdir()
    directory.write(directory.plan_path, plan.to_json())
    found = Image(plan)
    assert found.create()
    assert found.publish() == [
        'zarr.json: attributes.halotile.state is "incomplete", written as "complete"',
        "zarr.json: attributes.ome is missing",
    ]
    return found


GROUP, ARRAY = Path("zarr.json"), Path("0/zarr.json")
OTHER = {str: "q", int: 7, float: 0.125, bool: True, type(None): 5}
"""In place of a value, one of its kind."""


def places(document, place=()):
    """The keys and positions of all that a document holds, innermost last."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield (*place, key)
        yield from places(value, (*place, key))


def at(document, place):
    """What lies at a place."""
    for key in place:
        document = document[key]
    return document


def load(output: Image, path: Path) -> dict:
    """A document as it is stored."""
    return json.loads((output.store.root / path).read_text())


def contents(output: Image) -> dict:
    """Both."""
    return {path: load(output, path) for path in (GROUP, ARRAY)}


def differences(output: Image) -> tuple[str, ...]:
    """What is found of ours."""
    return output.metadata(complete=True).differences


def mended(output: Image, before: dict) -> None:
    """One go of a run puts the documents back, and the next finds nothing to do."""
    fresh = Image(output.plan)
    assert fresh.state() == "ours"
    assert fresh.create() + fresh.publish()
    assert contents(output) == before
    assert differences(output) == ()
    assert fresh.create() + fresh.publish() == []


@pytest.mark.parametrize("path", [GROUP, ARRAY], ids=str)
@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_every_key_that_was_changed_or_removed_is_seen_and_put_back(output, path, damage):
    """Axes, scale, path, state, shape, codecs: readers go by each, and no checksum of a chunk vouches for them."""
    before = contents(output)
    for place in list(places(before[path])):
        document = load(output, path)
        parent = at(document, place[:-1])
        if damage == "removed":
            del parent[place[-1]]
        elif isinstance(parent[place[-1]], dict | list):
            parent[place[-1]] = "q"
        else:
            parent[place[-1]] = OTHER[type(parent[place[-1]])]
        (output.store.root / path).write_text(json.dumps(document))
        if place == ("attributes", "halotile", "fingerprint") and damage == "changed":
            assert output.state() == "foreign"  # another run's, for all that is known: refused by name
            (output.store.root / path).write_text(json.dumps(before[path]))
            continue
        if path == GROUP and place[:2] in {("attributes",), ("attributes", "halotile")} and output.state() == "foreign":
            assert "fingerprint" not in str(document.get("attributes"))  # no tile vouches for it
            (output.store.root / path).write_text(json.dumps(before[path]))
            continue
        assert differences(output), place
        mended(output, before)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 600, b'{"attributes": {"halo', b"[]", b"\xff\xfe", b"[" * 200_000, None], ids=repr
)
@pytest.mark.parametrize("path", [GROUP, ARRAY], ids=str)
def test_an_empty_or_torn_document_beside_our_plan_is_made_anew(output, path, content):
    """A power cut in the first half minute leaves names without contents, and the run was refused for ever."""
    before = contents(output)
    (output.store.root / path).unlink() if content is None else (output.store.root / path).write_bytes(content)
    assert differences(output)
    mended(output, before)


@pytest.mark.parametrize("content", [b"", b"\0" * 600, None], ids=repr)
def test_an_empty_document_without_our_plan_is_somebody_elses(output, content):
    """Nothing is ever overwritten."""
    RunDirectory(output.store.root).plan_path.unlink()
    (output.store.root / GROUP).unlink() if content is None else (output.store.root / GROUP).write_bytes(content)
    assert Image(output.plan).state() == "foreign"


def test_an_empty_document_among_files_of_others_is_theirs(output):
    """Somebody may have put a store of their own where a plan was made."""
    (output.store.root / GROUP).write_bytes(b"")
    (output.store.root / "notes.txt").write_text("notes")
    assert Image(output.plan).state() == "foreign"


def test_a_store_without_our_name_is_known_by_what_the_ledger_vouches_for(output):
    """All attributes are gone: the objects still are what this run wrote."""
    tile = output.plan.grid.tile(0)
    (unit,) = output.finest.units(tile.core)
    units = output.finest.write(unit, np.ones((output.plan.model.architecture.out_channels, *unit.shape), "float32"))
    before = contents(output)
    (output.store.root / GROUP).write_text(json.dumps({**before[GROUP], "attributes": {}}))
    assert Image(output.plan).state() == "foreign"
    with RunDirectory(output.store.root).ledger() as ledger:
        ledger.append(TileRecord(0, "done", output.plan.fingerprint, units))
    assert differences(output)
    mended(output, before)


ADDED = {
    "omero": (GROUP, ("attributes", "ome"), "omero", {"channels": []}, "attributes.ome.omero"),
    "an attribute": (GROUP, ("attributes",), "lab", "ours", "attributes.lab"),
    "a word on an axis": (
        GROUP,
        ("attributes", "ome", "multiscales", 0, "axes", 0),
        "long_name",
        "depth",
        "attributes.ome.multiscales[0].axes[0].long_name",
    ),
    "an attribute of the array": (ARRAY, ("attributes",), "note", 1, "attributes.note"),
}


@pytest.mark.parametrize("added", ADDED.values(), ids=ADDED)
def test_keys_of_others_are_named_and_left(output, added):
    """Viewers write how to show an image into it, and people what it is: none of it is damage, nor lost when ours is mended."""
    path, place, key, value, name = added
    document = load(output, path)
    at(document, place)[key] = value
    (output.store.root / path).write_text(json.dumps(document))
    found = output.metadata(complete=True)
    assert (found.differences, found.others) == ((), (name,))
    before = contents(output)
    document = load(output, GROUP)
    document["attributes"]["halotile"]["state"] = "damaged"
    (output.store.root / GROUP).write_text(json.dumps(document))
    document = load(output, ARRAY)
    document["shape"][0] += 1
    (output.store.root / ARRAY).write_text(json.dumps(document))
    mended(output, before)


def test_further_levels_and_images_may_be_added(output):
    """A pyramid is made by other tools: levels below ours are not ours."""
    document = load(output, GROUP)
    image = document["attributes"]["ome"]["multiscales"][0]
    image["datasets"].append({**image["datasets"][0], "path": "1"})
    document["attributes"]["ome"]["multiscales"].append(image)
    (output.store.root / GROUP).write_text(json.dumps(document))
    (output.store.root / "1").mkdir()
    found = output.metadata(complete=True)
    assert found.differences == ()
    assert len(found.others) == 2
    assert output.contents().others == ["1"]


def test_a_consolidated_copy_is_left_where_it_is_true_and_mended_where_it_is_false(output):
    """Many readers go by the copy alone: a false shape there cuts the volume."""
    with warnings.catch_warnings(action="ignore"):
        zarr.consolidate_metadata(str(output.store.root))
    before = contents(output)
    assert before[GROUP]["consolidated_metadata"]
    assert differences(output) == ()
    document = load(output, GROUP)
    document["consolidated_metadata"]["metadata"]["0"]["shape"][0] += 3
    (output.store.root / GROUP).write_text(json.dumps(document))
    assert "consolidated_metadata tells something else of array '0': shape" in differences(output)[0]
    mended(output, before)
    for broken in (7, {}, {"metadata": {}}, {"metadata": 3, "kind": "inline", "must_understand": False}):
        (output.store.root / GROUP).write_text(json.dumps({**before[GROUP], "consolidated_metadata": broken}))
        assert differences(output)
        Image(output.plan).publish()
        assert differences(output) == ()
        zarr.open_group(str(output.store.root), mode="r")


@pytest.mark.parametrize("path", [GROUP, ARRAY], ids=str)
def test_a_key_that_keeps_readers_out_is_damage(output, path):
    """Zarr refuses a document with a key that it does not know."""
    before = contents(output)
    (output.store.root / path).write_text(json.dumps({**before[path], "colour": 1}))
    assert any('"colour" is no key of' in line for line in differences(output))
    mended(output, before)


def test_an_image_that_was_moved_may_keep_its_name(output, tmp_path):
    """Stores are moved between two sittings; the name of an image says where it was made."""
    moved = tmp_path / "moved.ome.zarr"
    output.store.root.rename(moved)
    elsewhere = Image(replace(output.plan, output=replace(output.plan.output, url=str(moved))))
    assert elsewhere.metadata(complete=True).differences
    assert elsewhere.metadata(complete=True, names=("o",)).differences == ()


def test_what_the_plan_says_of_space_now_is_brought_up_to_date(output):
    """A voxel size that was mended in the input describes, and computes nothing."""
    space = Space((30.0, 4.0, 4.0), (20.0, 2.0, 0.0), ("nanometer",) * 3)
    plan = replace(output.plan, source=replace(output.plan.source, space=space))
    assert len(Image(plan).publish()) == 1
    assert Image(plan).metadata(complete=True).differences == ()


def test_an_output_that_cannot_be_read_is_told_in_words(output):
    """The report reads a slice: a damaged array must end in a sentence."""
    (output.store.root / ARRAY).write_bytes(b"{}")
    with pytest.raises(StorageError, match="cannot be read"):
        output.finest.read(Box.of_shape(output.plan.source.shape))

"""Catalogues: every kind of source, read by its metadata alone, and every volume of it named or told."""

import json
import os

import fsspec
import pytest

from pipeline.dataset.catalogue import Entry, read_catalogue
from pipeline.errors import ConfigError, StorageError
from pipeline.places import listing
from pipeline.volumes.volume import open_volume
from tests.dataset.catalogue_cases import (
    by_name,
    fill,
    make_array,
    make_bare,
    make_collection,
    make_group,
    make_hdf5,
    make_image,
    make_plate,
    make_tiff,
    reasons,
)

# --- folders, patterns, single volumes ----------------------------------------------------------------------------------


def test_a_folder_is_all_volumes_directly_in_it(tmp_path):
    """Each kind that a run reads; what is none is told, hidden things and run directories are not."""
    make_image(tmp_path / "a.ome.zarr")
    make_image(tmp_path / "b.ome.zarr", zarr_format=2)
    make_array(tmp_path / "c.zarr")
    make_array(tmp_path / "d", zarr_format=2)
    make_tiff(tmp_path / "e.ome.tif")
    make_hdf5(tmp_path / "f.h5", "inner/raw")
    make_hdf5(tmp_path / "g.h5", "raw", "labels")
    make_group(tmp_path / "h.zarr")
    make_image(tmp_path / ".hidden.zarr")
    make_image(tmp_path / "a.ome.zarr.run")
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").write_text("x")
    found = read_catalogue(f"{tmp_path}/")
    assert by_name(found) == {
        "a": f"{tmp_path}/a.ome.zarr",
        "b": f"{tmp_path}/b.ome.zarr",
        "c": f"{tmp_path}/c.zarr",
        "d": f"{tmp_path}/d",
        "e": f"{tmp_path}/e.ome.tif",
        "f-inner-raw": f"{tmp_path}/f.h5/inner/raw",
    }
    assert set(reasons(found)) == {"g.h5", "h.zarr", "notes", "README.md"}
    assert f"2 datasets (labels, raw): name one, such as {tmp_path}/g.h5/labels" in reasons(found)["g.h5"]
    assert "name the array or image in it" in reasons(found)["h.zarr"]
    for entry in found:
        assert open_volume(entry.url).shape == (4, 6, 8)


def _circles(folder):
    """Links that lead round: onto itself, to one another, below itself, and inside a volume."""
    (folder / "loop").symlink_to("loop")
    (folder / "loop.zarr").symlink_to(folder / "loop.zarr")
    (folder / "a.tif").symlink_to("b.tif")
    (folder / "b.tif").symlink_to("a.tif")
    (folder / "below").symlink_to("below/deeper")
    (folder / "v.ome.zarr" / "0" / "c" / "loop").symlink_to("loop")


@pytest.mark.parametrize("source", ["{}", "{}/*", "{}/**", "{}/*.zarr", "{}/**/*.zarr"])
def test_a_link_that_leads_round_costs_nothing_but_itself(tmp_path, source):
    """One such link refused a whole catalogue, in words that named none of its volumes."""
    make_image(tmp_path / "v.ome.zarr")
    _circles(tmp_path)
    found = read_catalogue(source.format(tmp_path))
    assert by_name(found) == {"v": f"{tmp_path}/v.ome.zarr"}
    circles = {"loop.zarr"} if source.endswith("zarr") else {"loop", "loop.zarr", "a.tif", "b.tif", "below"}
    assert reasons(found) == dict.fromkeys(circles, "a symbolic link that leads round in a circle")
    assert listing.stamps(found[0].url)


def test_a_link_that_leads_round_and_is_named_fails_by_its_name_alone(tmp_path):
    """What is named, one by one, is an entry whatever lies there."""
    make_image(tmp_path / "v.ome.zarr")
    _circles(tmp_path)
    found = read_catalogue([f"{tmp_path}/v.ome.zarr", f"{tmp_path}/loop", f"{tmp_path}/loop.zarr", f"{tmp_path}/a.tif"])
    assert len(found) == 4
    for entry in found[1:]:
        with pytest.raises(StorageError):
            open_volume(entry.url)


def test_what_looks_like_a_volume_and_is_broken_is_an_entry(tmp_path):
    """Its run fails by its name; left out, it would be missing from the summary of a dataset that says all is done."""
    torn = make_image(tmp_path / "torn.zarr")
    (torn / "zarr.json").write_text('{"zarr_format": 3, "node')
    (make_image(tmp_path / "headless.ome.zarr") / "zarr.json").unlink()
    (make_array(tmp_path / "old.zarr", zarr_format=2) / ".zarray").write_text("")
    (tmp_path / "cut.h5").write_bytes(make_hdf5(tmp_path / "x.h5", "raw").read_bytes()[:700])
    (tmp_path / "x.h5").unlink()
    (tmp_path / "cut.tif").write_bytes(b"II*")
    for name in ("lost.zarr", "lost.tiff"):
        (tmp_path / name).symlink_to(tmp_path / "gone")
    found = read_catalogue(str(tmp_path))
    assert list(by_name(found)) == ["cut.h5", "cut.tif", "headless", "lost.tiff", "lost.zarr", "old", "torn"]
    for entry in found:
        with pytest.raises(StorageError):
            open_volume(entry.url)


def test_a_single_volume_is_a_catalogue_of_one(tmp_path):
    """A dataset of one is a dataset."""
    image = make_image(tmp_path / "x.ome.zarr")
    assert list(read_catalogue(str(image))) == [Entry("x", str(image), store=str(image))]
    assert by_name(read_catalogue(image / "0")) == {"x-0": f"{image}/0"}
    assert by_name(read_catalogue(make_tiff(tmp_path / "y.tiff"))) == {"y": f"{tmp_path}/y.tiff"}
    (one,) = read_catalogue(make_hdf5(tmp_path / "z.h5", "raw"))
    assert (one.name, one.url, one.store) == ("z-raw", f"{tmp_path}/z.h5/raw", f"{tmp_path}/z.h5")


def test_a_zarr_group_without_images_metadata_is_a_folder_of_volumes(tmp_path):
    """As neuroglancer's and funlib's stores are."""
    group = make_group(tmp_path / "cremi.zarr")
    make_array(group / "raw")
    make_array(group / "labels")
    assert by_name(read_catalogue(str(group))) == {"cremi-labels": f"{group}/labels", "cremi-raw": f"{group}/raw"}
    assert by_name(read_catalogue(f"{tmp_path}/*.zarr/raw")) == {"cremi-raw": f"{group}/raw"}


def test_patterns_find_volumes_and_tell_what_is_none(tmp_path, monkeypatch):
    """One component, sets of characters, any number of folders."""
    for name in ("a1.zarr", "a2.zarr", "b1.zarr", "deep/down/c1.zarr", "deep/.hidden/d1.zarr"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        make_image(tmp_path / name)
    (tmp_path / "a3.txt").write_text("x")
    assert list(by_name(read_catalogue(f"{tmp_path}/a?.zarr"))) == ["a1", "a2"]
    assert list(by_name(read_catalogue(f"{tmp_path}/[!a]1.zarr"))) == ["b1"]
    assert list(by_name(read_catalogue(f"{tmp_path}/**/*.zarr"))) == ["a1", "a2", "b1", "c1"]
    found = read_catalogue(f"{tmp_path}/a*")
    assert (list(by_name(found)), reasons(found)) == (["a1", "a2"], {"a3.txt": "no file that a run reads"})
    monkeypatch.chdir(tmp_path)
    assert by_name(read_catalogue("deep/*/c1.zarr")) == {"c1": f"{tmp_path}/deep/down/c1.zarr"}


def test_a_location_that_is_there_is_no_pattern(tmp_path):
    """Brackets are letters where they are part of a file's name."""
    image = make_image(tmp_path / "x[1].zarr")
    assert by_name(read_catalogue(str(image))) == {"x-1": str(image)}


def test_two_stars_do_not_look_below_stores_nor_through_links(tmp_path, monkeypatch):
    """A store has a million chunks, and a link may lead in a circle."""
    make_image(tmp_path / "set/x.zarr")
    (tmp_path / "set/again").symlink_to(tmp_path)
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    assert list(by_name(read_catalogue(f"{tmp_path}/**/*.zarr"))) == ["x"]
    assert not [path for path in listed if "/x.zarr/" in path or "/again" in path]


# --- plates and collections ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_plate_is_each_field_of_each_well(tmp_path, zarr_format):
    """OME-Zarr 0.4 and 0.5."""
    plate = make_plate(tmp_path / "p.zarr", {"A/1": ["0", "1"], "B/02": ["0"]}, zarr_format)
    fields = {"A-1-0": f"{plate}/A/1/0", "A-1-1": f"{plate}/A/1/1", "B-02-0": f"{plate}/B/02/0"}
    found = read_catalogue(str(plate))
    assert by_name(found) == fields
    assert {entry.store for entry in found} == {str(plate)}
    assert by_name(read_catalogue([str(plate)])) == {f"p-{name}": url for name, url in fields.items()}
    assert by_name(read_catalogue(str(tmp_path))) == by_name(read_catalogue([str(plate)]))
    named = [{"url": str(plate), "name": "first", "level": 0}]
    assert by_name(read_catalogue(named)) == {f"first-{name}": url for name, url in fields.items()}
    for entry in found:
        assert open_volume(entry.url).shape == (4, 6, 8)


def test_wells_and_fields_that_are_not_there_are_entries_all_the_same(tmp_path):
    """A plate that was copied in part: the runs of what is missing fail, by name; the others do not."""
    plate = make_plate(tmp_path / "p.zarr", {"A/1": ["0", "1"], "A/2": [], "A/3": ["0"]})
    (plate / "A/1/1/zarr.json").unlink()
    (plate / "A/3/zarr.json").write_text("{")
    found = by_name(read_catalogue(str(plate)))
    assert found == {name: f"{plate}/{name.replace('-', '/')}" for name in ("A-1-0", "A-1-1", "A-2", "A-3")}


def test_several_plates_are_told_apart(tmp_path):
    """By their names, and where those are the same by their folders."""
    for name in ("one/p.zarr", "two/p.zarr", "two/q.zarr"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        make_plate(tmp_path / name, {"A/1": ["0"]})
    assert list(by_name(read_catalogue(f"{tmp_path}/*/*.zarr"))) == ["one-p-A-1-0", "two-p-A-1-0", "q-A-1-0"]


def test_the_plates_of_others_are_read(shared_data):
    """The examples of the specification's own project."""
    valid = shared_data / "zarr/ome-zarr-examples/valid"
    found = by_name(read_catalogue(valid / "plate-01.zarr"))
    assert found == {f"{r}-{c}-0": f"{valid}/plate-01.zarr/{r}/{c}/0" for r in "AB" for c in "12"}
    names = list(by_name(read_catalogue(valid)))
    assert names == [*(f"image-0{n}" for n in (1, 2, 3, 4)), *(f"plate-01-{r}-{c}-0" for r in "AB" for c in "12")]


def test_images_of_others_are_images(shared_data):
    """zarr-java's say that they are a collection of bioformats2raw, too; what has resolutions is an image."""
    java = shared_data / "zarr/zarr-java/ome"
    assert by_name(read_catalogue(java)) == {"v0.4": f"{java}/v0.4", "v0.5": f"{java}/v0.5"}
    ngio = shared_data / "zarr/ngio"
    assert list(by_name(read_catalogue(f"{ngio}/*"))) == ["test_image_czyx", "test_image_zyx"]
    old = shared_data / "zarr/zarr_implementations/examples/zarr.zr"
    assert list(by_name(read_catalogue(old))) == ["blosc", "gzip", "raw", "zlib"]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_collection_is_each_of_its_images(tmp_path, zarr_format):
    """In the order of its list; without one the numbered groups, by number."""
    listed = make_collection(tmp_path / "l.zarr", ["0", "1", "2"], ["2", "0"], zarr_format)
    assert by_name(read_catalogue(listed)) == {"l-2": f"{listed}/2", "l-0": f"{listed}/0"}
    numbered = make_collection(tmp_path / "n.zarr", ["0", "10", "9"], None, zarr_format)
    assert list(by_name(read_catalogue(numbered))) == ["n-0", "n-9", "n-10"]


@pytest.mark.parametrize(
    "attributes",
    [
        {"plate": {"wells": [{"path": "../../elsewhere"}]}},
        {"plate": {"wells": [{"path": "/etc"}]}},
        {"plate": {"wells": [{"row": 1}]}},
        {"plate": {}},
        {"plate": None},
        {"plate": {"wells": "A/1"}},
    ],
)
def test_a_plate_that_leads_nowhere_is_a_broken_volume(tmp_path, attributes):
    """Metadata of others leads into their own store, or nowhere."""
    plate = make_group(tmp_path / "p.zarr", attributes, zarr_format=2)
    assert by_name(read_catalogue(plate)) == {"p": str(plate)}


# --- YAML and CSV -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "- x.zarr\n- {url: sub/y.zarr, name: why, level: 0, axes: zyx}\n"),
        ("c.yml", "volumes:\n- ./x.zarr\n- url: sub/y.zarr\n  name: why\n  level: 0\n  axes: zyx\n"),
        ("c.csv", "\ufeffname,url,level,axes\r\n,x.zarr,,\r\n\r\nwhy, sub/y.zarr ,0,zyx\r\n,,,\r\n"),
    ],
)
def test_a_catalogue_of_paths_is_relative_to_its_file(tmp_path, name, text):
    """So a dataset and its catalogue move together, whatever the working directory."""
    (tmp_path / "sub").mkdir()
    x, y = make_image(tmp_path / "x.zarr"), make_image(tmp_path / "sub/y.zarr")
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert list(read_catalogue(tmp_path / name)) == [
        Entry("x", str(x), store=str(x)),
        Entry("why", str(y), {"level": 0, "axes": "zyx"}, str(y)),
    ]


def test_a_list_holds_sources_of_every_kind(tmp_path, monkeypatch):
    """Folders, patterns, plates, volumes that are not there, and further catalogues, in its order."""
    (tmp_path / "more").mkdir()
    make_image(tmp_path / "more/x.zarr")
    make_image(tmp_path / "y.zarr")
    make_plate(tmp_path / "p.zarr", {"A/1": ["0"]})
    (tmp_path / "c.csv").write_text("url\n/else/z.zarr\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHERE", "/nowhere")
    found = read_catalogue(["more", "[y].zarr", "p.zarr", "c.csv", {"url": "${WHERE}/gone.tif", "level": 1}])
    assert list(by_name(found)) == ["x", "y", "p-A-1-0", "z", "gone"]
    assert (found[-1].url, found[-1].reading) == ("/nowhere/gone.tif", {"level": 1})
    assert len(found[1:3]) == 2


def test_what_is_named_is_an_entry_whatever_is_there(tmp_path):
    """One typing error in a list of hundreds stops no other volume, and is found in the summary."""
    make_hdf5(tmp_path / "two.h5", "a", "b")
    (tmp_path / "c.yaml").write_text("[gone.zarr, two.h5, note.txt]")
    (tmp_path / "note.txt").write_text("x")
    assert list(by_name(read_catalogue(tmp_path / "c.yaml"))) == ["gone", "two", "note.txt"]


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("c.csv", "path,level\nx,1\n", ["line 1, the header: unknown column 'path'", "no column 'url'"]),
        ("c.csv", "url,lvl\nx,1\n", ["unknown column 'lvl'; did you mean 'level'?"]),
        ("c.csv", "url,url\nx,y\n", ["column 'url' twice"]),
        ("c.csv", "url;level\nx;1\n", ["parted by commas, not by ';'"]),
        ("c.csv", "url,level\nx,1,2\n", ["line 2: 3 cells in 2 columns"]),
        (
            "c.csv",
            "url,level\nx,0\n\ny,fine\n,2\n",
            ["2 problems", "line 4: level: ", "found 'fine'", "line 5: url: required"],
        ),
        ("c.csv", 'url\n"x\n', ["is no CSV", "line 2"]),
        ("c.csv", "url\n", ["a header alone"]),
        ("c.csv", "\n", ["is empty", "url and perhaps name, level, axes"]),
        ("c.csv", "url,name\nx,a/b\n", ["line 2: name: 'a/b' is no name", "such as 'a-b'"]),
        ("c.yaml", "", ["holds nothing", "expected a list of locations"]),
        ("c.yaml", "x.zarr", ["one value, 'x.zarr'"]),
        ("c.yaml", "volume: [x]", ["unknown key; did you mean 'volumes'?", "volumes: required"]),
        (
            "c.yaml",
            "[{ulr: x}, 3, {url: x, level: -1}]",
            ["unknown key; did you mean 'url'?", "item 2:", "item 3: level:"],
        ),
        ("c.yaml", "[{url: x, axes: zy}]", ["item 1: axes: 'zy' is no order of axes"]),
        ("c.yaml", "[{url: x, name: 7}]", ["item 1: name: should be a valid string (found 7)"]),
        ("c.yaml", "- [x", ["is not YAML"]),
        ("c.yaml", "- d.csv", ["names another catalogue (item 1)"]),
        ("c.yaml", "- 's3://user:secret@bucket/x'", ["carries a user or a password"]),
        ("c.csv", "url\nhttps://h/x.zarr?X-Amz-Signature=secret\n", ["line 2: url: ", "carries a signature"]),
        ("c.yaml", "- ${NO_SUCH_VARIABLE}/x", ["NO_SUCH_VARIABLE, which is not set"]),
        ("c.yaml", "[x.zarr, {url: ./x.zarr/, name: y}]", ["twice", "by ", "c.yaml, item 1 and by ", "c.yaml, item 2"]),
        ("c.yaml", "[{url: x, name: n}, {url: y, name: N}]", ["the same name, 'n'", "Give each a name"]),
    ],
)
def test_a_catalogue_that_cannot_be_read_says_where_and_why(tmp_path, monkeypatch, name, text, parts):
    """With the line or the item, all violations at once, and no secret repeated."""
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_catalogue(tmp_path / name)
    assert [part for part in parts if part not in str(refused.value)] == []
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("nix.zarr", ["There is nothing at '", "nix.zarr'", "Check the location"]),
        ("some/note.txt", ["is no volume, and no catalogue", "no file that a run reads"]),
        ("empty", ["holds no volume: it is empty"]),
        ("some", ["holds no volume. 1 thing left out: 'note.txt' (no file"]),
        ("some/*.zarr", ["Nothing fits the pattern", "of 1 thing in '", "some', such as note.txt, none fits '*.zarr'"]),
        ("nix/deep/*.zarr", ["none fits 'nix'", "such as "]),
        ("some/*", ["No volume fits the pattern", "1 thing left out: 'note.txt'"]),
        ("two.h5", ["is an HDF5 file, and it has 2 datasets (a, b)", "two.h5/a"]),
        ("bare.zarr", ["a plate without wells"]),
        ("c.csv", ["cannot be read: there is nothing there"]),
        ("folder.csv", ["it is a folder: name what is in it"]),
        ("", ["a path is needed"]),
        ([], ["holds nothing", "expected a list of locations"]),
        ({"volumes": ["x"], "name": "y"}, ["name: unknown key"]),
        ([{"url": "some", "name": "x"}], ["item 1: name is 'x'", "not one volume; 0 were found"]),
        (["pair/*", "pair/x.zarr"], ["twice: '", "by item 1 (", "pair/*) and by item 2. Leave one of them out"]),
    ],
)
def test_a_source_without_volumes_says_what_is_there(tmp_path, monkeypatch, source, parts):
    """A wrong path, an empty folder, a pattern that fits nothing: before anything runs, and with what was found."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "some").mkdir()
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "some/note.txt").write_text("x")
    make_hdf5(tmp_path / "two.h5", "a", "b")
    make_plate(tmp_path / "bare.zarr", {})
    (tmp_path / "pair").mkdir()
    make_image(tmp_path / "pair/x.zarr")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, StorageError)) as refused:
        read_catalogue(source)
    assert [part for part in parts if part not in str(refused.value)] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_told(tmp_path):
    """Not taken for an empty one."""
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(StorageError, match="Permission denied"):
        read_catalogue(tmp_path / "closed")


def test_an_inbox_may_be_empty_and_a_wrong_path_may_not(tmp_path):
    """Nothing has come yet; but a folder that is not there is a typing error."""
    assert len(read_catalogue(tmp_path, may_be_empty=True)) == 0
    assert len(read_catalogue(f"{tmp_path}/*.zarr", may_be_empty=True)) == 0
    assert len(read_catalogue("memory://never-written/inbox", may_be_empty=True)) == 0
    with pytest.raises(StorageError, match="There is nothing at"):
        read_catalogue(tmp_path / "inbocks", may_be_empty=True)


# --- cost ---------------------------------------------------------------------------------------------------------------


def test_listing_opens_one_document_a_volume(tmp_path, monkeypatch):
    """2,000 volumes: what is opened is counted, so that a slow machine does not matter."""
    for n in range(2000):
        make_bare(tmp_path / f"v{n:04d}.zarr")
    opened, listed = [], []
    scandir = os.scandir
    monkeypatch.setattr(listing, "open", lambda path, mode: opened.append(path) or open(path, mode), raising=False)  # noqa: PTH123, SIM115 - stands for it
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    assert len(read_catalogue(tmp_path)) == 2000
    assert len(opened) == 2000 + 4  # the folder's own documents are looked for first
    assert listed == [str(tmp_path)]


# --- stores -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    """A folder for `fill`: an image, an array, a plate, a broken store, and what is none."""
    make_image(tmp_path / "set/a.ome.zarr")
    make_array(tmp_path / "set/b.zarr", zarr_format=2)
    make_plate(tmp_path / "set/p.zarr", {"A/1": ["0"], "A/2": []}, zarr_format=2)
    (make_image(tmp_path / "set/torn.zarr") / "zarr.json").unlink()
    make_tiff(tmp_path / "set/t.tif")
    (tmp_path / "set/note.txt").write_text("x")
    (tmp_path / "set/c.csv").write_text("url,name\na.ome.zarr,first\n")
    return tmp_path / "set"


def check_store(root: str) -> None:
    """What a path finds, a store finds too."""
    found = read_catalogue(f"{root}/")
    assert by_name(found) == {
        "a": f"{root}/a.ome.zarr",
        "b": f"{root}/b.zarr",
        "p-A-1-0": f"{root}/p.zarr/A/1/0",
        "p-A-2": f"{root}/p.zarr/A/2",
        "torn": f"{root}/torn.zarr",
    }
    assert set(reasons(found)) == {"t.tif", "note.txt", "c.csv"}
    assert "convert it to OME-Zarr" in reasons(found)["t.tif"]
    assert by_name(read_catalogue(f"{root}/?.ome.z*")) == {"a": f"{root}/a.ome.zarr"}
    assert list(by_name(read_catalogue(f"{root.rpartition('/')[0]}/**/*.zarr"))) == [
        "a",
        "b",
        "p-A-1-0",
        "p-A-2",
        "torn",
    ]
    assert list(by_name(read_catalogue(f"{root}/p.zarr"))) == ["A-1-0", "A-2"]
    assert by_name(read_catalogue(f"{root}/c.csv")) == {"first": f"{root}/a.ome.zarr"}
    with pytest.raises(StorageError, match=r"of 7 things in '.*', such as a.ome.zarr, .* none fits '\*.n5'"):
        read_catalogue(f"{root}/*.n5")
    with pytest.raises(StorageError, match="There is nothing at"):
        read_catalogue(f"{root}/nix")


def test_prefixes_and_patterns_of_a_store(stored):
    """By fsspec, with the store that it keeps in memory."""
    fill("memory://catalogue/set", stored)
    try:
        check_store("memory://catalogue/set")
    finally:
        fsspec.filesystem("memory").rm("/catalogue", recursive=True)


def test_prefixes_and_patterns_of_s3(bucket, stored):
    """The same, by requests to a server."""
    fill(f"{bucket}/lab/set", stored)
    check_store(f"{bucket}/lab/set")


def test_a_bucket_that_is_not_there_is_told(bucket):
    """Not an inbox in which nothing has come yet."""
    for source in ("s3://nix/set", "s3://nix/set/*.zarr", "s3://nix/set.csv"):
        with pytest.raises(StorageError, match="there is no bucket 'nix'"):
            read_catalogue(source, may_be_empty=True)
    assert len(read_catalogue(f"{bucket}/inbox", may_be_empty=True)) == 0


def test_a_store_that_is_listed_costs_few_requests(bucket, tmp_path, caplog):
    """One listing, one document a volume, no question for its size: requests cost money and time."""
    for n in range(50):
        make_bare(tmp_path / f"v[{n}].zarr")
    fill(f"{bucket}/many", tmp_path)
    caplog.clear()
    with caplog.at_level("INFO", logger="werkzeug"):
        assert len(read_catalogue(f"{bucket}/many/*.zarr")) == 50
    asked = [record.getMessage().partition('"')[2] for record in caplog.records if record.name == "werkzeug"]
    assert len([line for line in asked if "zarr.json HTTP" in line and "GET" in line]) == 50
    assert len(asked) == 51


def test_a_store_that_cannot_be_asked_says_why():
    """A protocol that is not installed, or is none."""
    with pytest.raises(StorageError, match="nix:// is no protocol that fsspec knows"):
        read_catalogue("nix://bucket/set")


def test_the_metadata_of_a_store_is_asked_for_at_once(monkeypatch):
    """A round trip takes 50 ms: 10,000 of them one after the other take eight minutes."""
    system = fsspec.filesystem("memory")
    document = json.dumps({"zarr_format": 3, "node_type": "array"}).encode()
    for n in range(300):
        system.pipe(f"/many/v{n}.zarr/zarr.json", document)
    asked = []
    read = type(system).cat_ranges
    monkeypatch.setattr(
        type(system), "cat_ranges", lambda self, *given, **said: asked.append(given[0]) or read(self, *given, **said)
    )
    try:
        assert len(read_catalogue("memory://many")) == 300
        assert [len(paths) for paths in asked if len(paths) > 1] == [300]
    finally:
        system.rm("/many", recursive=True)

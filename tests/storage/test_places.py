"""A path is what it says, and one place makes a store of it."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from pipeline.core.locations import is_url, without_file_scheme
from pipeline.errors import StorageError
from pipeline.outputs.convert import convert
from pipeline.outputs.image import Image
from pipeline.outputs.metadata import stored_fingerprint
from pipeline.volumes.volume import open_volume, store_levels
from tests.pipeline_cases import output_plan, random_volume

ROOT = Path(__file__).parents[2]

NAMES = [
    "a::b.zarr",
    "memory::b.zarr",
    "a::memory:b.zarr",
    "50%25.zarr",
    "a#b.zarr",
    "a?b=c.zarr",
    "a[0-9]*.zarr",
    "with space.zarr",
    " led.zarr",
    "dots...",
    "~me.zarr",
    "two\nlines.zarr",
    "café-µ-数.zarr",
    "file:b.zarr",
    "$HOME.zarr",
    "a.zip",
    "quote'\".zarr",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_what_it_says_for_input_and_output(tmp_path, name):
    """`a::b` is a chain of stores to fsspec: another volume was read, and an output written into its input."""
    expected, decoy = random_volume((3, 8, 9)), random_volume((3, 8, 9)) + 1
    for other in ("a", "b.zarr", "50%.zarr", "a0.zarr", "me.zarr", "dots"):
        zarr.create_array(LocalStore(tmp_path / other), data=decoy)
    before = set(os.listdir(tmp_path))  # noqa: PTH208 - names, not paths
    zarr.create_array(LocalStore(tmp_path / name), data=expected)
    volume = open_volume(str(tmp_path / name))
    np.testing.assert_array_equal(np.asarray(volume.array[:]), expected)
    assert store_levels(str(tmp_path / name)) == 1
    assert open_volume(f"file://{tmp_path / name}").place == volume.place == str(tmp_path / name)
    convert(str(tmp_path / name), str(tmp_path / f"out {name}"))
    np.testing.assert_array_equal(np.asarray(open_volume(str(tmp_path / f"out {name}")).array[:]), expected)
    assert set(os.listdir(tmp_path)) == before | {name, f"out {name}"}  # noqa: PTH208


@pytest.mark.parametrize("name", NAMES)
def test_an_output_is_written_where_its_path_says(tmp_path, name):
    """`v.zarr::m.zarr` was written into `v.zarr`, which may be the input."""
    for other in ("v.zarr", "m.zarr"):
        zarr.create_array(LocalStore(tmp_path / other), data=random_volume((3, 4, 5)))
    plan = output_plan(tmp_path / f"v.zarr::{name}")
    output = Image(plan)
    output.create()
    output.publish()
    assert output.metadata(complete=True).differences == ()
    assert (tmp_path / f"v.zarr::{name}" / "0/zarr.json").is_file()
    assert stored_fingerprint(output.store) == plan.fingerprint
    assert not (tmp_path / "v.zarr/0").exists()


def test_hdf5_below_a_folder_of_a_strange_name_is_read(tmp_path):
    """Files are opened by their path, too, and a dataset's name is no URL either."""
    folder = tmp_path / "we::ird#1%20"
    folder.mkdir()
    expected = random_volume((3, 8, 9))
    with h5py.File(folder / "a?b.h5", "w") as file:
        file["raw::data"] = expected
    np.testing.assert_array_equal(np.asarray(open_volume(str(folder / "a?b.h5/raw::data")).array[:]), expected)


@pytest.mark.parametrize(
    "url", ["simplecache::s3://bucket/v.zarr", "zip://v.zarr::s3://bucket/v.zip", "s3://bucket/a::b.zarr", "a::b://c"]
)
def test_a_chain_of_stores_is_refused_as_an_input(url):
    """What would be unpacked or cached on the way is no single store, and its credentials would go unseen."""
    with pytest.raises(StorageError, match=r"chain of stores \('::'\), which is not supported"):
        open_volume(url)


@pytest.mark.parametrize(
    ("location", "answer"),
    [
        ("s3://b/v", True),
        ("S3://b/v", True),
        ("zip://a::s3://b", True),
        ("/data/s3://b/v", False),
        ("./we://ird", False),
        ("a::b.zarr", False),
        ("://b", False),
        ("/data/v.zarr", False),
    ],
)
def test_a_url_is_told_from_a_path_by_its_scheme(location, answer):
    """A folder may be named with `://` inside; only what stands first makes a URL."""
    assert is_url(location) is answer


def test_the_scheme_of_files_is_dropped_and_nothing_decoded():
    """`%20` in a path is three characters."""
    assert without_file_scheme("file:///a%20b#c") == without_file_scheme("LOCAL:///a%20b#c") == "/a%20b#c"
    assert without_file_scheme("/data/file:///x") == "/data/file:///x"


# --- one place makes stores ---------------------------------------------------------------------------------------------

MAKER = "pipeline/places/stores.py"

MAKERS = {"LocalStore", "FsspecStore", "ZipStore", "from_url", "from_mapper", "from_upath", "open_fsspec"}
"""Names of what makes a store of text, whoever has them from where."""

STORES = {"store", "local_store", "input_store", "as_zarr", "in_memory", "MemoryStore", "aszarr"}
"""Names of what is a store already, and of what makes one without text."""

VALUES = {"Array", "Group"}
"""What of zarr's own names opens nothing by being named."""


def _name(node: ast.expr) -> str:
    """The last part of a name, or of what is called."""
    if isinstance(node, ast.Call):
        return _name(node.func)
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _imports(node: ast.AST) -> list[str]:
    """What a statement imports, and under which name."""
    if isinstance(node, ast.Import):
        return [alias.name if alias.asname is None else f"{alias.name} as {alias.asname}" for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def _is_wrong_import(found: str, place: str) -> bool:
    root, last = found.split(".", maxsplit=1)[0].split(" ", maxsplit=1)[0], found.rpartition(".")[2]
    if root == "fsspec":
        return found != "fsspec.asyn" or place != "pipeline/places/listing.py"  # its loop, which takes no text
    if root != "zarr":
        return False
    by_another_name = " as " in found or (
        found.count(".") == 1 and last.islower()
    )  # zarr.open, zarr.api, zarr.convenience
    return by_another_name or found.startswith("zarr.api") or last in MAKERS


def _violations(source: str, place: str) -> list[str]:
    """Where a module could give zarr or fsspec a path or a URL."""
    if place == MAKER:
        return []
    tree, found = ast.parse(source), []
    called = {node.func: node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        wrong = any(_is_wrong_import(name, place) for name in _imports(node))
        if isinstance(node, ast.Attribute | ast.Name):
            whole = ast.unparse(node)
            wrong |= _name(node) in MAKERS
            wrong |= whole.startswith("fsspec.") and not (whole + ".").startswith("fsspec.asyn.")
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "zarr" and node.attr not in VALUES:
                call = called.get(node)
                wrong |= call is None or not call.args or _name(call.args[0]) not in STORES
            wrong |= whole.startswith(("zarr.Array.", "zarr.Group."))
        if wrong:
            found.append(f"{place}:{node.lineno}: {ast.unparse(node)[:80]}")
    return found


def _sources() -> dict[str, str]:
    """Every module of ours, by its path."""
    paths = [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("flows/**/*.py"), ROOT / "halotile.py"]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def test_no_path_or_url_goes_to_zarr_or_fsspec_as_text():
    """A new call with a path would read `::` in it again."""
    sources = _sources()
    assert MAKER in sources
    found = [line for place, source in sources.items() for line in _violations(source, place)]
    assert not found, found


def test_the_place_that_makes_stores_would_be_found_anywhere_else():
    """The negative control with what is there: none of its lines goes by unseen."""
    found = _violations(_sources()[MAKER], "pipeline/volumes/new.py")
    for name in (
        "LocalStore",
        "FsspecStore",
        "FsspecStore.from_url",
        "fsspec.url_to_fs",
        "fsspec.filesystem",
        "import fsspec",
    ):
        assert any(line.endswith(name) or f" {name}(" in line for line in found), name


@pytest.mark.parametrize(
    "line",
    [
        "zarr.open(url)",
        "zarr.open_group(str(root))",
        "zarr.create_array(path, shape=(1,))",
        "zarr.open_array('a')",
        "zarr.open_array(store='a')",
        "zarr.consolidate_metadata(path)",
        "read(zarr.open_group, path)",
        "zarr.Group.open(path)",
        "LocalStore(p)",
        "zarr.storage.LocalStore(p)",
        "make = LocalStore",
        "from zarr import open_group",
        "from zarr.storage import LocalStore as Folder",
        "from zarr.api.synchronous import open_array",
        "import zarr as z",
        "import zarr.api.synchronous as z",
        "fsspec.open(u)",
        "import fsspec",
        "from fsspec import filesystem",
        "from fsspec.core import url_to_fs",
    ],
)
def test_such_a_line_would_be_found(line):
    """The negative control of the above."""
    assert _violations(line, "pipeline/new.py")


@pytest.mark.parametrize(
    "line",
    [
        "zarr.open(input_store(url), mode='r')",
        "zarr.open_array(self.store.as_zarr(), path=self.name)",
        "from zarr.storage import MemoryStore, WrapperStore",
        "from zarr.codecs import ZstdCodec",
        "isinstance(node, zarr.Group)",
    ],
)
def test_what_gives_no_text_is_let_be(line):
    """Else the rule would be switched off some day."""
    assert not _violations(line, "pipeline/new.py")

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

PIPELINE = Path(__file__).parents[2] / "pipeline"

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

OPENERS = {
    "open",
    "open_array",
    "open_group",
    "open_like",
    "create_array",
    "create_group",
    "create",
    "group",
    "array",
    "save",
    "load",
}

STORES = {"store", "_store", "local_store", "input_store", "aszarr", "as_zarr", "MemoryStore"}
"""Names of what is a store already, and of what makes one."""


def _names_a_store(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return _names_a_store(node.func)
    return (node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else "") in STORES


def _violations(source: str, name: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if (
            called.startswith("zarr.")
            and called.split(".")[-1] in OPENERS
            and not (node.args and _names_a_store(node.args[0]))
        ):
            found.append(f"{name}:{node.lineno}: {ast.unparse(node)[:80]}")
        if (
            called.split(".")[-1] in ("LocalStore", "from_url", "FsspecStore", "open_fsspec", "ZipStore")
            and name != "stores.py"
        ):
            found.append(f"{name}:{node.lineno}: {called}")
        if called.startswith("fsspec.") and name not in ("objects.py", "listing.py"):
            found.append(f"{name}:{node.lineno}: {called}")
    return found


def test_no_path_or_url_goes_to_zarr_or_fsspec_as_text():
    """A new call with a path would read `::` in it again."""
    found = [line for path in sorted(PIPELINE.rglob("*.py")) for line in _violations(path.read_text(), path.name)]
    assert not found, found


@pytest.mark.parametrize(
    "line",
    [
        "zarr.open(url)",
        "zarr.open_group(str(root))",
        "zarr.create_array(path, shape=(1,))",
        "zarr.open_array('a')",
        "LocalStore(p)",
        "fsspec.open(u)",
    ],
)
def test_such_a_call_would_be_found(line):
    """The negative control of the above."""
    assert _violations(line, "new.py")

"""The input is spoilt in many ways, while the command runs: status 1 in words, nothing published, and the next run asks or goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.network.unet import Architecture
from tests.e2e.commands import wait_until
from tests.e2e.conftest import halotile, prefect_home  # noqa: F401 - fixtures of these tests too
from tests.pipeline_cases import Run, done_entries, make_run, random_volume, save_array

pytestmark = pytest.mark.fault


def moved(place: Path) -> None:
    """A `mv`, or a cable."""
    place.rename(place.with_name("elsewhere.zarr"))


def emptied(place: Path) -> None:
    """An `rm -r` of the chunks."""
    shutil.rmtree(place / "c")


def deleted(place: Path) -> None:
    """An `rm` of one."""
    (place / "c/3/0/0").unlink()


def cut(place: Path) -> None:
    """A chunk at half."""
    chunk = place / "c/3/0/0"
    os.truncate(chunk, chunk.stat().st_size // 2)


def replaced(place: Path) -> None:
    """Other voxels at the same place."""
    shape = (64, 48, 48)
    place.rename(place.with_name("elsewhere.zarr"))
    save_array(place, random_volume(shape, seed=7), (16, 16, 16))


def emptied_files(place: Path) -> None:
    """A full disk, where files are written in place."""
    for chunk in (place / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"")


WAYS: dict[str, Callable[[Path], None]] = {
    way.__name__: way for way in (moved, emptied, deleted, cut, replaced, emptied_files)
}


@pytest.mark.parametrize("options", [["--no-prefect"], []], ids=["alone", "Prefect"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_nothing_of_a_spoilt_input_is_published(halotile, tmp_path, way, options):  # noqa: F811 - a fixture
    """Whatever happens to it, and through either door."""
    keys = {"tiles": {"core": [16, 16, 16]}}
    run: Run = make_run(tmp_path, architecture=Architecture(3, 2, 64), shape=(64, 48, 48), **keys)
    command = halotile("run", run.yaml, *options)
    try:
        wait_until(lambda: bool(done_entries(run.directory)) or not command.is_running())
        way(run.folder / "input.zarr")
        assert command.wait(300) == 1, command.error
    finally:
        if command.is_running():
            command.kill_all()
    assert "Traceback" not in command.error
    assert "ome" not in json.loads((run.output / "zarr.json").read_text())["attributes"]
    again = halotile("run", run.yaml, *options)
    status = again.wait(300)
    if way is cut and status == 1:  # no tile that is done had read it: nothing to ask (decision 10), but it is no chunk
        assert "The input is damaged" in again.error
    else:
        assert status == 2, again.error
    assert "Traceback" not in again.error
    assert "ome" not in json.loads((run.output / "zarr.json").read_text())["attributes"]

"""How often a server is asked for a volume, counted there, and what becomes of reading when it fails."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from math import prod
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

from pipeline import stages
from pipeline.core.geometry.box import Box
from pipeline.core.network.unet import Architecture
from pipeline.core.plan import Plan
from pipeline.core.tiles.cost import cache_bytes
from pipeline.core.tiles.grid import TileGrid
from pipeline.errors import StorageError
from pipeline.places import remote, stores
from pipeline.volumes.cached import cached
from pipeline.volumes.inventory import open_counted
from pipeline.volumes.volume import open_volume
from tests.pipeline_cases import make_run, random_volume
from tests.storage.folder_server import CUT, DROP, HANG, a_share_of, serve_folder

SHAPE, CHUNKS = (32, 48, 64), (8, 8, 8)

COUNT = prod(n // c for n, c in zip(SHAPE, CHUNKS, strict=True))
"""Chunks of the volume."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bucket `b` with one volume as chunks (`v.zarr`), in the older format (`old.zarr`) and in shards (`s.zarr`)."""
    root = tmp_path_factory.mktemp("root")
    voxels = random_volume(SHAPE)
    zarr.create_array(root / "b" / "v.zarr", data=voxels, chunks=CHUNKS)
    zarr.create_array(root / "b" / "old.zarr", data=voxels, chunks=CHUNKS, zarr_format=2)
    zarr.create_array(root / "b" / "s.zarr", data=voxels, chunks=CHUNKS, shards=(16, 24, 32))
    return root, voxels


@pytest.fixture
def server(folder, monkeypatch):
    """It, served; the environment leads there."""
    for name, value in {
        "ACCESS_KEY_ID": "test",
        "SECRET_ACCESS_KEY": "testtest",
        "DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with serve_folder(folder[0]) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        yield server


@pytest.fixture(params=["s3", "http"])
def base(request, server):
    """The bucket's URL, by either protocol."""
    return "s3://b" if request.param == "s3" else f"{server.endpoint}/b"


WHOLE = Box((0, 0, 0), SHAPE)


@pytest.mark.parametrize("name", ["v.zarr", "old.zarr"])
def test_each_chunk_is_asked_for_once_and_little_else_is(server, base, folder, name):
    """A client that asks for the size first takes twice the requests and three times the time."""
    volume = open_volume(f"{base}/{name}")
    np.testing.assert_array_equal(volume.read(WHOLE)[0], folder[1])
    assert len(server.chunks()) == COUNT
    assert set(server.chunks().values()) == {1}
    assert len(server.asked) <= 1.05 * COUNT


def test_a_client_that_asks_for_sizes_is_counted_by_the_same_server(server):
    """The negative control: s3fs, which asks so wherever it may ask for parts at once."""
    stores.s3().cat_file("b/v.zarr/c/0/0/0")
    assert server.chunks() == {"v.zarr/c/0/0/0": 2}


def test_of_a_shard_its_index_and_the_chunks_that_are_wanted_are_asked_for(server, base, folder):
    """A window in a shard costs its chunks and one more; a whole shard is one object."""
    volume = open_volume(f"{base}/s.zarr")
    server.forget()
    window = Box((0, 0, 0), (8, 24, 32))
    np.testing.assert_array_equal(volume.read(window)[0], folder[1][:8, :24, :32])
    assert len(server.asked) == 3 * 4 + 1
    server.forget()
    np.testing.assert_array_equal(volume.read(WHOLE)[0], folder[1])
    assert len(server.asked) == 8


@pytest.mark.parametrize("how", [429, 500, 503, DROP, CUT], ids=str)
def test_what_fails_for_a_moment_is_asked_for_again(server, base, folder, how):
    """A third of all answers, from the first document to the last chunk: the volume is read, and every voxel is right."""
    server.fails = a_share_of(0.33, how)
    volume = open_volume(f"{base}/v.zarr")
    np.testing.assert_array_equal(volume.read(WHOLE)[0], folder[1])
    assert len(server.asked) > 1.2 * COUNT


def test_a_server_that_is_busy_for_a_while_is_waited_for(server, base, folder):
    """Twenty seconds of 503 failed half of a run's tiles; here as many answers as that is, by half a second."""
    volume = open_volume(f"{base}/v.zarr")
    until = time.monotonic() + 2
    server.fails = lambda asked: 503 if time.monotonic() < until else None
    np.testing.assert_array_equal(volume.read(WHOLE)[0], folder[1])


@pytest.mark.parametrize(
    ("how", "words"),
    [(503, r"503 Service Unavailable.*asked \d+ times in 1 s"), (HANG, "error"), (DROP, "error")],
    ids=str,
)
def test_a_server_that_stays_so_is_given_up_in_one_line(server, base, monkeypatch, how, words):
    """After a minute as it is set, here after a second; and nobody is told of variables of S3 over http."""
    monkeypatch.setattr(remote, "STALLED_SECONDS", 0.2)
    monkeypatch.setattr(stores, "PATIENCE_SECONDS", 1)
    volume = open_volume(f"{base}/v.zarr")
    server.fails = lambda asked: how
    began = time.monotonic()
    with pytest.raises(StorageError, match=words) as found:
        volume.read(Box((0, 0, 0), (8, 8, 16)))
    assert time.monotonic() - began < 20
    assert "the store cannot be reached, or failed" in str(found.value)
    assert "\n" not in str(found.value)
    assert ("AWS" in str(found.value)) == base.startswith("s3")


def test_an_answer_without_its_length_is_read(server, folder):
    """As programs send it that make it while they send."""
    server.chunked = True
    volume = open_volume(f"{server.endpoint}/b/v.zarr")
    np.testing.assert_array_equal(volume.read(WHOLE)[0], folder[1])


# --- what is refused ----------------------------------------------------------------------------------------------------


def refusing_absent(server):
    """As S3 answers who may read but not list: 403 for what is not there."""

    def fails(asked):
        there = (server.root / "b" / asked.key).is_file()
        return None if there and not asked.lists else 403

    return fails


@pytest.mark.parametrize("name", ["v.zarr", "old.zarr"])
def test_who_may_read_but_not_list_reads_a_whole_volume(server, base, folder, name):
    """Of the older format `zarr.json` is not there, and is refused; that says nothing."""
    server.fails = refusing_absent(server)
    volume = open_counted(f"{base}/{name}")
    np.testing.assert_array_equal(volume.read(WHOLE)[0], folder[1])


@pytest.fixture
def hole(folder):
    """A volume with one chunk that nobody wrote."""
    path = folder[0] / "b" / "hole.zarr"
    if not path.exists():
        zarr.create_array(path, data=folder[1], chunks=CHUNKS)
        (path / "c/1/2/3").unlink()
    return "hole.zarr"


def test_a_chunk_that_is_refused_is_an_error_that_names_the_right_to_list(server, base, hole):
    """It may be a hole, and it may be what this user may not read: nobody takes it for fill."""
    server.fails = refusing_absent(server)
    with pytest.raises(StorageError, match="list"):
        open_counted(f"{base}/{hole}")
    volume = open_volume(f"{base}/{hole}")
    with pytest.raises(
        StorageError, match=r"hole.zarr/c/1/2/3'.*right to list.*s3:ListBucket.*input.missing to 'fill'"
    ):
        volume.read(WHOLE)


def test_it_is_fill_where_the_user_says_so(server, base, hole, folder):
    """`input.missing: fill` is that word."""
    server.fails = refusing_absent(server)
    volume = open_counted(f"{base}/{hole}", missing="fill")
    expected = folder[1].copy()
    expected[8:16, 16:24, 24:32] = 0
    np.testing.assert_array_equal(volume.read(WHOLE)[0], expected)


def test_where_all_is_refused_the_right_to_read_is_missing(server, base):
    """403 for every document is no empty place."""
    server.fails = lambda asked: 403
    with pytest.raises(StorageError, match="the store refuses it") as found:
        open_volume(f"{base}/v.zarr")
    assert ("AWS_PROFILE" in str(found.value)) == base.startswith("s3")


def test_a_chunk_that_vanished_is_never_taken_for_a_busy_server(server, base, folder, monkeypatch):
    """404 is no answer to wait for, and none to fill."""
    volume = open_counted(f"{base}/v.zarr")
    server.fails = lambda asked: 404 if asked.key.endswith("c/1/1/1") else None
    server.forget()
    with pytest.raises(StorageError, match=r"c/1/1/1'.*is absent"):
        volume.read(WHOLE)
    assert server.chunks()["v.zarr/c/1/1/1"] == 1


class Amazon:
    """A client of botocore's, as far as it is asked where a bucket lies."""

    meta = SimpleNamespace(
        endpoint_url="https://s3.amazonaws.com", region_name="us-east-1", config=SimpleNamespace(s3=None)
    )

    def __init__(self, headers):
        self.headers = headers

    def head_bucket(self, Bucket):
        return {"ResponseMetadata": {"HTTPHeaders": self.headers}}


def test_a_bucket_of_amazons_is_asked_for_where_it_lies():
    """Public volumes lie in many regions, and nobody sets that of each."""
    there = {"x-amz-bucket-region": "eu-west-1"}
    assert remote._address(Amazon(there), "brains") == {"region": "eu-west-1", "virtual_hosted_style_request": True}
    assert remote._address(Amazon({}), "a.b") == {"region": "us-east-1", "virtual_hosted_style_request": False}


# --- what neighbouring tiles read ---------------------------------------------------------------------------------------

GRID = TileGrid(SHAPE, core=(16, 16, 16), stride=(4, 4, 4), margin=(6, 6, 6))
"""Tiles of two chunks an axis, as those of 128 voxels on chunks of 64 are; windows touch four."""


def read_by_tiles(volume):
    """The windows of all tiles, in order, put together from their cores."""
    found = np.zeros(SHAPE, dtype="uint8")
    for tile in GRID:
        window, core = tile.window, tile.core
        array = volume.read(window)[0]
        inner = tuple(slice(a - w, b - w) for a, b, w in zip(core.start, core.stop, window.start, strict=True))
        found[tuple(map(slice, core.start, core.stop))] = array[inner]
    return found


@pytest.mark.parametrize("name", ["v.zarr", "s.zarr"])
def test_what_neighbours_share_is_asked_for_once(server, base, folder, name):
    """By a worker that keeps what it read: chunks, and the indexes of shards with them; and voxels are the same."""
    most = cache_bytes(GRID, CHUNKS, 1)
    volume = cached(open_volume(f"{base}/{name}"), most)
    np.testing.assert_array_equal(read_by_tiles(volume), folder[1])
    assert len(server.asked) <= 1.25 * COUNT
    assert volume.stored.store.kept_bytes <= most


def test_without_that_it_is_asked_for_again_by_each(server, base, folder):
    """The negative control: what a small tile costs."""
    volume = cached(open_volume(f"{base}/v.zarr"), 0)
    np.testing.assert_array_equal(read_by_tiles(volume), folder[1])
    assert len(server.asked) > 3 * COUNT


def test_what_is_kept_is_bounded(server, base, folder):
    """Whatever the volume's size: what was read longest ago goes first."""
    volume = cached(open_volume(f"{base}/v.zarr"), 5_000)
    np.testing.assert_array_equal(read_by_tiles(volume), folder[1])
    store = volume.stored.store
    assert 0 < store.kept_bytes <= 5_000
    assert store.kept_bytes == sum(map(len, store._kept.values()))


def test_what_is_kept_is_checked_as_what_is_read(server, base):
    """A chunk that was cut is refused each time, kept or not."""
    path = server.root / "b" / "cut.zarr"
    if not path.exists():
        zarr.create_array(path, data=random_volume((8, 8, 8)), chunks=CHUNKS)
        chunk = path / "c/0/0/0"
        chunk.write_bytes(chunk.read_bytes()[:-9])
    volume = cached(open_volume(f"{base}/cut.zarr"), 10**6)
    for _ in range(2):
        with pytest.raises(StorageError, match="chunk"):
            volume.read(Box((0, 0, 0), (8, 8, 8)))


def test_a_volume_on_a_path_is_left_to_the_kernel(tmp_path):
    """It keeps what it read of files, and gives it up where memory is short."""
    zarr.create_array(tmp_path / "v.zarr", data=random_volume((8, 8, 8)))
    volume = open_volume(str(tmp_path / "v.zarr"))
    assert cached(volume, 10**6) is volume


def test_the_plan_has_the_memory_of_what_is_kept_and_the_same_tiles(server, folder, tmp_path):
    """A volume on a store is computed as one on a path: what is kept takes what memory is left, and is in no fingerprint."""
    run = make_run(tmp_path, architecture=Architecture(3, 1, 2), shape=SHAPE, tiles={"core": [16, 16, 16]})
    shutil.copytree(tmp_path / "input.zarr", server.root / "b" / "input.zarr", dirs_exist_ok=True)
    stages.plan(run.now)
    far = run.having(input={"url": "s3://b/input.zarr"}, output={"url": str(tmp_path / "far.zarr")})
    stages.plan(far.now)
    here, there = run.plan, far.plan
    assert there.fingerprint == here.fingerprint
    assert here.cost.cache_bytes == 0 < there.cost.cache_bytes
    assert there.cost == replace(
        here.cost,
        worker_bytes=here.cost.worker_bytes + there.cost.cache_bytes,
        cache_bytes=cache_bytes(there.grid, (16, 16, 16), 1),
    )
    assert "cache_bytes" not in here.to_json()
    assert Plan.from_json(there.to_json()).cost == there.cost

"""Inputs and outputs on a real S3: publishers, servers and readers that do not wait for one another."""

import os
import threading
import time
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
import pytest

from pipeline import stages
from pipeline.core.geometry.box import Box
from pipeline.core.network.unet import Architecture
from pipeline.core.versions import Keep
from pipeline.errors import StorageError
from pipeline.places.objects import ObjectStore
from pipeline.places.stores import s3
from pipeline.publishing.publication import open_publication, read_current
from pipeline.volumes.volume import open_volume
from tests.e2e.commands import wait_until
from tests.pipeline_cases import make_run, stored_objects
from tests.storage.publishing_cases import (
    NAME,
    TEN_SECONDS,
    files_of,
    fingerprint,
    make_version,
    publish_to_store,
    publishing,
    told,
)

pytestmark = [pytest.mark.site, pytest.mark.timeout(900)]

A, B = fingerprint(1), fingerprint(2)

MANY = 120
"""Objects of an upload that is hit in the middle."""


@pytest.fixture
def bucket(gateway) -> str:
    """The URL of an empty bucket."""
    name = f"test-{uuid.uuid4().hex}"
    s3().mkdir(name)
    return f"s3://{name}"


@pytest.fixture
def output(bucket) -> str:
    """Where one volume of a dataset is published."""
    return f"{bucket}/em/{NAME}"


@pytest.fixture
def publication(output, tmp_path):
    """Of that volume."""
    return open_publication(output, NAME, str(tmp_path / "staging"))


def stored(image: str) -> dict[str, bytes]:
    """Every object of an image, by its key in it."""
    store = ObjectStore(image)
    return {key: store.read(key) for key in store.sizes()}


@contextmanager
def polling(image_of):
    """A reader that reads all of an image ten times a second; gives the versions that it saw, and what was wrong."""
    seen, wrong, over = [], [], threading.Event()

    def poll():
        while not over.wait(0.1):
            try:
                seen.append(told(stored(image_of())))
            except (AssertionError, ValueError, KeyError, AttributeError) as error:
                wrong.append(repr(error))

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        yield seen, wrong
    finally:
        over.set()
        reader.join()


def test_readers_of_the_pointer_see_one_whole_version(publication, output):
    """Versions come and go while somebody reads; the pointer is read once for each look."""
    make_version(publication, fingerprint(0))
    publication.publish(fingerprint(0), {})
    with polling(lambda: read_current(output).image) as (seen, wrong):
        for number in range(1, 9):
            make_version(publication, fingerprint(number))
            publication.publish(fingerprint(number), {})
            publication.expire(Keep(1, TEN_SECONDS), datetime.now(UTC))
    assert wrong == []
    assert len(set(seen)) > 3
    assert seen == sorted(seen)


def test_objects_that_are_written_over_one_another_are_caught_by_the_same_reader(publication, bucket):
    """The negative control: one prefix for all versions, as without a pointer."""
    place = ObjectStore(f"{bucket}/em/in-place")
    with polling(lambda: place.url) as (_, wrong):
        for number in range(200):
            for key, content in files_of(make_version(publication, fingerprint(number))).items():
                place.write(key, content)
            if wrong and number > 1:
                break
    assert wrong


@contextmanager
def mid_upload(publication, output, tmp_path):
    """A process that uploads the version B, at some of its objects."""
    make_version(publication, B, objects=MANY, size=100_000)
    arguments = ({k: v for k, v in os.environ.items() if k.startswith("AWS_")}, output, tmp_path / "staging", 2)
    with publishing(publish_to_store, *arguments) as process:
        wait_until(lambda: len(ObjectStore(output).sizes(f"versions/{B}")) >= 20)
        yield process


def sent(publication, monkeypatch) -> int:
    """Publish B; gives how many objects were sent for that."""
    real, keys = ObjectStore.send, []
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "send", lambda self, path, key: (keys.append(key), real(self, path, key)))
        publication.publish(B, {})
    return len(keys)


def test_a_publisher_that_is_killed_in_mid_upload_goes_on_with_the_same_bytes(
    publication, output, tmp_path, monkeypatch
):
    """What was sent is not sent again, and readers see the version before until all is there."""
    make_version(publication, A)
    publication.publish(A, {})
    with mid_upload(publication, output, tmp_path) as process:
        process.kill()
        process.join()
        there = len(ObjectStore(output).sizes(f"versions/{B}"))
        assert 20 <= there < MANY
    assert told(stored(read_current(output).image)) == A
    assert sent(publication, monkeypatch) <= MANY + 6 - there
    assert read_current(output).fingerprint == B
    assert stored(read_current(output).image) == files_of(publication.image(B))


def test_wrong_keys_are_told(publication, output, monkeypatch):
    """A signature is checked here: whoever has no right reads and writes nothing, and is told why."""
    make_version(publication, A)
    publication.publish(A, {})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    stranger = open_publication(output, NAME, str(publication.folder.parent))
    for refused in (
        lambda: read_current(output),
        lambda: open_volume(output),
        lambda: stranger.publish(A, {}),
        stranger.versions,
    ):
        with pytest.raises(StorageError, match=r"the store refuses it \(.*AWS_SECRET_ACCESS_KEY"):
            refused()


def whole_run(run) -> None:
    """Plan, infer and verify, by workers of its own, which find the store by the environment."""
    stages.plan(run.now)
    stages.infer(run.now)
    stages.verify(run.now)


def test_a_run_from_a_store_to_a_store_has_the_bytes_of_a_run_on_disk(bucket, output, tmp_path):
    """Where the input lies is no part of the plan; what is published is what was computed."""
    keys = {"tiles": {"core": [16, 32, 32]}, "cluster": {"workers": 1, "memory_gb": 2}}
    run = make_run(tmp_path, architecture=Architecture(3, 2, 8), shape=(24, 40, 40), **keys)
    whole_run(run)
    s3().put(str(tmp_path / "input.zarr"), f"{bucket}/input.zarr", recursive=True)
    publication = open_publication(output, NAME, str(tmp_path / "staging"))
    image = publication.image(run.plan.fingerprint)
    far = run.having(input={"url": f"{bucket}/input.zarr"}, output={"url": str(image)})
    whole_run(far)
    assert far.plan.fingerprint == run.plan.fingerprint
    assert stored_objects(far.output) == stored_objects(run.output)

    publication.publish(far.plan.fingerprint, {})
    volume = open_volume(read_current(output).image)
    np.testing.assert_array_equal(volume.read(Box.of_shape(volume.shape)).squeeze(), run.array())


def test_a_server_that_is_killed_in_mid_upload_costs_no_version(publication, output, tmp_path, gateway, monkeypatch):
    """Down for good: a clear error within seconds. Down for a moment: the upload goes on, or the next one does.

    The last of this file: for half a minute after, the gateway waits for its predecessor whenever a bucket is made.
    """
    make_version(publication, A)
    publication.publish(A, {})
    with mid_upload(publication, output, tmp_path) as process:
        process.kill()
        process.join()
        gateway("kill")
        try:
            began = time.monotonic()
            with pytest.raises(
                StorageError, match=r"could not be published: the store cannot be reached.*AWS_ENDPOINT_URL"
            ):
                publication.publish(B, {})
            assert time.monotonic() - began < 30
        finally:
            gateway("start")
    assert told(stored(read_current(output).image)) == A

    other = ObjectStore(f"{output}/versions/{B}")
    uploader = threading.Thread(target=lambda: failing(publication))
    before = len(other.sizes())
    uploader.start()
    wait_until(lambda: len(other.sizes()) >= before + 20)
    gateway("kill")
    gateway("start")
    uploader.join()
    sent(publication, monkeypatch)
    assert stored(read_current(output).image) == files_of(publication.image(B))


def failing(publication) -> None:
    """Publish B, under a server that may go away: a clear error is one way to end."""
    try:
        publication.publish(B, {})
    except StorageError as error:
        assert "the store cannot be reached" in str(error)  # noqa: PT017 - both ways are right

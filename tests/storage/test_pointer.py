"""Publishing on an object store: uploaded, read back, and only then named."""

import json
import re
import shutil
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.core.versions import Keep
from pipeline.errors import BusyError, StorageError
from pipeline.outputs.rundir import RunDirectory
from pipeline.places.objects import ObjectStore
from pipeline.publishing.by_pointer import POINTER
from pipeline.publishing.publication import open_publication, read_current
from tests.storage.publishing_cases import NAME, OBJECTS, files_of, fingerprint, make_version, told

A, B, C = (fingerprint(n) for n in (1, 2, 3))


@pytest.fixture(params=["s3", "memory"])
def output(request) -> str:
    """Where one volume of a dataset is published: a server's store, and one of fsspec's that needs none."""
    if request.param == "memory":
        return f"memory://{re.sub('[^a-z]', '', request.node.name)}/em/{NAME}"
    return f"{request.getfixturevalue('bucket')}/em/{NAME}"


@pytest.fixture
def publication(output, tmp_path):
    """Of that volume."""
    return open_publication(output, NAME, str(tmp_path / "staging"))


@pytest.fixture
def store(output):
    """What lies there."""
    return ObjectStore(output)


def published(publication, *versions):
    """Make and publish versions, in this order."""
    for version in versions:
        make_version(publication, version)
        publication.publish(version, {"model": f"of {version[-1]}"})


def stored(image: str) -> dict[str, bytes]:
    """Every object of an image, by its key in it."""
    store = ObjectStore(image)
    return {key: store.read(key) for key in store.sizes()}


def kept(store: ObjectStore) -> set[str]:
    """Versions of which the store has anything."""
    return {key.split("/")[1] for key in store.sizes("versions")}


@pytest.fixture
def requests(monkeypatch):
    """What is asked of stores, in order: verb and key."""
    asked = []

    def noting(verb, key_of):
        real = getattr(ObjectStore, verb)

        def noted(self, *arguments):
            asked.append((verb, key_of(*arguments)))
            return real(self, *arguments)

        monkeypatch.setattr(ObjectStore, verb, noted)

    noting("send", lambda _, key: key)
    noting("write", lambda key, _: key)
    noting("delete", lambda key: key)
    return asked


# --- what readers see ----------------------------------------------------------------------------------------------------


def test_a_version_is_uploaded_whole_and_named_by_the_pointer(publication, output, store):
    """The image as it was computed, with what its run says of it; and one small object that leads there."""
    assert publication.current() is None
    with pytest.raises(StorageError, match="Nothing is published at"):
        read_current(output)
    published(publication, A)
    found = read_current(output)
    assert found == publication.current()
    assert (found.fingerprint, found.image) == (A, f"{output}/versions/{A}/{NAME}.ome.zarr")
    assert found.about == {"model": "of 1"}
    assert stored(found.image) == files_of(publication.image(A))
    pointer = json.loads(store.read("current.json"))
    assert pointer["image"] == f"versions/{A}/{NAME}.ome.zarr"
    assert store.read(f"versions/{A}/published.json") == store.read("current.json")
    run = stored(f"{found.image}.run")
    assert set(run) == {"plan.json", "ledger.jsonl", "verification.json"}


def test_the_groups_metadata_go_last_but_for_the_pointer(publication, requests):
    """A reader of OME-Zarr that lists the store finds no image before all of it is there; nobody is sent to it before that."""
    published(publication, A)
    sent = [key for verb, key in requests if verb in ("send", "write")]
    assert sent[-3:] == [f"versions/{A}/published.json", f"versions/{A}/{NAME}.ome.zarr/zarr.json", "current.json"]
    assert len(sent) == OBJECTS + 7


def test_an_upload_that_was_killed_goes_on(publication, output, store, requests):
    """What is there with the right bytes is not sent again; what is torn or wrong is."""
    make_version(publication, A)
    prefix = f"versions/{A}/{NAME}.ome.zarr"
    files = files_of(publication.image(A))
    for n in range(8):
        store.write(f"{prefix}/0/c/{n}", files[f"0/c/{n}"])
    store.write(f"{prefix}/0/c/6", files["0/c/6"][:-1])
    store.write(f"{prefix}/0/c/7", files["0/c/7"].replace(b".", b","))
    store.write(f"{prefix}/0/c/stranger", b"of another run")
    requests.clear()
    publication.publish(A, {})
    sent = Counter(key.removeprefix(f"{prefix}/") for verb, key in requests if verb == "send" and "ome.zarr/0" in key)
    assert sent == Counter([f"0/c/{n}" for n in range(6, OBJECTS)] + ["0/zarr.json"])
    assert stored(read_current(output).image) == files


def test_a_version_whose_publisher_was_killed_before_the_pointer_may_be_begun_anew(
    publication, output, store, monkeypatch, tmp_path
):
    """All of it is in the store, but nobody was ever sent there; where the pointer was written, somebody was."""
    make_version(publication, A)
    write = ObjectStore.write

    def killed(self: ObjectStore, key: str, content: bytes) -> None:
        if key == POINTER:
            raise KeyboardInterrupt
        write(self, key, content)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            publication.publish(A, {})
    again = open_publication(output, NAME, str(tmp_path / "staging"))
    again.discard(A)
    assert kept(store) == set()
    published(again, A, B)
    for version in (A, B):
        with pytest.raises(StorageError, match="published once"):
            again.discard(version)


def test_publishing_again_sends_nothing_and_mends_what_is_damaged(publication, output, store, requests):
    """A rerun after a look at the store; the pointer stays as it is."""
    published(publication, A)
    first = publication.current()
    requests.clear()
    assert publication.publish(A, {"model": "another word"}) == first
    assert [pair for pair in requests if pair[0] != "delete"] == []
    store.write(f"versions/{A}/{NAME}.ome.zarr/0/c/3", b"damaged")
    requests.clear()
    publication.publish(A, {})
    assert [pair for pair in requests if pair[0] != "delete"] == [("send", f"versions/{A}/{NAME}.ome.zarr/0/c/3")]
    assert told(stored(read_current(output).image)) == A


def test_a_store_that_garbles_what_it_is_given_is_found_out_before_readers_are_sent_there(
    publication, output, monkeypatch
):
    """The negative control of reading back: bytes that change on their way, or lie."""
    published(publication, A)
    make_version(publication, B)
    real = ObjectStore.send
    monkeypatch.setattr(
        ObjectStore,
        "send",
        lambda self, path, key: (
            self.write(key, b"x" * path.stat().st_size) if key.endswith("/5") else real(self, path, key)
        ),
    )
    with pytest.raises(StorageError, match=rf"versions/{B}/.*/0/c/5' came back as other bytes than were sent"):
        publication.publish(B, {})
    assert read_current(output).fingerprint == A
    assert "zarr.json" not in stored(f"{output}/versions/{B}/{NAME}.ome.zarr")
    monkeypatch.undo()


@pytest.mark.parametrize("how", ["changed", "removed"])
def test_a_file_that_changed_after_it_was_verified_is_refused(publication, output, how):
    """The ledger vouches for what was verified; what lies here now must not reach readers under its name."""
    published(publication, A)
    chunk = make_version(publication, B) / "0/c/4"
    if how == "changed":
        chunk.write_bytes(chunk.read_bytes().replace(b".", b","))
    else:
        chunk.unlink()
    with pytest.raises(StorageError, match=r"is not what its run wrote|lacks 1 objects that its ledger vouches for"):
        publication.publish(B, {})
    assert read_current(output).fingerprint == A


def test_a_version_that_is_not_whole_is_refused(publication, output):
    """Nothing of it is sent."""
    make_version(publication, A, verified=False)
    with pytest.raises(StorageError, match="its verification found that 1 tiles lack"):
        publication.publish(A, {})
    assert ObjectStore(output).sizes() == {}


def test_a_pointer_that_cannot_be_understood_is_refused(publication, output, store):
    """Somebody's own current.json, or that of a newer version, or one that leads out of the output."""
    for content in (
        b"{",
        b"{}",
        b'{"format": 2}',
        json.dumps({"format": 1, "fingerprint": A, "image": "../x"}).encode(),
    ):
        store.write("current.json", content)
        with pytest.raises(StorageError, match=r"current.json' does not say what is published"):
            read_current(output)


# --- versions, old and new -------------------------------------------------------------------------------------------------


def test_versions_are_told_from_here_and_from_the_store(publication, store):
    """One that was published, from a machine whose staging folder is gone; one that is being computed; one half uploaded."""
    published(publication, A)
    shutil.rmtree(publication.image(A).parent)
    make_version(publication, B)
    store.write(f"versions/{C}/{NAME}.ome.zarr/0/c/0", b"half")
    found = {version.fingerprint: version.published is not None for version in publication.versions()}
    assert found == {A: True, B: False, C: False}
    assert all(v.begun.tzinfo for v in publication.versions())


def test_old_versions_go_here_and_in_the_store(publication, output, store):
    """By the same rule as on a file system; the current one never goes."""
    published(publication, A, B, C)
    now = datetime.now(UTC)
    assert publication.expire(Keep(2, 0), now) == []
    assert publication.expire(Keep(0, 1), now) == []
    with RunDirectory(publication.image(A)).driver():
        assert publication.expire(Keep(0, 0), now, spare={B}) == []
    assert publication.expire(Keep(1, 0), now) == [A]
    assert publication.expire(Keep(0, 1), now + timedelta(days=2)) == [B]
    assert kept(store) == {C}
    assert [v.fingerprint for v in publication.versions()] == [C]
    assert not publication.image(B).parent.exists()
    assert told(stored(read_current(output).image)) == C


def test_a_version_that_was_shown_again_counts_from_then(publication, store, monkeypatch):
    """Its readers were sent away when the one after that was published: they have all the days that the rule gives them."""
    day = timedelta(days=1)
    begun = datetime.now(UTC)

    def publish_on(number: int, version: str) -> list[str]:
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return begun + number * day

        monkeypatch.setattr("pipeline.publishing.by_pointer.datetime", Clock)
        if not publication.is_kept(version):
            make_version(publication, version)
        publication.publish(version, {})
        publication.free(version)
        return publication.expire(Keep(1, 7), begun + number * day)

    assert [publish_on(0, A), publish_on(1, B), publish_on(30, A)] == [[], [], []]
    assert store.read(f"versions/{A}/published.json") == store.read("current.json")
    assert publish_on(31, C) == []
    assert publication.expire(Keep(0, 7), begun + 37 * day) == [B]
    assert publication.expire(Keep(0, 7), begun + 37.9 * day) == []
    assert publication.expire(Keep(0, 7), begun + 38 * day) == [A]
    assert kept(store) == {C}


def test_a_removal_that_was_killed_leaves_no_image_and_is_finished_by_the_next(
    publication, store, monkeypatch, requests
):
    """The mark first, then the group's metadata: from then on it is no version for anybody."""
    published(publication, A, B)
    requests.clear()
    real, deleted = ObjectStore.delete, []

    def dies(self, key):
        if len(deleted) == 5:
            raise KeyboardInterrupt
        deleted.append(key)
        real(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "delete", dies)
        with pytest.raises(KeyboardInterrupt):
            publication.expire(Keep(0, 0), datetime.now(UTC))
    assert requests[0] == ("write", f"versions/{A}/.gone")
    assert deleted[0] == f"versions/{A}/{NAME}.ome.zarr/zarr.json"
    assert not publication.image(A).parent.exists()
    assert [v.fingerprint for v in publication.versions()] == [B]
    assert publication.expire(Keep(9, 9), datetime.now(UTC)) == []
    assert kept(store) == {B}


@pytest.mark.parametrize("step", ["ObjectStore.write", "ObjectStore.delete", "shutil.rmtree"])
def test_a_removal_that_was_killed_at_any_step_leaves_no_run_without_its_image(publication, store, monkeypatch, step):
    """A ledger that says that tiles are done which are nowhere would fail every rerun of a model that is set back."""
    published(publication, A, B)
    publication.free(A)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"pipeline.places.objects.{step}" if "Store" in step else step, dies)
        with pytest.raises(KeyboardInterrupt):
            publication.expire(Keep(0, 0), datetime.now(UTC))
    directory = RunDirectory(publication.image(A)).path
    assert not directory.exists()
    publication.recall(A)
    is_there = step == "ObjectStore.write"  # it was not begun in the store
    assert directory.exists() == publication.is_kept(A) == is_there
    assert publication.expire(Keep(0, 0), datetime.now(UTC)) == ([A] if is_there else [])
    assert [v.fingerprint for v in publication.versions()] == [B]
    assert kept(store) == {B}
    assert not list(publication.folder.glob("versions/.gone-*"))


def test_what_is_to_go_is_seen_without_asking_the_store(publication, monkeypatch):
    """Thousands of volumes that are done are looked at each time."""
    published(publication, A, B)
    for version in (A, B):
        publication.free(version)
    now = datetime.now(UTC)
    with monkeypatch.context() as patch:
        patch.setattr(publication, "_store", None)
        assert publication.is_tidy(B, Keep(1, 0), now)
        assert not publication.is_tidy(B, Keep(0, 0), now)
        publication.image(B).mkdir()
        assert not publication.is_tidy(B, Keep(1, 0), now)
        publication.free(B)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "delete", dies)
        with pytest.raises(KeyboardInterrupt):
            publication.expire(Keep(0, 0), now)
    assert not publication.is_tidy(B, Keep(9, 9), now)  # what is left in the store alone
    publication.expire(Keep(9, 9), now)
    assert publication.is_tidy(B, Keep(0, 0), now)


def test_what_a_killed_removal_left_here_goes_with_what_it_left_in_the_store(publication, store):
    """A run directory whose image is nowhere any more; not a version that is computed anew."""
    published(publication, A, B, C)
    publication.free(A)
    for version in (A, B):
        store.write(f"versions/{version}/.gone", b"")
    assert publication.expire(Keep(9, 9), datetime.now(UTC)) == []
    assert kept(store) == {C}
    assert not publication.image(A).parent.exists()
    assert publication.image(B).is_dir()


@pytest.mark.parametrize("left", [(), ("published.json",)])
def test_a_version_that_somebody_deleted_may_be_made_again(publication, output, store, left):
    """Also where an upload of it was killed near its end: what is not whole in the store is not current for who writes."""
    published(publication, A)
    first = read_current(output)
    for key in store.sizes(f"versions/{A}"):
        if not key.endswith(left or "none"):
            store.delete(key)
    assert publication.current() is None
    shutil.rmtree(publication.image(A).parent)
    published(publication, A)
    assert publication.current() == read_current(output)
    assert publication.current().published > first.published
    assert told(stored(read_current(output).image)) == A


def test_an_upload_that_was_killed_and_lost_its_staging_folder_is_neither_kept_nor_recalled(publication, store):
    """Its ledger and its record are there; its metadata, which go last, are not."""
    published(publication, A)
    store.delete(f"versions/{A}/{NAME}.ome.zarr/zarr.json")
    shutil.rmtree(publication.image(A).parent)
    publication.recall(A)
    assert not RunDirectory(publication.image(A)).path.exists()
    assert not publication.is_kept(A)


def test_a_version_whose_removal_was_killed_may_be_published_again(publication, output, store):
    """A model that comes back has the same fingerprint, and takes up what is left."""
    published(publication, A, B)
    store.write(f"versions/{A}/.gone", b"")
    store.delete(f"versions/{A}/{NAME}.ome.zarr/zarr.json")
    store.delete(f"versions/{A}/{NAME}.ome.zarr/0/c/2")
    publication.publish(A, {})
    assert told(stored(read_current(output).image)) == A
    assert publication.expire(Keep(9, 9), datetime.now(UTC)) == []
    assert [v.fingerprint for v in publication.versions()] == [A, B]


def test_one_writer_a_volume_by_a_lock_in_the_staging_folder(publication, output, tmp_path):
    """Object stores have no locks that end with their process."""
    other = open_publication(output, NAME, str(tmp_path / "staging"))
    make_version(publication, A)
    with publication.exclusive():
        publication.publish(A, {})
        with pytest.raises(BusyError, match="is being written by another"):
            other.publish(A, {})
        assert other.current().fingerprint == A


def test_a_bucket_that_is_not_there_is_told(s3_environment, tmp_path):
    """Nothing makes buckets: they cost, and belong to somebody."""
    publication = open_publication(f"s3://no-such-bucket-here/{NAME}", NAME, str(tmp_path))
    make_version(publication, A)
    with pytest.raises(StorageError, match="could not be published: there is no bucket 'no-such-bucket-here'"):
        publication.publish(A, {})
    with pytest.raises(StorageError, match="there is no bucket 'no-such-bucket-here'"):
        publication.expire(Keep(), datetime.now(UTC))

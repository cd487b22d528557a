"""Publishing on a file system: what readers see is always one whole version."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from flows.commands.app import app
from flows.commands.status import DONE, REFUSED, status
from pipeline import stages
from pipeline.core.network.unet import Architecture
from pipeline.core.versions import Keep
from pipeline.errors import BusyError, StorageError
from pipeline.outputs.rundir import RunDirectory
from pipeline.publishing.publication import open_publication, read_current
from pipeline.publishing.version_folder import VersionFolder
from tests.pipeline_cases import fill_up, make_run, mounted
from tests.storage.publishing_cases import (
    NAME,
    files_of,
    fingerprint,
    make_version,
    moments,
    publish_by_link,
    publish_in_place,
    publishing,
    reading,
    told,
)

A, B, C = (fingerprint(n) for n in (1, 2, 3))


@pytest.fixture
def output(tmp_path) -> Path:
    """Where one volume of a dataset is published."""
    return tmp_path / "dataset" / NAME


@pytest.fixture
def shared_memory(tmp_path) -> Iterator[Path]:
    """The same in memory, where this machine has such a file system: a thousand flushes of a busy disk take a minute."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder) / NAME


@pytest.fixture
def publication(output):
    """Of that volume."""
    return open_publication(str(output), NAME)


def published(publication, *versions):
    """Make and publish versions, in this order."""
    for version in versions:
        make_version(publication, version)
        publication.publish(version, {"model": f"of {version[-1]}"})


# --- versions that nobody saw --------------------------------------------------------------------------------------------


class KilledError(BaseException):
    """In the place of a kill."""


@pytest.mark.parametrize("before", [[], [B]], ids=["the first one", "a later one"])
@pytest.mark.parametrize("step", ["write_record", "make_durable", "_switch"])
def test_a_version_whose_publisher_was_killed_before_the_switch_may_be_begun_anew(
    publication, output, monkeypatch, before, step
):
    """No reader was ever sent there; it was refused for ever as published once, where its input had been touched since."""
    published(publication, *before)
    make_version(publication, A)

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(type(publication) if step == "_switch" else VersionFolder, step, killed)
        with pytest.raises(KilledError):
            publication.publish(A, {})
    again = open_publication(str(output), NAME)
    again.discard(A)
    assert not again.image(A).exists()
    published(again, A)
    assert again.current().fingerprint == A


def test_a_version_that_readers_were_sent_to_is_kept_whenever_its_publisher_was_killed(
    publication, output, monkeypatch
):
    """The negative control: the current one, whether the publisher came to say so or not, and one that was current."""
    make_version(publication, A)

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(VersionFolder, "shown", killed)
        with pytest.raises(KilledError):
            publication.publish(A, {})
    again = open_publication(str(output), NAME)
    assert again.current().fingerprint == A
    with pytest.raises(StorageError, match="published once"):
        again.discard(A)
    published(again, B)
    for version in (A, B):
        with pytest.raises(StorageError, match="published once"):
            again.discard(version)


# --- what readers see ----------------------------------------------------------------------------------------------------


def test_nothing_is_current_until_something_is_published(publication, output):
    """Readers are told that there is nothing yet, instead of being sent to half of it."""
    make_version(publication, A)
    assert publication.current() is None
    with pytest.raises(StorageError, match=r"Nothing is published at '.*brain'"):
        read_current(str(output))
    with pytest.raises(StorageError, match="Nothing is published"):
        read_current(str(output / "gone"))


def test_readers_are_sent_to_what_was_published_last(publication, output):
    """The link is relative, so that a dataset may be moved or mounted elsewhere."""
    published(publication, A, B)
    assert (output / "current").readlink() == Path(f"versions/{B}/{NAME}.ome.zarr")
    found = read_current(str(output))
    assert found == publication.current()
    assert (found.fingerprint, found.image, found.about) == (B, str(publication.image(B)), {"model": "of 2"})
    assert abs(found.published - datetime.now(UTC)) < timedelta(minutes=1)
    moved = output.parent.rename(output.parent.with_name("moved")) / NAME
    assert read_current(f"file://{moved}").image == str(moved / f"versions/{B}/{NAME}.ome.zarr")


def test_publishing_again_changes_nothing_and_going_back_is_publishing(publication, output):
    """A rerun publishes what is current already; a bad model is taken back by publishing the version before."""
    published(publication, A)
    first = publication.current()
    assert publication.publish(A, {"model": "another word"}) == first == publication.current()
    published(publication, B)
    assert publication.publish(A, {}).published > first.published
    assert publication.current().fingerprint == A
    assert [v.fingerprint for v in publication.versions()] == [A, B]
    assert all(v.begun <= v.published for v in publication.versions())


def test_a_real_run_is_published_and_read_by_its_current_link(tmp_path, output):
    """The versions' layout is that of a run: its commands work on a version, and its image opens through `current`."""
    run = make_run(tmp_path, architecture=Architecture(3, 1, 4), shape=(8, 16, 16))
    plan = stages.plan(run.now)
    publication = open_publication(str(output), NAME)
    run = run.having(output={"url": str(publication.image(plan.fingerprint))})
    shutil.rmtree(tmp_path / "output.zarr.run")
    stages.plan(run.now)
    with pytest.raises(StorageError, match=r"cannot be published: .* is no output of a run"):
        publication.publish(plan.fingerprint, {})
    stages.infer(run.now)
    with pytest.raises(StorageError, match="cannot be published: it was not verified"):
        publication.publish(plan.fingerprint, {})
    stages.verify(run.now)
    publication.publish(plan.fingerprint, {})
    assert RunDirectory(output / "current").path == run.directory.path
    assert files_of(output / "current") == files_of(run.output)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"state": "incomplete"}, "is incomplete"),
        ({"verified": False}, "its verification found that 1 tiles lack"),
        ({}, "says that it was made for"),
    ],
)
def test_a_version_that_is_not_whole_is_refused(publication, damage, words):
    """Readers must never be sent to a version that a verification would fail, nor to another than was named."""
    published(publication, A)
    image = make_version(publication, B, **damage)
    if not damage:
        shutil.copy(publication.image(A) / "zarr.json", image / "zarr.json")
    with pytest.raises(StorageError, match=f"Version {B} .* cannot be published: .*{words}"):
        publication.publish(B, {})
    assert publication.current().fingerprint == A


def test_a_version_that_is_not_there_or_leads_elsewhere_is_refused(publication):
    """Fingerprints become folders: none may climb out of the output."""
    with pytest.raises(StorageError, match="is no output of a run"):
        publication.publish(A, {})
    with pytest.raises(StorageError, match="is no fingerprint"):
        publication.publish("../../elsewhere", {})
    with pytest.raises(StorageError, match="cannot be the name of a volume's output"):
        open_publication("/data/x", "a/b")


@pytest.mark.parametrize("kind", ["folder", "foreign link"])
def test_something_else_in_the_place_of_the_link_is_refused(publication, output, kind):
    """Nothing is ever overwritten that publishing did not make."""
    published(publication, A)
    (output / "current").unlink()
    if kind == "folder":
        (output / "current").mkdir()
    else:
        (output / "current").symlink_to("/etc")
    make_version(publication, C)
    with pytest.raises(StorageError, match="is not a link into 'versions'"):
        publication.publish(C, {})
    with pytest.raises(StorageError):
        read_current(str(output))


@pytest.mark.parametrize("deleted", ["the version", "all versions"])
def test_a_version_that_somebody_deleted_may_be_made_again(publication, output, deleted):
    """Deleting it is how a person asks for that. Readers are told that it is gone; nothing else is removed meanwhile."""
    published(publication, A, B)
    shutil.rmtree(output / "versions" / (B if deleted == "the version" else ""))
    with pytest.raises(StorageError, match="which is not there as it was published"):
        read_current(str(output))
    assert publication.current() is None
    with pytest.raises(StorageError, match="which is not there as it was published"):
        publication.expire(Keep(0, 0), datetime.now(UTC))
    published(publication, B)
    assert told(files_of(Path(read_current(str(output)).image))) == B


def test_half_of_a_version_that_somebody_deleted_is_told_with_what_to_do(publication, output):
    """A run directory without its image says that tiles are done which are nowhere; nobody is to guess which was meant."""
    published(publication, A)
    shutil.rmtree(publication.image(A))
    make_version(publication, B)
    for refused in (publication.current, lambda: publication.publish(B, {})):
        with pytest.raises(StorageError, match=rf"delete 'versions/{A}' there and run again: it is made anew"):
            refused()
    shutil.rmtree(publication.image(A).parent)
    published(publication, A)
    assert publication.current().fingerprint == A


def test_a_record_of_another_format_is_refused(publication, output):
    """A newer version may say things that this one would misread."""
    published(publication, A)
    record = output / f"versions/{A}/published.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format": 2}))
    with pytest.raises(StorageError, match=r"does not say what is published \(ValueError: format 2\)"):
        read_current(str(output))


def test_the_command_tells_what_is_current(publication, output, capsys):
    """For people, and for scripts that need the image; nothing published is a refusal, with its status."""

    def current():
        return status(lambda: app(["current", str(output)], exit_on_error=False, result_action="return_value"))

    assert current() == REFUSED
    assert "Nothing is published at" in capsys.readouterr().err
    published(publication, A)
    assert current() == DONE
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["image"] == str(publication.image(A))
    assert rows["fingerprint"] == A
    assert datetime.fromisoformat(rows["published"]) <= datetime.now(UTC)


# --- under kills ---------------------------------------------------------------------------------------------------------


def test_readers_see_one_whole_version_through_two_hundred_switches_and_kills(shared_memory):
    """The promise of publishing: the old version or the new one, whole, at whatever moment the publisher dies."""
    output = shared_memory
    wait, kills, last = moments(), 0, 200
    with publishing(publish_by_link, output, 0, 0) as process:
        process.join()
    with reading(output) as end:
        while (number := int(read_current(str(output)).fingerprint)) < last:
            with publishing(publish_by_link, output, number + 1, last) as process:
                process.join(next(wait))
                kills += process.exitcode is None
        seen = end()
    assert seen.wrong == []
    assert kills >= 5
    assert seen.polls > 100
    assert len(seen.versions) > 20
    publication = open_publication(str(output), NAME)
    publication.expire(Keep(0, 0), datetime.now(UTC))
    assert [v.fingerprint for v in publication.versions()] == [fingerprint(last)]
    assert sorted(path.name for path in output.iterdir() if not path.name.startswith(".current-")) == [
        ".lock",
        "current",
        "versions",
    ]
    assert [path.name for path in (output / "versions").iterdir()] == [fingerprint(last)]


def test_a_publisher_that_copies_over_the_old_files_is_caught_by_the_same_reader(shared_memory):
    """The negative control: the reader above would see a mixed version if there were one."""
    output = shared_memory
    publish_in_place(output, 0, 0)
    with reading(output) as end, publishing(publish_in_place, output, 1, 200) as process:
        process.join()
        assert process.exitcode == 0
        seen = end()
    assert seen.wrong


def test_what_a_killed_publisher_left_is_swept(publication, output):
    """Links that were made and not yet moved, and versions that were renamed and not yet removed."""
    published(publication, A)
    (output / ".current-0123").symlink_to("versions/nowhere")
    (output / "versions/.gone-old-0123/deep").mkdir(parents=True)
    published(publication, B)
    publication.expire(Keep(9, 9), datetime.now(UTC))
    assert {path.name for path in output.iterdir()} == {".lock", "current", "versions"}
    assert {path.name for path in (output / "versions").iterdir()} == {A, B}


# --- one writer -----------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_at_once_and_may_tell_busy_from_broken(publication, output):
    """Two watchers find one volume: the second leaves it to the first."""
    other = open_publication(str(output), NAME)
    make_version(publication, A)
    with publication.exclusive(), publication.exclusive():
        publication.publish(A, {})  # the one who holds it
        for refused in (
            other.exclusive().__enter__,
            lambda: other.publish(A, {}),
            lambda: other.expire(Keep(), datetime.now(UTC)),
        ):
            with pytest.raises(BusyError, match=rf"is being written by another \(process {os.getpid()} on "):
                refused()
        assert other.current().fingerprint == A  # readers need no lock
    with other.exclusive():
        pass


def test_the_lock_ends_with_its_process(output):
    """A publisher that was killed must not keep the next one off."""
    script = (
        "import sys, time; from pipeline.publishing.publication import open_publication\n"
        f"with open_publication({str(output)!r}, {NAME!r}).exclusive(): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        publication = open_publication(str(output), NAME)
        with pytest.raises(BusyError, match=f"process {process.pid} on "):
            publication.exclusive().__enter__()
        process.kill()
    with publication.exclusive():
        pass


# --- old versions ---------------------------------------------------------------------------------------------------------


def test_old_versions_go_by_the_rule_and_the_current_one_never(publication):
    """What is current stays also where it is the oldest; what a run writes to, and what is spared, stays too."""
    published(publication, A, B, C)
    publication.publish(A, {})
    now = datetime.now(UTC)
    assert publication.expire(Keep(0, 1), now) == []
    assert publication.expire(Keep(2, 0), now) == []
    with RunDirectory(publication.image(B)).driver():
        assert publication.expire(Keep(0, 0), now, spare={C}) == []
    assert publication.expire(Keep(1, 0), now) == [B]
    assert publication.expire(Keep(0, 1), now + timedelta(days=2)) == [C]
    assert [v.fingerprint for v in publication.versions()] == [A]
    assert told(files_of(publication.image(A))) == A


def test_folders_that_are_no_versions_are_left_alone(publication, output):
    """Somebody's notes between the versions are theirs."""
    published(publication, A)
    (output / "versions/notes").mkdir()
    (output / "versions/notes/x.txt").write_text("mine")
    assert publication.expire(Keep(0, 0), datetime.now(UTC)) == []
    assert (output / "versions/notes/x.txt").is_file()


# --- full disks ------------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_version_current_and_room_mends_it(tmp_path):
    """The disk of a dataset fills up sooner or later, and readers must not notice."""
    with mounted(tmp_path / "disk", "-o", "size=1m"):
        publication = open_publication(str(tmp_path / "disk" / NAME), NAME)
        published(publication, A)
        make_version(publication, B)
        filler = fill_up(tmp_path / "disk")
        with pytest.raises(
            StorageError, match=r"could not be published: .*No space left.*What readers see\s+has not changed"
        ):
            publication.publish(B, {})
        assert told(files_of(Path(read_current(publication.output).image))) == A
        filler.unlink()
        publication.publish(B, {})
        assert told(files_of(Path(read_current(publication.output).image))) == B


def test_a_file_system_without_room_for_a_name_is_told_with_what_readers_see(tmp_path):
    """No inode is left for the new link: the old one stands."""
    with mounted(tmp_path / "disk", "-o", "nr_inodes=60"):
        publication = open_publication(str(tmp_path / "disk" / NAME), NAME)
        published(publication, A)
        make_version(publication, B)
        publication.publish(B, {})
        publication.publish(A, {})  # all records and locks are there now; only the link is new
        left = [tmp_path / "disk" / str(n) for n in range(os.statvfs(tmp_path / "disk").f_ffree)]
        for path in left:
            path.touch()
        with pytest.raises(StorageError, match=r"could not be published.*No space left"):
            publication.publish(B, {})
        assert read_current(publication.output).fingerprint == A
        for path in left:
            path.unlink()
        assert publication.publish(B, {}).fingerprint == B

"""Inboxes: what is still being written is never called complete, whoever looks, and what is complete is said so once it is quiet."""

import fcntl
import json
import os
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import fsspec
import pytest

from pipeline.core.volume import Selection
from pipeline.dataset import inbox as inbox_module
from pipeline.dataset import observations as observations_module
from pipeline.dataset.inbox import Inbox, since_boot
from pipeline.errors import ConfigError, StorageError
from pipeline.places.objects import ObjectStore
from tests.dataset.catalogue_cases import fill, make_hdf5, make_image, make_plate, make_tiff
from tests.e2e.commands import wait_until

UPLOAD = Path(__file__).with_name("upload.py")
QUIET = 10.0

_processes = get_context("spawn")


@pytest.fixture
def place(tmp_path):
    """An inbox that is there, and empty."""
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


@pytest.fixture
def quiet(place, tmp_path):
    """That inbox, with ten seconds of quiet."""
    return Inbox(str(place), tmp_path / "seen.json", quiet_seconds=QUIET)


def states(inbox: Inbox, now: float | None = None) -> dict[str, str]:
    """State by name, at one look."""
    return {arrival.entry.name: arrival.state for arrival in inbox.look(now)}


# --- quiet --------------------------------------------------------------------------------------------------------------


def test_a_volume_is_complete_when_nothing_changed_for_long_enough(quiet, place):
    """Of each kind: an image, a file, a dataset in one, a field of a plate."""
    assert quiet.look(0) == []
    make_image(place / "a.ome.zarr")
    make_tiff(place / "b.tif")
    make_hdf5(place / "c.h5", "raw")
    make_plate(place / "p.zarr", {"A/1": ["0"]})
    (first, *others) = quiet.look(1)
    assert (first.entry.name, first.state, first.seconds_left, len(others)) == ("a", "growing", 10, 3)
    assert states(quiet, 10.9) == dict.fromkeys(("a", "b", "c-raw", "p-A-1-0"), "growing")
    assert quiet.look(10.9)[0].seconds_left == pytest.approx(0.1)
    assert states(quiet, 11) == dict.fromkeys(("a", "b", "c-raw", "p-A-1-0"), "complete")
    assert quiet.look(11)[0].signature == first.signature


@pytest.mark.parametrize("change", ["grow", "add", "remove", "same size, old times", "rename"])
def test_any_change_of_its_files_starts_the_wait_anew(quiet, place, change):
    """Also the one that leaves size and times of change as they were: tools that copy set them back."""
    image = make_image(place / "a.zarr")
    chunk = next(path for path in (image / "0").rglob("*") if path.is_file() and "c" in path.parts)
    states(quiet, 0)
    before = chunk.stat()
    if change == "grow":
        chunk.write_bytes(chunk.read_bytes() + b"x")
    elif change == "add":
        (image / "0/c/.x.part").write_bytes(b"")
    elif change == "remove":
        chunk.unlink()
    elif change == "rename":
        chunk.rename(chunk.with_name("7"))
    else:
        content = bytearray(chunk.read_bytes())
        content[-1] ^= 1
        chunk.write_bytes(content)
        os.utime(chunk, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (chunk.stat().st_size, chunk.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert states(quiet, 15) == {"a": "growing"}
    assert states(quiet, 24.9) == {"a": "growing"}
    assert states(quiet, 25) == {"a": "complete"}


def test_a_link_that_leads_round_is_left_out_and_keeps_nothing_waiting(quiet, place):
    """Whoever uploads may leave one; the others are to be done."""
    make_image(place / "a.ome.zarr")
    (place / "loop.zarr").symlink_to("loop.zarr")
    (place / "a.ome.zarr" / "0" / "loop").symlink_to("loop")
    assert states(quiet, 0) == {"a": "growing"}
    assert states(quiet, 10) == {"a": "complete"}
    assert [(one.url, one.why) for one in quiet.left_out] == [
        (f"{place}/loop.zarr", "a symbolic link that leads round in a circle")
    ]


def test_old_times_of_files_mean_nothing(quiet, place):
    """A copy from an archive is years old by its files, and not there yet."""
    image = make_image(place / "a.zarr")
    for path in image.rglob("*"):
        os.utime(path, (1e9, 1e9))
    assert states(quiet, time.time()) == {"a": "growing"}


def test_reading_a_volume_is_no_change(quiet, place):
    """Another program that looks at it, this one too, does not make it wait for ever."""
    image = make_image(place / "a.zarr")
    for now in (0, 5, 10):
        found = states(quiet, now)
        (image / "zarr.json").read_bytes()
    assert found == {"a": "complete"}


def test_what_cannot_be_opened_is_unreadable_until_it_can(quiet, place):
    """An upload that stopped half way: named, and looked at again."""
    image = make_image(place / "a.zarr")
    whole = (image / "0/zarr.json").read_text()
    (image / "0/zarr.json").unlink()
    states(quiet, 0)
    (found,) = quiet.look(10)
    assert (found.state, found.seconds_left) == ("unreadable", None)
    assert "unchanged for 10 s, but: Level 0 of" in found.why
    (image / "0/zarr.json").write_text(whole)
    assert [states(quiet, now)["a"] for now in (11, 20, 21)] == ["growing", "growing", "complete"]


def test_a_field_that_a_plate_names_and_has_not_got_yet_is_waited_for(quiet, place):
    """The plate's own metadata often comes first."""
    plate = make_plate(place / "p.zarr", {"A/1": ["0"], "A/2": []})
    states(quiet, 0)
    found = {arrival.entry.name: arrival for arrival in quiet.look(10)}
    assert {name: arrival.state for name, arrival in found.items()} == {"p-A-1-0": "complete", "p-A-2": "unreadable"}
    assert "there is nothing there" in found["p-A-2"].why
    make_plate(plate.with_name("q.zarr"), {"A/2": ["0"]})
    (plate.with_name("q.zarr") / "A/2").rename(plate / "A/2")
    assert states(quiet, 11)["p-A-2-0"] == "growing"


def test_an_axes_or_level_of_its_own_opens_a_volume(place, tmp_path):
    """What a run would read is what is opened."""
    image = make_image(place / "a.zarr")
    for said, state in (({}, "complete"), ({"level": 1}, "unreadable"), ({"axes": "cyx"}, "complete")):
        inbox = Inbox([{"url": str(image), **said}], tmp_path / "seen.json", quiet_seconds=10)
        inbox.look(0)
        assert [arrival.state for arrival in inbox.look(100)] == [state]
    inbox = Inbox(str(place), tmp_path / "seen.json", quiet_seconds=10, selection=Selection(level=1))
    assert [arrival.state for arrival in inbox.look(100)] == ["unreadable"]


def test_what_is_done_is_not_listed_again(quiet, place, monkeypatch):
    """A volume of a million chunks takes a minute to list."""
    one, other = make_image(place / "a.zarr"), make_image(place / "b.zarr")
    states(quiet, 0)
    listed = []
    signature_of = inbox_module.signature_of
    monkeypatch.setattr(inbox_module, "signature_of", lambda url: listed.append(url) or signature_of(url))
    assert [arrival.entry.name for arrival in quiet.look(10, done={str(one)})] == ["b"]
    assert listed == [str(other)]
    assert states(quiet, 11) == {"a": "complete", "b": "complete"}


def test_what_is_left_out_is_told(quiet, place):
    """A file that the watcher will never take up."""
    (place / "note.txt").write_text("x")
    quiet.look(0)
    assert [(Path(one.url).name, one.why) for one in quiet.left_out] == [("note.txt", "no file that a run reads")]


# --- real uploads -------------------------------------------------------------------------------------------------------


class Upload:
    """An upload by another process, which pauses at every half of a file."""

    def __init__(self, image: Path, target: Path) -> None:
        command = [sys.executable, str(UPLOAD), str(image), str(target)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pause = self._heard()

    def go_on(self) -> None:
        """Up to the next pause, or the end: then `pause` is empty."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.pause = self._heard()

    def _heard(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def watch(source: str, seen: str, clock, looks, found) -> None:
    """A watcher: looks by the clock until that is negative, and tells each volume that it finds complete, and when."""
    watcher = Inbox(source, Path(seen), quiet_seconds=QUIET)
    told = set()
    while (now := clock.value) >= 0:
        for arrival in watcher.look(now):
            if arrival.state == "complete" and arrival.entry.name not in told:
                told.add(arrival.entry.name)
                found.put((os.getpid(), arrival.entry.name, now))
        looks.value += 1


@pytest.mark.slow
def test_two_watchers_find_a_growing_volume_only_when_it_is_whole(place, tmp_path):
    """Another process uploads with pauses and old times; both watchers share what they saw, and neither is early."""
    image = make_image(tmp_path / "image.zarr")
    clock, looks = _processes.Value("d", 0.0), [_processes.Value("l", 0) for _ in range(2)]
    found = _processes.Queue()
    watchers = [
        _processes.Process(target=watch, args=(str(place), str(tmp_path / "seen.json"), clock, count, found))
        for count in looks
    ]
    for watcher in watchers:
        watcher.start()
    upload = Upload(image, place / "image.zarr")
    pauses = 0
    try:
        while upload.pause:  # each is two thirds of the quiet time, and is looked at by both
            before = [count.value for count in looks]
            wait_until(lambda then=before: all(count.value > n + 1 for count, n in zip(looks, then, strict=True)))
            upload.go_on()
            pauses += 1
            clock.value += QUIET * 2 / 3
        whole = clock.value
        while found.empty() and clock.value < whole + 9 * QUIET:
            before = [count.value for count in looks]
            wait_until(lambda then=before: all(count.value > n + 1 for count, n in zip(looks, then, strict=True)))
            clock.value += QUIET * 2 / 3
        told = [found.get(timeout=60) for _ in watchers]
    finally:
        clock.value = -1.0
        upload.end()
        for watcher in watchers:
            watcher.join(30)
            watcher.kill()
    assert pauses == 5  # three files, in halves
    assert {pid for pid, _, _ in told} == {watcher.pid for watcher in watchers}
    assert all(name == "image" and now >= whole for _, name, now in told)


def test_a_pause_longer_than_the_quiet_time_is_taken_for_the_end(quiet, place, tmp_path):
    """The negative control, and the rule's limit, which the docs tell: no listing can tell a pause from an end."""
    upload = Upload(make_image(tmp_path / "image.zarr"), place / "image.zarr")
    try:
        now, found = 0.0, {"growing"}
        while found <= {"growing"} and upload.pause:  # until there is enough of it to be a volume
            quiet.look(now)
            found = {arrival.state for arrival in quiet.look(now + QUIET)}
            unfinished = bool(upload.pause)
            upload.go_on()
            now += 2 * QUIET
        assert found & {"complete", "unreadable"}
        assert unfinished
    finally:
        upload.end()


# --- markers ------------------------------------------------------------------------------------------------------------


def test_a_marker_alone_tells_a_volume_complete(place, tmp_path):
    """At once, whatever changes; and without it never."""
    make_image(place / "a.zarr")
    make_hdf5(place / "c.h5", "raw")
    inbox = Inbox(str(place), tmp_path / "seen.json", marker=".done")
    assert states(inbox) == states(inbox, 1e9) == {"a": "growing", "c-raw": "growing"}
    (arrival, _) = inbox.look()
    assert (arrival.seconds_left, arrival.why) == (None, f"no '{place}/a.zarr.done' yet")
    (place / "a.zarr.done").touch()
    (place / "c.h5.done").touch()
    assert states(inbox) == {"a": "complete", "c-raw": "complete"}
    assert inbox.left_out == ()
    assert not (tmp_path / "seen.json").exists()


def test_a_marker_of_a_plate_counts_for_its_fields(place, tmp_path):
    """One upload, one marker; a field may have its own."""
    plate = make_plate(place / "p.zarr", {"A/1": ["0", "1"]})
    inbox = Inbox(str(place), tmp_path / "seen.json", marker=".done")
    (plate / "A/1/1.done").touch()
    assert states(inbox) == {"p-A-1-0": "growing", "p-A-1-1": "complete"}
    (place / "p.zarr.done").touch()
    assert states(inbox) == {"p-A-1-0": "complete", "p-A-1-1": "complete"}


def test_a_marked_volume_that_cannot_be_opened_is_unreadable(place, tmp_path):
    """A marker is a promise, and promises are broken."""
    (make_image(place / "a.zarr") / "0/zarr.json").write_text("{")
    (place / "a.zarr.done").touch()
    (found,) = Inbox(str(place), tmp_path / "seen.json", marker=".done").look()
    assert found.state == "unreadable"
    assert f"'{place}/a.zarr.done' is there, but: " in found.why


def test_a_folder_that_cannot_be_listed_keeps_no_other_volume_waiting(place, tmp_path):
    """A list may name folders of many people: one that went away must not end the look for all."""
    make_image(place / "a.ome.zarr")
    (place / "a.ome.zarr.done").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    inbox = Inbox(
        [str(tmp_path / "loop" / "b.zarr"), str(place / "a.ome.zarr")], tmp_path / "seen.json", marker=".done"
    )
    assert states(inbox) == {"b": "unreadable", "a": "complete"}
    assert "could not be listed" in inbox.look()[0].why


def test_a_volume_that_nobody_foresaw_is_unreadable_and_told(quiet, place, monkeypatch):
    """Libraries raise anything about a broken file; that ends the look at this file alone."""

    def opened(url: str, *how: object) -> object:
        if "bad" in url:
            raise RuntimeError("a codec of tomorrow")
        return real(url, *how)

    real = inbox_module.open_volume
    monkeypatch.setattr(inbox_module, "open_volume", opened)
    for name in ("a", "bad"):
        make_image(place / f"{name}.ome.zarr")
    quiet.look(0)
    assert states(quiet, 100) == {"a": "complete", "bad": "unreadable"}
    assert "RuntimeError: a codec of tomorrow" in quiet.look(100)[1].why


def test_a_marker_that_is_written_again_gives_another_signature(place, tmp_path):
    """So a volume that was uploaded anew can be told from the one that was done."""
    make_image(place / "a.zarr")
    marker = place / "a.zarr.done"
    marker.touch()
    inbox = Inbox(str(place), tmp_path / "seen.json", marker=".done")
    first = inbox.look()[0].signature
    assert inbox.look()[0].signature == first
    marker.write_text("again")
    assert inbox.look()[0].signature != first


@pytest.mark.parametrize(
    ("said", "part"),
    [
        ({}, "needs one rule"),
        ({"quiet_seconds": 10, "marker": ".done"}, "needs one rule"),
        ({"quiet_seconds": 0}, "expected a time, such as 600"),
        ({"quiet_seconds": float("nan")}, "expected a time"),
        ({"marker": ""}, "expected a suffix"),
        ({"marker": "/done"}, "expected a suffix"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(tmp_path, said, part):
    """Before the first look."""
    with pytest.raises(ConfigError, match=part):
        Inbox(str(tmp_path), tmp_path / "seen.json", **said)


# --- clocks -------------------------------------------------------------------------------------------------------------


def test_the_machines_own_clock_is_the_same_for_all_its_processes():
    """A scheduled watcher is a new process each time; its looks add up, and setting the clock changes nothing."""
    before = since_boot()
    code = "from pipeline.dataset.inbox import since_boot; print(*since_boot(), sep='|')"
    name, seconds = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split("|")
    assert name == before[0]
    assert before[1] < float(seconds) < since_boot()[1] < before[1] + 60


def test_looks_of_two_machines_add_up_only_by_a_named_clock(place, tmp_path, monkeypatch):
    """By default each machine waits for itself; a named clock is somebody's word that the clocks are kept together."""
    make_image(place / "a.zarr")
    own = [Inbox(str(place), tmp_path / "own.json", quiet_seconds=10) for _ in range(2)]
    for watcher, clock, state in zip(own, [("one", 5.0), ("two", 1e6)], ["growing", "growing"], strict=True):
        monkeypatch.setattr(inbox_module, "since_boot", lambda clock=clock: clock)
        assert states(watcher) == {"a": state}
    monkeypatch.setattr(inbox_module, "since_boot", lambda: ("one", 15.0))
    assert states(own[0]) == {"a": "complete"}
    named = [Inbox(str(place), tmp_path / "named.json", quiet_seconds=10, clock="site") for _ in range(2)]
    assert [states(watcher, now)["a"] for watcher, now in zip(named, (0, 10), strict=True)] == ["growing", "complete"]


def test_a_clock_that_was_set_back_is_told(quiet, place):
    """Nothing is early; what takes long says why."""
    make_image(place / "a.zarr")
    quiet.look(1000)
    make_image(place / "b.zarr")
    found = {arrival.entry.name: arrival for arrival in quiet.look(100)}
    assert {arrival.state for arrival in found.values()} == {"growing"}
    assert found["b"].seconds_left == 910
    assert "was set back. If it is right now, delete" in found["b"].why
    assert states(quiet, 1005) == {"a": "growing", "b": "growing"}
    assert states(quiet, 1010) == {"a": "complete", "b": "complete"}


# --- what watchers share ------------------------------------------------------------------------------------------------


def test_volumes_that_are_gone_are_forgotten(quiet, place, tmp_path):
    """The file stays as small as the inbox; what comes back waits anew."""
    image = make_image(place / "a.zarr")
    make_image(place / "b.zarr")
    states(quiet, 0)
    image.rename(tmp_path / "a.zarr")
    states(quiet, 5)
    assert list(json.loads((tmp_path / "seen.json").read_text())["volumes"]) == [f"{place}/b.zarr"]
    (tmp_path / "a.zarr").rename(image)
    assert states(quiet, 10) == {"a": "growing", "b": "complete"}


def test_what_another_watcher_adds_meanwhile_is_kept(quiet, place, tmp_path, monkeypatch):
    """A look that began before a volume came knows nothing of it, and does not call it gone."""
    make_image(place / "a.zarr")
    other = Inbox(str(place), tmp_path / "seen.json", quiet_seconds=10)
    signature_of = inbox_module.signature_of

    def meanwhile(url: str) -> list:
        monkeypatch.setattr(inbox_module, "signature_of", signature_of)
        make_image(place / "b.zarr")
        other.look(0)
        return signature_of(url)

    monkeypatch.setattr(inbox_module, "signature_of", meanwhile)
    assert states(quiet, 0) == {"a": "growing"}
    assert states(quiet, 10) == {"a": "complete", "b": "complete"}


def look_often(source: str, seen: str, name: str, times: int) -> None:
    """A watcher with a clock of its own."""
    for n in range(times):
        Inbox(source, Path(seen), quiet_seconds=10, clock=name).look(float(n))


def test_watchers_at_once_lose_none_of_their_looks(place, tmp_path):
    """Each replaces the whole file: without the lock the last one would drop what the others saw."""
    for name in "abc":
        make_tiff(place / f"{name}.tif")
    seen = tmp_path / "seen.json"
    watchers = [_processes.Process(target=look_often, args=(str(place), str(seen), f"clock {n}", 40)) for n in range(3)]
    for watcher in watchers:
        watcher.start()
    for watcher in watchers:
        watcher.join(60)
        assert watcher.exitcode == 0
    content = json.loads(seen.read_text())
    assert content["clocks"] == {f"clock {n}": 39.0 for n in range(3)}
    assert {frozenset(one["since"].items()) for one in content["volumes"].values()} == {
        frozenset((f"clock {n}", 0.0) for n in range(3))
    }


def test_a_kill_leaves_a_whole_file(place, tmp_path):
    """The old one or the new one, and no lock that anybody holds."""
    for n in range(20):
        make_tiff(place / f"{n}.tif")
    seen = tmp_path / "seen.json"
    Inbox(str(place), seen, quiet_seconds=10, clock="x").look(-1)
    for wait in (0.02, 0.07, 0.13):
        watcher = _processes.Process(target=look_often, args=(str(place), str(seen), "x", 10**6))
        watcher.start()
        before = seen.stat().st_ino
        while seen.stat().st_ino == before:
            time.sleep(0.01)
        time.sleep(wait)
        watcher.kill()
        watcher.join()
        assert len(json.loads(seen.read_text())["volumes"]) == 20
        assert len(Inbox(str(place), seen, quiet_seconds=10, clock="y").look(0)) == 20


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": 2}', '{"format": 1, "clocks": {}, "volumes": {"a": {"signature": "x", "since": 3}}}'],
)
def test_observations_that_cannot_be_read_are_refused(quiet, tmp_path, text):
    """Taken for empty, they would hide that somebody else writes there."""
    (tmp_path / "seen.json").write_text(text)
    with pytest.raises(StorageError, match="Delete the file"):
        quiet.look(0)


def test_a_watcher_that_is_stopped_does_not_hold_the_others_for_ever(quiet, tmp_path, monkeypatch):
    """One that was suspended while it held the lock is named after a minute."""
    monkeypatch.setattr(observations_module, "LOCK_SECONDS", 0.1)
    with (tmp_path / "seen.json.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="Is it stopped"):
            quiet.look(0)
    assert quiet.look(0) == []


def test_observations_that_cannot_be_written_are_told(place, tmp_path):
    """A full or read-only disk is not an empty inbox."""
    (tmp_path / "file").write_text("x")
    inbox = Inbox(str(place), tmp_path / "file/seen.json", quiet_seconds=10)
    with pytest.raises(StorageError, match=r"cannot be (read|written)"):
        inbox.look(0)


# --- stores -------------------------------------------------------------------------------------------------------------


def test_an_inbox_of_a_store_is_watched_by_its_listing(tmp_path):
    """Sizes and times, or ETags, of objects."""
    system = fsspec.filesystem("memory")
    image = make_image(tmp_path / "a.zarr")
    inbox = Inbox("memory://inbox/", tmp_path / "seen.json", quiet_seconds=10)
    assert inbox.look(0) == []
    try:
        for path in image.rglob("*"):
            if path.is_file():
                system.pipe(f"/inbox/a.zarr/{path.relative_to(image)}", path.read_bytes())
        assert states(inbox, 0) == {"a": "growing"}
        system.pipe("/inbox/a.zarr/0/zarr.json", (image / "0/zarr.json").read_bytes())
        assert states(inbox, 10) == {"a": "growing"}
        assert states(inbox, 20) == {"a": "complete"}
        marked = Inbox("memory://inbox", tmp_path / "seen.json", marker=".done")
        assert states(marked) == {"a": "growing"}
        system.pipe("/inbox/a.zarr.done", b"")
        assert states(marked) == {"a": "complete"}
    finally:
        system.rm("/inbox", recursive=True)


def test_objects_of_s3_are_told_apart_by_their_etags(bucket, tmp_path):
    """Times of a store are whole seconds: an object that is replaced within one, by one of the same size, is another."""
    store = ObjectStore(f"{bucket}/inbox/a.zarr")
    fill(f"{bucket}/inbox/a.zarr", make_image(tmp_path / "a.zarr"))
    store.write("note", b"one")
    inbox = Inbox(f"{bucket}/inbox", tmp_path / "seen.json", quiet_seconds=10)
    assert states(inbox, 0) == {"a": "growing"}
    store.write("note", b"two")
    assert states(inbox, 10) == {"a": "growing"}
    assert [states(inbox, now)["a"] != "growing" for now in (19.9, 20)] == [False, True]

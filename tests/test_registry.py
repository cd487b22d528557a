import json
import multiprocessing
import os
import shutil
import signal
from hashlib import sha256
from pathlib import Path

import pytest

from pipeline import registry as module
from pipeline.errors import ModelError
from pipeline.registry import register, resolve, versions


def made(folder, content=b"weights", name="checkpoint.safetensors"):
    """A file that stands for a checkpoint: the registry reads none."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def tree(folder):
    """Every file below a folder and what it holds, but for the lock."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


# --- what is kept --------------------------------------------------------------------------------------------------------


def test_a_version_is_found_again_with_all_that_was_said(tmp_path):
    """A run months later names a model and a version, and gets these very bytes."""
    config = made(tmp_path / "run", b"{}", "config.json")
    given = register(
        tmp_path / "r", "em-1.0", made(tmp_path / "run"), metrics={"dice": 0.8}, files=[config], note="first"
    )
    found = resolve(tmp_path / "r", "em-1.0", 1)
    assert found == given
    assert (found.name, found.version, found.metrics, found.note) == ("em-1.0", 1, {"dice": 0.8}, "first")
    assert found.path == tmp_path / "r" / "em-1.0" / "1" / "checkpoint.safetensors"
    assert found.path.read_bytes() == b"weights"
    assert found.sha256_file == sha256(b"weights").hexdigest()
    assert found.registered.endswith("+00:00")
    assert json.loads((found.path.parent / "metrics.json").read_text()) == {"dice": 0.8}
    assert (found.path.parent / "config.json").read_bytes() == b"{}"


def test_the_index_is_what_the_docs_say(tmp_path):
    """Other tools read it."""
    register(tmp_path / "r", "em", made(tmp_path), metrics={"dice": 0.8}, note="n")
    index = json.loads((tmp_path / "r" / "index.json").read_text())
    assert index["format"] == 1
    (said,) = index["models"]["em"]
    assert said.pop("registered")
    assert said == {
        "version": 1,
        "checkpoint": "em/1/checkpoint.safetensors",
        "sha256_file": sha256(b"weights").hexdigest(),
        "metrics": {"dice": 0.8},
        "note": "n",
    }


def test_latest_is_the_newest_and_older_ones_stay(tmp_path):
    """A pinned version must not move when a better one comes; ten is more than nine."""
    for n in range(1, 11):
        assert register(tmp_path / "r", "em", made(tmp_path, b"%d" % n)).version == n
    assert resolve(tmp_path / "r", "em").path.read_bytes() == b"10"
    assert resolve(tmp_path / "r", "em", 9).path.read_bytes() == b"9"
    assert [entry.version for entry in versions(tmp_path / "r", "em")] == list(range(1, 11))


def test_all_models_are_listed(tmp_path):
    """By name, then by version."""
    for name, content in (("b", b"1"), ("a", b"1"), ("b", b"2")):
        register(tmp_path / "r", name, made(tmp_path, content))
    assert [(entry.name, entry.version) for entry in versions(tmp_path / "r")] == [("a", 1), ("b", 1), ("b", 2)]
    assert versions(tmp_path / "nowhere") == []


def test_the_same_bytes_are_the_same_version(tmp_path):
    """A training job that is run again registers nothing twice; another model may hold them too."""
    first = register(tmp_path / "r", "em", made(tmp_path), metrics={"dice": 0.8})
    register(tmp_path / "r", "em", made(tmp_path, b"other"))
    before = tree(tmp_path / "r")
    assert register(tmp_path / "r", "em", made(tmp_path), metrics={"dice": 0.9}) == first
    assert tree(tmp_path / "r") == before
    assert register(tmp_path / "r", "em2", made(tmp_path)).version == 1


def test_a_registry_can_be_moved(tmp_path):
    """The index names places within the registry only."""
    register(tmp_path / "r", "em", made(tmp_path))
    shutil.move(tmp_path / "r", tmp_path / "moved")
    assert resolve(tmp_path / "moved", "em").path == tmp_path / "moved" / "em" / "1" / "checkpoint.safetensors"


def test_a_path_is_absolute_whatever_was_given(tmp_path, monkeypatch):
    """Workers run elsewhere."""
    monkeypatch.chdir(tmp_path)
    register(Path("r"), "em", made(tmp_path))
    assert resolve(Path("r"), "em").path.is_absolute()


# --- several at once -----------------------------------------------------------------------------------------------------


def _register_many(folder, who, count, start):
    start.wait()
    for n in range(count):
        register(folder / "r", "em", made(folder / who, f"{who} {n}".encode()))


def test_two_processes_at_once_get_versions_of_their_own(tmp_path):
    """Two jobs of an array end in the same second: neither's network may be lost."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    jobs = [context.Process(target=_register_many, args=(tmp_path, who, 10, start)) for who in ("one", "two")]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0]
    there = versions(tmp_path / "r", "em")
    assert [entry.version for entry in there] == list(range(1, 21))
    held = {resolve(tmp_path / "r", "em", entry.version).path.read_text() for entry in there}
    assert held == {f"{who} {n}" for who in ("one", "two") for n in range(10)}


def test_who_registers_waits_for_the_lock(tmp_path):
    """The lock is what keeps two apart: while another holds it, nothing is added."""
    context = multiprocessing.get_context("fork")
    held = context.Event()
    job = context.Process(target=_register_many, args=(tmp_path, "one", 1, held))
    job.start()  # before the lock is taken: a child that is forked later has it too
    with module._locked(tmp_path / "r"):
        held.set()
        job.join(0.5)
        assert job.is_alive()
        assert not (tmp_path / "r" / "index.json").exists()
    job.join(30)
    assert job.exitcode == 0
    assert [entry.version for entry in versions(tmp_path / "r", "em")] == [1]


# --- kills ---------------------------------------------------------------------------------------------------------------


def _killed_in(folder, name, nth):
    """Register, and die without a word where a function of the registry is called for the `nth` time."""
    original, calls = getattr(module, name), []

    def die(*args):
        calls.append(args)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(module, name, die)
    register(folder / "r", "em", made(folder, b"second"), metrics={"dice": 1})


STEPS = [
    ("_copy", 1),
    ("_write", 1),
    ("_digest", 2),
    ("sync", 1),
    ("sync", 2),
    ("_replace", 1),
    ("_write", 2),
]


@pytest.mark.parametrize("step", [*STEPS, ("sync", 4)], ids=lambda step: f"{step[0]} {step[1]}")
def test_a_kill_anywhere_leaves_the_index_whole(tmp_path, step):
    """What was there is there, and the next registration works; a number that was given is not given again."""
    register(tmp_path / "r", "em", made(tmp_path, b"first"))
    context = multiprocessing.get_context("fork")
    job = context.Process(target=_killed_in, args=(tmp_path, *step))
    job.start()
    job.join(30)
    assert job.exitcode == -signal.SIGKILL, "the step was never reached"
    done = step == ("sync", 4)  # after the index was replaced: the version is there
    assert [entry.version for entry in versions(tmp_path / "r", "em")] == ([1, 2] if done else [1])
    assert resolve(tmp_path / "r", "em", 1).path.read_bytes() == b"first"
    entry = register(tmp_path / "r", "em", made(tmp_path, b"third"))
    assert entry.version in ((3,) if done else (2, 3))
    assert resolve(tmp_path / "r", "em").path.read_bytes() == b"third"
    assert not list((tmp_path / "r" / "em").glob(".part-*"))


def test_versions_whose_index_was_lost_are_left_alone(tmp_path):
    """An older index that was restored, as a damaged one asks for, must not cost what was registered since."""
    register(tmp_path / "r", "em", made(tmp_path, b"first"))
    older = (tmp_path / "r" / "index.json").read_bytes()
    second = register(tmp_path / "r", "em", made(tmp_path, b"second"))
    (tmp_path / "r" / "index.json").write_bytes(older)
    assert register(tmp_path / "r", "em", made(tmp_path, b"third")).version == 3
    assert second.path.read_bytes() == b"second"


def test_a_failed_copy_leaves_nothing(tmp_path, monkeypatch):
    """A full disk is not a version."""

    def full(*args):
        raise OSError(28, "No space left on device")

    register(tmp_path / "r", "em", made(tmp_path, b"first"))
    before = tree(tmp_path / "r")
    monkeypatch.setattr(module, "_copy", full)
    with pytest.raises(OSError, match="No space"):
        register(tmp_path / "r", "em", made(tmp_path, b"second"))
    assert tree(tmp_path / "r") == before
    assert [path.name for path in (tmp_path / "r" / "em").iterdir()] == ["1"]


def test_a_checkpoint_that_changes_meanwhile_is_refused(tmp_path, monkeypatch):
    """A training that still writes would register half of one and half of another."""
    original = module._copy

    def slow(source, target):
        source.write_bytes(b"still being written")
        original(source, target)

    monkeypatch.setattr(module, "_copy", slow)
    with pytest.raises(ModelError, match="changed while it was copied"):
        register(tmp_path / "r", "em", made(tmp_path, b"first"))
    assert versions(tmp_path / "r") == []


# --- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".em", "../em", "a/b", "/em", "a\\b", "a b", "em\n", "é", "-em", "_em", "a:b", "index.json"]
)
def test_a_name_that_is_no_plain_folder_is_refused(tmp_path, name):
    """A name from a YAML must not write beside the registry, nor over its index."""
    with pytest.raises(ModelError, match="cannot be the name of a model"):
        register(tmp_path / "r", name, made(tmp_path / "run"))
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize("name", ["em", "EM-3D", "em_3d.v2", "2d", "a..b"])
def test_plain_names_are_taken(tmp_path, name):
    """The counterpart: the rule refuses no name that people use."""
    register(tmp_path / "r", name, made(tmp_path / "run"))
    assert resolve(tmp_path / "r", name).name == name


def test_a_name_that_differs_in_case_alone_is_refused(tmp_path):
    """On some file systems the two are one folder, and the second would clear the first's versions away."""
    register(tmp_path / "r", "em", made(tmp_path))
    with pytest.raises(ModelError, match="differs from 'em'"):
        register(tmp_path / "r", "EM", made(tmp_path, b"other"))


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_file_is_not_given_out(tmp_path, damage):
    """A flipped bit in the weights is a wrong answer that looks right."""
    path = register(tmp_path / "r", "em", made(tmp_path)).path
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"weighty" if damage == "changed" else b"weigh")
    with pytest.raises(ModelError) as refused:
        resolve(tmp_path / "r", "em")
    told = "is not there" if damage == "gone" else "has SHA-256"
    assert all(part in str(refused.value) for part in (str(path), "version 1", told, "damaged"))


def test_an_unknown_model_is_answered_with_those_there_are(tmp_path):
    """A typing error costs a second, not a search."""
    with pytest.raises(ModelError, match="holds none"):
        resolve(tmp_path / "r", "em-membranes")
    for name in ("em-membranes", "nuclei"):
        register(tmp_path / "r", name, made(tmp_path))
    for ask in (resolve, versions):
        with pytest.raises(ModelError, match=r"has em-membranes, nuclei\. Did you mean 'em-membranes'\?"):
            ask(tmp_path / "r", "em-membrane")
    with pytest.raises(ModelError, match=r"has em-membranes, nuclei\. Name one of them\."):
        resolve(tmp_path / "r", "zzz")


@pytest.mark.parametrize("version", [0, 3, -1])
def test_an_unknown_version_is_answered_with_those_there_are(tmp_path, version):
    """No version is counted from the end, and none is guessed."""
    for content in (b"1", b"2"):
        register(tmp_path / "r", "em", made(tmp_path, content))
    with pytest.raises(ModelError, match=f"Version {version} of model 'em'.*has versions 1, 2"):
        resolve(tmp_path / "r", "em", version)


INDICES = {
    "cut": '{"format": 1, "mod',
    "empty": "",
    "a list": "[]",
    "newer": '{"format": 2, "models": {}}',
    "no models": '{"format": 1}',
    "an entry without a digest": '{"format": 1, "models": {"em": [{"version": 1, "checkpoint": "em/1/c"}]}}',
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_an_index_that_cannot_be_read_is_refused_and_kept(tmp_path, index):
    """To begin a new one would lose every version of the old."""
    made(tmp_path / "r", index.encode(), "index.json")
    for ask in (versions, lambda r: resolve(r, "em"), lambda r: register(r, "em", made(tmp_path))):
        with pytest.raises(ModelError, match=r"index\.json' cannot be read"):
            ask(tmp_path / "r")
    assert (tmp_path / "r" / "index.json").read_text() == index


ELSEWHERE = [
    *(
        "../out/checkpoint.safetensors",
        "em/../../out/checkpoint.safetensors",
        "em/1/../../../out/checkpoint.safetensors",
    ),
    *(
        "/etc/passwd",
        "//out",
        "em/1/other.safetensors",
        "em/2/checkpoint.safetensors",
        "em/1/./checkpoint.safetensors",
        "~/x",
        "",
    ),
    *(
        "file:///etc/passwd",
        "s3://bucket/x",
        "em\\1\\checkpoint.safetensors",
        "em/1/checkpoint.safetensors\0",
        "EM/1/checkpoint.safetensors",
    ),
    *(5, None, ["em/1/checkpoint.safetensors"], {}),
]


@pytest.mark.parametrize("place", ELSEWHERE, ids=ascii)
def test_an_index_that_names_a_place_outside_is_refused_by_name(tmp_path, place):
    """Whoever may write an index must not have a run read, and execute, another file of its user."""
    register(tmp_path / "r", "em", made(tmp_path))
    made(tmp_path / "out")
    index = json.loads((tmp_path / "r" / "index.json").read_text())
    index["models"]["em"][0]["checkpoint"] = place
    (tmp_path / "r" / "index.json").write_text(json.dumps(index))
    for ask in (versions, lambda r: resolve(r, "em"), lambda r: register(r, "other", made(tmp_path))):
        with pytest.raises(ModelError) as refused:
            ask(tmp_path / "r")
        assert f"names {place!r} as version 1 of model 'em'" in str(refused.value)


@pytest.mark.parametrize("name", ["..", "../out", "/out", "a/b", ".hidden", "", "e\x1b[2Jm", "em\n"])
def test_an_index_that_names_a_model_as_no_folder_is_refused_by_name(tmp_path, name):
    """A name is a folder of the registry, in the index as in a YAML."""
    register(tmp_path / "r", "em", made(tmp_path))
    index = json.loads((tmp_path / "r" / "index.json").read_text())
    index["models"][name] = [{**index["models"]["em"][0], "checkpoint": f"{name}/1/checkpoint.safetensors"}]
    (tmp_path / "r" / "index.json").write_text(json.dumps(index))
    for ask in (versions, lambda r: resolve(r, "em")):
        with pytest.raises(ModelError) as refused:
            ask(tmp_path / "r")
        assert f"model {name!r}" in str(refused.value)


@pytest.mark.parametrize("linked", ["em", "em/1", "em/1/checkpoint.safetensors"])
def test_a_link_out_of_the_registry_is_refused_by_name(tmp_path, linked):
    """The digest stands in the same index, so it vouches for nothing."""
    register(tmp_path / "r", "em", made(tmp_path))
    (tmp_path / "r" / linked).rename(tmp_path / "moved")
    (tmp_path / "r" / linked).symlink_to(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"leads out of it, to '.*moved.*', by a symbolic link"):
        resolve(tmp_path / "r", "em")
    if linked == "em":
        with pytest.raises(ModelError, match="leads out of it"):
            register(tmp_path / "r", "em", made(tmp_path, b"new"))


def test_a_registry_that_is_itself_a_link_or_has_links_within_is_used(tmp_path):
    """The negative control: sites keep registries on other disks."""
    register(tmp_path / "disk" / "r", "em", made(tmp_path))
    (tmp_path / "r").symlink_to("disk/r")
    (tmp_path / "r" / "em" / "1").rename(tmp_path / "r" / "kept")
    (tmp_path / "r" / "em" / "1").symlink_to("../kept")
    assert resolve(tmp_path / "r", "em").path == tmp_path / "r" / "em" / "1" / "checkpoint.safetensors"


def test_files_that_cannot_be_kept_are_refused_before_anything_is_written(tmp_path):
    """All of a version or none of it."""
    checkpoint, config = made(tmp_path / "run"), made(tmp_path / "run", b"{}", "config.json")
    other = made(tmp_path / "other", b"{}", "config.json")
    metrics = made(tmp_path / "run", b"{}", "metrics.json")
    refused = {
        "not there": {"checkpoint": tmp_path / "nothing"},
        "but not there": {"checkpoint": checkpoint, "files": [tmp_path / "nothing"]},
        "second 'config.json'": {"checkpoint": checkpoint, "files": [config, other]},
        "second 'checkpoint.safetensors'": {"checkpoint": checkpoint, "files": [checkpoint]},
        "second 'metrics.json'": {"checkpoint": checkpoint, "files": [metrics], "metrics": {}},
        "finite numbers": {"checkpoint": checkpoint, "metrics": {"dice": float("nan")}},
        "Give finite": {"checkpoint": checkpoint, "metrics": {"dice": object()}},
    }
    for text, asked in refused.items():
        with pytest.raises(ModelError, match=text):
            register(tmp_path / "r", "em", **asked)
    assert not (tmp_path / "r").exists()

"""This checkout beside another of its commits: what is said of times and bytes, without a run."""

import subprocess

import numpy as np
import pytest

from tests.benchmarks import against
from tests.benchmarks.against import CASES, Comparison
from tests.pipeline_cases import save_array

STEADY = [10.0, 10.1, 10.2, 10.05, 14.0]


def _comparison(here, there, differing=()):
    return Comparison("3D", dict.fromkeys(against.TIMES, here), dict.fromkeys(against.TIMES, there), differing, 2)


@pytest.mark.parametrize(
    ("here", "there", "verdict"),
    [
        (STEADY, STEADY, "within"),
        ([1.02 * t for t in STEADY], STEADY, "within"),
        ([1.04 * t for t in STEADY], STEADY, "slower"),
        (STEADY, [1.04 * t for t in STEADY], "faster"),
        ([10.0, 11.0, 12.0, 13.0, 14.0], STEADY, "undecided"),
        ([20.0, 20.0], [10.0, 10.0], "undecided"),
    ],
)
def test_least_times_decide_where_rounds_lie_together(here, there, verdict):
    """A single slow round is of the machine; where most are apart, nothing is said."""
    found = _comparison(here, there)
    assert found.verdict("infer") == verdict
    assert against.is_bad([found]) == (verdict == "slower")
    assert f"| {verdict} |" in against.table([found])


def test_other_bytes_are_bad_whatever_the_times():
    """A change that is to move walls alone changes none."""
    found = _comparison(STEADY, STEADY, ("c/0/0/0",))
    assert against.is_bad([found])
    assert "1 object differs" in against.table([found])


@pytest.mark.parametrize("changed", [False, True])
def test_sides_take_turns_and_their_objects_are_compared(changed, monkeypatch, tmp_path):
    """Each begins every other round."""
    turns = []

    def run(case, folder, tree, name, threads):
        turns.append(name)
        values = np.ones((2, 2, 2), np.uint8)
        values[0, 0, 0] += changed and name == "here"
        (folder / f"{name}.zarr").mkdir(exist_ok=True)
        if not (folder / f"{name}.zarr" / "0").exists():
            save_array(folder / f"{name}.zarr" / "0", values)
        return dict.fromkeys(against.TIMES, 1.0)

    monkeypatch.setattr(against, "_run", run)
    found = against._compared(CASES[1], tmp_path, {"here": tmp_path, "there": tmp_path}, rounds=3, threads=1)

    assert turns == ["here", "there", "there", "here", "here", "there"]
    assert bool(found.differing) == changed
    assert found.objects > 1


def test_the_other_commit_has_a_folder_of_its_own_which_is_removed(monkeypatch, tmp_path):
    """An unknown commit is refused by what git says."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setattr(against, "ROOT", home)
    for step in (["init", "-q"], ["add", "a"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"]):
        (home / "a").write_text("one")
        subprocess.run(["git", *step], cwd=home, check=True)
    (home / "a").write_text("two")

    with against._worktree("HEAD", tmp_path / "there") as there:
        assert (there / "a").read_text() == "one"
    assert not (tmp_path / "there").exists()
    with pytest.raises(RuntimeError, match="nowhere"), against._worktree("nowhere", tmp_path / "there"):
        pass

"""The command's entry, `halotile.py`: what is around a command does not end it in a traceback."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import halotile
from pipeline.garbage import SELDOM
from tests.surroundings_cases import ROOT, assert_quiet, assert_told, command

QUIET = {
    "a reader that leaves": ("HALOTILE --help | head -n 1; exit ${PIPESTATUS[0]}", {}, 141),
    "no stream at all": ("HALOTILE --version <&- >&- 2>&-", {}, 0),
}

REFUSED = {
    "a full disk": ("HALOTILE --help > /dev/full", {}, 1, "standard output could not be written: [Errno 28]"),
    "a name in an ASCII locale": (
        "HALOTILE inspect caf\u00e9",
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        2,
        "'caf\u00e9' was asked for",
    ),
}


@pytest.mark.parametrize("case", QUIET.values(), ids=QUIET)
def test_streams_that_are_closed_end_no_command(case, tmp_path):
    """`| head`, cron jobs and detached terminals are ordinary."""
    assert_quiet(case, tmp_path)


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_ends_a_command_is_told_in_a_line(case, tmp_path):
    """Not in a traceback."""
    assert_told(case, tmp_path)


@pytest.mark.parametrize("name", halotile.PACKAGES)
def test_somebody_elses_package_is_refused_by_its_path(name, tmp_path):
    """`pipeline` and `flows` are names that anybody may take; half of theirs and half of ours would be a puzzle."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported')")
    found = command("HALOTILE --help", tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert (found.returncode, found.stdout) == (2, "")
    assert f"'{tmp_path / name / '__init__.py'}', which is somebody else's" in found.stderr
    assert f"PYTHONPATH ('{tmp_path}:{ROOT}')" in found.stderr


def test_a_module_of_that_name_in_the_working_directory_is_refused(tmp_path, monkeypatch):
    """`python -m halotile` looks there first; the installed command does not, and is what is advised."""
    (tmp_path / "pipeline.py").touch()
    monkeypatch.delitem(sys.modules, "pipeline", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert f"'{tmp_path / 'pipeline.py'}'" in halotile.foreign_package()
    assert "installed command `halotile`" in halotile.foreign_package()


def test_ours_are_ours():
    """Or nothing would ever run."""
    assert halotile.foreign_package() == ""


def test_the_entry_imports_the_standard_library_only():
    """It runs before it is known whose packages the others are, and `import halotile` will be a user's first line."""
    tree = ast.parse(Path(halotile.__file__).read_text(encoding="utf-8"))
    names = {n.name for node in tree.body if isinstance(node, ast.Import) for n in node.names}
    names |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_the_command_and_its_workers_look_for_garbage_alike_and_seldom():
    """A fifth of a start is a second; a worker's process is told by a plugin, the command's by its entry."""
    told = "import gc; print(gc.get_threshold())"
    entry = f"import atexit, sys, halotile; sys.argv = ['halotile', '--version']; atexit.register(lambda: exec({told!r})); halotile.main()"
    worker = f"from pipeline.cluster.process import ProcessSetup; ProcessSetup().setup(None); {told}"
    plain, *ours = (
        subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for line in (told, entry, worker)
    )
    assert [said.splitlines()[-1] for said in ours] == [str(SELDOM)] * 2
    assert plain.strip() != str(SELDOM)

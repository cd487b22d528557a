"""How the suite itself runs: its two parts, and what their processes tell each other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, encodable

FAKE = """#!/bin/sh
echo "$*" >> "$0.calls"
case "$*" in *"--part beside"*) exit {beside} ;; *) exit {alone} ;; esac
"""


@pytest.mark.parametrize(
    ("beside", "alone", "status"),
    [(0, 0, 0), (0, 5, 0), (5, 0, 0), (5, 5, 5), (1, 0, 1), (0, 1, 1), (1, 5, 1), (5, 1, 1), (1, 1, 1), (0, 4, 4)],
)
def test_the_suite_fails_where_a_part_of_it_does(tmp_path, beside, alone, status):
    """A part without tests is no failure, but none at all is: a word behind `-k` may be misspelt."""
    python = tmp_path / "python"
    python.write_text(FAKE.format(beside=beside, alone=alone))
    python.chmod(0o755)
    found = subprocess.run(["sh", ROOT / "tests/suite.sh", python, "-k", "one or two"], check=False)
    assert found.returncode == status
    calls = (tmp_path / "python.calls").read_text().splitlines()
    assert [call.endswith("-k one or two") for call in calls] == [True, True]


@pytest.mark.parametrize("beside", [2, 3, 4])
def test_a_suite_that_was_interrupted_ends(tmp_path, beside):
    """Ctrl-C ends pytest, and with it the suite; wrong arguments are told once."""
    python = tmp_path / "python"
    python.write_text(FAKE.format(beside=beside, alone=0))
    python.chmod(0o755)
    assert subprocess.run(["sh", ROOT / "tests/suite.sh", python], check=False).returncode == beside
    assert len((tmp_path / "python.calls").read_text().splitlines()) == 1


def test_a_test_of_make_check_that_starts_a_process_fails():
    """Else it would grow slow, one test at a time. Those above start some."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--part",
        "check",
        "-p",
        "no:cacheprovider",
        "-k",
        "interrupted",
        __file__,
    ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "starts no process and no server" in found.stdout


def test_names_that_are_no_text_travel_between_processes():
    """Files may be named by any bytes, and logs that tests capture quote them."""
    sent = {"sections": [("log", "a\udcffb")], "longrepr": {"entries": [None, 3, "é"]}}
    with pytest.raises(UnicodeEncodeError):
        json.dumps(sent, ensure_ascii=False).encode()
    assert encodable(sent) == {"sections": [("log", "a\\udcffb")], "longrepr": {"entries": [None, 3, "é"]}}


@pytest.mark.parametrize(
    ("made", "named", "environment"),
    [
        (None, None, ".venv"),
        (None, "3.12", ".venv"),
        ("3.11", None, ".venv"),
        ("3.11", "3.11", ".venv"),
        ("3.11", "3.12", ".venv-3.12"),
        ("3.12", "3.11", ".venv-3.11"),
    ],
)
def test_a_python_that_is_named_has_an_environment_of_its_own(tmp_path, made, named, environment):
    """`.venv` may be another's: its packages are not those that were asked for."""

    def python(path: Path, version: str) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho {version}\n")
        path.chmod(0o755)
        return str(path)

    if made is not None:
        python(tmp_path / ".venv/bin/python", made)
    words = [] if named is None else [f"PYTHON={python(tmp_path / 'python', named)}"]
    command = [
        "make",
        "--no-print-directory",
        "-f",
        ROOT / "Makefile",
        "--eval",
        "which: ; @echo $(VENV)",
        "which",
        *words,
    ]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment_of_make())
    assert found.stdout.strip() == environment


def environment_of_make() -> dict[str, str]:
    """This one, without what a `make test` that runs this has said."""
    return {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "PYTHON", "VENV")}

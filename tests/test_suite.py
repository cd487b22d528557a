"""How the suite itself runs: its two parts, and what their processes tell each other."""

import json
import subprocess
import sys

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

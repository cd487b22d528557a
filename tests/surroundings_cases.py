"""A command in surroundings that are not as they should be: what it says, and its exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import halotile

ROOT = Path(halotile.__file__).parent


def command(line: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """What a shell gets of a line, in which HALOTILE is the command."""
    return subprocess.run(
        ["bash", "-c", line.replace("HALOTILE", f"{sys.executable} -P {ROOT / 'halotile.py'}")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **variables},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=120,
        check=False,
    )


def assert_quiet(case: tuple[str, dict[str, str], int], folder: Path) -> None:
    """A command ends with its status, and says nothing on standard error."""
    line, variables, code = case
    found = command(line, folder, **variables)
    assert (found.returncode, found.stderr) == (code, "")


def assert_told(case: tuple[str, dict[str, str], int, str], folder: Path) -> None:
    """A command ends with its status, and one line that says why."""
    line, variables, code, words = case
    found = command(line, folder, **variables)
    assert found.returncode == code
    assert words in found.stderr
    assert found.stderr.count("\n") == 1

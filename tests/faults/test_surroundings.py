"""All that was thought of that may be around a command; a few are tried in tests/test_entry.py each time."""

from __future__ import annotations

import pytest

from tests.surroundings_cases import assert_quiet, assert_told

pytestmark = pytest.mark.fault

QUIET = {
    "a reader that has left": ("HALOTILE --help | true; exit ${PIPESTATUS[0]}", {}, 141),
    "errors that nobody reads": ("{ HALOTILE inspect nothing 2>&1 >&3 | true; exit ${PIPESTATUS[0]}; } 3>&1", {}, 2),
    "no standard output": ("HALOTILE --version >&-", {}, 0),
    "no standard error": ("HALOTILE --help 2>&-", {}, 0),
    "no standard input": ("HALOTILE --help <&-", {}, 0),
    "warnings that are errors": ("HALOTILE --help", {"PYTHONWARNINGS": "error"}, 0),
    "a terminal of no width": ("HALOTILE --help", {"COLUMNS": "0"}, 0),
    "a terminal of width 1": ("HALOTILE plan --help", {"COLUMNS": "1"}, 0),
    "a width that is none": ("HALOTILE --help", {"COLUMNS": "wide"}, 0),
    "a dumb terminal": ("HALOTILE --help", {"TERM": "dumb"}, 0),
    "no docstrings": ("HALOTILE plan --help", {"PYTHONOPTIMIZE": "2"}, 0),
    "no folder for temporary files of that name": ("HALOTILE --version", {"TMPDIR": "/nowhere"}, 0),
    "no home": ("unset HOME; HALOTILE --version", {}, 0),
    "a home that is not there": ("HALOTILE --version", {"HOME": "/nowhere/at/all"}, 0),
    "nobody's environment": ("exec env -i HALOTILE --version", {}, 0),
    "files for nobody": ("umask 0777; HALOTILE --version", {}, 0),
}

REFUSED = {
    "a name that is not UTF-8": ("HALOTILE inspect $'caf\\xe9'", {}, 2, "'caf\\udce9' was asked for"),
    "a name on an ASCII terminal": (
        "HALOTILE inspect caf\u00e9",
        {"PYTHONIOENCODING": "ascii"},
        2,
        "'caf\\xe9' was asked for",
    ),
    "a directory that was deleted": ("mkdir gone; cd gone; rmdir ../gone; HALOTILE --help", {}, 2, "working directory"),
}


@pytest.mark.parametrize("case", QUIET.values(), ids=QUIET)
def test_nothing_around_a_command_ends_it(case, tmp_path):
    """What a shell, a batch system or a container may give or withhold."""
    assert_quiet(case, tmp_path)


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_else_ends_a_command_is_told_in_a_line(case, tmp_path):
    """Names that are no text are shown escaped."""
    assert_told(case, tmp_path)

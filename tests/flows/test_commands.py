"""The command's doors: a module for each group, imported when one of its commands is called."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from inspect import getmembers, isfunction
from pathlib import Path

import pytest

from flows.commands.app import COMMANDS, FUNCTIONS

ROOT = Path(__file__).parents[2]


def listed():
    """Commands by the functions that do them, with module and text."""
    return [(FUNCTIONS.get(name, name), row) for name, row in COMMANDS.items()]


MODULES = sorted({module for module, _ in COMMANDS.values()})


@pytest.mark.parametrize("module", MODULES)
def test_the_list_of_commands_says_what_their_own_docstrings_say(module):
    """The list is shown before any of them is imported, so its text stands twice."""
    found = import_module(f"flows.commands.{module}")
    commands = {
        name: function.__doc__
        for name, function in getmembers(found, isfunction)
        if function.__module__ == found.__name__ and not name.startswith("_")
    }
    assert commands == {name: told for name, (where, told) in listed() if where == module}


@pytest.mark.parametrize(
    ("arguments", "imported"), [([], []), (["--help"], []), (["--version"], []), (["run", "--help"], ["run"])]
)
def test_a_group_is_imported_when_one_of_its_commands_is_called(arguments, imported):
    """Help stays quick however many commands come; the last case is the control: what is called is imported."""
    script = (
        "import sys\nfrom flows.commands.app import app\n"
        f"app({arguments}, exit_on_error=False, result_action='return_value')\n"
        f"print(*[name for name in {MODULES} if f'flows.commands.{{name}}' in sys.modules], file=sys.stderr)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stderr.split() == imported
    assert found.stdout


def test_the_module_of_earlier_versions_is_still_a_door(tmp_path):
    """Scripts say `python -m flows.cli`; it does what `halotile` does, its exit status included."""

    def told(module: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", module, "inspect", str(tmp_path / "nothing.zarr")]
        found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        return found.returncode, found.stdout, found.stderr

    assert told("flows.cli") == told("halotile")
    assert told("flows.cli")[0] == 2

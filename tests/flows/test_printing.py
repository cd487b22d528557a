"""What reaches a terminal: nothing that a file, a model or an error is called acts there, begins a line, or tells a secret."""

import sys

import pytest

from flows.commands.app import _print_in_full, app
from flows.commands.status import status
from flows.printing import print_outcome, print_rows, say
from flows.progress import _Follower
from pipeline.dataset.outcome import Outcome
from pipeline.dataset.summary import Summary
from pipeline.errors import ConfigError
from pipeline.inference.session import Advance

ODD = "a\x1b]0;x\x07\x1b[2J\r\u202e\nhalotile: done [red]"


def harmless(captured) -> str:
    """All that was printed, once nothing in it acts."""
    told = captured.out + captured.err
    assert not set("\x1b\x07\r\u202e") & set(told)
    assert "halotile: done" not in {line[:14] for line in told.splitlines()}
    return told


def _progress():
    follower = _Follower(None, ODD)
    follower.tell(Advance(done=1, total=2, computed=1, voxels=1, seconds=1.0))
    follower.settle()


DOORS = {
    "a row": lambda: say(f"output  {ODD}"),
    "rows": lambda: print_rows([(ODD, ODD)]),
    "an outcome": lambda: print_outcome(
        Outcome(ODD, ODD, "failed", ODD), Summary("/out", "/in", "now", 1, [Outcome(ODD, ODD, "failed", ODD)])
    ),
    "an error": lambda: status(lambda: (_ for _ in ()).throw(ConfigError(f"'{ODD}' is not there."))),
    "a usage error": lambda: status(lambda: app(["inspect", "x", ODD], exit_on_error=False)),
    "an unknown command": lambda: status(lambda: app([ODD], exit_on_error=False)),
    "a defect": lambda: _print_in_full(ValueError, ValueError(ODD), None),
    "progress": _progress,
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_no_name_acts_on_a_terminal(door, capsys):
    """Titles, colours, erased screens and forged last lines are what a file's name can do."""
    door()
    assert r"\x1b[2J" in harmless(capsys.readouterr()).replace("\n", "")


def test_a_bar_on_a_terminal_takes_no_name_for_markup(monkeypatch):
    """The one door that colours by itself."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    follower = _Follower(None, ODD)
    follower.bar.add_task(follower._name, rate="")
    told = str(follower.bar.columns[0].render(follower.bar.tasks[0]))
    assert told == r"a\x1b]0;x\x07\x1b[2J\r\u202e\nhalotile: done [red]"


def test_an_error_tells_no_secret_and_stands_in_indented_lines(capsys):
    """What a library says is part of the error."""

    def fail() -> None:
        raise ConfigError("No https://me:pa ss@host/v.\nSet token=s3cr3t.\n  more")

    assert status(fail) == 2
    assert capsys.readouterr().err == "halotile: refused: No https://***@host/v.\n  Set token=***\n  more\n"

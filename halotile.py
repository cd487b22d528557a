"""Halotile's entry: the command `halotile`, which looks around before it trusts what it finds.

The import packages are called `pipeline` and `flows`, which are names that anybody may take. So what is installed as the command
is this module, of a name of our own: it looks where Python would take the two from, and refuses somebody else's, before either
is imported. It also sees to what any command needs of its process: standard streams that are open, take any text, and may lose
their reader; a working directory; file names that are Unicode; warnings of libraries that stay warnings.

Standard library only, and importing it changes nothing.
"""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import sys
import tempfile
import warnings
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

FAILED, REFUSED, UNHEARD = 1, 2, 141
"""Exit status of `halotile` besides those of its commands; 141 is what a shell gives a process that SIGPIPE ended."""

PACKAGES = ("pipeline", "flows")

NARROWEST = 20
"""Columns that text is wrapped to at least."""

CALM = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
"""Warnings that Python itself does not show."""


def main() -> None:
    """Run the command `halotile` and leave with its exit status."""
    streams = open_streams()
    problem = unsound_process() or foreign_package()
    if problem:
        print(f"halotile: refused: {problem}", file=sys.stderr)
        code = REFUSED
    else:
        read_names_as_unicode()
        keep_warnings_warnings()
        keep_width_sane()
        from pipeline.garbage import collect_seldom  # noqa: PLC0415 - ours, as is known by now

        collect_seldom()
        from flows.commands.app import run_command  # noqa: PLC0415

        code = run_command()
    sys.exit(heard(code, streams))


# --- where packages come from -------------------------------------------------------------------------------------------


def foreign_package() -> str:
    """Why `pipeline` or `flows` would be somebody else's; empty where both lie beside this file."""
    home = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120 - pathlib would be most of what this module costs
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        found = spec.origin or ", ".join(spec.submodule_search_locations or ()) if spec else "nowhere"
        if os.path.realpath(found) != os.path.join(home, name, "__init__.py"):  # noqa: PTH118 - see above
            return (
                f"Python finds the package '{name}' at '{found}', which is somebody else's: Halotile's is in '{home}'. "
                f"{_cause(found)}"
            )
    return ""


def _cause(found: str) -> str:
    path = os.environ.get("PYTHONPATH")
    if path and any(_holds(entry, found) for entry in path.split(os.pathsep)):
        return f"It comes from PYTHONPATH ('{path}'): take that folder out of it, or unset it."
    if found == "nowhere":
        return "The installation is not whole: install Halotile again."
    return "Rename it, or call the installed command `halotile` from another directory, and not by `python -m`."


def _holds(folder: str, path: str) -> bool:
    return os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)


# --- the process --------------------------------------------------------------------------------------------------------


def unsound_process() -> str:
    """Why nothing can be done in this process; empty where it can."""
    try:
        os.getcwd()  # noqa: PTH109 - see above
    except FileNotFoundError:
        return "The working directory of this process was deleted. Change to one that is there (cd), and try again."
    except PermissionError:
        return (
            "The working directory of this process may not be read by this user. Change to another (cd), and try again."
        )
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        asked = os.environ.get("TMPDIR")
        return (
            f"No folder for temporary files can be written ({error.strerror}). Set TMPDIR to one; it is {asked!r} now."
        )
    return ""


def read_names_as_unicode() -> None:
    """Begin again in Python's UTF-8 mode where file names would be ASCII: a locale of that kind says nothing of the disk."""
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # the workers' and the server's too
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keep_warnings_warnings() -> None:
    """Undo `PYTHONWARNINGS=error` and `-W error`, here and in workers: a library's deprecation is no reason to lose a run."""
    if any(option.startswith("e") for option in sys.warnoptions):
        os.environ.pop("PYTHONWARNINGS", None)
        sys.warnoptions.clear()  # processes that this one starts are given them
        warnings.resetwarnings()
        for category in CALM:
            warnings.simplefilter("ignore", category)


def keep_width_sane() -> None:
    """Let no width that is none (`COLUMNS=0`), or that holds no word, reach those who wrap text to it."""
    columns = shutil.get_terminal_size().columns  # what COLUMNS says where that is a number above 0
    if "COLUMNS" in os.environ or columns < NARROWEST:
        os.environ["COLUMNS"] = str(max(columns, NARROWEST))


# --- standard streams ---------------------------------------------------------------------------------------------------


class _Stream(io.FileIO):
    """Standard output or error. Where it cannot be written any more, what it is given is dropped, and the command goes on."""

    lost: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        if self.lost is None:
            try:
                return super().write(data)
            except OSError as error:
                self.lost = error
        return memoryview(data).nbytes


def open_streams() -> tuple[_Stream, _Stream]:
    """Have all three standard streams open, and output and error take any text; gives the latter two.

    A closed one would be the number of the next file that is opened, and what somebody prints would be written there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)
            os.set_inheritable(number, True)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
    streams = _Stream(1, "w", closefd=False), _Stream(2, "w", closefd=False)
    sys.stdout, sys.stderr = _text(streams[0], sys.stdout), _text(streams[1], sys.stderr, lines=True)
    return streams


def _text(stream: _Stream, before: TextIO | None, *, lines: bool = False) -> io.TextIOWrapper:
    encoding = before.encoding if before else "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(stream), encoding, "backslashreplace", line_buffering=lines or stream.isatty()
    )


def heard(code: int, streams: tuple[_Stream, _Stream]) -> int:
    """The exit status, where what was printed may not have arrived: of a command that is done, that is left to tell."""
    sys.stdout.flush()
    output, _ = streams
    if output.lost is None or code:
        return code
    if isinstance(output.lost, BrokenPipeError):
        return UNHEARD
    print(
        f"halotile: failed: the work is done, but standard output could not be written: {output.lost}", file=sys.stderr
    )
    return FAILED


if __name__ == "__main__":
    main()

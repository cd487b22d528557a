"""What workers do in tests of the dispatch; importable by them, and as cheap as it gets."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path

import psutil

from pipeline.logs import about


def nothing(index: int) -> int:
    """Give the index back."""
    return index


def fail_on(bad: frozenset[int], index: int) -> int:
    """Raise for some indices, always."""
    if index in bad:
        raise ValueError(f"{index} is bad")
    return index


def fail_times(folder: str, bad: int, times: int, index: int) -> int:
    """Raise for one index, the first so many times."""
    if index == bad:
        tries = len(list(Path(folder).iterdir()))
        (Path(folder) / f"{tries}").touch()
        if tries < times:
            raise ValueError(f"attempt {tries + 1} of {index} is bad")
    return index


def die_on(bad: int, index: int) -> int:
    """Take the worker down at one index, always."""
    if index == bad:
        os.kill(os.getpid(), signal.SIGKILL)
    return index


def die_once(folder: str, bad: int, index: int) -> int:
    """Take the worker down at one index, the first time."""
    marker = Path(folder) / "died"
    if index == bad and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return index


def doze(seconds: float, index: int) -> int:
    """Take a while."""
    time.sleep(seconds)
    return index


def meet(folder: str, name: str, index: int) -> int:
    """Wait until another one is at its tile too."""
    (Path(folder) / name).touch()
    deadline = time.monotonic() + 60
    while len(list(Path(folder).iterdir())) < 2:
        if time.monotonic() > deadline:
            raise TimeoutError("nobody came")
        time.sleep(0.01)
    return index


def enlist(folder: str) -> None:
    """Leave this worker's mark."""
    (Path(folder) / str(os.getpid())).touch()


def enlist_or_die(folder: str) -> None:
    """Leave this worker's mark; the first to come dies of it."""
    first = not any(Path(folder).iterdir())
    enlist(folder)
    if first:
        os.kill(os.getpid(), signal.SIGKILL)


def environment(name: str) -> str | None:
    """A variable, as the worker sees it."""
    return os.environ.get(name)


def ready() -> None:
    """A worker that needs no preparation, and that nobody will end."""


def sign(index: int) -> str:
    """Gives the process."""
    return str(os.getpid())


def doze_and_sign(seconds: float, index: int) -> str:
    """Take a while; gives the process."""
    time.sleep(seconds)
    return str(os.getpid())


def first_ends(marker: str, ends: float) -> float | None:
    """Of the first worker that comes, when it will be ended."""
    return ends if _is_first(marker) else None


def first_cannot(marker: str) -> None:
    """The first worker that comes is broken."""
    if _is_first(marker):
        raise OSError("no such card")


def first_dozes(marker: str, seconds: float) -> None:
    """The first worker to come takes a while; the next ones none."""
    if _is_first(marker):
        time.sleep(seconds)


def end_children(parent: int, index: int) -> int:
    """End what another process has started, and be slow to say so."""
    for child in psutil.Process(parent).children():
        child.kill()
    time.sleep(5)
    return index


def _is_first(marker: str) -> bool:
    try:
        with Path(marker).open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return False
    return True


def say(level: int, index: int) -> int:
    """Log a line, as a worker does of a tile; gives the number of its process."""
    about(tile=index, worker="n1-3", run="out.zarr", stage="infer").log(level, "said of %d", index)
    return os.getpid()


def doze_and_say(seconds: float, index: int) -> int:
    """Take a while, and log a line of it."""
    time.sleep(seconds)
    return say(logging.INFO, index)

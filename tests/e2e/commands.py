"""The command as a process of its own: started, watched, interrupted and killed from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


class Command:
    """`halotile ARGUMENTS`, running.

    It leads a process group, as in a terminal, so that `interrupt` reaches all of its processes like Ctrl-C.

    Args:
        arguments: What follows the name of the command.
        prefect_home: Where Prefect's database lies.
    """

    def __init__(self, arguments: Sequence[object], prefect_home: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "halotile", *map(str, arguments)],
            cwd=ROOT,
            env={**environment, "PREFECT_HOME": str(prefect_home), "COLUMNS": "120"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.out = self.error = ""

    def wait(self, seconds: float = 300) -> int:
        """The exit status, with a limit for the busiest machine; what it said is in `out` and `error`."""
        try:
            self.out, self.error = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise
        return self.process.returncode

    def family(self) -> list[psutil.Process]:
        """Every process of the run, this one first: workers, nannies' helpers, the Prefect server, its supervisor."""
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def interrupt(self) -> None:
        """Ctrl-C: the terminal sends it to all processes of the group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        """`kill -9` of the driver alone."""
        self.process.kill()

    def kill_all(self) -> None:
        """End whatever is left, so that no test leaves a process behind."""
        for process in self.family():
            process.kill()
        self.process.communicate()

    def is_running(self) -> bool:
        return self.process.poll() is None


def wait_until(condition: Callable[[], bool], seconds: float = 240) -> None:
    """Wait for something that another process does, with a limit for the busiest machine."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def alive(processes: Sequence[psutil.Process]) -> list[str]:
    """The command lines of those that still run; one that only waits to be reaped is dead."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid}: {' '.join(process.cmdline())[:120]}")
        except psutil.NoSuchProcess:
            continue
    return found

"""Preloaded into workers by `distributed.worker.preload`: what a site does to them, switched by environment variables.

* `SITE_WITNESS`, a file: who writes which unit, and when. A line `WORKER EVENT SECONDS KEY` at the begin and the end of each
  write, and every 0.1 s between. Lines are appended in one call each, so those of several workers do not mix.
* `SITE_SLOW`, seconds: what a write takes at least; what it stores comes last.
* `SITE_STALL`, a file: the first write that finds it removes it, and takes as many seconds longer as it says.
* `SITE_NO_LOCK`: `fcntl.lockf` does nothing: tiles are no longer owned by one worker at a time.
* `SITE_HOG`, a file: the first worker that finds it removes it, and starts a child of 4 GB that lives half a minute. The
  nanny, who looks at the worker alone, lets it be; SLURM ends the job.
"""

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from distributed import Worker

from pipeline.outputs.level import Level

STEP = 0.1

GREEDY = "import time; held = bytearray(4 * 10**9); held[::4096] = bytes(len(held[::4096])); time.sleep(30)"


def dask_setup(worker: Worker) -> None:
    """Dask calls this when the worker starts."""
    witness(str(worker.name), os.environ.get("SITE_WITNESS", os.devnull))
    if "SITE_NO_LOCK" in os.environ:
        fcntl.lockf = lambda *_: None
    if "SITE_HOG" in os.environ:
        threading.Thread(target=hog, args=[Path(os.environ["SITE_HOG"])], daemon=True).start()


def witness(worker: str, file: str) -> None:
    """Have every write told, and take its time."""
    written = Level.write
    told = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def tell(event: str, key: str) -> None:
        os.write(told, f"{worker}-{os.getpid()} {event} {time.time():.3f} {key}\n".encode())

    def write(level, unit, array, *permit):
        key, end = level.keys(unit)[0], time.monotonic() + delay()
        tell("begin", key)
        while time.monotonic() < end:
            time.sleep(STEP)
            tell("still", key)
        units = written(level, unit, array, *permit)
        tell("end", key)
        return units

    Level.write = write


def delay() -> float:
    """Seconds of the next write."""
    with contextlib.suppress(KeyError, FileNotFoundError):
        file = Path(os.environ["SITE_STALL"])
        seconds = float(file.read_text())
        file.unlink()
        return seconds
    return float(os.environ.get("SITE_SLOW", "0"))


def hog(file: Path) -> None:
    """Wait for the file; whoever removes it is greedy."""
    while True:
        time.sleep(0.2)
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
            subprocess.run([sys.executable, "-c", GREEDY], check=False)
            return

"""Preloaded into workers by `distributed.worker.preload`: what a site does to them, switched by environment variables.

* `SITE_WITNESS`, a file: who writes which unit, and when. A line `WORKER EVENT SECONDS KEY` at the begin and the end of each
  write, and every 0.1 s between; and one, `WORKER refused SECONDS BYTE`, each time that somebody else holds a lock. Lines are
  appended in one call each, so those of several workers do not mix.
* `SITE_SLOW`, seconds: what a write takes at least; what it stores comes last.
* `SITE_STALL`, a file: the first write that finds it renames it to `.held`, and lasts until that is gone.
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
    """Have every write told, and every lock that is refused; and have writes take their time."""
    written, lock = Level.write, fcntl.lockf
    told = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def tell(event: str, what: object) -> None:
        os.write(told, f"{worker}-{os.getpid()} {event} {time.time():.3f} {what}\n".encode())

    def write(level, unit, array, *permit):
        key, end = level.keys(unit)[0], time.monotonic() + float(os.environ.get("SITE_SLOW", "0"))
        tell("begin", key)
        held = stalled()
        while time.monotonic() < end or (held and held.exists()):
            time.sleep(STEP)
            tell("still", key)
        units = written(level, unit, array, *permit)
        tell("end", key)
        return units

    def lockf(descriptor, operation, length=0, start=0):
        try:
            lock(descriptor, operation, length, start)
        except OSError:
            tell("refused", start)
            raise

    Level.write, fcntl.lockf = write, lockf


def stalled() -> Path | None:
    """What the next write waits for to be gone; nothing, where nobody asks it to wait."""
    with contextlib.suppress(KeyError, FileNotFoundError):
        file = Path(os.environ["SITE_STALL"])
        return file.rename(file.with_suffix(".held"))
    return None


def hog(file: Path) -> None:
    """Wait for the file; whoever removes it is greedy."""
    while True:
        time.sleep(0.2)
        with contextlib.suppress(FileNotFoundError):
            file.unlink()
            subprocess.run([sys.executable, "-c", GREEDY], check=False)
            return

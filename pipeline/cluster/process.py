"""What a worker process is before it has any work. It imports nothing of ours, so that a worker joins before it has torch."""

from __future__ import annotations

import contextlib
import gc
import signal

from distributed import Worker, WorkerPlugin

SELDOM = (20_000, 20, 50)
"""When Python looks for garbage. Modules that are imported make none, and looking for it is a fifth of what they cost."""


class Settled(WorkerPlugin):
    """Workers end with their driver. Ctrl-C, which a terminal sends to them too, would have each print a traceback."""

    name = "settled"

    def setup(self, worker: Worker) -> None:  # noqa: ARG002 - the plugin's signature
        gc.set_threshold(*SELDOM)
        with contextlib.suppress(ValueError):  # not in a main thread: no process of its own
            signal.signal(signal.SIGINT, signal.SIG_IGN)

"""What a worker process is before it has any work. It imports nothing heavy of ours, so that a worker joins before it has torch."""

from __future__ import annotations

import contextlib
import signal

from distributed import Worker, WorkerPlugin

from pipeline.garbage import collect_seldom


class ProcessSetup(WorkerPlugin):
    """Workers end with their driver. Ctrl-C, which a terminal sends to them too, would have each print a traceback."""

    name = "process-setup"

    def setup(self, worker: Worker) -> None:  # noqa: ARG002 - the plugin's signature
        collect_seldom()
        with contextlib.suppress(ValueError):  # not in a main thread: no process of its own
            signal.signal(signal.SIGINT, signal.SIG_IGN)

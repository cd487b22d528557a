"""Schedulers and workers that serve no HTTP pages unless somebody asked for them.

Dask's own always serve some (health, tasks, call stacks), without a password and on the address that they speak on, also with
`--no-dashboard`. A job's worker is started by a command line, which takes the class by its name: so this file imports nothing else.
"""

from __future__ import annotations

from typing import Any

from distributed import Scheduler, Worker


class SchedulerWithoutPages(Scheduler):
    """Serves pages only where `dashboard_address` says where."""

    def start_http_server(self, routes: Any, dashboard_address: str | None, *args: Any, **options: Any) -> None:
        if dashboard_address:
            super().start_http_server(routes, dashboard_address, *args, **options)


class WorkerWithoutPages(Worker):
    """Serves none, whatever it is told: nothing of ours reads them."""

    def start_http_server(self, *args: Any, **options: Any) -> None:
        pass


WORKER_CLASS = f"{WorkerWithoutPages.__module__}.{WorkerWithoutPages.__name__}"
"""As the command line of a worker takes it (`--worker-class`)."""

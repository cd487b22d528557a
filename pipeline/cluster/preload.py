"""What the scheduler in a pod has beyond Dask's: it starts by a command line, which takes modules (`--preload`), no objects.

Two things. It keeps no record of every submission, as none of our schedulers does. And it tells Dask's operator since when no
driver has been connected: the operator asks `/api/v1/check_idle` every five seconds, and deletes a cluster, with all its pods,
whose answer is older than `spec.idleTimeout`. Dask's own answer would be wrong both ways. It calls a cluster idle while its
run waits for a node; and where the scheduler speaks TLS the operator, which does not, could not ask for it.

Nothing else is served there: no dashboard, none of the calls that change a cluster.
"""

from __future__ import annotations

import json
import time
from typing import Any

from distributed import Scheduler, SchedulerPlugin
from distributed.http.utils import RequestHandler

from pipeline.cluster.settings import EXTENSIONS


class Attendance(SchedulerPlugin):
    """Who drives this scheduler."""

    name = "halotile-attendance"

    def __init__(self) -> None:
        self._drivers: set[str] = set()
        self._alone_since = time.time()

    @property
    def alone_since(self) -> float | None:
        """Since when nobody has, seconds since the epoch; None while somebody does."""
        return None if self._drivers else self._alone_since

    def add_client(self, scheduler: Scheduler, client: str) -> None:  # noqa: ARG002 - the plugin's signature
        self._drivers.add(client)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:  # noqa: ARG002 - the plugin's signature
        self._drivers.discard(client)
        self._alone_since = time.time()


class _CheckIdle(RequestHandler):
    """What the operator asks, in its own words."""

    def get(self) -> None:
        attendance: Any = self.server.plugins.get(Attendance.name)
        self.set_header("Content-Type", "application/json")
        self.write(json.dumps({"idle_since": attendance.alone_since if attendance else None}))


routes: list[tuple[str, type[_CheckIdle], dict[str, Any]]] = [("/api/v1/check_idle", _CheckIdle, {})]
"""As Dask takes them (`distributed.scheduler.http.routes`)."""


def dask_setup(scheduler: Scheduler) -> None:
    """Called by Dask, before the scheduler listens."""
    scheduler.extensions["spans"] = EXTENSIONS["spans"](scheduler)
    scheduler.add_plugin(Attendance())

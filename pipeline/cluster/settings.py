"""How schedulers and workers are set up, wherever they run."""

from __future__ import annotations

import socket
from typing import Any

from distributed.scheduler import DEFAULT_EXTENSIONS
from distributed.spans import SpansSchedulerExtension
from distributed.utils import get_ip_interface

from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError
from pipeline.thread_variables import COUNTS, NEUTRAL

SETTINGS: dict[str, Any] = {
    # Workers hold no data of Dask's, so there is nothing to spill; beyond the limit a worker is ended, not slowed.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.98,
    "distributed.comm.timeouts.connect": "60s",
    "distributed.scheduler.allowed-failures": 0,  # a tile whose worker vanished is told at once; the dispatch decides
    "distributed.scheduler.work-stealing": False,  # tiles are given to one worker by name
    "distributed.admin.low-level-log-length": 100,  # the scheduler's memory of what it did last
    # After this the cluster ends the nanny whose worker is gone, even while it starts another: a worker that dies twice
    # within 15 s, or is slow to start, would never come back.
    "distributed.deploy.lost-worker-timeout": "1000h",
    "distributed.admin.tick.limit": "1h",  # loading a network may hold the loop for a while; no warning is due
}

ALLOCATOR = {
    # Every slab makes and drops the same large arrays. By default each is mapped and unmapped anew, and the page faults
    # cost as much as the arithmetic that they are for; kept, and on huge pages, they are touched once.
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**26),
    "MALLOC_ARENA_MAX": "1",  # tiles run in a thread, whose own arena would map whatever is larger than 64 MiB
    "THP_MEM_ALLOC_ENABLE": "1",
}

CORES = "HALOTILE_CORES"
"""Environment variable of a worker beside its driver: the cores that the driver counts on."""


def worker_environment(threads: int) -> dict[str, str]:
    """Variables that a worker process must find when it starts."""
    return ALLOCATOR | NEUTRAL | dict.fromkeys(COUNTS, str(threads))


class _NoSpans(SpansSchedulerExtension):
    """Stands in for the scheduler's record of all submissions, which would grow with the volume."""

    def observe_tasks(self, *_: Any, **__: Any) -> dict[Any, dict[Any, Any]]:
        return {}

    def heartbeat(self, *_: Any) -> None:
        pass


EXTENSIONS = {**DEFAULT_EXTENSIONS, "spans": _NoSpans}
"""Of our schedulers."""


def scheduler_options(config: ClusterConfig) -> dict[str, Any]:
    """What every scheduler that a run starts is told; its pages have no password, and so stay on loopback."""
    pages = f"{PAGES_HOST}:0" if config.dashboard else None
    return {"extensions": EXTENSIONS, "dashboard": config.dashboard, "dashboard_address": pages}


def check_place(config: ClusterConfig) -> None:
    """Find out whether a scheduler can be where `cluster` wants it; of Dask's that does not start a loop would be left.

    Raises:
        ConfigError: This machine has no such address or interface.
    """
    try:
        if config.interface:
            get_ip_interface(config.interface)
        else:
            family, kind, protocol, _, address = socket.getaddrinfo(config.host, 0, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as listener:
                listener.bind(address)
    except (OSError, ValueError) as error:
        place = f"interface: {config.interface}" if config.interface else f"host: {config.host}"
        raise ConfigError(
            f"cluster has `{place}`, where no scheduler can listen on this machine ({error}). Name an address or interface that it has: "
            "`ip -br addr` shows them; `host: 127.0.0.1` is what this machine only reaches."
        ) from error


PAGES_HOST = "127.0.0.1"
"""Where a scheduler serves pages, whatever `cluster.host` says."""

"""What every `cluster.kind` is asked for and gives: the module of each has two functions, and imports no pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from distributed import Client
from distributed.deploy import Cluster
from distributed.security import Security

from pipeline.cluster.scheduler import greet_here
from pipeline.config import ClusterConfig
from pipeline.core.machine import Machine
from pipeline.errors import InferenceError

CONNECT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What workers shall be.

    Args:
        workers: Their number.
        threads: Compute threads of each.
        memory_bytes: Limit of each; beyond it the process is ended and its tile tried again.
        device: `cpu`, or `cuda` for a card each.
    """

    workers: int
    threads: int
    memory_bytes: int
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class OpenCluster:
    """Workers that are there, or on their way.

    Args:
        scheduler: Their cluster, or the address of their scheduler.
        security: How to talk to it.
        tend: Replaces what is lost; says what is under way.
    """

    scheduler: Cluster | str
    security: Security | None = None
    tend: Callable[[], str] = lambda: ""


class Kind(Protocol):
    """A `cluster.kind`."""

    def machine(self, config: ClusterConfig) -> Machine:
        """What all workers have together."""

    def start(self, config: ClusterConfig, spec: WorkerSpec, folder: Path) -> AbstractContextManager[OpenCluster]:
        """Start workers, which end with the context; `folder` is for what must lie where all of them see it."""


@contextmanager
def connect(opened: OpenCluster) -> Iterator[Client]:
    """Connect to a scheduler until the context ends.

    Raises:
        InferenceError: It cannot be reached.
    """
    try:
        if isinstance(opened.scheduler, str):
            greet_here(opened.scheduler, opened.security, CONNECT_SECONDS)
        client = Client(opened.scheduler, security=opened.security, timeout=CONNECT_SECONDS)
    except (OSError, TimeoutError, TypeError) as error:  # TypeError: tls:// without certificates
        raise InferenceError(
            f"The scheduler at '{opened.scheduler}' cannot be reached ({error}). Start it, or correct cluster.address; where it "
            "asks for TLS, cluster.security names the certificates."
        ) from error
    with client:
        yield client

"""What runs share: one pool of workers for stages in this process, and one Prefect home for commands."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.cluster.kind import WorkerSpec
from pipeline.cluster.pool import Pool, open_pool
from pipeline.cluster.worker import let_go
from pipeline.config import ClusterConfig
from pipeline.inference import session
from tests.e2e.commands import Command


@pytest.fixture(scope="session")
def workers(tmp_path_factory) -> Iterator[Pool]:
    """Two real workers, started once: a start costs more than a small volume does.

    Dask silences every handler that is there while they run: those by which pytest sees records are not silenced, or tests after
    these, in the same process, would see none.
    """
    levels = {handler: handler.level for handler in logging.getLogger().handlers}
    with open_pool(ClusterConfig(), WorkerSpec(2, 1, 4 * 10**9), tmp_path_factory.mktemp("jobs")) as pool:
        for handler, level in levels.items():
            handler.setLevel(level)
        yield pool


@pytest.fixture
def pooled(workers: Pool, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """The infer stage takes the session's workers; afterwards they let go of the run, as if they had ended."""

    @contextmanager
    def shared(*_: object, **__: object) -> Iterator[Pool]:
        try:
            yield workers
        finally:
            workers.client.run(let_go)

    monkeypatch.setattr(session, "open_pool", shared)
    return workers


@pytest.fixture(scope="session")
def prefect_home(migrated_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for Prefect's database: no test touches the user's own."""
    return shutil.copytree(migrated_home, tmp_path_factory.mktemp("prefect"), dirs_exist_ok=True)


@pytest.fixture(scope="session")
def halotile(prefect_home: Path) -> Callable[..., Command]:
    """Start the command as a user would, in a process of its own."""
    return lambda *arguments: Command(arguments, prefect_home)

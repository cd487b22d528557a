"""One pool of workers for all datasets of these tests, and commands that end with their test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.cluster.kind import WorkerSpec
from pipeline.cluster.pool import Pool, open_pool
from pipeline.config import ClusterConfig
from tests.dataset.dataset_cases import shared_with
from tests.e2e.commands import Command
from tests.storage.conftest import bucket, s3_environment, s3_server  # noqa: F401 - fixtures of these tests too


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Two real workers, started once: a start costs more than a small volume does."""
    with open_pool(ClusterConfig(), WorkerSpec(2, 1, 2 * 10**9), tmp_path_factory.mktemp("jobs")) as pool:
        yield pool


@pytest.fixture
def pooled(workers: Pool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """Datasets of this process take them."""
    with shared_with(workers, monkeypatch):
        yield workers


@pytest.fixture(scope="session")
def prefect_home(migrated_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for Prefect's database."""
    return shutil.copytree(migrated_home, tmp_path_factory.mktemp("prefect"), dirs_exist_ok=True)


@pytest.fixture
def started(prefect_home: Path) -> Iterator[Callable[..., Command]]:
    """Start commands that end with the test, whatever becomes of it."""
    commands: list[Command] = []

    def start(*arguments: object) -> Command:
        commands.append(Command(arguments, prefect_home))
        return commands[-1]

    yield start
    for command in commands:
        if command.is_running():
            command.kill_all()

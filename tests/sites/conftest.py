"""A site on this machine: a real SLURM, a real S3, networks that can be cut, and the bytes that a calm local run writes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.commands import ROOT, Command, wait_until
from tests.pipeline_cases import stored_objects
from tests.sites.site_cases import Machines, Slurm, site_run

UNAVAILABLE = 69


def bring_up(script: str, **environment: str) -> tuple[Callable[[str], str], str]:
    """Run a script of this folder with `up`; gives what runs it with other words, and what it said.

    Where this machine cannot have it, the test is skipped and says so; where it should and has not, it fails.
    """

    def call(words: str) -> str:
        found = subprocess.run(
            ["bash", str(ROOT / "tests" / "sites" / script), *words.split()],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=240,
        )
        if found.returncode == UNAVAILABLE:
            pytest.skip(f"NOT TESTED: this machine cannot have what {script} starts ({found.stderr.strip()})")
        assert found.returncode == 0, f"{script} {words}: {found.stdout}{found.stderr}"
        return found.stdout

    return call, call("up")


@pytest.fixture
def slurm(site: Slurm) -> Iterator[Slurm]:
    """A SLURM with an empty queue."""
    yield site
    site.call("scancel", "--user=root")
    wait_until(lambda: not site.jobs())


@pytest.fixture(scope="session")
def site() -> Iterator[Slurm]:
    """Three nodes of SLURM; commands find them by `SLURM_CONF`, and find `halotile` and this checkout."""
    state = Path(tempfile.mkdtemp(prefix="halotile-slurm-"))  # not pytest's: munge's own user must get there
    call, _ = bring_up("slurm.sh", SITE_SLURM=str(state))
    door = state / "bin" / "halotile"
    with pytest.MonkeyPatch.context() as patch:
        door.parent.mkdir()
        door.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m halotile "$@"\n')
        door.chmod(0o755)
        patch.setenv("SLURM_CONF", str(state / "slurm.conf"))
        patch.setenv("PATH", str(door.parent), prepend=os.pathsep)
        patch.setenv("PYTHONPATH", str(ROOT))
        try:
            yield Slurm(state)
        finally:
            call("down")
    shutil.rmtree(state)


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    """Three machines of their own network each, that no other session has."""
    call, told = bring_up("netns.sh")
    number = int(told)
    try:
        yield Machines(number)
    finally:
        call(f"down {number}")


@pytest.fixture(scope="session")
def gateway() -> Iterator[Callable[[str], None]]:
    """A server of S3, to which the environment leads; gives what kills and starts it."""
    state = Path(tempfile.mkdtemp(prefix="halotile-s3-"))
    call, _ = bring_up("radosgw.sh", SITE_S3=str(state))
    given = {
        "ENDPOINT_URL": (state / "endpoint").read_text().strip(),
        "ACCESS_KEY_ID": "test",
        "SECRET_ACCESS_KEY": "testtest",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(f"AWS_{name}", value)
        try:
            yield call
        finally:
            call("down")
    shutil.rmtree(state)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Start commands, without Prefect, that end with the test, whatever becomes of it."""
    commands: list[Command] = []

    def start(*arguments: object) -> Command:
        commands.append(Command([*arguments, "--no-prefect"], tmp_path / "prefect"))
        return commands[-1]

    yield start
    for command in commands:
        if command.is_running():
            command.kill_all()


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed local run of `site_run` stores."""
    run = site_run(tmp_path_factory.mktemp("calm"), cluster={"workers": 2, "memory_gb": 2})
    command = Command(["run", run.yaml, "--no-prefect"], run.folder / "prefect")
    assert command.wait() == 0, command.error
    return stored_objects(run.output)

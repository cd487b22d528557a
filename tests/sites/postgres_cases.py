"""A throwaway PostgreSQL on the loopback address."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.sites.prefect_cases import free_port


def binaries() -> Path:
    """The folder of the newest server's programs; skips where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found and not shutil.which("initdb"):
        pytest.skip("NOT TESTED: this machine has no PostgreSQL server (apt-get install postgresql)")
    return found[-1].parent if found else Path(shutil.which("initdb") or "").parent


@contextmanager
def postgres() -> Iterator[str]:
    """An empty database of its own; gives Prefect's URL of it. Run by root it runs as `postgres`, since it refuses root."""
    programs = binaries()
    asked = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="halotile-postgres-"))
    if asked:
        shutil.chown(folder, "postgres")

    def call(program: str, *arguments: object) -> None:
        command = [*asked, str(programs / program), *map(str, arguments)]
        found = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120, check=False)
        assert found.returncode == 0, f"{command}: {found.stdout}{found.stderr}"

    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    try:
        call("initdb", "-D", folder / "data", "-A", "trust", "-U", "prefect", "--no-sync")
        call("pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log", "-o", options, "start")
        try:
            call("createdb", "-h", "127.0.0.1", "-p", port, "-U", "prefect", "prefect")
            yield f"postgresql+asyncpg://prefect:secret@127.0.0.1:{port}/prefect"
        finally:
            call("pg_ctl", "-D", folder / "data", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)

"""Encryption between driver, scheduler and workers: whoever reaches an open scheduler's port runs code."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from distributed.security import Security

from pipeline.config import ClusterConfig, TlsConfig
from pipeline.errors import ConfigError

WAIT_SECONDS = 120
"""For certificates that another task of the run makes."""


def security_of(config: Literal["auto", "none"] | TlsConfig, *, wait: bool = False) -> Security | None:
    """A site's certificates as Dask takes them; None where none are named.

    Args:
        config: What names them.
        wait: Whether another process is about to write them.

    Raises:
        ConfigError: A file is not there.
    """
    if not isinstance(config, TlsConfig):
        return None
    deadline = time.monotonic() + WAIT_SECONDS * wait
    while not Path(config.key_file).is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    if missing := [name for name in (config.ca_file, config.cert_file, config.key_file) if not Path(name).is_file()]:
        raise ConfigError(f"cluster.security names '{missing[0]}', which is not a file here. Correct the path.")
    own = {"cert": config.cert_file, "key": config.key_file}
    roles = {f"tls_{role}_{part}": path for role in ("client", "scheduler", "worker") for part, path in own.items()}
    return Security(tls_ca_file=config.ca_file, require_encryption=True, **roles)


def own_security(config: ClusterConfig) -> Security | None:
    """Of a scheduler that a run starts: the site's, else certificates that live as long as the run, else, on loopback, none."""
    if isinstance(config.security, TlsConfig):
        return security_of(config.security)
    return None if config.security == "none" or config.on_loopback else Security.temporary()


def temporary_files(folder: Path, security: Security | None) -> None:
    """Write certificates of a run's own where all of its processes, and this user only, can read them; the key last."""
    if security is None:
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = {"ca": security.tls_ca_file, "cert": security.tls_scheduler_cert, "key": security.tls_scheduler_key}
    for name, text in found.items():
        part = folder / f"{name}.part"
        part.touch(mode=0o600)
        part.write_text(text)
        part.rename(folder / f"{name}.pem")


def security_in(folder: Path, *, wait: bool = False) -> Security | None:
    """What `temporary_files` has written there, or, with `wait`, is about to write in another process."""
    names = {f"{name}_file": str(folder / f"{name}.pem") for name in ("ca", "cert", "key")}
    return security_of(TlsConfig(**names), wait=wait)


@contextmanager
def shared_security(config: ClusterConfig, folder: Path) -> Iterator[Security | None]:
    """That of `own_security`, in files that jobs can read while the context is open."""
    own = own_security(config)
    if own is None or isinstance(config.security, TlsConfig):
        yield own
        return
    keys = folder / f"tls-{uuid.uuid4().hex}"
    temporary_files(keys, own)
    try:
        yield security_in(keys)
    finally:
        shutil.rmtree(keys, ignore_errors=True)

"""Encryption between driver, scheduler and workers: whoever reaches an open scheduler's port runs code.

Loopback is no exception: every user of a machine reaches it. So a scheduler that a run starts speaks TLS on every address, and
takes only those who show the run's certificate, unless the configuration says `none`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import ssl
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from distributed.security import Security

from pipeline.config import ClusterConfig, TlsConfig
from pipeline.errors import ConfigError, StorageError
from pipeline.places.locks import taken

WAIT_SECONDS = 120
"""For certificates that another task of the run makes."""

VALID_BEFORE, VALID_FOR = timedelta(days=1), timedelta(days=3650)
"""Of certificates of a run's own: clocks of nodes differ, and a run may take long."""


class OwnSecurity(Security):
    """Certificates of a run's own, in memory. OpenSSL reads files: they are there while it does, for this user only."""

    def _get_tls_context(self, tls: dict[str, Any], purpose: ssl.Purpose) -> ssl.SSLContext:
        with tempfile.TemporaryDirectory(prefix="halotile-tls-") as folder:  # mode 0700
            for part in ("cert", "key"):
                write_privately(path := Path(folder) / part, tls[part])
                tls = {**tls, part: str(path)}
            context: ssl.SSLContext = super()._get_tls_context(tls, purpose)
            return context


def own_certificates() -> Security:
    """New ones: a key of this run, and a certificate that it has signed itself, which all parties show and trust.

    On the curve P-256: made in a millisecond, where RSA takes up to half a second.
    """
    from cryptography import x509  # noqa: PLC0415 - only who starts a scheduler needs it
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415 - as above
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - as above

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"halotile-{uuid.uuid4().hex}")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - VALID_BEFORE)
        .not_valid_after(now + VALID_FOR)
        .sign(key, hashes.SHA256())
    )
    cert = signed.public_bytes(serialization.Encoding.PEM).decode()
    encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return OwnSecurity(**_of_all_roles(cert, cert, key.private_bytes(*encoding).decode()))


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
    return Security(**_of_all_roles(config.ca_file, config.cert_file, config.key_file))


def _of_all_roles(ca: str, cert: str, key: str) -> dict[str, Any]:
    """Arguments of Security: files, or their text."""
    own = {"cert": cert, "key": key}
    roles = {f"tls_{role}_{part}": value for role in ("client", "scheduler", "worker") for part, value in own.items()}
    return {"tls_ca_file": ca, "require_encryption": True, **roles}


def check_security(config: ClusterConfig) -> None:
    """Find out, before any work, whether parties that show the certificates that are named would take one another.

    Raises:
        ConfigError: A file is not there, cannot be read, is no certificate or key, is a key that others may read, or they do not
            belong together.
    """
    named = config.security
    security = security_of(named)
    if not isinstance(named, TlsConfig) or security is None:
        return
    files = (
        f"cluster.security names ca_file '{named.ca_file}', cert_file '{named.cert_file}', key_file '{named.key_file}'"
    )
    try:
        _refuse_shown(Path(named.key_file))
        if "ENCRYPTED" in Path(named.key_file).read_text(errors="replace"):
            raise ConfigError(
                f"{files}, but the key asks for a passphrase, which no worker can type. Name one without."
            )
        _shake_hands(security)
    except PermissionError as error:
        raise ConfigError(
            f"{files}, but this user may not read one of them ({error.strerror}). Change its permissions."
        ) from error
    except (OSError, ValueError) as error:  # ssl.SSLError is the former
        raise ConfigError(
            f"{files}, but nobody can speak TLS with them ({error}). Likely a file is none in PEM, the key is another certificate's, "
            "the authority has not signed it, or it has expired. Correct the files, or leave them out: `auto` makes some."
        ) from error


def _refuse_shown(key: Path) -> None:
    """Refuse a key of this user that others may read, as ssh does. One of somebody else's is theirs to hide.

    Raises:
        ConfigError: It is shown.
    """
    status = key.stat()
    if status.st_uid == os.getuid() and status.st_mode & 0o077:
        raise ConfigError(
            f"cluster.security names key_file '{key}', which other users may open (mode {status.st_mode & 0o777:04o}): whoever reads it "
            f"could run code as you. Hide it (`chmod 600 {shlex.quote(str(key))}`); where others may have read it, make a new one."
        )


def _shake_hands(security: Security) -> None:
    """A handshake of a client with a scheduler, in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    listening = security.get_listen_args("scheduler")["ssl_context"]
    connecting = security.get_connection_args("client")["ssl_context"]
    server = listening.wrap_bio(to_server, to_client, server_side=True)
    client = connecting.wrap_bio(to_client, to_server)
    for _ in range(3):  # there and back, twice at most, and the server's look at what the client shows
        for end in (client, server):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()


def own_security(config: ClusterConfig) -> Security | None:
    """Of a scheduler that a run starts: the site's, else certificates that live as long as the run; None where it says `none`."""
    if isinstance(config.security, TlsConfig):
        return security_of(config.security)
    return None if config.security == "none" else own_certificates()


def write_privately(path: Path, text: str) -> None:
    """Write a new file that nobody but this user can read, from the first byte on.

    Raises:
        StorageError: The file system does not keep it so.
    """
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123 - with a mode
        if mode := os.fstat(file.fileno()).st_mode & 0o077:
            raise StorageError(
                f"'{path.parent}' lies on a file system that shows a key to others (its files have mode {0o600 | mode:04o}, whatever is "
                "asked for): whoever reads it could run code as you. Choose an output elsewhere, or name certificates of your "
                "site in cluster.security."
            )
        file.write(text)


def own_files(security: Security) -> dict[str, str]:
    """Certificates of a run's own, by the names of the files that are to hold them, the key last."""
    fields = {"ca.pem": "tls_ca_file", "cert.pem": "tls_scheduler_cert", "key.pem": "tls_scheduler_key"}
    return {name: str(getattr(security, field)) for name, field in fields.items()}


def temporary_files(folder: Path, security: Security | None) -> None:
    """Write certificates of a run's own where all of its processes, and this user only, can read them; the key last."""
    if security is None:
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, text in own_files(security).items():
        part = (folder / name).with_suffix(".part")
        part.unlink(missing_ok=True)
        write_privately(part, text)
        part.rename(folder / name)


def security_in(folder: Path, *, wait: bool = False) -> Security | None:
    """What `temporary_files` has written there, or, with `wait`, is about to write in another process."""
    names = {f"{name}_file": str(folder / f"{name}.pem") for name in ("ca", "cert", "key")}
    return security_of(TlsConfig(**names), wait=wait)


@contextmanager
def keep_keys(folder: Path) -> Iterator[None]:
    """Have a folder of keys as long as this process or the context lives: whoever comes after one that was killed removes its keys.

    A file beside the folder is locked before there is one, so a folder whose file nobody holds is nobody's any more.

    Args:
        folder: `tls-...`, of this process alone; beside it lie those of others.

    Raises:
        StorageError: It cannot be locked.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    sweep_keys(folder.parent)
    path = _lock_of(folder)
    with path.open("w") as lock:
        if not taken(lock):
            raise StorageError(f"'{path}' is held by another process, which has the name of this one. Run again.")
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            path.unlink(missing_ok=True)


def sweep_keys(jobs: Path) -> None:
    """Remove the keys that killed drivers left in `OUTPUT.run/jobs`; those of living ones stay.

    Raises:
        StorageError: The file system has no locks.
    """
    for folder in jobs.glob("tls-*/"):
        with suppress(FileNotFoundError), _lock_of(folder).open("r+") as lock:  # none: another has just swept it
            if taken(lock):
                shutil.rmtree(folder, ignore_errors=True)
                _lock_of(folder).unlink(missing_ok=True)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def share_security(config: ClusterConfig, folder: Path) -> Iterator[Security | None]:
    """Write the certificates of `own_security` to files that jobs can read while the context is open."""
    own = own_security(config)
    if own is None or isinstance(config.security, TlsConfig):
        yield own
        return
    keys = folder / f"tls-{uuid.uuid4().hex}"
    with keep_keys(keys):
        temporary_files(keys, own)
        yield security_in(keys)

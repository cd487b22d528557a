"""Proxies that the environment names: none stands between this machine and itself, and none breaks a client."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from pipeline.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")

NAMES = ("http_proxy", "https_proxy", "all_proxy")
"""In capitals too; what other variables of this kind say is nobody's here."""


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Have no request to this machine itself go through a proxy: not to our Prefect server, nor to a store beside us."""
    if not any(environment.get(name) for name in _names()):
        return
    spared = [part.strip() for name in ("no_proxy", "NO_PROXY") for part in environment.get(name, "").split(",")]
    if "*" not in spared:
        environment["no_proxy"] = environment["NO_PROXY"] = ",".join(filter(None, dict.fromkeys([*spared, *LOOPBACK])))


def settle_proxies(url: str | None, *, needs_more: bool = False) -> None:
    """See to it that Prefect's client can be made: httpx makes a transport for every proxy that is named, used or not.

    An `ALL_PROXY` that it cannot use, while nothing but this machine is asked, is taken out of the environment: no other client
    here heeds it.

    Args:
        url: Of a configured Prefect server; None for our own.
        needs_more: Whether another machine is asked by such a client too: Kubernetes' API.

    Raises:
        ConfigError: A proxy cannot be used, and may be needed.
    """
    for name in _names():
        why = _unusable(os.environ.get(name, ""))
        if not why:
            continue
        if name.lower() != "all_proxy" or needs_more or not (url is None or is_loopback(url)):
            from pipeline.places.credentials import redacted  # noqa: PLC0415 - every door imports this module

            raise ConfigError(
                f"The proxy in {name}, '{redacted(os.environ[name])}', cannot be used: {why}. Correct or unset {name}."
            )
        del os.environ[name]


def is_loopback(url: str) -> bool:
    """Whether a URL is of this machine itself."""
    import ipaddress  # noqa: PLC0415 - see above
    from urllib.parse import urlsplit  # noqa: PLC0415 - see above

    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _names() -> list[str]:
    return [spelled for name in NAMES for spelled in (name, name.upper())]


def _unusable(proxy: str) -> str:
    """Why httpx cannot use a proxy; empty where it can, or none is named."""
    if not proxy:
        return ""
    from urllib.parse import urlsplit  # noqa: PLC0415 - see above

    try:
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        port = url.port
    except ValueError as error:
        return str(error)
    if url.scheme in ("socks5", "socks5h"):
        return "" if _can_speak_socks() else "SOCKS needs the package socksio (pip install socksio)"
    if url.scheme not in ("http", "https"):
        return f"its scheme '{url.scheme}' is none of http, https, socks5 and socks5h"
    return "" if url.hostname and (port is None or port > 0) else "it names no host"


def _can_speak_socks() -> bool:
    import importlib.util  # noqa: PLC0415 - see above

    return importlib.util.find_spec("socksio") is not None

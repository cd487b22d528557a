"""Credentials in URLs: found so that they are refused, and kept out of whatever is shown or written.

Passwords of the kind `https://user:secret@host/`, and signatures and tokens in queries. Whether a text carries some is
answered on the safe side, since the text may be a URL, a list of them, or a whole file.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

CONTAINERS = frozenset({"abfs", "abfss", "wasb", "wasbs"})
"""Schemes of Azure, whose URLs are `abfs://container@account...`: what stands before the `@` is no user."""

_AUTHORITY = re.compile(r"([a-z][a-z0-9+.-]*)://([^/\s]*)", re.IGNORECASE)
_CHAIN = re.compile(r"::(?=[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
"""Where `zip://a::https://b` is parted, each part with an authority of its own."""

_QUERY_KEY = re.compile(r"[?&;#]([^=&;#?\s]+)=")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)
_SECRETS = re.compile(
    r"signature|token|secret|passw|credential|apikey|accesskey|accessid|bearer|^(sig|key|auth|authorization|pwd|pass|jwt)$"
)
"""Keys of queries, in small letters and without signs: AWS, Google and Azure sign in these, others give tokens."""


def carried(text: str) -> str | None:
    """What kind of credentials the URLs in a text carry, in words that do not repeat them; None for none."""
    parts = _CHAIN.split(text)
    if any(
        _names_a_user(*found.groups(), part[found.end() :]) for part in parts for found in _AUTHORITY.finditer(part)
    ):
        return "a user or a password"
    if "://" in text and any(_is_secret(key) for key in _QUERY_KEY.findall(text)):
        return "a signature, a token or a key"
    return None


def shown(text: str) -> str:
    """A text for a message: itself, or that it is not shown."""
    return "(not shown: it carries credentials)" if carried(text) else text


def redacted(text: str) -> str:
    """A text of somebody else's making, for a log or a ledger, with what is secret in its URLs blotted out."""
    return _URL.sub(lambda match: _blotted(match[0]), text) if "://" in text else text


def _blotted(url: str) -> str:
    place, mark, query = re.fullmatch(r"([^?#]*)([?#]?)(.*)", url, re.DOTALL).groups()  # type: ignore[union-attr] - any
    if carried(place):
        scheme, _, rest = place.partition("://")
        place = f"{scheme}://***@{rest.rpartition('@')[2]}"
    return f"{place}{mark}{'***' if carried(f'x://{mark}{query}') else query}"


def _names_a_user(scheme: str, authority: str, rest: str) -> bool:
    """Whether an authority has a user; one whose port is no number begins a password that holds a `/` or a space."""
    user, at, _ = authority.rpartition("@")
    if at:
        return ":" in user or scheme.lower() not in CONTAINERS
    return "@" in rest and re.search(r":(?!\d+$)", re.sub(r"\[.*\]", "", authority)) is not None


def _is_secret(key: str) -> bool:
    return _SECRETS.search(re.sub(r"[^a-z0-9]", "", unquote(key).lower())) is not None

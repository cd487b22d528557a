"""Credentials in URLs: users, passwords, and queries that sign or give a token.

Whether a text carries some is answered on the safe side, since the text may be a URL, a list of them, or a whole file.
"""

from __future__ import annotations

import re
from itertools import pairwise

from pipeline.places.credentials.names import decoded, graded

CONTAINERS = frozenset({"abfs", "abfss", "wasb", "wasbs"})
"""Schemes of Azure, whose URLs are `abfs://container@account...`: what stands before the `@` is no user."""

KNOWN = re.compile(
    r"\beyJ[\w-]{8,4000}\.[\w-]+\.[\w-]*|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{15,}|\bxox[abeprs]-[\w-]{10,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bhf_[A-Za-z0-9]{30,}|\bAIza[\w-]{30,}|\bsk-[\w-]{20,}|\bpn[ub]_[A-Za-z0-9]{30,}"
)
"""Tokens that are known by their looks: JWT, GitHub, GitLab, Slack, AWS, Hugging Face, Google, OpenAI, Prefect."""

_AUTHORITY = re.compile(r"([a-z][a-z0-9+.-]{0,30})://([^/\s]*)", re.IGNORECASE)
_CHAIN = re.compile(r"::(?=[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
"""Where `zip://a::https://b` is parted, each part with an authority of its own."""

_QUERY_KEY = re.compile(r"[?&;#]([^=&;#?\s]+)=")
_START = re.compile(r"(?P<quote>\\*['\"])?(?P<scheme>[a-z][a-z0-9+.-]{0,30}):(?:\\*/){2}", re.IGNORECASE)
_UNQUOTED = re.compile(r"[^\s<>'\"]*(?:['\"]\w[^\s<>'\"]*)*")
_GOES_ON = re.compile(r"(?: [^\s&;<>]*)+[&;][\w.%-]+=" + _UNQUOTED.pattern)
"""A query whose value has a space: parameters follow."""


def carried(text: str) -> str | None:
    """What kind of credentials the URLs in a text carry, in words that do not repeat them; None for none."""
    texts = dict.fromkeys((text, decoded(text)))
    return next((kind for one in texts if (kind := _carried(one))), None)


def blotted(text: str) -> str:
    """A text with users, passwords and signing queries of its URLs blotted out; what else it says stays."""
    starts = list(_START.finditer(text))
    if not starts:
        return text
    ends = [min(following.start(), _end_of_line(text, start)) for start, following in pairwise(starts)]
    ends.append(_end_of_line(text, starts[-1]))
    parts, done = [], 0
    for start, end in zip(starts, ends, strict=True):
        parts += [text[done : start.end()], _blotted_one(start, text[start.end() : end])]
        done = end
    return "".join([*parts, text[done:]])


def is_signed(query: str) -> bool:
    """Whether a part of a URL that begins with a `?`, `#`, `;` or `&` signs, or gives a token."""
    keys = _QUERY_KEY.findall(query)
    return any(graded(key) for key in keys) or {"se", "sp"} <= set(keys)  # of a shared access signature of Azure


def _carried(text: str) -> str | None:
    parts = _CHAIN.split(text)
    if any(
        _names_a_user(match[1], match[2], part[match.end() :]) for part in parts for match in _AUTHORITY.finditer(part)
    ):
        return "a user or a password"
    if "://" in text and (is_signed(text) or KNOWN.search(text)):
        return "a signature, a token or a key"
    return None


def _names_a_user(scheme: str, authority: str, rest: str) -> bool:
    """Whether an authority has a user; one whose port is no number begins a password that holds a `/` or a space."""
    user, at, _ = authority.rpartition("@")
    if at:
        return ":" in user or scheme.lower() not in CONTAINERS
    return "@" in rest and _has_password(authority)


def _has_password(authority: str) -> bool:
    bare = re.sub(r"\[.*\]", "", authority).rstrip(":,.;)'\"]>\\")
    return re.search(r":(?!\d+$)", bare) is not None


# --- blotting out -------------------------------------------------------------------------------------------------------


def _end_of_line(text: str, start: re.Match[str]) -> int:
    end = text.find("\n", start.end())
    return len(text) if end < 0 else end


def _blotted_one(start: re.Match[str], text: str) -> str:
    """What follows a scheme, up to the next one or the end of the line."""
    user = _length_of_user(start, text)
    length = _length(start["quote"], text[user:])
    url, rest = text[user : user + length], text[user + length :]
    end = next((at for at, letter in enumerate(url) if letter in "?#;&"), len(url))
    place, mark, query = url[:end], url[end : end + 1], url[end + 1 :]
    if is_signed(f"{mark}{query}"):
        goes_on = None if start["quote"] else _GOES_ON.match(rest)
        query, rest = "***", rest[goes_on.end() :] if goes_on else rest
    return f"{'***@' if user else ''}{place}{mark}{query}{rest}"


def _length(quote: str | None, text: str) -> int:
    """Of a URL: to the quote that was opened before it, or to what no URL holds."""
    closed = re.search(rf"{re.escape(quote)}(?!\w)", text) if quote else None
    if closed:
        return closed.start()
    match = _UNQUOTED.match(text)
    return match.end() if match else 0


def _length_of_user(start: re.Match[str], text: str) -> int:
    """Of the user and the password, with the `@` behind them; 0 where there is none."""
    authority = re.split(r"[/\s]", text, maxsplit=1)[0]
    if not _names_a_user(start["scheme"], authority, text[len(authority) :]):
        return 0
    url = text[: _length(start["quote"], text)]
    place = re.split(r"[?#]", url, maxsplit=1)[0]
    at = max(authority.rfind("@"), place.rfind("@"))
    return (at if at >= 0 else text.rfind("@")) + 1

"""Which names stand before a secret: of a query's parameter, a header, an option, a field.

A name is taken as its words, however it is written: `X-Amz-Security-Token`, `x_amz_security_token`, `xAmzSecurityToken`, `api%5Fkey`.
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import unquote

DECODINGS = 3
"""How often a text is taken as percent-encoded: a URL in a query of a URL is so twice."""

_SURE = re.compile(
    r"passw|passphrase|passcode|secret|pwd$|[a-z]token$|tokenvalue|apikey|sessionid|sessid|clientassertion|codeverifier|accessid"
    r"|(userpass|dbpass|rootpass|adminpass)$|(github|gitlab|devops|azure|ado|gh)pat$|sas(url|uri|query|string)"
    r"|(access|account|shared|private|auth|sign|signing|encrypt|encryption|subscription|master|storage|service|functions?|licen[cs]e|client"
    r"|user|app|application|admin|deploy|ssh|rsa|pgp|gpg|hmac|session|security|aes|consumer|management|secondary|ocp)key"
)
"""In the words of a name, joined."""

_LIKELY = re.compile(r"signature|token|credential|bearer|cookie|oauth|hmac|authorization|authcode|jwt|sig$")
_LIKELY_WORDS = frozenset({"sas", "pat", "otp", "totp", "sid", "sso", "cred", "creds"})
_LAST_WORDS = frozenset({"key", "auth", "pass", "session", "sess", "code", "pin", "ticket"})
_SURE_WORDS = frozenset({"pwd", "jwt"})

_ORDINARY = {
    "code": frozenset(
        [
            "status",
            "error",
            "country",
            "postal",
            "zip",
            "language",
            "lang",
            "exit",
            "return",
            "response",
            "area",
            "color",
            "colour",
            "source",
            "type",
            "http",
            "lookup",
        ]
    ),
    "key": frozenset(["sort", "partition", "object", "row", "foreign", "public", "cache", "index", "group", "chunk"]),
}
"""Words before these that make them no secret."""

Grade = Literal["sure", "likely", ""]


def graded(name: str) -> Grade:
    """How surely what stands under a name is a secret. `likely`: in a URL it is; in prose it depends on the value."""
    words = words_of(name)
    joined = "".join(words)
    if not words:
        return ""
    if _SURE.search(joined) or not _SURE_WORDS.isdisjoint(words):
        return "sure"
    if _LIKELY.search(joined) or not _LIKELY_WORDS.isdisjoint(words) or _ends_as_one(words):
        return "likely"
    return ""


def words_of(name: str) -> list[str]:
    """The words of a name, in small letters."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", decoded(name))
    return [word.lower() for word in re.findall(r"[A-Za-z0-9]+", parted)]


def decoded(text: str) -> str:
    """What a text means where it is percent-encoded, in JSON or in HTML."""
    for _ in range(DECODINGS):
        plain = unquote(text)
        if plain == text:
            break
        text = plain
    text = re.sub(r"\\+u00([0-7][0-9A-Fa-f])", lambda sign: chr(int(sign[1], 16)), text)
    return re.sub(r"\\+/", "/", text).replace("&amp;", "&")


def _ends_as_one(words: list[str]) -> bool:
    last = words[-1]
    return last in _LAST_WORDS and not (len(words) > 1 and words[-2] in _ORDINARY.get(last, ()))

"""Secrets in what libraries say: beside URLs also headers, options of commands, JSON, reprs of Python, XML, and keys by their looks.

Prose stays: `code 404`, `key=value` and `pass 2 of 3` hold no secret. So a name that is also an ordinary word blots its value out only
where that looks like one: letters and digits, and some length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.places.credentials.names import graded, words_of
from pipeline.places.credentials.urls import KNOWN, blotted, carried

BLOT = "***"

_NAME = r"(?P<name>(?:(?:api|access|private|auth|secret|subscription|account|session|security|client|refresh) )?[A-Za-z_%][\w.%+-]{0,80})"
_QUOTE = r"(?P<key>\\*[\"'])"

_HEADS = (
    re.compile(rf"(?<![\w.%+-]){_QUOTE}?{_NAME}(?(key)(?P=key))[ \t]*(?P<sign>=>|[:=])[ \t]*", re.IGNORECASE),
    re.compile(rf"{_QUOTE}-*{_NAME}(?P=key)[ \t]*(?P<sign>,)[ \t]*(?=[bru]*\\*[\"'])", re.IGNORECASE),
    re.compile(rf"(?<![\w-])--?{_NAME}(?P<sign>[ \t]+)(?=[^\s-])", re.IGNORECASE),
    re.compile(r"<(?P<name>[\w:.-]{1,80})(?P<sign>>)(?=[^<>])"),
)
"""What stands before a value: `name=`, `"name": `, `("name", `, `--name `, `<name>`."""

_VALUE = re.compile(
    r"[bru]*(?P<quote>\\*[\"'])(?P<quoted>(?:(?!(?P=quote)(?!\w))(?:\\.|[^\n])){0,1000})(?P=quote)"
    r"|(?P<bare>(?:[^\s,;&<>()\[\]{}'\"\\]|[,;&)\]}'\"](?![\s,;&)\]}'\"\\]|$|[\w.%-]+\s*[=:]))+)"
)
_SCHEME = re.compile(
    r"(?P<head>authorization\\*[\"']?\s*[:=,]\s*[bru]?\\*[\"']?\s*(?:bearer|basic|digest|token|negotiate|apikey|sharedkey(?:lite)?|hawk|aws4-[\w-]+)\s+"
    r"|(?:set-)?cookie\\*[\"']?\s*[:=,]\s*[bru]?\\*[\"']?(?=[^\s=;]+=))[^\n\"'\\]+",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(?P<head>bearer\s+)(?!tokens?\b|auth)[\w.~+/=-]{4,}", re.IGNORECASE)
_BASIC = re.compile(r"\b(?P<head>[Bb]asic\s+)(?=[a-z+/]{0,99}[0-9A-Z=])[A-Za-z0-9+/]{6,}={0,2}(?![\w.])")
_TUPLE = re.compile(r"\b(?P<head>auth\s*[:=]\s*\()[^()\n]+(?=\))", re.IGNORECASE)
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_RELATIVE = re.compile(r"(?<![:/\w])//[^/\s:@]+:[^/\s@]+@")
_RUN = re.compile(r"[^\s'\"<>]+")

_NO_VALUE = frozenset(
    [
        "none",
        "null",
        "true",
        "false",
        "nil",
        "undefined",
        "required",
        "expected",
        "missing",
        "unknown",
        "not",
        "is",
        "are",
        "should",
        "must",
        "and",
        "or",
        "the",
        "a",
        "an",
    ]
)
"""What stands behind a name, and is no secret."""

_IN_PROSE = frozenset({"key", "code", "session", "sess", "auth", "pass", "pin", "ticket"})
"""Last words of names that prose, too, has before a colon."""

LEAST = 6
LEAST_OF_A_KEY = 16
"""Characters of what looks like a secret; there are many keys of other kinds."""


def shown(text: str) -> str:
    """A text for a message: itself, or that it is not shown."""
    return "(not shown: it carries credentials)" if carried(text) or redacted(text) != text else text


def redacted(text: str) -> str:
    """A text of somebody else's making, for a terminal, a log or a ledger, with what is secret in it blotted out."""
    text = blotted(_PEM.sub(BLOT, text))
    text = _RELATIVE.sub(f"//{BLOT}@", text)
    for scheme in (_SCHEME, _BEARER, _BASIC, _TUPLE):
        text = scheme.sub(rf"\g<head>{BLOT}", text)
    for head in _HEADS:
        text = "".join(_without_values(text, head))
    return _RUN.sub(_without_encoded, KNOWN.sub(BLOT, text))


def _without_values(text: str, head: re.Pattern[str]) -> Iterator[str]:
    """A text in parts, without the secrets that stand behind such a head; what is none may be, or hold, another head."""
    done, match = 0, head.search(text)
    while match:
        value = _VALUE.match(text, match.end())
        yield text[done : match.end()]
        done = match.end()
        if value and _is_secret(match, value["quoted"] if value["bare"] is None else value["bare"]):
            quote = value["quote"] or ""
            yield f"{quote}{BLOT}{quote}"
            done = value.end()
        match = head.search(text, done)
    yield text[done:]


def _is_secret(head: re.Match[str], value: str) -> bool:
    grade = graded(head["name"])
    if not grade or not value or value.startswith(BLOT) or value.lower().rstrip(".") in _NO_VALUE:
        return False
    if grade == "sure":
        return True
    last = words_of(head["name"])[-1]
    if head["sign"] == ":" and not head["key"] and last in _IN_PROSE:
        return False
    if last not in _IN_PROSE and (head["sign"] == "=" or ("key" in head.re.groupindex and head["key"])):
        return len(value) >= LEAST and re.search("[A-Za-z]", value) is not None
    return _looks_secret(value, LEAST_OF_A_KEY if last == "key" else LEAST)


def _looks_secret(value: str, least: int) -> bool:
    if len(value) < least or re.fullmatch(r"[\d.,:/x-]+", value):
        return value.isdecimal() and len(value) >= LEAST_OF_A_KEY
    return len(value) >= 24 or (re.search(r"\d", value) is not None and re.search(r"[A-Za-z]", value) is not None)


def _without_encoded(match: re.Match[str]) -> str:
    run = match[0]
    return BLOT if ("%" in run or "\\" in run) and carried(run.replace(f"{BLOT}@", "")) else run

"""Units of length: the specification's names, how people spell them, and what they come to.

Source: OME-NGFF 0.4 and 0.5, section "axes", units of space axes; they are UDUNITS-2's names.
"""

from __future__ import annotations

import html
import re
import unicodedata

_PREFIXES = {
    "yocto": -24, "zepto": -21, "atto": -18, "femto": -15, "pico": -12, "nano": -9, "micro": -6, "milli": -3, "centi": -2, "deci": -1,
    "": 0, "hecto": 2, "kilo": 3, "mega": 6, "giga": 9, "tera": 12, "peta": 15, "exa": 18, "zetta": 21, "yotta": 24,
}  # fmt: skip

_OTHERS = {
    "angstrom": 0.1,
    "inch": 2.54e7,
    "foot": 3.048e8,
    "yard": 9.144e8,
    "mile": 1.609344e12,
    "parsec": 3.0856775814913673e25,
}

NANOMETERS = {f"{prefix}meter": 10.0 ** (power + 9) for prefix, power in _PREFIXES.items()} | _OTHERS
"""How many nanometers one is, by the specification's name; no other name is written."""

_SYMBOLS = {
    "fm": "femtometer", "pm": "picometer", "nm": "nanometer", "um": "micrometer", "mm": "millimeter", "cm": "centimeter",
    "dm": "decimeter", "m": "meter", "km": "kilometer", "in": "inch", '"': "inch", "ft": "foot", "yd": "yard", "mi": "mile",
    "pc": "parsec", "å": "angstrom", "ångström": "angstrom", "ångstrom": "angstrom", "angström": "angstrom", "micron": "micrometer",
    "inches": "inch", "feet": "foot",
}  # fmt: skip

_AMBIGUOUS = frozenset({"Mm", "Pm", "Pc"})
"""Megameter or millimeter, petameter or picometer: nobody knows which was meant, and they are 10^9 apart."""


def unit_of(spelling: object) -> str | None:
    """The specification's name of a unit of length; None for what is none, such as `pixel`, or is no text at all."""
    text = spelling.decode("utf-8", "replace") if isinstance(spelling, bytes) else spelling
    if not isinstance(text, str) or len(text) > 100 or text.strip() in _AMBIGUOUS:
        return None
    text = re.sub(r"\\u(00[bB]5|03[bB][cC])", "u", html.unescape(text))  # as Java writes a micro sign
    text = unicodedata.normalize("NFKC", text).replace("Âμ", "μ").lower()  # UTF-8 that was read as Latin-1
    text = re.sub(r"[\s_.\0-]+", "", text.replace("μ", "u"))
    text = re.sub(r"metres?$|meters$", "meter", text)
    return _named(text) or (_named(text[:-1]) if text.endswith("s") and len(text) > 4 else None)


def _named(text: str) -> str | None:
    return text if text in NANOMETERS else _SYMBOLS.get(text)

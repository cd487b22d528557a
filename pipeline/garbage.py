"""How often Python looks for garbage, in the command and in each of its workers. Standard library only: both begin with it."""

from __future__ import annotations

import gc

SELDOM = (20_000, 20, 50)
"""Modules that are imported make none, and looking for it is a fifth of what they cost."""


def collect_seldom() -> None:
    """Have this process look for garbage seldom, from now on."""
    gc.set_threshold(*SELDOM)

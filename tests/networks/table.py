"""The table of `docs/networks.md`, of what `make test-networks` measured: `python -m tests.networks.table`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.core.network.receptive import reach
from tests.networks.library_networks import CASES, MADE, committed, manifest

PAGE = Path(__file__).parents[2] / "docs" / "networks.md"

HEAD = """# Networks of other libraries

Written by `make test-networks`, which makes small networks of each library anew, with random weights and statistics, and holds what is
imported of them against the libraries' own modules. Differences are the largest, as shares of the output's range.

* **Stride** and **halo** (before, after) are voxels along z, y, x, as the graph says them; they are equal to what the library's layers say and to where
  gradients of a block of one stride reach, or the command fails.
* **Graph**: the imported graph against one whole pass of the module, float64.
* **Tile**: a block of one stride with its halo, against the module's whole pass, float64. **One stride less**: the same with a halo that is one
  stride short: how much a halo that somebody guessed would be off with these weights.
* **Command line**: `halotile import` and `halotile run` in float32, all tiles, against one whole pass of the module in float64.
"""

COLUMNS = "| library | network | stride | halo | graph | tile | one stride less | command line |\n|---|---|---|---|---|---|---|---|\n"

WHOLE = """
## With norms over the whole input

No tile of these is exact by itself. The graph is held against the module's whole pass all the same, float64; what they need to be
tiled stands in [the README](../README.md#the-network).

| library | network | graph |
|---|---|---|
"""


def _library(entry: dict[str, Any]) -> str:
    name = entry["library"]
    return f"{name} {entry['versions'][name]}" if name else "none: `tests/networks/cnnectome.py`"


def _halo(sides: tuple[tuple[int, int], ...]) -> str:
    return " x ".join(f"({before}, {after})" for before, after in sides)


def page(said: dict[str, Any], figures: dict[str, Any]) -> str:
    """The page.

    Args:
        said: The manifest.
        figures: What was measured, by name.
    """
    local, whole = [], []
    for name, case in CASES.items():
        entry, found = said[name], figures[name]
        start = f"| {_library(entry)} | {case.title} |"
        if case.whole:
            whole.append(f"{start} {found['graph']:.1e} |\n")
            continue
        stride = " x ".join(str(n) for n in entry["stride"])
        shown = " | ".join(f"{found[key]:.1e}" for key in ("graph", "tile", "short", "command"))
        local.append(f"{start} {stride} | {_halo(reach(committed(name).graph))} | {shown} |\n")
    torch = next(iter(said.values()))["versions"]["torch"]
    return f"{HEAD}\nWith torch {torch}.\n\n{COLUMNS}{''.join(local)}{WHOLE}{''.join(whole)}"


def main() -> None:
    """Write it."""
    text = page(manifest(MADE), json.loads((MADE / "figures.json").read_text()))
    PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()

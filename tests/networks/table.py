"""The table of `docs/networks.md`, of what `make test-networks` measured: `python -m tests.networks.table`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.core.network.local import local
from pipeline.core.network.receptive import reach
from tests.networks.library_networks import CASES, MADE, committed, manifest

PAGE = Path(__file__).parents[2] / "docs" / "networks.md"

HEAD = """# Networks of other libraries

Written by `make test-networks`, which makes small networks of each library anew, with random weights and statistics, and holds what is
imported of them against the libraries' own modules. Differences are the largest, as shares of the output's range.

* **Stride** and **halo** (before, after) are voxels along z, y, x, as the graph says them; they are equal to what the library's layers say and to where
  gradients of a block of one stride reach, or the command fails.
* **Graph**: the imported graph against one whole pass of the module, float64.
* **Tile**: a block of one stride with its halo, against the module's whole pass, float64. **One stride less**: the same on the next smaller
  window that the network takes, one stride less at each side. It is more than 1e-4, or the command fails: ten times what the command line may be off.
  Where blocks that see far have small weights beside many that see little, as in SegResNet and both of CAREamics, weights as random as the others'
  leave 3e-5, 2e-5 and 2e-6 there. These have larger ones (gain 2), and the outermost of each kernel are four times the others; of N2V2, whose next
  smaller window lacks one voxel alone, which fixed blurs weigh by 1/16, eight times. Both are in the manifest.
* **Command line**: `halotile import` and `halotile run` in float32, all tiles, against one whole pass of the module in float64.
"""

COLUMNS = "| library | network | stride | halo | graph | tile | one stride less | command line |\n|---|---|---|---|---|---|---|---|\n"

WHOLE = """
## With norms over the whole input, frozen

No tile of these is exact by itself; with `model.statistics: frozen` (see [the README](../README.md#the-network)) all are. Beside what stands above:

* **Module**: all tiles of half the volume a side by the statistics of all of it, against the module's own whole pass, float64: the same
  function, for which nothing is frozen in the module.
* **Tile**: the same by the statistics of four patches of half the volume a side, against one pass by these, float64.
* **Own statistics**: half of the volume as a window by itself, as sliding windows have it, against the module's pass: the control.
* **Command line**: `halotile run` by the statistics of four patches, float32, all tiles, against one pass by what it measured, float64.
* **Frozen**, **sliding**: the report's distances from the network's own pass over a region: with frozen statistics, and by plain windows of half
  its extent with their own; means of absolute differences, as shares of the range. Of noise and random weights they say little about anybody's network.

| library | network | stride | halo | graph | module | tile | own statistics | command line | frozen | sliding |
|---|---|---|---|---|---|---|---|---|---|---|
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
    own, whole = [], []
    for name, case in CASES.items():
        entry, found = said[name], figures[name]
        keys = ("graph", "module", "tile", "window", "command") if case.whole else ("graph", "tile", "short", "command")
        shown = [f"{found[key]:.1e}" for key in keys]
        if case.whole:
            shown += [f"{found[key]:.3f}" for key in ("frozen", "sliding")]
        stride = " x ".join(str(n) for n in entry["stride"])
        halo = _halo(reach(local(committed(name).graph)))
        line = " | ".join([_library(entry), case.title, stride, halo, *shown])
        (whole if case.whole else own).append(f"| {line} |\n")
    torch = next(iter(said.values()))["versions"]["torch"]
    return f"{HEAD}\nWith torch {torch}.\n\n{COLUMNS}{''.join(own)}{WHOLE}{''.join(whole)}"


def main() -> None:
    """Write it."""
    text = page(manifest(MADE), json.loads((MADE / "figures.json").read_text()))
    PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()

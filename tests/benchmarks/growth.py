"""Time and memory as the volume grows, ours alone: along z with the column fixed, and along all axes.

python -m tests.benchmarks.growth
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.contenders import measured, prepare

BASE = 64
OURS = "halotile-bfloat16"
FACTORS = {
    "1x": (1, 1, 1),
    "4x along z": (4, 1, 1),
    "16x along z": (16, 1, 1),
    "8x, all axes": (2, 2, 2),
    "64x, all axes": (4, 4, 4),
}


def growth(base: int, threads: int) -> list[dict[str, Any]]:
    """One row a size, in bfloat16; the better of two runs."""
    rows = []
    for name, factors in FACTORS.items():
        shape = tuple(base * factor for factor in factors)
        with tempfile.TemporaryDirectory() as scratch:
            prepare(Path(scratch), shape)
            runs = [measured("contenders", OURS, folder=Path(scratch), threads=threads) for _ in range(2)]
        found = min(runs, key=lambda run: run["seconds"])
        voxels = shape[0] * shape[1] * shape[2]
        rows.append({"name": name, "shape": shape, "mvoxel_per_s": voxels / found["seconds"] / 1e6, **found})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| volume | z, y, x | seconds | Mvoxel/s | peak memory, GB |", "|---|---|---:|---:|---:|"]
    for row in rows:
        shape = " x ".join(map(str, row["shape"]))
        figures = f"{row['seconds']:.2f} | {row['mvoxel_per_s']:.2f} | {row['peak_bytes'] / 1e9:.2f}"
        lines.append(f"| {row['name']} | {shape} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Time and memory as the volume grows.")
    parser.add_argument("--base", type=int, default=BASE, help="extent of the smallest volume")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    print(table(growth(asked.base, asked.threads)))


if __name__ == "__main__":
    main()

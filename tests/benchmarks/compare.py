"""Ours beside others that segment large volumes: same volume, network and machine, in one run. `make bench`.

    python -m tests.benchmarks.compare [--extent 256] [--repeats 2] [--threads 2]
    python -m tests.benchmarks.compare --against COMMIT    # instead, ours beside ours as of that commit: see against.py

Contenders take turns, so that what else the machine does hits all alike. Writes a page for people and a file for programs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pipeline.core.network.receptive import least_halo
from pipeline.core.tiles.cost import one_pass_multiply_adds
from pipeline.networks.device import cpuinfo
from tests.benchmarks import against, growth, reads
from tests.benchmarks.contenders import ARCHITECTURE, BOUNDS, CONTENDERS, CORE, ROOT, Contender, measured, prepare

PACKAGES = ("torch", "dask", "zarr", "zarrs", "monai", "torchio")

PAGE = """# Benchmarks

Made by `python -m tests.benchmarks.compare` on {date}: {processor}, {threads} threads of {cores} cores, load {load:.1f} at
the start; commit {commit}; {versions}.

## One volume of {extent}³ voxels

A UNet of depth {depth} and width {width} ({work:.1f} k multiply-adds a voxel), with random weights and batch-norm statistics, over
8-bit noise; the answer is a sigmoid in 8 bits. Every contender runs in a process of its own, with the same threads and the
same allocator settings; rounds in which each has its turn: {repeats}. Peers begin and end in memory; ours reads a Zarr in chunks
of 64³, and writes and checksums an OME-Zarr (`stages.infer.seconds`; memory is the worker's).

Errors are differences of the sigmoid from float64, of which rounding to 8 bits explains {step:.4f} at most and half of that on
average. An answer is exact where no voxel is further from float64 than twice what one pass in the same dtype is. The
interior lies {halo} voxels and more inside the volume. The float64 answer is streamed; over the corner of {corner} voxels it is
within {difference:.1g} of one plain float64 pass.

{contenders}

"Of the limit" is the least time of one pass in the same dtype by the least time of the contender. One pass is the better of
two, in warm memory, batch norm folded and channels last, and holds the whole volume's features at once; a contender that holds
few at a time can pass it. The bound is the same arithmetic at the rate of large square matrix
products, measured in the same run.

## Growth

Ours in bfloat16, otherwise as planned; the better of two runs; memory is the worker's.

{growth}

## Reads

Windows of {core}³ tiles with their halo of {halo} voxels, from chunks of 64³ in the page cache; voxels asked for a second.

{reads}
"""


# --- measuring ----------------------------------------------------------------------------------------------------------


def compare(folder: Path, extent: int, repeats: int, threads: int) -> dict[str, Any]:
    """All contenders over one volume, which is made in `folder` with its float64 answer unless they are there."""
    kept = folder / "reference.json"
    if not kept.exists():
        prepare(folder, (extent,) * 3)
        _say("the float64 answer: minutes")
        kept.write_text(json.dumps(measured("reference", folder=folder, threads=threads)))
    if np.load(folder / "volume.npy", mmap_mode="r").shape != (extent,) * 3:
        raise SystemExit(f"'{folder}' holds a volume of another extent than {extent}. Name another folder.")
    present = [contender for contender in (*CONTENDERS, *BOUNDS) if contender.installed]
    runs: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in present}
    for turn in range(repeats):
        for contender in present:
            runs[contender.name].append(measured("contenders", contender.name, folder=folder, threads=threads))
            _say(f"{turn + 1}/{repeats} {contender.name}: {runs[contender.name][-1]['seconds']:.2f} s")
    limits = {c.dtype: min(r["seconds"] for r in runs[c.name]) for c in CONTENDERS if c.name.startswith("limit-")}
    rows = [_row(contender, runs.get(contender.name), folder, limits) for contender in (*CONTENDERS, *BOUNDS)]
    _judge(rows)
    return {
        "extent": extent,
        "repeats": repeats,
        "threads": threads,
        "reference": json.loads(kept.read_text()),
        "rows": rows,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _row(
    contender: Contender, runs: Sequence[dict[str, Any]] | None, folder: Path, limits: dict[str, float]
) -> dict[str, Any]:
    """What is told of a contender: seconds, rate, share of the limit, error, memory."""
    row = {"name": contender.name, "title": contender.title, "dtype": contender.dtype}
    if runs is None:
        return {**row, "not_installed": f"pip install {contender.package}"}
    seconds = [run["seconds"] for run in runs]
    voxels = np.load(folder / "volume.npy", mmap_mode="r").size
    output = folder / f"{contender.name}.npy"
    return {
        **row,
        "seconds": {"median": median(seconds), "min": min(seconds), "all": seconds},
        "mvoxel_per_s": voxels / median(seconds) / 1e6,
        "of_limit": limits[contender.dtype] / min(seconds),
        "error": _errors(output, folder / "reference.npy") if output.exists() else None,
        "peak_bytes": max(run["peak_bytes"] for run in runs),
    }


def _judge(rows: list[dict[str, Any]]) -> None:
    """Add to each row whether its answer is exact."""
    allowed = {row["dtype"]: 2 * row["error"]["max"] for row in rows if row["name"].startswith("limit-")}
    for row in rows:
        if row.get("error"):
            row["exact"] = row["error"]["max"] <= allowed[row["dtype"]]


def _errors(output: Path, reference: Path) -> dict[str, float | None]:
    """Largest and mean difference from float64, and the largest away from the volume's ends."""
    found, expected = np.load(output, mmap_mode="r"), np.load(reference, mmap_mode="r")
    inside = tuple(slice(h, n - h) for h, n in zip(least_halo(ARCHITECTURE.graph), found.shape, strict=True))
    largest = inner = total = 0.0
    for z, difference in _differences(found, expected):
        largest, total = max(largest, float(difference.max())), total + float(difference.sum())
        if inside[0].start <= z < inside[0].stop:
            inner = max(inner, float(difference[inside[1:]].max(initial=0.0)))
    empty = any(part.stop <= part.start for part in inside)
    return {"max": largest, "mean": total / found.size, "interior_max": None if empty else inner}


def _differences(found: np.ndarray, expected: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for z in range(found.shape[0]):
        yield z, np.abs(found[z] / 255 - expected[z])


def context() -> dict[str, Any]:
    """When, where and with what."""
    asked = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "processor": cpuinfo("model name"),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "commit": commit,
        "versions": {package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


# --- telling ------------------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    names = ("contender", "dtype", "seconds, median (least)", "Mvoxel/s", "of the limit", "exact", "largest error")
    names += ("in the interior", "mean error", "memory, GB")
    lines = [f"| {' | '.join(names)} |", "|---|---|---:|---:|---:|:---:|---:|---:|---:|---:|"]
    return "\n".join([*lines, *map(_line, rows)])


def _line(row: dict[str, Any]) -> str:
    head = f"| {row['title']} | {row['dtype']} |"
    if "not_installed" in row:
        return f"{head} not installed: `{row['not_installed']}` | | | | | | | |"
    seconds, error, memory = row["seconds"], row["error"], row["peak_bytes"] / 1e9
    speed = f" {seconds['median']:.1f} ({seconds['min']:.1f}) | {row['mvoxel_per_s']:.2f} | {row['of_limit']:.2f} |"
    if error is None:
        return f"{head}{speed} | | | | |"
    inner = "" if error["interior_max"] is None else f"{error['interior_max']:.4f}"
    exact = "yes" if row["exact"] else "no"
    return f"{head}{speed} {exact} | {error['max']:.4f} | {inner} | {error['mean']:.5f} | {memory:.2f} |"


def page(found: dict[str, Any]) -> str:
    """The page for people."""
    extent, where = found["extent"], found["context"]
    return PAGE.format(
        **{key: where[key] for key in ("date", "processor", "cores", "load", "commit")},
        **{key: found[key] for key in ("extent", "repeats", "threads")},
        versions=", ".join(f"{package} {told}" for package, told in where["versions"].items()),
        depth=ARCHITECTURE.depth,
        width=ARCHITECTURE.width,
        work=one_pass_multiply_adds(ARCHITECTURE.graph, (extent,) * 3) / extent**3 / 1e3,
        step=0.5 / 255,
        halo=least_halo(ARCHITECTURE.graph)[0],
        core=CORE,
        corner=" x ".join(map(str, found["reference"]["corner"])),
        difference=found["reference"]["difference"],
        contenders=table(found["rows"]),
        growth=growth.table(found["growth"]),
        reads=reads.table(found["reads"]),
    )


def _extent(text: str) -> int:
    value = int(text)
    if value < 1 or value % 2**ARCHITECTURE.depth:
        raise argparse.ArgumentTypeError(f"{value} is no multiple of the network's stride {2**ARCHITECTURE.depth}")
    return value


def main() -> None:
    """Measure, and write the page and the file."""
    parser = argparse.ArgumentParser(description="Ours beside others that segment large volumes.")
    parser.add_argument(
        "--against", metavar="COMMIT", help="compare this checkout with another of its commits, end to end"
    )
    parser.add_argument("--extent", type=_extent, help="voxels along each axis (256; against a commit 128)")
    parser.add_argument("--repeats", type=int, help="turns of each contender (2; against a commit 7)")
    parser.add_argument("--threads", type=int, default=2, help="that compute, of each contender")
    parser.add_argument("--folder", type=Path, help="keeps the volume and its float64 answer for the next run")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks.json", help="the file for programs")
    parser.add_argument("--table", type=Path, default=ROOT / "docs" / "benchmarks.md", help="the page for people")
    asked = parser.parse_args()
    if asked.against:
        comparisons = against.against(
            asked.against, asked.extent or 128, asked.repeats or against.ROUNDS, asked.threads
        )
        print(against.table(comparisons))
        raise SystemExit(against.is_bad(comparisons))
    extent = asked.extent or 256
    found = {"context": context()}
    with tempfile.TemporaryDirectory() as scratch:
        found |= compare(asked.folder or Path(scratch), extent, asked.repeats or 2, asked.threads)
    _say("growth")
    found["growth"] = growth.growth(growth.BASE, asked.threads)
    _say("reads")
    found["reads"] = reads.reads(extent, reads.REPEATS, asked.threads)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    asked.table.write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()

"""This checkout beside another of its commits, end to end: how long `halotile run` takes, and whether it writes the same bytes.

    python -m tests.benchmarks.compare --against COMMIT                  # seven rounds, 128 voxels along each axis
    python -m tests.benchmarks.compare --against COMMIT --extent 256

Both run by this interpreter and its libraries, each from its own folder: the other commit's is a worktree of git, which is removed.
They take turns, and who begins changes with each round, so that what else the machine does hits both alike. Compared are the least
times: of the whole command by the clock, of its infer stage, and of the processor in the command and all of its processes. Where
the rounds of one side lie further apart than the bar, the ratio of its times decides nothing.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from pipeline.core.network.unet import Architecture
from pipeline.networks.device import computes_bfloat16
from tests.benchmarks.contenders import CHUNK, ROOT, environment
from tests.pipeline_cases import random_network, random_volume, save_array, stored_objects

BAR = 0.03
"""What a change that moves walls may cost, or seem to win."""

ROUNDS, LEAST_ROUNDS = 7, 3
"""Turns of each side, and how many decide anything."""

TIMES = ("command", "infer", "processor")
"""Seconds of the whole command, of its infer stage, and of the processor in all of its processes."""


@dataclass(frozen=True)
class Case:
    """One run that both checkouts do.

    Args:
        architecture: Of the network, which has random weights.
        dtype: Of values inside it.
    """

    architecture: Architecture
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.architecture.ndim}D-{self.dtype}"


CASES = (
    Case(Architecture(ndim=3, depth=3, width=16), "bfloat16"),
    Case(Architecture(ndim=3, depth=3, width=16), "float32"),
    Case(Architecture(ndim=2, depth=4, width=16), "float32"),
)


@dataclass(frozen=True)
class Comparison:
    """What came of a case.

    Args:
        case: Its name.
        here: Seconds of each round of this checkout, by `TIMES`.
        there: The same of the other commit.
        differing: Stored objects of the output that are not equal to the byte, or that only one side has.
        objects: How many were compared.
    """

    case: str
    here: dict[str, list[float]]
    there: dict[str, list[float]]
    differing: tuple[str, ...]
    objects: int

    def ratio(self, of: str) -> float:
        """Least time here / least time there."""
        return min(self.here[of]) / min(self.there[of])

    def verdict(self, of: str, bar: float = BAR) -> str:
        """`within`, `slower` or `faster` by more than the bar, or `undecided`: few rounds, or far apart."""
        if len(self.here[of]) < LEAST_ROUNDS or max(spread(self.here[of]), spread(self.there[of])) > bar:
            return "undecided"
        ratio = self.ratio(of)
        return "slower" if ratio > 1 + bar else "faster" if ratio < 1 - bar else "within"


def spread(seconds: list[float]) -> float:
    """How far the better half of the rounds lies apart, as a share of the least."""
    better = sorted(seconds)[: len(seconds) // 2 + 1]
    return better[-1] / better[0] - 1


def against(commit: str, extent: int, rounds: int, threads: int, cases: tuple[Case, ...] = CASES) -> list[Comparison]:
    """All cases, in turns of this checkout and another of its commits.

    Args:
        commit: As git names it.
        extent: Voxels of the volume along each axis.
        rounds: Turns of each side.
        threads: That compute, of the one worker.
        cases: What is run.

    Raises:
        RuntimeError: There is no such commit, or a run failed.
    """
    with tempfile.TemporaryDirectory() as scratch, _worktree(commit, Path(scratch) / "there") as other:
        found = []
        for case in cases:
            if case.dtype == "bfloat16" and not computes_bfloat16("cpu"):
                _say(f"{case.name}: left out, this processor has no bfloat16")
                continue
            folder = Path(scratch) / case.name
            folder.mkdir()
            _prepare(folder, case, extent)
            found.append(_compared(case, folder, {"here": ROOT, "there": other}, rounds, threads))
        return found


@contextmanager
def _worktree(commit: str, folder: Path) -> Iterator[Path]:
    """Files of a commit in a folder of their own."""
    _git("worktree", "add", "--detach", str(folder), commit)
    try:
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))


def _git(*arguments: str) -> None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"git {' '.join(arguments)} failed: {done.stderr.strip()}")


def _prepare(folder: Path, case: Case, extent: int) -> None:
    volume = random_volume((extent,) * 3)
    save_array(folder / "volume.zarr", volume, tuple(min(CHUNK, n) for n in volume.shape))
    torch.save(random_network(case.architecture).state_dict(), folder / "weights.pt")


def _compared(case: Case, folder: Path, trees: dict[str, Path], rounds: int, threads: int) -> Comparison:
    seconds = {side: {of: [] for of in TIMES} for side in trees}
    for turn, side in product(range(rounds), range(len(trees))):
        name = list(trees)[(turn + side) % 2]
        times = _run(case, folder, trees[name], name, threads)
        for of in TIMES:
            seconds[name][of].append(times[of])
        _say(f"{case.name} {turn + 1}/{rounds} {name}: {', '.join(f'{of} {times[of]:.2f} s' for of in TIMES)}")
    here, there = (stored_objects(folder / f"{name}.zarr") for name in trees)
    differing = tuple(sorted(key for key in here.keys() | there.keys() if here.get(key) != there.get(key)))
    return Comparison(case.name, seconds["here"], seconds["there"], differing, len(here))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run(case: Case, folder: Path, tree: Path, name: str, threads: int) -> dict[str, float]:
    """One run of a checkout, from nothing; its times."""
    output = folder / f"{name}.zarr"
    for path in (output, Path(f"{output}.run")):
        shutil.rmtree(path, ignore_errors=True)
    config = folder / f"{name}.yaml"
    config.write_text(json.dumps(_config(case, folder, output, threads)))
    variables = environment(folder, threads) | {"PYTHONPATH": "", "PREFECT_HOME": str(folder / f"prefect-{name}")}
    command = [sys.executable, "-m", "halotile", "run", str(config)]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=tree, env=variables, capture_output=True, text=True, check=False)
    elapsed, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"halotile run of '{tree}' failed:\n{done.stderr[-2000:]}")
    report = json.loads(Path(f"{output}.run", "report.json").read_text())
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"command": elapsed, "infer": report["stages"]["infer"]["seconds"], "processor": processor}


def _config(case: Case, folder: Path, output: Path, threads: int) -> dict[str, object]:
    return {
        "input": {"url": str(folder / "volume.zarr")},
        "output": {"url": str(output), "dtype": "uint8", "activation": "sigmoid"},
        "model": {"checkpoint": str(folder / "weights.pt")},
        "normalize": {"mode": "percentile"},
        "compute": {"device": "cpu", "dtype": case.dtype, "threads": threads},
        "cluster": {"workers": 1},
    }


def table(found: list[Comparison]) -> str:
    """Markdown: a line for each case and time."""
    lines = [
        "| run | time of | least here, s | least there, s | here / there | within 3 %? | output |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for one, of in product(found, TIMES):
        number = len(one.differing)
        equal = (
            f"{number} object{' differs' if number == 1 else 's differ'}" if number else f"{one.objects} objects equal"
        )
        times = f"{min(one.here[of]):.2f} | {min(one.there[of]):.2f} | {one.ratio(of):.3f}"
        lines.append(f"| {one.case} | {of} | {times} | {one.verdict(of)} | {equal} |")
    return "\n".join(lines)


def is_bad(found: list[Comparison]) -> bool:
    """Whether a case is slower than the bar allows, or writes other bytes."""
    return any(one.differing or "slower" in {one.verdict(of) for of in TIMES} for one in found)

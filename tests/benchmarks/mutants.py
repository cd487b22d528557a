"""Which changes of one operator do a file's own tests not notice?

    python -m tests.benchmarks.mutants                              # a sample of 100, over all files below
    python -m tests.benchmarks.mutants --sample 40 --seed 7 pipeline/core/tiles/grid.py pipeline/core/assignments.py

A mutant is the file with one operator replaced by its neighbour: `<` by `<=`, `+` by `-`, `and` by `or`, `min` by `max`. Its tests run
in a copy of the tree, up to the first failure; they notice it where they fail, or do not end. What survives is told with its line:
either a test is missing, or both mean the same there (of two that are equal, either is the least).

Each is tried in a fork of this process, which has imported what is slow and nothing of ours.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

TESTS = {
    "pipeline/core/geometry/axes.py": ("tests/core/test_axes.py", "tests/storage/test_told.py"),
    "pipeline/core/geometry/lengths.py": ("tests/storage/test_told.py",),
    "pipeline/core/locations.py": ("tests/core/test_locations.py", "tests/storage/test_places.py"),
    "pipeline/core/network/*.py": (
        "tests/core/test_graph.py",
        "tests/core/test_schedule.py",
        "tests/core/test_need.py",
        "tests/core/test_receptive.py",
    ),
    "pipeline/core/printable.py": ("tests/test_logs.py", "tests/dataset/test_summary.py"),
    "pipeline/core/stored.py": ("tests/core/test_stored.py", "tests/storage/test_inventory.py"),
    "pipeline/core/volume.py": ("tests/core/test_volume.py", "tests/storage/test_told.py"),
    "pipeline/engine.py": ("tests/test_engine.py",),
    "pipeline/networks/sweep.py": ("tests/unet/test_sweep.py", "tests/test_exactness.py"),
}
"""Those of a file whose tests are not `tests/core/test_NAME.py`, the fastest first."""

SLOW = ("h5py", "hypothesis", "numpy", "pytest", "tifffile", "torch", "zarr")

PATIENCE = 5
"""After so many times as long as they take of the file as it is, and `MORE_SECONDS`, tests are taken to hang."""

MORE_SECONDS = 20

OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: (" is ", " is not "),
    ast.IsNot: (" is not ", " is "),
    ast.In: (" in ", " not in "),
    ast.NotIn: (" not in ", " in "),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "+"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.And: (" and ", " or "),
    ast.Or: (" or ", " and "),
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """A file with one operator changed.

    Args:
        path: The file, from the root.
        start: Of what is replaced, characters.
        stop: Its end.
        text: What stands there instead.
    """

    path: str
    start: int
    stop: int
    text: str

    def applied(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.stop :]

    def told(self, source: str) -> str:
        """Where it is, and both forms of its line."""
        number = source.count("\n", 0, self.start) + 1
        there = self.applied(source).splitlines()[number - 1].strip()
        return f"{self.path}:{number}: {source.splitlines()[number - 1].strip()}  ->  {there}"


def mutants(path: str, source: str) -> Iterator[Mutant]:
    """All mutants of a file."""
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))

    def offset(node: ast.AST, *, end: bool = False) -> int:
        row, column = (node.end_lineno, node.end_col_offset) if end else (node.lineno, node.col_offset)
        return lines[row - 1] + len(source[lines[row - 1] :].encode()[:column].decode())

    def between(left: ast.AST, operator: ast.AST, right: ast.AST) -> Iterator[Mutant]:
        if type(operator) not in OPERATORS:
            return
        sign, other = OPERATORS[type(operator)]
        start = source.find(sign.strip(), offset(left, end=True), offset(right))
        if start >= 0:
            yield Mutant(path, start, start + len(sign.strip()), other.strip())

    for node in ast.walk(ast.parse(source)):
        for left, operator, right in _operations(node):
            yield from between(left, operator, right)
        match node:
            case ast.UnaryOp(ast.Not(), _):
                yield Mutant(path, offset(node), offset(node) + len("not "), "")
            case ast.Call(ast.Name(name) as function) if name in NAMES:
                yield Mutant(path, offset(function), offset(function, end=True), NAMES[name])


def _operations(node: ast.AST) -> list[tuple[ast.AST, ast.AST, ast.AST]]:
    """What stands left of an operator, the operator, what stands right."""
    match node:
        case ast.BinOp(left, operator, right) | ast.AugAssign(left, operator, right):
            return [(left, operator, right)]
        case ast.Compare(left, operators, others):
            return [*zip([left, *others[:-1]], operators, others, strict=True)]
        case ast.BoolOp(operator, values):
            return [(before, operator, after) for before, after in pairwise(values)]
        case _:
            return []


def tests_of(path: str) -> tuple[str, ...]:
    """A file's own tests."""
    named = (tests for pattern, tests in TESTS.items() if Path(path).match(pattern))
    tests = next(named, (f"tests/core/test_{Path(path).stem}.py",))
    if absent := [test for test in tests if not (ROOT / test).is_file()]:
        sys.exit(f"the tests of {path} are looked for in {absent[0]}, which is not there: name them in TESTS")
    return tests


def is_noticed(tree: Path, tests: tuple[str, ...], seconds: int) -> bool:
    """Whether tests fail, or do not end for so long, in a copy of the tree."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    os.chdir(tree)
    sys.path[0:1] = [str(tree)]
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    os.environ["CI"] = "1"  # the same examples each time
    # Python takes two forms of a file for one if they share their second and their size, and would run what it compiled before.
    sys.dont_write_bytecode = True
    pytest = importlib.import_module("pytest")
    quiet = ("-p", "no:cacheprovider", "-o", "timeout=0", "-W", "ignore::pytest.PytestAssertRewriteWarning")
    os._exit(pytest.main(["-x", "-q", *quiet, *tests]))


def files() -> list[str]:
    """Those that are pure."""
    found = [*(ROOT / "pipeline/core").rglob("*.py"), ROOT / "pipeline/engine.py", ROOT / "pipeline/networks/sweep.py"]
    return [str(path.relative_to(ROOT)) for path in sorted(found)]


def main() -> None:
    """Try a sample, tell what survives, and the share that was noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="*", default=files(), help="from the root of the tree; all that are pure by default"
    )
    parser.add_argument("--sample", type=int, default=100, help="so many of all mutants")
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    sources = {path: (ROOT / path).read_text() for path in told.files}
    every = [mutant for path, source in sources.items() for mutant in mutants(path, source)]
    chosen = random.Random(told.seed).sample(every, min(told.sample, len(every)))
    for module in SLOW:
        importlib.import_module(module)
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        for part in ("pipeline", "flows", "tests", "configs", "pyproject.toml", "halotile.py"):
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
            tree.mkdir(exist_ok=True)
            copy(ROOT / part, tree / part)
        limits = {}
        for path in dict.fromkeys(mutant.path for mutant in chosen):
            started = time.monotonic()
            if is_noticed(tree, tests_of(path), 600):
                sys.exit(f"the tests of {path} fail as it is: {' '.join(tests_of(path))}")
            limits[path] = int(PATIENCE * (time.monotonic() - started)) + MORE_SECONDS
        for mutant in chosen:
            (tree / mutant.path).write_text(mutant.applied(sources[mutant.path]))
            if not is_noticed(tree, tests_of(mutant.path), limits[mutant.path]):
                survivors += 1
                print(mutant.told(sources[mutant.path]), flush=True)
            (tree / mutant.path).write_text(sources[mutant.path])
    print(
        f"{len(chosen) - survivors} of {len(chosen)} were noticed, {1 - survivors / len(chosen):.1%}; of {len(every)} in all"
    )


if __name__ == "__main__":
    main()

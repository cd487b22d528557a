"""What orchestration costs: tiles of no work through the dispatch, how many a second, and what driver and scheduler keep of them.

    python -m tests.benchmarks.dispatch              # 100,000 tiles on 2 workers, 5 minutes
    python -m tests.benchmarks.dispatch 20000

The rate by TLS and without it is measured in turns, on two pools that stand side by side, so that whatever else the machine does
slows both. Driver and scheduler are one process here, as in every run that is not of kind `address`, so one figure of memory is both's.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil

from pipeline.cluster.dispatch import Outcome, Work, dispatch
from pipeline.cluster.kind import WorkerSpec
from pipeline.cluster.pool import Pool, open_pool
from pipeline.config import ClusterConfig
from tests.cluster import work

TILES, WORKERS, LINES = 100_000, 2, 10

TURNS = 5
"""Of either kind, of a twentieth of the tiles each."""


def main(tiles: int) -> None:
    """Print one line for each tenth of the way, and how the rate by TLS compares with that without."""
    spec = WorkerSpec(WORKERS, threads=1, memory_bytes=2 * 10**9)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pools, starts = {}, {}
        for security in ("none", "auto"):
            began = time.perf_counter()
            pools[security] = stack.enter_context(open_pool(ClusterConfig(security=security), spec, folder))
            pools[security].client.wait_for_workers(WORKERS)
            starts[security] = time.perf_counter() - began
        _growth(pools["auto"], tiles)
        rates = {security: [] for security in pools}
        for _ in range(TURNS):
            for security, pool in pools.items():
                rates[security].append(_rate(pool, tiles // 20))
    for unit, each in ("tiles/s", 0), ("tiles/s of the driver's processor time", 1):
        without, by_tls = ([turn[each] for turn in rates[security]] for security in ("none", "auto"))
        ratio = statistics.median(one / other for one, other in zip(by_tls, without, strict=True))
        print(
            f"{unit} without TLS {statistics.median(without):.0f}, by TLS {statistics.median(by_tls):.0f}: {ratio:.2f} of it"
        )
    print(
        f"start of the workers without TLS {starts['none']:.2f} s (the first of the process), by TLS {starts['auto']:.2f} s"
    )


def _growth(pool: Pool, tiles: int) -> None:
    process, scheduler = psutil.Process(), pool.client.cluster.scheduler
    began = time.perf_counter()
    print(f"{'tiles':>8} {'tiles/s':>8} {'memory MB':>10} {'tasks the scheduler knows':>26}")
    for number, _ in enumerate(_done(pool, tiles), 1):
        if number % (tiles // LINES) == 0:
            rate = number / (time.perf_counter() - began)
            memory = process.memory_info().rss / 1e6
            print(f"{number:8} {rate:8.0f} {memory:10.1f} {len(scheduler.tasks):26}", flush=True)


def _rate(pool: Pool, tiles: int) -> tuple[float, float]:
    """Tiles a second, by the clock and by the time that driver and scheduler, the bottleneck, computed: others slow the former."""
    began, computed = time.perf_counter(), time.process_time()
    for _ in _done(pool, tiles):
        pass
    return tiles / (time.perf_counter() - began), tiles / (time.process_time() - computed)


def _done(pool: Pool, tiles: int) -> Iterator[Outcome]:
    return dispatch(pool, Work(work.ready, work.nothing, "run"), range(tiles), retries=2)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else TILES)

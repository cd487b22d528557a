"""What orchestration costs: tiles of no work through the dispatch, how many a second, and what driver and scheduler keep of them.

    python -m tests.benchmarks.dispatch              # 100,000 tiles on 2 workers, 4 minutes
    python -m tests.benchmarks.dispatch 20000

Driver and scheduler are one process here, as in every run that is not of kind `address`, so one figure of memory is both's.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import psutil

from pipeline.cluster.dispatch import Work, dispatch
from pipeline.cluster.pool import Crew, open_pool
from pipeline.config import ClusterConfig
from tests.cluster import work

TILES, WORKERS, LINES = 100_000, 2, 10


def main(tiles: int) -> None:
    """Print one line for each tenth of the way."""
    process = psutil.Process()
    crew = Crew(WORKERS, threads=1, memory_bytes=2 * 10**9)
    with tempfile.TemporaryDirectory() as folder, open_pool(ClusterConfig(), crew, Path(folder)) as pool:
        scheduler = pool.client.cluster.scheduler
        began = time.perf_counter()
        print(f"{'tiles':>8} {'tiles/s':>8} {'memory MB':>10} {'tasks the scheduler knows':>26}")
        for number, _ in enumerate(dispatch(pool, Work(work.ready, work.nothing, "run"), range(tiles), retries=2), 1):
            if number % (tiles // LINES) == 0:
                rate = number / (time.perf_counter() - began)
                memory = process.memory_info().rss / 1e6
                print(f"{number:8} {rate:8.0f} {memory:10.1f} {len(scheduler.tasks):26}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else TILES)

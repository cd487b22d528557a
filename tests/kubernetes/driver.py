"""A driver that a test may kill: opens a pool of pods, says so, and waits. `python -m tests.kubernetes.driver CLUSTER_JSON FOLDER`."""

import json
import sys
import time
from pathlib import Path

from pipeline.cluster import manifest
from pipeline.cluster.kind import WorkerSpec
from pipeline.cluster.pool import open_pool
from pipeline.config import ClusterConfig

if __name__ == "__main__":
    manifest.ALONE_SECONDS = 2
    config = ClusterConfig(**json.loads(sys.argv[1]))
    with open_pool(config, WorkerSpec(config.workers, 1, 10**9), Path(sys.argv[2])) as pool:
        pool.client.wait_for_workers(config.workers, timeout=60)
        print("ready", flush=True)
        time.sleep(600)

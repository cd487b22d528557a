"""What the scheduler in a pod has beyond Dask's own; tests/kubernetes has it in a process, asked by Dask's operator."""

import json
import time
import urllib.error
import urllib.request

import dask
from distributed import Client, LocalCluster

from pipeline.cluster import preload
from pipeline.cluster.manifest import POD_SETTINGS
from pipeline.cluster.settings import EXTENSIONS


def test_a_scheduler_is_alone_until_a_driver_comes_and_after_it_has_gone():
    """Its answer decides when the pods of a killed driver are deleted, and that those of a patient one are not."""
    with (
        dask.config.set(POD_SETTINGS),
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
    ):
        scheduler = cluster.scheduler
        port = scheduler.http_server.port

        def asked(path: str) -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as found:
                return found.read().decode()

        preload.dask_setup(scheduler)
        assert isinstance(scheduler.extensions["spans"], EXTENSIONS["spans"])
        began = json.loads(asked("/api/v1/check_idle"))["idle_since"]
        assert 0 <= time.time() - began < 60
        with Client(cluster.scheduler_address):
            assert json.loads(asked("/api/v1/check_idle"))["idle_since"] is None
        deadline = time.monotonic() + 10
        while (since := json.loads(asked("/api/v1/check_idle"))["idle_since"]) is None:
            assert time.monotonic() < deadline
        assert since > began
        assert asked("/health") == "ok"
        for closed in ("/api/v1/retire_workers", "/json/counts.json", "/info/main/workers.html"):
            assert _refused(f"http://127.0.0.1:{port}{closed}")


def _refused(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=10)
    except urllib.error.HTTPError as error:
        with error:
            return error.code == 404
    return False

"""`cluster.kind: kubernetes`, with the real KubeCluster and Dask's real operator on a fake API, and pods that are real processes."""

import os

import pytest

from pipeline.cluster import kubernetes as kind
from pipeline.cluster.dispatch import Work, dispatch
from pipeline.cluster.pool import Crew, open_pool
from pipeline.config import ClusterConfig
from tests.cluster import work

ASKED = {"image": "registry.example.org/halotile:1", "cores": 1}
TRIED = Work(work.ready, work.nothing, "run")


def asked(workers: int = 2, **keys) -> ClusterConfig:
    """A cluster of pods."""
    return ClusterConfig(kind="kubernetes", workers=workers, memory_gb=1, kubernetes=ASKED, **keys)


def crew(workers: int = 2) -> Crew:
    return Crew(workers, threads=1, memory_bytes=10**9)


@pytest.mark.parametrize("security", ["auto", "none"])
def test_tiles_are_computed_by_pods_that_end_with_the_run(operator, tmp_path, security):
    """The whole way: the operator makes Deployments of our manifest, their pods find one another, the driver finds them."""
    with open_pool(asked(security=security), crew(), tmp_path / "o.zarr.run" / "jobs") as pool:
        assert sorted(o.result for o in dispatch(pool, TRIED, range(20), retries=0)) == list(range(20))
    assert operator.api.all("daskclusters") == []

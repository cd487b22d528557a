"""`cluster.kind: kubernetes`, with the real KubeCluster and Dask's real operator on a fake API, and pods that are real processes."""

import asyncio
import functools
import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.commands.status import REFUSED, status
from pipeline import stages
from pipeline.cluster import kubernetes as kind
from pipeline.cluster import manifest
from pipeline.cluster.dispatch import Work, dispatch
from pipeline.cluster.kind import WorkerSpec
from pipeline.cluster.pool import open_pool
from pipeline.config import ClusterConfig
from pipeline.core.network.unet import Architecture
from pipeline.errors import ConfigError, InferenceError
from tests.cluster import work
from tests.kubernetes.fake_nodes import ROOT
from tests.pipeline_cases import make_run, stored_objects

IMAGE = "registry.example.org/halotile:1"
pytestmark = pytest.mark.site

TRIED = Work(work.ready, work.nothing, "run")


def asked(workers: int = 2, image: str = IMAGE, **keys) -> ClusterConfig:
    """A cluster of pods."""
    return ClusterConfig(
        kind="kubernetes", workers=workers, memory_gb=1, kubernetes={"image": image, "cores": 1}, **keys
    )


def wanted(workers: int = 2) -> WorkerSpec:
    """Workers."""
    return WorkerSpec(workers, threads=1, memory_bytes=10**9)


def until(true, seconds: float = 60) -> None:
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def refusal(folder: Path, config: ClusterConfig | None = None) -> str:
    """What somebody is told who asks for pods and gets none."""
    config = config or asked(1)
    with (
        pytest.raises((ConfigError, InferenceError)) as told,
        open_pool(config, wanted(1), folder / "o.zarr.run" / "jobs"),
    ):
        pass
    return str(told.value)


# --- what works ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("security", ["auto", "none"])
def test_tiles_are_computed_by_pods_that_end_with_the_run(operator, tmp_path, security):
    """The whole way: the operator makes Deployments of our manifest, their pods find one another, the driver finds them."""
    with open_pool(asked(security=security), wanted(), tmp_path / "o.zarr.run" / "jobs") as pool:
        scheme = "tls" if security == "auto" else "tcp"
        assert pool.client.scheduler.address.startswith(f"{scheme}://127.0.0.1:")  # forwarded: this driver is outside
        assert sorted(o.result for o in dispatch(pool, TRIED, range(20), retries=0)) == list(range(20))
        (resource,) = operator.api.all("daskclusters")
        assert len(operator.api.all("secrets")) == (security == "auto")
    assert operator.api.all("daskclusters") == []
    until(lambda: not operator.api.all("pods") and not operator.api.all("secrets") and not operator.nodes.pods)
    assert (
        resource["spec"]
        == manifest.dask_cluster(
            asked().kubernetes, wanted(), resource["metadata"]["name"], encrypted=security == "auto"
        )["spec"]
    )  # as it was printed, nothing of it dropped or changed on the way


def test_a_scheduler_that_does_not_listen_yet_is_waited_for(operator, tmp_path, monkeypatch):
    """Its pod is ready once it answers over HTTP, a moment before it listens for drivers; one that never does is named."""
    operator.api.broken_forwards = 3
    with open_pool(asked(1), wanted(1), tmp_path / "o.zarr.run" / "jobs") as pool:
        assert [o.result for o in dispatch(pool, TRIED, range(1), retries=0)] == [0]
    assert operator.api.broken_forwards == 0
    monkeypatch.setattr(kind, "ANSWER_SECONDS", 1)
    operator.api.broken_forwards = 10**6
    assert "is ready, but does not answer" in refusal(tmp_path)


def test_a_run_on_pods_has_the_same_bytes_as_a_run_here(operator, tmp_path):
    """The promise, on this kind too: with the real worker, the real network, and the file system that pods and driver share."""
    outputs = {}
    for name, cluster in {"pods": asked().model_dump(mode="json"), "here": {"kind": "local", "workers": 2}}.items():
        (tmp_path / name).mkdir()
        run = make_run(tmp_path / name, architecture=Architecture(ndim=3, depth=1, width=4), shape=(24, 40, 40))
        run = run.having(
            tiles={"core": [24, 20, 20]}, output={"chunks": [8, 10, 10]}, cluster={**cluster, "memory_gb": 4}
        )
        stages.plan(run.now)
        stages.infer(run.now)
        outputs[name] = stored_objects(run.output)
    assert outputs["pods"] == outputs["here"]
    assert len(outputs["here"]) > 4


def test_a_pod_that_is_lost_is_replaced_and_its_tile_computed(operator, tmp_path):
    """A spot node that goes takes its pods; the Deployment makes others, and the run goes on."""
    slow = Work(work.ready, functools.partial(work.doze, 0.2), "run")
    with open_pool(asked(), wanted(), tmp_path / "o.zarr.run" / "jobs") as pool:
        pool.client.wait_for_workers(2, timeout=60)
        outcomes = dispatch(pool, slow, range(40), retries=2)
        done = [next(outcomes).result]
        (victim, *_) = [pod["metadata"]["name"] for pod in operator.api.all("pods", component="worker")]
        operator.api.delete("pods", "halotile", victim)
        done += [outcome.result for outcome in outcomes]
        assert sorted(done) == list(range(40))
        until(lambda: len(pool.client.scheduler_info(n_workers=-1)["workers"]) == 2)
        names = {pod["metadata"]["name"] for pod in operator.api.all("pods", component="worker")}
        assert len(names) == 2
        assert victim not in names


# Dask leaves the TLS socket of a refused connection to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("inside", [True, False], ids=["driver in a pod", "driver outside"])
def test_a_scheduler_whose_container_is_started_anew_costs_no_tile(operator, tmp_path, monkeypatch, inside):
    """One that took too much memory. Workers and driver go back to it by themselves, and nothing counts as an attempt."""
    if inside:
        monkeypatch.setattr(kind, "scheduler_url", lambda name, *_, **__: f"tls://{_address(operator, name)}:8786")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    slow = Work(work.ready, functools.partial(work.doze, 0.2), "run")
    with open_pool(asked(), wanted(), tmp_path / "o.zarr.run" / "jobs") as pool:
        outcomes = dispatch(pool, slow, range(20), retries=2)
        done = [next(outcomes)]
        (scheduler,) = [pod["metadata"]["name"] for pod in operator.api.all("pods", component="scheduler")]
        operator.nodes.kill(scheduler)
        done += outcomes
    assert sorted((outcome.index, outcome.attempt, outcome.error) for outcome in done) == [
        (tile, 1, None) for tile in range(20)
    ]
    gc.collect()


def test_a_driver_in_a_pod_goes_to_the_scheduler_by_its_service_and_owns_the_cluster(operator, tmp_path, monkeypatch):
    """The usual case. Its pods go with the driver's pod, should that be deleted while the operator is away."""
    found = []
    monkeypatch.setattr(
        kind, "scheduler_url", lambda name, *_, **__: found.append(name) or f"tls://{_address(operator, name)}:8786"
    )
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    for name, value in {"NAME": "driver-1", "UID": "17", "NAMESPACE": "halotile"}.items():
        monkeypatch.setenv(f"HALOTILE_POD_{name}", value)
    operator.api.put("pods", {"metadata": {"name": "driver-1", "namespace": "other", "uid": "17"}, "spec": None})
    operator.nodes.foreign.add("driver-1")
    with open_pool(asked(1), wanted(1), tmp_path / "o.zarr.run" / "jobs") as pool:
        assert [o.result for o in dispatch(pool, TRIED, range(1), retries=0)] == [0]
        (resource,) = operator.api.all("daskclusters")
        assert resource["metadata"]["ownerReferences"] == [
            {"apiVersion": "v1", "kind": "Pod", "name": "driver-1", "uid": "17"}
        ]
    assert found
    assert "get pods/portforward" not in operator.api.requests
    monkeypatch.setenv("HALOTILE_POD_NAMESPACE", "other")
    assert kind._owner(os.environ, "halotile") is None  # Kubernetes would delete the cluster at once


def _address(kubernetes, name: str) -> str:
    (pod,) = [p for p in kubernetes.api.all("pods", component="scheduler") if p["metadata"]["name"].startswith(name)]
    return kubernetes.api.addresses[pod["metadata"]["name"]]


# --- how it ends --------------------------------------------------------------------------------------------------------


def test_the_pods_of_a_run_that_fails_are_deleted_too(operator, tmp_path):
    """Cards that are held by a failed run are the dearest of all."""
    with pytest.raises(ZeroDivisionError), open_pool(asked(1), wanted(1), tmp_path / "o.zarr.run" / "jobs"):
        raise ZeroDivisionError
    assert operator.api.all("daskclusters") == []
    until(lambda: not operator.nodes.pods)


@pytest.mark.slow
def test_the_operator_deletes_the_pods_of_a_driver_that_was_killed(operator, tmp_path):
    """Nobody is left to do it; the scheduler tells the operator that it is alone, over TLS or not."""
    command = [
        sys.executable,
        "-m",
        "tests.kubernetes.driver",
        asked(1).model_dump_json(),
        str(tmp_path / "o.zarr.run" / "jobs"),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout.readline() == "ready\n"
            time.sleep(8)  # longer than an idle cluster would live, and than the operator's look
            assert len(operator.api.all("daskclusters")) == 1, (
                "a driver that is there, idle as it may be, keeps its pods"
            )
        finally:
            driver.send_signal(signal.SIGKILL)
    until(lambda: not operator.api.all("daskclusters"), 30)
    until(lambda: not operator.nodes.pods)


def test_a_cluster_that_cannot_be_deleted_is_told_and_fails_no_run(operator, tmp_path, caplog):
    """The tiles are done and written; the operator will see to the rest."""
    with open_pool(asked(1), wanted(1), tmp_path / "o.zarr.run" / "jobs"):
        operator.api.forbidden.add(("delete", "daskclusters"))
    assert "could not be deleted" in caplog.text
    assert "kubectl -n halotile delete daskcluster halotile-o-zarr-" in caplog.text


# --- what is refused, and how it is told --------------------------------------------------------------------------------


def test_no_kubernetes_at_all_is_told(tmp_path, monkeypatch):
    """A laptop without a kubeconfig, or one whose cluster is gone."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert "no API server answers (ValueError: Unable to find valid credentials)" in refusal(tmp_path)
    (tmp_path / "gone").write_text(json.dumps(GONE))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "gone"))
    assert "no API server answers (ConnectError" in refusal(tmp_path)


GONE = {
    "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
    "users": [{"name": "u", "user": {"token": "none"}}],
    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    "current-context": "x",
}


def test_an_operator_that_is_not_installed_is_told(kubernetes, tmp_path):
    """Its resource is unknown then."""
    kubernetes.api.installed = False
    assert "Dask's operator is not installed" in refusal(tmp_path)


def test_an_operator_that_does_not_run_is_told_and_nothing_stays(kubernetes, tmp_path, monkeypatch):
    """The API takes the resource, and nobody acts upon it: a run would wait for ever."""
    monkeypatch.setattr(kind, "OPERATOR_SECONDS", 1)
    assert "nobody acted upon it for 1 s" in refusal(tmp_path)
    assert kubernetes.api.all("daskclusters") == []


def test_a_namespace_that_is_not_there_is_told(kubernetes, tmp_path):
    """The key that one forgets."""
    elsewhere = asked(1).model_copy(update={"kubernetes": asked().kubernetes.model_copy(update={"namespace": "lab"})})
    assert "There is no namespace 'lab'" in refusal(tmp_path, elsewhere)


def test_an_account_that_may_not_is_told(kubernetes, tmp_path):
    """With Kubernetes' own words, which name the verb and the resource, and the Role that helps."""
    kubernetes.api.forbidden.add(("create", "daskclusters"))
    told = refusal(tmp_path)
    assert 'User "nobody" cannot create resource "daskclusters"' in told
    assert "deploy/kubernetes/rbac.yaml" in told


def test_an_account_that_may_not_keep_secrets_leaves_no_cluster(operator, tmp_path):
    """The certificates come second; pods that wait for them would wait for ever."""
    operator.api.forbidden.add(("create", "secrets"))
    assert "cannot create resource" in refusal(tmp_path)
    assert operator.api.all("daskclusters") == []


def test_an_image_that_cannot_be_pulled_ends_the_run_with_its_name(operator, tmp_path, monkeypatch):
    """Waiting does not help; and Kubernetes says it in a place where nobody looks."""
    monkeypatch.setattr(kind, "HOPELESS_SECONDS", 1)
    operator.nodes.images = {IMAGE}
    told = refusal(tmp_path, asked(1, image="registry.example.org/halotile:typo"))
    assert 'ImagePullBackOff (Back-off pulling image "registry.example.org/halotile:typo")' in told
    assert operator.api.all("daskclusters") == []


def test_a_scheduler_for_which_no_node_has_room_is_waited_for_so_long(operator, tmp_path):
    """`wait_minutes` holds here too."""
    operator.nodes.full = True
    told = refusal(tmp_path, asked(1, wait_minutes=0.05))
    assert "1 pods pending: Unschedulable (0/3 nodes are available)" in told


def test_a_scheduler_that_cannot_start_is_told_with_the_end_of_its_log(operator, tmp_path):
    """An image without Halotile in it, say."""
    without = tmp_path / "image" / "pipeline"  # found before one that is installed
    without.mkdir(parents=True)
    (without / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'pipeline'\")")
    operator.nodes.environment["PYTHONPATH"] = f"{without.parent}:{ROOT / 'tests/kubernetes/names'}"
    operator.api.default_log = "ModuleNotFoundError: No module named 'pipeline'"
    told = refusal(tmp_path)
    assert "did not start" in told
    assert "No module named 'pipeline'" in told


def test_what_the_operator_cannot_make_is_told(operator, tmp_path, monkeypatch):
    """A label that Kubernetes does not take stops no DaskCluster: its pods never come, and only the operator knows why."""
    monkeypatch.setattr(kind, "OPERATOR_SECONDS", 5)
    operator.api.forbidden.add(("create", "deployments"))
    told = refusal(tmp_path)
    assert "has made nothing of the scheduler" in told
    assert "the operator's log says why" in told


class Crashing:
    """A cluster whose workers start, end, and start again: so often they did by each look."""

    def __init__(self, *restarts: int) -> None:
        self.restarts = iter(restarts)

    async def fetch(self, what, _component):
        return [{"status": {"containerStatuses": [{"restartCount": next(self.restarts)}]}}] if what is kind.Pod else []

    async def useless(self, component, _found):
        return InferenceError(f"The {component} did not start")


def test_starts_of_workers_from_before_there_was_a_scheduler_count_for_nothing():
    """Its node may take minutes to come; workers end meanwhile, and the first look would end the run."""
    watch = kind._Watch(Crashing(20, 20, 21, 22, 23), wanted=1)
    for _ in range(4):
        asyncio.run(watch._look())
    with pytest.raises(InferenceError, match="The worker did not start"):
        asyncio.run(watch._look())  # three in vain since


@pytest.mark.slow
def test_workers_that_do_not_come_are_told_with_the_reason(operator, tmp_path):
    """What `dispatch` repeats every few minutes, and at last as the run's error."""
    with open_pool(asked(2), wanted(2), tmp_path / "o.zarr.run" / "jobs") as pool:
        pool.client.wait_for_workers(2, timeout=60)
        operator.nodes.full = True
        for pod in operator.api.all("pods", component="worker"):
            operator.api.delete("pods", "halotile", pod["metadata"]["name"])
        until(lambda: "2 pods pending: Unschedulable (0/3 nodes are available)" in pool.tend(), 30)
        operator.nodes.quota = True
        for pod in operator.api.all("pods", component="worker"):
            operator.api.delete("pods", "halotile", pod["metadata"]["name"])
        until(lambda: "no pod yet: FailedCreate (exceeded quota: gpus)" in pool.tend(), 30)


def test_a_package_that_is_not_installed_is_told_with_its_extra(capsys):
    """Few need it, so that few have it."""

    def without() -> None:
        raise ModuleNotFoundError("No module named 'dask_kubernetes'", name="dask_kubernetes")

    assert status(without) == REFUSED
    assert "-e '.[kubernetes]'" in capsys.readouterr().err

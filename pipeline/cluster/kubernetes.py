"""`cluster.kind: kubernetes`: a pod a worker and one for the scheduler, which Dask's operator makes of a `DaskCluster`.

`manifest` says what they are; the operator's Deployments replace the pods that are lost. dask-kubernetes' `KubeCluster` creates
the resource and deletes it. What it cannot do is done here: it speaks no TLS, waits for a scheduler for ever, and says of what
goes wrong that something did.

How the pods end, whatever the driver's end: `KubeCluster.close` deletes the resource; where a driver was killed the operator
does, two minutes after it (`preload`); and where the driver is a pod, Kubernetes does when that pod is deleted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from base64 import b64encode
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
import kr8s
from dask_kubernetes.operator import KubeCluster
from dask_kubernetes.operator._objects import DaskCluster
from dask_kubernetes.operator.kubecluster.kubecluster import CreateMode
from distributed.core import rpc
from distributed.deploy import Cluster
from distributed.security import Security
from kr8s.asyncio.objects import Deployment, Pod, Secret, Service

from pipeline.cluster import pods
from pipeline.cluster.apiserver import SILENT, explain, unreachable
from pipeline.cluster.kind import OpenCluster, WorkerSpec
from pipeline.cluster.manifest import (
    HTTP_PORT,
    PORT,
    Json,
    Owner,
    cluster_name,
    dask_cluster,
    keys_name,
    scheduler_url,
)
from pipeline.cluster.scheduler import greet
from pipeline.cluster.security import own_certificates, own_files, security_of
from pipeline.cluster.settings import SETTINGS
from pipeline.config import ClusterConfig, KubernetesConfig, TlsConfig
from pipeline.core.machine import Machine
from pipeline.errors import ConfigError, InferenceError

log = logging.getLogger("pipeline")

OPERATOR_SECONDS = 60
"""So long until the operator has seen a new cluster; it takes less than one where it runs."""

ANSWER_SECONDS = 60
"""For a scheduler whose pod is ready to answer."""

ATTEMPT_SECONDS = 10
"""Of them, for one attempt."""

HOPELESS_SECONDS = 120
"""So long a pod may be in a state that seldom mends itself: a registry that is away for a moment."""

LOOK_SECONDS = 5.0
"""Between two looks at the pods."""

IN_VAIN = 3
"""So many starts of containers (or as many as there are workers), none of which joined, end the run."""

CLOSE_SECONDS = 60
"""To delete a cluster; the operator deletes it later where this did not."""

LOG_LINES = 8
"""Of a container that ended, quoted in an error."""


def machine(config: ClusterConfig) -> Machine:
    """What all workers have together; the API is not asked."""
    asked, workers, memory_bytes = _settings(config)
    return Machine(asked.cores * workers, memory_bytes * workers, workers, "cuda" if asked.gpus else "cpu")


@contextmanager
def start(config: ClusterConfig, spec: WorkerSpec, folder: Path) -> Iterator[OpenCluster]:
    """Start pods; all are deleted at the end.

    Raises:
        ConfigError: There is no API, or no operator, or it refuses such pods.
        InferenceError: The scheduler's pod does not come.
    """
    asked, _, _ = _settings(config)
    name = cluster_name(folder.parent.name.removesuffix(".run"), uuid.uuid4().hex[:8])
    security, keys = _security(config)
    manifest = dask_cluster(
        asked, spec, name, encrypted=security is not None, owner=_owner(os.environ, asked.namespace)
    )
    with dask.config.set(SETTINGS), _Pods(manifest, security, keys, config.wait_seconds) as cluster:
        cluster.begin()
        log.info("DaskCluster %s in namespace %s", name, asked.namespace)
        yield OpenCluster(cluster, security, tend=_Watch(cluster, spec.workers).tend)


def _settings(config: ClusterConfig) -> tuple[KubernetesConfig, int, int]:
    """What pods shall be, how many workers there shall be, and bytes of each."""
    if config.kubernetes is None or config.workers == "auto" or config.memory_gb == "auto":
        raise ConfigError(
            "cluster.kind kubernetes needs cluster.kubernetes, workers and memory_gb; see configs/kubernetes.yaml."
        )
    return config.kubernetes, config.workers, int(config.memory_gb * 1e9)


def _owner(environment: Mapping[str, str], namespace: str) -> Owner | None:
    """The driver's own pod, as deploy/kubernetes tells it; one of another namespace can own nothing."""
    pod = [environment.get(f"HALOTILE_POD_{part}") for part in ("NAME", "UID", "NAMESPACE")]
    return Owner(str(pod[0]), str(pod[1])) if all(pod) and pod[2] == namespace else None


def _security(config: ClusterConfig) -> tuple[Security | None, dict[str, str]]:
    """How to talk to the scheduler, and the files that its pods need for it: the site's, or the run's own."""
    if config.security == "none":
        return None, {}
    if isinstance(config.security, TlsConfig):
        files = {
            "ca.pem": config.security.ca_file,
            "cert.pem": config.security.cert_file,
            "key.pem": config.security.key_file,
        }
        return security_of(config.security), {name: Path(file).read_text() for name, file in files.items()}
    security = own_certificates()
    return security, own_files(security)


class _Pods(KubeCluster):
    """KubeCluster with TLS, an end to its waiting, and errors that say what to do."""

    def __init__(self, manifest: Json, security: Security | None, keys: Mapping[str, str], wait_seconds: float) -> None:
        self.security, self._keys, self._wait_seconds = security, keys, wait_seconds
        self._resource: DaskCluster | None = None
        self._forward: Any = None
        self._api: Any = None
        super().__init__(
            custom_cluster_spec=manifest,
            namespace=manifest["metadata"]["namespace"],
            create_mode=CreateMode.CREATE_ONLY,
            quiet=True,
        )

    def begin(self) -> None:
        """Create the pods, and connect to their scheduler; deletes what there is when it fails.

        Raises:
            ConfigError, InferenceError: It cannot be had.
        """
        self.sync(self._begin)

    async def _begin(self) -> None:
        with explain(self.namespace):
            try:
                self._api = await kr8s.asyncio.api()
            except (ValueError, KeyError) as error:  # no configuration at all, or one that is none
                raise unreachable(error) from error
            await super()._start()

    async def _start(self) -> None:
        """Nothing in the constructor: what begins there cannot be ended where it is interrupted."""

    async def _watch_component_status(self) -> None:
        """Nothing: it is for a table on a terminal."""

    @property
    def dashboard_link(self) -> str:
        """None is served."""
        return ""

    @property
    def selector(self) -> str:
        return f"dask.org/cluster-name={self.name}"

    async def _create_cluster(self) -> None:
        resource = await DaskCluster(self._custom_cluster_spec, namespace=self.namespace)
        await resource.create()
        self._resource = resource
        if self._keys:
            await (await Secret(_secret(self._keys, resource.raw["metadata"]), namespace=self.namespace)).create()
        await self._wait_for_operator(resource)
        await self._scheduler_ready()
        self.scheduler_comm = await self._connect()

    async def _connect(self) -> rpc:
        """The way to the scheduler, once it has answered.

        Its pod is ready a moment before it listens, and what is forwarded to a closed port breaks off, or says nothing any more: so
        each attempt is short, and has a way of its own.
        """
        arguments = self.security.get_connection_args("client") if self.security else {}
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            address = await self._address()
            try:
                await greet(address, self.security, ATTEMPT_SECONDS)
            except OSError as error:  # what was closed, refused, or took too long
                if time.monotonic() > deadline:
                    raise InferenceError(
                        f"The scheduler of DaskCluster '{self.name}' is ready, but does not answer at {address} ({error}). Likely a "
                        "network policy or a proxy between this driver and namespace "
                        f"'{self.namespace}', or certificates that it does not take (cluster.security). Run again to resume."
                    ) from error
                await self._stop_forwarding()
                await asyncio.sleep(0.2)
            else:
                return rpc(address, connection_args=arguments)

    async def _stop_forwarding(self) -> None:
        if self._forward is not None:
            await self._forward.stop()
            self._forward = None

    async def _wait_for_operator(self, resource: DaskCluster) -> None:
        """The operator has seen it."""
        deadline = time.monotonic() + OPERATOR_SECONDS
        while "phase" not in (resource.raw.get("status") or {}):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"Kubernetes took the DaskCluster '{self.name}', but nobody acted upon it for {OPERATOR_SECONDS} s: Dask's "
                    f"operator does not run, or does not watch namespace '{self.namespace}'. Look at its pod (kubectl get pods -A "
                    "-l app.kubernetes.io/name=dask-kubernetes-operator); deploy/kubernetes/README.md installs it."
                )
            await asyncio.sleep(0.5)
            await resource.refresh()

    async def _scheduler_ready(self) -> None:
        began = hopeful = time.monotonic()
        while True:
            schedulers = await self.fetch(Pod, "scheduler")
            if any(map(pods.is_ready, schedulers)):
                return
            now = time.monotonic()
            in_vain = pods.restarts(schedulers) >= IN_VAIN
            if not (schedulers and all(map(pods.is_hopeless, schedulers))):
                hopeful = now
            if not schedulers and now - began > OPERATOR_SECONDS and not await self.fetch(Deployment, "scheduler"):
                raise self.unmade("scheduler")
            if in_vain or now - hopeful > HOPELESS_SECONDS or now - began > self._wait_seconds:
                raise await self.useless("scheduler", schedulers)
            await asyncio.sleep(0.5)

    async def fetch(self, kind: type[Pod] | type[Deployment], component: str) -> list[Json]:
        """Ask the API for this cluster's pods or Deployments of a component."""
        selector = f"{self.selector},dask.org/component={component}"
        listing = kind.list(namespace=self.namespace, label_selector=selector)
        # a dict where raw ones are asked for
        return [item.raw.to_dict() async for item in listing if not isinstance(item, dict)]

    def unmade(self, component: str) -> InferenceError:
        """The error of what the operator was asked for and could not make."""
        return InferenceError(
            f"Dask's operator has made nothing of the {component} of DaskCluster '{self.name}' in namespace '{self.namespace}' for "
            f"{OPERATOR_SECONDS} s: Kubernetes refuses it, and the operator's log says why (kubectl logs -A -l "
            "app.kubernetes.io/name=dask-kubernetes-operator). Likely a key of cluster.kubernetes that it does not take: tolerations, "
            "labels, node_selector, volumes; or the operator's rights. Correct it, and run again."
        )

    async def useless(self, component: str, there: list[Json]) -> InferenceError:
        """The error of pods that do not come to run."""
        message = pods.summary(there, await self.fetch(Deployment, component))
        ended = [pod for pod in there if pods.last_end(pod)]
        if ended:
            message += f"; the last ended with {pods.last_end(ended[-1])}. Its log ends with:\n{await self._log_of(ended[-1])}\n"
        return InferenceError(
            f"The {component} of DaskCluster '{self.name}' in namespace '{self.namespace}' did not start: {message.rstrip('.')}. "
            "Likely the image (cluster.kubernetes.image, image_pull_secrets), a Secret or claim that is not there, resources "
            "that no node has (cores, memory_gb, gpus, node_selector, tolerations), a quota, or pods that cannot reach one "
            "another. Run again to resume: what is finished is kept."
        )

    async def _log_of(self, pod: Json) -> str:
        """The last lines of a container's end."""
        container = await Pod(pod, namespace=self.namespace)
        try:
            lines = [line async for line in container.logs(previous=True, tail_lines=LOG_LINES)]
        except (*SILENT, kr8s.ServerError) as error:
            return f"    (not to be had: {error})"
        return "\n".join(f"    {line}" for line in lines) or "    (nothing)"

    async def _address(self) -> str:
        """Of the scheduler, as it is reached from here: by its Service, or, from outside, through the API."""
        encrypted = self.security is not None
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            return scheduler_url(self.name, self.namespace, encrypted=encrypted)
        service = await Service.get(f"{self.name}-scheduler", namespace=self.namespace, timeout=OPERATOR_SECONDS)
        self._forward = service.portforward(PORT, local_port="auto")
        port = await self._forward.start()
        self.forwarded_dashboard_port = HTTP_PORT
        return f"{'tls' if encrypted else 'tcp'}://127.0.0.1:{port}"

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Delete the pods; what cannot be deleted is told, and no reason to fail a run that is done."""
        try:
            super().close(timeout)
        except (*SILENT, kr8s.ServerError) as error:
            log.warning(
                "DaskCluster %s could not be deleted (%s): the operator does it two minutes after this run; or kubectl -n %s delete daskcluster %s",
                *(self.name, error or type(error).__name__, self.namespace, self.name),
            )
        finally:
            self.sync(self._disconnect)
            self._loop_runner.stop()

    async def _disconnect(self) -> None:
        """Close what kr8s leaves open with its loop."""
        if self._api is not None and self._api._session is not None:
            await self._api._session.aclose()

    async def _close(self, timeout: float = CLOSE_SECONDS) -> None:
        await Cluster._close(self)
        await self._stop_forwarding()
        if self._resource is None:
            return
        resource, self._resource = self._resource, None
        with suppress(kr8s.NotFoundError):
            await resource.delete()
        deadline = time.monotonic() + timeout
        while await resource.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"it is still there after {timeout:.0f} s")
            await asyncio.sleep(0.2)


class _Watch:
    """Looks at the workers' pods while a run goes on. Nothing is replaced here: the operator's Deployments do that."""

    def __init__(self, cluster: _Pods, wanted: int) -> None:
        self._cluster, self._wanted = cluster, wanted
        self._looked, self._hopeful = -LOOK_SECONDS, time.monotonic()
        self._message = ""
        self._joined = False
        self._before: int | None = None
        self._began = time.monotonic()
        self._asked: Future[str] | None = None

    def tend(self) -> str:
        """How the pods are, some seconds ago; tiles do not wait for a slow API.

        Raises:
            InferenceError: Worker after worker ends before it has joined, or none can start: more of them would too.
        """
        self._joined = self._joined or bool(self._cluster.scheduler_info["workers"])
        if self._asked is not None and self._asked.done():
            answer, self._asked = self._asked, None
            try:
                self._message = answer.result()
            except (*SILENT, kr8s.ServerError) as error:
                self._message = f"Kubernetes does not say how the pods are ({error})"
        if self._asked is None and time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self._asked = asyncio.run_coroutine_threadsafe(self._look(), self._cluster.loop.asyncio_loop)
        return self._message

    async def _look(self) -> str:
        workers = await self._cluster.fetch(Pod, "worker")
        if self._joined or not workers or not all(map(pods.is_hopeless, workers)):
            self._hopeful = time.monotonic()
        if self._before is None:  # they started, and ended, while there was no scheduler yet: that says nothing of them
            self._before = pods.restarts(workers)
        in_vain = not self._joined and pods.restarts(workers) - self._before >= max(IN_VAIN, self._wanted)
        if in_vain or time.monotonic() - self._hopeful > HOPELESS_SECONDS:
            raise await self._cluster.useless("worker", workers)
        deployments = [] if len(workers) >= self._wanted else await self._cluster.fetch(Deployment, "worker")
        if not workers and not deployments and time.monotonic() - self._began > OPERATOR_SECONDS:
            raise self._cluster.unmade("worker")
        return pods.summary(workers, deployments)


def _secret(keys: Mapping[str, str], owner: Json) -> Json:
    """The certificates, which go with their DaskCluster."""
    reference = {
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskCluster",
        "name": owner["name"],
        "uid": owner["uid"],
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": keys_name(owner["name"]), "labels": dict(owner["labels"]), "ownerReferences": [reference]},
        "type": "Opaque",
        "immutable": True,
        "data": {name: b64encode(text.encode()).decode() for name, text in keys.items()},
    }

"""The `DaskCluster` of a run, the resource of which Dask's operator makes pods: a value, made by a pure function.

dask-kubernetes can write one too, but for `dask-scheduler` and `dask-worker`, commands that Dask no longer has, and with nulls
that a strict server refuses. This one says all that our workers need, and the least that they may.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.cluster.kind import WorkerSpec
from pipeline.cluster.pages import WORKER_CLASS
from pipeline.cluster.settings import SETTINGS, worker_environment
from pipeline.config import ClaimConfig, KubernetesConfig

Json = dict[str, Any]

PORT, HTTP_PORT = 8786, 8787
"""Of the scheduler."""

KEYS = "/etc/halotile/tls"
"""Where pods find the run's certificates."""

NAME_LENGTH = 53
"""Of a DaskCluster: `NAME-scheduler` names a Service."""

ALONE_SECONDS = 120
"""So long without its driver, and the operator deletes a cluster."""

DEATH_SECONDS = 60
"""So long without its scheduler, and a worker ends; its Deployment starts it again."""

LOST_SECONDS = 30
"""So long after its node was lost, a pod is given up and made anew elsewhere; Kubernetes' own is five minutes."""

MEMORY_FACTOR, MEMORY_BYTES = 1.05, 500_000_000
"""A pod has so much more than its worker may fill: the worker's nanny ends it before the kernel ends the container."""

SCHEDULER_RESOURCES = {"cpu": "1", "memory": "2Gi"}
"""It holds no data, and does not grow with the volume."""

COMPONENT = "halotile/component"
"""Label of scheduler, worker and driver: what network policies select. Prefect sets app.kubernetes.io/name anew on its pods."""

TMP_SIZE = "8Gi"
"""Of /tmp, the one place besides volumes that a pod may write to."""

POD_SETTINGS: dict[str, Any] = {
    **SETTINGS,
    "distributed.scheduler.http.routes": ["distributed.http.health", "pipeline.cluster.preload"],
}


@dataclass(frozen=True, slots=True)
class Owner:
    """A pod that a cluster ends with: Kubernetes deletes what it owns when it is deleted."""

    name: str
    uid: str


def dask_cluster(
    asked: KubernetesConfig, spec: WorkerSpec, name: str, *, encrypted: bool, owner: Owner | None = None
) -> Json:
    """All of a run's pods, as Dask's operator takes them.

    Args:
        asked: What they are.
        spec: How many workers, how large.
        name: Of the cluster.
        encrypted: Whether certificates lie in the Secret `keys_name(name)`.
        owner: The driver's pod, where it is one.
    """
    labels = {**asked.labels, "app.kubernetes.io/name": "halotile", "app.kubernetes.io/instance": name}
    metadata: Json = {"name": name, "namespace": asked.namespace, "labels": labels}
    if owner:
        metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "Pod", "name": owner.name, "uid": owner.uid}]
    return {
        "apiVersion": "kubernetes.dask.org/v1",
        "kind": "DaskCluster",
        "metadata": metadata,
        "spec": {
            "idleTimeout": ALONE_SECONDS,
            "scheduler": {
                "metadata": _metadata(asked, "scheduler"),
                "spec": _pod(asked, name, _scheduler(asked, encrypted=encrypted), encrypted=encrypted, places=False),
                "service": _service(name),
            },
            "worker": {
                "replicas": spec.workers,
                "metadata": _metadata(asked, "worker"),
                "spec": _pod(
                    asked, name, _worker(asked, spec, name, encrypted=encrypted), encrypted=encrypted, places=True
                ),
            },
        },
    }


def cluster_name(output: str, token: str) -> str:
    """A name that Kubernetes takes, that says whose the pods are, and that no other run has."""
    label = re.sub(r"[^a-z0-9]+", "-", output.lower()).strip("-")
    return f"halotile-{label[: NAME_LENGTH - len(token) - 10].strip('-')}-{token}".replace("--", "-")


def keys_name(name: str) -> str:
    """Of the Secret with a cluster's certificates."""
    return f"{name}-tls"


def scheduler_url(name: str, namespace: str, *, encrypted: bool) -> str:
    """How pods reach a cluster's scheduler."""
    return f"{'tls' if encrypted else 'tcp'}://{name}-scheduler.{namespace}:{PORT}"


def variables(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings of Dask as it reads them from the environment: in words that one can read in a manifest."""
    return {f"DASK_{name.replace('-', '_').replace('.', '__').upper()}": str(value) for name, value in settings.items()}


def _metadata(asked: KubernetesConfig, component: str) -> Json:
    metadata: Json = {"labels": {**asked.labels, COMPONENT: component}}
    return metadata | ({"annotations": dict(asked.annotations)} if asked.annotations else {})


def _pod(asked: KubernetesConfig, name: str, container: Json, *, encrypted: bool, places: bool) -> Json:
    """A pod's specification; `places` has it where workers run, on their volumes."""
    selector = asked.node_selector if places else asked.scheduler_node_selector
    claims = [
        {
            "name": f"data-{number}",
            "persistentVolumeClaim": {"claimName": volume.claim, **({"readOnly": True} if volume.read_only else {})},
        }
        for number, volume in enumerate(asked.volumes if places else ())
    ]
    tolerations = [
        each.model_dump(exclude_none=True) | {"operator": each.resolved_operator}
        for each in (asked.tolerations if places else ())
    ]
    keys = [{"name": "tls", "secret": {"secretName": keys_name(name), "defaultMode": 0o440}}] if encrypted else []
    spec: Json = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": asked.user,
            "runAsGroup": asked.group,
            "fsGroup": asked.group,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": [*_of_lost_nodes(), *tolerations],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": TMP_SIZE}}, *keys, *claims],
        "containers": [container],
    }
    optional = {
        "nodeSelector": dict(selector),
        "priorityClassName": asked.priority_class,
        "serviceAccountName": asked.service_account,
        "imagePullSecrets": [{"name": secret} for secret in asked.image_pull_secrets],
    }
    return spec | {key: value for key, value in optional.items() if value}


def _container(asked: KubernetesConfig, name: str, resources: Mapping[str, str], *, encrypted: bool) -> Json:
    """What scheduler and workers have in common."""
    keys = [{"name": "tls", "mountPath": KEYS, "readOnly": True}] if encrypted else []
    return {
        "name": name,
        "image": asked.image,
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *keys],
    }


def _scheduler(asked: KubernetesConfig, *, encrypted: bool) -> Json:
    health = {"httpGet": {"path": "/health", "port": "http-dashboard"}}
    return _container(asked, "scheduler", SCHEDULER_RESOURCES, encrypted=encrypted) | {
        "command": [
            *("dask", "scheduler", "--host", "0.0.0.0", "--port", str(PORT)),
            *("--dashboard-address", f"0.0.0.0:{HTTP_PORT}", "--no-dashboard"),
            *("--preload", "pipeline.cluster.preload"),
            *_tls(encrypted=encrypted),
        ],
        "env": _env({"HOME": "/tmp", **variables(POD_SETTINGS)}),
        "ports": [_port("tcp-comm", PORT), _port("http-dashboard", HTTP_PORT)],
        "readinessProbe": health | {"periodSeconds": 1, "timeoutSeconds": 5},
        "livenessProbe": health
        | {"initialDelaySeconds": 30, "periodSeconds": 20, "timeoutSeconds": 10, "failureThreshold": 6},
    }


def _worker(asked: KubernetesConfig, spec: WorkerSpec, name: str, *, encrypted: bool) -> Json:
    memory = -(-int(spec.memory_bytes * MEMORY_FACTOR + MEMORY_BYTES) // 2**20)
    resources = {"cpu": str(asked.cores), "memory": f"{memory}Mi"}
    container = _container(
        asked, "worker", resources | ({asked.gpu_resource: "1"} if asked.gpus else {}), encrypted=encrypted
    )
    container["volumeMounts"] += [_mount(number, volume) for number, volume in enumerate(asked.volumes)]
    fixed = {"HOME": "/tmp", **variables(POD_SETTINGS), **worker_environment(spec.threads)}
    return container | {
        "command": [
            *("dask", "worker", scheduler_url(name, asked.namespace, encrypted=encrypted)),
            *("--name", "$(POD_NAME)", "--host", "$(POD_IP)"),
            *("--nthreads", "1", "--memory-limit", str(spec.memory_bytes)),
            *("--death-timeout", str(DEATH_SECONDS), "--local-directory", "/tmp", "--no-dashboard"),
            *("--worker-class", WORKER_CLASS),
            *_tls(encrypted=encrypted),
        ],
        "env": [*_downward(), *_env({**asked.env, **fixed})],
        **({"envFrom": [{"secretRef": {"name": secret}} for secret in asked.env_from]} if asked.env_from else {}),
    }


def _tls(*, encrypted: bool) -> list[str]:
    if not encrypted:
        return []
    files = [("--tls-ca-file", "ca.pem"), ("--tls-cert", "cert.pem"), ("--tls-key", "key.pem")]
    return ["--protocol", "tls", *(part for option, file in files for part in (option, f"{KEYS}/{file}"))]


def _env(values: Mapping[str, str]) -> list[Json]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _downward() -> list[Json]:
    paths = {"POD_NAME": "metadata.name", "POD_IP": "status.podIP"}
    return [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in paths.items()]


def _port(name: str, number: int) -> Json:
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def _service(name: str) -> Json:
    ports = [("tcp-comm", PORT), ("http-dashboard", HTTP_PORT)]
    return {
        "type": "ClusterIP",
        "selector": {"dask.org/cluster-name": name, "dask.org/component": "scheduler"},
        "ports": [{"name": port, "protocol": "TCP", "port": number, "targetPort": port} for port, number in ports],
    }


def _mount(number: int, volume: ClaimConfig) -> Json:
    mount: Json = {"name": f"data-{number}", "mountPath": volume.path}
    return (
        mount
        | ({"readOnly": True} if volume.read_only else {})
        | ({"subPath": volume.sub_path} if volume.sub_path else {})
    )


def _of_lost_nodes() -> Iterator[Json]:
    for state in ("not-ready", "unreachable"):
        key = f"node.kubernetes.io/{state}"
        yield {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": LOST_SECONDS}

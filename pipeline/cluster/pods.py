"""What the pods of a run are at, read off what Kubernetes' API says of them. Pure: functions of JSON, so that each reason has a test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

Json = dict[str, Any]

HOPELESS = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
)
"""Why a container does not start, where waiting alone does not help."""

TOLD = 300
"""Letters of a reason's text at most."""


def waiting(pod: Json) -> str:
    """Why a pod does not run, in Kubernetes' own words; empty where it does, or nobody says."""
    status = pod.get("status", {})
    for container in status.get("containerStatuses", []):
        if why := container.get("state", {}).get("waiting"):
            return _reason(why)
    for condition in status.get("conditions", []):
        if condition.get("status") == "False" and condition.get("type") == "PodScheduled":
            return _reason(condition)
    return ""


def is_hopeless(pod: Json) -> bool:
    """Whether it will not start unless somebody mends something."""
    return waiting(pod).partition(" ")[0] in HOPELESS


def is_ready(pod: Json) -> bool:
    """Whether it answers."""
    return any(
        c.get("type") == "Ready" and c.get("status") == "True" for c in pod.get("status", {}).get("conditions", [])
    )


def restarts(pods: Iterable[Json]) -> int:
    """How often their containers ended and were started again."""
    return sum(c.get("restartCount", 0) for pod in pods for c in pod.get("status", {}).get("containerStatuses", []))


def last_end(pod: Json) -> str:
    """Why a pod's container ended last; empty where it never did."""
    for container in pod.get("status", {}).get("containerStatuses", []):
        ended = container.get("lastState", {}).get("terminated") or container.get("state", {}).get("terminated")
        if ended:
            return f"{ended.get('reason', 'Error')}, exit status {ended.get('exitCode')}"
    return ""


def refusal(deployments: Iterable[Json]) -> str:
    """Why no pod was made for a Deployment: a quota, an admission rule. Empty where none was refused."""
    for deployment in deployments:
        for condition in deployment.get("status", {}).get("conditions", []):
            if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
                return _reason(condition)
    return ""


def summary(pods: Sequence[Json], deployments: Iterable[Json] = ()) -> str:
    """The state of the pods, in one line."""
    phases = Counter(pod.get("status", {}).get("phase", "Pending").lower() for pod in pods)
    counts = [f"{count} pods {phase}" for phase, count in sorted(phases.items())] or ["no pod yet"]
    reasons = dict.fromkeys(why for why in [refusal(deployments), *map(waiting, pods)] if why)
    return ", ".join(counts) + (f": {'; '.join(list(reasons)[:3])}" if reasons else "")


def _reason(condition: Json) -> str:
    """`reason (message)`, on one line."""
    message = " ".join(str(condition.get("message") or "").split())
    reason = str(condition.get("reason") or "Unknown")
    return f"{reason} ({message[:TOLD]})" if message else reason

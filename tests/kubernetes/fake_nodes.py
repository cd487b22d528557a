"""What Kubernetes does beside its API: Deployments become pods, pods become processes of this machine, owners take all with them.

A pod has an address of its own (127.77.x.y), so that ports are its own too. Its container's command is run as it stands, with
`$(NAME)` put in as the kubelet does; three things that only a container can have are put in the place of it: `0.0.0.0` is the
pod's own address, a Secret's files lie in a folder of the test, and names of Services are answered by `names/sitecustomize.py`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from tests.kubernetes.fake_api import FakeApi, Json, Refused

ROOT = Path(__file__).resolve().parents[2]
TICK_SECONDS = 0.1
GRACE_SECONDS = 5
NOBODY = "127.77.0.1"
"""Of a Service without pods: it refuses connections."""


@dataclass
class _Running:
    process: subprocess.Popen
    spec: Json
    address: str
    restarts: int = 0
    ended: Json | None = None
    again: float = 0.0
    ready: bool = False


@dataclass
class FakeNodes:
    """All nodes, and the controllers.

    Args:
        api: The server.
        folder: For files of pods.
        images: Those that can be pulled; None: all.
        full: Whether no node has room.
        quota: Whether no pod may be made.
        environment: Variables of all containers.
        foreign: Pods that are somebody else's.
    """

    api: FakeApi
    folder: Path
    images: set[str] | None = None
    full: bool = False
    quota: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)
    pods: dict[str, _Running] = field(default_factory=dict)
    _end: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self.names = self.folder / "names.json"
        self.names.write_text("{}")
        self._thread = threading.Thread(target=self._run, name="fake nodes")
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()
        for name in list(self.pods):
            self._kill(name)

    def kill(self, pod: str) -> None:
        """End the processes of a pod's container as the kernel does that lacks memory."""
        os.killpg(self.pods[pod].process.pid, signal.SIGKILL)

    def _run(self) -> None:
        while not self._end.wait(TICK_SECONDS):
            self.api.collect()
            self._deploy()
            self._publish_names()
            self._run_pods()

    # --- Deployments and Services -----------------------------------------------------------------------------------

    def _deploy(self) -> None:
        pods = self.api.all("pods")
        owners = {o["uid"] for pod in pods for o in pod["metadata"].get("ownerReferences", [])}
        for deployment in self.api.all("deployments"):
            metadata, template = deployment["metadata"], deployment["spec"]["template"]
            if metadata["uid"] in owners:
                continue
            if self.quota:
                why = {
                    "type": "ReplicaFailure",
                    "status": "True",
                    "reason": "FailedCreate",
                    "message": "exceeded quota: gpus",
                }
                self.api.patch(
                    "deployments", metadata["namespace"], metadata["name"], {"status": {"conditions": [why]}}
                )
                continue
            owner = {"kind": "Deployment", "name": metadata["name"], "uid": metadata["uid"]}
            name = f"{metadata['name']}-{uuid.uuid4().hex[:5]}"
            labels = template["metadata"]["labels"]
            self.api.put(
                "pods",
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": name,
                        "namespace": metadata["namespace"],
                        "labels": labels,
                        "ownerReferences": [owner],
                    },
                    "spec": template["spec"],
                    "status": {"phase": "Pending"},
                },
            )

    def _publish_names(self) -> None:
        names = {}
        for service in self.api.all("services"):
            selector = service["spec"]["selector"].items()
            whole = f"{service['metadata']['name']}.{service['metadata']['namespace']}"
            names[whole] = NOBODY
            for pod in self.api.all("pods"):
                if pod["metadata"]["name"] in self.pods and selector <= pod["metadata"]["labels"].items():
                    names[whole] = self.pods[pod["metadata"]["name"]].address
        part = self.names.with_suffix(".part")
        part.write_text(json.dumps(names))
        part.rename(self.names)

    # --- pods -------------------------------------------------------------------------------------------------------

    def _run_pods(self) -> None:
        found = {pod["metadata"]["name"]: pod for pod in self.api.all("pods")}
        for name in set(self.pods) - set(found):
            self._kill(name)
        for name, pod in found.items():
            if name in self.foreign:
                continue
            status = self._status(name, pod)
            if status != pod["status"]:
                with contextlib.suppress(Refused):  # it was deleted meanwhile
                    self.api.patch("pods", pod["metadata"]["namespace"], name, {"status": status})

    def _status(self, name: str, pod: Json) -> Json:
        container = pod["spec"]["containers"][0]
        if self.full:
            why = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/3 nodes are available",
            }
            return {"phase": "Pending", "conditions": [why]}
        if self.images is not None and container["image"] not in self.images:
            return _waiting("ImagePullBackOff", f'Back-off pulling image "{container["image"]}"')
        secrets = self._secrets(pod)
        if secrets is None:
            return _waiting("ContainerCreating", "")
        if name not in self.pods:
            address = f"127.77.{random.randrange(1, 255)}.{random.randrange(1, 255)}"
            self.api.addresses[name] = address
            self.pods[name] = _Running(self._process(name, container, address, secrets), container, address)
        running = self.pods[name]
        if (code := running.process.poll()) is not None:
            if not running.again:
                running.ended = {"reason": "OOMKilled" if code == -9 else "Error", "exitCode": code % 256}
                running.again = time.monotonic() + 0.3
                running.ready = False
            elif time.monotonic() > running.again:
                running.process = self._process(name, container, running.address, secrets)
                running.restarts, running.again = running.restarts + 1, 0.0
        running.ready = running.ready or _answers(container, running.address)
        last = {"lastState": {"terminated": running.ended}} if running.ended else {}
        state = {"waiting": {"reason": "CrashLoopBackOff"}} if running.again else {"running": {}}
        ready = running.ready and not running.again
        statuses = {"name": container["name"], "restartCount": running.restarts, "state": state, "ready": ready, **last}
        conditions = [{"type": kind, "status": str(ready)} for kind in ("Ready", "ContainersReady")]
        return {"phase": "Running", "podIP": running.address, "containerStatuses": [statuses], "conditions": conditions}

    def _secrets(self, pod: Json) -> dict[str, str] | None:
        """Where the files of a pod's Secrets lie, by the path that the container sees; None while one is not there."""
        places = {}
        for mount in pod["spec"]["containers"][0]["volumeMounts"]:
            (volume,) = [v for v in pod["spec"]["volumes"] if v["name"] == mount["name"]]
            if "secret" not in volume:
                continue
            wanted = volume["secret"]["secretName"]
            found = [s for s in self.api.all("secrets") if s["metadata"]["name"] == wanted]
            if not found:
                return None
            folder = self.folder / wanted
            folder.mkdir(exist_ok=True)
            for name, text in found[0]["data"].items():
                (folder / name).write_bytes(base64.b64decode(text))
            places[mount["mountPath"]] = str(folder)
        return places

    def _process(self, name: str, container: Json, address: str, places: dict[str, str]) -> subprocess.Popen:
        fields = {"metadata.name": name, "status.podIP": address}
        given = {
            entry["name"]: entry["value"] if "value" in entry else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
            for entry in container["env"]
        }
        for source in container.get("envFrom", []):
            (found,) = [s for s in self.api.all("secrets") if s["metadata"]["name"] == source["secretRef"]["name"]]
            given = {key: base64.b64decode(text).decode() for key, text in found["data"].items()} | given
        command = [re.sub(r"\$\((\w+)\)", lambda m: given.get(m[1], m[0]), part) for part in container["command"]]
        command = [part.replace("0.0.0.0", address) for part in command]
        for inside, outside in places.items():
            command = [part.replace(inside, outside) for part in command]
        base = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT / 'tests/kubernetes/names'}:{ROOT}",
            "FAKE_DNS": str(self.names),
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                env=base | given | self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
            )

    def _kill(self, name: str) -> None:
        running = self.pods.pop(name)
        if running.process.poll() is None:
            os.killpg(running.process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(GRACE_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()


def _waiting(reason: str, message: str) -> Json:
    state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
    return {"phase": "Pending", "containerStatuses": [{"restartCount": 0, "state": state}], "conditions": []}


def _answers(container: Json, address: str) -> bool:
    probe = container.get("readinessProbe")
    if probe is None:
        return True
    (port,) = [p["containerPort"] for p in container["ports"] if p["name"] == probe["httpGet"]["port"]]
    try:
        with urllib.request.urlopen(f"http://{address}:{port}{probe['httpGet']['path']}", timeout=1) as found:
            return found.status == 200
    except (urllib.error.URLError, OSError):
        return False

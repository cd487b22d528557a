"""As much of a Kubernetes API server as Dask's operator and our driver need: objects in memory, watches, finalizers, owners.

No validation but of what the tests are about: names that are taken, namespaces, resources that are not installed, rights.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jsonpatch
from aiohttp import WSMsgType, web

Json = dict[str, Any]

KINDS = {
    "v1": {"pods": "Pod", "services": "Service", "secrets": "Secret", "events": "Event", "namespaces": "Namespace"},
    "apps/v1": {"deployments": "Deployment"},
    "apiextensions.k8s.io/v1": {"customresourcedefinitions": "CustomResourceDefinition"},
    "kubernetes.dask.org/v1": {
        "daskclusters": "DaskCluster",
        "daskworkergroups": "DaskWorkerGroup",
        "daskjobs": "DaskJob",
        "daskautoscalers": "DaskAutoscaler",
    },
}
WIDE = {"namespaces", "customresourcedefinitions"}
DRIVER = "driver"
"""Its token."""
VERBS = {"POST": "create", "GET": "get", "PATCH": "patch", "DELETE": "delete"}


class Refused(Exception):  # noqa: N818 - an answer
    """An answer that is no object."""

    def __init__(self, code: int, message: str) -> None:
        self.code, self.message = code, message


@dataclass
class FakeApi:
    """The server. Tests read and set its fields from their own thread.

    Args:
        forbidden: Verbs and resources that nobody may.
        installed: Whether Dask's resources are.
        requests: All that the driver asked, `VERB resource`.
        addresses: Of pods, by name.
        default_log: What every container printed.
    """

    forbidden: set[tuple[str, str]] = field(default_factory=set)
    installed: bool = True
    requests: list[str] = field(default_factory=list)
    objects: dict[tuple[str, str, str], Json] = field(default_factory=dict)
    log: list[tuple[int, str, str, Json]] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)
    default_log: str = ""
    broken_forwards: int = 0
    closing: bool = False

    def __post_init__(self) -> None:
        self._versions = itertools.count(1)
        self.lock = threading.RLock()
        self.put("namespaces", {"metadata": {"name": "halotile"}})

    # --- objects ----------------------------------------------------------------------------------------------------

    def all(self, plural: str, **labels: str) -> list[Json]:
        """Copies of what there is."""
        with self.lock:
            found = [copy.deepcopy(o) for (kind, _, _), o in self.objects.items() if kind == plural]
        wanted = {name.replace("_", "-"): value for name, value in labels.items()}
        return [
            o
            for o in found
            if all(o["metadata"].get("labels", {}).get(f"dask.org/{k}") == v for k, v in wanted.items())
        ]

    def put(self, plural: str, new: Json, event: str = "ADDED") -> Json:
        """Store an object as it is now."""
        with self.lock:
            metadata = new["metadata"]
            metadata.setdefault("uid", str(uuid.uuid4()))
            metadata.setdefault("creationTimestamp", now())
            metadata["resourceVersion"] = str(version := next(self._versions))
            self.objects[plural, metadata.get("namespace", ""), metadata["name"]] = new
            self.log.append((version, event, plural, copy.deepcopy(new)))
            return copy.deepcopy(new)

    def patch(self, plural: str, namespace: str, name: str, change: Json | list[Json]) -> Json:
        """Change an object by a merge patch or a JSON patch; it goes where it waited for its last finalizer."""
        with self.lock:
            found = self._found(plural, namespace, name)
            if isinstance(change, list):
                try:
                    found = jsonpatch.apply_patch(found, change)
                except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
                    raise Refused(422, str(error)) from error
                self.objects[plural, namespace, name] = found
            else:
                merge(found, change)
            if "deletionTimestamp" in found["metadata"] and not found["metadata"].get("finalizers"):
                return self._remove(plural, namespace, name)
            return self.put(plural, found, "MODIFIED")

    def delete(self, plural: str, namespace: str, name: str) -> Json:
        """Delete an object, or, where it has finalizers, mark it."""
        with self.lock:
            found = self._found(plural, namespace, name)
            if not found["metadata"].get("finalizers"):
                return self._remove(plural, namespace, name)
            found["metadata"].setdefault("deletionTimestamp", now())
            return self.put(plural, found, "MODIFIED")

    def collect(self) -> None:
        """Delete what has lost its owner, as Kubernetes' garbage collector does."""
        with self.lock:
            alive = {o["metadata"]["uid"] for o in self.objects.values()}
            for (plural, namespace, name), found in list(self.objects.items()):
                owners = found["metadata"].get("ownerReferences") or []
                if owners and not alive & {o["uid"] for o in owners} and "deletionTimestamp" not in found["metadata"]:
                    self.delete(plural, namespace, name)

    def _found(self, plural: str, namespace: str, name: str) -> Json:
        if (plural, namespace, name) not in self.objects:
            raise Refused(404, f'{plural} "{name}" not found')
        return self.objects[plural, namespace, name]

    def _remove(self, plural: str, namespace: str, name: str) -> Json:
        gone = self.objects.pop((plural, namespace, name))
        gone["metadata"]["resourceVersion"] = str(version := next(self._versions))
        self.log.append((version, "DELETED", plural, copy.deepcopy(gone)))
        return gone

    # --- the server -------------------------------------------------------------------------------------------------

    def application(self) -> web.Application:
        application = web.Application(middlewares=[_answered])
        routes = [
            web.get("/version{end:/?}", _always({"gitVersion": "v1.34.0", "major": "1", "minor": "34"})),
            web.get("/api{end:/?}", _always({"versions": ["v1"]})),
            web.get("/apis{end:/?}", self._groups),
        ]
        for version in ("/api/{version:v1}", "/apis/{group}/{version}"):
            routes.append(web.get(f"{version}{{end:/?}}", self._resources))
            for space in ("", "/namespaces/{namespace}"):
                whole = f"{version}{space}/{{plural}}"
                routes += [web.get(whole, self._list), web.post(whole, self._create)]
                for verb, handler in (("GET", self._get), ("PATCH", self._patched), ("DELETE", self._deleted)):
                    routes.append(web.route(verb, f"{whole}/{{name}}", handler))
                routes.append(web.patch(f"{whole}/{{name}}/{{part:status|scale}}", self._patched))
                routes.append(web.get(f"{whole}/{{name}}/log", self._log))
                routes.append(web.get(f"{whole}/{{name}}/portforward", self._forward))
        application.add_routes(routes)
        return application

    def _asked(self, request: web.Request) -> tuple[str, str, str]:
        info = request.match_info
        plural, namespace = info["plural"], info.get("namespace", "")
        part = {"log": "/log", "portforward": "/portforward"}.get(request.path.rpartition("/")[2], "")
        verb = VERBS[request.method] if "name" in info or request.method == "POST" else "list"
        if request.headers.get("Authorization") == f"Bearer {DRIVER}":
            self.requests.append(f"{verb} {plural}{part}")
        if ("dask" in plural and not self.installed) or not any(plural in kinds for kinds in KINDS.values()):
            raise Refused(404, "the server could not find the requested resource")
        if (verb, plural + part) in self.forbidden:
            raise Refused(403, f'{plural} is forbidden: User "nobody" cannot {verb} resource "{plural}"')
        if verb == "create" and namespace and ("namespaces", "", namespace) not in self.objects:
            raise Refused(404, f'namespaces "{namespace}" not found')
        return plural, namespace, info.get("name", "")

    async def _groups(self, _: web.Request) -> web.Response:
        groups = [
            version.split("/") for version in KINDS if "/" in version and (self.installed or "dask" not in version)
        ]
        found = [{"groupVersion": f"{group}/{version}", "version": version} for group, version in groups]
        return web.json_response(
            {
                "groups": [
                    {"name": f["groupVersion"].split("/")[0], "versions": [f], "preferredVersion": f} for f in found
                ]
            }
        )

    async def _resources(self, request: web.Request) -> web.Response:
        info = request.match_info
        version = f"{info['group']}/{info['version']}" if "group" in info else info["version"]
        if version not in KINDS:
            raise Refused(404, "the server could not find the requested resource")
        verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
        found = [
            {
                "name": plural,
                "singularName": kind.lower(),
                "kind": kind,
                "namespaced": plural not in WIDE,
                "verbs": verbs,
            }
            for plural, kind in KINDS[version].items()
        ]
        return web.json_response({"groupVersion": version, "resources": found})

    async def _list(self, request: web.Request) -> web.StreamResponse:
        plural, namespace, _ = self._asked(request)

        def wanted(kind: str, found: Json) -> bool:
            metadata = found["metadata"]
            here = not namespace or metadata.get("namespace") == namespace
            return kind == plural and here and selected(found, request.query)

        if request.query.get("watch") in ("true", "1"):
            return await self._watch(request, wanted)
        with self.lock:
            items = [copy.deepcopy(o) for (kind, _, _), o in self.objects.items() if wanted(kind, o)]
            version = str(self.log[-1][0])
        return web.json_response({"kind": "List", "metadata": {"resourceVersion": version}, "items": items})

    async def _watch(self, request: web.Request, wanted: Any) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        after = int(request.query.get("resourceVersion") or 0)
        deadline = asyncio.get_running_loop().time() + float(request.query.get("timeoutSeconds") or 3600)
        while asyncio.get_running_loop().time() < deadline and not (
            self.closing or request.transport is None or request.transport.is_closing()
        ):
            with self.lock:
                news = [entry for entry in self.log if entry[0] > after]
            for version, event, plural, found in news:
                after = version
                if wanted(plural, found):
                    with suppress(ConnectionResetError):
                        await response.write(json.dumps({"type": event, "object": found}).encode() + b"\n")
            await asyncio.sleep(0.05)
        return response

    async def _create(self, request: web.Request) -> web.Response:
        plural, namespace, _ = self._asked(request)
        new = await request.json()
        metadata = new.setdefault("metadata", {})
        if "name" not in metadata:
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        if namespace:
            metadata["namespace"] = namespace
        if (plural, namespace, metadata["name"]) in self.objects:
            raise Refused(409, f'{plural} "{metadata["name"]}" already exists')
        if plural == "services":
            new["status"] = {"loadBalancer": {}}
        return web.json_response(self.put(plural, new), status=201)

    async def _get(self, request: web.Request) -> web.Response:
        with self.lock:
            return web.json_response(copy.deepcopy(self._found(*self._asked(request))))

    async def _patched(self, request: web.Request) -> web.Response:
        return web.json_response(self.patch(*self._asked(request), await request.json()))

    async def _deleted(self, request: web.Request) -> web.Response:
        return web.json_response(self.delete(*self._asked(request)))

    async def _log(self, request: web.Request) -> web.Response:
        self._asked(request)
        return web.Response(text=self.default_log)

    async def _forward(self, request: web.Request) -> web.WebSocketResponse:
        """Bytes to a pod's port and back, each frame with its channel in front; the first of each channel names the port."""
        _, _, name = self._asked(request)
        port = int(request.query["ports"])
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if self.broken_forwards:
            self.broken_forwards -= 1
            await socket.close()
            return socket
        try:
            reader, writer = await asyncio.open_connection(self.addresses[name], port)
        except ConnectionRefusedError:  # nobody listens there yet: a kubelet breaks off too
            await socket.close()
            return socket
        for channel in (b"\x00", b"\x01"):
            await socket.send_bytes(channel + port.to_bytes(2, "little"))

        async def back() -> None:
            with suppress(ConnectionResetError):  # it was killed
                while data := await reader.read(2**16):
                    await socket.send_bytes(b"\x00" + data)
            await socket.close()

        task = asyncio.create_task(back())
        try:
            async for message in socket:
                if message.type == WSMsgType.BINARY and message.data[0] == 0:
                    writer.write(message.data[1:])
                    await writer.drain()
        finally:
            task.cancel()
            writer.close()
        return socket


def _always(content: Json) -> Any:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(content)

    return answer


@web.middleware
async def _answered(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as error:
        told = {"kind": "Status", "status": "Failure", "message": error.message, "code": error.code}
        return web.json_response(told, status=error.code)


def merge(target: Json, change: Json) -> None:
    """RFC 7386."""
    for key, value in change.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            merge(target[key], value)
        else:
            target[key] = value


def selected(found: Json, query: Any) -> bool:
    """Whether an object fits label and field selectors of equality."""
    labels = found["metadata"].get("labels") or {}
    if any(labels.get(key) != value for key, value in _pairs(query.get("labelSelector"))):
        return False
    for key, value in _pairs(query.get("fieldSelector")):
        part: Any = found
        for name in key.split("."):
            part = part.get(name, {})
        if part != value:
            return False
    return True


def _pairs(selector: str | None) -> Iterator[tuple[str, str]]:
    for part in (selector or "").split(","):
        if part:
            key, _, value = part.partition("=")
            yield key, value.lstrip("=")


def now() -> str:
    """As Kubernetes writes times."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

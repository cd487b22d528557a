"""A Kubernetes that is real where it matters: a fake API, Dask's real operator upon it, and pods that are real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

from tests.kubernetes.fake_api import DRIVER, FakeApi
from tests.kubernetes.fake_nodes import ROOT, FakeNodes
from tests.kubernetes.manifest_cases import manifests


@dataclass
class Kubernetes:
    """A cluster.

    Args:
        api: Its server.
        nodes: Its nodes.
        config: A kubeconfig that names it.
        folder: Where its files are.
    """

    api: FakeApi
    nodes: FakeNodes
    config: Path
    folder: Path

    def operator(self) -> subprocess.Popen:
        """Start Dask's operator."""
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "KUBECONFIG": str(self.folder / "operator-config"),
            "PYTHONPATH": f"{ROOT / 'tests/kubernetes/names'}",
            "FAKE_DNS": str(self.nodes.names),
        }
        command = [
            sys.executable,
            "-m",
            "kopf",
            "run",
            "-m",
            "dask_kubernetes.operator.controller",
            "-A",
            "--standalone",
        ]
        with (self.folder / "operator.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


@pytest.fixture
def kubernetes(tmp_path, monkeypatch) -> Iterator[Kubernetes]:
    """A cluster without its operator; KUBECONFIG names it."""
    api, folder = FakeApi(), tmp_path / "kubernetes"
    folder.mkdir()
    loop, started, port = asyncio.new_event_loop(), threading.Event(), []

    async def serve() -> web.AppRunner:
        runner = web.AppRunner(api.application(), shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.append(site._server.sockets[0].getsockname()[1])
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            runner = loop.run_until_complete(serve())
        finally:
            started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=run, name="fake api")
    thread.start()
    started.wait()
    config = folder / "config"
    config.write_text(_KUBECONFIG.format(port=port[0], token=DRIVER))
    (folder / "operator-config").write_text(_KUBECONFIG.format(port=port[0], token="operator"))
    monkeypatch.setenv("KUBECONFIG", str(config))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    nodes = FakeNodes(api, folder)
    nodes.start()
    try:
        yield Kubernetes(api, nodes, config, folder)
    finally:
        nodes.stop()
        api.closing = True
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
    assert set(api.requests) <= permitted(), "deploy/kubernetes/rbac.yaml lacks what the driver does"


def permitted() -> set[str]:
    """What the Role of the driver lets it do, `VERB resource`."""
    (role,) = [found for name, found in manifests() if name == "rbac.yaml:Role:halotile-driver"]
    return {f"{verb} {kind}" for rule in role["rules"] for verb in rule["verbs"] for kind in rule["resources"]}


@pytest.fixture
def operator(kubernetes) -> Iterator[Kubernetes]:
    """A cluster with its operator."""
    process = kubernetes.operator()
    try:
        yield kubernetes
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


_KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: fake, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
users: [{{name: me, user: {{token: {token}}}}}]
contexts: [{{name: fake, context: {{cluster: fake, user: me, namespace: halotile}}}}]
current-context: fake
"""

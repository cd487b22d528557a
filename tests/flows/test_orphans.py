"""Sub-flows whose parent was killed: called crashed by the next run, and only those."""

import os
import subprocess
import sys

from prefect import get_client
from prefect.states import Crashed

from flows.server.embedded import EmbeddedServer, prefect_api
from flows.server.orphans import end_orphans
from tests.e2e.commands import ROOT

KILLED = """
import os
from prefect import flow

@flow(name="a-volume")
def volume():
    os._exit(9)

@flow(name="a-dataset")
def dataset():
    volume()

dataset()
"""


def test_a_sub_flow_of_a_killed_run_is_called_crashed_once_that_run_is_known_to_have_ended(prefect_home, monkeypatch):
    """Else it would be Running on the page for ever; one whose parent may still run is left alone."""
    monkeypatch.setenv("PREFECT_HOME", str(prefect_home))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    server = EmbeddedServer()
    with prefect_api(server=server) as url:
        told = {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": server.secret, "PREFECT_LOGGING_LEVEL": "CRITICAL"}
        environment = {**os.environ, **told}
        killed = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, env=environment, timeout=120, check=False)
        assert killed.returncode == 9
        with get_client(sync_client=True) as client:
            runs = {client.read_flow(run.flow_id).name: run for run in client.read_flow_runs()}
            assert end_orphans("a-volume") == 0
            client.set_flow_run_state(runs["a-dataset"].id, Crashed(message="its worker said so"), force=True)
            assert end_orphans("a-volume") == 1
            assert client.read_flow_run(runs["a-volume"].id).state_name == "Crashed"
            assert end_orphans("a-volume") == 0

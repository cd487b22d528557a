"""The training flow against a real Prefect server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.training.training_cases import recipe

SEEN = """
    import json, sys
    from pathlib import Path
    from flows.server.embedded import prefect_api, start_unless_configured

    def main():
        server = start_unless_configured()
        from prefect import get_client
        from flows.training import train_network
        from pipeline.training.recipe import TrainConfig

        with prefect_api(server=server):
            given = train_network(TrainConfig.model_validate_json(Path(sys.argv[1]).read_text()))
            with get_client(sync_client=True) as client:
                tasks = {run.name: run.state_name for run in client.read_task_runs()}
                artifacts = {a.key: a.data for a in client.read_artifacts()}
        print(json.dumps({"given": given, "tasks": tasks, "artifacts": artifacts}))

    if __name__ == "__main__":
        main()
"""


@pytest.mark.slow
def test_the_flow_trains_evaluates_and_registers(tmp_path, prefect_home):
    """Three tasks, a progress that reaches its end, and a page that says how good the network is."""
    config = recipe(tmp_path, steps=20, register_as={"registry": str(tmp_path / "models"), "name": "tiny"})
    (tmp_path / "config.json").write_text(config.model_dump_json())
    (tmp_path / "seen.py").write_text(textwrap.dedent(SEEN))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {
        "PREFECT_HOME": str(prefect_home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, str(tmp_path / "seen.py"), str(tmp_path / "config.json")]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    seen = json.loads(found.stdout.splitlines()[-1])
    assert seen["tasks"] == {"train": "Completed", "evaluate": "Completed", "register": "Completed"}
    assert seen["given"]["version"] == 1
    assert seen["artifacts"]["halotile-training"] == 100.0
    assert "V_rand" in seen["artifacts"]["halotile-training-report"]

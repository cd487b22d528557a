"""The flow against a real Prefect server: what a person sees on its page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline.core.network.unet import Architecture
from tests.pipeline_cases import Run, make_run, save_array

SEEN = """
    import json, sys
    from flows.server.embedded import prefect_api, start_unless_configured

    server = start_unless_configured()
    from pathlib import Path
    from prefect import get_client
    from flows.inference import infer_volume
    from pipeline.config import RunConfig, read_config

    told = ""
    with prefect_api(server=server):
        try:
            infer_volume(read_config(RunConfig, Path(sys.argv[1])))
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
    with prefect_api(), get_client(sync_client=True) as client:
        flow_run = client.read_flow_runs()[0]
        tasks = {run.name: run.state_name for run in client.read_task_runs()}
        artifacts = {a.key: a.data for a in client.read_artifacts()}
    print(json.dumps({
        "told": told, "name": flow_run.name, "state": flow_run.state_name, "message": flow_run.state.message,
        "tasks": tasks, "artifacts": artifacts,
    }))
"""


def _seen(run: Run, home: Path) -> dict:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    script = run.folder / "seen.py"
    script.write_text(
        f"def main():\n{textwrap.indent(textwrap.dedent(SEEN), '    ')}\n\nif __name__ == '__main__':\n    main()\n"
    )
    command = [sys.executable, str(script), str(run.yaml)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads(found.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_run_is_one_named_flow_run_with_a_task_a_stage(tmp_path: Path, prefect_home: Path) -> None:
    """Tiles are Dask's: Prefect's server hangs at some thousands of task runs."""
    run = make_run(tmp_path, architecture=Architecture(3, 1, 2), shape=(9, 17, 15), tiles={"core": [8, 8, 8]})
    seen = _seen(run, prefect_home)
    assert seen["told"] == ""
    assert (seen["name"], seen["state"]) == ("output.zarr", "Completed")
    assert seen["tasks"] == dict.fromkeys(["plan", "survey", "infer", "verify", "report"], "Completed")
    assert seen["artifacts"]["halotile-progress"] == 100.0
    assert run.plan.fingerprint in seen["artifacts"]["halotile-report"]


@pytest.mark.slow
def test_a_failed_tile_fails_the_flow_run_by_its_name_and_is_not_retried_as_a_stage(
    tmp_path: Path, prefect_home: Path
) -> None:
    """The state's message is what a person sees first; a stage that failed on purpose has been tried enough."""
    run = make_run(
        tmp_path,
        architecture=Architecture(3, 1, 2),
        shape=(9, 17, 15),
        dtype="float32",
        tiles={"core": [8, 8, 8]},
        normalize={"mode": "none"},
        cluster={"workers": 1, "retries": 0},
    )
    volume = run.volume.copy()
    volume[8, 16, 14] = float("nan")
    save_array(tmp_path / "input.zarr", volume, (8, 8, 8), overwrite=True)
    seen = _seen(run, prefect_home)
    assert seen["told"].startswith("InferenceError: ")
    assert "not finite" in seen["told"]
    assert seen["state"] == "Failed"
    assert "not finite" in seen["message"]
    assert seen["tasks"]["infer"] == "Failed"
    assert "verify" not in seen["tasks"]

"""What is refused before a server is asked, and what a deployment says of its run; tests/sites has the servers."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.utilities.callables import parameter_schema
from ruamel.yaml import YAML

from flows import dataset, deployment, inference
from flows.commands.app import app
from flows.commands.status import REFUSED, status
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from tests.e2e.commands import ROOT

RUN = """
input:  {url: data/in.zarr}
output: {url: "${SCRATCH}/out.zarr"}
model:  {checkpoint: "models/${WHICH}.pt"}
tiles:  {core: [64, "${WIDTH}", 128]}
compute:
"""

DATASET = """
volumes: inbox
output: {url: segmented}
model: {name: em, registry: models}
"""

TRAINING = """
data: {volumes: [{image: em.zarr, labels: ids.zarr}]}
output: out
patch: [16, 64, 64]
steps: 10
network: {depth: 2, width: 4}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of our own, no server configured, and the variables that RUN names."""
    for name, value in {"SCRATCH": "/scratch/7", "WHICH": "em", "WIDTH": "128"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "membranes.yaml").write_text(RUN)
    (tmp_path / "em.yaml").write_text(TRAINING)
    (tmp_path / "set.yaml").write_text(DATASET)
    return tmp_path


def test_a_yaml_becomes_parameters_with_absolute_paths_and_no_secret(home):
    """A worker has another working directory; and Prefect's database is no place for what `${NAME}` stands for."""
    found = deployment.deployment_of(Path("membranes.yaml"), ["cluster.workers=2"])
    assert found.title == "halotile-inference/membranes"
    assert found.parameters["config"] == {
        "input": {"url": f"{home}/data/in.zarr"},
        "output": {"url": "${SCRATCH}/out.zarr"},
        "model": {"checkpoint": f"{home}/models/${{WHICH}}.pt"},
        "tiles": {"core": [64, "${WIDTH}", 128]},
        "cluster": {"workers": 2},
    }
    assert RunConfig.model_validate(found.parameters["config"]).model.checkpoint == f"{home}/models/em.pt"


def test_a_recipe_becomes_a_deployment_of_training(home):
    """One command for both kinds of YAML."""
    found = deployment.deployment_of(Path("em.yaml"))
    assert found.title == "halotile-training/em"
    assert found.parameters["config"]["data"]["volumes"] == [{"image": f"{home}/em.zarr", "labels": f"{home}/ids.zarr"}]


def test_a_data_set_becomes_a_deployment_that_goes_over_it_or_one_that_watches_it(home):
    """One YAML for both: its volumes are the catalogue of the one and the inbox of the other."""
    found = [deployment.deployment_of(Path("set.yaml"), watch=watch) for watch in (False, True)]
    assert [each.title for each in found] == ["halotile-dataset/set", "halotile-watch/set"]
    assert found[0].parameters["config"] == {
        "volumes": f"{home}/inbox",
        "output": {"url": f"{home}/segmented"},
        "model": {"name": "em", "registry": f"{home}/models"},
    }


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "none is configured"),
        (["membranes.yaml", "--watch"], "--watch is for a dataset"),
        (["membranes.yaml"], "none is configured"),
        (["membranes.yaml", "--cron", "at two"], "--cron 'at two'"),
        (["membranes.yaml", "--cron", "0 2 * * *", "--timezone", "Mars/Olympus"], "Mars/Olympus"),
        (["membranes.yaml", "--name", "segment"], "the form of a bare flow"),
        (["membranes.yaml", "--set", "tiles.cores=1"], "did you mean 'core'"),
        (["--cron", "0 2 * * *"], "none is named"),
        (["membranes.yaml", "em.yaml", "--name", "one"], "a name each"),
        (["membranes.yaml", "a/membranes.yaml"], "a name each"),
    ],
)
def test_refusals_come_before_a_server_is_asked(home, capsys, arguments, told):
    """A deployment that cannot run would tell so at two at night."""
    assert status(lambda: app(["deploy", *arguments], exit_on_error=False, result_action="return_value")) == REFUSED
    assert told in capsys.readouterr().err


def test_a_run_is_lost_only_after_more_than_one_heartbeat():
    """Prefect takes no less than 30 s between two; within less every run would be called crashed."""
    within = deployment.lost_runs(deployment.LOST_SECONDS).trigger.within.total_seconds()
    assert within > 3 * deployment.HEARTBEAT_SECONDS
    with pytest.raises(ConfigError, match="sign of life every 30 s"):
        deployment.lost_runs(30)


def test_the_file_for_prefects_own_command_says_the_same():
    """There are two ways to deploy, and one deployment."""
    content = YAML(typ="safe").load((ROOT / "deploy" / "prefect.yaml").read_text())
    entries = {entry["name"]: entry for entry in content["deployments"]}
    for found in deployment.forms():
        entry = entries[found.name]
        assert entry["entrypoint"] == f"{found.flow.fn.__module__}.{found.flow.fn.__name__}"
        assert entry["description"] in found.flow.description
    for entry in entries.values():
        assert entry["tags"] == [deployment.TAG]
        assert entry["work_pool"]["job_variables"]["env"] == deployment.job_variables()["env"]
    nightly = entries["nightly"]
    assert RunConfig.model_validate(nightly["parameters"]["config"])
    assert nightly["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}


def same_to_a_server(declared, built) -> bool:
    """Whether a server takes two flows for one, with one form and one name of its runs."""
    parts = [(f.name, f.flow_run_name, f.persist_result, parameter_schema(f), f.fn.__name__) for f in (declared, built)]
    return parts[0] == parts[1]


def test_the_flow_that_a_command_runs_is_the_one_that_is_deployed():
    """It is built around what only the command's process has; the page must not show two flows for it."""
    run = inference.infer_volume_with(None, None, lambda _: None)
    reprocess, watch = dataset.reprocess_dataset_with(lambda *_: None), dataset.watch_inbox_with(lambda *_: None)
    assert same_to_a_server(inference.infer_volume, run)
    assert same_to_a_server(dataset.reprocess_dataset, reprocess)
    assert same_to_a_server(dataset.watch_inbox, watch)
    assert not same_to_a_server(dataset.watch_inbox, reprocess)

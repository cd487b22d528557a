"""The manifests, as strictly judged as an API server can: unknown fields refused, every pod as confined as we say."""

import asyncio
import inspect
import json
from importlib.metadata import version

import dask.config
import jsonschema
import kubernetes_validate
import prefect_kubernetes.worker
import pytest
from dask_kubernetes.operator.validation import validate_cluster_name
from prefect_kubernetes.settings import KubernetesObserverSettings
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration
from ruamel.yaml import YAML

from flows.commands.status import INTERRUPTED, UNVERIFIED
from flows.commands.status import REFUSED as REFUSED_STATUS
from flows.deployment import job_variables
from pipeline.cluster import manifest
from pipeline.cluster.kind import WorkerSpec
from pipeline.cluster.manifest import Owner, cluster_name, dask_cluster, variables
from pipeline.config import ClusterConfig, KubernetesConfig, RunConfig, validated
from tests.kubernetes.manifest_cases import (
    CHART,
    EXAMPLE,
    FOLDER,
    documents,
    example,
    judge,
    manifests,
    misspelt,
    pod_specs,
    written,
)

ALL = dict(manifests())
REFUSED = (jsonschema.ValidationError, kubernetes_validate.ValidationError)
SMALL = KubernetesConfig(image="i", cores=2)
CREW = WorkerSpec(3, 2, 4 * 10**9)


def made(
    asked: KubernetesConfig = SMALL, name: str = "n", *, encrypted: bool = True, owner: Owner | None = None
) -> dict:
    """A DaskCluster."""
    return dask_cluster(asked, CREW, name, encrypted=encrypted, owner=owner)


@pytest.mark.parametrize("name", ALL)
def test_a_manifest_is_what_kubernetes_takes(name):
    """A field that is written wrongly is dropped without a word by most servers, and the pod is another than was meant."""
    judge(ALL[name])


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("run.yaml:Job:membranes", "spec.template.spec.securityContext.runAsNonRot"),
        ("run.yaml:Job:membranes", "spec.podFailurePolicy.rules.1.onExitCodes.operater"),
        ("prefect-worker.yaml:Deployment:halotile-prefect-worker", "spec.template.spec.containers.0.resorces"),
        ("network-policy.yaml:NetworkPolicy:scheduler", "spec.ingress.0.form"),
        ("rbac.yaml:Role:halotile-driver", "rules.0.verb"),
        ("daskcluster.example.yaml:DaskCluster:halotile-membranes-ome-zarr-1a2b3c4d", "spec.idleTimout"),
        ("daskcluster.example.yaml:DaskCluster:halotile-membranes-ome-zarr-1a2b3c4d", "spec.worker.replica"),
        (
            "daskcluster.example.yaml:DaskCluster:halotile-membranes-ome-zarr-1a2b3c4d",
            "spec.worker.spec.tolerations.0.efect",
        ),
        (
            "daskcluster.example.yaml:DaskCluster:halotile-membranes-ome-zarr-1a2b3c4d",
            "spec.scheduler.service.ports.0.prot",
        ),
    ],
)
def test_a_field_that_is_written_wrongly_is_refused(name, path):
    """The control of the test above: a judge who lets everything pass is none."""
    with pytest.raises(REFUSED):
        judge(misspelt(ALL[name], path))


@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {
            "gpus": 1,
            "volumes": [{"claim": "c", "path": "/d", "read_only": True, "sub_path": "s"}],
            "env_from": ["s"],
            "env": {"A": "b"},
        },
        {
            "node_selector": {"a": "b"},
            "tolerations": [{"operator": "Exists"}, {"key": "k", "operator": "Equal", "value": "v"}],
        },
        {
            "priority_class": "p",
            "service_account": "s",
            "image_pull_secrets": ["i"],
            "labels": {"l": "1"},
            "annotations": {"a": "2"},
        },
    ],
)
def test_what_a_configuration_makes_is_what_dasks_operator_takes(keys, encrypted):
    """Whatever the keys; and no nulls, which dask-kubernetes' own would have."""
    found = made(KubernetesConfig(image="i", cores=2, **keys), encrypted=encrypted, owner=Owner("p", "u"))
    judge(found)
    assert "null" not in json.dumps(found)


def test_the_example_is_what_the_function_makes():
    """It is there to be read. Anew: python -m tests.kubernetes.manifest_cases > deploy/kubernetes/daskcluster.example.yaml."""
    assert documents(EXAMPLE) == [example()]
    assert EXAMPLE.read_text() == written(example())


# --- how pods are confined ----------------------------------------------------------------------------------------------


def confined(spec: dict) -> bool:
    """Whether a pod passes Kubernetes' `restricted` standard, writes to no root file system, and has limits."""
    whole = spec["securityContext"]
    kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
    return (
        whole["runAsNonRoot"] is True
        and whole["runAsUser"] != 0
        and whole["seccompProfile"] == {"type": "RuntimeDefault"}
        and kinds <= {"emptyDir", "secret", "configMap", "persistentVolumeClaim"}
        and all(
            one["securityContext"]
            == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
            and one["resources"]["requests"] == one["resources"]["limits"]
            and {"cpu", "memory"} <= set(one["resources"]["limits"])
            for one in spec["containers"]
        )
    )


PODS = {f"{name} {part}": spec for name, found in ALL.items() for part, _, spec in pod_specs(found)}


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_confined(name):
    """Not root, nothing to write to but its volumes, no privileges, and no more of a node than it asked for."""
    assert confined(PODS[name])
    assert not confined(PODS[name] | {"securityContext": {**PODS[name]["securityContext"], "runAsUser": 0}})


def test_only_drivers_and_prefects_worker_hold_a_token():
    """Workers run a network over somebody's data; what they cannot reach they cannot lose."""
    assert {
        name.split(" ")[0].split(":")[0] for name, spec in PODS.items() if spec["automountServiceAccountToken"]
    } == {
        "run.yaml",
        "prefect-worker.yaml",
    }


def test_network_policies_select_the_pods_that_there_are():
    """A policy for a label that no pod has protects nothing, and denies what a run needs."""
    labels = [label for found in ALL.values() for _, label, _ in pod_specs(found)]
    assert {label[manifest.COMPONENT] for label in labels} == {"driver", "prefect-worker", "scheduler", "worker"}
    for found in (found for found in ALL.values() if found["kind"] == "NetworkPolicy"):
        for selector in _selectors(found["spec"]):
            assert any(selector.items() <= label.items() for label in labels)
    denied = ALL["network-policy.yaml:NetworkPolicy:nobody"]["spec"]
    assert denied == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def _selectors(spec: dict) -> list[dict]:
    peers = [
        peer
        for rule in [*spec.get("ingress", []), *spec.get("egress", [])]
        for peer in rule.get("from", rule.get("to", []))
    ]
    found = [spec["podSelector"], *(peer["podSelector"] for peer in peers if "podSelector" in peer)]
    return [one["matchLabels"] for one in found if "matchLabels" in one]


# --- what is in a DaskCluster -------------------------------------------------------------------------------------------


def test_a_worker_is_ended_by_its_nanny_before_the_kernel_ends_its_pod():
    """A container that is killed loses the log of why."""
    (container,) = made()["spec"]["worker"]["spec"]["containers"]
    limit = int(container["resources"]["limits"]["memory"].removesuffix("Mi")) * 2**20
    assert limit > 1.05 * CREW.memory_bytes
    assert container["command"][container["command"].index("--memory-limit") + 1] == str(CREW.memory_bytes)
    assert container["command"][container["command"].index("--nthreads") + 1] == "1"


def test_threads_and_allocator_are_what_the_plan_counts_on():
    """Threads are part of the plan, since they change low bits; a variable of the user's cannot undo them."""
    asked = KubernetesConfig(image="i", cores=8, env={"OMP_NUM_THREADS": "8", "AWS_REGION": "x"})
    (container,) = made(asked)["spec"]["worker"]["spec"]["containers"]
    found = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert (found["OMP_NUM_THREADS"], found["MALLOC_ARENA_MAX"], found["AWS_REGION"]) == ("2", "1", "x")
    assert len(found) == len(container["env"])


def test_settings_are_read_by_dask_as_they_were_meant():
    """They travel as words of the environment."""
    found = dask.config.collect_env(variables(manifest.POD_SETTINGS))
    for name, value in manifest.POD_SETTINGS.items():
        assert dask.config.get(name, config=found) == value


def test_workers_go_to_spot_nodes_and_the_scheduler_does_not():
    """A worker that is taken costs a tile; a scheduler that is taken ends the sitting."""
    spec = example()["spec"]
    assert "node.example.org/spot" in json.dumps(spec["worker"]["spec"]["tolerations"])
    assert "node.example.org/spot" not in json.dumps(spec["scheduler"]["spec"]["tolerations"])
    assert spec["worker"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in spec["scheduler"]["spec"]["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize(
    ("asked", "made_of_it"),
    [
        ({"key": "spot", "value": "true"}, {"key": "spot", "operator": "Equal", "value": "true"}),
        ({"key": "spot"}, {"key": "spot", "operator": "Exists"}),
        ({}, {"operator": "Exists"}),
    ],
)
def test_a_toleration_is_of_what_it_names(asked, made_of_it):
    """Kubernetes refuses a value with Exists, long after the run was begun, and tells only the operator."""
    spec = made(KubernetesConfig(image="i", cores=1, tolerations=[asked]))["spec"]["worker"]["spec"]
    assert made_of_it in spec["tolerations"]


def test_secrets_go_to_workers_only_and_by_name():
    """The manifest can be printed; the scheduler opens no store."""
    spec = example()["spec"]
    assert spec["worker"]["spec"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "halotile-s3"}}]
    assert "envFrom" not in spec["scheduler"]["spec"]["containers"][0]


@pytest.mark.parametrize("output", ["membranes.ome.zarr", "Über Größe", "___", "x" * 300, "a--b..c"])
def test_a_name_is_one_that_kubernetes_takes(output):
    """Outputs may be called anything; labels, Services and DaskClusters may not."""
    found = cluster_name(output, "1a2b3c4d")
    validate_cluster_name(found)
    judge(made(name=found))
    assert found.endswith("-1a2b3c4d")


# --- what lies beside it ------------------------------------------------------------------------------------------------


def test_the_run_of_the_job_is_a_run():
    """The first thing that anybody copies."""
    content = documents(FOLDER / "run.yaml")[0]["data"]["run.yaml"]
    config = validated(RunConfig, YAML(typ="safe", pure=True).load(content), source="run.yaml")
    job = documents(FOLDER / "run.yaml")[1]
    assert config.cluster.kubernetes.image == job["spec"]["template"]["spec"]["containers"][0]["image"]
    assert config.cluster.kubernetes.namespace == job["metadata"]["namespace"]


def test_a_driver_that_was_lost_is_made_again_and_one_that_was_ended_is_not():
    """The first rule that fits holds: a drained driver ends with 130 too, but its pod says why."""
    job = documents(FOLDER / "run.yaml")[1]["spec"]
    drained, ended = job["podFailurePolicy"]["rules"]
    assert (drained["action"], drained["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert (ended["action"], ended["onExitCodes"]["values"]) == ("FailJob", [UNVERIFIED, INTERRUPTED])
    assert REFUSED_STATUS not in ended["onExitCodes"]["values"]  # an API that is away for a moment is a refusal as well
    assert job["backoffLimit"] > 1


def test_a_driver_waits_for_workers_of_the_last_one_until_they_are_deleted():
    """They hold their tiles until the operator has seen that they are alone, and Kubernetes has ended them."""
    asked = ClusterConfig(kind="kubernetes", workers=1, memory_gb=1, kubernetes={"image": "i", "cores": 1})
    operator_looks, grace = 5, 30
    assert asked.orphan_seconds > manifest.ALONE_SECONDS + operator_looks + grace + 60


def test_prefects_worker_looks_where_it_may_and_the_pool_has_no_dead_keys():
    """Without, its observer asks for pods everywhere, is refused, and nobody marks what crashed."""
    worker = ALL["prefect-worker.yaml:Deployment:halotile-prefect-worker"]
    env = {e["name"]: e.get("value") for e in worker["spec"]["template"]["spec"]["containers"][0]["env"]}
    told = KubernetesObserverSettings(namespaces=env["PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES"])
    assert told.model_config["env_prefix"] == "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_"
    role = ALL["rbac.yaml:Role:halotile-prefect"]
    assert told.namespaces == {role["metadata"]["namespace"]}
    pool = json.loads((FOLDER / "prefect-pool.json").read_text())
    source = inspect.getsource(prefect_kubernetes.worker)
    template = json.dumps(pool["job_configuration"]["job_manifest"])
    for name in pool["variables"]["properties"]:
        used = f"self.{name}" in source or f"configuration.{name}" in source
        assert f"{{{{ {name} }}}}" in template or used, f"nothing reads {name}"


def test_values_of_the_operators_chart_are_ones_that_it_has():
    """Helm takes any name, and does nothing with those that it does not know."""
    known = YAML(typ="safe", pure=True).load((CHART / "values.yaml").read_text())
    (found,) = documents(FOLDER / "operator-values.yaml")
    assert set(found) <= set(known)
    assert set(found["workerAllocation"]) == set(known["workerAllocation"])
    assert f"--version {version('dask-kubernetes')} " in (FOLDER / "operator-values.yaml").read_text()


async def _rendered(**values) -> dict:
    template = json.loads((FOLDER / "prefect-pool.json").read_text())
    # no server is asked
    found = await KubernetesWorkerJobConfiguration.from_template_and_values(template, values, client=object())
    found.labels = {"app.kubernetes.io/name": "run", "prefect.io/flow-run-id": "1"}  # as Prefect sets them for a run
    found.command = "prefect flow-run execute"
    for step in (
        "_configure_eviction_handling",
        "_populate_env_in_manifest",
        "_slugify_labels",
        "_slugify_annotations",
    ):
        getattr(found, step)()
    for step in (
        "_populate_image_if_not_present",
        "_populate_command_if_not_present",
        "_populate_generate_name_if_not_present",
    ):
        getattr(found, step)()
    found._propagate_labels_to_pod()
    return found.job_manifest


def test_prefects_worker_makes_jobs_of_the_pool_that_kubernetes_takes():
    """The template is filled in by Prefect's own code, for a deployment with variables of its own."""
    job = asyncio.run(_rendered(**job_variables("kubernetes"), memory="8Gi"))
    spec = job["spec"]["template"]["spec"]
    # Prefect asks for them in the wrong place, where servers ignore them
    for misplaced in ("parallelism", "completions"):
        assert spec.pop(misplaced) == 1
    judge(job)
    assert confined(spec)
    (container,) = spec["containers"]
    names = [entry["name"] for entry in container["env"]]
    assert {"HALOTILE_POD_UID", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"} <= set(names)
    assert [*container["command"], *container["args"]] == ["env", "prefect", "flow-run", "execute"]
    assert job["spec"]["template"]["metadata"]["labels"][manifest.COMPONENT] == "driver"
    assert container["resources"]["limits"]["memory"] == "8Gi"

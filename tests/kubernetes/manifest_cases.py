"""The manifests of deploy/kubernetes, and how they are judged: by Kubernetes' own schemas, and by those of Dask's resources.

`python -m tests.kubernetes.manifest_cases > deploy/kubernetes/daskcluster.example.yaml` writes the example anew.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from ruamel.yaml import YAML

from pipeline.cluster.kind import WorkerSpec
from pipeline.cluster.manifest import Json, dask_cluster
from pipeline.config import RunConfig, read_config

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/kubernetes"
EXAMPLE = FOLDER / "daskcluster.example.yaml"
HEADER = """\
# What Halotile asks of Dask's operator for configs/kubernetes.yaml: written by a function of the configuration
# (pipeline/cluster/manifest.py), and here to be read. A test compares the two. Nothing to apply.
"""
VERSION = "1.34"
CHART = files("dask_kubernetes") / "operator/deployment/helm/dask-kubernetes-operator"


def documents(path: Path) -> list[Json]:
    """What a YAML holds."""
    return [found for found in YAML(typ="safe", pure=True).load_all(path.read_text()) if found]


def manifests() -> Iterator[tuple[str, Json]]:
    """All of the folder, named."""
    for path in sorted(FOLDER.glob("*.yaml")):
        if path.name != "operator-values.yaml":
            for found in documents(path):
                yield f"{path.name}:{found['kind']}:{found['metadata']['name']}", found


def pod_specs(found: Json) -> list[tuple[str, Json, Json]]:
    """Each pod that comes of a manifest: where it stands, its labels, its specification."""
    kind, spec = found["kind"], found.get("spec", {})
    if kind == "DaskCluster":
        whole = found["metadata"]["labels"]
        return [
            (part, {**whole, **spec[part]["metadata"]["labels"]}, spec[part]["spec"])
            for part in ("scheduler", "worker")
        ]
    if kind in ("Job", "Deployment"):
        template = spec["template"]
        return [(kind, template["metadata"]["labels"], template["spec"])]
    return []


def judge(found: Json) -> None:
    """Refuse a manifest that Kubernetes, or Dask's operator, would not take as it stands.

    Raises:
        jsonschema.ValidationError, kubernetes_validate.ValidationError: A field is unknown, or of another type.
    """
    if found["apiVersion"].startswith("kubernetes.dask.org/"):
        jsonschema.Draft202012Validator(_dask_schema(found["kind"])).validate(found)
        for name, labels, spec in pod_specs(found):
            judge({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})
        service = found["spec"]["scheduler"]["service"]
        judge({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "scheduler"}, "spec": service})
    else:
        kubernetes_validate.validate(found, VERSION, strict=True)


def _dask_schema(kind: str) -> Json:
    content = YAML(typ="safe", pure=True).load((CHART / f"crds/{kind.lower()}.yaml").read_text())
    (version,) = content["spec"]["versions"]
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"] |= {
        "apiVersion": {"const": "kubernetes.dask.org/v1"},
        "kind": {"const": kind},
        "metadata": {"type": "object"},
    }
    return schema


def _strict(schema: Any) -> Any:
    """The same, where every field that is not named is refused."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _strict(value) for key, value in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict) and not open_ended:
        found["additionalProperties"] = False
    return found


def misspelt(found: Json, path: str) -> Json:
    """The same with one field written wrongly: `spec.template.spec.contianers`."""
    changed = copy.deepcopy(found)
    *parents, wrong = path.split(".")
    place: Any = changed
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[wrong] = "true"
    return changed


def example() -> Json:
    """The DaskCluster of configs/kubernetes.yaml."""
    config = read_config(RunConfig, ROOT / "configs/kubernetes.yaml")
    cluster = config.cluster
    spec = WorkerSpec(cluster.workers, config.compute.threads, int(cluster.memory_gb * 1e9), "cuda")
    return dask_cluster(cluster.kubernetes, spec, "halotile-membranes-ome-zarr-1a2b3c4d", encrypted=True)


def written(found: Json) -> str:
    """As YAML."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 1000
    yaml.representer.ignore_aliases = lambda _: True
    yaml.dump(found, stream)
    return HEADER + stream.getvalue()


if __name__ == "__main__":
    print(written(example()), end="")

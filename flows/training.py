"""Training as a Prefect flow: train -> evaluate -> register, one task per stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from prefect import flow, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE, CachePolicy

from flows.interruption import cancel_when_asked, result_of
from flows.progress import ProgressArtifact
from flows.training_bar import TrainingBar
from pipeline.stages import learn
from pipeline.stages.learn import Advance
from pipeline.training.recipe import TrainConfig


class _Stage(TypedDict):
    cache_policy: CachePolicy
    persist_result: bool


_STAGE: _Stage = {"cache_policy": NO_CACHE, "persist_result": False}

_cancel_when_asked = cancel_when_asked("the last checkpoint is kept")


@task(name="train", task_run_name="train", **_STAGE)
@_cancel_when_asked
def train_stage(config: TrainConfig, force_range: bool = False) -> str:
    """Train, or go on where an earlier run stopped; gives the checkpoint's path."""
    artifact, bar = ProgressArtifact("halotile-training", config.output), TrainingBar()

    def tell(advance: Advance) -> None:
        bar(advance)
        if advance.phase == "training" and advance.done < advance.total:
            artifact.tell(100 * advance.done / advance.total)

    several = learn.resolved(config).devices > 1
    # a closure does not reach other processes
    path = learn.train(config, bar if several else tell, any_range=force_range)
    artifact.tell(100.0)
    return str(path)


@task(name="evaluate", task_run_name="evaluate", **_STAGE)
@_cancel_when_asked
def evaluate_stage(config: TrainConfig) -> list[dict[str, Any]]:
    """Score the checkpoint on the boxes held back."""
    return [evaluation.to_dict() for evaluation in learn.evaluate_held_back(config)]


@task(name="register", task_run_name="register", **_STAGE)
@_cancel_when_asked
def register_stage(config: TrainConfig) -> int | None:
    """Put the checkpoint into its registry; gives its version."""
    entry = learn.register_checkpoint(config)
    return entry.version if entry else None


def _run_name() -> str:
    config = runtime.flow_run.parameters["config"]
    return Path(config.output if isinstance(config, TrainConfig) else config["output"]).name


@flow(name="halotile-training", flow_run_name=_run_name, persist_result=False)
@_cancel_when_asked
def train_network(config: TrainConfig, force_range: bool = False) -> dict[str, Any]:
    """Train a network: train -> evaluate -> register. Running it again resumes.

    Gives the checkpoint's path, the evaluations of the boxes held back, and the version that it was registered as.

    Args:
        config: The recipe.
        force_range: Train also on values that span too little, as the network sees them, to learn from.
    """
    checkpoint = result_of(train_stage(config, force_range))
    evaluations = result_of(evaluate_stage(config))
    version = result_of(register_stage(config))
    create_markdown_artifact(
        _markdown(config, evaluations, version, learn.shortcoming(config)),
        key="halotile-training-report",
        description=checkpoint,
    )
    return {"checkpoint": checkpoint, "evaluations": evaluations, "version": version}


def _markdown(config: TrainConfig, evaluations: list[dict[str, Any]], version: int | None, shortcoming: str) -> str:
    rows = {"folder": config.output} | ({"warning": shortcoming} if shortcoming else {})
    for number, evaluation in enumerate(evaluations, 1):
        scores = f"AUC {evaluation['pixels']['auc']:.4f}, V_rand {evaluation['v_rand']['best']:.4f} at {evaluation['v_rand']['threshold']:g}"
        rows[f"held back, box {number}"] = scores
    if version is not None and config.register_as:
        rows["registered"] = f"{config.register_as.name}, version {version}"
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])

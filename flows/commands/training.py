"""Commands of weights: train, evaluate, export, models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from flows.commands.arguments import Missing, Overrides
from flows.commands.status import DONE
from flows.printing import bar, print_rows, say
from pipeline.core.strict_json import json_text
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.core.geometry.box import Box


def train(
    config: Annotated[Path, Parameter(help="The recipe's YAML; configs/train-em-3d.yaml explains its keys.")],
    *,
    force_range: Annotated[
        bool,
        Parameter(
            help="Train also on values that span too little, as the network sees them, to learn from.", negative=()
        ),
    ] = False,
    set_: Overrides = None,
) -> int:
    """Train a network, score it on what is held back, register it. Run it again to resume."""
    from pipeline.config import read_config  # noqa: PLC0415 - slow; `--help` needs none of it
    from pipeline.training.recipe import TrainConfig  # noqa: PLC0415 - slow; `--help` needs none of it

    # what is wrong with it is told at once, not after heavy imports
    recipe = read_config(TrainConfig, config, set_ or ())

    from flows.training_bar import TrainingBar  # noqa: PLC0415 - slow; `--help` needs none of it
    from pipeline.stages import learn  # noqa: PLC0415 - slow; `--help` needs none of it

    bar = TrainingBar()
    try:
        checkpoint = learn.train(recipe, bar, any_range=force_range)
    finally:
        bar.stop()
    if not bar.moved:
        say("trained already: nothing to do; delete the folder to start over, or name another `output`")
    for evaluation in learn.evaluate_held_back(recipe):
        print_rows(evaluation.rows())
    say(
        f"checkpoint  {checkpoint}",
        f"metrics     {checkpoint.parent / 'metrics.json'}",
        f"logs        {checkpoint.parent / 'logs'}",
    )
    if entry := learn.register_checkpoint(recipe):
        say(f"registered  {entry.name}, version {entry.version}, in {entry.path.parents[2]}")
    if shortcoming := learn.shortcoming(recipe):
        say(*shortcoming.splitlines())
    return DONE


def evaluate(
    prediction: Annotated[str, Parameter(help="Probabilities: Zarr, OME-Zarr, HDF5 (FILE.h5/dataset) or TIFF.")],
    labels: Annotated[str, Parameter(help="Instance ids or a mask of the same shape, in any of these formats.")],
    *,
    predicts: Annotated[Literal["membrane", "foreground"], Parameter(help="What a probability of 1 is.")] = "membrane",
    labels_are: Annotated[
        Literal["auto", "instances", "mask"],
        Parameter(
            help="Ids, 0 none; or not 0: inside a cell, 0: membrane. auto: a mask if they hold one value beside 0."
        ),
    ] = "auto",
    neighbours: Annotated[
        Literal["auto", "yx", "zyx"], Parameter(help="Axes along which instances touch. auto: as segments.")
    ] = "auto",
    segments: Annotated[
        Literal["auto", "slices", "volume"],
        Parameter(
            help="Segments of each slice, or in 3D. auto: of each slice for masks and for slices twice as thick as wide."
        ),
    ] = "auto",
    ignore: Annotated[int | None, Parameter(help="Label of voxels that count for nothing.")] = None,
    thresholds: Annotated[
        list[float] | None, Parameter(help="To make segments at; fifteen from 0.02 to 0.98 by default.", negative=())
    ] = None,
    at: Annotated[float, Parameter(help="The threshold that you would take.")] = 0.5,
    box: Annotated[str | None, Parameter(help="What to compare: z0:z1,y0:y1,x0:x1; the whole by default.")] = None,
    missing: Missing = "fail",
    output: Annotated[Path, Parameter(help="Where the figures go, JSON.")] = Path("evaluation.json"),
) -> int:
    """Compare a prediction with labels: AUC, Dice, IoU, pixel error, V_rand, variation of information."""
    from pipeline.evaluation.evaluation import THRESHOLDS, compare  # noqa: PLC0415 - slow; `--help` needs none of it

    with bar("comparing") as tell:
        evaluation = compare(
            prediction,
            labels,
            on_advance=tell,
            thresholds=thresholds or THRESHOLDS,
            at=at,
            box=_box(box),
            missing=missing,
            predicts=predicts,
            labels_are=labels_are,
            neighbours=neighbours,
            segments=segments,
            ignore=ignore,
        )
    output.write_text(json_text(evaluation.to_dict(), indent=2) + "\n", encoding="utf-8")
    print_rows(evaluation.rows())
    say(f"figures written to {output}")
    return DONE


def _box(text: str | None) -> Box | None:
    from pipeline.core.geometry.box import Box  # noqa: PLC0415 - slow; `--help` needs none of it

    if text is None:
        return None
    try:
        pairs = [tuple(int(number) for number in part.split(":")) for part in text.split(",")]
        (z0, z1), (y0, y1), (x0, x1) = pairs
    except ValueError as error:
        raise ConfigError(f"--box '{text}' is not z0:z1,y0:y1,x0:x1, such as 0:10,0:512,0:512.") from error
    return Box((z0, y0, x0), (z1, y1, x1))


def export(
    checkpoint: Annotated[Path, Parameter(help="A checkpoint of ours, or of the notes' class.")],
    target: Annotated[Path, Parameter(help="The package: a .zip, or a folder.")],
    *,
    license_: Annotated[
        str | None,
        Parameter(name="--license", help="SPDX name, such as CC-BY-4.0; needed where the checkpoint names none."),
    ] = None,
    sample: Annotated[
        str | None, Parameter(help="A volume; a middle part of it becomes the package's test input.")
    ] = None,
    name: Annotated[str | None, Parameter(help="Of the model.")] = None,
    author: Annotated[list[str] | None, Parameter(help="May be given again.", negative=())] = None,
) -> int:
    """Write a bioimage.io model package that other tools run; `bioimageio test` passes it."""
    from pipeline.stages.learn import export_package  # noqa: PLC0415 - slow; `--help` needs none of it

    path = export_package(checkpoint, target, sample=sample, name=name, authors=author or (), license_=license_)
    say(f"package  {path}", f"test it  bioimageio test {path}")
    return DONE


def models(registry: Annotated[Path, Parameter(help="A folder of registered models.")]) -> int:
    """List the models of a registry, and their versions."""
    from pipeline.registry import versions  # noqa: PLC0415 - slow; `--help` needs none of it

    rows = [(f"{e.name} {e.version}", f"{e.registered}  {_figures(e.metrics)}") for e in versions(registry)]
    print_rows(rows or [("(none)", str(registry))])
    return DONE


def _figures(metrics: Mapping[str, Any]) -> str:
    numbers = [
        f"{key} {value}"
        for key, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return ", ".join([*(["learned: false"] if metrics.get("learned") is False else []), *numbers])

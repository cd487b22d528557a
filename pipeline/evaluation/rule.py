"""What is compared with what: the options of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args, get_type_hints

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Rule:
    """What the prediction and the labels mean, and what a segment is.

    Args:
        predicts: What a probability of 1 stands for: `membrane`, or `foreground`, the inside of cells.
        labels_are: `instances`, ids with 0 for none; or `mask`, 0 for membrane and anything else for a cell.
        neighbours: Along which axes instances that touch are parted by a membrane, as in `pipeline.core.targets`: `yx`
            or `zyx`. A mask says itself where membranes are.
        segments: `slices`, each z slice a segmentation of its own, or `volume`, segments in three dimensions.
        ignore: Label of voxels that count for nothing.

    Raises:
        ConfigError: An option has another value than those named.
    """

    predicts: Literal["membrane", "foreground"] = "membrane"
    labels_are: Literal["instances", "mask"] = "instances"
    neighbours: Literal["yx", "zyx"] = "yx"
    segments: Literal["slices", "volume"] = "slices"
    ignore: int | None = None

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in (field.name for field in fields(self) if field.name != "ignore"):
            value, allowed = getattr(self, name), get_args(hints[name])
            if value not in allowed:
                raise ConfigError(
                    f"{name} is {value!r}; an evaluation knows {' and '.join(map(repr, allowed))}. Name one."
                )

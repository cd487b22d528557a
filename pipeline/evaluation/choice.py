"""What two volumes are taken for where nobody says: reported with the result, never guessed without a word."""

from __future__ import annotations

from typing import Literal

from pipeline.core.geometry.box import Box
from pipeline.core.volume import Space
from pipeline.evaluation.rule import Rule
from pipeline.volumes.volume import Volume

SLAB_VOXELS = 2**24


def chosen(
    prediction: Volume,
    labels: Volume,
    *,
    predicts: Literal["membrane", "foreground"] = "membrane",
    labels_are: Literal["auto", "instances", "mask"] = "auto",
    neighbours: Literal["auto", "yx", "zyx"] = "auto",
    segments: Literal["auto", "slices", "volume"] = "auto",
    ignore: int | None = None,
) -> Rule:
    """The options of an evaluation, each `auto` resolved.

    Labels of two values, one of them 0, are a mask; others are instances. Slices at least twice as far apart as voxels
    are wide, by the scale of the prediction or else of the labels, are by themselves: `yx`, `slices`. So is a mask, and
    a single slice. What remains is `zyx`, `volume`.

    Args:
        prediction: One channel of probabilities.
        labels: One channel of integers; read once where they are not said to be one or the other.
        predicts: As `Rule`.
        labels_are: As `Rule`, or `auto`.
        neighbours: As `Rule`, or `auto`.
        segments: As `Rule`, or `auto`.
        ignore: As `Rule`.
    """
    kind = labels_are if labels_are != "auto" else "mask" if _two_values(labels, ignore) else "instances"
    apart = prediction.shape[0] == 1 or _thick(prediction.description.space) or _thick(labels.description.space)
    by_slice = apart or kind == "mask"
    return Rule(
        predicts=predicts,
        labels_are=kind,
        neighbours=neighbours if neighbours != "auto" else "yx" if by_slice else "zyx",
        segments=segments if segments != "auto" else "slices" if by_slice else "volume",
        ignore=ignore,
    )


def _two_values(labels: Volume, ignore: int | None) -> bool:
    extremes: set[int] = set()
    z, y, x = labels.shape
    for box in Box.of_shape((z, y, x)).split((max(SLAB_VOXELS // (y * x), 1), y, x)):
        values = labels.read(box)
        counted = values[values != 0] if ignore is None else values[(values != 0) & (values != ignore)]
        if counted.size:
            extremes |= {int(counted.min()), int(counted.max())}
        if len(extremes) > 1:
            return False
    return True


def _thick(space: Space) -> bool:
    sizes = space.nanometers or (space.scale if len(set(space.units)) == 1 else ())
    return len(sizes) == 3 and sizes[0] >= 2 * min(sizes[1:])

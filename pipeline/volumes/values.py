"""The values of a volume's boxes, for whoever measures them: each is finite, or the box is refused."""

from __future__ import annotations

import numpy as np

from pipeline.core.geometry.box import Box
from pipeline.core.normalization import finite
from pipeline.errors import PlanError
from pipeline.volumes.volume import Volume


def finite_values(volume: Volume, box: Box, nonfinite: str) -> np.ndarray:
    """Values of a box, (C, Z, Y, X), the stored dtype; those that are not finite count as zero where `nonfinite` says so.

    Raises:
        PlanError: Some are not finite, and `nonfinite` does not say `zero`.
        StorageError: They cannot be read.
    """

    def refusal(count: int, _first: tuple[int, ...]) -> PlanError:
        return PlanError(
            f"Volume '{volume.description.url}' holds {count} values that are not finite in the box {box}, "
            "so its statistics mean nothing. Repair it, or set input.nonfinite to 'zero'."
        )

    return finite(volume.read(box), nonfinite, refusal)

"""Fixed statistics of norms over the whole input: where they are measured, and what was.

That is a sample, or the whole volume. A sample of patches stands for the volume; of each, what lies around the centre is context that is not counted:

    patch    |<---------------- 64 ---------------->|
    centre           |<------- 32 ------->|             context: the reach of the network, or a quarter of the patch
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, ClassVar

from pipeline.core.geometry.box import Box, Triple, per_axis, triple


@dataclass(frozen=True, slots=True)
class Sample:
    """The patches in which statistics are measured.

    Args:
        graph: Digest of the network whose statistics these are, with its norms over the whole input.
        shape: Extent of the volume that they lie in, along z, y, x.
        patch: Extent of each; beyond the volume's ends, where it is smaller, mirrored.
        context: Voxels a side that are read and not counted.
        patches: How many.
        seed: Of their places.
        metadata: SHA-256 of the metadata of another volume that they lie in; empty: the run's own.
        url: Of it.
    """

    graph: str
    shape: Triple
    patch: Triple
    context: Triple
    patches: int
    seed: int
    metadata: str = ""
    url: str = ""

    def boxes(self) -> list[Box]:
        """Where they lie: the same for the same sample, on every machine."""
        choose = random.Random(self.seed)
        starts = [
            per_axis(lambda n, m: choose.randint(0, max(n - m, 0)), self.shape, self.patch) for _ in range(self.patches)
        ]
        return [Box.of_shape(self.patch).moved(start) for start in starts]

    def identity(self) -> dict[str, object]:
        """What a fingerprint covers: not where the volume lies."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items() if key != "url"}

    @property
    def place(self) -> str:
        """Of what volume, in words."""
        return f"'{self.url}'" if self.url else "the volume itself"

    def __str__(self) -> str:
        size, context = (" x ".join(map(str, extent)) for extent in (self.patch, self.context))
        return (
            f"{self.patches} patches of {size} voxels of {self.place} (seed {self.seed}), {context} a side of context"
        )

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> Sample:
        """The sample that `asdict` gave."""
        values: dict[str, Any] = dict(content)
        return cls(**{**values, **{key: triple(values[key]) for key in ("shape", "patch", "context")}})


@dataclass(frozen=True, slots=True)
class WholeVolume:
    """Statistics of all that the network is given: true ones, by passes over the whole volume.

    Args:
        graph: Digest of the network whose statistics these are, with its norms over the whole input.
        passes: Over all tiles, one up to each norm, or each few that wait for no other.
        multiply_adds: Of all of them.
    """

    graph: str
    passes: int
    multiply_adds: int

    metadata: ClassVar[str] = ""
    """Of another volume: there is none."""

    def identity(self) -> dict[str, object]:
        """What a fingerprint covers: passes follow from the network, and arithmetic from the tiles."""
        return {"graph": self.graph, "statistics": "global"}

    def __str__(self) -> str:
        return f"the whole volume, by {self.passes} pass{'es' if self.passes > 1 else ''}"


def fixed_by(content: Mapping[str, object]) -> Sample | WholeVolume:
    """By what the statistics of a stored plan are fixed."""
    values: dict[str, Any] = dict(content)
    return WholeVolume(**values) if "passes" in values else Sample.from_dict(values)


Numbers = Mapping[str, tuple[tuple[float, ...], ...]]
"""By node of the local network: factor and summand, or a constant, by channel."""


def is_finite(numbers: Numbers) -> bool:
    """Whether all are."""
    return all(isfinite(value) for tensors in numbers.values() for values in tensors for value in values)


@dataclass(frozen=True, slots=True)
class Frozen:
    """What was measured.

    Args:
        numbers: Of what became local.
        figures: Of a sample, how far predictions by them are from others, as shares of the output's range: see `networks.frozen.Distances`; of the
            whole volume, what its passes took.
    """

    numbers: Numbers
    figures: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        numbers = {node: [list(values) for values in tensors] for node, tensors in self.numbers.items()}
        return {"numbers": numbers, "figures": dict(self.figures)}

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> Frozen:
        """What `to_dict` gave.

        Raises:
            ValueError, KeyError, TypeError: It is not that, or not finite.
        """
        values: dict[str, Any] = dict(content)
        numbers = {
            str(node): tuple(tuple(float(value) for value in channels) for channels in tensors)
            for node, tensors in values["numbers"].items()
        }
        if not is_finite(numbers):
            raise ValueError("statistics that are not finite")
        return cls(numbers, dict(values["figures"]))

"""How stored values become the network's input: one set of statistics a volume, never a tile's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

AskedMode = Literal["none", "minmax", "zscore", "percentile"]
"""That a configuration may name."""

Mode = Literal[AskedMode, "fixed"]
"""`fixed`: two numbers that hold for every volume, which a network's package declares."""


@dataclass(frozen=True, slots=True)
class Normalization:
    """value -> (value - offset) * scale, as float32.

    Args:
        mode: What the two numbers came from.
        offset: Subtracted; units of the stored values.
        scale: Multiplied; 1 / units of the stored values.
        low: Percentile that maps to 0, percent; used by `percentile`.
        high: Percentile that maps to 1, percent; used by `percentile`.
    """

    mode: Mode = "none"
    offset: float = 0.0
    scale: float = 1.0
    low: float = 1.0
    high: float = 99.0

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    def rule(self) -> dict[str, object]:
        """By which the numbers are found, without them; of `fixed`, the numbers."""
        keys = {"percentile": ("low", "high"), "fixed": ("offset", "scale")}.get(self.mode, ())
        return {"mode": self.mode, **{key: getattr(self, key) for key in keys}}

    def same_rule(self, other: Normalization) -> bool:
        """Whether both derive their numbers from a volume in the same way."""
        return self.rule() == other.rule()

    def is_measured(self, dtype: str) -> bool:
        """Whether the numbers come from the voxels of the whole volume, of this type."""
        if self.mode == "minmax":
            return np.dtype(dtype).kind == "f"
        return self.mode not in ("none", "fixed")

    def apply(self, array: np.ndarray) -> NDArray[np.float32]:
        """`array` normalised, float32, a new array. Reduced in float64 where an offset would cost low bits."""
        wide = self.offset != 0.0 or (array.dtype.itemsize > 2 and array.dtype != np.float32)
        values: NDArray[np.floating] = array.astype(np.float64 if wide else np.float32)
        if self.offset != 0.0:
            values -= self.offset
        if self.scale != 1.0:
            values *= values.dtype.type(self.scale)
        return values.astype(np.float32, copy=False)


def finite(values: np.ndarray, nonfinite: str, refusal: Callable[[int, tuple[int, ...]], Exception]) -> np.ndarray:
    """Stored values that a rule can be applied to: those that are not finite count as zero, or are refused.

    Args:
        values: Of any shape.
        nonfinite: `zero`, or `fail`.
        refusal: The error for so many that are not finite, the first of them at this index.
    """
    if values.dtype.kind != "f":
        return values
    good = np.isfinite(values)
    if good.all():
        return values
    if nonfinite == "zero":
        return np.where(good, values, values.dtype.type(0))
    raise refusal(int((~good).sum()), tuple(int(i) for i in np.argwhere(~good)[0]))


def unknown_mode(mode: str) -> ValueError:
    """Of a mode that somebody forgot: no mode is taken for another."""
    return ValueError(f"No rule is known for the mode '{mode}' here.")


def spanning(mode: Mode, low_value: float, high_value: float, **percent: float) -> Normalization:
    """The normalisation that maps `low_value` to 0 and `high_value` to 1; a constant volume maps to 0."""
    span = float(high_value) - float(low_value)
    return Normalization(mode, float(low_value), 1.0 / span if span > 0 else 1.0, **percent)

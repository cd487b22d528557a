"""Assembles predicted slabs into whole write units, and writes each as it completes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.core.geometry.box import Box
from pipeline.core.ledger import Units
from pipeline.errors import StorageError
from pipeline.outputs.level import Level
from pipeline.places.durable import in_words


class UnitSink:
    """Takes the slabs of one tile's core; holds only units that have begun and are not complete.

    Args:
        level: Where to write.
        core: The tile's core.
        permit: Called right before each object is replaced; what it raises leaves the old one.
    """

    def __init__(self, level: Level, core: Box, permit: Callable[[], None] = lambda: None) -> None:
        self._level, self._permit = level, permit
        self._waiting = list(level.units(core))
        self._begun: dict[Box, tuple[np.ndarray, int]] = {}
        self._written: Units = {}

    def add(self, box: Box, array: np.ndarray) -> None:
        """Take the values (C, Z, Y, X) of a box inside the core; boxes may not overlap.

        Raises:
            FileError: The system refuses to write a unit.
        """
        for unit in [unit for unit in self._waiting if unit.overlaps(box)]:
            part = unit.clipped(box)
            buffer, missing = self._begun.get(unit) or (
                np.empty((array.shape[0], *unit.shape), array.dtype),
                unit.voxels,
            )
            buffer[(slice(None), *part.within(unit))] = array[(slice(None), *part.within(box))]
            missing -= part.voxels
            self._begun[unit] = (buffer, missing)
            if missing == 0:
                with in_words(doing="be written"):
                    self._written.update(self._level.write(unit, buffer, self._permit))
                del self._begun[unit]
                self._waiting.remove(unit)

    def finish(self) -> Units:
        """Checksums of all that was written.

        Raises:
            StorageError: The slabs did not cover the core.
        """
        if self._waiting:
            raise StorageError(
                f"The slabs of a tile left {len(self._waiting)} write units incomplete; this is a defect."
            )
        return self._written

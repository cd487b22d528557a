"""A tile as one window: an imported network on all that the core needs, by `evaluate`.

It works for every graph, from the first day; what it costs beside the sweep is memory, since the maps of a whole tile are there at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.core.geometry.box import Box, Span
from pipeline.core.plan import Plan
from pipeline.core.tiles.grid import Tile
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.evaluate import Weights, evaluate, placed
from pipeline.networks.predictor import TilePredictor, device_of, normalised


class WindowPredictor(TilePredictor):
    """The imported network of a plan, on its device.

    Args:
        checkpoint: The weights that the plan names.
        plan: What to do with them.
        device_index: Which GPU, where there are several.
        earlier: One that is done with, whose weights are taken where it is of the same network.

    Raises:
        ModelError: The weights are not the plan's, or its device is not there.
        PlanError: The numbers of its normalisation are not measured yet.
    """

    def __init__(
        self, checkpoint: Checkpoint, plan: Plan, device_index: int = 0, earlier: WindowPredictor | None = None
    ) -> None:
        super().__init__(plan, device_of(checkpoint, plan, device_index), earlier)
        self._weights: Weights
        if earlier and earlier.serves(plan):
            self._weights = earlier._weights
        else:
            self._weights = placed(checkpoint, self._device, self._dtype)

    def reads(self, tile: Tile) -> Iterator[Span]:
        """Slices of the tile's window in which it takes it."""
        start, stop = self._schedule(tile).window.start[0], self._schedule(tile).window.stop[0]
        return (Span(a, min(a + self._plan.slab, stop)) for a in range(start, stop, self._plan.slab))

    def _predicted(self, tile: Tile, slabs: Iterable[np.ndarray]) -> Iterator[tuple[Box, np.ndarray]]:
        values, finite = self._whole(tile, slabs)
        if not finite:
            raise self._not_finite(tile)
        yield tile.core, values.cpu().numpy()

    def _whole(self, tile: Tile, slabs: Iterable[np.ndarray]) -> tuple[Tensor, Tensor]:
        """The core's values, and whether all are finite."""
        schedule = self._schedule(tile)
        _, y, x = schedule.window.within(tile.window)
        window = torch.cat([self._input(slab[:, :, y, x]) for slab in slabs])
        window = window.permute(3, 0, 1, 2)[None].to(self._dtype)
        with torch.inference_mode():
            return self._output(evaluate(schedule.graph, self._weights, window, schedule.axes)[0])

    def _input(self, slab_CZYX: np.ndarray) -> Tensor:
        """As stored, on the device and normalised, (Z, Y, X, C)."""
        return normalised(torch.from_numpy(np.ascontiguousarray(slab_CZYX)).to(self._device), self._numbers)

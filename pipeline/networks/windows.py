"""A tile as one window: an imported network on all that the core needs, by `evaluate`.

It works for every graph, from the first day; what it costs beside the sweep is memory, since the maps of a whole tile are there at once.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.core.geometry.box import Box, Span
from pipeline.core.network.schedule import Schedule
from pipeline.core.plan import Plan
from pipeline.core.tiles.grid import Tile
from pipeline.errors import InferenceError
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.evaluate import Weights, evaluate, placed
from pipeline.networks.predictor import (
    DTYPES,
    activated,
    device_of,
    is_same_network,
    memory_too_small,
    normalised,
    not_finite,
    quantised,
)


class WindowPredictor:
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
        self._device = device_of(checkpoint, plan, device_index)
        self._plan, self._numbers, self._stream = plan, plan.numbers, plan.stream
        self._dtype = DTYPES[plan.compute.dtype]
        self._is_used_to = earlier is not None and earlier.serves(plan)
        self._weights: Weights
        if earlier and earlier.serves(plan):
            self._weights = earlier._weights
        else:
            self._weights = placed(checkpoint, self._device, self._dtype)

    def serves(self, plan: Plan) -> bool:
        """Whether a plan is of the same network, in the same precision and place."""
        return is_same_network(self._plan, plan)

    def reads(self, tile: Tile) -> Iterator[Span]:
        """Slices of the tile's window in which it takes it."""
        start, stop = (corner[0] for corner in (self._schedule(tile).window.start, self._schedule(tile).window.stop))
        return (Span(a, min(a + self._plan.slab, stop)) for a in range(start, stop, self._plan.slab))

    def predict(self, tile: Tile, slabs: Iterable[np.ndarray]) -> Generator[tuple[Box, np.ndarray]]:
        """The tile's core.

        Args:
            tile: What to predict.
            slabs: The tile's window in the slices that it `reads`, as stored, (C, Z, Y, X).

        Yields:
            The core, and its values (C, Z, Y, X) in the output's dtype.

        Raises:
            InferenceError: The prediction is not finite, or the device's memory is too small for it.
        """
        torch.set_num_threads(self._plan.compute.threads)  # Dask's nanny sets one; part of the plan, for equal bytes
        try:
            values, finite = self._predicted(tile, slabs)
        except torch.OutOfMemoryError as error:
            raise InferenceError(memory_too_small(tile, self._device, error)) from error
        if not finite:
            raise InferenceError(not_finite(tile, self._plan))
        yield tile.core, values.cpu().numpy()

    def _predicted(self, tile: Tile, slabs: Iterable[np.ndarray]) -> tuple[Tensor, bool]:
        schedule, output, graph = self._schedule(tile), self._plan.output, self._plan.model.architecture.graph
        _, y, x = schedule.window.within(tile.window)
        parts = [
            normalised(torch.from_numpy(np.ascontiguousarray(slab[:, :, y, x])).to(self._device), self._numbers)
            for slab in slabs
        ]
        window = torch.cat(parts).permute(3, 0, 1, 2)[None].to(self._dtype)
        with torch.inference_mode():
            logits_CZYX = evaluate(graph, self._weights, window, schedule.axes)[0].to(torch.float32)
            values = quantised(activated(logits_CZYX, output.activation), output.dtype).contiguous()
        return values, bool(torch.isfinite(logits_CZYX).all())

    def _schedule(self, tile: Tile) -> Schedule:
        return self._stream.schedule(tile)

    def warm_up(self, tile: Tile) -> None:
        """Nothing: it has no memory of its own between tiles."""

    def is_used_to(self, tile: Tile) -> bool:  # noqa: ARG002 - as of `UNetPredictor`
        """Whether an earlier one of this network has computed here."""
        return self._is_used_to

    def rehearse(self, tile: Tile) -> None:
        """Run a tile on zeros: a GPU that is too small for it is found before the first tile.

        Raises:
            InferenceError: The device's memory is too small.
        """
        for _ in self.predict(tile, self.zeros(tile)):
            pass

    def zeros(self, tile: Tile) -> Iterator[np.ndarray]:
        """An empty window in the slices that it reads, (C, Z, Y, X)."""
        channels, plane = self._plan.source.channels, tile.window.shape[1:]
        return (np.zeros((channels, span.extent, *plane), np.uint8) for span in self.reads(tile))

"""Numpy in, numpy out: what all predictors of tiles have in common, and what comes before and after every network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from pipeline.core.geometry.box import Box, Span
from pipeline.core.network.schedule import Schedule
from pipeline.core.normalization import Normalization
from pipeline.core.plan import Plan
from pipeline.core.tiles.grid import Tile
from pipeline.errors import InferenceError, ModelError
from pipeline.networks.checkpoint import Checkpoint, first_line
from pipeline.networks.device import check_device, make_deterministic

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TilePredictor(ABC):
    """Predicts tiles of a plan on a device, whichever way its network is computed: what all ways have in common.

    Args:
        plan: What to do.
        device: Where, once it is known that the plan's network can be computed there.
        earlier: One of the same kind that is done with; None where there is none.

    Raises:
        PlanError: The numbers of its normalisation are not measured yet.
    """

    def __init__(self, plan: Plan, device: torch.device, earlier: TilePredictor | None) -> None:
        self._plan, self._numbers, self._device = plan, plan.numbers, device
        self._dtype = DTYPES[plan.compute.dtype]
        self._is_used_to = earlier is not None and earlier.serves(plan)
        self._at: tuple[Tile, Schedule] | None = None

    def serves(self, plan: Plan) -> bool:
        """Whether a plan is of the same network, in the same precision and place."""
        return _network_of(self._plan) == _network_of(plan)

    def reads(self, tile: Tile) -> Iterator[Span]:
        """Slices of the tile's window in which it takes it."""
        start, stop = tile.window.start[0], tile.window.stop[0]
        return (Span(a, min(a + self._plan.slab, stop)) for a in range(start, stop, self._plan.slab))

    def predict(self, tile: Tile, slabs: Iterable[np.ndarray]) -> Generator[tuple[Box, np.ndarray]]:
        """Predicted parts of the tile's core, in z order.

        Args:
            tile: What to predict.
            slabs: The tile's window in the slices that it `reads`, as stored, (C, Z, Y, X).

        Yields:
            A box of the core, and its values (C, Z, Y, X) in the output's dtype.

        Raises:
            InferenceError: The prediction is not finite, or the device's memory is too small for it.
        """
        with self._computing(tile):
            yield from self._predicted(tile, slabs)

    @abstractmethod
    def _predicted(self, tile: Tile, slabs: Iterable[np.ndarray]) -> Iterator[tuple[Box, np.ndarray]]:
        """As `predict`."""

    @contextmanager
    def _computing(self, tile: Tile) -> Iterator[None]:
        """By the plan's threads; memory that is too small is told in words."""
        torch.set_num_threads(self._plan.compute.threads)  # Dask's nanny sets one; part of the plan, for equal bytes
        try:
            yield
        except torch.OutOfMemoryError as error:
            self._forget()
            raise memory_too_small(tile, self._device, error) from error

    def _forget(self) -> None:  # noqa: B027 - most have nothing
        """Give memory back that is kept from tile to tile."""

    def _schedule(self, tile: Tile) -> Schedule:
        """What one pass of the network computes of a tile."""
        if self._at is None or self._at[0] != tile:  # asked for several times a tile
            self._at = tile, self._plan.stream.schedule(tile)
        return self._at[1]

    def _output(self, logits_CZYX: Tensor) -> tuple[Tensor, Tensor]:
        """The output's values of logits, and whether all of these are finite."""
        logits_CZYX, output = logits_CZYX.to(torch.float32), self._plan.output
        values_CZYX = quantised(activated(logits_CZYX, output.activation), output.dtype)
        return values_CZYX.contiguous(), torch.isfinite(logits_CZYX).all()

    def _not_finite(self, tile: Tile, box: Box | None = None) -> InferenceError:
        """What is raised of a tile; of a box of it, where that is known."""
        where = "" if box is None else f" in {box}"
        return InferenceError(
            f"{tile}: the network's output is not finite{where}. Its values overflow {self._plan.compute.dtype}, "
            "or the input is far from what it was trained on: check normalize, or set compute.dtype to float32."
        )

    def warm_up(self, tile: Tile) -> None:  # noqa: B027 - most have nothing
        """Have the memory of a tile, and the code for its shapes, ready before the first tile."""

    def is_used_to(self, tile: Tile) -> bool:  # noqa: ARG002 - one that keeps memory asks for its shapes
        """Whether a tile is as the last that was computed here, by this one or by an earlier one that it took over."""
        return self._is_used_to

    def rehearse(self, tile: Tile) -> None:
        """Run a tile on zeros until all layers take part: a GPU that is too small for it is found before the first tile.

        Raises:
            InferenceError: The device's memory is too small.
        """
        parts = self.predict(tile, self.zeros(tile))
        for _ in islice(parts, 3):
            pass
        parts.close()

    def zeros(self, tile: Tile) -> Iterator[np.ndarray]:
        """An empty window in the slices that it reads, (C, Z, Y, X)."""
        channels, plane = self._plan.source.channels, tile.window.shape[1:]
        return (np.zeros((channels, span.extent, *plane), np.uint8) for span in self.reads(tile))


def device_of(checkpoint: Checkpoint, plan: Plan, device_index: int) -> torch.device:
    """Where a plan's network is computed, once it is known that it can be, and that its weights are the plan's.

    Raises:
        ModelError: They are not, or its device is not there.
    """
    if plan.model.sha256 not in (checkpoint.sha256, checkpoint.original):
        raise ModelError(
            f"Checkpoint '{plan.model.checkpoint}' changed after the plan was made (weights {checkpoint.sha256[:12]}, "
            f"planned {plan.model.sha256[:12]}). Put the planned one back, or plan again with another output.url."
        )
    check_device(plan.compute.device)
    make_deterministic()
    numbered = plan.compute.device == "cuda" and device_index is not None
    return torch.device(f"cuda:{device_index}" if numbered else plan.compute.device)


def _network_of(plan: Plan) -> tuple[object, ...]:
    """What two plans have in common that are of one network, in the same precision and place."""
    frozen = plan.statistics.frozen if plan.statistics else None
    return plan.model.sha256, plan.model.architecture, plan.compute.dtype, plan.compute.device, frozen


def memory_too_small(tile: Tile, device: torch.device, error: torch.OutOfMemoryError) -> InferenceError:
    """Why a tile was not computed, and what to do."""
    return InferenceError(
        f"{tile}: the memory of device '{device}' is too small ({first_line(error)}). Something else uses it, "
        "or the plan was made for a larger one: free it, or plan with a smaller tiles.core."
    )


def normalised(x_CZYX: Tensor, rule: Normalization) -> Tensor:
    """(value - offset) * scale, Z Y X C, as `Normalization.apply` computes it."""
    wide = rule.offset != 0.0 or (x_CZYX.element_size() > 2 and x_CZYX.dtype != torch.float32)
    values = x_CZYX.to(torch.float64 if wide else torch.float32)
    if rule.offset != 0.0:
        values = values - rule.offset
    if rule.scale != 1.0:
        values = values * torch.tensor(rule.scale, dtype=values.dtype)
    return values.to(torch.float32).permute(1, 2, 3, 0)


def activated(logits_CZYX: Tensor, activation: str) -> Tensor:
    """Logits through the output's activation, float32."""
    if activation == "sigmoid":
        return torch.sigmoid(logits_CZYX)
    return torch.softmax(logits_CZYX, dim=0) if activation == "softmax" else logits_CZYX


def quantised(values_CZYX: Tensor, dtype: str) -> Tensor:
    """Values in the output's dtype; uint8 is rint(255 v)."""
    return values_CZYX.clamp(0, 1).mul(255).round().to(torch.uint8) if dtype == "uint8" else values_CZYX

"""Numpy in, numpy out: normalisation, network, activation and quantisation of a tile, a slab at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

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
from pipeline.networks.evaluate import placed
from pipeline.networks.streaming import Streaming
from pipeline.networks.sweep import Arena, Sweep, kernels
from pipeline.networks.transfer import Transfer, transfer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Resident:
    """What stays in a process from tile to tile, and from a plan to the next one of the same network.

    Args:
        kernels: Its weights.
        transfer: The way to the device.
        arena: Memory of the sweeps, one after another.
        last: What the last of them computed; None where there was none.
    """

    kernels: Mapping[str, Any]
    transfer: Transfer
    arena: Arena = field(default_factory=Arena)
    last: Schedule | None = None


class UNetPredictor:
    """The network of a plan, on its device.

    Args:
        checkpoint: The weights that the plan names.
        plan: What to do with them.
        device_index: Which GPU, where there are several.
        earlier: One that is done with, whose `resident` is taken where it is of the same network.

    Raises:
        ModelError: The weights are not the plan's, or its device is not there.
        PlanError: The numbers of its normalisation are not measured yet.
    """

    def __init__(
        self, checkpoint: Checkpoint, plan: Plan, device_index: int = 0, earlier: UNetPredictor | None = None
    ) -> None:
        self._device = device_of(checkpoint, plan, device_index)
        self._plan, self._numbers = plan, plan.numbers
        self._dtype = DTYPES[plan.compute.dtype]
        self._stream = plan.stream
        self._at: tuple[Tile, Schedule] | None = None
        self.resident: Resident
        if earlier and earlier.serves(plan):
            self.resident = earlier.resident
        else:
            self.resident = Resident(self._placed(checkpoint), transfer(self._device))

    def _placed(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """Its weights, on the device."""
        return kernels(checkpoint.build(), device=self._device, dtype=self._dtype)

    def _network(self, schedule: Schedule) -> Sweep | Streaming:
        """What computes the turns of a schedule, in the memory of the last one."""
        return Sweep(self.resident.kernels, schedule, self.resident.arena)

    def serves(self, plan: Plan) -> bool:
        """Whether a plan is of the same network, in the same precision and place."""
        return is_same_network(self._plan, plan)

    def reads(self, tile: Tile) -> Iterator[Span]:
        """Slices of the tile's window in which it takes it: one slab a turn."""
        return self._schedule(tile).inputs()

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
        torch.set_num_threads(self._plan.compute.threads)  # Dask's nanny sets one; part of the plan, for equal bytes
        try:
            for box, (values, finite) in self.resident.transfer.drain(self._parts(tile, slabs)):
                if not finite.all():
                    raise InferenceError(not_finite(tile, self._plan, box))
                yield box, values
        except torch.OutOfMemoryError as error:
            self.resident.arena, self.resident.last = Arena(), None
            raise InferenceError(memory_too_small(tile, self._device, error)) from error

    def _parts(self, tile: Tile, slabs: Iterable[np.ndarray]) -> Iterator[tuple[Box, tuple[Tensor, Tensor]]]:
        sweep = self._sweep(tile)
        _, y, x = sweep.schedule.window.within(tile.window)
        needed = self.resident.transfer.feed(slab[:, :, y, x] for slab in slabs)
        inputs = (normalised(x_CZYX, self._numbers) for x_CZYX in needed)
        output = self._plan.output
        for span, logits_ZYXC in sweep.run(inputs):
            box = Box((span.start, *tile.core.start[1:]), (span.stop, *tile.core.stop[1:]))
            logits_CZYX = logits_ZYXC.permute(3, 0, 1, 2).to(torch.float32)
            values_CZYX = quantised(activated(logits_CZYX, output.activation), output.dtype)
            yield box, (values_CZYX.contiguous(), torch.isfinite(logits_CZYX).all())

    def warm_up(self, tile: Tile) -> None:
        """Have the memory of a tile, and the code for its shapes, ready before the first tile; takes about one turn."""
        torch.set_num_threads(self._plan.compute.threads)
        self._sweep(tile).warm_up()

    def _sweep(self, tile: Tile) -> Sweep | Streaming:
        """A sweep over a tile, in the memory of the last one."""
        schedule = self._schedule(tile)
        sweep = self._network(schedule)
        self.resident.last = schedule
        return sweep

    def _schedule(self, tile: Tile) -> Schedule:
        if self._at is None or self._at[0] != tile:  # asked for several times a tile
            self._at = tile, self._stream.schedule(tile)
        return self._at[1]

    def is_used_to(self, tile: Tile) -> bool:
        """Whether the last tile, of this plan or of an earlier one that this took over, had the same shapes."""
        return self.resident.last == self._schedule(tile)

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


class StreamPredictor(UNetPredictor):
    """The imported network of a plan, slab by slab; see `UNetPredictor`."""

    def _placed(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        return placed(checkpoint, self._device, self._dtype)

    def _network(self, schedule: Schedule) -> Sweep | Streaming:
        like = torch.zeros(1, dtype=self._dtype, device=self._device)
        return Streaming(self.resident.kernels, schedule, like, self.resident.arena)


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


def memory_too_small(tile: Tile, device: torch.device, error: torch.OutOfMemoryError) -> str:
    """Why a tile was not computed, and what to do."""
    return (
        f"{tile}: the memory of device '{device}' is too small ({first_line(error)}). Something else uses it, "
        "or the plan was made for a larger one: free it, or plan with a smaller tiles.core."
    )


def not_finite(tile: Tile, plan: Plan, box: Box | None = None) -> str:
    """The same where its values are no numbers; in a box of it, where that is known."""
    where = "" if box is None else f" in {box}"
    return (
        f"{tile}: the network's output is not finite{where}. Its values overflow {plan.compute.dtype}, "
        "or the input is far from what it was trained on: check normalize, or set compute.dtype to float32."
    )


def is_same_network(one: Plan, other: Plan) -> bool:
    """Whether two plans are of one network, in the same precision and place."""
    networks = [
        (
            p.model.sha256,
            p.model.architecture,
            p.compute.dtype,
            p.compute.device,
            p.statistics.frozen if p.statistics else None,
        )
        for p in (one, other)
    ]
    return networks[0] == networks[1]


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

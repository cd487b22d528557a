"""A tile slab by slab: normalisation, network, activation and quantisation of each as it comes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pipeline.core.geometry.box import Box, Span
from pipeline.core.network.schedule import Schedule
from pipeline.core.plan import Plan
from pipeline.core.tiles.grid import Tile
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.executors import StreamMaker, stream_maker
from pipeline.networks.predictor import DTYPES, TilePredictor, device_of, normalised
from pipeline.networks.streaming import Streaming
from pipeline.networks.sweep import Arena, Sweep
from pipeline.networks.transfer import Transfer, transfer


@dataclass
class Resident:
    """What stays in a process from tile to tile, and from a plan to the next one of the same network.

    Args:
        make: Gives the network ready to stream; it has its weights.
        transfer: The way to the device.
        arena: Memory of the streams, one after another.
        last: What the last of them computed; None where there was none.
    """

    make: StreamMaker
    transfer: Transfer
    arena: Arena = field(default_factory=Arena)
    last: Schedule | None = None


class StreamPredictor(TilePredictor):
    """The network of a plan, on its device, slab by slab.

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
        self, checkpoint: Checkpoint, plan: Plan, device_index: int = 0, earlier: StreamPredictor | None = None
    ) -> None:
        super().__init__(plan, device_of(checkpoint, plan, device_index), earlier)
        self.resident: Resident
        if earlier and earlier.serves(plan):
            self.resident = earlier.resident
        else:
            make = stream_maker(checkpoint, self._device, DTYPES[plan.compute.dtype])
            self.resident = Resident(make, transfer(self._device))

    def reads(self, tile: Tile) -> Iterator[Span]:
        """Slices of the tile's window in which it takes it: one slab a turn."""
        return self._schedule(tile).inputs()

    def _predicted(self, tile: Tile, slabs: Iterable[np.ndarray]) -> Iterator[tuple[Box, np.ndarray]]:
        for box, (values, finite) in self.resident.transfer.drain(self._parts(tile, slabs)):
            if not finite.all():
                raise self._not_finite(tile, box)
            yield box, values

    def _parts(self, tile: Tile, slabs: Iterable[np.ndarray]) -> Iterator[tuple[Box, tuple[Tensor, Tensor]]]:
        stream = self._stream(tile)
        _, y, x = stream.schedule.window.within(tile.window)
        needed = self.resident.transfer.feed(slab[:, :, y, x] for slab in slabs)
        for span, logits_ZYXC in stream.run(normalised(x_CZYX, self._numbers) for x_CZYX in needed):
            box = Box((span.start, *tile.core.start[1:]), (span.stop, *tile.core.stop[1:]))
            yield box, self._output(logits_ZYXC.permute(3, 0, 1, 2))

    def _forget(self) -> None:
        self.resident.arena, self.resident.last = Arena(), None

    def warm_up(self, tile: Tile) -> None:
        """Have the memory of a tile, and the code for its shapes, ready before the first tile; takes about one turn."""
        torch.set_num_threads(self._plan.compute.threads)
        self._stream(tile).warm_up()

    def _stream(self, tile: Tile) -> Sweep | Streaming:
        """The network over a tile, in the memory of the last one."""
        schedule = self._schedule(tile)
        stream = self.resident.make(schedule, self.resident.arena)
        self.resident.last = schedule
        return stream

    def is_used_to(self, tile: Tile) -> bool:
        """Whether the last tile, of this plan or of an earlier one that this took over, had the same shapes."""
        return self.resident.last == self._schedule(tile)

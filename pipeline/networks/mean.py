"""A tile as the mean of several passes over it, which are read once: networks side by side, each on the window as symmetries show it.

window --kept--> view 1 --> executor --> activation --undone--> + weight --+
                 view 2 --> executor --> activation --undone--> + weight --+--> quantised, once all are there
                 ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice

import numpy as np
import torch
from torch import Tensor

from pipeline.core.geometry.box import Box, Span
from pipeline.core.network.mean import View
from pipeline.core.network.symmetry import Symmetry
from pipeline.core.plan import Plan
from pipeline.core.tiles.grid import Tile
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.executors import Executor, executor_of
from pipeline.networks.predictor import TilePredictor, activated, device_of, normalised, quantised
from pipeline.networks.sweep import Arena


class MeanPredictor(TilePredictor):
    """The passes of a plan's mean, on a device, one after another.

    Args:
        checkpoints: The weights that the plan names, network by network.
        plan: What to do with them.
        device_index: Which GPU, where there are several.
        earlier: One that is done with, whose networks are taken where they are the same.

    Raises:
        ModelError: The weights are not the plan's, or its device is not there.
        PlanError: The numbers of its normalisation are not measured yet.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        plan: Plan,
        device_index: int = 0,
        earlier: MeanPredictor | None = None,
    ) -> None:
        networks = zip(checkpoints, plans_alone(plan), strict=True)
        device, *_ = [device_of(checkpoint, alone, device_index) for checkpoint, alone in networks]
        super().__init__(plan, device, earlier)
        self._executors: Sequence[Executor]
        self._arena: Arena
        if earlier and earlier.serves(plan):
            self._executors, self._arena = earlier._executors, earlier._arena
        else:
            self._arena = Arena()
            self._executors = [
                executor_of(checkpoint, self._device, self._dtype, self._arena) for checkpoint in checkpoints
            ]
        views, shares = plan.stream.views, plan.model.shares
        each = len(views) // len(shares)
        self._passes = [
            (view, self._executors[number // each], shares[number // each] / each) for number, view in enumerate(views)
        ]

    def _predicted(self, tile: Tile, slabs: Iterable[np.ndarray]) -> Iterator[tuple[Box, np.ndarray]]:
        """All parts once all passes are there."""
        total = self._total(tile, slabs)
        for a in range(*_ends(tile), self._plan.slab):
            box = Box((a, *tile.core.start[1:]), (min(a + self._plan.slab, tile.core.stop[0]), *tile.core.stop[1:]))
            part = total[(slice(None), *box.within(tile.core))]
            yield box, quantised(part, self._plan.output.dtype).contiguous().cpu().numpy()

    def _total(self, tile: Tile, slabs: Iterable[np.ndarray]) -> Tensor:
        """The mean over the core, (C, Z, Y, X), float32."""
        total = torch.zeros((self._plan.model.architecture.out_channels, *tile.core.shape), device=self._device)
        for box, values, share in self._parts(tile, slabs):
            total[(slice(None), *box.within(tile.core))] += values * share
        return total

    def _parts(self, tile: Tile, slabs: Iterable[np.ndarray]) -> Iterator[tuple[Box, Tensor, float]]:
        """What each pass gives of the core, after the activation, and its share of the mean."""
        window = self._kept(tile, slabs)
        graph = None
        for view, executor, share in self._passes:
            if view.graph != graph:  # what one leaves is nothing to another
                self._arena.clear()
                graph = view.graph
            for box, logits in seen(view, executor, tile.core, self._slab_of(window, tile.window)):
                logits_CZYX = logits.to(torch.float32)
                if not torch.isfinite(logits_CZYX).all():
                    raise self._not_finite(tile, box)
                yield box, activated(logits_CZYX, self._plan.output.activation), share

    def _kept(self, tile: Tile, slabs: Iterable[np.ndarray]) -> Tensor:
        """The tile's window as stored, on the device, (C, Z, Y, X)."""
        source, done = iter(slabs), 0
        first = torch.from_numpy(np.ascontiguousarray(next(source)))
        window = torch.empty((len(first), *tile.window.shape), dtype=first.dtype, device=self._device)
        for slab in chain([first], (torch.from_numpy(np.ascontiguousarray(array)) for array in source)):
            window[:, done : done + slab.shape[1]] = slab.to(self._device)
            done += slab.shape[1]
        return window

    def _slab_of(self, window: Tensor, around: Box) -> Callable[[Box], Tensor]:
        """What gives a box of the window, Z Y X C, normalised."""
        return lambda box: normalised(window[(slice(None), *box.within(around))], self._numbers)

    def rehearse(self, tile: Tile) -> None:
        """Run the first pass over a tile of zeros until all layers take part: a GPU that is too small is found before the first tile.

        Raises:
            InferenceError: The device's memory is too small.
        """
        with self._computing(tile):
            for _ in islice(self._parts(tile, self.zeros(tile)), 3):
                pass


def plans_alone(plan: Plan) -> list[Plan]:
    """Of each network of a plan's mean, the plan with that network alone."""
    if not plan.model.members:
        return [plan.of_one_pass]
    return [replace(plan.of_one_pass, model=model) for model in plan.model.alone]


def _ends(tile: Tile) -> Span:
    """First slice and stop of a tile's core."""
    return Span(tile.core.start[0], tile.core.stop[0])


def seen(view: View, executor: Executor, core: Box, read: Callable[[Box], Tensor]) -> Iterator[tuple[Box, Tensor]]:
    """What one pass gives of a core.

    Args:
        view: The pass.
        executor: Its network.
        core: Voxels of the volume.
        read: Gives a box of the volume, Z Y X C, normalised.

    Yields:
        A box of the volume inside the core, and its logits as they lie there, C Z Y X.
    """
    schedule = view.schedule(core)
    window, shown = schedule.window, view.symmetry.box(core, view.whole)

    def slab(span: Span) -> Tensor:
        box = Box((span.start, *window.start[1:]), (span.stop, *window.stop[1:]))
        return shown_as(view.symmetry, read(view.symmetry.origin(box, view.whole)), 0)

    for span, logits_CZYX in executor(schedule, map(slab, schedule.inputs())):
        box = Box((span.start, *shown.start[1:]), (span.stop, *shown.stop[1:]))
        yield view.symmetry.origin(box, view.whole), as_it_lies(view.symmetry, logits_CZYX, 1)


def shown_as(symmetry: Symmetry, values: Tensor, first: int) -> Tensor:
    """Values of the volume as a symmetry shows them; `first` is the dimension of z."""
    if symmetry.swaps:
        values = values.transpose(first + 1, first + 2)
    return _flipped(symmetry, values, first)


def as_it_lies(symmetry: Symmetry, values: Tensor, first: int) -> Tensor:
    """Values as a symmetry shows them, as they lie in the volume."""
    values = _flipped(symmetry, values, first)
    return values.transpose(first + 1, first + 2) if symmetry.swaps else values


def _flipped(symmetry: Symmetry, values: Tensor, first: int) -> Tensor:
    axes = [first + axis for axis in range(3) if symmetry.flips[axis]]
    return values.flip(axes) if axes else values

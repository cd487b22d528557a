"""A tile blended from windows of a lattice, each of which is a pass of the network by itself: for networks that look at their whole input.

    volume     |======================================================|
    windows    |--------0--------|   |--------2--------|
                         |--------1--------|  ...
    tile                     |#### core ####|                 from windows 0, 1 and 2: every one that has a share in the core

What the network gives is averaged, and the activation comes after, as in the sliding windows of MONAI and nnU-Net. The windows lie where
they do for the whole volume, are computed one by one, and are added in the order of the lattice, in float32: so a voxel has the same bytes
in whatever tile it lies. A tile goes along z, and carries the slices of its input and the sums that the next windows need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.core.geometry.box import Box, Span, triple
from pipeline.core.network.blended import BlendedStream, whole_needs
from pipeline.core.plan import Plan
from pipeline.core.tiles.grid import Tile
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.evaluate import evaluate
from pipeline.networks.windows import WindowPredictor

Pass = Callable[[Tensor], Tensor]
"""What a network gives of a window, 1 C Z Y X -> K Z Y X."""


class BlendPredictor(WindowPredictor):
    """The imported network of a plan whose output is blended from windows, on its device.

    Args:
        checkpoint: The weights that the plan names.
        plan: What to do with them; it has a window.
        device_index: Which GPU, where there are several.
        earlier: One that is done with, whose weights are taken where it is of the same network.

    Raises:
        ModelError: The weights are not the plan's, or its device is not there.
        PlanError: The numbers of its normalisation are not measured yet.
        ValueError: The plan has no window.
    """

    def __init__(
        self, checkpoint: Checkpoint, plan: Plan, device_index: int = 0, earlier: WindowPredictor | None = None
    ) -> None:
        super().__init__(checkpoint, plan, device_index, earlier)
        stream = plan.stream
        if not isinstance(stream, BlendedStream):
            raise ValueError("A plan without a window is no plan of blended windows.")
        self._windows = stream
        self._axes = whole_needs(stream.graph, stream.extent)

    def reads(self, tile: Tile) -> Iterator[Span]:
        """Slices of the tile's window in which it takes it."""
        start, stop, slab = tile.window.start[0], tile.window.stop[0], self._windows.slab
        return (Span(a, min(a + slab, stop)) for a in range(start, stop, slab))

    def _predicted(self, tile: Tile, slabs: Iterable[np.ndarray]) -> Iterator[tuple[Box, np.ndarray]]:
        for box, logits_CZYX in blended(self._windows, self._logits, tile, map(self._input, slabs)):
            values, finite = self._output(logits_CZYX)
            if not finite:
                raise self._not_finite(tile)
            yield box, values.cpu().numpy()

    def _logits(self, window: Tensor) -> Tensor:
        with torch.inference_mode():
            return evaluate(self._windows.graph, self._weights, window.to(self._dtype), self._axes)[0].to(torch.float32)

    def rehearse(self, tile: Tile) -> None:
        """Run one window of zeros: a GPU that is too small for it is found before the first tile.

        Raises:
            InferenceError: The device's memory is too small.
        """
        channels = self._windows.graph.input.channels
        with self._computing(tile):
            self._logits(torch.zeros((1, channels, *self._windows.extent), device=self._device)).sum().item()


def blended(stream: BlendedStream, network: Pass, tile: Tile, inputs: Iterable[Tensor]) -> Iterator[tuple[Box, Tensor]]:
    """A tile's core, blended from all windows that have a share in it.

    Args:
        stream: The windows and the tiles.
        network: Gives what the network makes of one window by itself.
        tile: What to predict.
        inputs: The tile's window, normalised, in slices along z in order, (Z, Y, X, C).

    Yields:
        Boxes of the core in z order, and their values (K, Z, Y, X), in the type that the network gives.
    """
    left, slabs = Span(tile.window.start[0], tile.window.start[0]), iter(inputs)
    held: Tensor | None = None  # the slices `left` of the input
    z_row, y_row, x_row = stream.grid.rows
    core = triple(Span(a, b) for a, b in zip(tile.core.start, tile.core.stop, strict=True))
    numbers = [row.touching(span) for row, span in zip(stream.grid.rows, core, strict=True)]
    sums: Tensor | None = None  # of the core's slices from `done` on
    done = core[0].start
    for i in numbers[0]:
        window, kept = z_row.window(i), z_row.kept(i).clipped(core[0])
        while left.stop < window.stop:
            slab = next(slabs)
            held = slab if held is None else torch.cat([held, slab])
            left = Span(left.start, left.stop + slab.shape[0])
        if held is None:
            raise ValueError(f"{tile} has no input.")
        held, left = held[window.start - left.start :], Span(window.start, left.stop)
        for j in numbers[1]:
            for k in numbers[2]:
                spans = (window, y_row.window(j), x_row.window(k))
                y, x = (
                    slice(span.start - first, span.stop - first)
                    for span, first in zip(spans[1:], tile.window.start[1:], strict=True)
                )
                x_1CZYX = held[: window.extent, y, x].permute(3, 0, 1, 2)[None].contiguous()
                part = network(x_1CZYX)
                if sums is None or done + sums.shape[1] < kept.stop:
                    sums = _grown(sums, part, (kept.stop - done, core[1].extent, core[2].extent))
                _add(sums, part, stream, (i, j, k), core, done)
        if sums is None:
            raise ValueError(f"{tile} has no windows.")
        ready = z_row.kept(i + 1).start if i != numbers[0][-1] else core[0].stop
        for start in range(done, min(ready, core[0].stop), stream.slab):
            stop = min(start + stream.slab, ready, core[0].stop)
            yield Box.of_spans((Span(start, stop), *core[1:])), sums[:, start - done : stop - done]
        sums, done = sums[:, max(ready - done, 0) :], max(ready, done)


def _grown(sums: Tensor | None, like: Tensor, extents: tuple[int, int, int]) -> Tensor:
    """The sums with zeros for the slices to come, (K, Z, Y, X)."""
    grown = like.new_zeros((like.shape[0], *extents))
    if sums is not None:
        grown[:, : sums.shape[1]] = sums
    return grown


def _add(
    sums: Tensor,
    part: Tensor,
    stream: BlendedStream,
    number: tuple[int, int, int],
    core: tuple[Span, Span, Span],
    done: int,
) -> None:
    """Add a window's part of the core by its shares. By product and sum, each rounded: the same wherever the core is cut."""
    theirs, ours, shares = [slice(None)], [slice(None)], []
    for axis, (row, which, span, first) in enumerate(
        zip(stream.grid.rows, number, core, (done, core[1].start, core[2].start), strict=True)
    ):
        window, kept = row.window(which), row.kept(which).clipped(span)
        theirs.append(slice(kept.start - window.start, kept.stop - window.start))
        ours.append(slice(kept.start - first, kept.stop - first))
        share = torch.from_numpy(row.shares(which)[theirs[-1]].copy()).to(part.device)
        shares.append(share.view(*(1,) * axis, -1, *(1,) * (2 - axis)))
    z, y, x = shares
    sums[tuple(ours)] += part[tuple(theirs)] * (z * y * x).to(part.dtype)

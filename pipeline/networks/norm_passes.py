"""Statistics of norms over a whole volume: what a tile gives of a pass, and what passes add up to.

Of each channel of a map there are mean, sum of squared differences from it, and largest value, in float64: of a piece of a slice by itself, and
merged (Chan, Golub and LeVeque 1983) slice after slice, and tile after tile in the order of the tiles. So a mean that is large beside the deviation
costs no digits, and the numbers are the same whoever computes which tile when.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.core.frozen import Numbers
from pipeline.core.geometry.box import Box, Span
from pipeline.core.network.norm_passes import NormPass, extended, norm_passes
from pipeline.core.network.operations import GlobalPool, WholeNorm
from pipeline.core.network.schedule import Schedule
from pipeline.core.normalization import Normalization
from pipeline.core.plan import Plan
from pipeline.core.statistics import Found
from pipeline.core.tiles.grid import Tile, TileGrid
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.evaluate import Piece, done, evaluate, of_one_pass, placed
from pipeline.networks.frozen import fixed_by_values, with_numbers
from pipeline.networks.predictor import device_of, memory_too_small, normalised
from pipeline.networks.streaming import Streaming
from pipeline.networks.sweep import Arena

PIECE = 2**22
"""Values of a map of which there is a copy in float64 at once."""


# --- a tile of a pass -----------------------------------------------------------------------------------------------------


class NormLook:
    """The network of a pass on a device, which looks at tiles.

    Args:
        checkpoint: As imported.
        norm_pass: Which.
        numbers: Of the norms before it.
        slab: Slices that it takes in at once; a multiple of the stride.
        threads: That it computes with.
        like: A tensor of its values' dtype, on its device.
    """

    def __init__(
        self, checkpoint: Checkpoint, norm_pass: NormPass, numbers: Numbers, slab: int, threads: int, like: Tensor
    ) -> None:
        self._norm_pass, self._slab, self._threads, self._like = norm_pass, slab, threads, like
        self._weights = placed(with_numbers(checkpoint, norm_pass.graph, numbers), like.device, like.dtype)

    @classmethod
    def of_plan(cls, checkpoint: Checkpoint, plan: Plan, number: int, numbers: Numbers) -> NormLook:
        """That of a plan's pass, in float32; number 1 is the first.

        Raises:
            ModelError: The checkpoint is not the plan's, or its device is not there.
        """
        device = device_of(checkpoint, plan, 0)
        norm_pass = norm_passes(checkpoint.architecture.graph, plan.source.shape)[number - 1]
        return cls(checkpoint, norm_pass, numbers, plan.slab, plan.compute.threads, torch.zeros(1, device=device))

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self._like.device

    def schedule(self, core: Box) -> Schedule | None:
        """What each node computes for a core, turn by turn; None where it owns no voxel of the maps."""
        return self._norm_pass.schedule(core, self._slab) if self._norm_pass.count(core) else None

    def reads(self, schedule: Schedule) -> Iterator[Span]:
        """Slices of the input, by turn."""
        if self._norm_pass.graph.is_streamed:
            return schedule.inputs()
        start, stop = schedule.needs.input
        return (Span(a, min(a + schedule.step, stop)) for a in range(start, stop, schedule.step))

    def look(self, schedule: Schedule, slabs_ZYXC: Iterable[Tensor]) -> Found:
        """Mean, sum of squared differences and largest value of each channel, over the voxels that a core owns.

        Args:
            schedule: Of the core.
            slabs_ZYXC: The slices that it `reads`, normalised.
        """
        torch.set_num_threads(self._threads)  # Dask's nanny sets one; part of the plan, for equal low bits
        moments = _Moments(self._norm_pass.graph.output.channels, self._like)
        with torch.inference_mode():
            if self._norm_pass.graph.is_streamed:
                for _, maps_ZYXC in Streaming(self._weights, schedule, self._like, Arena()).run(slabs_ZYXC):
                    moments.add(maps_ZYXC)
            else:
                window = torch.cat([slab.to(self._like) for slab in slabs_ZYXC]).permute(3, 0, 1, 2)[None]
                maps = evaluate(self._norm_pass.graph, self._weights, window, schedule.axes)
                moments.add(maps[0].movedim(0, -1))
        return moments.found


def looked(
    network: NormLook, tile: Tile, schedule: Schedule, slabs_CZYX: Iterable[np.ndarray], rule: Normalization
) -> Found:
    """The same of slices as stored, by the rule of a run.

    Args:
        network: Of the pass.
        tile: Whose they are.
        schedule: Of its core.
        slabs_CZYX: The slices that the network `reads`.
        rule: By which they become its input, with its numbers.

    Raises:
        InferenceError: The device's memory is too small.
    """
    try:
        stored = (torch.from_numpy(np.ascontiguousarray(slab)).to(network.device) for slab in slabs_CZYX)
        return network.look(schedule, (normalised(slab, rule) for slab in stored))
    except torch.OutOfMemoryError as error:
        raise memory_too_small(tile, network.device, error) from error


class _Moments:
    """Of the channels of maps, as their slices come."""

    def __init__(self, channels: int, like: Tensor) -> None:
        self._count = 0
        self._mean, self._squares = (torch.zeros(channels, dtype=torch.float64, device=like.device) for _ in range(2))
        self._largest = torch.full_like(self._mean, float("-inf"))

    def add(self, maps_ZYXC: Tensor) -> None:
        for plane in maps_ZYXC:
            rows = plane.reshape(-1, plane.shape[-1])
            for piece in rows.split(max(PIECE // plane.shape[-1], 1)):
                values = piece.double()
                mean = values.mean(0)
                self._largest = torch.maximum(self._largest, values.amax(0))
                squares = (values - mean).square_().sum(0)
                self._count, self._mean, self._squares = _merged(
                    (self._count, self._mean, self._squares), (len(values), mean, squares)
                )

    @property
    def found(self) -> Found:
        return tuple(values.cpu().numpy() for values in (self._mean, self._squares, self._largest))


def _merged(one: tuple[int, Tensor, Tensor], other: tuple[int, Tensor, Tensor]) -> tuple[int, Tensor, Tensor]:
    """Count, mean and sum of squared differences of both."""
    (a, mean, squares), (b, more, others) = one, other
    delta, count = more - mean, a + b
    return count, mean + delta * (b / count), squares + others + delta.square() * (a / count * b)


# --- all passes -----------------------------------------------------------------------------------------------------------


class NormMeasurement:
    """How far the passes over a volume are: the present one, its tiles that are in, and in the end the numbers.

    Args:
        checkpoint: The network as imported.
        grid: Tiles of the volume.

    Attributes:
        grid: The tiles.
        now: The present pass; None at the end.
        number: Of it, 1 the first.
        numbers: By node of the local network, of what is fixed by now.
    """

    def __init__(self, checkpoint: Checkpoint, grid: TileGrid) -> None:
        self._graph, self.grid = checkpoint.architecture.graph, grid
        self._weights = {name: tuple(w.double() for w in ws) for name, ws in checkpoint.weights.items()}
        self._axes = of_one_pass(self._graph, extended(self._graph, grid.volume))
        self._values: dict[str, Piece] = {}  # of nodes that have one value a channel
        self.passes = norm_passes(self._graph, grid.volume)
        self.number = 0
        self.numbers: dict[str, tuple[tuple[float, ...], ...]] = {}
        self._go_on()

    def _go_on(self) -> None:
        """Begin the next pass."""
        self.now = self.passes[self.number] if self.number < len(self.passes) else None
        self.number += self.now is not None
        self._in = np.zeros(len(self.grid), dtype=bool)
        self._parts: dict[int, Found] = {}

    @property
    def to_do(self) -> np.ndarray:
        """Tiles of the present pass that are not in."""
        return np.flatnonzero(~self._in)

    def add(self, tile: int, found: Found) -> None:
        """Take in what `NormLook.look` gave; a tile that was added before counts once. The last one ends the pass.

        Raises:
            ValueError: It is not of the maps of the pass.
        """
        if self.now is None or self._in[tile]:
            return
        channels = self.now.graph.output.channels
        if self.now.count(self.grid.tile(tile).core) and [len(array) for array in found] != [channels] * 3:
            raise ValueError(f"Tile {tile} gave {[len(array) for array in found]} numbers for {channels} channels.")
        self._in[tile], self._parts[tile] = True, found
        if self._in.all():
            self._end(self.now)
            self._go_on()

    def _end(self, norm_pass: NormPass) -> None:
        """Statistics of the maps of a pass, and all that follows from them."""
        channels = norm_pass.graph.output.channels
        total = (0, torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64))
        largest = torch.full((channels,), float("-inf"), dtype=torch.float64)
        for tile in range(len(self.grid)):
            if count := norm_pass.count(self.grid.tile(tile).core):
                mean, squares, most = (torch.from_numpy(array.copy()) for array in self._parts[tile])
                total = _merged(total, (count, mean, squares))
                largest = torch.maximum(largest, most)
        by_map = [values.split(list(norm_pass.channels)) for values in (*total[1:], largest)]
        for name, mean, squares, most in zip(norm_pass.maps, *by_map, strict=True):
            for node in self._graph.readers(name):
                if node.name not in self._graph.whole:
                    continue
                if isinstance(node.operation, GlobalPool):
                    value = most if node.operation.kind == "max" else mean
                    wanted = Box.of_spans(axis.writes[node.name] for axis in self._axes)
                    self._values[node.name] = Piece(value.view(1, -1, 1, 1, 1), wanted, (True, True, True))
                elif isinstance(node.operation, WholeNorm):
                    weights = self._weights.get(node.name, ())
                    self._fix(node.name, _affine(node.operation, total[0], mean, squares, weights))
        self._follow()

    def _follow(self) -> None:
        """What is done to one value a channel, and to maps by it."""
        for node in self._graph.nodes[1:]:
            shrunk = {name: self._values.get(name) for name in node.inputs if self._graph.is_shrunk(2, name)}
            there = {name: piece for name, piece in shrunk.items() if piece is not None}
            if not shrunk or len(there) < len(shrunk):
                continue
            if self._graph.is_shrunk(2, node.name):
                given = [there[name] for name in node.inputs]
                self._values[node.name] = done(self._graph, node, self._weights, given, self._axes)
            else:
                values = {name: piece.values[0, :, 0, 0, 0] for name, piece in there.items()}
                for name, tensors in fixed_by_values(node, values).items():
                    self._fix(name, tensors)

    def _fix(self, name: str, tensors: Sequence[Tensor]) -> None:
        self.numbers[name] = tuple(tuple(t.tolist()) for t in tensors)


def _affine(
    operation: WholeNorm, count: int, mean: Tensor, squares: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Factor and summand of a norm, of what its channels have of a map each.

    Args:
        operation: The norm.
        count: Voxels of the map.
        mean: By channel.
        squares: By channel, sum of squared differences from its mean.
        weights: Its own: factor and summand by channel, or none.
    """
    grouped = mean.view(operation.groups, -1)
    each = grouped.shape[1]
    joint = grouped.mean(1, keepdim=True)
    sums = squares.view_as(grouped).sum(1) + (grouped - joint).square().sum(1) * count
    variance = (sums / (count * each)).repeat_interleave(each)
    weight, bias = weights or (torch.ones_like(mean), torch.zeros_like(mean))
    factor = weight / torch.sqrt(variance + operation.epsilon)
    return factor, bias - joint[:, 0].repeat_interleave(each) * factor

"""How far blended windows are from one pass: over a region that fits memory, since over a volume nobody can tell.

The region is taken as a volume of its own, on which the network is run both ways. Its values are the network's, after the activation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from pipeline.core.geometry.box import Box, Span, Triple, per_axis, triple
from pipeline.core.geometry.mirror import shown
from pipeline.core.network.blended import BlendedStream, whole_needs
from pipeline.core.network.graph import Graph
from pipeline.core.network.need import Needs
from pipeline.core.network.receptive import whole_window
from pipeline.core.plan import Plan
from pipeline.core.tiles.cost import pass_extents, pass_multiply_adds, window_values
from pipeline.core.tiles.lattice import BlendedWindow, WindowRow
from pipeline.networks.blending import blended
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.evaluate import Weights, evaluate, placed
from pipeline.networks.predictor import activated, normalised

MOST_MULTIPLY_ADDS = 2**40
"""Of a comparison that grows beyond one pair of windows: some ten seconds of a processor."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """What was found over a region.

    Args:
        region: Where it lies in the volume, first voxels and stops along z, y, x.
        windows: That it was blended from.
        largest: Largest difference of blended windows from one pass, of the pass's range.
        mean: The mean of their sizes, likewise.
        seams: Mean step from voxel to voxel where windows begin and end / elsewhere, of the difference; 1 where nothing shows.
    """

    region: tuple[Triple, Triple]
    windows: int
    largest: float
    mean: float
    seams: float

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def comparison_region(plan: Plan) -> Box | None:
    """The middle of a volume, some windows wide: as large as memory and patience allow; None where not two windows fit.

    Memory is what a worker of the plan may have, which need not be here: for whoever compares on another machine it is a guess.
    """
    window, volume, graph = plan.model.window, plan.source.shape, plan.model.architecture.graph
    if window is None:
        return None
    shape = per_axis(min, window.extent, volume)
    for axis in (2, 1, 0):
        wider = triple(
            min(volume[a], window.extent[a] + window.core[a]) if a == axis else n for a, n in enumerate(shape)
        )
        stream = _stream(graph, wider, window)
        windows = prod(map(len, stream.grid.rows)) * pass_multiply_adds(graph, whole_needs(graph, window.extent))
        work = windows + pass_multiply_adds(graph, whole_needs(graph, whole_window(graph, wider)))
        is_first = shape == per_axis(min, window.extent, volume)
        if _pass_bytes(graph, wider) <= plan.cost.worker_bytes and (is_first or work <= MOST_MULTIPLY_ADDS):
            shape = wider
    if prod(map(len, _stream(graph, shape, window).grid.rows)) < 2:
        return None
    return Box.of_shape(shape).moved(per_axis(lambda n, w: (n - w) // 2, volume, shape))


def mismatch(checkpoint: Checkpoint, plan: Plan, region: Box, array: np.ndarray, device: str) -> Mismatch:
    """Blended windows against one pass over a region, float32.

    Args:
        checkpoint: The weights that the plan names.
        plan: Whose output is blended.
        region: Where the array lies.
        array: The region as stored, (C, Z, Y, X).
        device: To compute on.

    Raises:
        ValueError: The plan's output is exact.
    """
    window, graph = plan.model.window, plan.model.architecture.graph
    if window is None:
        raise ValueError("An exact output has no mismatch.")
    torch.set_num_threads(plan.compute.threads)
    place = torch.device(device)
    weights = placed(checkpoint, place, torch.float32)
    values = normalised(torch.from_numpy(np.ascontiguousarray(array)).to(place), plan.numbers)
    found = activated(blend(graph, weights, values, window), plan.output.activation)
    expected = activated(whole_pass(graph, weights, values), plan.output.activation)
    difference = (found - expected).abs()
    extent = max(float(expected.max() - expected.min()), torch.finfo(torch.float32).tiny)
    stream = _stream(graph, triple(array.shape[1:]), window)
    return Mismatch(
        region=(region.start, region.stop),
        windows=prod(map(len, stream.grid.rows)),
        largest=float(difference.max()) / extent,
        mean=float(difference.mean()) / extent,
        seams=_seams((found - expected).cpu().numpy(), stream.grid.rows),
    )


def blend(graph: Graph, weights: Weights, x_ZYXC: Tensor, window: BlendedWindow) -> Tensor:
    """A volume blended from windows, as one tile, (K, Z, Y, X)."""
    shape = triple(x_ZYXC.shape[:3])
    stream = _stream(graph, shape, window)
    tile = stream.grid.tile(0)
    axes = whole_needs(graph, window.extent)
    parts = blended(stream, lambda x: _evaluated(graph, weights, x, axes), tile, [_mirrored(x_ZYXC, tile.window)])
    return torch.cat([logits for _, logits in parts], 1)


def whole_pass(graph: Graph, weights: Weights, x_ZYXC: Tensor) -> Tensor:
    """One pass over a volume, mirrored at its far ends to legal extents, (K, Z, Y, X). The network pads itself."""
    shape = triple(x_ZYXC.shape[:3])
    legal = whole_window(graph, shape)
    window = _mirrored(x_ZYXC, Box.of_shape(legal)).permute(3, 0, 1, 2)[None].contiguous()
    return _evaluated(graph, weights, window, whole_needs(graph, legal, shape))


def _evaluated(graph: Graph, weights: Weights, window: Tensor, axes: tuple[Needs, Needs, Needs]) -> Tensor:
    with torch.inference_mode():
        return evaluate(graph, weights, window, axes)[0]


def _mirrored(x_ZYXC: Tensor, box: Box) -> Tensor:
    """A box of a volume, mirrored beyond its ends."""
    inside, indices = shown(box, triple(x_ZYXC.shape[:3]))
    x_ZYXC = x_ZYXC[inside.within(Box.of_shape(triple(x_ZYXC.shape[:3])))]
    for axis, index in enumerate(indices):
        x_ZYXC = x_ZYXC.index_select(axis, torch.from_numpy(index).to(x_ZYXC.device))
    return x_ZYXC


def _stream(graph: Graph, shape: Triple, window: BlendedWindow) -> BlendedStream:
    return BlendedStream.of_windows(graph, shape, shape, window)


def _pass_bytes(graph: Graph, shape: Triple) -> int:
    """Of one pass, float32."""
    axes = whole_needs(graph, whole_window(graph, shape))
    return int(window_values(graph, [pass_extents(graph, needs)[np.newaxis] for needs in axes])[0]) * 4


def _seams(difference_KZYX: np.ndarray, rows: tuple[WindowRow, WindowRow, WindowRow]) -> float:
    """Mean step of a difference at the ends of windows / elsewhere."""
    there, elsewhere = [], []
    for axis, row in enumerate(rows):
        steps = np.abs(np.diff(difference_KZYX, axis=axis + 1))
        ends = sorted({*_ends(row)})
        if ends:
            there.append(np.take(steps, [end - 1 for end in ends], axis=axis + 1).ravel())
            elsewhere.append(np.delete(steps, [end - 1 for end in ends], axis=axis + 1).ravel())
    if not there:
        return 1.0
    level = max(float(np.concatenate(elsewhere).mean()), float(np.finfo(np.float32).tiny))
    return float(np.concatenate(there).mean()) / level


def _ends(row: WindowRow) -> Iterator[int]:
    """First voxels behind which something begins or ends, inside the volume."""
    for number in range(len(row)):
        kept: Span = row.kept(number)
        yield from (place for place in kept if 0 < place < row.volume)

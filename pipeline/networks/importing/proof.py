"""Nothing is believed of an import: the graph against the program that it came from, and a tile against the whole, in float64.

One stride less of halo must differ: else the tile would show nothing. Of a network that looks at its whole input, tiles are those of the network
with the statistics of an image fixed, which must give what the network gives for that image. Where gradients of the program reach is compared with
the halo of either side: `pipeline.networks.importing.support`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.core.geometry.box import Span, Triple, round_up, triple
from pipeline.core.network.graph import Graph
from pipeline.core.network.local import local
from pipeline.core.network.need import Needs, needs
from pipeline.core.network.receptive import legal_extent, lost_margin, reach, receptive_radius
from pipeline.errors import ModelError
from pipeline.networks.evaluate import Weights, evaluate, one_pass, read_of
from pipeline.networks.frozen import measured
from pipeline.networks.importing.lowering import Network, Origin
from pipeline.networks.importing.support import Support, support

EQUAL = 1e-9
"""Of the output's range: far above what rounding makes of sums in float64, far below what a wrong rule gives."""


@dataclass(frozen=True)
class Proof:
    """What was compared, as shares of the output's range.

    Args:
        graph: The graph and the program that it came from, over the image that the program takes.
        tile: Blocks with their halo and the whole, one along each axis; None where no voxel depends on another.
        short: The same, with one stride less of halo, or where the window's own extent says where voxels lie: the least of the axes.
        fixed: The network with the statistics of an image fixed, and the program over that image; None where it looks at no whole input, or
            its statistics cannot be fixed.
        is_local: Whether a tile can be compared as the network is; else tiles are of the network with these statistics.
        origin: The graph and the operators of the file's own format, over an image of few voxels; None where the program is those.
        is_anchored: Whether voxels lie where the extent of the whole says.
        support: Its halo and where gradients reach; None where it has no tiles.
    """

    graph: float
    tile: float | None = None
    short: float | None = None
    fixed: float | None = None
    is_local: bool = True
    origin: float | None = None
    is_anchored: bool = False
    support: Support | None = None

    def __str__(self) -> str:
        shown = f"graph against program {self.graph:.1e} of the range"
        if self.origin is not None:
            shown += f", against the file's own operators {self.origin:.1e}"
        if self.fixed is not None:
            shown += f"; with the statistics of its whole input fixed {self.fixed:.1e}"
        shown += f"; {self._tile}"
        return shown if self.support is None else f"{shown}; {self.support}"

    @property
    def _tile(self) -> str:
        if not self.is_local and self.fixed is None:
            return "it looks at its whole input, so no tile is compared"
        if self.tile is None:
            return "every voxel is computed of itself alone"
        shown = f"tile against whole {self.tile:.1e}"
        if self.short is None:
            return shown
        control = "as a window that lies by its own extent" if self.is_anchored else "with one stride less of halo"
        return f"{shown}, {control} {self.short:.1e}"


def prove(network: Network) -> Proof:
    """Compare, on noise.

    Raises:
        ModelError: They differ by more than rounding.
    """
    graph = network.graph
    weights = {name: tuple(w.double() for w in tensors) for name, tensors in network.weights.items()}
    with torch.inference_mode():
        shape, extent, difference = _against(network, weights, network.program)
        fixed, local_graph, local_weights = _fixed(network, weights) if not graph.is_local else (None, graph, weights)
        tiles = _tiles(local_graph, local_weights, shape, extent) if local_graph.is_local else (None, None)
        origin = _against(network, weights, network.origin)[2] if network.origin else None
        proof = Proof(difference, *tiles, fixed, graph.is_local, origin, bool(graph.anchored))
    if not max(proof.graph, proof.tile or 0.0, proof.fixed or 0.0, proof.origin or 0.0) <= EQUAL:
        raise ModelError(
            f"The imported graph does not compute what the network does ({proof}; {EQUAL:g} is allowed). A rule of an operation is wrong: "
            "please report it, with the network."
        )
    has_tiles = proof.is_local or proof.fixed is not None
    return replace(proof, support=support(network)) if has_tiles else proof


def _fixed(network: Network, weights: Weights) -> tuple[float | None, Graph, Weights]:
    """How far the network with the statistics of an image fixed is from the program over it, and that network; itself, where it has no such.

    The image is the only one, so its statistics are those of the pass: what is left differs by rounding.
    """
    graph, image = network.graph, _noise(network.program)
    try:
        fixed = local(graph)
    except ValueError:
        return None, graph, weights
    found = measured(graph, weights, [_solid(image, network.ndim)], (0, 0, 0))
    numbers = {**weights, **found.weights}
    return _against(replace(network, graph=fixed), numbers, network.program)[2], fixed, numbers


def _against(network: Network, weights: Weights, run: Origin) -> tuple[Triple, float, float]:
    """Extents of an image of noise, the range of what should come of it, and as a share of it how far what the graph gives is from it."""
    image = _noise(run)
    try:
        expected = _solid(run.run(image), network.ndim)
    except (
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
    ) as error:  # of sizes that do not fit, or too large
        raise ModelError(
            f"The network cannot be run as it was exported ({type(error).__name__}: {error}). Export it again."
        ) from error
    window, shape = _solid(image, network.ndim), triple(_solid(image, network.ndim).shape[2:])
    whole = one_pass(network.graph, weights, window)
    if whole.shape != expected.shape:
        raise ModelError(
            f"The network gives {tuple(expected.shape[1:])} values (channels, z, y, x) for an image of {shape} voxels, and its graph "
            f"{tuple(whole.shape[1:])}. This is a defect of Halotile: please report it."
        )
    extent = float(expected.max() - expected.min()) or 1.0
    return shape, extent, float((whole - expected).abs().max()) / extent


def _noise(run: Origin) -> Tensor:
    """An image that a program takes, float64."""
    return torch.rand(run.image[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))[:1]


def _solid(image: Tensor, ndim: int) -> Tensor:
    """1 C Z Y X."""
    return image if ndim == 3 else image[:, :, None]


def _tiles(graph: Graph, weights: Weights, shape: Triple, extent: float) -> tuple[float | None, float | None]:
    """How far blocks of one stride are from the whole, at most; and with one stride less of halo, at least.

    Where places follow from the extent of the whole, the latter with all of the halo, but the extent of the window.

    One block an axis, in the middle of an image that is long along that axis alone and so is small, whatever the reach.

    Args:
        graph: The network.
        weights: Its own, float64.
        shape: Voxels z, y, x that it is known to take.
        extent: The range of what it gives.
    """
    exact, short = list[float](), list[float]()
    for axis in range(3):
        if graph.stride[axis] == 1 and not any(reach(graph)[axis]):
            continue  # no voxel along it says anything of another
        sizes = triple(_long(graph, k) if k == axis else _least(graph, k, shape[k]) for k in range(3))
        image = torch.rand(
            (1, graph.input.channels, *sizes), dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        whole = one_pass(graph, weights, image)
        stride, given = graph.stride[axis], whole.shape[2 + axis]
        middle = given // 2 // stride * stride
        cores = [Span(middle, middle + stride) if k == axis else Span(0, n) for k, n in enumerate(whole.shape[2:])]
        if graph.anchored:
            tile = triple(
                needs(graph, k, core, Span(0, n)) for k, (core, n) in enumerate(zip(cores, sizes, strict=True))
            )
            _check_halo(graph, tile[axis])
        else:
            tile = _axes(graph, cores, axis, 0)
        exact.append(_difference(graph, weights, image, whole, tile) / extent)
        if graph.is_padded and receptive_radius(graph)[axis]:
            with suppress(ValueError):  # so little that a crop leaves nothing
                less = _axes(graph, cores, axis, 0 if graph.anchored else stride)
                short.append(_difference(graph, weights, image, whole, less) / extent)
    return max(exact, default=None), min(short, default=None)


def _check_halo(graph: Graph, tile: Needs) -> None:
    """Refuse a network whose blocks read more than their halo.

    Raises:
        ModelError: It is one.
    """
    window = tile.core.grown(receptive_radius(graph)[tile.axis])
    if window.clipped(tile.input) != tile.input:
        raise ModelError(
            f"A block {tile.core} along axis {tile.axis} of the network needs {tile.input}, and its halo ends at {window}. This is a defect of "
            "Halotile: please report it."
        )


def _long(graph: Graph, axis: int) -> int:
    """Voxels that hold a block with its halo in their middle."""
    halo, stride = round_up(receptive_radius(graph)[axis], graph.stride[axis]), graph.stride[axis]
    return legal_extent(graph, axis, 2 * halo + 3 * stride)


def _least(graph: Graph, axis: int, known: int) -> int:
    """Few voxels that a pass takes, with those that it is known to take as the most."""
    stride, lost = graph.stride[axis], 2 * lost_margin(graph)[axis]
    return min(legal_extent(graph, axis, max(2 * stride, 8) + lost), known)


def _axes(graph: Graph, cores: Sequence[Span], of: int, less: int) -> tuple[Needs, Needs, Needs]:
    """What a block needs whose window ends with its halo along one axis, or so much before, and with the image along the others."""
    if not graph.is_padded:  # its window is what it needs, and has no ends
        return triple(needs(graph, axis, core, None) for axis, core in enumerate(cores))
    halo = round_up(receptive_radius(graph)[of], graph.stride[of]) - less
    ends = [core.grown(halo) if axis == of else core for axis, core in enumerate(cores)]
    return triple(needs(graph, axis, core, end) for axis, (core, end) in enumerate(zip(cores, ends, strict=True)))


def _difference(
    graph: Graph, weights: Weights, window: Tensor, whole: Tensor, axes: tuple[Needs, Needs, Needs]
) -> float:
    """Between a block by itself and the same of the whole, at most."""
    part = evaluate(graph, weights, read_of(graph, axes, window), axes)
    block = whole[(slice(None), slice(None), *(slice(*axis.core) for axis in axes))]
    return float((part - block).abs().max())

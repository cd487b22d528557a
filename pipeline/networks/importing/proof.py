"""Nothing is believed of an import: the graph against the program that it came from, and a tile against the whole, in float64.

One stride less of halo must differ: else the tile would show nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.core.geometry.box import Span, Triple, per_axis, round_up, triple
from pipeline.core.network.graph import Graph
from pipeline.core.network.need import Needs, needs
from pipeline.core.network.receptive import lost_margin, receptive_radius
from pipeline.errors import ModelError
from pipeline.networks.evaluate import Weights, evaluate
from pipeline.networks.importing.lowering import Network, Origin

EQUAL = 1e-9
"""Of the output's range: far above what rounding makes of sums in float64, far below what a wrong rule gives."""


@dataclass(frozen=True)
class Proof:
    """What was compared, as shares of the output's range.

    Args:
        graph: The graph and the program that it came from, over the image that the program takes.
        tile: A block with its halo and the whole; None where the program's image is too small for one.
        short: The same, with one stride less of halo.
        is_local: Whether a tile can be compared at all.
        origin: The graph and the operators of the file's own format, over an image of few voxels; None where the program is those.
    """

    graph: float
    tile: float | None = None
    short: float | None = None
    is_local: bool = True
    origin: float | None = None

    def __str__(self) -> str:
        shown = f"graph against program {self.graph:.1e} of the range"
        if self.origin is not None:
            shown += f", against the file's own operators {self.origin:.1e}"
        if not self.is_local:
            return f"{shown}; it looks at its whole input, so no tile is compared"
        if self.tile is None:
            return f"{shown}; its image is too small for a tile"
        shown += f"; tile against whole {self.tile:.1e}"
        return shown if self.short is None else f"{shown}, with one stride less of halo {self.short:.1e}"


def prove(network: Network) -> Proof:
    """Compare, on noise.

    Raises:
        ModelError: They differ by more than rounding.
    """
    graph = network.graph
    weights = {name: tuple(w.double() for w in tensors) for name, tensors in network.weights.items()}
    with torch.inference_mode():
        window, whole, extent, difference = _against(network, weights, network.program)
        tiles = _tiles(graph, weights, window, whole, extent) if graph.is_local else (None, None)
        origin = _against(network, weights, network.origin)[3] if network.origin else None
        proof = Proof(difference, *tiles, graph.is_local, origin)
    if not max(proof.graph, proof.tile or 0.0, proof.origin or 0.0) <= EQUAL:
        raise ModelError(
            f"The imported graph does not compute what the network does ({proof}; {EQUAL:g} is allowed). A rule of an operation is wrong: "
            "please report it, with the network."
        )
    return proof


def _against(network: Network, weights: Weights, run: Origin) -> tuple[Tensor, Tensor, float, float]:
    """An image of noise, what the graph gives for it, the range of that, and as a share of it how far that is from what it should be."""
    image = torch.rand(run.image[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))[:1]
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
    whole = _whole(network.graph, weights, window)
    if whole.shape != expected.shape:
        raise ModelError(
            f"The network gives {tuple(expected.shape[1:])} values (channels, z, y, x) for an image of {shape} voxels, and its graph "
            f"{tuple(whole.shape[1:])}. This is a defect of Halotile: please report it."
        )
    extent = float(expected.max() - expected.min()) or 1.0
    return window, whole, extent, float((whole - expected).abs().max()) / extent


def _solid(image: Tensor, ndim: int) -> Tensor:
    """1 C Z Y X."""
    return image if ndim == 3 else image[:, :, None]


def _whole(graph: Graph, weights: Weights, window: Tensor) -> Tensor:
    """One pass over all that a program is given."""
    shape, margin = triple(window.shape[2:]), lost_margin(graph)
    axes = triple(_of_pass(graph, axis, n, m) for axis, (n, m) in enumerate(zip(shape, margin, strict=True)))
    return evaluate(graph, weights, window[(slice(None), slice(None), *_read(axes, margin))], axes)


def _of_pass(graph: Graph, axis: int, extent: int, margin: int) -> Needs:
    ends = graph.ends(axis, Span(-margin, extent - margin))
    return needs(graph, axis, ends[graph.output.name], ends[graph.input.name])


def _read(axes: tuple[Needs, Needs, Needs], origin: Triple) -> tuple[slice, slice, slice]:
    return triple(slice(a.input.start + o, a.input.stop + o) for a, o in zip(axes, origin, strict=True))


def _tiles(
    graph: Graph, weights: Weights, window: Tensor, whole: Tensor, extent: float
) -> tuple[float | None, float | None]:
    """How far a block of one stride in the middle is from the whole: with its halo, and with one stride less."""
    stride, shape = graph.stride, triple(whole.shape[2:])
    start = per_axis(lambda n, s: n // 2 // s * s, shape, stride)
    if any(a + s > n for a, s, n in zip(start, stride, shape, strict=True)):
        return None, None
    blocks = [Span(a, a + s) for a, s in zip(start, stride, strict=True)]
    if not graph.is_padded:  # its window is what it needs, and has no ends
        axes = triple(needs(graph, axis, block, None) for axis, block in enumerate(blocks))
        return _difference(graph, weights, window, whole, axes) / extent, None
    halos = per_axis(round_up, receptive_radius(graph), stride)
    if any(b.start < h or b.stop + h > n for b, h, n in zip(blocks, halos, shape, strict=True)):
        return None, None
    differences = []
    for halo in (halos, per_axis(lambda h, s: max(h - s, 0), halos, stride)):
        axes = triple(
            needs(graph, axis, block, block.grown(h)) for axis, (block, h) in enumerate(zip(blocks, halo, strict=True))
        )
        differences.append(_difference(graph, weights, window, whole, axes) / extent)
    return differences[0], differences[1]


def _difference(
    graph: Graph, weights: Weights, window: Tensor, whole: Tensor, axes: tuple[Needs, Needs, Needs]
) -> float:
    """Between a block by itself and the same of the whole, at most."""
    part = evaluate(graph, weights, window[(slice(None), slice(None), *_read(axes, lost_margin(graph)))], axes)
    block = whole[(slice(None), slice(None), *(slice(*axis.core) for axis in axes))]
    return float((part - block).abs().max())

"""A network whose norms over the whole input have fixed statistics, measured over a sample of patches, norm after norm.

All patches are at the same node at once: the statistics of a norm are those of all centres together, with the norms before it fixed
already. Each step on a patch is done by one thread, and sums are taken in the order of the patches: so neither the number of threads
nor that of workers is in the numbers.

Shape suffixes: 1 C Z Y X.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.core.frozen import Numbers
from pipeline.core.geometry.box import Box, Span, Triple, triple
from pipeline.core.network.document import digest
from pipeline.core.network.graph import Graph, Node
from pipeline.core.network.imported import Imported
from pipeline.core.network.local import local
from pipeline.core.network.operations import Affine, Combination, Concatenation, Constant, GlobalPool, WholeNorm
from pipeline.core.network.receptive import legal_extent
from pipeline.core.normalization import Normalization
from pipeline.core.plan import Plan
from pipeline.errors import ModelError
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.evaluate import Piece, Weights, done, of_one_pass, one_pass, placed, read_of
from pipeline.networks.predictor import normalised
from pipeline.networks.threads import threads

Apply = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""As `map`."""


# --- the network with fixed statistics -----------------------------------------------------------------------------------


def localised(checkpoint: Checkpoint, numbers: Numbers | None = None) -> Checkpoint:
    """A network with fixed statistics; itself where it has no norms over its whole input.

    Args:
        checkpoint: As imported.
        numbers: Of what became local; None: ones and zeros, for whoever asks only what it costs.
    """
    graph = checkpoint.architecture.graph
    if graph.is_local or not isinstance(checkpoint.architecture, Imported):
        return checkpoint
    return with_numbers(checkpoint, local(graph), numbers)


def with_numbers(checkpoint: Checkpoint, fixed: Graph, numbers: Numbers | None) -> Checkpoint:
    """The network of a graph that is local, or of a part of one.

    Args:
        checkpoint: As imported.
        fixed: The graph, of `core.network.local`'s nodes.
        numbers: Of those of its nodes that became local; None: ones and zeros.

    Raises:
        ModelError: It is no imported network.
    """
    if not isinstance(checkpoint.architecture, Imported):
        raise ModelError("A UNet of ours has no norms over its whole input.")
    as_it_was = set(checkpoint.architecture.graph.nodes)
    state: dict[str, Tensor] = {}
    for node in fixed.nodes:
        if isinstance(node.operation, (Affine, Constant)) and node not in as_it_was:
            if numbers is None:
                tensors = [torch.ones(node.channels), torch.zeros(node.channels)]
            else:
                tensors = [torch.tensor(values, dtype=torch.float64) for values in numbers[node.name]]
            state |= {f"{node.name}.{n}": t for n, t in enumerate(tensors[: 2 - isinstance(node.operation, Constant)])}
        else:
            state |= {f"{node.name}.{n}": t for n, t in enumerate(checkpoint.weights.get(node.name, ()))}
    return replace(
        checkpoint,
        architecture=Imported(fixed, checkpoint.architecture.ndim),
        state=state,
        original=checkpoint.original or checkpoint.sha256,
    )


def of_plan(checkpoint: Checkpoint, plan: Plan) -> Checkpoint:
    """The network of a plan: with the statistics that its survey has measured, where it has such.

    Raises:
        PlanError: They are not measured yet.
        ModelError: The file holds another network than the plan's.
    """
    if plan.model.frozen is None:
        return checkpoint
    check_same(checkpoint, plan)
    return localised(checkpoint, plan.frozen_numbers)


def check_same(checkpoint: Checkpoint, plan: Plan) -> None:
    """Refuse a network whose statistics are not those that a plan speaks of.

    Raises:
        ModelError: It is one.
    """
    if plan.model.frozen and digest(checkpoint.architecture.graph) != plan.model.frozen.graph:
        raise ModelError(
            f"Checkpoint '{plan.model.checkpoint}' changed after the plan was made: it holds another network. Put the planned one back, "
            "or plan again with another output.url."
        )


# --- statistics -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What a sample gave.

    Args:
        weights: Of each node that became local: factor and summand, or a constant; float64.
        outputs: Of the network with these, by patch.
    """

    weights: dict[str, tuple[Tensor, ...]]
    outputs: tuple[Tensor, ...]

    @property
    def numbers(self) -> Numbers:
        """The same as JSON takes it."""
        return {node: tuple(tuple(t.tolist()) for t in tensors) for node, tensors in self.weights.items()}


def measured(
    graph: Graph, weights: Weights, patches: Sequence[Tensor], context: Triple, apply: Apply = map
) -> Measured:
    """Statistics of norms over the whole input, joint over the centres of patches.

    Args:
        graph: The network.
        weights: Its own.
        patches: Each (1, C, Z, Y, X), all of one shape, of legal extents; normalised.
        context: Voxels a side, along z, y, x, that are no part of a centre.
        apply: How a function is applied to all patches; its results come in their order.
    """
    axes = of_one_pass(graph, triple(patches[0].shape[2:]))
    image = Box.of_spans(axis.input for axis in axes)
    pieces = {graph.input.name: [Piece(read_of(graph, axes, patch), image) for patch in patches]}
    last = {name: node.name for node in graph.nodes for name in node.inputs}
    found: dict[str, tuple[Tensor, ...]] = {}
    for node in graph.nodes[1:]:
        given = [pieces[name] for name in node.inputs]
        shrunk = {
            name: pieces[name][0].values.double()[0, :, 0, 0, 0] for name in node.inputs if graph.is_shrunk(2, name)
        }
        if len(shrunk) == len(node.inputs):  # one value a channel: the same for all
            pieces[node.name] = [done(graph, node, weights, [one[0] for one in given], axes)] * len(patches)
        elif isinstance(node.operation, (WholeNorm, GlobalPool)):
            centres = [piece.part(_centre(graph, node.inputs[0], piece.box, context)) for piece in given[0]]
            wanted = Box.of_spans(axis.writes[node.name] for axis in axes)
            if isinstance(node.operation, GlobalPool):
                value = _pooled(node.operation, centres, apply).to(centres[0])
                extent = (wanted.shape[0] if node.operation.planar else 1, 1, 1)
                piece = Piece(
                    value.view(1, -1, 1, 1, 1).expand(1, -1, *extent),
                    wanted,
                    triple(graph.is_shrunk(axis, node.name) for axis in range(3)),
                )
                pieces[node.name] = [piece] * len(patches)
            else:
                found[node.name] = _statistics(node.operation, centres, weights.get(node.name, ()), apply)
                factor, summand = (w.to(centres[0]).view(1, -1, 1, 1, 1) for w in found[node.name])
                pieces[node.name] = list(apply(partial(_scaled, factor, summand, wanted), given[0]))
        else:
            step = partial(done, graph, node, weights, axes=axes)
            pieces[node.name] = list(apply(step, list(zip(*given, strict=True))))
            found |= fixed_by_values(node, shrunk)
        del given
        for name in set(node.inputs):
            if last[name] == node.name:
                del pieces[name]
    return Measured(found, tuple(piece.values for piece in pieces[graph.output.name]))


def _centre(graph: Graph, name: str, box: Box, context: Triple) -> Box:
    """What is counted of a map: none of the context; all of it, where nothing else is there."""
    spans = []
    for a, b, m, scale in zip(box.start, box.stop, context, graph.scales[name], strict=True):
        inner = Span(a - (-m // scale), b + (-m // scale))
        spans.append(inner if graph.is_padded and inner.extent > 0 else Span(a, b))
    return Box.of_spans(spans)


def _scaled(factor: Tensor, summand: Tensor, wanted: Box, piece: Piece) -> Piece:
    return Piece(piece.part(wanted) * factor + summand, wanted, piece.shrunk)


def _statistics(
    operation: WholeNorm, centres: Sequence[Tensor], weights: Sequence[Tensor], apply: Apply
) -> tuple[Tensor, Tensor]:
    """Factor and summand of a norm by what is there of all centres together, float64."""
    channels = centres[0].shape[1]
    each, count = channels // operation.groups, sum(c[0, 0].numel() for c in centres)

    def joint(sums: Iterable[Tensor]) -> Tensor:
        total = sum(sums, torch.zeros(channels, dtype=torch.float64))
        mean = total.view(operation.groups, each).sum(1) / (count * each)
        return mean.repeat_interleave(each)

    mean = joint(apply(_sum, centres))
    variance = joint(apply(partial(_squares, mean), centres))
    weight, bias = (w.double() for w in weights) if weights else (torch.ones(channels), torch.zeros(channels))
    factor = weight.double() / torch.sqrt(variance + operation.epsilon)
    return factor, bias.double() - mean * factor


def _sum(centre: Tensor) -> Tensor:
    return centre.double().sum((0, 2, 3, 4))


def _squares(mean: Tensor, centre: Tensor) -> Tensor:
    return (centre.double() - mean.view(1, -1, 1, 1, 1)).square_().sum((0, 2, 3, 4))


def _pooled(operation: GlobalPool, centres: Sequence[Tensor], apply: Apply) -> Tensor:
    """Mean, or largest value, of all centres together, by channel."""
    if operation.kind == "max":
        return torch.stack([c.amax((0, 2, 3, 4)) for c in centres]).amax(0)
    count = sum(c[0, 0].numel() for c in centres)
    return sum(apply(_sum, centres), torch.zeros(centres[0].shape[1], dtype=torch.float64)) / count


def fixed_by_values(node: Node, shrunk: dict[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """What becomes of a node that reads one value a channel beside a map: weights of its affine map, or constants."""
    if not shrunk:
        return {}
    if isinstance(node.operation, Concatenation):
        return {f"{node.name}.{name}": (value,) for name, value in shrunk.items()}
    operation = node.operation
    if not isinstance(operation, Combination):
        raise ValueError(f"Node '{node.name}' reads one value a channel beside a map.")
    (name, value), *_ = shrunk.items()
    value = value.expand(node.channels).clone()
    ones, zeros = torch.ones_like(value), torch.zeros_like(value)
    first = node.inputs[0] == name
    return {
        node.name: {
            "add": (ones, value),
            "sub": (-ones, value) if first else (ones, -value),
            "mul": (value, zeros),
            "div": (1 / value, zeros),
        }[operation.function]
    }


# --- of arrays --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Distances:
    """How far predictions are apart over a region, mean of the absolute difference, as a share of the range of its whole pass.

    Args:
        frozen: Of the network with fixed statistics from one pass of the network itself over the whole region.
        sliding: Of the network over plain windows, each with its own statistics, from the same.
        apart: Of these two.
        region: Extent along z, y, x.
        window: Of such a window.
    """

    frozen: float
    sliding: float
    apart: float
    region: Triple
    window: Triple


def legal(graph: Graph, wanted: Triple) -> Triple:
    """The least extents, at least so large, that one pass takes."""
    return triple(legal_extent(graph, axis, n) for axis, n in enumerate(wanted))


def freeze(
    checkpoint: Checkpoint, patches_CZYX: Sequence[np.ndarray], rule: Normalization, context: Triple, parts: int
) -> tuple[Numbers, list[float]]:
    """Statistics over patches as stored.

    Args:
        checkpoint: The network.
        patches_CZYX: All of one shape.
        rule: By which values become the network's input.
        context: Voxels a side that are not counted.
        parts: Of disjoint parts of the sample, each of which is measured by itself too.

    Returns:
        The numbers; and of each part, how far its predictions for its own patches are from those by the whole sample: mean of the absolute
        difference, as a share of the range.
    """
    graph, weights = checkpoint.architecture.graph, placed(checkpoint, torch.device("cpu"), torch.float32)
    with _one_thread_each() as apply, torch.inference_mode():
        patches = [_image(patch, rule) for patch in patches_CZYX]
        whole = measured(graph, weights, patches, context, apply)
        extent = _range(torch.stack(whole.outputs))
        spread = []
        for part in range(parts if 1 < parts <= len(patches) else 0):
            mine = slice(part, None, parts)
            found = measured(graph, weights, patches[mine], context, apply)
            differences = [
                float((a - b).double().abs().mean()) for a, b in zip(found.outputs, whole.outputs[mine], strict=True)
            ]
            spread.append(sum(differences) / len(differences) / extent)
    return whole.numbers, spread


def distances(
    checkpoint: Checkpoint, numbers: Numbers, region_CZYX: np.ndarray, rule: Normalization, window: Triple
) -> Distances:
    """How far predictions with fixed statistics, and those of plain windows, are from one pass over a region.

    Args:
        checkpoint: The network, as imported.
        numbers: Its statistics.
        region_CZYX: As stored, of legal extents.
        rule: By which values become the network's input.
        window: Extents of plain windows, legal ones that divide those of the region.
    """
    place = torch.device("cpu")
    graph, weights = checkpoint.architecture.graph, placed(checkpoint, place, torch.float32)
    fixed = localised(checkpoint, numbers)
    with torch.inference_mode():
        image = _image(region_CZYX, rule)
        whole = one_pass(graph, weights, image)
        frozen = one_pass(fixed.architecture.graph, placed(fixed, place, torch.float32), image)
        sliding = torch.empty_like(whole)
        for start in _starts(triple(image.shape[2:]), window):
            inside = (slice(None), slice(None), *(slice(a, a + n) for a, n in zip(start, window, strict=True)))
            sliding[inside] = one_pass(graph, weights, image[inside])
        pairs = ((frozen, whole), (sliding, whole), (frozen, sliding))
        a, b, c = (float((one - other).double().abs().mean()) / _range(whole) for one, other in pairs)
    return Distances(a, b, c, triple(region_CZYX.shape[1:]), window)


def _starts(shape: Triple, window: Triple) -> Iterator[Triple]:
    z, y, x = (range(0, n, m) for n, m in zip(shape, window, strict=True))
    return ((a, b, c) for a in z for b in y for c in x)


def _image(patch_CZYX: np.ndarray, rule: Normalization) -> Tensor:
    return normalised(torch.from_numpy(np.ascontiguousarray(patch_CZYX)), rule).permute(3, 0, 1, 2)[None].contiguous()


def _range(values: Tensor) -> float:
    return float(values.max() - values.min()) or 1.0


@contextmanager
def _one_thread_each() -> Iterator[Apply]:
    """Several patches at once, one thread for each, so that how many there are is in no number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(max(threads().cores, 1), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(before)

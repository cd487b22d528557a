"""An ONNX model to a graph: its operators as calls of torch's, at extents that are chosen, and its own meaning as a reference.

What a model says of shapes is not believed: they follow from its operators. An operator, attribute or domain without a rule is
refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

from pipeline.core.geometry.box import per_axis, round_up, triple
from pipeline.core.network.graph import Graph
from pipeline.core.network.receptive import receptive_radius, whole_window
from pipeline.errors import ModelError
from pipeline.networks.importing.lowering import Network, unlike
from pipeline.networks.importing.onnx_model import OnnxModel, check_counts, is_onnx
from pipeline.networks.importing.onnx_rules import DAMAGED, lowered

__all__ = ["is_onnx", "read_onnx"]

MOST_ARITHMETIC = 1e11
"""Multiplications with addition of the reference, which numpy does."""

LARGEST_PROOF = 2**27
"""Voxels times channels of an image, the widest map counted, that is chosen so that a tile fits."""

EXTENTS = (16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Voxels that are tried along axes which the model leaves open."""


def read_onnx(path: Path, *, output: int = 0) -> Network:
    """The graph of a model, of one image in, (1, C, Z, Y, X) or (1, C, Y, X).

    Args:
        path: Of a `.onnx`, and of what it keeps beside itself.
        output: Which of its outputs is predicted, where it has several.

    Raises:
        ModelError: It is damaged or too large, has an operator without a rule, or one that looks at its whole input; says which.
    """
    try:
        check_counts(path)
        return _chosen(OnnxModel.of(path), output)
    except ModelError as error:
        raise ModelError(f"'{path}': {error}") from error
    except (*DAMAGED, RecursionError) as error:
        raise ModelError(
            f"'{path}' cannot be read as a model of ONNX ({type(error).__name__}: {str(error)[:400]}). It is damaged, or of a version "
            "that is not known here: export the network again."
        ) from error


def _chosen(model: OnnxModel, output: int) -> Network:
    """The network at extents that hold a tile with its halo, where it is the same there, with a reference at small ones."""
    first, declared = _first(model, output), all(model.sizes[2:])
    network = first
    wanted = _with_tile(first)
    if wanted != first.program.image[1]:
        try:
            other = lowered(model, wanted, output)
        except ModelError as error:
            if not declared:
                raise ModelError(
                    f"for an image of {first.program.image[1]} it is read, and for {wanted}: {error}"
                ) from error
            other = None
        different = unlike(first, other) if other is not None else ""
        if other is not None and not different:
            network = other
        elif not declared:
            raise ModelError(
                f"it does one thing to an image of {first.program.image[1]} and another to one of {wanted}: {different}. So what it does "
                "to a tile says nothing of the whole."
            )
    return replace(network, origin=_reference(model, first, output).origin)


def _first(model: OnnxModel, output: int) -> Network:
    """The network as it is declared; with the least extents that it takes where those are open.

    Raises:
        ModelError: It takes none.
    """
    refused: ModelError | None = None
    for n in EXTENTS:
        shape = (1, *(m or n for m in model.sizes[1:]))
        try:
            return lowered(model, shape, output)
        except ModelError as error:
            if str(error) == str(refused):  # other extents are no help
                break
            refused = refused or error
        if all(model.sizes[2:]):
            break
    raise refused or ModelError("it takes no extents.")


def _with_tile(first: Network) -> tuple[int, ...]:
    """Batch, channels and extents of an image that holds a block of one stride with its halo, if that is no large one."""
    graph, shape = first.graph, first.program.image[1]
    if graph.is_padded:
        least = per_axis(lambda r, s: round_up(2 * round_up(r, s) + 3 * s, s), receptive_radius(graph), graph.stride)
        solid = whole_window(graph, triple(least))
    else:
        solid = whole_window(graph, graph.stride)
    extents = solid[3 - first.ndim :]
    widest = max(node.channels for node in graph.nodes)
    if prod(extents) * widest > LARGEST_PROOF or extents == shape[2:]:
        step = graph.stride[3 - first.ndim :]
        extents = tuple(n + s for n, s in zip(shape[2:], step, strict=True))
    return (*shape[:2], *extents)


def _reference(model: OnnxModel, first: Network, output: int) -> Network:
    """The network at the smallest extents at which it is the same, for numpy to run.

    Raises:
        ModelError: There are none for which numpy is not too slow.
    """
    for times in (2, 4, 8):
        least = triple(max(times * s, 4 * times if n > 1 else 1) for s, n in _axes(first))
        shape = (*first.program.image[1][:2], *whole_window(first.graph, least)[3 - first.ndim :])
        try:
            small = lowered(model, shape, output)
        except ModelError:
            continue
        if not unlike(small, first):
            return small
    extents = first.program.image[1][2:]
    if _arithmetic(first.graph, extents) > MOST_ARITHMETIC:
        raise ModelError(
            f"it is the same network at no extents smaller than {extents}, and there it is too large to be compared with ONNX's own "
            "operators: export it with open extents (dynamic axes)."
        )
    return first


def _axes(network: Network) -> list[tuple[int, int]]:
    """Stride and extent along z, y, x."""
    extents = [1] * (3 - network.ndim) + list(network.program.image[1][2:])
    return list(zip(network.graph.stride, extents, strict=True))


def _arithmetic(graph: Graph, extents: Sequence[int]) -> float:
    """Multiplications with addition of one pass, about."""
    voxels = float(prod(extents))
    return sum(
        node.operation.multiply_adds(graph.in_channels(node), node.channels) * voxels / prod(graph.scales[node.name])
        for node in graph.nodes
    )

"""Which tensors each node of an imported network has."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.core.network.graph import Graph, Node
from pipeline.core.network.operations import Activation, Affine, Constant, Convolution, TransposedConvolution, WholeNorm


@dataclass(frozen=True)
class Expected:
    """A tensor of a node.

    Args:
        shapes: That it may have.
        may_miss: Whether there may be none.
    """

    shapes: tuple[tuple[int, ...], ...]
    may_miss: bool = False


def expected(graph: Graph, node: Node, ndim: int) -> tuple[Expected, ...]:
    """Tensors of a node, in the order in which its operation takes them.

    Args:
        graph: The network.
        node: Of it.
        ndim: Spatial axes of its kernels, 2 or 3.
    """
    operation, channels, given = node.operation, node.channels, graph.in_channels(node)
    bias = Expected(((channels,),), may_miss=True)
    if isinstance(operation, Convolution):
        return Expected(((channels, given // operation.groups, *operation.kernel[3 - ndim :]),)), bias
    if isinstance(operation, TransposedConvolution):
        return Expected(((given, channels // operation.groups, *operation.taps[3 - ndim :]),)), bias
    if isinstance(operation, Affine):
        return Expected(((channels,),)), Expected(((channels,),))
    if isinstance(operation, Constant):
        return (Expected(((channels,),)),)
    if isinstance(operation, WholeNorm):
        return Expected(((channels,),), may_miss=True), bias
    if isinstance(operation, Activation) and operation.function == "prelu":
        return (Expected(((1,), (channels,))),)
    return ()

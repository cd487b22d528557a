"""A network whose norms over the whole input have fixed statistics: what is left is local, and has the same voxels, reach and stride.

conv - WholeNorm - relu -+- GlobalPool - conv 1x1 - sigmoid -+- mul        conv - Affine - relu - Affine
                         +-----------------------------------+
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from pipeline.core.network.graph import Graph, Node
from pipeline.core.network.operations import Affine, Combination, Concatenation, Constant, GlobalPool, WholeNorm

SCALES = frozenset(("add", "sub", "mul", "div"))
"""Combinations with one value a channel that are affine maps."""


@lru_cache(maxsize=64)
def local(graph: Graph) -> Graph:
    """The graph with fixed statistics; itself, where nothing looks at its whole input. Structure alone: no number is needed.

    A norm becomes an affine map of the same name. What is one value a channel is left out: a combination with it becomes an affine map
    (of its own name), and a concatenation reads a constant (`NODE.INPUT`) in its place.

    Raises:
        ValueError: Something else reads one value a channel beside a map.
    """
    if graph.is_local:
        return graph
    return Graph(read_by(fixed_nodes(graph), [graph.output.name]))


def read_by(nodes: Sequence[Node], names: Iterable[str]) -> tuple[Node, ...]:
    """Some nodes and all that they read of others, the input too; in order."""
    read, kept = set(names), list[Node]()
    for node in reversed(nodes):
        if node.name in read or not node.inputs:
            read.update(node.inputs)
            kept.append(node)
    return tuple(reversed(kept))


def fixed_nodes(graph: Graph) -> list[Node]:
    """The nodes of `local`, and those of maps that nothing but a pool reads.

    Raises:
        ValueError: As of `local`.
    """
    nodes: list[Node] = []
    for node in graph.nodes:
        if graph.is_shrunk(2, node.name):
            continue
        if isinstance(node.operation, WholeNorm):
            nodes.append(replace(node, operation=Affine()))
            continue
        maps = [name for name in node.inputs if not graph.is_shrunk(2, name)]
        if len(maps) == len(node.inputs):
            nodes.append(node)
        elif isinstance(node.operation, Combination) and len(node.inputs) == 2:
            nodes.append(replace(node, operation=Affine(), inputs=tuple(maps)))
        elif isinstance(node.operation, Concatenation):
            constants = {
                name: Node(f"{node.name}.{name}", Constant(), (maps[0],), graph.node(name).channels)
                for name in dict.fromkeys(node.inputs)
                if name not in maps
            }
            nodes += constants.values()
            nodes.append(replace(node, inputs=tuple(constants[n].name if n in constants else n for n in node.inputs)))
        else:
            raise ValueError(
                f"Node '{node.name}' reads one value a channel beside a map, and is no sum, product or concatenation."
            )
    return nodes


def whole_input(graph: Graph) -> str:
    """Which nodes look at their whole input, in words."""
    first, *others = graph.whole
    operation = graph.node(first).operation
    if isinstance(operation, GlobalPool):
        does = f"takes the {'mean' if operation.kind == 'mean' else 'largest value'} of its whole input"
    else:
        does = "normalises by mean and variance of its whole input"
    return f"'{first}' ({type(operation).__name__}) {does}" + (f", and {len(others)} more like it" if others else "")

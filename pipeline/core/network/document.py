"""A graph as a document: what a plan and a network's file hold of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from math import inf
from typing import Any

from pipeline.core.network import operations
from pipeline.core.network.graph import Graph, Node
from pipeline.core.network.operations import Operation

MOST_NODES = 100_000
"""That a graph has; the largest networks of practice have some two thousand."""

LARGEST = 2**16
"""Of what an operation is given in voxels or channels."""

KINDS: dict[str, type[Operation]] = {
    kind.__name__: kind
    for kind in vars(operations).values()
    if isinstance(kind, type) and issubclass(kind, Operation) and kind not in (Operation, operations.Pool)
}
"""Operations by the names that documents have."""


def document(graph: Graph) -> list[list[object]]:
    """A graph as JSON takes it: by node its name, operation, what that is given, the nodes that it reads, and channels."""
    return [
        [node.name, type(node.operation).__name__, arguments(node.operation), list(node.inputs), node.channels]
        for node in graph.nodes
    ]


def arguments(operation: Operation) -> dict[str, object]:
    """What an operation is given; what is as always is left out, so that a new argument changes no digest."""
    defaults = {field.name: field.default for field in fields(operation)}
    return {key: value for key, value in asdict(operation).items() if value != defaults[key]}


def digest(graph: Graph) -> str:
    """SHA-256 of all that a graph is; equal digests mean the same function of the same weights, on every machine."""
    return hashlib.sha256(json.dumps(document(graph), sort_keys=True).encode()).hexdigest()


def graph_of(content: object) -> Graph:
    """The graph that `document` wrote.

    Raises:
        ValueError: It is no such document, or no graph.
    """
    if not isinstance(content, Sequence) or isinstance(content, str) or not 0 < len(content) <= MOST_NODES:
        raise ValueError("a graph is a list of nodes")
    return Graph(tuple(_node(entry) for entry in content))


def _node(entry: object) -> Node:
    if not isinstance(entry, Sequence) or len(entry) != 5:
        raise ValueError(
            f"a node has a name, an operation, what that is given, inputs and channels, not {str(entry)[:80]}"
        )
    name, kind, given, inputs, channels = entry
    if kind not in KINDS or not isinstance(given, Mapping):
        raise ValueError(f"no operation '{str(kind)[:80]}' is known")
    if not isinstance(name, str) or not isinstance(channels, int) or not all(isinstance(one, str) for one in inputs):
        raise ValueError(f"node '{str(name)[:80]}' has inputs {str(inputs)[:80]} and {str(channels)[:20]} channels")
    try:
        operation = KINDS[kind](**{str(key): _checked(str(key), value) for key, value in given.items()})
    except TypeError as error:
        raise ValueError(f"operation '{kind}' of node '{name}' is given {str(given)[:200]}") from error
    return Node(name, operation, tuple(inputs), channels)


POSITIVE = frozenset(("kernel", "stride", "dilation", "factor"))
"""Arguments along z, y, x that are one at least."""

WORDS: dict[str, frozenset[str]] = {
    "function": operations.ACTIVATIONS | frozenset(("add", "sub", "mul", "div", "maximum", "minimum")),
    "mode": frozenset(("nearest", "linear", "zero", "replicate", "reflect")),
    "kind": frozenset(("mean", "max")),
}
"""Arguments that are words, and which."""


def _checked(key: str, value: object) -> Any:  # noqa: ANN401 - what a constructor takes
    """An argument, as its operation takes it.

    Raises:
        ValueError: It is none that an operation has.
    """
    if key in WORDS:
        good = value in WORDS[key] if isinstance(value, str) else False
        checked: Any = value
    elif key == "values":
        checked = tuple(value) if isinstance(value, (list, tuple)) else None
        good = checked is not None and all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in checked)
    elif key == "epsilon":
        checked, good = value, isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < inf
    elif key in ("drops", "alike", "planar", "counts"):
        checked, good = value, isinstance(value, bool)
    elif key in ("groups", "start", "stop"):
        checked, good = value, _is_extent(value, int(key != "start"))
    else:
        checked = tuple(value) if isinstance(value, (list, tuple)) else None
        least = 1 if key in POSITIVE else -LARGEST
        good = checked is not None and len(checked) == 3 and all(_is_extent(n, least) for n in checked)
    if not good:
        raise ValueError(f"an operation is given {key} {str(value)[:80]}")
    return checked


def _is_extent(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST

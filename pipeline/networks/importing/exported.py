"""A program of `torch.export`, as it is in memory, to a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree

from pipeline.networks.importing.lowering import Call, Lowering, Name, Network


def graph_of(program: ExportedProgram, *, output: int = 0) -> Network:
    """The graph of a program, of one image in, (1, C, Z, Y, X) or (1, C, Y, X).

    Args:
        program: Exported before decompositions.
        output: Which of its outputs is predicted, where it has several.

    Raises:
        ModelError: It has a call without a rule, or one that looks at its whole input; says which.
    """
    lowering, weights = Lowering(), _weights(program)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in weights:
            lowering.weight(node.name, weights[node.name])
        elif node.op == "placeholder":
            lowering.input(node.name, _shape(node.meta.get("val")))
        elif node.op == "call_function":
            lowering.call(_call(node))
    given = next(node for node in program.graph.nodes if node.op == "output").args
    return lowering.finish([leaf.name for leaf in _pytree.tree_leaves(given) if isinstance(leaf, fx.Node)], output)


def _weights(program: ExportedProgram) -> dict[str, Tensor]:
    signature, states = program.graph_signature, {**program.constants, **program.state_dict}
    named = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    return {key: states[name] for key, name in named.items()}


def _call(node: fx.Node) -> Call:
    schema = getattr(node.target, "_schema", None)
    names = [a.name for a in schema.arguments] if schema else [str(i) for i in range(len(node.args))]
    arguments = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    named = _pytree.tree_map(_name, arguments, is_leaf=lambda leaf: isinstance(leaf, fx.Node))
    if not callable(node.target):
        raise TypeError(f"'{node.name}' calls {node.target}, which is no function.")
    value = node.meta.get("val")
    return Call(
        node.name, node.target, named, {node.name: _shape(value[0] if isinstance(value, (tuple, list)) else value)}
    )


def _name(leaf: Any) -> Any:
    return Name(leaf.name) if isinstance(leaf, fx.Node) else leaf


def _shape(value: object) -> tuple[int, ...]:
    return tuple(int(n) for n in value.shape) if isinstance(value, torch.Tensor) else ()

"""What a package does to values before and after its network: a rule of the run, an activation, or nodes of the graph.

A statistic is of the whole volume, where other software takes it of each tile. So a rule that measures is the run's normalisation;
what is the same function of every voxel stays exact wherever it stands, and becomes nodes. The rest is refused, by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.core.network.graph import Graph, Node
from pipeline.core.network.operations import Activation, Affine, Operation
from pipeline.core.normalization import Normalization
from pipeline.errors import ModelError
from pipeline.networks.importing.lowering import Network

FLOATS = ("float32", "float64")
"""Types between which values are the same but for rounding."""

INTEGERS = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
"""Types that hold 0 and 1."""


ENDLESS = 2.0**127
"""Where nothing is clipped: a value that every type of the network holds, and JSON too."""


@dataclass(frozen=True)
class Step:
    """A step as a package declares it.

    Args:
        name: Of the specification, such as `scale_range`.
        arguments: What it is given, axes by the names `batch`, `channel`, `z`, `y`, `x`.
    """

    name: str
    arguments: Mapping[str, Any]

    def values(self, *keys: str) -> tuple[tuple[float, ...], ...]:
        """Numbers, one for all channels or one each; each of the keys has as many."""
        found = [self.arguments[key] for key in keys]
        lists = [tuple(map(float, v)) if isinstance(v, Sequence) else (float(v),) for v in found]
        most = max(map(len, lists))
        return tuple(v * most if len(v) == 1 else v for v in lists)


@dataclass(frozen=True)
class Tensors:
    """What a step is applied to.

    Args:
        ndim: Spatial axes.
        channels: How many.
    """

    ndim: int
    channels: int

    @property
    def space(self) -> tuple[str, ...]:
        return ("z", "y", "x")[3 - self.ndim :]


@dataclass(frozen=True)
class Pointwise:
    """A step as a node: an operation, and its weights."""

    operation: Operation
    weights: tuple[Tensor, ...] = ()


def before(steps: Sequence[Step], given: Tensors) -> tuple[Normalization, list[Pointwise]]:
    """The rule of the run, and what follows it.

    Raises:
        ModelError: A step has no equal here; says which.
    """
    rule, nodes = Normalization(), list[Pointwise]()
    for number, step in enumerate(steps):
        if step.name == "ensure_dtype":
            _check_dtype(step, FLOATS if number else (*FLOATS, *INTEGERS))  # at first, of values as they are stored
        elif measured := _measured(step, given):
            if nodes or rule.scale < 0 or rule.mode not in ("none", "fixed"):
                raise _refused(
                    step, "it measures what another step has changed, and a run measures the volume as it is stored"
                )
            rule = measured
        elif (line := _line(step)) and len(line[0]) == 1 and not nodes and rule.mode in ("none", "fixed"):
            rule = _composed(rule, *(float(v[0]) for v in line))
        else:
            nodes += _pointwise(step, given)
    return rule, nodes


def after(steps: Sequence[Step], given: Tensors) -> tuple[str, list[Pointwise]]:
    """The activation (`none`, `sigmoid` or `softmax`), and nodes for what is more than that.

    Raises:
        ModelError: A step has no equal here; says which.
    """
    kept, binary = list[Step](), False
    for step in steps:
        if step.name == "ensure_dtype":
            _check_dtype(step, (*FLOATS, *INTEGERS) if binary else FLOATS)
            continue
        if _measured(step, given):
            raise _refused(step, "it measures what the network gives, which is known only when all tiles are done")
        binary = step.name == "binarize"
        kept.append(step)
    if [step.name for step in kept] in (["sigmoid"], ["softmax"]):
        _pointwise(kept[0], given)  # refuses an axis that is none of channels
        return kept[0].name, []
    return "none", [node for step in kept for node in _pointwise(step, given)]


def with_nodes(network: Network, first: Sequence[Pointwise], last: Sequence[Pointwise]) -> Network:
    """A network with nodes between its input and all that reads it, and nodes after its output."""
    graph, weights = network.graph, dict(network.weights)
    source = graph.input.name
    begin = _chain(source, graph.input.channels, "preprocessing", first)
    end = _chain(graph.output.name, graph.output.channels, "postprocessing", last)
    moved = begin[-1].name if begin else source
    readers = [
        replace(node, inputs=tuple(moved if name == source else name for name in node.inputs))
        for node in graph.nodes[1:]
    ]
    if len(graph.nodes) == 1:
        raise ModelError("The network is an image and nothing else.")
    for nodes, steps in ((begin, first), (end, last)):
        weights |= {node.name: step.weights for node, step in zip(nodes, steps, strict=True) if step.weights}
    return replace(network, graph=Graph((graph.input, *begin, *readers, *end)), weights=weights)


def _chain(source: str, channels: int, name: str, steps: Sequence[Pointwise]) -> list[Node]:
    names = [source, *(f"{name}.{number}" for number in range(len(steps)))]
    return [Node(names[n + 1], step.operation, (names[n],), channels) for n, step in enumerate(steps)]


def _measured(step: Step, given: Tensors) -> Normalization | None:
    """The rule that a step measures; None where it measures nothing."""
    a = step.arguments
    if step.name == "zero_mean_unit_variance" and a.get("mode") != "fixed":
        _check_joint(step, given)
        return Normalization("zscore")
    if step.name == "scale_range":
        if a.get("reference_tensor"):
            raise _refused(step, f"it measures another tensor, '{a['reference_tensor']}'")
        _check_joint(step, given)
        low, high = float(a.get("min_percentile", 0)), float(a.get("max_percentile", 100))
        return Normalization("percentile", low=low, high=high)
    if step.name == "clip" and (a.get("min_percentile") is not None or a.get("max_percentile") is not None):
        raise _refused(step, "it clips at percentiles")
    return None


def _check_joint(step: Step, given: Tensors) -> None:
    """All voxels and all channels together, as a run measures.

    Raises:
        ModelError: They are measured apart.
    """
    axes = step.arguments.get("axes")
    together = set(given.space) | {"channel"} if axes is None else set(axes)
    apart = [axis for axis in given.space if axis not in together]
    if given.channels > 1 and "channel" not in together:
        apart.insert(0, "channel")
    if apart:
        raise _refused(
            step,
            f"it measures each {' and '.join(apart)} by itself, and a run measures the whole volume, all channels together",
        )


def _line(step: Step) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Factors and summands of a step that is a line; None where it is none."""
    if step.name == "scale_linear":
        gains, offsets = step.values("gain", "offset")
        return gains, offsets
    if (
        step.name in ("fixed_zero_mean_unit_variance", "zero_mean_unit_variance")
        and step.arguments.get("mean") is not None
    ):
        means, deviations = step.values("mean", "std")
        return tuple(1 / d for d in deviations), tuple(-m / d for m, d in zip(means, deviations, strict=True))
    return None


def _composed(rule: Normalization, factor: float, summand: float) -> Normalization:
    """`rule`, and then a line: (value - offset) * scale again."""
    if factor == 0:
        raise ModelError("The package multiplies every value with 0 (scale_linear).")
    scale = rule.scale * factor
    return Normalization("fixed", rule.offset - summand / scale, scale)


def _pointwise(step: Step, given: Tensors) -> list[Pointwise]:
    """A step as nodes.

    Raises:
        ModelError: It is no function of each voxel alone.
    """
    a = step.arguments
    if step.name == "sigmoid":
        return [Pointwise(Activation("sigmoid"))]
    if step.name == "softmax":
        if a.get("axis", "channel") != "channel":
            raise _refused(step, f"it goes over axis '{a['axis']}', not over channels")
        return [Pointwise(Activation("softmax"))]
    if step.name == "clip":
        low, high = (a.get(key) for key in ("min", "max"))
        ends = (-ENDLESS if low is None else float(low), ENDLESS if high is None else float(high))
        return [Pointwise(Activation("clamp", ends))]
    if line := _line(step):
        return [Pointwise(Affine(), _per_channel(step, given, *line))]
    if step.name == "binarize":
        (thresholds,) = step.values("threshold")
        if len(thresholds) == 1:
            return [Pointwise(Activation("binarize", thresholds))]
        ones = (1.0,) * len(thresholds)
        shift = _per_channel(step, given, ones, tuple(-t for t in thresholds))
        return [Pointwise(Affine(), shift), Pointwise(Activation("binarize", (0.0,)))]
    raise _refused(step, "it has no equal here")


def _per_channel(step: Step, given: Tensors, *numbers: tuple[float, ...]) -> tuple[Tensor, ...]:
    """Numbers of each channel.

    Raises:
        ModelError: They are of another axis, or of more channels.
    """
    axis = step.arguments.get("axis") or "channel"
    several = len(numbers[0]) > 1
    if several and (axis != "channel" or len(numbers[0]) != given.channels):
        raise _refused(
            step, f"it has {len(numbers[0])} numbers along axis '{axis}', and there are {given.channels} channels"
        )
    tensors = (torch.tensor(values, dtype=torch.float64) for values in numbers)
    return tuple(tensor.expand(given.channels).clone() for tensor in tensors)


def _check_dtype(step: Step, allowed: Sequence[str]) -> None:
    if step.arguments.get("dtype") not in allowed:
        raise _refused(step, f"it makes values {step.arguments.get('dtype')}, which cuts them")


def _refused(step: Step, why: str) -> ModelError:
    return ModelError(f"The package declares the step '{step.name}', which cannot be done here: {why}.")

"""From calls of torch's operations to a graph: each becomes one node, or none, or is refused by name.

Calls are those before decompositions: a batch norm is one. Coordinates of the graph are torch's own: what a node writes begins
at 0, whatever was cropped or padded before. Calls that touch weights alone are done at once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from math import prod
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree

from pipeline.core.geometry.box import Span, Triple, triple
from pipeline.core.network.graph import Graph, Node
from pipeline.core.network.need import needs
from pipeline.core.network.operations import (
    Activation,
    Affine,
    AlignedResize,
    AveragePool,
    ChannelSlice,
    Combination,
    Concatenation,
    Convolution,
    Crop,
    GlobalPool,
    Input,
    MaxPool,
    Operation,
    Pad,
    Resize,
    Shift,
    TransposedConvolution,
    WholeNorm,
)
from pipeline.core.network.receptive import lost_margin
from pipeline.errors import ModelError

DROPOUT = frozenset(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout"))
"""Calls that do nothing where a network only predicts."""

SAME = DROPOUT | frozenset(("alias", "detach", "identity", "lift_fresh"))
"""Calls that give the very map that they are given."""

COPIES = frozenset(("clone", "_to_copy", "to", "contiguous", "lift_fresh_copy"))
"""Calls that give its values: some of them a copy, some the map itself where it is as asked for already."""

OF_WEIGHTS = (
    SAME
    | COPIES
    | frozenset(
        [
            "add",
            "sub",
            "rsub",
            "addcmul",
            "addcdiv",
            "lerp",
            "mul",
            "div",
            "neg",
            "reciprocal",
            "sqrt",
            "rsqrt",
            "exp",
            "pow",
            "abs",
            "clamp",
            "view",
            "reshape",
            "_unsafe_view",
            "permute",
            "transpose",
            "t",
            "unsqueeze",
            "squeeze",
            "expand",
            "flatten",
            "slice",
            "select",
            "cat",
            "stack",
            "full",
            "full_like",
            "ones",
            "ones_like",
            "zeros",
            "zeros_like",
            "arange",
            "scalar_tensor",
            "repeat",
            "var_mean",
            "mean",
            "sum",
            "native_batch_norm",
            "softmax",
            "sigmoid",
            "relu",
            "getitem",
            "lift_fresh_copy",
        ]
    )
)
"""Calls that are done at once where they touch no image."""

MOST_VALUES = 2**28
"""That such a call gives."""

FUNCTIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "relu": ("relu", ()),
    "leaky_relu": ("leaky_relu", ("negative_slope",)),
    "elu": ("elu", ("alpha", "scale", "input_scale")),
    "silu": ("silu", ()),
    "mish": ("mish", ()),
    "sigmoid": ("sigmoid", ()),
    "tanh": ("tanh", ()),
    "selu": ("selu", ()),
    "hardswish": ("hardswish", ()),
    "hardsigmoid": ("hardsigmoid", ()),
    "hardtanh": ("hardtanh", ("min_val", "max_val")),
    "relu6": ("relu6", ()),
    "softplus": ("softplus", ("beta", "threshold")),
    "exp": ("exp", ()),
    "neg": ("neg", ()),
    "abs": ("abs", ()),
    "sqrt": ("sqrt", ()),
    "erf": ("erf", ()),
    "log": ("log", ()),
    "reciprocal": ("reciprocal", ()),
}
"""By call: the activation, and which of its arguments are its values."""

COMBINATIONS: dict[str, Literal["add", "sub", "mul", "div", "maximum", "minimum"]] = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "div": "div",
    "maximum": "maximum",
    "minimum": "minimum",
}
"""Calls that join two maps value by value."""


PADDINGS: dict[str, Literal["zero", "replicate", "reflect"]] = {
    "constant": "zero",
    "replicate": "replicate",
    "replication": "replicate",
    "reflect": "reflect",
    "reflection": "reflect",
}
"""By torch's name of what is put beyond the ends."""


@dataclass(frozen=True)
class Name:
    """What a call or an input is called, among the arguments of a later one."""

    name: str


@dataclass(frozen=True)
class Call:
    """A call of the network.

    Args:
        name: Its own.
        target: Of `torch.ops.aten`; or a function of Python's, such as `getitem`.
        arguments: By the schema's names, as far as they are given; what other calls gave by `Name`.
        shapes: Of each tensor that it gives, by the name that it has from there on.
    """

    name: str
    target: Callable[..., Any]
    arguments: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def word(self) -> str:
        """What is called, without overload, namespace and the underscore of calls in place."""
        schema = getattr(self.target, "_schema", None)
        name: str = schema.name.split("::")[1] if schema else getattr(self.target, "__name__", str(self.target))
        return name.rstrip("_")

    @property
    def is_in_place(self) -> bool:
        schema = getattr(self.target, "_schema", None)
        return schema is not None and schema.name.endswith("_")


@dataclass(frozen=True)
class Program:
    """Calls as they were, to be run as they are: what a graph is compared with.

    Args:
        image: Name and shape of its input.
        weights: By name.
        calls: In order.
        output: Name of what is predicted.
    """

    image: tuple[str, tuple[int, ...]]
    weights: Mapping[str, Tensor]
    calls: tuple[Call, ...]
    output: str

    def run(self, image: Tensor) -> Tensor:
        """What it gives, in the type of the image; of the very shape that it was exported with."""
        output: Tensor = self.run_by(as_it_was, image)
        return output

    def run_by(self, do: Callable[[Call, Mapping[str, Any], torch.dtype], Any], image: Tensor) -> Any:
        """What comes of an image where something else is done at each call.

        Args:
            do: What a call gives, of its arguments and the type of real numbers; of several values, as many.
            image: Of the spatial extents that the program was exported with.
        """
        known: dict[str, Any] = {name: _typed(w, image.dtype) for name, w in self.weights.items()}
        known[self.image[0]] = image.clone()
        last = {leaf.name: n for n, call in enumerate(self.calls) for leaf in _names(call)}
        for number, call in enumerate(self.calls):
            arguments = _pytree.tree_map(
                partial(_looked_up, known), dict(call.arguments), is_leaf=lambda leaf: isinstance(leaf, Name)
            )
            result = do(call, arguments, image.dtype)
            if call.is_in_place:  # whoever reads what it was given from here on, reads what it gave
                old = next(iter(arguments.values()))
                known |= {name: result for name, value in known.items() if value is old}
            several = isinstance(result, (tuple, list)) and len(call.shapes) > 1
            known |= dict(zip(call.shapes, result, strict=False)) if several else {call.name: result}
            for name in {leaf.name for leaf in _names(call)} - {self.output}:
                if last[name] == number:
                    del known[name]
        return known[self.output]


def _names(call: Call) -> list[Name]:
    return [leaf for leaf in _leaves(dict(call.arguments)) if isinstance(leaf, Name)]


def as_it_was(call: Call, arguments: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A call, but for the type of values, which is the image's: changes of type are copies, and nothing is asserted."""
    if call.word.startswith("_assert"):
        return None
    given = {key: _real(value, dtype) for key, value in arguments.items()}
    if call.word in COPIES:
        copy: Tensor = next(iter(given.values())).clone()
        return copy.to(dtype) if given.get("dtype") == dtype else copy
    return _done(call.target, given)


def _real(value: Any, dtype: torch.dtype) -> Any:
    """An argument; where it asks for a type of real numbers, for that of the image."""
    return dtype if isinstance(value, torch.dtype) and value.is_floating_point else value


def _precise(value: Any) -> Any:
    return _typed(value, torch.float64) if isinstance(value, Tensor) else _real(value, torch.float64)


def _looked_up(known: Mapping[str, Any], leaf: Any) -> Any:
    return known[leaf.name] if isinstance(leaf, Name) else leaf


def _typed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _done(target: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """A call, by position as far as that goes: torch's own operations have arguments called `self`."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return target(*arguments.values())
    known = [a.name for a in schema.arguments if not a.kwarg_only]
    given = list(takewhile(lambda name: name in arguments, known))
    named = {key: value for key, value in arguments.items() if key not in given}
    return target(*(arguments[name] for name in given), **named)


class Origin(Protocol):
    """What a network's file means, run by whoever defined its format."""

    @property
    def image(self) -> tuple[str, tuple[int, ...]]:
        """Name and shape of its input."""

    def run(self, image: Tensor) -> Tensor:
        """What it gives for an image of that shape, float64."""


@dataclass(frozen=True)
class Network:
    """A network that was imported.

    Args:
        graph: What it does; begins at voxel 0 of what one pass is given.
        weights: By node: kernel and bias of a convolution; factor and summand of an affine map; slope of a PReLU.
        ndim: Spatial axes that it has, 2 or 3.
        program: What it was imported from.
        origin: What the file itself means, by somebody else's arithmetic; None where that is the program.
    """

    graph: Graph
    weights: dict[str, tuple[Tensor, ...]]
    ndim: int
    program: Program
    origin: Origin | None = None


def unlike(one: Network, other: Network) -> str:
    """The first that differs of a network that was exported at two sizes, in words; nothing where all is alike."""
    for a, b in zip(one.graph.nodes, other.graph.nodes, strict=False):
        if a != b:
            return f"'{a.name}' is {a.operation}, and then {b.operation}"[:400]
        pairs = [*zip(one.weights.get(a.name, ()), other.weights.get(a.name, ()), strict=False)]
        if not all(torch.equal(w, v) for w, v in pairs):
            return f"'{a.name}' has constants that depend on it"
    return "" if one.graph == other.graph else "it has more operations there"


@dataclass(frozen=True)
class _Map:
    """What a call gave that lies in space.

    Args:
        node: Who writes it.
        extents: Along its own axes, at the size of this export.
        channels: Of it.
        is_view: Whether it shares the memory of another, of which it is a part.
        is_shrunk: Whether it is one value a channel, of a whole map.
    """

    node: str
    extents: tuple[int, ...]
    channels: int
    is_view: bool = False
    is_shrunk: bool = False


@dataclass(frozen=True)
class _Call:
    """A call whose arguments are known.

    Args:
        name: Its own.
        call: Name of what is called, without overload and trailing underscore.
        arguments: By the schema's names, defaults included; maps as `_Map`, weights as tensors.
        shape: Of the first tensor that it gives.
    """

    name: str
    call: str
    arguments: dict[str, Any]
    shape: tuple[int, ...]

    @property
    def maps(self) -> list[_Map]:
        """Maps among its arguments, in order."""
        return [leaf for leaf in _leaves(list(self.arguments.values())) if isinstance(leaf, _Map)]


def _leaves(tree: Any) -> list[Any]:
    return _pytree.tree_leaves(tree, is_leaf=lambda leaf: isinstance(leaf, (_Map, Name)))


class Lowering:
    """A network on its way to a graph: its input, its weights, its calls in order, and what it gives."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.weights: dict[str, tuple[Tensor, ...]] = {}
        self.ndim = 0
        self._image = "", tuple[int, ...]()
        self._tensors: dict[str, Tensor] = {}
        self._calls: list[Call] = []
        self._known: dict[str, Any] = {}

    def weight(self, name: str, tensor: Tensor) -> None:
        """A tensor that the network brings."""
        self._known[name] = self._tensors[name] = tensor

    def input(self, name: str, shape: Sequence[int]) -> None:
        """The image that it is given.

        Raises:
            ModelError: There are several, or it is no image.
        """
        if self.nodes:
            raise ModelError(f"The network takes '{name}' beside its image; expected one image and nothing else.")
        if len(shape) not in (4, 5):
            raise ModelError(
                f"The network takes an input of {len(shape)} axes; expected (1, C, Y, X) or (1, C, Z, Y, X)."
            )
        self.ndim, self._image = len(shape) - 2, (name, tuple(int(n) for n in shape))
        self.nodes.append(Node("input", Input(), (), int(shape[1])))
        self._known[name] = _Map("input", tuple(int(n) for n in shape[2:]), int(shape[1]))

    def call(self, given: Call) -> None:
        """The next call.

        Raises:
            ModelError: It has no rule, or looks at its whole input.
        """
        schema = getattr(given.target, "_schema", None)
        arguments = {a.name: a.default_value for a in schema.arguments if a.has_default_value()} if schema else {}
        arguments |= _pytree.tree_map(self._value, dict(given.arguments), is_leaf=lambda leaf: isinstance(leaf, Name))
        first = next(iter(given.shapes.values()), ())
        self._calls.append(given)
        if given.word == "getitem" and arguments.get("1") != 0:
            return  # whoever reads it is refused: a value that nobody wrote
        call = _Call(given.name, given.word, arguments, tuple(int(n) for n in first))
        result = self._result(call, given)
        for name in [*given.shapes][:1] or [given.name]:
            self._known[name] = result
        if given.is_in_place and isinstance(result, _Map):
            self._overwrite(call, result)

    def _value(self, leaf: Any) -> Any:
        if not isinstance(leaf, Name):
            return leaf
        if leaf.name not in self._known:
            raise ModelError(
                f"The network uses '{leaf.name}', which is no first output of a call that has a rule here."
            )
        return self._known[leaf.name]

    def _result(self, call: _Call, given: Call) -> Any:
        maps = call.maps
        if not maps:
            return None if call.call.startswith("_assert") else _of_weights(call, given)
        if call.call == "getitem":
            return maps[0]
        if call.call in DROPOUT and (call.arguments.get("train") or call.arguments.get("training")):
            raise _refused(call, "it leaves values out: the network was exported for training. Call its eval() before")
        if call.call in SAME or call.call.startswith("_assert"):
            return maps[0]
        if call.call in COPIES:  # which of them are copies depends on what they are asked for
            return replace(maps[0], is_view=True)
        rules = RULES
        if all(one.is_shrunk for one in maps):
            rules = RULES_OF_VALUES
        elif any(one.is_shrunk for one in maps):
            rules = RULES_OF_BOTH
        if call.call not in rules:
            raise _refused(
                call, "it has no rule here" if rules is RULES else "it has no rule here with one value a channel"
            )
        return rules[call.call](self, call)

    def _overwrite(self, call: _Call, result: _Map) -> None:
        """A call in place: whoever reads what it was given from here on, reads what it gave."""
        old = call.maps[0]
        if old.is_view:
            raise _refused(call, "it changes a part of what others read")
        for name, value in self._known.items():
            if value is old:
                self._known[name] = result

    def finish(self, outputs: Sequence[str], output: int = 0) -> Network:
        """The network, of which one output is predicted.

        Raises:
            ModelError: It does not give so many maps.
        """
        maps = [(name, value) for name, value in ((n, self._known.get(n)) for n in outputs) if isinstance(value, _Map)]
        if not output < len(maps):
            raise ModelError(f"The network gives {len(maps)} maps, and output {output} was asked for.")
        name, predicted = maps[output]
        if predicted.is_shrunk:
            raise ModelError(
                f"The network gives {predicted.channels} values for its whole image ('{predicted.node}'); expected one for each voxel."
            )
        wanted, kept = {predicted.node}, []
        for node in reversed(self.nodes):
            if node.name in wanted or node is self.nodes[0]:
                wanted.update(node.inputs)
                kept.append(node)
        graph = _centred(Graph(tuple(reversed(kept))))
        _check_whole(graph, self._image[1][2:])
        program = Program(self._image, self._tensors, tuple(self._calls), name)
        weights = {n.name: self.weights[n.name] for n in graph.nodes if n.name in self.weights}
        return Network(graph, weights, self.ndim, program)

    def add(
        self,
        call: _Call,
        operation: Operation,
        maps: Sequence[_Map],
        weights: Sequence[Tensor | None] = (),
        *,
        is_view: bool = False,
    ) -> _Map:
        """A node of a call, and what it gives."""
        channels = int(call.shape[1])
        self.nodes.append(Node(call.name, operation, tuple(one.node for one in maps), channels))
        if weights:
            self.weights[call.name] = tuple(w.detach() for w in weights if w is not None)
        is_shrunk = operation.shrinks(2) or all(one.is_shrunk for one in maps)
        return _Map(call.name, call.shape[2:], channels, is_view, is_shrunk)

    def triple(self, values: Any, one: int) -> Triple:
        """Values along z, y, x of one or `ndim` that torch was given; a 2D network has `one` along z."""
        given = list(values) if isinstance(values, (tuple, list)) else [values]
        given = given * self.ndim if len(given) == 1 else given
        return triple([one] * (3 - self.ndim) + [int(n) for n in given])


def _of_weights(call: _Call, given: Call) -> Any:
    """What a call gives that touches weights alone.

    Raises:
        ModelError: It is none that only computes with what it is given, or asks for too much memory.
    """
    if call.call not in OF_WEIGHTS:
        raise _refused(call, "it touches no image, and has no rule for weights alone")
    asked = [call.shape, *(value for key, value in call.arguments.items() if key in ("size", "repeats") and value)]
    ends = [
        value for key, value in call.arguments.items() if key in ("start", "end") and isinstance(value, (int, float))
    ]
    if any(prod(int(n) for n in sizes) > MOST_VALUES for sizes in asked) or (
        call.call == "arange" and any(abs(end) > MOST_VALUES * abs(call.arguments.get("step", 1)) for end in ends)
    ):
        raise _refused(call, f"it asks for more than {MOST_VALUES:,} values of no image")
    with torch.no_grad():  # in float64, as it is proven
        return _done(given.target, _pytree.tree_map(_precise, call.arguments))


def _check_whole(graph: Graph, extents: Sequence[int]) -> None:
    """Refuse a network whose prediction is not voxel by voxel, or that pads and loses voxels as well.

    Raises:
        ModelError: It is.
    """
    if graph.scales[graph.output.name] != (1, 1, 1):
        raise ModelError(
            f"The network gives one voxel for {graph.scales[graph.output.name]} (z, y, x) of its image; expected one for one."
        )
    shape = [1] * (3 - len(extents)) + list(extents)
    images = (Span(-m, n - m) for n, m in zip(shape, lost_margin(graph), strict=True))
    given = [graph.ends(axis, image)[graph.output.name].extent for axis, image in enumerate(images)]
    if graph.is_padded and given != shape:
        raise ModelError(
            f"The network gives {given} voxels (z, y, x) for {shape}, and pads in between: which of them these are cannot be told."
        )


def _centred(graph: Graph) -> Graph:
    """A graph that pads nothing, so that what it predicts lies in the middle of what it reads: a pass begins before the volume.

    Where it loses an odd number of voxels, one more before: what a pass loses after is never more than its margin, which is as long on both sides.
    """
    if graph.is_padded:
        return graph
    reads = [needs(graph, axis, Span(0, stride), None).input for axis, stride in enumerate(graph.stride)]
    margins = triple(
        -(-(span.extent - stride) // 2) + span.start for span, stride in zip(reads, graph.stride, strict=True)
    )
    if not any(margins):
        return graph
    first, *others = graph.nodes
    placed = [replace(n, inputs=tuple("placed" if name == first.name else name for name in n.inputs)) for n in others]
    return Graph((first, Node("placed", Shift(margins), (first.name,), first.channels), *placed))


def _refused(call: _Call, why: str) -> ModelError:
    return ModelError(f"The network cannot be imported: '{call.name}' calls {call.call}, and {why}.")


# --- rules --------------------------------------------------------------------------------------------------------------


def _convolution(to: Lowering, call: _Call) -> _Map:
    a, (x, *_) = call.arguments, call.maps
    kernel, bias = a["weight"], a["bias"]
    if a.get("transposed") or "transpose" in call.call:
        return _transposed(to, call)
    taps, dilation = to.triple(kernel.shape[2:], 1), to.triple(a["dilation"], 1)
    padding = a["padding"]
    if isinstance(padding, str):
        reach = [d * (k - 1) if padding == "same" else 0 for k, d in zip(taps, dilation, strict=True)]
        low, high = triple(n // 2 for n in reach), triple(n - n // 2 for n in reach)
        if low != high:
            x = _of_pad(to, call, x, low, high)
            low = (0, 0, 0)
    else:
        low = to.triple(padding, 0)
    operation = Convolution(taps, low, to.triple(a["stride"], 1), dilation, int(a["groups"]), triple(-n for n in low))
    return to.add(call, operation, [x], [kernel, bias])


def _of_pad(
    to: Lowering, call: _Call, x: _Map, low: Triple, high: Triple, mode: Literal["zero", "replicate"] = "zero"
) -> _Map:
    """What a call puts beyond the ends before it does anything else, and not alike at both."""
    name = f"{call.name}.pad"
    to.nodes.append(Node(name, Pad(low, high, mode), (x.node,), x.channels))
    more = [a + b for a, b in zip(low, high, strict=True)][3 - to.ndim :]
    return _Map(name, tuple(n + m for n, m in zip(x.extents, more, strict=True)), x.channels)


def _of_crop(to: Lowering, call: _Call, x: _Map, low: Triple, high: Triple) -> _Map:
    """What a call leaves out before it does anything else."""
    name = f"{call.name}.crop"
    to.nodes.append(Node(name, Crop(low, high), (x.node,), x.channels))
    less = [a + b for a, b in zip(low, high, strict=True)][3 - to.ndim :]
    return _Map(name, tuple(n - m for n, m in zip(x.extents, less, strict=True)), x.channels)


def _transposed(to: Lowering, call: _Call) -> _Map:
    a, (x, *_) = call.arguments, call.maps
    padding = to.triple(a["padding"], 0)
    operation = TransposedConvolution(
        to.triple(a["stride"], 1),
        triple(-n for n in padding),
        to.triple(a["weight"].shape[2:], 1),
        to.triple(a["dilation"], 1),
        padding,
        to.triple(a["output_padding"], 0),
        int(a["groups"]),
    )
    return to.add(call, operation, [x], [a["weight"], a["bias"]])


def _batch_norm(to: Lowering, call: _Call) -> _Map:
    a = call.arguments
    mean, variance = a["running_mean"], a["running_var"]
    if mean is None or variance is None:
        return _whole_norm(to, call, call.maps[0].channels, a["eps"])
    if a.get("training"):
        raise _refused(
            call, "it looks at its whole input: the network was exported for training. Call its eval() before"
        )
    factor = 1 / torch.sqrt(variance.double() + a["eps"])
    if a["weight"] is not None:
        factor = factor * a["weight"].double()
    summand = -mean.double() * factor
    if a["bias"] is not None:
        summand = summand + a["bias"].double()
    return to.add(call, Affine(), call.maps, [factor, summand])


def _pool(to: Lowering, call: _Call) -> _Map:
    a = call.arguments
    kernel = to.triple(a["kernel_size"], 1)
    factor = to.triple(a["stride"], 1) if a["stride"] else kernel
    padding, largest = to.triple(a["padding"], 0), call.call.startswith("max")
    if a.get("divisor_override"):
        raise _refused(call, "its mean has a divisor of its own")
    dilation = to.triple(a.get("dilation", 1), 1)
    if a["ceil_mode"]:
        _check_ceil_mode(to, call, kernel, factor, dilation, padding)
    given = factor, triple(-n for n in padding), kernel, dilation, padding, not a["ceil_mode"]
    if largest:
        return to.add(call, MaxPool(*given), call.maps)
    return to.add(call, AveragePool(*given, counts=bool(a["count_include_pad"]) or not any(padding)), call.maps)


def _check_ceil_mode(
    to: Lowering, call: _Call, kernel: Triple, factor: Triple, dilation: Triple, padding: Triple
) -> None:
    """Refuse a pooling whose last group is not whole: at the extents of this export, or at any multiple of its factor, which legal ones are."""
    extents = to.triple(call.maps[0].extents, 1)
    for n, k, f, d, p in zip(extents, kernel, factor, dilation, padding, strict=True):
        over = 2 * p - d * (k - 1) - 1
        if over % f:
            raise _refused(
                call, f"ceil_mode gives it a last group that is not whole, of {k} voxels {f} apart, padded by {p}"
            )
        if (n + over) % f:
            raise _refused(
                call,
                f"ceil_mode gives it a last group that is not whole, of {n} voxels: export the network at extents that are multiples of its stride",
            )


def _resize(to: Lowering, call: _Call) -> _Map:
    (x,), extents = call.maps, call.shape[2:]
    linear = "linear" in call.call
    if "cubic" in call.call:
        raise _refused(call, "cubic interpolation has no rule here")
    more = [int(n == m + 1 and m > 1) for n, m in zip(extents, x.extents, strict=True)]
    if any(more) and not linear and not call.arguments.get("scale_factors"):  # nearest: the first voxel twice
        low = to.triple(more, 0)
        x = _of_pad(to, call, x, low, (0, 0, 0), "replicate")
    if any(n % m for n, m in zip(extents, x.extents, strict=True)):
        raise _refused(call, f"it makes {extents} voxels of {x.extents}: no whole factor")
    factor = to.triple([n // m for n, m in zip(extents, x.extents, strict=True)], 1)
    if factor == (1, 1, 1):
        return x
    if linear and call.arguments.get("align_corners"):
        return to.add(call, AlignedResize(factor), [x])
    return to.add(call, Resize(factor, "linear" if linear else "nearest"), [x])


def _pad(to: Lowering, call: _Call) -> _Map:
    a = call.arguments
    sides = list(a["pad"] if "pad" in a else a["padding"])
    kind = "constant" if call.call == "constant_pad_nd" else a.get("mode") or call.call.split("_")[0]
    mode = PADDINGS.get(kind)
    if mode is None:
        raise _refused(call, f"padding by {kind} has no rule here")
    if mode == "zero" and a.get("value"):
        raise _refused(call, f"it pads with {a['value']}")
    if any(sides[2 * to.ndim :]):
        raise _refused(call, "it pads channels")
    pairs = [(sides[i], sides[i + 1]) for i in range(0, min(len(sides), 2 * to.ndim), 2)]
    pairs = [*reversed(pairs + [(0, 0)] * (3 - len(pairs)))]
    low, high = triple(p[0] for p in pairs), triple(p[1] for p in pairs)
    x = call.maps[0]
    if min(low + high) < 0:
        if max(low + high) <= 0:
            return to.add(call, Crop(triple(-n for n in low), triple(-n for n in high)), [x])
        if mode != "zero":
            raise _refused(call, f"it pads by {kind} at one end and crops at another")
        x = _of_crop(to, call, x, triple(max(-n, 0) for n in low), triple(max(-n, 0) for n in high))
        low, high = triple(max(n, 0) for n in low), triple(max(n, 0) for n in high)
    return to.add(call, Pad(low, high, mode), [x]) if any(low + high) else x


def _slice(to: Lowering, call: _Call) -> _Map:
    a, x = call.arguments, call.maps[0]
    axis = a["dim"] % (to.ndim + 2)
    extent = (1, x.channels, *x.extents)[axis]
    start = a["start"] or 0
    start = max(start + extent if start < 0 else start, 0)
    stop = a["end"] if "end" in a else start + a["length"]
    stop = extent if stop is None else stop
    stop = min(stop + extent if stop < 0 else stop, extent)
    step = a.get("step", 1)
    if step != 1 and axis < 2:
        raise _refused(call, f"it takes every {step}th of {'channels' if axis else 'the batch'}")
    if (start, stop, step) == (0, extent, 1):
        return x
    if axis == 0:
        raise _refused(call, "it selects from the batch")
    if axis == 1:
        return to.add(call, ChannelSlice(start, stop), [x], is_view=True)
    place = axis - 2 + 3 - to.ndim
    low = triple(start if i == place else 0 for i in range(3))
    high = triple(extent - stop if i == place else 0 for i in range(3))
    if step == 1:
        return to.add(call, Crop(low, high), [x], is_view=True)
    if any(low + high):
        x = _of_crop(to, call, x, low, high)
    factor = triple(step if i == place else 1 for i in range(3))  # groups of one voxel
    return to.add(call, MaxPool(factor, (0, 0, 0), (1, 1, 1), drops=True), [x], is_view=True)


def _cat(to: Lowering, call: _Call) -> _Map:
    if call.arguments["dim"] % (to.ndim + 2) != 1:
        raise _refused(call, f"it joins along axis {call.arguments['dim']}")
    if len(call.maps) != len(call.arguments["tensors"]):
        raise _refused(call, "it joins what does not come from the image")
    if not any(one.is_shrunk for one in call.maps):
        _same_extents(call)
    return to.add(call, Concatenation(alike=True), call.maps)


def _same_extents(call: _Call) -> None:
    if len({one.extents for one in call.maps}) > 1:
        raise _refused(call, f"it joins maps of {' and '.join(str(one.extents) for one in call.maps)} voxels")


def _combination(to: Lowering, call: _Call) -> _Map:
    a = call.arguments
    one, other = a["self"], a["other"]
    if a.get("rounding_mode"):
        raise _refused(call, "it has a rounding of its own")
    if a.get("alpha", 1) != 1:
        if call.call == "rsub":
            raise _refused(call, "it has a factor of its own")
        other = _of_product(to, call, "factor", "mul", other, a["alpha"])
    if isinstance(one, _Map) and isinstance(other, _Map):
        if call.call not in COMBINATIONS:
            raise _refused(call, "it has no rule with two maps")
        if one.is_shrunk != other.is_shrunk:
            _check_beside(to, call, one, other)
        else:
            _same_extents(call)
        return to.add(call, Combination(COMBINATIONS[call.call]), [one, other])
    return _with_constant(to, call, one, other)


def _of_product(to: Lowering, call: _Call, name: str, word: Literal["sub", "mul", "div"], one: Any, other: Any) -> Any:
    """What a call joins, maps and constants, before it does anything else."""
    if not isinstance(one, _Map) and not isinstance(other, _Map):
        return {"sub": operator.sub, "mul": operator.mul, "div": operator.truediv}[word](one, other)
    channels = max(leaf.channels for leaf in (one, other) if isinstance(leaf, _Map))
    shape = (1, channels, *call.shape[2:])
    return _combination(to, _Call(f"{call.name}.{name}", word, {"self": one, "other": other}, shape))


def _sum_of_product(to: Lowering, call: _Call) -> _Map:
    """A map, and a factor times the product, or quotient, of two."""
    a = call.arguments
    product = _of_product(to, call, "product", "mul" if call.call == "addcmul" else "div", a["tensor1"], a["tensor2"])
    if a["value"] != 1:
        product = _of_product(to, call, "factor", "mul", product, a["value"])
    return _combination(to, replace(call, call="add", arguments={"self": a["self"], "other": product}))


def _between(to: Lowering, call: _Call) -> _Map:
    """A map, and a share of what another is more."""
    a = call.arguments
    more = _of_product(to, call, "difference", "sub", a["end"], a["self"])
    share = _of_product(to, call, "share", "mul", more, a["weight"])
    return _combination(to, replace(call, call="add", arguments={"self": a["self"], "other": share}))


def _with_constant(to: Lowering, call: _Call, one: Any, other: Any) -> _Map:
    """A map and numbers that are the same everywhere, one for all channels or one each."""
    x: _Map = one if isinstance(one, _Map) else other
    value = other if isinstance(one, _Map) else one
    numbers = torch.as_tensor(value, dtype=torch.float64)
    if numbers.numel() not in (1, x.channels) or (numbers.numel() > 1 and _places(numbers.shape, to.ndim) > 1):
        raise _refused(
            call, f"it joins a map with constants of shape {tuple(numbers.shape)}, other ones at other places"
        )
    numbers = numbers.reshape(-1).expand(x.channels)
    first = isinstance(one, _Map)
    ones, zeros = torch.ones_like(numbers), torch.zeros_like(numbers)
    affine = {
        "add": (ones, numbers),
        "sub": (ones, -numbers) if first else (-ones, numbers),
        "rsub": (-ones, numbers) if first else None,
        "mul": (numbers, zeros),
        "div": (1 / numbers, zeros) if first else None,
    }.get(call.call)
    if affine is None:
        raise _refused(call, "it has no rule with constants")
    return to.add(call, Affine(), [x], [w.clone() for w in affine])


def _places(shape: Sequence[int], ndim: int) -> int:
    """How many places of space constants of a shape tell apart."""
    return prod(shape[-ndim:])


def _activation(to: Lowering, call: _Call) -> _Map:
    function, keys = FUNCTIONS[call.call]
    return to.add(call, Activation(function, tuple(float(call.arguments[key]) for key in keys)), call.maps)


def _prelu(to: Lowering, call: _Call) -> _Map:
    return to.add(call, Activation("prelu"), call.maps[:1], [call.arguments["weight"].reshape(-1)])


def _gelu(to: Lowering, call: _Call) -> _Map:
    tanh = call.arguments.get("approximate") == "tanh"
    return to.add(call, Activation("gelu_tanh" if tanh else "gelu"), call.maps)


def _clamp(to: Lowering, call: _Call) -> _Map:
    low, high = (call.arguments.get(key) for key in ("min", "max"))
    if any(isinstance(end, (_Map, Tensor)) for end in (low, high)):
        raise _refused(call, "its limits are no numbers")
    ends = tuple(
        float("-inf" if end is None and sign < 0 else "inf" if end is None else end)
        for end, sign in ((low, -1), (high, 1))
    )
    return to.add(call, Activation("clamp", ends), call.maps)


def _softmax(to: Lowering, call: _Call) -> _Map:
    if call.arguments["dim"] % (to.ndim + 2) != 1:
        raise _refused(call, f"it goes over axis {call.arguments['dim']}, not over channels")
    return to.add(call, Activation(call.call.removeprefix("_")), call.maps)


# --- what looks at its whole input --------------------------------------------------------------------------------------


def _whole_norm(to: Lowering, call: _Call, groups: int, epsilon: float) -> _Map:
    """A norm by statistics of its whole input."""
    weight, bias = call.arguments.get("weight"), call.arguments.get("bias")
    weights: list[Tensor | None] = []
    if weight is not None:
        weights = [weight, torch.zeros_like(weight) if bias is None else bias]
    elif bias is not None:
        weights = [torch.ones_like(bias), bias]
    return to.add(call, WholeNorm(groups, float(epsilon), to.ndim == 2), call.maps[:1], weights)


def _instance_norm(to: Lowering, call: _Call) -> _Map:
    a = call.arguments
    if not a["use_input_stats"]:
        return _batch_norm(to, call)
    return _whole_norm(to, call, call.maps[0].channels, a["eps"])


def _group_norm(to: Lowering, call: _Call) -> _Map:
    a = call.arguments
    return _whole_norm(to, call, int(a["num_groups"] if "num_groups" in a else a["group"]), a["eps"])


def _layer_norm(to: Lowering, call: _Call) -> _Map:
    a, x = call.arguments, call.maps[0]
    if list(a["normalized_shape"]) != [x.channels, *x.extents]:
        raise _refused(
            call, f"it normalises over the last axes {list(a['normalized_shape'])}, which are not channels and space"
        )
    if a["weight"] is not None or a["bias"] is not None:
        raise _refused(call, "it has weights for each place, so it takes images of one size only")
    return _whole_norm(to, call, 1, a["eps"])


def _global_pool(to: Lowering, call: _Call) -> _Map:
    if any(n != 1 for n in call.shape[2:]):
        raise _refused(
            call, f"it divides its whole input into {call.shape[2:]} parts, so no tile can tell what it gives"
        )
    return to.add(call, GlobalPool("max" if "max" in call.call else "mean", to.ndim == 2), call.maps[:1])


def _over_space(to: Lowering, call: _Call) -> _Map:
    """A mean, or largest value, over axes."""
    axes = {int(axis) % (to.ndim + 2) for axis in call.arguments.get("dim") or range(to.ndim + 2)}
    if axes != set(range(2, to.ndim + 2)):
        raise _refused(call, f"it goes over the axes {sorted(axes)}, not over those of space")
    if call.arguments.get("dtype") is not None:
        raise _refused(call, "it changes the type of values")
    return to.add(call, GlobalPool("max" if "max" in call.call else "mean", to.ndim == 2), call.maps[:1])


def _sum_of_space(_: Lowering, call: _Call) -> _Map:
    raise _refused(call, "it looks at its whole input, so no tile can tell what it gives")


def _reshaped(_: Lowering, call: _Call) -> _Map:
    """One value a channel, with other axes of one, or shown at every voxel."""
    x = call.maps[0]
    if prod(call.shape) != x.channels and call.shape[1:2] != (x.channels,):
        raise _refused(call, f"it makes {call.shape} of {x.channels} values")
    return replace(x, extents=call.shape[2:], is_view=True)


def _linear(to: Lowering, call: _Call) -> _Map:
    a, x = call.arguments, call.maps[0]
    if x.extents or not isinstance(a["weight"], Tensor) or a["weight"].shape[1] != x.channels:
        raise _refused(call, "it is no map from channels to channels")
    kernel = a["weight"].view(*a["weight"].shape, *[1] * to.ndim)
    return to.add(call, Convolution((1, 1, 1), (0, 0, 0), first=(0, 0, 0)), [x], [kernel, a["bias"]])


def _pointwise_convolution(to: Lowering, call: _Call) -> _Map:
    a, x = call.arguments, call.maps[0]
    kernel = a["weight"]
    if a.get("transposed") or "transpose" in call.call or len(x.extents) != to.ndim or prod(kernel.shape[2:]) != 1:
        raise _refused(call, "it has taps beside one value a channel")
    return _convolution(to, call)


def _check_beside(to: Lowering, call: _Call, one: _Map, other: _Map) -> None:
    """Refuse one value a channel beside a map where that is no affine map of it."""
    value, solid = (one, other) if one.is_shrunk else (other, one)
    extents = zip(value.extents, solid.extents, strict=False)
    if len(value.extents) != to.ndim or any(n not in (1, m) for n, m in extents):
        raise _refused(call, f"it joins values of {value.extents} voxels with a map of {solid.extents}")
    if call.shape[1] != solid.channels or value.channels not in (1, solid.channels):
        raise _refused(call, f"it joins {value.channels} values with a map of {solid.channels} channels")
    if call.call not in ("add", "sub", "mul", "div") or (call.call == "div" and one.is_shrunk):
        raise _refused(call, "it is no sum or product of a map with one value a channel")


def _like_the_other(to: Lowering, call: _Call) -> _Map:
    if not isinstance(call.arguments["self"], _Map) or not call.arguments["self"].is_shrunk:
        raise _refused(call, "it shows a map as large as another")
    return _reshaped(to, call)


RULES: dict[str, Callable[[Lowering, _Call], _Map]] = {
    **dict.fromkeys(
        [
            "conv2d",
            "conv3d",
            "convolution",
            "_convolution",
            "_convolution_mode",
            "conv_transpose2d",
            "conv_transpose3d",
        ],
        _convolution,
    ),
    **dict.fromkeys(["batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"], _batch_norm),
    **dict.fromkeys(
        ["max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d"],
        _pool,
    ),
    **dict.fromkeys(
        [
            "upsample_nearest2d",
            "upsample_nearest3d",
            "upsample_bilinear2d",
            "upsample_trilinear3d",
            "upsample_bicubic2d",
        ],
        _resize,
    ),
    **dict.fromkeys(
        ["pad", "constant_pad_nd", "replication_pad2d", "replication_pad3d", "reflection_pad2d", "reflection_pad3d"],
        _pad,
    ),
    **dict.fromkeys(("slice", "narrow"), _slice),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    **dict.fromkeys((*COMBINATIONS, "rsub"), _combination),
    **dict.fromkeys(("addcmul", "addcdiv"), _sum_of_product),
    "lerp": _between,
    **dict.fromkeys(FUNCTIONS, _activation),
    **dict.fromkeys(("prelu", "_prelu_kernel"), _prelu),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), _clamp),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), _softmax),
    "gelu": _gelu,
    "instance_norm": _instance_norm,
    **dict.fromkeys(("group_norm", "native_group_norm"), _group_norm),
    **dict.fromkeys(("layer_norm", "native_layer_norm"), _layer_norm),
    **dict.fromkeys(("mean", "amax"), _over_space),
    **dict.fromkeys(
        [f"{prefix}adaptive_{kind}_pool{ndim}d" for prefix in ("", "_") for kind in ("avg", "max") for ndim in (2, 3)],
        _global_pool,
    ),
    **dict.fromkeys(("sum", "scaled_dot_product_attention"), _sum_of_space),
}
"""By call: the node that it becomes."""

CONVOLUTIONS = ("conv2d", "conv3d", "convolution")

RULES_OF_VALUES: dict[str, Callable[[Lowering, _Call], _Map]] = {
    **{
        name: RULES[name]
        for name in (
            *FUNCTIONS,
            *COMBINATIONS,
            *("rsub", "prelu", "_prelu_kernel", "gelu", "clamp", "clamp_min", "clamp_max", "slice", "narrow"),
            *("softmax", "_softmax", "log_softmax", "_log_softmax", "cat", "concat", "concatenate"),
            *("batch_norm", "_native_batch_norm_legit_no_training", "group_norm", "native_group_norm"),
        )
    },
    **dict.fromkeys(CONVOLUTIONS, _pointwise_convolution),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "squeeze", "unsqueeze", "expand"), _reshaped),
    **dict.fromkeys(
        ("upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_trilinear3d"), _reshaped
    ),
    "expand_as": _like_the_other,
    "linear": _linear,
}
"""The same where all that is read is one value a channel."""

RULES_OF_BOTH: dict[str, Callable[[Lowering, _Call], _Map]] = {
    **{name: RULES[name] for name in ("add", "sub", "mul", "div", "cat", "concat", "concatenate")},
    "expand_as": _like_the_other,
}
"""The same where that stands beside a map."""

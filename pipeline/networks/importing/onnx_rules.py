"""Operators of ONNX as calls of torch's, at the extents of one image; what touches no image is computed at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils import _pytree

from pipeline.errors import ModelError
from pipeline.networks.importing.lowering import Call, Lowering, Name, Network
from pipeline.networks.importing.onnx_model import OnnxModel, Operator
from pipeline.networks.importing.onnx_operators import OnnxReference, run_operator

DAMAGED = (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError, ArithmeticError, OSError)
"""What is raised of what a file says that cannot be."""

MOST_VALUES = 2**24
"""That are computed of no image, all together."""


def lowered(model: OnnxModel, shape: tuple[int, ...], output: int) -> Network:
    """A model as a graph, at the extents of one image.

    Args:
        model: What the file says.
        shape: Of its image, (1, C, Z, Y, X) or (1, C, Y, X).
        output: Which of its outputs is predicted.

    Raises:
        ModelError: It has an operator without a rule, or one that looks at its whole input.
    """
    translation = _Translation(model, shape)
    for operator in model.operators:
        translation.add(operator)
    return translation.finish(output)


@dataclass(frozen=True)
class Image:
    """What lies in space.

    Args:
        name: Among the calls.
        shape: (1, C, Z, Y, X) or (1, C, Y, X).
        order: Which of these axes are where; None: all in order.
        groups: Of channels, where all of a group is one axis: (1, groups, values); None: it is not so.
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...] | None = None
    groups: int | None = None

    @property
    def is_plain(self) -> bool:
        return self.order is None and self.groups is None

    @property
    def shown(self) -> tuple[int, ...]:
        """Its shape, as operators see it."""
        if self.groups is not None:
            return 1, self.groups, prod(self.shape) // self.groups
        return tuple(self.shape[n] for n in self.order) if self.order else self.shape


Value = Image | np.ndarray
"""What an operator is given: of the image, or not."""


@dataclass
class Turn:
    """One operator that is translated.

    Args:
        operator: Which.
        given: What it is given; None for what is left out.
        taken: Attributes that its rule has looked at.
    """

    operator: Operator
    given: list[Value | None]
    taken: set[str] = field(default_factory=set)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or what it is where there is none."""
        self.taken.add(name)
        return self.operator.attributes.get(name, default)

    def number(self, name: str, default: float) -> float:
        """One that is no whole number: in ONNX, also what it is by default is in float32."""
        return float(self.attribute(name, np.float32(default)))

    def image(self, place: int = 0) -> Image:
        """An input that lies in space, with its axes in order."""
        value = self.viewed(place)
        if not value.is_plain:
            raise self.refused(f"its input {place} has axes in another order, or joined")
        return value

    def viewed(self, place: int = 0) -> Image:
        """An input that lies in space, however its axes lie."""
        value = self.given[place] if place < len(self.given) else None
        if not isinstance(value, Image):
            raise self.refused(f"its input {place} does not come from the image")
        return value

    def constant(self, place: int) -> np.ndarray | None:
        """An input that does not come from the image; None where it is left out, or empty."""
        value = self.given[place] if place < len(self.given) else None
        if isinstance(value, Image):
            raise self.refused(f"its input {place} comes from the image")
        return None if value is None or value.size == 0 else value

    def needed(self, place: int) -> np.ndarray:
        """One that must be there."""
        value = self.constant(place)
        if value is None:
            raise self.refused(f"it lacks its input {place}")
        return value

    def numbers(self, name: str, place: int) -> list[int] | None:
        """Whole numbers that are an attribute in old versions, and an input in new ones."""
        old = self.attribute(name)
        new = self.constant(place)
        return [int(n) for n in (old if new is None else new.reshape(-1))] if old or new is not None else None

    def refused(self, why: str) -> ModelError:
        return ModelError(
            f"The network cannot be imported: its node '{self.operator.name}' is a {self.operator.kind}, and {why}."
        )


class _Translation:
    """A model on its way to calls, at extents of its image."""

    def __init__(self, model: OnnxModel, shape: tuple[int, ...]) -> None:
        self.model, self.ndim = model, len(shape) - 2
        self.aten = torch.ops.aten
        self.lowering = Lowering()
        self.lowering.input(model.image, shape)
        self.known: dict[str, Value] = dict(model.constants)
        self.known[model.image] = Image(model.image, shape)
        self._names: set[str] = {model.image}
        self._kept: dict[int, str] = {}
        self._alive: list[np.ndarray] = []
        self._folded = 0

    def add(self, operator: Operator) -> None:
        """The next operator.

        Raises:
            ModelError: It has no rule, or looks at its whole input.
        """
        if missing := [name for name in operator.inputs if name and name not in self.known]:
            raise ModelError(
                f"its node '{operator.name}' reads '{missing[0]}', which has no rule here, or which nothing gives."
            )
        turn = Turn(operator, [self.known[name] if name else None for name in operator.inputs])
        if not any(isinstance(value, Image) for value in turn.given) or operator.kind in ("Shape", "Size"):
            results: Sequence[Value] = self._fold(turn)
        elif operator.kind in RULES:
            try:
                result = RULES[operator.kind](self, turn)
            except ModelError as error:
                shown = f"its node '{operator.name}' is a {operator.kind}"
                raise error if shown in str(error) else ModelError(f"{shown}. {error}") from error
            except DAMAGED as error:
                raise turn.refused(f"it cannot be: {str(error)[:400]} ({type(error).__name__})") from error
            results = result if isinstance(result, list) else [result]
            if unknown := operator.attributes.keys() - turn.taken:
                raise turn.refused(f"its attribute '{min(unknown)}' has no rule here")
        else:
            raise turn.refused("it has no rule here")
        self.known |= dict(zip(operator.outputs, results, strict=False))

    def _fold(self, turn: Turn) -> Sequence[Value]:
        """What an operator gives that touches no image."""
        if isinstance(turn.given[0] if turn.given else None, Image):
            shape = np.array(turn.viewed().shown, dtype=np.int64)
            if turn.operator.kind == "Size":
                return [np.array(shape.prod())]
            return [shape[slice(turn.attribute("start", 0), turn.attribute("end"))]]
        size = _folded_size(turn)
        self._folded += size
        if self._folded > MOST_VALUES:
            raise turn.refused(f"it asks for more than {MOST_VALUES:,} values of no image")
        constants = [value if isinstance(value, np.ndarray) else None for value in turn.given]
        return run_operator(turn.operator.message, constants, self.model.opset)

    def emit(self, turn: Turn, target: OpOverload, *given: Any, **named: Any) -> Image:
        """A call of torch's."""
        base = turn.operator.name
        name = base if base not in self._names else turn.operator.outputs[0]
        number = 0
        while name in self._names:
            number += 1
            name = f"{base}.{number}"
        self._names.add(name)
        arguments = {**dict(zip((one.name for one in target._schema.arguments), given, strict=False)), **named}
        on_meta = [_pytree.tree_map(_meta, one, is_leaf=_is_value) for one in given]
        shape = tuple(target(*on_meta, **named).shape)
        self.lowering.call(
            Call(name, target, _pytree.tree_map(self._named, arguments, is_leaf=_is_value), {name: shape})
        )
        return Image(name, shape)

    def _named(self, leaf: Any) -> Any:
        if isinstance(leaf, Image):
            return Name(leaf.name)
        if not isinstance(leaf, np.ndarray):
            return leaf
        if id(leaf) not in self._kept:
            self._kept[id(leaf)] = name = f"constant {len(self._kept)} of {self.model.image}"
            self._alive.append(leaf)
            self.lowering.weight(name, _tensor(leaf))
        return Name(self._kept[id(leaf)])

    def finish(self, output: int) -> Network:
        """The network, of which one output is predicted, and the model as its origin.

        Raises:
            ModelError: It does not give so many maps, or with axes in another order.
        """
        given = [(name, self.known.get(name)) for name in self.model.outputs]
        images = [(name, one) for name, one in given if isinstance(one, Image)]
        if twisted := [name for name, one in images if not one.is_plain]:
            raise ModelError(
                f"its output '{twisted[0]}' has axes in another order than (1, C, Z, Y, X) or (1, C, Y, X)."
            )
        try:
            network = self.lowering.finish([one.name for _, one in images], output)
        except ValueError as error:
            raise ModelError(f"its operators make no graph: {error}") from error
        return replace(network, origin=OnnxReference(self.model, network.program.image[1], images[output][0]))


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, (Image, np.ndarray))


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it may not be written to
        return torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)


def _meta(leaf: Any) -> Any:
    if isinstance(leaf, Image):
        return torch.empty(leaf.shape, device="meta")
    if isinstance(leaf, np.ndarray):
        return torch.empty(leaf.shape, device="meta")
    return leaf


# --- what touches no image ------------------------------------------------------------------------------------------------


ELEMENTWISE = frozenset(
    ["Add", "Sub", "Mul", "Div", "Pow", "Mod", "Equal", "Less", "Greater", "And", "Or", "Where", "Max", "Min"]
)  # fmt: skip

OF_CONSTANTS = ELEMENTWISE | frozenset(
    [
        "Constant", "Identity", "Cast", "Neg", "Abs", "Sqrt", "Reciprocal", "Exp", "Floor", "Ceil", "Round", "Not", "Shape", "Size",
        "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Concat", "Split", "ConstantOfShape", "Expand",
        "Tile", "Range", "ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceMean", "Softmax", "Sigmoid", "Dropout",
    ]
)  # fmt: skip
"""Operators that are computed at once where they touch no image."""


def _folded_size(turn: Turn) -> int:
    """How many values such an operator gives at most.

    Raises:
        ModelError: It is none that is computed so.
    """
    kind, given = turn.operator.kind, [value for value in turn.given if isinstance(value, np.ndarray)]
    if kind not in OF_CONSTANTS:
        raise turn.refused("it touches no image, and has no rule for constants alone")
    if kind in ELEMENTWISE:
        return prod(np.broadcast_shapes(*(one.shape for one in given)))
    if kind == "ConstantOfShape":
        return prod(int(n) for n in given[0].reshape(-1))
    if kind == "Expand":
        return max(given[0].size, 1) * prod(max(int(n), 1) for n in given[1].reshape(-1))
    if kind == "Tile":
        return given[0].size * prod(int(n) for n in given[1].reshape(-1))
    if kind == "Range":
        start, stop, step = (float(one) for one in given)
        return int(abs(stop - start) / abs(step)) + 1
    if kind == "Gather":
        return given[1].size * max(given[0].size, 1)
    return sum(one.size for one in given) + sum(
        one.size for one in turn.operator.attributes.values() if isinstance(one, np.ndarray)
    )


# --- rules ----------------------------------------------------------------------------------------------------------------


def _pairs(turn: Turn, kernel: Sequence[int], shape: Sequence[int]) -> list[tuple[int, int]]:
    """Voxels that are put before and after along each axis, by `pads` or by `auto_pad`."""
    n = len(kernel)
    strides, dilations = _windows(turn, n)
    pads = list(turn.attribute("pads") or [0] * 2 * n)
    how = turn.attribute("auto_pad", "NOTSET")
    if len(pads) != 2 * n or how not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise turn.refused(f"its padding {how} {pads} is none for {n} axes")
    if how == "NOTSET":
        return [(pads[i], pads[i + n]) for i in range(n)]
    if how == "VALID":
        return [(0, 0)] * n
    pairs = []
    for m, k, s, d in zip(shape, kernel, strides, dilations, strict=True):
        total = max((-(-m // s) - 1) * s + d * (k - 1) + 1 - m, 0)
        pairs.append((total // 2, total - total // 2) if how == "SAME_UPPER" else (total - total // 2, total // 2))
    return pairs


def _windows(turn: Turn, n: int) -> tuple[list[int], list[int]]:
    """Strides and dilations."""
    return list(turn.attribute("strides") or [1] * n), list(turn.attribute("dilations") or [1] * n)


def _flat(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """As torch takes padding: the last axis first."""
    return [n for pair in reversed(pairs) for n in pair]


def _convolution(to: _Translation, turn: Turn) -> Image:
    x, w = turn.image(), turn.needed(1)
    pairs = _pairs(turn, w.shape[2:], x.shape[2:])
    strides, dilations = _windows(turn, to.ndim)
    if tuple(turn.attribute("kernel_shape", w.shape[2:])) != tuple(w.shape[2:]):
        raise turn.refused("its kernel has another shape than it says")
    low = [pair[0] for pair in pairs]
    if low != [pair[1] for pair in pairs]:
        x = to.emit(turn, to.aten.pad.default, x, _flat(pairs), "constant", None)
        low = [0] * to.ndim
    groups = turn.attribute("group", 1)
    zeros = [0] * to.ndim
    return to.emit(
        turn, to.aten.convolution.default, x, w, turn.constant(2), strides, low, dilations, False, zeros, groups
    )


def _transposed(to: _Translation, turn: Turn) -> Image:
    x, w = turn.image(), turn.needed(1)
    if turn.attribute("output_shape") or turn.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise turn.refused("its padding follows from the size of its output")
    strides, dilations = _windows(turn, to.ndim)
    pads = list(turn.attribute("pads") or [0] * 2 * to.ndim)
    extra = list(turn.attribute("output_padding") or [0] * to.ndim)
    turn.attribute("kernel_shape")
    low, high = pads[: to.ndim], pads[to.ndim :]
    same = low == high
    given = (x, w, turn.constant(2), strides, low if same else [0] * to.ndim, dilations, True, extra)
    y = to.emit(turn, to.aten.convolution.default, *given, turn.attribute("group", 1))
    if not same:
        y = to.emit(
            turn, to.aten.pad.default, y, _flat([(-a, -b) for a, b in zip(low, high, strict=True)]), "constant", None
        )
    return y


def _pool(to: _Translation, turn: Turn) -> Image:
    x, kernel = turn.image(), list(turn.attribute("kernel_shape"))
    pairs = _pairs(turn, kernel, x.shape[2:])
    strides, dilations = _windows(turn, to.ndim)
    largest, ceil = turn.operator.kind == "MaxPool", bool(turn.attribute("ceil_mode", 0))
    turn.attribute("storage_order")
    counts = bool(turn.attribute("count_include_pad", 0))
    low = [pair[0] for pair in pairs]
    if low != [pair[1] for pair in pairs]:
        if largest or not counts:
            raise turn.refused("it puts more after than before, of what is no zero")
        x, low = to.emit(turn, to.aten.pad.default, x, _flat(pairs), "constant", None), [0] * to.ndim
    if largest:
        target = to.aten.max_pool3d.default if to.ndim == 3 else to.aten.max_pool2d.default
        return to.emit(turn, target, x, kernel, strides, low, dilations, ceil)
    if any(n != 1 for n in dilations):
        raise turn.refused("its voxels are not neighbours")
    target = to.aten.avg_pool3d.default if to.ndim == 3 else to.aten.avg_pool2d.default
    return to.emit(turn, target, x, kernel, strides, low, ceil, counts or not any(low), None)


def _global_pool(to: _Translation, turn: Turn) -> Image:
    if turn.operator.kind == "GlobalMaxPool":
        return to.emit(turn, to.aten.amax.default, turn.image(), list(range(2, 2 + to.ndim)), True)
    target = to.aten.adaptive_avg_pool3d.default if to.ndim == 3 else to.aten.adaptive_avg_pool2d.default
    return to.emit(turn, target, turn.image(), [1] * to.ndim)


def _mean(to: _Translation, turn: Turn) -> Image:
    axes, keep = turn.numbers("axes", 1), bool(turn.attribute("keepdims", 1))
    turn.attribute("noop_with_empty_axes")
    return to.emit(turn, to.aten.mean.dim, turn.image(), axes, keep)


def _batch_norm(to: _Translation, turn: Turn) -> Image:
    epsilon = turn.number("epsilon", 1e-5)
    turn.attribute("momentum")
    if turn.attribute("training_mode", 0) or not turn.attribute("spatial", 1):
        raise turn.refused("it looks at its whole input: the network was exported for training")
    given = [turn.needed(n) for n in (1, 2, 3, 4)]
    return to.emit(turn, to.aten.batch_norm.default, turn.image(), *given, False, 0.0, epsilon, False)


def _instance_norm(to: _Translation, turn: Turn) -> Image:
    """Of each channel; of groups of channels where those were joined before."""
    x, epsilon = turn.viewed(), turn.number("epsilon", 1e-5)
    factor, summand = turn.needed(1), turn.needed(2)
    if x.groups is None:
        return to.emit(
            turn, to.aten.instance_norm.default, turn.image(), factor, summand, None, None, True, 0.0, epsilon, False
        )
    each = x.shape[1] // x.groups
    weights = (np.repeat(factor.reshape(-1), each), np.repeat(summand.reshape(-1), each))
    y = to.emit(turn, to.aten.group_norm.default, Image(x.name, x.shape), x.groups, *weights, epsilon, False)
    return replace(y, groups=x.groups)


def _group_norm(to: _Translation, turn: Turn) -> Image:
    groups, epsilon = turn.attribute("num_groups"), turn.number("epsilon", 1e-5)
    turn.attribute("stash_type")
    x, factor, summand = turn.image(), turn.needed(1), turn.needed(2)
    if to.model.opset < 21:  # one of each group
        factor, summand = (np.repeat(one.reshape(-1), x.shape[1] // groups) for one in (factor, summand))
    return to.emit(turn, to.aten.group_norm.default, x, groups, factor, summand, epsilon, False)


def _reshape(_: _Translation, turn: Turn) -> Image:
    """Nothing, or groups of channels, each as one axis, and back: what exporters make of group norm."""
    x, keeps = turn.viewed(), not turn.attribute("allowzero", 0)
    wanted = [int(n) for n in turn.needed(1).reshape(-1)]
    sizes = [x.shown[i] if n == 0 and keeps and i < len(x.shown) else n for i, n in enumerate(wanted)]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = prod(x.shape) // max(-prod(sizes), 1)
    if tuple(sizes) == x.shown:
        return x
    if tuple(sizes) == x.shape and x.groups is not None:
        return replace(x, groups=None)
    if x.is_plain and len(sizes) == 3 and sizes[0] == 1 and prod(sizes) == prod(x.shape) and x.shape[1] % sizes[1] == 0:
        return replace(x, groups=sizes[1])
    raise turn.refused(f"it makes {tuple(sizes)} of {x.shown}")


def _transpose(_: _Translation, turn: Turn) -> Image:
    x = turn.viewed()
    order = x.order or tuple(range(len(x.shape)))
    moved = tuple(order[n] for n in turn.attribute("perm") or reversed(range(len(order))))
    if x.groups is not None:
        raise turn.refused("it exchanges axes of joined channels")
    return replace(x, order=None if moved == tuple(range(len(order))) else moved)


def _softmax(to: _Translation, turn: Turn) -> Image:
    x, old = turn.viewed(), to.model.opset < 13
    axis = turn.attribute("axis", 1 if old else -1) % len(x.shape)
    if x.groups is not None or (old and axis != len(x.shape) - 1 and any(n != 1 for n in x.shown[axis + 1 :])):
        raise turn.refused("it goes over all voxels, not over channels")
    place = (x.order or range(len(x.shape)))[axis]
    target = to.aten.softmax.int if turn.operator.kind == "Softmax" else to.aten.log_softmax.int
    return replace(to.emit(turn, target, Image(x.name, x.shape), place, None), order=x.order)


def _resize(to: _Translation, turn: Turn) -> Image:
    x, opset = turn.image(), to.model.opset
    wanted = _resized(to, turn, x)
    if wanted == list(x.shape[2:]):
        return x
    plain = "asymmetric" if opset < 11 else "half_pixel"
    mode, place = turn.attribute("mode", "nearest"), turn.attribute("coordinate_transformation_mode", plain)
    rounding = turn.attribute("nearest_mode", "floor" if opset < 11 else "round_prefer_floor")
    other = [turn.attribute(name, 0) for name in ("antialias", "exclude_outside", "keep_aspect_ratio_policy")]
    turn.attribute("cubic_coeff_a"), turn.attribute("extrapolation_value")
    if any(one not in (0, "stretch") for one in other):
        raise turn.refused("it smooths, leaves out what lies outside, or keeps the aspect of sizes")
    if mode == "nearest":
        return _nearest(to, turn, x, wanted, place, rounding)
    if mode != "linear" or place not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise turn.refused(f"{mode} interpolation at places '{place}' has no rule")
    target = to.aten.upsample_trilinear3d.default if to.ndim == 3 else to.aten.upsample_bilinear2d.default
    return to.emit(turn, target, x, wanted, place == "align_corners")


def _resized(to: _Translation, turn: Turn, x: Image) -> list[int]:
    """Extents that it asks for."""
    newer = to.model.opset >= 11
    old = turn.attribute("scales")  # of Upsample
    scales = np.array(old) if old else turn.constant(2 if newer else 1)
    sizes = turn.constant(3) if newer else None
    axes = [n % len(x.shape) for n in turn.attribute("axes") or range(len(x.shape))]
    given = scales if scales is not None else sizes
    if given is None or len(given) != len(axes):
        raise turn.refused("it is given no scales and no sizes")
    wanted = list(x.shape)
    for axis, value in zip(axes, given, strict=True):
        wanted[axis] = int(np.floor(wanted[axis] * float(value))) if scales is not None else int(value)
    if tuple(wanted[:2]) != x.shape[:2]:
        raise turn.refused("it makes other channels")
    if max(wanted) > 2**16 or min(wanted) < 1:
        raise turn.refused(f"it makes {tuple(wanted)} of {x.shape}")
    return wanted[2:]


ROUNDING: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda place: np.ceil(place - 0.5),
    "round_prefer_ceil": lambda place: np.floor(place + 0.5),
}


def _nearest(to: _Translation, turn: Turn, x: Image, wanted: list[int], place: str, rounding: str) -> Image:
    """Each voxel again, or every few of them: as it rounds, or refused."""
    downs = []
    for n, m in zip(wanted, x.shape[2:], strict=True):
        if n % m and m % n:
            raise turn.refused(f"it makes {n} voxels of {m}: no whole factor")
        index = np.arange(n)
        if place in ("half_pixel", "pytorch_half_pixel"):
            source = (index + 0.5) * m / n - 0.5
        elif place == "asymmetric":
            source = index * m / n
        else:
            raise turn.refused(f"nearest interpolation at places '{place}' has no rule")
        if rounding not in ROUNDING:
            raise turn.refused(f"it rounds by '{rounding}'")
        if not np.array_equal(ROUNDING[rounding](source).clip(0, m - 1), index * m // n):
            raise turn.refused(f"by '{place}' and '{rounding}' its voxels are no whole groups")
        downs.append(max(m // n, 1))
    for axis, down in enumerate(downs):
        if down > 1:
            x = to.emit(turn, to.aten.slice.Tensor, x, axis + 2, 0, x.shape[axis + 2], down)
    if wanted == list(x.shape[2:]):
        return x
    target = to.aten.upsample_nearest3d.default if to.ndim == 3 else to.aten.upsample_nearest2d.default
    return to.emit(turn, target, x, wanted)


def _pad(to: _Translation, turn: Turn) -> Image:
    x, mode = turn.image(), turn.attribute("mode", "constant")
    pads, value = turn.numbers("pads", 1), turn.attribute("value", 0.0)
    given, along = turn.constant(2), turn.constant(3)
    filling = float(value if given is None else given.reshape(-1)[0])
    axes = list(range(len(x.shape))) if along is None else [int(n) % len(x.shape) for n in along.reshape(-1)]
    if pads is None or len(pads) != 2 * len(axes):
        raise turn.refused("it does not say how many voxels it pads with")
    both = {axis: (pads[n], pads[n + len(axes)]) for n, axis in enumerate(axes)}
    pairs = [both.get(axis, (0, 0)) for axis in range(len(x.shape))]
    if any(pairs[0] + pairs[1]):
        raise turn.refused("it pads channels")
    names = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    ones = filling if mode == "constant" and filling else None
    return to.emit(turn, to.aten.pad.default, x, _flat(pairs[2:]), names[mode], ones)


def _slice(to: _Translation, turn: Turn) -> Image:
    x = turn.image()
    starts, stops = turn.numbers("starts", 1), turn.numbers("ends", 2)
    axes, given = turn.numbers("axes", 3), turn.constant(4)
    if starts is None or stops is None:
        raise turn.refused("it does not say from where to where")
    axes = axes or list(range(len(starts)))
    steps = [1] * len(starts) if given is None else [int(n) for n in given.reshape(-1)]
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        if step < 1:
            raise turn.refused("it goes backwards")
        x = to.emit(turn, to.aten.slice.Tensor, x, axis % len(x.shape), start, stop, step)
    return x


def _split(to: _Translation, turn: Turn) -> list[Value]:
    x, sizes = turn.image(), turn.numbers("split", 1)
    axis, count = turn.attribute("axis", 0) % len(x.shape), len(turn.operator.outputs)
    turn.attribute("num_outputs")
    if sizes is None:
        each = -(-x.shape[axis] // count)
        sizes = [min(each, x.shape[axis] - n * each) for n in range(count)]
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    return [to.emit(turn, to.aten.slice.Tensor, x, axis, a, a + n, 1) for a, n in zip(starts, sizes, strict=True)]


def _gather(to: _Translation, turn: Turn) -> Image:
    x, index, axis = turn.image(), turn.needed(1), turn.attribute("axis", 0)
    if index.ndim != 1 or any(np.diff(index) != 1) or index[0] < 0:
        raise turn.refused("it takes no run of channels")
    return to.emit(turn, to.aten.slice.Tensor, x, axis % len(x.shape), int(index[0]), int(index[-1]) + 1, 1)


def _concatenation(to: _Translation, turn: Turn) -> Image:
    images = [turn.image(n) for n in range(len(turn.given))]
    return to.emit(turn, to.aten.cat.default, images, turn.attribute("axis", 1))


def _combination(to: _Translation, turn: Turn) -> Image:
    """Two and two."""
    names = {"Sum": "add", "Max": "maximum", "Min": "minimum"}
    target = getattr(to.aten, names.get(turn.operator.kind, turn.operator.kind.lower()))
    overload = target.default if turn.operator.kind in ("Max", "Min") else target.Tensor
    for value in turn.given:
        if isinstance(value, Image) and not value.is_plain:
            raise turn.refused("it is given axes in another order, or joined")
    result = turn.given[0]
    for other in turn.given[1:]:
        if turn.operator.kind in ("Max", "Min"):
            result = _limited(to, turn, overload, result, other)
        else:
            result = to.emit(turn, overload, result, other)
    if not isinstance(result, Image):
        raise turn.refused("it is given one thing that comes from no image")
    return result


def _limited(to: _Translation, turn: Turn, target: OpOverload, one: Value | None, other: Value | None) -> Image:
    """The larger or lesser of two maps, or of a map and a number."""
    if isinstance(one, Image) and isinstance(other, Image):
        return to.emit(turn, target, one, other)
    image, limit = (one, other) if isinstance(one, Image) else (other, one)
    if not isinstance(limit, np.ndarray) or limit.size != 1:
        raise turn.refused("its limit is no number")
    ends = (float(limit.reshape(-1)[0]), None)
    return to.emit(turn, to.aten.clamp.default, image, *(ends if turn.operator.kind == "Max" else ends[::-1]))


def _power(to: _Translation, turn: Turn) -> Image:
    x, exponent = turn.image(), turn.needed(1)
    if exponent.size != 1 or float(exponent.reshape(-1)[0]) not in (0.5, 1, 2, 3):
        raise turn.refused("its exponent is none of 0.5, 1, 2 and 3")
    power = float(exponent.reshape(-1)[0])
    if power == 0.5:
        return to.emit(turn, to.aten.sqrt.default, x)
    result = x
    for _ in range(int(power) - 1):
        result = to.emit(turn, to.aten.mul.Tensor, result, x)
    return result


def _function(name: str, *values: tuple[str, float]) -> Callable[[_Translation, Turn], Image]:
    """The rule of a function of each value: its name in torch, and its attributes with what they are by default."""

    def rule(to: _Translation, turn: Turn) -> Image:
        given = [turn.number(key, default) for key, default in values]
        return to.emit(turn, getattr(to.aten, name).default, turn.image(), *given)

    return rule


def _prelu(to: _Translation, turn: Turn) -> Image:
    x, slope = turn.image(), turn.needed(1)
    if slope.size not in (1, x.shape[1]) or (slope.size > 1 and slope.shape[-to.ndim - 1 :][0] != slope.size):
        raise turn.refused(f"its slopes of shape {slope.shape} are not one a channel")
    return to.emit(turn, to.aten.prelu.default, x, slope.reshape(-1))


def _hard_sigmoid(to: _Translation, turn: Turn) -> Image:
    factor, summand = (np.array(turn.number(key, n)) for key, n in (("alpha", 0.2), ("beta", 0.5)))
    x = to.emit(turn, to.aten.mul.Tensor, turn.image(), factor)
    return to.emit(turn, to.aten.clamp.default, to.emit(turn, to.aten.add.Tensor, x, summand), 0.0, 1.0)


def _gelu(to: _Translation, turn: Turn) -> Image:
    return to.emit(turn, to.aten.gelu.default, turn.image(), approximate=turn.attribute("approximate", "none"))


def _clip(to: _Translation, turn: Turn) -> Image:
    ends = []
    for place, key in ((1, "min"), (2, "max")):
        old, new = turn.attribute(key), turn.constant(place)
        ends.append(old if new is None else float(new.reshape(-1)[0]))
    return (
        to.emit(turn, to.aten.clamp.default, turn.image(), *ends) if any(n is not None for n in ends) else turn.image()
    )


def _dropout(_: _Translation, turn: Turn) -> Image:
    training = turn.constant(2)
    turn.attribute("ratio"), turn.attribute("seed")
    if training is not None and training.any():
        raise turn.refused("it leaves values out: the network was exported for training")
    return turn.image()


def _cast(_: _Translation, turn: Turn) -> Image:
    wanted = turn.attribute("to")
    turn.attribute("saturate"), turn.attribute("round_mode")
    if wanted not in FLOATING:
        raise turn.refused(f"it makes values of type {wanted}, which are no floating point")
    return turn.viewed()


FLOATING = frozenset((1, 10, 11, 16))
"""Types of values: float32, float16, float64, bfloat16, by ONNX's numbers."""

RULES: Mapping[str, Callable[[_Translation, Turn], Image | list[Value]]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    "ReduceMean": _mean,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "Reshape": _reshape,
    "Transpose": _transpose,
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Concat": _concatenation,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Sum", "Max", "Min"), _combination),
    "Pow": _power,
    "PRelu": _prelu,
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "Clip": _clip,
    "Dropout": _dropout,
    "Cast": _cast,
    "Identity": lambda _, turn: turn.viewed(),
    "Relu": _function("relu"),
    "LeakyRelu": _function("leaky_relu", ("alpha", 0.01)),
    "Elu": _function("elu", ("alpha", 1.0)),
    "Selu": _function("elu", ("alpha", 1.67326319217681884765625), ("gamma", 1.05070102214813232421875)),
    "Sigmoid": _function("sigmoid"),
    "Tanh": _function("tanh"),
    "HardSwish": _function("hardswish"),
    "Mish": _function("mish"),
    "Exp": _function("exp"),
    "Neg": _function("neg"),
    "Abs": _function("abs"),
    "Sqrt": _function("sqrt"),
    "Erf": _function("erf"),
    "Log": _function("log"),
    "Reciprocal": _function("reciprocal"),
    "Softplus": lambda to, turn: to.emit(turn, to.aten.softplus.default, turn.image(), 1.0, 30.0),
}
"""By operator: the calls that it becomes."""

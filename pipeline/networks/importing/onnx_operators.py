"""What operators of ONNX give, as the package onnx defines them: of constants, and in float64 as a reference.

Convolutions are written here once more, since those of the package take minutes where these take seconds, and err with groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.networks.importing.onnx_model import OnnxModel, onnx_package


@dataclass(frozen=True)
class OnnxReference:
    """A model as ONNX itself defines it, operator by operator, in float64: what its graph is compared with.

    Args:
        model: What it says.
        shape: Of its image.
        output: Name of what is predicted.
    """

    model: OnnxModel
    shape: tuple[int, ...]
    output: str

    @property
    def image(self) -> tuple[str, tuple[int, ...]]:
        """Name and shape of its input."""
        return self.model.image, self.shape

    def run(self, image: Tensor) -> Tensor:
        """What it gives, 1 C (Z) Y X, float64."""
        known = {name: _wide(array) for name, array in self.model.constants.items()}
        known[self.model.image] = image.double().numpy()
        last = {name: one.outputs for one in self.model.operators for name in one.inputs}
        for one in self.model.operators:
            if one.kind == "Cast" and known[one.inputs[0]].dtype == np.float64:
                results = [known[one.inputs[0]]]  # to another type of floating point: here all are float64
            else:
                results = run_operator(one.message, [known.get(n) for n in one.inputs], self.model.opset)
            known |= {name: _wide(value) for name, value in zip(one.outputs, results, strict=False)}
            if self.output in one.outputs:
                break
            for name in one.inputs:
                if last[name] == one.outputs and name in known:
                    del known[name]
        return torch.from_numpy(np.ascontiguousarray(known[self.output]))


def _wide(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.astype(np.float64) if array.dtype.kind not in "iub" else array


def run_operator(operator: Any, given: Sequence[np.ndarray | None], opset: int) -> list[np.ndarray]:
    """What one operator gives.

    Args:
        operator: As it is in the file.
        given: What it is given; None for what is left out.
        opset: Version of its meaning.
    """
    if operator.op_type in ("Conv", "ConvTranspose"):
        x, w, b = (*given, None)[:3]
        if x is None or w is None:
            raise ValueError(f"'{operator.name}' is given no image or no kernel.")
        return [(_convolved if operator.op_type == "Conv" else _spread)(x, w, b, _Window.of(operator, x, w))]
    if operator.op_type in EXACT and given[0] is not None:
        return [EXACT[operator.op_type](given[0], operator)]
    if operator.op_type == "GroupNormalization":
        return [_group_norm(given, operator, opset)]
    onnx = onnx_package()
    named = {name: value for name, value in zip(operator.input, given, strict=True) if name and value is not None}
    helper = onnx.helper
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in named.items()
    ]
    outputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in operator.output if name
    ]
    graph = helper.make_graph([operator], "operator", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    results: list[np.ndarray] = [np.asarray(one) for one in onnx.reference.ReferenceEvaluator(model).run(None, named)]
    return results


def _erf(x: np.ndarray) -> np.ndarray:
    """`math.erf` of each value."""
    result: np.ndarray = np.vectorize(math.erf, otypes=[np.float64])(x)
    return result


def _gelu(x: np.ndarray, operator: Any) -> np.ndarray:
    smooth = any(one.name == "approximate" and one.s == b"tanh" for one in operator.attribute)
    within = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)) if smooth else _erf(x / math.sqrt(2))
    result: np.ndarray = 0.5 * x * (1 + within)
    return result


def _group_norm(given: Sequence[np.ndarray | None], operator: Any, opset: int) -> np.ndarray:
    """The package's has float32 within."""
    x, factor, summand = (np.asarray(one) for one in given)
    said = {one.name: one for one in operator.attribute}
    groups, epsilon = said["num_groups"].i, said["epsilon"].f if "epsilon" in said else float(np.float32(1e-5))
    joined = x.reshape(groups, -1)
    variance = joined.var(1, keepdims=True)
    normal = ((joined - joined.mean(1, keepdims=True)) / np.sqrt(variance + epsilon)).reshape(x.shape[1], -1)
    each = 1 if opset >= 21 else x.shape[1] // groups
    result: np.ndarray = normal * np.repeat(factor, each)[:, None] + np.repeat(summand, each)[:, None]
    return result.reshape(x.shape)


EXACT: Mapping[str, Callable[[np.ndarray, Any], np.ndarray]] = {
    "Erf": lambda x, _: _erf(x),
    "Gelu": _gelu,
    "HardSwish": lambda x, _: x * np.clip(x / 6 + 0.5, 0, 1),
}
"""Functions whose constants the package has in float32."""


class _Window(NamedTuple):
    """What the attributes of a convolution say, axis by axis."""

    strides: list[int]
    dilations: list[int]
    low: list[int]
    high: list[int]
    extra: list[int]
    groups: int

    @classmethod
    def of(cls, operator: Any, x: np.ndarray, w: np.ndarray) -> _Window:
        said = {one.name: onnx_package().helper.get_attribute_value(one) for one in operator.attribute}
        n = w.ndim - 2
        strides, dilations = said.get("strides", [1] * n), said.get("dilations", [1] * n)
        pads = said.get("pads", [0] * 2 * n)
        low, high = pads[:n], pads[n:]
        how = said.get("auto_pad", b"NOTSET").decode()
        if how.startswith("SAME"):
            written = [-(-m // s) for m, s in zip(x.shape[2:], strides, strict=True)]
            totals = [
                max((y - 1) * s + (k - 1) * d + 1 - m, 0)
                for y, s, k, d, m in zip(written, strides, w.shape[2:], dilations, x.shape[2:], strict=True)
            ]
            less = [total // 2 for total in totals]
            more = [total - half for total, half in zip(totals, less, strict=True)]
            low, high = (less, more) if how == "SAME_UPPER" else (more, less)
        return cls(strides, dilations, low, high, said.get("output_padding", [0] * n), said.get("group", 1))


def _convolved(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, a: _Window) -> np.ndarray:
    """`Conv`: tap by tap, what lies a tap away from each voxel."""
    padded = np.pad(x[0], [(0, 0), *zip(a.low, a.high, strict=True)])
    taps = w.shape[2:]
    written = [
        (n - d * (k - 1) - 1) // s + 1
        for n, d, k, s in zip(padded.shape[1:], a.dilations, taps, a.strides, strict=True)
    ]
    y = np.zeros((len(w), *written))
    for tap in np.ndindex(*taps):
        there = tuple(
            slice(t * d, t * d + s * (n - 1) + 1, s)
            for t, d, s, n in zip(tap, a.dilations, a.strides, written, strict=True)
        )
        for group in range(a.groups):
            out, into = len(w) // a.groups, w.shape[1]
            part = padded[(slice(group * into, (group + 1) * into), *there)]
            mine = slice(group * out, (group + 1) * out)
            y[mine] += np.tensordot(w[(mine, slice(None), *tap)], part, 1)
    return (y if b is None else y + b.reshape(-1, *[1] * len(taps)))[None]


def _spread(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, a: _Window) -> np.ndarray:
    """`ConvTranspose`: tap by tap, what each voxel adds a tap away."""
    taps, extents = w.shape[2:], x.shape[2:]
    whole = [
        s * (n - 1) + d * (k - 1) + 1 + more
        for s, n, d, k, more in zip(a.strides, extents, a.dilations, taps, a.extra, strict=True)
    ]
    y = np.zeros((w.shape[1] * a.groups, *whole))
    into, out = x.shape[1] // a.groups, w.shape[1]
    for tap in np.ndindex(*taps):
        there = tuple(
            slice(t * d, t * d + s * (n - 1) + 1, s)
            for t, d, s, n in zip(tap, a.dilations, a.strides, extents, strict=True)
        )
        for group in range(a.groups):
            mine = slice(group * into, (group + 1) * into)
            adds = np.tensordot(w[(mine, slice(None), *tap)].T, x[0][mine], 1)
            y[(slice(group * out, (group + 1) * out), *there)] += adds
    y = y[(slice(None), *(slice(lo, n - hi) for lo, hi, n in zip(a.low, a.high, whole, strict=True)))]
    return (y if b is None else y + b.reshape(-1, *[1] * len(taps)))[None]

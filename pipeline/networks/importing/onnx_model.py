"""The file of an ONNX model, as what it says: operators and tensors. A message of protobuf, which runs nothing."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.errors import ModelError
from pipeline.installation import how_to_install

LARGEST_FILE = 2**31
"""Bytes of a model, without what it keeps in files beside it: protobuf's own limit."""

LARGEST_BESIDE = 2**36
"""Bytes of a file beside it."""

MOST_NODES = 20_000
"""Operators of a model; large networks have some three thousand."""

MOST_TENSORS = 100_000

OPSETS = range(9, 27)
"""Versions of ONNX's operators that have rules."""

FIELDS: Mapping[int, int] = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
"""Of a model in protobuf: by number, how they are written (0: a number, 2: bytes)."""

GRAPH, NODE, TENSOR = 7, 1, 5
"""Fields: of a model its graph; of that its operators, and its tensors."""


def is_onnx(path: Path) -> bool:
    """Whether a file is a model of ONNX, whatever it is called: such fields from its beginning to its end, a graph among them."""
    try:
        if not path.is_file() or not 0 < path.stat().st_size <= LARGEST_FILE:
            return False
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = set()
            for number, kind, _, _ in _fields(content, 0, len(content)):
                if FIELDS.get(number) != kind:
                    return False
                found.add(number)
    except (ValueError, OSError):
        return False
    return {1, GRAPH} <= found


def _fields(content: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Fields of a message of protobuf: number, kind, and where the value lies; nothing is copied.

    Raises:
        ValueError: These bytes are none.
    """
    while start < stop:
        key, start = _number(content, start, stop)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value = start
            _, start = _number(content, start, stop)
        elif kind == 2:
            length, value = _number(content, start, stop)
            start = value + length
        else:
            value, start = start, start + {1: 8, 5: 4}.get(kind, stop)
        if not number or start > stop:
            raise ValueError("no message of protobuf")
        yield number, kind, value, start


def _number(content: mmap.mmap, start: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while start < stop and shift < 70:
        byte = content[start]
        value, shift, start = value | (byte & 127) << shift, shift + 7, start + 1
        if byte < 128:
            return value, start
    raise ValueError("no number of protobuf")


def check_counts(path: Path) -> None:
    """Refuse what is too large before it is read into memory.

    Raises:
        ModelError: It is.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise ModelError(f"it has more than {LARGEST_FILE:,} bytes.")
    counts = {NODE: 0, TENSOR: 0}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for number, _, start, stop in _fields(content, 0, len(content)):
            for inner, _, _, _ in _fields(content, start, stop) if number == GRAPH else ():
                if inner in counts:
                    counts[inner] += 1
                if counts[NODE] > MOST_NODES or counts[TENSOR] > MOST_TENSORS:
                    raise ModelError(
                        f"it has more than {MOST_NODES:,} operators or {MOST_TENSORS:,} tensors, which no network of this kind has."
                    )


def onnx_package() -> Any:
    """The package that knows the format, and runs its operators.

    Raises:
        ModelError: It is not installed; says how.
    """
    try:
        import onnx.reference  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ModelError(
            f"models of ONNX are read by the package onnx, which is not installed: {how_to_install('onnx')}"
        ) from error
    return onnx


def _message(path: Path) -> Any:
    """What protobuf makes of a file.

    Raises:
        ModelError: It is damaged.
    """
    onnx = onnx_package()
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - comes with the extra

    try:
        return onnx.load_model(str(path), load_external_data=False)
    except DecodeError as error:
        raise ModelError(f"it is damaged ({error}).") from error


@dataclass(frozen=True)
class Operator:
    """One operator of a model.

    Args:
        name: Its own, or that of what it gives.
        kind: What it is.
        inputs: Names of what it is given, empty for what is left out.
        outputs: Names of what it gives.
        attributes: By name: numbers, words, lists of them, or arrays.
        message: As it is in the file.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    message: Any


@dataclass(frozen=True)
class OnnxModel:
    """What a file says.

    Args:
        opset: Version of its operators.
        image: Name of its input.
        sizes: Batch, channels and extents of that; None where it leaves them open.
        outputs: Names of what it gives.
        constants: By name.
        operators: In order.
    """

    opset: int
    image: str
    sizes: tuple[int | None, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, np.ndarray]
    operators: tuple[Operator, ...]

    @classmethod
    def of(cls, path: Path) -> OnnxModel:
        message = _message(path)
        if message.functions:
            raise ModelError(f"it has functions of its own ('{message.functions[0].name}'), which have no rule here.")
        opset = [int(one.version) for one in message.opset_import if one.domain in ("", "ai.onnx")]
        if len(opset) != 1 or opset[0] not in OPSETS:
            raise ModelError(
                f"its operators are of version {', '.join(map(str, opset)) or 'none'}; {OPSETS[0]} to {OPSETS[-1]} are known: export it with "
                "another opset_version."
            )
        graph = message.graph
        if graph.sparse_initializer:
            raise ModelError("it has sparse tensors, which have no rule here.")
        constants = {one.name: _array(one, path.parent) for one in graph.initializer}
        images = [one for one in graph.input if one.name not in constants]
        if len(images) != 1:
            names = ", ".join(f"'{one.name}'" for one in images[:9])
            raise ModelError(f"it takes {len(images)} inputs ({names}); expected one image and nothing else.")
        operators = tuple(_operator(one, path.parent) for one in graph.node)
        given = [name for one in operators for name in one.outputs if name]
        if len({*given, *constants, images[0].name}) != len(given) + len(constants) + 1:
            raise ModelError("two of its operators or tensors give one name.")
        return cls(
            opset[0], images[0].name, _sizes(images[0]), tuple(one.name for one in graph.output), constants, operators
        )


def _sizes(image: Any) -> tuple[int | None, ...]:
    """Batch, channels and extents of an input."""
    tensor = image.type.tensor_type
    if not tensor.HasField("shape") or len(tensor.shape.dim) not in (4, 5):
        shown = f"{len(tensor.shape.dim)} axes" if tensor.HasField("shape") else "no shape"
        raise ModelError(f"its input '{image.name}' has {shown}; expected (1, C, Z, Y, X) or (1, C, Y, X).")
    sizes = [int(one.dim_value) if one.HasField("dim_value") else None for one in tensor.shape.dim]
    batch, channels, *extents = (None if n is not None and n < 1 else n for n in sizes)
    if channels is None:
        raise ModelError(f"its input '{image.name}' leaves open how many channels it has: export it with one number.")
    return batch, channels, *extents


def _operator(message: Any, folder: Path) -> Operator:
    name = message.name or next(iter(message.output), "") or message.op_type
    if message.domain not in ("", "ai.onnx"):
        raise ModelError(
            f"its node '{name}' is a {message.op_type} of the domain '{message.domain[:80]}', and only ONNX's own operators have rules here."
        )
    attributes = {one.name: _attribute(name, message.op_type, one, folder) for one in message.attribute}
    return Operator(name, message.op_type, tuple(message.input), tuple(message.output), attributes, message)


def _attribute(name: str, kind: str, attribute: Any, folder: Path) -> Any:
    onnx = onnx_package()
    types = onnx.AttributeProto
    if attribute.type == types.TENSOR:
        return _array(attribute.t, folder)
    if attribute.type in (types.FLOAT, types.INT, types.FLOATS, types.INTS, types.STRING, types.STRINGS):
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            return value.decode()
        return [one.decode() if isinstance(one, bytes) else one for one in value] if isinstance(value, list) else value
    raise ModelError(
        f"its node '{name}' is a {kind} with '{attribute.name}', a graph or another thing that has no rule here."
    )


def _array(tensor: Any, folder: Path) -> np.ndarray:
    """A tensor's values, from the model or from a file beside it; of numbers with few bits as float32.

    Raises:
        ModelError: They lie elsewhere, or are none that a network computes with.
    """
    onnx = onnx_package()
    sizes = tuple(int(n) for n in tensor.dims)
    if any(n < 0 for n in sizes) or tensor.data_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
        raise ModelError(f"its tensor '{tensor.name}' has sizes {sizes} and values of type {tensor.data_type}.")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        plain = onnx.TensorProto(
            name=tensor.name, data_type=tensor.data_type, dims=sizes, raw_data=_beside(tensor, folder)
        )
    else:
        plain = tensor
    array: np.ndarray = onnx.numpy_helper.to_array(plain)
    wide = array.dtype in (np.float32, np.float64) or array.dtype.kind in "iub"
    return array if wide else array.astype(np.float32)


def _beside(tensor: Any, folder: Path) -> bytes:
    """Bytes that a model keeps in a file beside it, and nowhere else.

    Raises:
        ModelError: They lie elsewhere, or are fewer than it says.
    """
    said = {one.key: one.value for one in tensor.external_data}
    location = said.get("location", "")
    path = folder / location
    inside = PurePosixPath(location)
    if not location or inside.is_absolute() or ".." in inside.parts or "\\" in location or "\0" in location:
        raise ModelError(f"its tensor '{tensor.name}' lies at '{location[:200]}', which is not beside the model.")
    if folder.resolve() not in path.resolve().parents:
        raise ModelError(f"its tensor '{tensor.name}' lies at '{location}', a link to what is not beside the model.")
    if not path.is_file():
        raise ModelError(
            f"its tensor '{tensor.name}' lies in '{location}', and there is no such file beside the model."
        )
    size = path.stat().st_size
    offset = int(said.get("offset", 0))
    length = int(said.get("length", size - offset))
    if size > LARGEST_BESIDE or offset < 0 or length < 0 or offset + length > size:
        raise ModelError(
            f"its tensor '{tensor.name}' is {length:,} bytes from {offset:,} on of '{location}', which has {size:,}."
        )
    with path.open("rb") as file:
        file.seek(offset)
        content: bytes = file.read(length)
    return content

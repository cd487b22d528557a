"""A file of `torch.export.save` (`.pt2`) to a graph, read as what it is: a zip of JSON and of tensors' bytes.

torch's own loader unpickles and evaluates what such a file says, and so runs whatever somebody wrote into it. Here nothing is
unpickled, imported or evaluated: calls are looked up by name among torch's own operations, and what has no rule is refused.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverloadPacket

from pipeline.errors import ModelError
from pipeline.networks.importing.lowering import Call, Lowering, Name, Network

LARGEST_DOCUMENT = 2**28
"""Bytes of the program; a large network has some five million."""

LARGEST_FILE = 2**36
"""Bytes of all that is in it."""

MOST_CALLS = 100_000

SCHEMA = 8
"""Major version of the program's schema that is understood."""

DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
"""By the schema's number."""

PLAIN = frozenset(["as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string", "as_strings"])
"""Arguments that are what they say."""


def is_archive(path: Path) -> bool:
    """Whether a file is such a one, whatever it is called."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(PurePosixPath(name).match("*/models/*.json") for name in file.namelist())


def read_archive(path: Path, *, output: int = 0) -> Network:
    """The graph of a file.

    Args:
        path: Of `torch.export.save`.
        output: Which of its outputs is predicted, where it has several.

    Raises:
        ModelError: It is damaged, holds more than a program and tensors, or a call without a rule.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return _Archive(file).network(output)
    except ModelError as error:
        raise ModelError(f"'{path}': {error}") from error
    except (
        zipfile.BadZipFile,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        RecursionError,
        OSError,
        RuntimeError,  # of a call on weights that do not fit it
    ) as error:
        raise ModelError(
            f"'{path}' cannot be read as a program of torch.export ({type(error).__name__}: {error}). It is damaged, or of a "
            "version that is not known here: export the network again."
        ) from error


class _Archive:
    """An open file."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._file = file
        members = file.infolist()
        if sum(member.file_size for member in members) > LARGEST_FILE:
            raise ModelError(f"it holds more than {LARGEST_FILE:,} bytes.")
        programs = [m.filename for m in members if PurePosixPath(m.filename).match("*/models/*.json")]
        if len(programs) != 1:
            raise ModelError(f"it holds {len(programs)} programs; expected one.")
        self._root, _, name = programs[0].partition("/models/")
        self._model = name.removesuffix(".json")
        self._program = self._json(programs[0])
        version = self._program["schema_version"]["major"]
        if version != SCHEMA:
            raise ModelError(
                f"its schema is of version {version}, and {SCHEMA} is understood: export it with another torch."
            )

        parts = ("weights", "constants")
        self._configs = {
            kind: self._json(f"{self._root}/data/{kind}/{self._model}_{kind}_config.json")["config"] for kind in parts
        }

    def _json(self, name: str) -> Any:
        if self._file.getinfo(name).file_size > LARGEST_DOCUMENT:
            raise ModelError(f"its part '{name}' has more than {LARGEST_DOCUMENT:,} bytes.")
        return json.loads(self._file.read(name))

    def network(self, output: int) -> Network:
        module = self._program["graph_module"]
        graph, signature = module["graph"], module["signature"]
        if len(graph["nodes"]) > MOST_CALLS:
            raise ModelError(f"its program has {len(graph['nodes']):,} calls; at most {MOST_CALLS:,} are read.")
        shapes = {name: _sizes(meta["sizes"]) for name, meta in graph["tensor_values"].items()}
        lowering = Lowering()
        for spec in signature["input_specs"]:
            self._input(lowering, spec, shapes)
        for node in graph["nodes"]:
            lowering.call(_call(node, shapes))
        outputs = [spec["user_output"]["arg"] for spec in signature["output_specs"] if "user_output" in spec]
        return lowering.finish([arg["as_tensor"]["name"] for arg in outputs if "as_tensor" in arg], output)

    def _input(self, lowering: Lowering, spec: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        ((kind, content),) = spec.items()
        if kind == "user_input":
            name = content["arg"]["as_tensor"]["name"]
            lowering.input(name, shapes[name])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            stored = content[f"{kind}_name"]
            kept = (
                kind == "tensor_constant" or stored not in self._configs["weights"]
            )  # also buffers that no state dict has
            lowering.weight(content["arg"]["name"], self._tensor("constants" if kept else "weights", stored))
        else:
            raise ModelError(f"it takes a {kind}, which has no rule here.")

    def _tensor(self, kind: str, name: str) -> Tensor:
        """One that is stored as its bytes.

        Raises:
            ModelError: It is pickled, of a type that is not known, or shows more values than are stored.
        """
        entry = self._configs[kind][name]
        if entry["use_pickle"] or not entry["tensor_meta"]:
            raise ModelError(
                f"its tensor '{name}' is pickled, and nothing is unpickled here. Export the network on the CPU, with dense tensors."
            )
        meta = entry["tensor_meta"]
        if meta["dtype"] not in DTYPES:
            raise ModelError(f"its tensor '{name}' has a type that is not known here (number {meta['dtype']}).")
        path = PurePosixPath(entry["path_name"])
        if len(path.parts) != 1:
            raise ModelError(f"its tensor '{name}' lies at '{path}', which is no place of a tensor.")
        content = self._file.read(f"{self._root}/data/{kind}/{path}")
        flat = torch.frombuffer(bytearray(content), dtype=DTYPES[meta["dtype"]]) if content else torch.empty(0)
        sizes, strides, offset = _sizes(meta["sizes"]), _sizes(meta["strides"]), _size(meta["storage_offset"])
        if prod(sizes) > flat.numel():
            raise ModelError(f"its tensor '{name}' shows {prod(sizes):,} values, and {flat.numel():,} are stored.")
        return flat.as_strided(sizes, strides, offset)


def _size(entry: Mapping[str, Any]) -> int:
    """A number, or what stood for a symbol when it was exported."""
    if "as_int" in entry:
        return int(entry["as_int"])
    return int(entry["as_expr"]["hint"]["as_int"])


def _sizes(entries: Any) -> tuple[int, ...]:
    return tuple(_size(entry) for entry in entries)


def _call(node: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Call:
    names = [arg["as_tensor"]["name"] for arg in node["outputs"] if "as_tensor" in arg]
    for arg in node["outputs"]:
        names += [part["name"] for part in arg.get("as_tensors", ())]
    name = names[0] if names else str(node.get("name") or node["target"])
    given = {entry["name"]: _argument(name, entry["arg"]) for entry in node["inputs"]}
    return Call(name, _target(name, node["target"]), given, {key: shapes.get(key, ()) for key in names})


def _argument(call: str, arg: Mapping[str, Any]) -> Any:
    ((kind, value),) = ((key, value) for key, value in arg.items())
    if kind in PLAIN:
        return value
    if kind == "as_none":
        return None
    if kind == "as_tensor":
        return Name(value["name"])
    if kind == "as_tensors":
        return [Name(one["name"]) for one in value]
    if kind == "as_optional_tensors":
        return [Name(one["as_tensor"]["name"]) if "as_tensor" in one else None for one in value]
    if kind == "as_sym_int" and "as_int" in value:
        return int(value["as_int"])
    if kind == "as_sym_ints" and all("as_int" in one for one in value):
        return [int(one["as_int"]) for one in value]
    if kind == "as_scalar_type":
        return DTYPES.get(value)
    if kind in ("as_layout", "as_memory_format", "as_device"):
        return None  # of copies, which change no value here
    raise ModelError(f"its call '{call}' is given a {kind.removeprefix('as_')}, which has no rule here.")


def _target(call: str, target: str) -> Any:
    """An operation of torch's own, looked up by name."""
    parts = target.split(".")
    if parts[:3] != ["torch", "ops", "aten"] or len(parts) != 5:
        raise ModelError(
            f"its call '{call}' is of '{target[:120]}', and only torch's own operations (aten) have rules here."
        )
    packet = getattr(torch.ops.aten, parts[3], None)
    if not isinstance(packet, OpOverloadPacket) or parts[4] not in packet.overloads():
        raise ModelError(f"its call '{call}' is of '{target[:120]}', which this torch does not know.")
    return getattr(packet, parts[4])

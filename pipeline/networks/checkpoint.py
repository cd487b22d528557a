"""Checkpoints: what they say, what they must not be, and nothing unpickled on the way.

Two kinds are read. Our own: safetensors whose metadata entry `halotile` holds architecture, axes, normalisation,
voxel size, what its training data looked like, whether it learnt anything, and provenance. And the notes': a plain `state_dict`, whose names and shapes tell the architecture.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from math import inf, isfinite
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.core.appearance import Appearance
from pipeline.core.network.imported import AnyNetwork, Imported, network_of
from pipeline.core.network.operations import Activation
from pipeline.core.network.unet import Architecture, Padding
from pipeline.core.normalization import Mode, Normalization
from pipeline.core.strict_json import json_text
from pipeline.errors import ModelError
from pipeline.networks.model import UNet
from pipeline.networks.tensors import expected
from pipeline.places.durable import replace

METADATA_KEY = "halotile"

LARGEST_HEADER = 2**24
"""Bytes of a safetensors header; the library itself takes 100 MB."""

MOST_TENSORS = 10_000
"""That a checkpoint holds; a network of depth 16 has some 300."""

DEEPEST_METADATA = 64
"""Levels of values in values."""

DEEPEST = 16
"""Poolings of a network; its stride is 65,536."""

WIDEST = 2**16
"""Channels of one layer."""

ACTIVATIONS = ("none", "sigmoid", "softmax")
"""That a network's package may declare for its output."""

BOUNDED = ("sigmoid", "softmax", "hardsigmoid", "binarize")
"""Functions whose values are from 0 to 1."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained network, as read.

    Args:
        architecture: What to build; of an imported network, its graph.
        state: Tensors by the notes' names, float32, on the CPU; of an imported network by `NODE.NUMBER`.
        padding_known: Whether the file itself says how its convolutions pad.
        normalization: The rule that it was trained with; None where the file does not say.
        axes: Axes of its input, such as `czyx`.
        voxel_size_nm: Voxel size of the training data along its spatial axes; None where the file does not say.
        provenance: Free facts about its making.
        training_data: What each volume of its training looked like to it; empty where the file does not say.
        learned: Whether its training found anything; None where the file does not say.
        original: Of a network whose statistics were fixed: `sha256` of the one that it came from.
        activation: What its package declares to be applied to what it gives: `none`, `sigmoid` or `softmax`; None where nobody says.
    """

    architecture: AnyNetwork
    state: dict[str, Tensor]
    padding_known: bool = False
    normalization: Normalization | None = None
    axes: str | None = None
    voxel_size_nm: tuple[float, ...] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    training_data: tuple[Appearance, ...] = ()
    learned: bool | None = None
    original: str = ""
    activation: str | None = None

    @cached_property
    def sha256(self) -> str:
        """Digest of the weights: the same for the same tensors, whatever file they came in."""
        digest = hashlib.sha256()
        for name in sorted(self.state):
            tensor = self.state[name]
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def digest(self) -> str:
        """Of all that decides what a run computes: the weights, and what else the file says, but not where they came from."""
        identity = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("state", "provenance", "original")
        }
        if self.activation is None:
            del identity["activation"]
        return hashlib.sha256(f"{self.sha256} {sorted(identity.items())}".encode()).hexdigest()

    @property
    def is_bounded(self) -> bool:
        """Whether it ends in what gives values from 0 to 1."""
        operation = self.architecture.graph.output.operation
        if not isinstance(operation, Activation):
            return False
        ends = operation.values if operation.function == "clamp" else ()
        return operation.function in BOUNDED or (len(ends) == 2 and 0 <= ends[0] <= ends[1] <= 1)

    @property
    def unet(self) -> Architecture:
        """The architecture of a UNet of ours.

        Raises:
            ModelError: It is an imported network.
        """
        if isinstance(self.architecture, Imported):
            raise ModelError("This is for a UNet of ours, and the checkpoint is an imported network.")
        return self.architecture

    @property
    def weights(self) -> dict[str, tuple[Tensor, ...]]:
        """Tensors of an imported network by node, in the order of its operation."""
        by_node: dict[str, dict[int, Tensor]] = {}
        for name, tensor in self.state.items():
            node, _, number = name.rpartition(".")
            by_node.setdefault(node, {})[int(number)] = tensor
        return {node: tuple(tensors[i] for i in sorted(tensors)) for node, tensors in by_node.items()}

    def build(self) -> UNet:
        """The UNet with these weights, in evaluation mode."""
        model = UNet(self.unet)
        model.load_state_dict(self.state, strict=True)
        return model.eval().requires_grad_(False)


def load_checkpoint(path: str | Path, *, padding: Padding | None = None) -> Checkpoint:
    """Read a checkpoint of either kind.

    Args:
        path: A `.safetensors` file, or a `state_dict` saved by `torch.save`.
        padding: How the convolutions pad; only where the file does not say (then `same` by default).

    Raises:
        ModelError: The file is missing, damaged, no checkpoint of this network, or cannot be exact.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"Checkpoint '{path}' was asked for, but there is no such file. Check model.checkpoint.")
    status = path.stat()
    return _loaded(path, padding, (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


@lru_cache(maxsize=1)  # the runs of a dataset have one network
def _loaded(path: Path, padding: Padding | None, _state: tuple[int, ...]) -> Checkpoint:
    tensors, metadata = _read(path)
    _refuse_strange(tensors, str(path))
    state = {name: t.to(torch.float32) if t.is_floating_point() else t for name, t in tensors.items()}
    content = _metadata(path, metadata)
    if content and isinstance(content["architecture"], Imported):
        return _imported(path, state, content, padding)
    stored_padding = content["architecture"].padding if content else None
    if stored_padding and padding and stored_padding != padding:
        raise ModelError(
            f"model.padding is '{padding}', but checkpoint '{path}' was trained with '{stored_padding}'. "
            "Leave model.padding out: it is only for checkpoints that do not say."
        )
    architecture = recognise(state, padding=stored_padding or padding or "same", source=str(path))
    if content:
        _check_architecture(path, content["architecture"], architecture)
    return _of_content(architecture, _completed(state, architecture, str(path)), content, stored_padding is not None)


def _of_content(
    architecture: AnyNetwork, state: dict[str, Tensor], content: Mapping[str, Any], padding_known: bool
) -> Checkpoint:
    return Checkpoint(
        architecture=architecture,
        state=state,
        padding_known=padding_known,
        normalization=content.get("normalization"),
        axes=content.get("axes"),
        voxel_size_nm=content.get("voxel_size_nm"),
        provenance=content.get("provenance", {}),
        training_data=content.get("training_data", ()),
        learned=content.get("learned"),
        activation=content.get("activation"),
    )


def _imported(path: Path, state: dict[str, Tensor], content: Mapping[str, Any], padding: Padding | None) -> Checkpoint:
    """A network whose file holds its graph.

    Raises:
        ModelError: Its tensors are not those that the graph asks for, or it pads otherwise than is asked.
    """
    architecture: Imported = content["architecture"]
    if padding not in (None, architecture.padding):
        raise ModelError(
            f"model.padding is '{padding}', but checkpoint '{path}' is an imported network, whose graph says '{architecture.padding}'. "
            "Leave model.padding out."
        )
    problems = [*_other_tensors(architecture, state)]
    if problems:
        raise ModelError(
            f"Checkpoint '{path}' holds a graph, but not its weights: {_listed(problems)}. Import the network again."
        )
    _refuse_nonfinite(state, str(path))
    return _of_content(architecture, state, content, True)


def _other_tensors(architecture: Imported, state: Mapping[str, Tensor]) -> Iterator[str]:
    """Tensors that are missing, too many, or of another shape."""
    graph, known = architecture.graph, set[str]()
    for node in graph.nodes:
        for number, tensor in enumerate(expected(graph, node, architecture.ndim)):
            name = f"{node.name}.{number}"
            known.add(name)
            if name not in state:
                if not tensor.may_miss:
                    yield f"{name} is missing"
            elif tuple(state[name].shape) not in tensor.shapes:
                yield f"{name} is {tuple(state[name].shape)}, not {tensor.shapes[0]}"
    yield from (f"{name} is of no node" for name in state if name not in known)


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write our own kind: safetensors with all that a run needs in its metadata."""
    # Not `save_file`: it makes files that only their owner may read.
    replace(Path(path), checkpoint_bytes(checkpoint))


def checkpoint_bytes(checkpoint: Checkpoint) -> bytes:
    """What `save_checkpoint` writes."""
    content = {
        "format": 1,
        "architecture": checkpoint.architecture.to_dict(),
        "normalization": checkpoint.normalization.to_dict() if checkpoint.normalization else None,
        "axes": checkpoint.axes,
        "voxel_size_nm": checkpoint.voxel_size_nm,
        "provenance": checkpoint.provenance,
        "training_data": [appearance.to_dict() for appearance in checkpoint.training_data],
        "learned": checkpoint.learned,
        **({"activation": checkpoint.activation} if checkpoint.activation else {}),
    }
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.state.items()}
    return save(tensors, metadata={METADATA_KEY: json_text(content, sort_keys=True)})


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    named = path.suffix == ".safetensors" and not zipfile.is_zipfile(path)  # a registry calls all of them so
    if named or _opens_like_safetensors(path):
        return _read_safetensors(path)
    try:
        with path.open("rb") as file:  # by its content: of a name torch would guess
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of damaged bytes the unpickler makes IndexError, struct.error, AssertionError and more
        raise ModelError(
            f"Checkpoint '{path}' cannot be read as a state_dict ({path.stat().st_size} bytes; {first_line(error)}). "
            "It is truncated, not a checkpoint, or holds more than tensors. Copy it again, or save "
            "`model.state_dict()` alone: nothing else is ever unpickled."
        ) from error
    return _state_dict(content, path), {}


def _opens_like_safetensors(path: Path) -> bool:
    """Whether a JSON header follows eight bytes of length, whatever the file is called."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    _check_header(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"Checkpoint '{path}' cannot be read as safetensors ({path.stat().st_size} bytes; {first_line(error)}). "
            "It is truncated or not a checkpoint. Copy it again from where it was made."
        ) from error


def _check_header(path: Path) -> None:
    """Refuse a header that is larger, deeper or of more names than a network's, before it is taken in.

    Raises:
        ModelError: It is, or is no header.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        content = file.read(length) if length <= min(LARGEST_HEADER, size) else b""
    try:
        if length > LARGEST_HEADER:
            raise ValueError(f"a header of {length:,} bytes; at most {LARGEST_HEADER:,} are read")
        header = json.loads(content)
        metadata = header.get("__metadata__") or {}
        if len(header) > MOST_TENSORS:
            raise ValueError(f"{len(header):,} tensors; at most {MOST_TENSORS:,} are read")
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that are no texts")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"Checkpoint '{path}' cannot be read as safetensors ({size} bytes; {first_line(error)}). "
            "It is truncated or not a checkpoint. Copy it again from where it was made."
        ) from error


def first_line(error: Exception) -> str:
    """What an error says in one line; of the unpickler's many, the telling one."""
    lines = str(error).splitlines() or [type(error).__name__]
    telling = next((line for line in lines if "WeightsUnpickler error" in line), lines[0])
    return re.sub(r"\x1b\[\d*m", "", telling).strip()[:160]


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The mapping of tensors in what `torch.load` returned, also one level down (`{"net": ..., "optim": ...}`)."""
    candidates = [content, *content.values()] if isinstance(content, Mapping) else []
    for candidate in candidates:
        if isinstance(candidate, Mapping) and candidate and all(isinstance(t, Tensor) for t in candidate.values()):
            return {str(name).removeprefix("module."): tensor for name, tensor in candidate.items()}
    raise ModelError(
        f"Checkpoint '{path}' holds {type(content).__name__}, not a state_dict (a mapping of names to tensors). "
        "Save `model.state_dict()`."
    )


def _metadata(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """What our metadata says, as `Checkpoint` takes it; empty where there is none."""
    if METADATA_KEY not in metadata:
        return {}
    try:
        return _parsed(json.loads(metadata[METADATA_KEY]))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ModelError(
            f"The metadata of checkpoint '{path}' cannot be understood ({type(error).__name__}: {error}). "
            "Write the checkpoint again."
        ) from error


def _parsed(content: dict[str, Any]) -> dict[str, Any]:
    if _depth_of(content) > DEEPEST_METADATA:
        raise ValueError(f"values stand in values more than {DEEPEST_METADATA} levels deep")
    architecture = network_of(content["architecture"])
    rule = Normalization(**content["normalization"]) if content.get("normalization") else None
    size = tuple(float(v) for v in content.get("voxel_size_nm") or ())
    if architecture.padding not in get_args(Padding):
        raise ValueError(f"padding '{architecture.padding}'")
    if rule and rule.mode not in get_args(Mode):
        raise ValueError(f"normalization '{rule.mode}'")
    if rule and not all(
        isinstance(v, int | float) and isfinite(v) for v in (rule.offset, rule.scale, rule.low, rule.high)
    ):
        raise ValueError(f"normalization {rule.to_dict()}")
    if len(size) > 3 or not all(0 < v < inf for v in size):
        raise ValueError(f"voxel size {size}")
    if not set(content.get("axes") or "") <= set("czyx"):
        raise ValueError(f"axes {content['axes']!r}")
    if not isinstance(content.get("learned"), bool | None):
        raise ValueError(f"learned '{content['learned']}'")
    if content.get("activation") not in (None, *ACTIVATIONS):
        raise ValueError(f"activation '{content['activation']}'")
    return {
        "architecture": architecture,
        "normalization": rule,
        "axes": content.get("axes"),
        "voxel_size_nm": size or None,
        "provenance": dict(content.get("provenance") or {}),
        "training_data": tuple(Appearance.from_dict(part) for part in content.get("training_data") or ()),
        "learned": content.get("learned"),
        "activation": content.get("activation"),
    }


def _depth_of(value: Any) -> int:
    """Levels of values in values; what JSON read is no circle."""
    deepest, left = 0, [(value, 0)]
    while left:
        inner, depth = left.pop()
        deepest = max(deepest, depth)
        children = inner.values() if isinstance(inner, dict) else inner if isinstance(inner, list) else ()
        left += [(child, depth + 1) for child in children]
    return deepest


def _refuse_strange(tensors: Mapping[str, Tensor], source: str) -> None:
    if len(tensors) > MOST_TENSORS:
        raise ModelError(
            f"Checkpoint '{source}' holds {len(tensors):,} tensors; at most {MOST_TENSORS:,} are read. It is of another network."
        )
    strange = [
        n for n, t in tensors.items() if t.layout is not torch.strided or t.is_meta or t.is_complex() or _is_spread(t)
    ]
    if strange:
        raise ModelError(
            f"Checkpoint '{source}' holds tensors that are sparse, complex, spread or without values: {_listed(strange)}. "
            "Save dense real weights."
        )


def _is_spread(tensor: Tensor) -> bool:
    """Whether it shows values more than once: a few bytes that would become as many as its shape says."""
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def recognise(state: Mapping[str, Tensor], *, padding: Padding, source: str) -> Architecture:
    """The architecture, by names and shapes.

    Args:
        state: Tensors by name.
        padding: How the convolutions pad, which weights do not show.
        source: Where the tensors came from, for errors.

    Raises:
        ModelError: Names or shapes are not those of this network, or a norm has no running statistics.
    """
    first, last = state.get("encoder1_1.0.weight"), state.get("fc.weight")
    if first is None or last is None or first.ndim not in (4, 5) or last.ndim != first.ndim:
        raise ModelError(
            f"Checkpoint '{source}' is not this UNet: expected tensors named 'encoder1_1.0.weight' ... 'fc.bias', found "
            f"{_listed(list(state))}. Rename the tensors to the scheme in the README ('The network'), train with it, or, of another library's network, name its class in model.architecture."
        )
    _refuse_inexact_norms(state, source)
    _refuse_sizes(first, last, _depth(state), source)
    return Architecture(
        ndim=first.ndim - 2,
        depth=_depth(state),
        width=first.shape[0],
        in_channels=first.shape[1],
        out_channels=last.shape[0],
        padding=padding,
        bias=any(name.endswith((".0.bias", "fc.bias")) for name in state),
        norm="batch" if "encoder1_1.1.running_mean" in state else "none",
    )


def _refuse_sizes(first: Tensor, last: Tensor, depth: int, source: str) -> None:
    channels = (*first.shape[:2], last.shape[0])
    if depth > DEEPEST or not all(1 <= n <= WIDEST for n in channels):
        raise ModelError(
            f"Checkpoint '{source}' looks like a network of depth {depth} and {list(channels)} channels; at most depth {DEEPEST} "
            f"and 1 to {WIDEST:,} channels are read. It is of another network, or damaged."
        )


def _depth(state: Mapping[str, Tensor]) -> int:
    """Poolings, by the names; one too many is enough to refuse them."""
    depth = 0
    while depth <= DEEPEST and f"unpool{depth + 1}.weight" in state:
        depth += 1
    return max(depth, 1)


def _refuse_inexact_norms(state: Mapping[str, Tensor], source: str) -> None:
    blind = [n for n in state if n.endswith(".1.weight") and n.replace(".weight", ".running_mean") not in state]
    if blind:
        raise ModelError(
            f"Checkpoint '{source}' normalises without stored statistics ('{blind[0]}' has no 'running_mean' beside it): "
            "an instance, group or layer norm, or a batch norm without running statistics. Such a layer looks at its "
            "whole input, so no halo makes tiles equal to one pass. Train with batch norm (its statistics are fixed "
            "afterwards) or without a norm."
        )


def _completed(state: dict[str, Tensor], architecture: Architecture, source: str) -> dict[str, Tensor]:
    """`state` checked against the architecture; biases that single layers lack are zero."""
    expected = {name: tuple(tensor.shape) for name, tensor in _meta_state(architecture).items()}
    stored = {name: tuple(tensor.shape) for name, tensor in state.items()}
    optional = {n for n in expected if n.endswith(".num_batches_tracked") or (n.endswith(".bias") and n not in stored)}
    affine = {n for n in expected if n.endswith((".1.weight", ".1.bias")) and n not in stored}
    missing = sorted(set(expected) - set(stored) - optional - affine)
    unknown = sorted(set(stored) - set(expected))
    shapes = [f"{n} {stored[n]} instead of {expected[n]}" for n in expected if n in stored and stored[n] != expected[n]]
    if missing or unknown or shapes:
        raise ModelError(
            f"Checkpoint '{source}' looks like depth {architecture.depth}, width {architecture.width}, "
            f"{architecture.ndim}D, but does not fit it. Missing: {_listed(missing)}. Unknown: {_listed(unknown)}. "
            f"Other shapes: {_listed(shapes)}. Check that the file is whole and of the network in the README."
        )
    _refuse_nonfinite(state, source)
    filled = {n: torch.ones(s) if n.endswith(".1.weight") else torch.zeros(s) for n, s in expected.items()}
    return {name: state.get(name, filled[name]) for name in expected}


def _meta_state(architecture: Architecture) -> dict[str, Tensor]:
    with torch.device("meta"):
        return UNet(architecture).state_dict()


def _refuse_nonfinite(state: Mapping[str, Tensor], source: str) -> None:
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ModelError(
            f"Checkpoint '{source}' has weights that are not finite: {_listed(bad)}. The training diverged or the file "
            "is damaged; use an earlier checkpoint."
        )


def _check_architecture(path: Path, written: Architecture, actual: Architecture) -> None:
    if written != actual:
        values = written.to_dict()
        different = [f"{k} {values[k]} but found {v}" for k, v in actual.to_dict().items() if values[k] != v]
        raise ModelError(
            f"The metadata of checkpoint '{path}' does not describe its weights: {', '.join(different)}. "
            "Write the checkpoint again."
        )


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more"

"""What a package of bioimage.io says of its network, in words of ours, of both formats that are about (0.4 and 0.5).

The format's own library checks and reads the description; it is given no way to the network, and no file but the YAML's text.

Source: bioimage.io model description (github.com/bioimage-io/spec-bioimage-io).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from ruamel.yaml.error import YAMLError

from pipeline.config.yaml_text import load_yaml
from pipeline.core.printable import one_line
from pipeline.errors import ModelError
from pipeline.installation import how_to_install
from pipeline.networks.importing.processing import Step

LETTERS = {"b": "batch", "c": "channel", "z": "z", "y": "y", "x": "x", "i": "index", "t": "time"}
"""Axes of 0.4, by their letters."""

CAST = "ensure_dtype"
"""The step that changes the type of values."""

FORMATS = (
    "onnx",
    "torchscript",
    "pytorch_state_dict",
    "keras_v3",
    "keras_hdf5",
    "tensorflow_js",
    "tensorflow_saved_model_bundle",
)
"""Of weights: those that run no code of the package first, those that are not read here last."""


@dataclass(frozen=True)
class File:
    """A file of a package, and the digest that it must have, where one is told."""

    source: str
    sha256: str | None = None


@dataclass(frozen=True)
class Code:
    """What builds a network for its state dict.

    Args:
        name: Of a class or function.
        arguments: That it is given.
        file: Of the package, that has it; None where `module` has.
        module: Of a library.
    """

    name: str
    arguments: Mapping[str, Any]
    file: File | None = None
    module: str = ""


@dataclass(frozen=True)
class WeightsEntry:
    """One of the forms in which a package has its weights.

    Args:
        format: By the specification's name.
        file: Of the weights.
        code: Of a state dict.
    """

    format: str
    file: File
    code: Code | None = None


@dataclass(frozen=True)
class Tensor:
    """An input or an output.

    Args:
        name: Its own.
        axes: `batch`, `channel`, `z`, `y`, `x`, in its order.
        sizes: By axis, as far as they are told: an extent, or the least and the step.
        steps: Before the network, or after it.
        test: The published one, `.npy`.
        halo: By axis, voxels a side.
    """

    name: str
    axes: tuple[str, ...]
    sizes: Mapping[str, int | tuple[int, int]]
    steps: tuple[Step, ...]
    test: File | None
    halo: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """What a package says of itself.

    Args:
        name: Of the model.
        format: Of the description, such as `0.5.4`.
        license: As it names it.
        cite: What is to be cited, in words, with its DOI or address.
        inputs: What the network is given.
        outputs: What it gives.
        weights: In the order of `FORMATS`.
    """

    name: str
    format: str
    license: str
    cite: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    weights: tuple[WeightsEntry, ...]


def read_description(text: str, source: str) -> Description:
    """What a description says.

    Args:
        text: Of the YAML.
        source: Where it came from, for errors.

    Raises:
        ModelError: bioimageio.spec is not installed, or the text is no description of a model in a format that is known.
    """
    try:
        content = load_yaml(text)
    except (YAMLError, ValueError) as error:
        raise ModelError(f"The description of '{source}' is no YAML: {one_line(str(error))[:300]}.") from error
    if not isinstance(content, dict) or content.get("type") != "model":
        raise ModelError(f"'{source}' describes no model: expected a YAML with 'type: model'.")
    version = str(content.get("format_version"))
    if version.split(".")[:2] not in (["0", "4"], ["0", "5"]):
        raise ModelError(
            f"The description of '{source}' is of format {one_line(version)[:20]}, and 0.4 and 0.5 are read. Convert it with `bioimageio update-format`."
        )
    model = _checked(content, source)
    old = version.startswith("0.4")
    if old:
        inputs = tuple(_old(t, test) for t, test in zip(model.inputs, model.test_inputs, strict=True))
        outputs = tuple(_old(t, test) for t, test in zip(model.outputs, model.test_outputs, strict=True))
    else:
        inputs = tuple(_new(t, told) for t, told in zip(model.inputs, content["inputs"], strict=True))
        outputs = tuple(_new(t, told) for t, told in zip(model.outputs, content["outputs"], strict=True))
    entries = [(name, getattr(model.weights, name, None)) for name in FORMATS]
    weights = tuple(_entry(name, entry) for name, entry in entries if entry is not None)
    cite = tuple(_cited(entry) for entry in model.cite)
    return Description(str(model.name), version, str(model.license or ""), cite, inputs, outputs, weights)


def _checked(content: dict[str, Any], source: str) -> Any:
    """The description as the format's library has it."""
    spec = _spec()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = spec.ValidationContext(perform_io_checks=False, update_hashes=False)
        model = spec.build_description(content, context=context)
    if isinstance(model, spec.InvalidDescr):
        errors = [error for detail in model.validation_summary.details for error in detail.errors]
        reasons = "; ".join(f"{'.'.join(map(str, e.loc))}: {e.msg}" for e in errors[:6])
        raise ModelError(
            f"The description of '{source}' is refused by bioimageio.spec {spec.__version__}: {one_line(reasons)[:600]}."
        )
    return model


def _spec() -> ModuleType:
    try:
        from bioimageio import spec  # noqa: PLC0415 - an extra, and slow
    except ImportError as error:
        raise ModelError(
            f"A package of bioimage.io was asked for, but bioimageio.spec cannot be imported ({error}). To have it, "
            + how_to_install("bioimageio")
        ) from error
    return spec


# --- format 0.5 ---------------------------------------------------------------------------------------------------------


def _new(tensor: Any, told: Mapping[str, Any]) -> Tensor:
    axes = tuple(str(axis.id) for axis in tensor.axes)
    key = "preprocessing" if hasattr(tensor, "preprocessing") else "postprocessing"
    return Tensor(
        name=str(tensor.id),
        axes=axes,
        sizes={str(axis.id): size for axis in tensor.axes if (size := _new_size(axis)) is not None},
        steps=_told(tuple(Step(str(s.id), _new_arguments(s)) for s in getattr(tensor, key)), told.get(key) or ()),
        test=_file(tensor.test_tensor),
        halo={str(axis.id): int(axis.halo) for axis in tensor.axes if getattr(axis, "halo", 0)},
    )


def _told(steps: tuple[Step, ...], told: Sequence[Any]) -> tuple[Step, ...]:
    """Without a change of type at either end that the format's library has put there: the package does not say it."""
    names = [step.get("id") if isinstance(step, Mapping) else None for step in told]
    first = bool(steps) and steps[0].name == CAST and names[:1] != [CAST]
    last = len(steps) > first and steps[-1].name == CAST and names[-1:] != [CAST]
    return steps[int(first) : len(steps) - int(last)]


def _new_size(axis: Any) -> int | tuple[int, int] | None:
    if getattr(axis, "channel_names", None) is not None:
        return len(axis.channel_names)
    size = axis.size
    if isinstance(size, int):
        return size
    step = getattr(size, "step", None)
    return None if step is None else (int(size.min), int(step))


def _new_arguments(step: Any) -> dict[str, Any]:
    arguments = step.kwargs.model_dump() if hasattr(step.kwargs, "model_dump") else dict(step.kwargs)
    if arguments.get("axes") is not None:
        arguments["axes"] = [str(axis) for axis in arguments["axes"]]
    return arguments | {key: str(arguments[key]) for key in ("axis", "reference_tensor") if arguments.get(key)}


# --- format 0.4 ---------------------------------------------------------------------------------------------------------


def _old(tensor: Any, test: Any) -> Tensor:
    axes = tuple(LETTERS.get(letter, letter) for letter in tensor.axes)
    halo = getattr(tensor, "halo", None) or (0,) * len(axes)
    declared = getattr(tensor, "preprocessing", None) or getattr(tensor, "postprocessing", None) or ()
    return Tensor(
        name=str(tensor.name),
        axes=axes,
        sizes=_old_sizes(tensor.shape, axes),
        steps=tuple(Step(str(step.name), _old_arguments(step)) for step in declared),
        test=_file(test),
        halo={axis: int(n) for axis, n in zip(axes, halo, strict=True) if n},
    )


def _old_sizes(shape: Any, axes: Sequence[str]) -> dict[str, int | tuple[int, int]]:
    if isinstance(shape, Sequence):
        return {axis: int(n) for axis, n in zip(axes, shape, strict=False)}
    if getattr(shape, "step", None) is None:  # of an output, by an input's
        return {}
    both = zip(axes, shape.min, shape.step, strict=False)
    return {axis: (int(least), int(step)) if step else int(least) for axis, least, step in both}


def _old_arguments(step: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = step.kwargs.model_dump()
    if arguments.get("axes") is not None:
        arguments["axes"] = [LETTERS.get(letter, letter) for letter in arguments["axes"]]
    return arguments


def _cited(entry: Any) -> str:
    return " ".join(str(part) for part in (entry.text, entry.doi, entry.url) if part)


# --- files --------------------------------------------------------------------------------------------------------------


def _file(entry: Any) -> File | None:
    if entry is None:
        return None
    source = getattr(entry, "source", entry)
    sha256 = getattr(entry, "sha256", None)
    return File(str(source), str(sha256) if sha256 else None)


def _entry(name: str, entry: Any) -> WeightsEntry:
    file = _file(entry)
    if file is None:
        raise TypeError(f"weights '{name}' name no file")
    return WeightsEntry(name, file, _code(entry) if name == "pytorch_state_dict" else None)


def _code(entry: Any) -> Code | None:
    """The architecture of a state dict; None where a package tells none."""
    found = entry.architecture
    if found is None:
        return None
    if hasattr(found, "callable"):  # 0.5
        arguments = dict(found.kwargs)
        if hasattr(found, "import_from"):
            return Code(str(found.callable), arguments, module=str(found.import_from))
        return Code(str(found.callable), arguments, file=_file(found))
    text, arguments = str(found), dict(entry.kwargs)
    if ":" in text:
        source, _, name = text.rpartition(":")
        return Code(name, arguments, file=File(source, str(entry.architecture_sha256 or "") or None))
    module, _, name = text.rpartition(".")
    return Code(name, arguments, module=module)

"""A network of another library, from its file to a checkpoint that workers read without that library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from pipeline.core.network.imported import Imported
from pipeline.core.strict_json import json_text
from pipeline.errors import ModelError
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.importing.archive import is_archive, read_archive
from pipeline.networks.importing.library import LibraryClass, build_network
from pipeline.networks.importing.lowering import Network
from pipeline.networks.importing.onnx import is_onnx, read_onnx
from pipeline.networks.importing.package import Importer, import_package
from pipeline.networks.importing.package_files import is_package
from pipeline.networks.importing.proof import prove
from pipeline.networks.importing.torchscript import is_torchscript, read_torchscript


class _Reader(Protocol):
    def __call__(self, path: Path, *, output: int = 0) -> Network: ...


@dataclass(frozen=True)
class Kind:
    """A kind of file that holds a network.

    Args:
        name: For a person.
        is_one: Whether a file is of the kind, by its content; never raises for a file that is not.
        read: Its network; nothing in the file is executed.
    """

    name: str
    is_one: Callable[[Path], bool]
    read: _Reader


KINDS = (
    Kind("a program of torch.export (.pt2)", is_archive, read_archive),
    Kind("a model of ONNX", is_onnx, read_onnx),
    Kind("an archive of TorchScript", is_torchscript, read_torchscript),
)
"""In the order in which a file is tried."""


def kind_of(path: Path) -> Kind | None:
    """The kind of a file, by its content; None where it is of none, such as a checkpoint of ours."""
    return next((kind for kind in KINDS if kind.is_one(path)), None) if path.exists() else None


def is_foreign(path: Path) -> bool:
    """Whether a file or folder holds a network of another library by itself, as a package or as one of `KINDS`."""
    return is_package(path) or kind_of(path) is not None


def import_network(
    source: str | Path, *, output: int = 0, of: LibraryClass | None = None, trust: bool = False
) -> Checkpoint:
    """Import a network.

    Args:
        source: A package of bioimage.io, as folder, zip or description; a file of one of `KINDS`; or the weights of a class.
        output: Which of its outputs is predicted, where it has several.
        of: The class that the weights are of.
        trust: Whether code of any package may be run for it, in a process of its own.

    Raises:
        ModelError: There is no such file, it is of no kind that is known, or holds a network that cannot be tiled exactly.
    """
    path = Path(source)
    if is_package(path):
        if of is not None:
            raise ModelError(
                f"'{path}' is a package, which says what its network is, and class '{of.name}' was named besides. Leave it out."
            )
        return import_package(path, Importer(partial(_read, output=output), checkpoint_of, output, trust))
    if not path.is_file():
        raise ModelError(f"Network '{path}' was asked for, but there is no such file. Check the path.")
    kind = kind_of(path)
    if of is not None:
        if kind is not None:
            raise ModelError(
                f"'{path}' is {kind.name}, which holds its own network, and class '{of.name}' was named besides. Leave the class out."
            )
        built = build_network(of, path, trust=trust, output=output)
        facts = {
            "kind": "a class",
            "class": of.name,
            "arguments": json_text(of.arguments),
            "library": built.library,
            "under": built.under,
        }
        return checkpoint_of(built.network, source=path.name, facts=facts)
    if kind is None:
        raise ModelError(
            f"'{path}' is no network that can be imported: expected a package of bioimage.io, or {' or '.join(one.name for one in KINDS)}. "
            "A checkpoint of this UNet needs no import: name it in model.checkpoint. A state dict of another library needs its class: say --class."
        )
    return checkpoint_of(kind.read(path, output=output), source=path.name, facts={"kind": kind.name})


def _read(path: Path, *, output: int) -> Network:
    kind = kind_of(path)
    if kind is None:
        raise ModelError(f"It is nothing that is known here: expected {' or '.join(one.name for one in KINDS)}.")
    return kind.read(path, output=output)


def checkpoint_of(network: Network, *, source: str, facts: Mapping[str, str] | None = None) -> Checkpoint:
    """A network that was imported, as a checkpoint.

    Args:
        network: What was imported.
        source: Name of its file.
        facts: What else is known of its making.

    Raises:
        ModelError: Its graph does not compute what it did, or no tile would.
    """
    proof = prove(network)
    state = {
        f"{node}.{number}": tensor.float().contiguous().clone()
        for node, tensors in network.weights.items()
        for number, tensor in enumerate(tensors)
    }
    return Checkpoint(
        Imported(network.graph, network.ndim),
        state,
        padding_known=True,
        provenance={"imported from": source, **(facts or {}), "proof": str(proof)},
    )

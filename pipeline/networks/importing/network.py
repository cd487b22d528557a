"""A network of another library, from its file to a checkpoint that workers read without that library."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.network.imported import Imported
from pipeline.errors import ModelError
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.importing.archive import is_archive, read_archive
from pipeline.networks.importing.lowering import Network
from pipeline.networks.importing.proof import prove


def import_network(source: str | Path, *, output: int = 0) -> Checkpoint:
    """Import a network.

    Args:
        source: A program of `torch.export.save` (`.pt2`), known by its content.
        output: Which of its outputs is predicted, where it has several.

    Raises:
        ModelError: There is no such file, it is of no kind that is known, or holds a network that cannot be tiled exactly.
    """
    path = Path(source)
    if not path.is_file():
        raise ModelError(f"Network '{path}' was asked for, but there is no such file. Check the path.")
    if not is_archive(path):
        raise ModelError(
            f"'{path}' is no network that can be imported: expected a program of torch.export.save (.pt2). A checkpoint of this "
            "UNet needs no import: name it in model.checkpoint."
        )
    return checkpoint_of(read_archive(path, output=output), source=path.name)


def checkpoint_of(network: Network, *, source: str) -> Checkpoint:
    """A network that was imported, as a checkpoint.

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
        provenance={"imported from": source, "proof": str(proof)},
    )

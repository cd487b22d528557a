"""Commands about networks of other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flows.commands.arguments import ClassArguments, LibraryClassName, Trust, class_arguments
from flows.commands.status import DONE
from flows.printing import print_rows


def import_network(
    source: Annotated[
        str,
        Parameter(
            help="A program of torch.export.save (.pt2), a model of ONNX, an archive of TorchScript, or a package of bioimage.io (folder, zip, rdf.yaml); with --class, its state dict (.pth, .safetensors)."
        ),
    ],
    target: Annotated[str, Parameter(help="Checkpoint to write (.safetensors), for model.checkpoint.")],
    *,
    class_: LibraryClassName = None,
    arguments: ClassArguments = "{}",
    trust: Trust = False,
    output: Annotated[int, Parameter(help="Which of its outputs is predicted, where it has several.")] = 0,
) -> int:
    """Read a network of another library, and write it as a checkpoint that needs that library no more."""
    from pipeline.networks.checkpoint import save_checkpoint  # noqa: PLC0415 - slow; `--help` needs none of it
    from pipeline.networks.importing.library import LibraryClass  # noqa: PLC0415 - as above
    from pipeline.networks.importing.network import import_network as read  # noqa: PLC0415 - as above
    from pipeline.reports.inspection import inspect_path  # noqa: PLC0415 - as above

    of = LibraryClass(class_, class_arguments(arguments)) if class_ else None
    save_checkpoint(Path(target), read(source, output=output, of=of, trust=trust))
    print_rows(inspect_path(target))
    return DONE

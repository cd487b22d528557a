"""Commands about networks of other libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from flows.commands.status import DONE
from flows.printing import print_rows
from pipeline.errors import ConfigError


def import_network(
    source: Annotated[
        str,
        Parameter(
            help="A program of torch.export.save (.pt2), a model of ONNX or an archive of TorchScript; with --class, its state dict (.pth, .safetensors)."
        ),
    ],
    target: Annotated[str, Parameter(help="Checkpoint to write (.safetensors), for model.checkpoint.")],
    *,
    class_: Annotated[
        str | None,
        Parameter(name="--class", help="Class of a library that SOURCE is of, such as monai.networks.nets.UNet."),
    ] = None,
    arguments: Annotated[str, Parameter(help="What the class is built with, as JSON; or a file of it.")] = "{}",
    trust: Annotated[
        bool,
        Parameter(help="Run code of a package that is not known, or that is pickled in SOURCE.", negative=()),
    ] = False,
    output: Annotated[int, Parameter(help="Which of its outputs is predicted, where it has several.")] = 0,
) -> int:
    """Read a network of another library, and write it as a checkpoint that needs that library no more."""
    from pipeline.networks.checkpoint import save_checkpoint  # noqa: PLC0415 - slow; `--help` needs none of it
    from pipeline.networks.importing.library import LibraryClass  # noqa: PLC0415 - as above
    from pipeline.networks.importing.network import import_network as read  # noqa: PLC0415 - as above
    from pipeline.reports.inspection import inspect_path  # noqa: PLC0415 - as above

    of = LibraryClass(class_, _arguments(arguments)) if class_ else None
    save_checkpoint(Path(target), read(source, output=output, of=of, trust=trust))
    print_rows(inspect_path(target))
    return DONE


def _arguments(text: str) -> dict[str, Any]:
    """Of a class, as they were given on the command line.

    Raises:
        ConfigError: It is neither a JSON object nor a file of one.
    """
    try:
        content = json.loads(text if text.lstrip().startswith("{") else Path(text).read_bytes())
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"--arguments is {text[:120]!r}: expected a JSON object, such as '{{\"spatial_dims\": 3}}', or a file of one ({error})."
        ) from error
    return content

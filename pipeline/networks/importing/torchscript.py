"""An archive of TorchScript to a graph: converted by torch in a child process, read as any program is, and checked against itself.

Such an archive has code in a language of its own, which can write files as soon as it is loaded or run. So the child refuses code
that runs on loading before it loads, and operations that do more than compute before it runs.
"""

from __future__ import annotations

import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.networks.importing.archive import read_archive
from pipeline.networks.importing.library import LAST_WORDS, SIZES, STEPS, answer_of
from pipeline.networks.importing.lowering import COPIES, OF_WEIGHTS, RULES, SAME, Network, unlike

OF_SIZES = frozenset(
    [
        "Bool", "Float", "FloatImplicit", "Int", "IntImplicit", "ScalarImplicit", "add", "and", "append", "ceil", "chunk", "dim", "div", "eq", "extend",
        "floor", "floor_divide", "floordiv", "format", "ge", "getitem", "gt", "is", "isnot", "item", "le", "len", "list", "lt", "max", "min", "mod", "mul",
        "ne", "neg", "not", "numel", "or", "pow", "remainder", "round", "size", "slice", "split", "sub", "to", "type_as", "unbind", "warn",
    ]
)  # fmt: skip
"""Operations that TorchScript has besides, of numbers and lists."""


def is_torchscript(path: Path) -> bool:
    """Whether a file is such an archive, whatever it is called."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as file:
            names = {name.partition("/")[2] for name in file.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError):
        return False
    return {"data.pkl", "constants.pkl"} <= names and any(name.startswith("code/") for name in names)


def read_torchscript(path: Path, *, output: int = 0) -> Network:
    """The graph of an archive, of one image in, (1, C, Z, Y, X) or (1, C, Y, X), at sizes that are chosen.

    Args:
        path: Of `torch.jit.save`, traced or scripted.
        output: Which of its outputs is predicted, where it has several.

    Raises:
        ModelError: It cannot be converted, has an operation without a rule, or does another thing to images of another size.
    """
    allowed = {word.strip("_") for word in (*RULES, *OF_WEIGHTS, *SAME, *COPIES, *OF_SIZES)}
    with tempfile.TemporaryDirectory(prefix="halotile-import-") as name:
        folder = Path(name)
        job = {
            "torchscript": str(path.resolve()),
            "allowed": sorted(allowed),
            "sizes": SIZES,
            "steps": STEPS,
            "path": [],
            "folder": name,
        }
        answer = answer_of(job, folder, path.name)
        if "error" in answer:
            raise ModelError(f"'{path}' cannot be imported: {str(answer['error'])[:LAST_WORDS]}.")
        try:
            first, second = (read_archive(folder / f"{part}.pt2", output=output) for part in ("first", "second"))
            check = load_file(folder / "check.safetensors")
            origin = Recorded(first.program.image[0], check["image"], check[f"output {output}"])
        except ModelError as error:
            raise ModelError(
                str(error).replace(f"{name}/first.pt2", str(path)).replace(f"{name}/second.pt2", str(path))
            ) from error
        except (OSError, SafetensorError, KeyError) as error:
            raise ModelError(f"'{path}' was converted, and what it gives is not there ({error}).") from error
    if different := unlike(first, second):
        shapes = [one.program.image[1][2:] for one in (first, second)]
        raise ModelError(
            f"'{path}' does one thing to an image of {shapes[0]} voxels and another to one of {shapes[1]}: {different}. So what it does "
            "to a tile says nothing of the whole."
        )
    return replace(second, origin=origin)


@dataclass(frozen=True)
class Recorded:
    """What an archive gave in the child for one image.

    Args:
        name: Of its input.
        given: The image, float64.
        result: What it gave.
    """

    name: str
    given: Tensor
    result: Tensor

    @property
    def image(self) -> tuple[str, tuple[int, ...]]:
        """Name and shape of its input."""
        return self.name, tuple(self.given.shape)

    def run(self, image: Tensor) -> Tensor:
        """What it gave.

        Raises:
            ValueError: That was for another image.
        """
        if not torch.equal(image, self.given):
            raise ValueError("The archive was run on another image.")
        return self.result

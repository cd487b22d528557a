"""A checkpoint as a model package of bioimage.io, which napari, ilastik, deepImageJ and others read.

    checkpoint  --weights, source, test tensors, documentation-->  files  --bioimageio.spec-->  PACKAGE.zip or PACKAGE/

What the format cannot say, the package's README.md does: statistics of the whole volume, tiles on the stride lattice.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from pipeline.core.network.imported import Imported
from pipeline.errors import ModelError
from pipeline.export.case import Case, cover, make_case
from pipeline.export.description import Told, description
from pipeline.export.readme import readme
from pipeline.export.source import architecture_source, save_trace
from pipeline.installation import how_to_install
from pipeline.networks.checkpoint import Checkpoint, load_checkpoint
from pipeline.networks.importing.network import is_foreign


def export(
    checkpoint_path: Path,
    target: Path,
    *,
    sample: np.ndarray | None = None,
    name: str | None = None,
    authors: Sequence[str] = (),
    license: str | None = None,  # noqa: A002 - the format's own word
    documentation: str | None = None,
) -> Path:
    """Write a checkpoint as a model package of bioimage.io.

    The target appears whole or not at all.

    Args:
        checkpoint_path: The checkpoint.
        target: A file, where it ends in `.zip`, else a folder; neither may exist.
        sample: Stored values, not normalised, that the package is tested with: (Y, X), (Z, Y, X) or the same with
            channels in front. Its type is what the package declares as its input's. None: noise, of float32 where the
            checkpoint knows no normalisation, else of uint8.
        name: Of the model, 5 to 128 letters, digits, spaces and `_+-()`; None for the checkpoint's file name.
        authors: Of the model; none for those that the checkpoint's provenance names, else `unknown`.
        license: SPDX identifier such as `CC-BY-4.0`; None where the checkpoint's provenance has a `license`.
        documentation: Markdown that the package's README.md begins with.

    Returns:
        The target.

    Raises:
        ModelError: bioimageio is not installed; no licence is known; the target exists; the sample does not fit the
            network; or the description is refused.
    """
    spec = _spec()
    checkpoint_path, target = Path(checkpoint_path), Path(target)
    if target.exists():
        raise ModelError(f"Package '{target}' was asked for, but it exists. Delete it, or name another target.")
    checkpoint = _own(checkpoint_path)
    case = make_case(checkpoint, sample)
    about = Told(
        name=name or _name(checkpoint_path),
        authors=tuple(authors) or _authors(checkpoint),
        license=_license(checkpoint_path, checkpoint, license),
        lead=documentation or "",
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        package = Path(scratch) / ("package.zip" if target.suffix == ".zip" else "package")
        files = write_files(Path(scratch) / "files", checkpoint, case, about)
        with warnings.catch_warnings():
            # bioimageio leaves that to the collector
            warnings.filterwarnings("ignore", "unclosed file", ResourceWarning)
            _package(spec, description(checkpoint, case, about, files), package, str(checkpoint_path))
        package.rename(target)
    return target


def _spec() -> ModuleType:
    try:
        from bioimageio import spec  # noqa: PLC0415 - an extra, which only an export needs
    except ImportError as error:
        raise ModelError(
            f"A bioimage.io package was asked for, but bioimageio cannot be imported ({error}). To have it, "
            + how_to_install("export")
        ) from error
    return spec


def _own(path: Path) -> Checkpoint:
    """A checkpoint of a UNet of ours.

    Raises:
        ModelError: It is another library's network, or cannot be read.
    """
    checkpoint = None if is_foreign(path) else load_checkpoint(path)
    if checkpoint is None or isinstance(checkpoint.architecture, Imported):
        raise ModelError(
            f"An export is of a UNet of ours, whose code goes into the package; '{path}' is an imported network, of another library. Publish it with "
            "that library, or with bioimageio.core."
        )
    return checkpoint


def _name(path: Path) -> str:
    stem = re.sub(r"[^A-Za-z0-9_+() -]+", "-", path.stem)
    return stem if len(stem) >= 5 else f"unet {stem}"


def _authors(checkpoint: Checkpoint) -> tuple[str, ...]:
    authors = checkpoint.provenance.get("authors") or "unknown"
    return (authors,) if isinstance(authors, str) else tuple(map(str, authors))


def _license(path: Path, checkpoint: Checkpoint, asked: str | None) -> str:
    licence = asked or checkpoint.provenance.get("license")
    if not licence:
        raise ModelError(
            f"No licence was given for the export of checkpoint '{path}', and its provenance names none: without one, "
            "nobody may use the package. Give the SPDX identifier of a licence that the training data allows, such as "
            "CC-BY-4.0."
        )
    return str(licence)


def write_files(folder: Path, checkpoint: Checkpoint, case: Case, about: Told) -> dict[str, Path]:
    """All but the description, by what they are."""
    folder.mkdir()
    names = ("weights.pt", "weights.torchscript.pt", "unet.py", "test_input.npy", "test_output.npy", "cover.png")
    keys = ("state", "script", "source", "input", "output", "cover")
    files = {key: folder / name for key, name in zip(keys, names, strict=True)} | {"readme": folder / "README.md"}
    torch.save(checkpoint.state, files["state"])
    save_trace(checkpoint, files["script"])
    files["source"].write_text(architecture_source(), encoding="utf-8")
    np.save(files["input"], case.input)
    np.save(files["output"], case.output)
    cover(case).save(files["cover"])
    files["readme"].write_text(readme(checkpoint, case, about), encoding="utf-8")
    return files


def _package(spec: ModuleType, description: dict[str, Any], package: Path, source: str) -> None:
    """Have the format's own code check the description, gather its files and write the package."""
    model_description = spec.build_description(description, context=spec.ValidationContext(perform_io_checks=True))
    if isinstance(model_description, spec.InvalidDescr):
        raise ModelError(
            f"The description of checkpoint '{source}' is refused by bioimageio.spec {spec.__version__}: "
            f"{_reasons(model_description)}. Check the name, the licence, the authors and the sample."
        )
    if package.suffix == ".zip":
        spec.save_bioimageio_package(model_description, output_path=package)
    else:
        spec.save_bioimageio_package_as_folder(model_description, output_path=package)


def _reasons(invalid: Any) -> str:
    errors = (error for detail in invalid.validation_summary.details for error in detail.errors)
    return "; ".join(f"{'.'.join(map(str, error.loc))}: {error.msg}" for error in errors)

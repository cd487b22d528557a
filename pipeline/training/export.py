"""A checkpoint as a model package of bioimage.io, which napari, ilastik, deepImageJ and others read.

    checkpoint  --weights, source, test tensors, documentation-->  files  --bioimageio.spec-->  PACKAGE.zip or PACKAGE/

Source: bioimage.io model description, format 0.5 (github.com/bioimage-io/spec-bioimage-io). What that format cannot say,
the package's README.md does: statistics of the whole volume, tiles on the stride lattice.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import json
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline import __version__
from pipeline.core.architecture import Architecture
from pipeline.core.box import Triple
from pipeline.core.normalization import Normalization
from pipeline.core.receptive import least_halo, legal_extent, receptive_radius
from pipeline.core.volume import Description, Space
from pipeline.errors import ModelError
from pipeline.statistics import measured
from pipeline.storage.volume import Volume
from pipeline.unet.checkpoint import Checkpoint, load_checkpoint
from pipeline.unet.model import UNet

CALLABLE = "unet"
"""What the packaged source calls the function that builds the network."""

TEST_EXTENT = {2: 256, 3: 64}
"""Voxels along an axis of a test tensor, about, by the network's spatial axes; never fewer than the least legal ones."""

EPSILON = 1e-12
"""Added to deviations and ranges, as the format asks; Halotile adds nothing."""

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
"""Types that the format and Halotile both know."""

UNITS = {"nanometer": 1, "picometer": 10**3, "femtometer": 10**6}
"""Units of a voxel's size, and how many are a nanometre."""

RONNEBERGER = {
    "text": "Ronneberger, O., Fischer, P. and Brox, T. (2015). U-Net: Convolutional Networks for Biomedical Image "
    "Segmentation. MICCAI 2015.",
    "doi": "10.1007/978-3-319-24574-4_28",
}


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
    checkpoint = load_checkpoint(checkpoint_path)
    case = _case(checkpoint, sample)
    told = _Told(
        name=name or _name(checkpoint_path),
        authors=tuple(authors) or _authors(checkpoint),
        license=_license(checkpoint_path, checkpoint, license),
        lead=documentation or "",
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        package = Path(scratch) / ("package.zip" if target.suffix == ".zip" else "package")
        files = _write_files(Path(scratch) / "files", checkpoint, case, told)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "unclosed file", ResourceWarning
            )  # bioimageio leaves that to the collector
            _package(spec, _description(checkpoint, case, told, files), package, str(checkpoint_path))
        package.rename(target)
    return target


def _spec() -> ModuleType:
    try:
        from bioimageio import spec  # noqa: PLC0415 - an extra, which only an export needs
    except ImportError as error:
        raise ModelError(
            f"A bioimage.io package was asked for, but bioimageio cannot be imported ({error}). "
            "Run: pip install 'halotile[export]'."
        ) from error
    return spec


# --- what is told --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Told:
    name: str
    authors: tuple[str, ...]
    license: str
    lead: str


def _name(path: Path) -> str:
    stem = re.sub(r"[^A-Za-z0-9_+() -]+", "-", path.stem)
    return stem if len(stem) >= 5 else f"unet {stem}"


def _authors(checkpoint: Checkpoint) -> tuple[str, ...]:
    said = checkpoint.provenance.get("authors") or "unknown"
    return (said,) if isinstance(said, str) else tuple(map(str, said))


def _license(path: Path, checkpoint: Checkpoint, asked: str | None) -> str:
    found = asked or checkpoint.provenance.get("license")
    if not found:
        raise ModelError(
            f"No licence was given for the export of checkpoint '{path}', and its provenance names none: without one, "
            "nobody may use the package. Give the SPDX identifier of a licence that the training data allows, such as "
            "CC-BY-4.0."
        )
    return str(found)


# --- extents -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Extents:
    """Extents that the network takes along its spatial axes, in the format's words.

    Args:
        architecture: The network.
    """

    architecture: Architecture

    @property
    def names(self) -> str:
        return "zyx"[3 - self.architecture.ndim :]

    @property
    def axes(self) -> range:
        return range(3 - self.architecture.ndim, 3)

    @cached_property
    def halo(self) -> Triple:
        """The radius rounded up to the stride; 0 for an unpadded network, which has cropped it already."""
        return least_halo(self.architecture) if self.architecture.padding == "same" else (0, 0, 0)

    @cached_property
    def radius(self) -> Triple:
        """What an aligned block of output needs around it, whatever the padding."""
        return receptive_radius(self.architecture)

    @cached_property
    def lost(self) -> Triple:
        """Voxels a side that an unpadded network loses."""
        return self.radius if self.architecture.padding == "valid" else (0, 0, 0)

    def least(self, axis: int) -> int:
        """The least legal extent that leaves output inside the halo."""
        if self.architecture.padding == "same":
            return 2 * self.halo[axis] + self.architecture.stride[axis]
        return legal_extent(self.architecture, axis, 2 * self.lost[axis] + 1)

    def within(self, axis: int, room: int) -> int:
        """The largest legal extent of at most `room` voxels, where `room` is at least the least."""
        least, step = self.least(axis), self.architecture.stride[axis]
        return least + (room - least) // step * step


# --- the test case -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Case:
    """What the package is tested with; arrays (1, C, Y, X) or (1, C, Z, Y, X).

    Args:
        input: Stored values.
        output: What the network predicts of them, through its activation, float32.
        rule: How the values were normalised, with the numbers of `input` alone.
        said: Whether the checkpoint says how.
    """

    input: np.ndarray
    output: np.ndarray
    rule: Normalization
    said: bool


def _case(checkpoint: Checkpoint, sample: np.ndarray | None) -> _Case:
    block_CS = _noise(checkpoint) if sample is None else _block(checkpoint.architecture, np.asarray(sample))
    rule = _measured(checkpoint.normalization or Normalization(), block_CS)
    normalised_CS = rule.apply(block_CS)
    with torch.inference_mode():
        logits_BCS = checkpoint.build()(torch.from_numpy(normalised_CS)[None])
        several = checkpoint.architecture.out_channels > 1
        output_BCS = torch.softmax(logits_BCS, dim=1) if several else torch.sigmoid(logits_BCS)
    return _Case(block_CS[None], output_BCS.numpy(), rule, checkpoint.normalization is not None)


def _noise(checkpoint: Checkpoint) -> np.ndarray:
    architecture = checkpoint.architecture
    extents = _Extents(architecture)
    wanted = TEST_EXTENT[architecture.ndim]
    shape = tuple(extents.within(axis, max(wanted, extents.least(axis))) for axis in extents.axes)
    random = np.random.default_rng(0)
    if checkpoint.normalization is None or checkpoint.normalization.mode == "none":
        return random.random((architecture.in_channels, *shape), dtype=np.float32)
    return random.integers(0, 256, (architecture.in_channels, *shape), dtype=np.uint8)


def _block(architecture: Architecture, sample: np.ndarray) -> np.ndarray:
    """The middle of a sample, of legal extents, (C, S)."""
    extents = _Extents(architecture)
    sample_CS = sample if sample.ndim > architecture.ndim else sample[np.newaxis]
    if sample_CS.ndim == architecture.ndim + 2:  # a stack for a 2D network
        sample_CS = sample_CS[:, sample_CS.shape[1] // 2]
    least = tuple(extents.least(axis) for axis in extents.axes)
    fits = sample_CS.ndim == architecture.ndim + 1 and sample_CS.shape[0] == architecture.in_channels
    if not fits or any(n < m for n, m in zip(sample_CS.shape[1:], least, strict=True)):
        raise ModelError(
            f"The sample has shape {sample.shape}, but the network reads {architecture.in_channels} channel(s) of "
            f"({', '.join(extents.names)}), at least {least} voxels. Give a larger sample, channels in front."
        )
    if sample.dtype.name not in DTYPES:
        raise ModelError(
            f"The sample has type {sample.dtype}, which a bioimage.io package cannot declare. Convert it to one of "
            f"{', '.join(DTYPES)}."
        )
    room = (min(n, max(TEST_EXTENT[architecture.ndim], m)) for n, m in zip(sample_CS.shape[1:], least, strict=True))
    shape = [extents.within(axis, n) for axis, n in zip(extents.axes, room, strict=True)]
    return np.ascontiguousarray(sample_CS[(slice(None), *_middle(sample_CS.shape[1:], shape))])


def _middle(shape: Sequence[int], wanted: Sequence[int]) -> Iterator[slice]:
    return (slice((n - w) // 2, (n - w) // 2 + w) for n, w in zip(shape, wanted, strict=True))


def _measured(rule: Normalization, block_CS: np.ndarray) -> Normalization:
    """`rule` with the numbers of a block, by the code that measures a run's volume."""
    block_CZYX = block_CS if block_CS.ndim == 4 else block_CS[:, np.newaxis]
    shape: Triple = block_CZYX.shape[1:]  # type: ignore[assignment]
    space, dtype = Space.unknown(3), str(block_CS.dtype)
    description = Description("sample", 0, "czyx", block_CS.shape[0], shape, dtype, shape, space, "")
    return measured(rule, Volume(description, block_CZYX), nonfinite="fail")  # type: ignore[arg-type]


# --- files ---------------------------------------------------------------------------------------------------------------


def _write_files(folder: Path, checkpoint: Checkpoint, case: _Case, told: _Told) -> dict[str, Path]:
    """All but the description, by what they are."""
    folder.mkdir()
    names = ("weights.pt", "weights.torchscript.pt", "unet.py", "test_input.npy", "test_output.npy", "cover.png")
    keys = ("state", "script", "source", "input", "output", "cover")
    files = {key: folder / name for key, name in zip(keys, names, strict=True)} | {"readme": folder / "README.md"}
    torch.save(checkpoint.state, files["state"])
    _save_trace(checkpoint, files["script"])
    files["source"].write_text(architecture_source(), encoding="utf-8")
    np.save(files["input"], case.input)
    np.save(files["output"], case.output)
    _cover(case).save(files["cover"])
    files["readme"].write_text(_readme(checkpoint, case, told), encoding="utf-8")
    return files


def _save_trace(checkpoint: Checkpoint, path: Path) -> None:
    """The network as TorchScript, general in batch and extents: a trace that bakes an extent in is an error."""
    extents = _Extents(checkpoint.architecture)
    shape = (1, checkpoint.architecture.in_channels, *(extents.least(axis) for axis in extents.axes))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)  # the format knows nothing newer
        warnings.filterwarnings("error", category=torch.jit.TracerWarning)
        trace = torch.jit.trace(checkpoint.build(), torch.zeros(shape), check_trace=False)
        content = io.BytesIO()
        torch.jit.save(trace, content)
    _without_paths(content, path)


def _without_paths(content: io.BytesIO, path: Path) -> None:
    """A TorchScript archive without its debug records, which name files of the machine that made it."""
    with zipfile.ZipFile(content) as taken, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as given:
        for record in taken.infolist():
            if not record.filename.endswith(".debug_pkl"):
                given.writestr(record.filename, taken.read(record))


def _cover(case: _Case) -> Image.Image:
    """Input beside output: the middle slice, squares of what both show."""
    input_YX, output_YX = (_slice(array) for array in (case.input, case.output))
    side = min(output_YX.shape)
    panels = [_grey(array[tuple(_middle(array.shape, (side, side)))]) for array in (input_YX, output_YX)]
    image = Image.fromarray(np.concatenate(panels, axis=1))
    scale = max(1, 256 // side)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _slice(array_BCS: np.ndarray) -> np.ndarray:
    array_S = array_BCS[0, -1]
    return array_S if array_S.ndim == 2 else array_S[array_S.shape[0] // 2]


def _grey(array: np.ndarray) -> np.ndarray:
    low, high = float(array.min()), float(array.max())
    return np.rint((array.astype(np.float64) - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)


# --- the network's source ------------------------------------------------------------------------------------------------


def architecture_source() -> str:
    """Source of a module that builds the network and needs nothing but torch: our own definitions, gathered."""
    gathered = _Gathered()
    gathered.add(UNet.__module__, UNet.__name__)
    header = f'"""The UNet of Halotile {__version__} (BSD-3-Clause), gathered from its source for this package."""'
    builder = (
        f"def {CALLABLE}(**architecture: object) -> UNet:\n"
        '    """The network of an architecture; see `Architecture`."""\n'
        "    return UNet(Architecture(**architecture))"
    )
    imports = "\n".join(sorted(gathered.imports))
    head = f"{header}\n\nfrom __future__ import annotations\n\n{imports}"
    return "\n\n\n".join([head, *gathered.pieces, builder]) + "\n"


@dataclass
class _Gathered:
    """Definitions in the order in which they need one another, and what they import from elsewhere."""

    imports: set[str] = field(default_factory=set)
    pieces: list[str] = field(default_factory=list)
    seen: set[tuple[str, str]] = field(default_factory=set)

    def add(self, module: str, name: str) -> None:
        """Add what `name` means in a module of ours, and all that it needs; names of no definition are passed over."""
        if (module, name) in self.seen:
            return
        self.seen.add((module, name))
        source = inspect.getsource(importlib.import_module(module))
        node = _definitions(ast.parse(source)).get(name)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline."):
            self.add(node.module or "", node.names[0].name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self.imports.add(ast.unparse(node))
        elif node is not None:
            for used in sorted({n.id for n in ast.walk(node) if isinstance(n, ast.Name)}):
                self.add(module, used)
            decorators = [d.lineno for d in getattr(node, "decorator_list", [])]
            lines = source.splitlines()[min([node.lineno, *decorators]) - 1 : node.end_lineno]
            self.pieces.append("\n".join(lines))


def _definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """What a module binds at its top level, by name; an import of several is one a name."""
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found.update({t.id: node for t in node.targets if isinstance(t, ast.Name)})
        elif isinstance(node, ast.Import):
            found.update({a.asname or a.name.partition(".")[0]: ast.Import([a]) for a in node.names})
        elif isinstance(node, ast.ImportFrom):
            found.update({a.asname or a.name: ast.ImportFrom(node.module, [a], node.level) for a in node.names})
    return found


# --- the description -----------------------------------------------------------------------------------------------------


def _description(checkpoint: Checkpoint, case: _Case, told: _Told, files: dict[str, Path]) -> dict[str, Any]:
    """The package's description, as the format's YAML has it, format 0.5."""
    architecture = checkpoint.architecture
    return {
        "type": "model",
        "format_version": "0.5.12",
        "name": told.name,
        "description": f"{architecture.ndim}D UNet of depth {architecture.depth} and width {architecture.width} that "
        f"predicts {', '.join(_channels(checkpoint))}. Trained with Halotile.",
        "authors": [{"name": author} for author in told.authors],
        "license": told.license,
        "cite": [RONNEBERGER],
        "tags": ["unet", "pytorch", f"{architecture.ndim}d", "semantic-segmentation", "halotile"],
        "documentation": _file(files["readme"]),
        "covers": [_file(files["cover"])],
        "inputs": [_input(checkpoint, case, files["input"])],
        "outputs": [_output(checkpoint, files["output"])],
        "weights": _weights(architecture, files),
        "config": {
            "bioimageio": {"reproducibility_tolerance": [_tolerance(case)]},
            "halotile": {
                "weights_sha256": checkpoint.sha256,
                "architecture": architecture.to_dict(),
                "stride": list(architecture.stride),
                "receptive_radius": list(receptive_radius(architecture)),
            },
        },
    }


def _file(path: Path) -> dict[str, str]:
    return {"source": str(path)}


def _weights(architecture: Architecture, files: dict[str, Path]) -> dict[str, Any]:
    version = torch.__version__.partition("+")[0]
    source = _file(files["source"]) | {"callable": CALLABLE, "kwargs": architecture.to_dict()}
    return {
        "pytorch_state_dict": _file(files["state"]) | {"architecture": source, "pytorch_version": version},
        "torchscript": _file(files["script"]) | {"parent": "pytorch_state_dict", "pytorch_version": version},
    }


def _tolerance(case: _Case) -> dict[str, float]:
    """The format's own, but never more than a hundredth of the largest value: else a test of small ones says nothing."""
    return {
        "relative_tolerance": 1e-3,
        "absolute_tolerance": min(1e-3, float(case.output.max()) / 200),
        "mismatched_elements_per_million": 100,
    }


def _input(checkpoint: Checkpoint, case: _Case, test: Path) -> dict[str, Any]:
    extents, architecture = _Extents(checkpoint.architecture), checkpoint.architecture
    names = [f"channel{k}" for k in range(architecture.in_channels)]
    space = []
    for axis, placed in zip(extents.axes, _space(checkpoint), strict=True):
        size = {"min": extents.least(axis), "step": architecture.stride[axis]}
        # Blocks of an unpadded network's output, edge to edge, are off the stride lattice (388 mod 16 is 4).
        space.append(placed | {"size": size, "concatenable": architecture.padding == "same"})
    return {
        "id": "input",
        "axes": [{"type": "batch"}, {"type": "channel", "channel_names": names}, *space],
        "data": {"type": case.input.dtype.name},
        "test_tensor": _file(test),
        "preprocessing": [*_preprocessing(case, extents.names), {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}],
    }


def _output(checkpoint: Checkpoint, test: Path) -> dict[str, Any]:
    extents = _Extents(checkpoint.architecture)
    space = []
    for axis, placed in zip(extents.axes, _space(checkpoint), strict=True):
        size = {"tensor_id": "input", "axis_id": placed["id"], "offset": -2 * extents.lost[axis]}
        space.append(placed | {"size": size} | ({"halo": extents.halo[axis]} if extents.halo[axis] else {}))
    several = checkpoint.architecture.out_channels > 1
    return {
        "id": "output",
        "axes": [{"type": "batch"}, {"type": "channel", "channel_names": _channels(checkpoint)}, *space],
        "data": {"type": "float32", "range": [0.0, 1.0]},
        "test_tensor": _file(test),
        "postprocessing": [{"id": "softmax", "kwargs": {"axis": "channel"}} if several else {"id": "sigmoid"}],
    }


def _channels(checkpoint: Checkpoint) -> list[str]:
    count, target = checkpoint.architecture.out_channels, str(checkpoint.provenance.get("target", ""))
    if count > 1:
        return [f"class{k}" for k in range(count)]
    return ["membrane" if target.startswith("membrane") else "foreground"]


def _space(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Name, unit and scale of each spatial axis.

    The unit is one that makes scales whole numbers: the format's extents are `size * scale / scale`, which floating
    point does not always give back for others.
    """
    names = _Extents(checkpoint.architecture).names
    axes: list[dict[str, Any]] = [{"type": "space", "id": name} for name in names]
    size = checkpoint.voxel_size_nm
    if size is None or len(size) < len(names):
        return axes
    fit = (unit for unit, per_nm in UNITS.items() if all(abs(n * per_nm - round(n * per_nm)) < 1e-6 for n in size))
    unit = next(fit, "femtometer")
    scales = [float(max(round(n * UNITS[unit]), 1)) for n in size[-len(names) :]]
    return [axis | {"unit": unit, "scale": scale} for axis, scale in zip(axes, scales, strict=True)]


def _preprocessing(case: _Case, names: str) -> list[dict[str, Any]]:
    """The normalisation in the format's words; statistics are of a whole sample, all channels together."""
    rule, axes = case.rule, ["channel", *names]
    if rule.mode == "minmax" and case.input.dtype.kind in "iu":
        return [{"id": "scale_linear", "kwargs": {"gain": rule.scale, "offset": 0.0 - rule.offset * rule.scale}}]
    if rule.mode == "zscore":
        return [{"id": "zero_mean_unit_variance", "kwargs": {"axes": axes, "eps": EPSILON}}]
    if rule.mode in ("minmax", "percentile"):
        low, high = (0.0, 100.0) if rule.mode == "minmax" else (rule.low, rule.high)
        kwargs = {"axes": axes, "min_percentile": low, "max_percentile": high, "eps": EPSILON}
        return [{"id": "scale_range", "kwargs": kwargs}]
    return []


def _package(spec: ModuleType, description: dict[str, Any], package: Path, source: str) -> None:
    """Have the format's own code check the description, gather its files and write the package."""
    found = spec.build_description(description, context=spec.ValidationContext(perform_io_checks=True))
    if isinstance(found, spec.InvalidDescr):
        raise ModelError(
            f"The description of checkpoint '{source}' is refused by bioimageio.spec {spec.__version__}: "
            f"{_reasons(found)}. Check the name, the licence, the authors and the sample."
        )
    if package.suffix == ".zip":
        spec.save_bioimageio_package(found, output_path=package)
    else:
        spec.save_bioimageio_package_as_folder(found, output_path=package)


def _reasons(invalid: Any) -> str:
    errors = (error for detail in invalid.validation_summary.details for error in detail.errors)
    return "; ".join(f"{'.'.join(map(str, error.loc))}: {error.msg}" for error in errors)


# --- documentation -------------------------------------------------------------------------------------------------------


def _readme(checkpoint: Checkpoint, case: _Case, told: _Told) -> str:
    parts = [
        f"# {told.name}",
        told.lead,
        _readme_network(checkpoint),
        _readme_values(checkpoint, case),
        _readme_exactness(checkpoint.architecture),
        _readme_training(checkpoint),
        _readme_validation(checkpoint),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _readme_network(checkpoint: Checkpoint) -> str:
    a, size = checkpoint.architecture, checkpoint.voxel_size_nm
    names = ", ".join(_Extents(a).names)
    voxel = "not known" if size is None else " x ".join(f"{n:g}" for n in size) + " nm"
    return f"""## Network

A {a.ndim}D UNet after Ronneberger, Fischer and Brox (2015): depth {a.depth}, width {a.width}, {a.in_channels} channel(s)
in, {a.out_channels} out ({", ".join(_channels(checkpoint))}), `{a.padding}` padding, norm `{a.norm}`, axes {names}.
The weights are given as a state dict, with the source `unet.py`, and as TorchScript traced from it.

* Voxel size of the training data: {voxel}.
* SHA-256 of the weights, as Halotile counts it: `{checkpoint.sha256}`."""


def _readme_values(checkpoint: Checkpoint, case: _Case) -> str:
    how = {
        "none": "Values are taken as they are.",
        "minmax": "Integers are scaled from their type's range to 0 to 1; floats from the least and largest value of the "
        "volume.",
        "zscore": "Values have the volume's mean subtracted and are divided by its standard deviation, all channels together.",
        "percentile": f"Percentile {case.rule.low:g} of the volume becomes 0 and percentile {case.rule.high:g} becomes 1, "
        "all channels together; nothing is clipped.",
    }
    unsaid = "" if case.said else " The checkpoint does not say how it was trained: normalise as its training did."
    activation = "softmax over classes" if checkpoint.architecture.out_channels > 1 else "sigmoid"
    return f"""## Values

{how[case.rule.mode]}{unsaid}
This package declares `{case.input.dtype}` as its input's type, and its first steps hold for that type. The output is the {activation} of the network's logits.

Halotile takes statistics of the whole volume, once. Other software takes them of what it is given: a crop, or one tile.
Where a statistic is used, give whole volumes, or normalise with the whole volume's numbers first."""


def _readme_exactness(architecture: Architecture) -> str:
    extents = _Extents(architecture)
    facts = (architecture.stride, extents.radius, extents.halo, extents.lost)
    stride, radius, halo, lost = (", ".join(str(values[axis]) for axis in extents.axes) for values in facts)
    told = f"Along {', '.join(extents.names)}, in voxels: stride {stride}; receptive radius {radius}; "
    if architecture.padding == "valid":
        return f"""## Tiles

{told}lost a side {lost}.

Convolutions are not padded, so the network crops the halo itself. Pooling makes it equivariant only to shifts by the
stride, and its output's extents are no multiples of that: tiles put edge to edge are off the lattice, and differ from one
pass over the whole. Crop each output to a multiple of the stride, and place tiles at multiples of it. So the axes are not
declared concatenable."""
    return f"""## Tiles

{told}halo {halo}.

The halo is the radius rounded up to the stride: a tile whose origin and extents are multiples of the stride, with that much
real context, equals one pass over the whole volume to floating-point round-off. Where a tool shifts its last tile back to
fit, give volumes whose extents are multiples of the stride. At a volume's ends Halotile lets the layers pad with zeros; a
tool that mirrors voxels there gives other values within one halo of the ends."""


def _readme_training(checkpoint: Checkpoint) -> str:
    facts = {k: v for k, v in checkpoint.provenance.items() if k != "validation"}
    if not facts:
        return "## Training\n\nThe checkpoint says nothing about its making."
    return f"## Training\n\n```json\n{json.dumps(facts, indent=2, ensure_ascii=False, default=str)}\n```"


def _readme_validation(checkpoint: Checkpoint) -> str:
    metrics = checkpoint.provenance.get("validation")
    advice = (
        "To validate on other data, predict a labelled volume that training did not see and compare with its labels, "
        "by the Dice coefficient or the area under the ROC curve."
    )
    if not isinstance(metrics, dict) or not metrics:
        return f"## Validation\n\nThe checkpoint holds no figures. {advice}"
    rows = "\n".join(f"| {key} | {value} |" for key, value in metrics.items())
    return (
        f"## Validation\n\nOn validation data of the training run:\n\n| figure | value |\n|---|---|\n{rows}\n\n{advice}"
    )

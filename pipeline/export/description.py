"""The description of a package, format 0.5.

Source: bioimage.io model description (github.com/bioimage-io/spec-bioimage-io).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.core.network.receptive import receptive_radius
from pipeline.core.network.unet import Architecture
from pipeline.core.normalization import unknown_mode
from pipeline.export.case import Case
from pipeline.export.extents import Extents
from pipeline.export.source import CALLABLE
from pipeline.networks.checkpoint import Checkpoint

EPSILON = 1e-12
"""Added to deviations and ranges, as the format asks; Halotile adds nothing."""


UNITS = {"nanometer": 1, "picometer": 10**3, "femtometer": 10**6}
"""Units of a voxel's size, and how many are a nanometre."""


RONNEBERGER = {
    "text": "Ronneberger, O., Fischer, P. and Brox, T. (2015). U-Net: Convolutional Networks for Biomedical Image "
    "Segmentation. MICCAI 2015.",
    "doi": "10.1007/978-3-319-24574-4_28",
}


@dataclass(frozen=True)
class Told:
    """What a person says of a package: name, authors, SPDX licence, and the beginning of its documentation."""

    name: str
    authors: tuple[str, ...]
    license: str
    lead: str


def description(checkpoint: Checkpoint, case: Case, about: Told, files: dict[str, Path]) -> dict[str, Any]:
    """The package's description, as the format's YAML has it, format 0.5."""
    architecture = checkpoint.unet
    return {
        "type": "model",
        "format_version": "0.5.12",
        "name": about.name,
        "description": f"{architecture.ndim}D UNet of depth {architecture.depth} and width {architecture.width} that "
        f"predicts {', '.join(channels_of(checkpoint))}. Trained with Halotile.",
        "authors": [{"name": author} for author in about.authors],
        "license": about.license,
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
                "receptive_radius": list(receptive_radius(architecture.graph)),
                "training_data": [appearance.to_dict() for appearance in checkpoint.training_data],
                "learned": checkpoint.learned,
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


def _tolerance(case: Case) -> dict[str, float]:
    """The format's own, but never more than a hundredth of the largest value: else a test of small ones says nothing."""
    return {
        "relative_tolerance": 1e-3,
        "absolute_tolerance": min(1e-3, float(case.output.max()) / 200),
        "mismatched_elements_per_million": 100,
    }


def _input(checkpoint: Checkpoint, case: Case, test: Path) -> dict[str, Any]:
    extents, architecture = Extents(checkpoint.unet), checkpoint.unet
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
    extents = Extents(checkpoint.unet)
    space = []
    for axis, placed in zip(extents.axes, _space(checkpoint), strict=True):
        size = {"tensor_id": "input", "axis_id": placed["id"], "offset": -2 * extents.lost[axis]}
        space.append(placed | {"size": size} | ({"halo": extents.halo[axis]} if extents.halo[axis] else {}))
    several = checkpoint.unet.out_channels > 1
    return {
        "id": "output",
        "axes": [{"type": "batch"}, {"type": "channel", "channel_names": channels_of(checkpoint)}, *space],
        "data": {"type": "float32", "range": [0.0, 1.0]},
        "test_tensor": _file(test),
        "postprocessing": [{"id": "softmax", "kwargs": {"axis": "channel"}} if several else {"id": "sigmoid"}],
    }


def channels_of(checkpoint: Checkpoint) -> list[str]:
    """Names of the channels that a network puts out."""
    count, target = checkpoint.unet.out_channels, str(checkpoint.provenance.get("target", ""))
    if count > 1:
        return [f"class{k}" for k in range(count)]
    return ["membrane" if target.startswith("membrane") else "foreground"]


def _space(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Name, unit and scale of each spatial axis.

    The unit is one that makes scales whole numbers: the format's extents are `size * scale / scale`, which floating
    point does not always give back for others.
    """
    names = Extents(checkpoint.unet).names
    axes: list[dict[str, Any]] = [{"type": "space", "id": name} for name in names]
    size = checkpoint.voxel_size_nm
    if size is None or len(size) < len(names):
        return axes
    fit = (unit for unit, per_nm in UNITS.items() if all(abs(n * per_nm - round(n * per_nm)) < 1e-6 for n in size))
    unit = next(fit, "femtometer")
    scales = [float(max(round(n * UNITS[unit]), 1)) for n in size[-len(names) :]]
    return [axis | {"unit": unit, "scale": scale} for axis, scale in zip(axes, scales, strict=True)]


def _preprocessing(case: Case, names: str) -> list[dict[str, Any]]:
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
    if rule.mode == "none":
        return []
    raise unknown_mode(rule.mode)

"""The documentation of a package: what its description cannot say."""

from __future__ import annotations

import json

from pipeline.core.appearance import ranges
from pipeline.core.lesson import lesson
from pipeline.core.network.unet import Architecture
from pipeline.core.strict_json import without_nan
from pipeline.export.case import Case
from pipeline.export.description import Told, channels_of
from pipeline.export.extents import Extents
from pipeline.networks.checkpoint import Checkpoint


def readme(checkpoint: Checkpoint, case: Case, about: Told) -> str:
    """Markdown: network, values, tiles, training, validation."""
    parts = [
        f"# {about.name}",
        about.lead,
        _readme_network(checkpoint),
        _readme_values(checkpoint, case),
        _readme_exactness(checkpoint.unet),
        _readme_training(checkpoint),
        _readme_validation(checkpoint),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _readme_network(checkpoint: Checkpoint) -> str:
    a, size = checkpoint.unet, checkpoint.voxel_size_nm
    names = ", ".join(Extents(a).names)
    voxel = "not known" if size is None else " x ".join(f"{n:g}" for n in size) + " nm"
    return f"""## Network

A {a.ndim}D UNet after Ronneberger, Fischer and Brox (2015): depth {a.depth}, width {a.width}, {a.in_channels} channel(s)
in, {a.out_channels} out ({", ".join(channels_of(checkpoint))}), `{a.padding}` padding, norm `{a.norm}`, axes {names}.
The weights are given as a state dict, with the source `unet.py`, and as TorchScript traced from it.

* Voxel size of the training data: {voxel}.
* SHA-256 of the weights, as Halotile counts it: `{checkpoint.sha256}`."""


def _readme_values(checkpoint: Checkpoint, case: Case) -> str:
    how = {
        "none": "Values are taken as they are.",
        "minmax": "Integers are scaled from their type's range to 0 to 1; floats from the least and largest value of the "
        "volume.",
        "zscore": "Values have the volume's mean subtracted and are divided by its standard deviation, all channels together.",
        "percentile": f"Percentile {case.rule.low:g} of the volume becomes 0 and percentile {case.rule.high:g} becomes 1, "
        "all channels together; nothing is clipped.",
    }
    unsaid = "" if case.said else " The checkpoint does not say how it was trained: normalise as its training did."
    activation = "softmax over classes" if checkpoint.unet.out_channels > 1 else "sigmoid"
    return f"""## Values

{how[case.rule.mode]}{unsaid}{_readme_seen(checkpoint)}
This package declares `{case.input.dtype}` as its input's type, and its first steps hold for that type. The output is the {activation} of the network's logits.

Halotile takes statistics of the whole volume, once. Other software takes them of what it is given: a crop, or one tile.
Where a statistic is used, give whole volumes, or normalise with the whole volume's numbers first."""


def _readme_seen(checkpoint: Checkpoint) -> str:
    seen = "".join(f"\n* {ranges(a)} ({a.dtype})" for a in checkpoint.training_data)
    return (
        f"\nWhat the network saw in training, 1st to 99th percentile after that, by volume:\n{seen}\n" if seen else ""
    )


def _readme_exactness(architecture: Architecture) -> str:
    extents = Extents(architecture)
    facts = (architecture.stride, extents.radius, extents.halo, extents.lost)
    stride, radius, halo, lost = (", ".join(str(values[axis]) for axis in extents.axes) for values in facts)
    figures = f"Along {', '.join(extents.names)}, in voxels: stride {stride}; receptive radius {radius}; "
    if architecture.padding == "valid":
        return f"""## Tiles

{figures}lost a side {lost}.

Convolutions are not padded, so the network crops the halo itself. Pooling makes it equivariant only to shifts by the
stride, and its output's extents are no multiples of that: tiles put edge to edge are off the lattice, and differ from one
pass over the whole. Crop each output to a multiple of the stride, and place tiles at multiples of it. So the axes are not
declared concatenable."""
    return f"""## Tiles

{figures}halo {halo}.

The halo is the radius rounded up to the stride: a tile whose origin and extents are multiples of the stride, with that much
real context, equals one pass over the whole volume to floating-point round-off. Where a tool shifts its last tile back to
fit, give volumes whose extents are multiples of the stride. At a volume's ends Halotile lets the layers pad with zeros; a
tool that mirrors voxels there gives other values within one halo of the ends."""


def _readme_training(checkpoint: Checkpoint) -> str:
    facts = {k: v for k, v in checkpoint.provenance.items() if k != "validation"}
    if not facts:
        return "## Training\n\nThe checkpoint says nothing about its making."
    return f"## Training\n\n```json\n{json.dumps(without_nan(facts), indent=2, ensure_ascii=False, default=str, allow_nan=False)}\n```"


def _readme_validation(checkpoint: Checkpoint) -> str:
    metrics = checkpoint.provenance.get("validation")
    advice = (
        "To validate on other data, predict a labelled volume that training did not see and compare with its labels, "
        "by the Dice coefficient or the area under the ROC curve."
    )
    if not isinstance(metrics, dict) or not metrics:
        return f"## Validation\n\nThe checkpoint holds no figures. {advice}"
    rows = "\n".join(f"| {key} | {value} |" for key, value in metrics.items())
    warning = "".join(f"**{sentence}**\n\n" for sentence in lesson(checkpoint.learned, metrics))
    return f"## Validation\n\n{warning}On validation data of the training run:\n\n| figure | value |\n|---|---|\n{rows}\n\n{advice}"

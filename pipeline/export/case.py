"""What a package is tested with, and its picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from pipeline.core.geometry.box import triple
from pipeline.core.network.unet import Architecture
from pipeline.core.normalization import Normalization
from pipeline.core.volume import Description, Space
from pipeline.errors import ModelError
from pipeline.export.extents import Extents
from pipeline.networks.checkpoint import Checkpoint
from pipeline.planning.statistics import measured
from pipeline.volumes.volume import Volume

TEST_EXTENT = {2: 256, 3: 64}
"""Voxels along an axis of a test tensor, about, by the network's spatial axes; never fewer than the least legal ones."""


DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
"""Types that the format and Halotile both know."""


@dataclass(frozen=True)
class Case:
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


def make_case(checkpoint: Checkpoint, sample: np.ndarray | None) -> Case:
    """The test of a package: a part of the sample, or noise, and what the network says of it."""
    block_CS = _noise(checkpoint) if sample is None else _block(checkpoint.unet, np.asarray(sample))
    rule = _measured(checkpoint.normalization or Normalization(), block_CS)
    normalised_CS = rule.apply(block_CS)
    with torch.inference_mode():
        logits_BCS = checkpoint.build()(torch.from_numpy(normalised_CS)[None])
        several = checkpoint.unet.out_channels > 1
        output_BCS = torch.softmax(logits_BCS, dim=1) if several else torch.sigmoid(logits_BCS)
    return Case(block_CS[None], output_BCS.numpy(), rule, checkpoint.normalization is not None)


def _noise(checkpoint: Checkpoint) -> np.ndarray:
    architecture = checkpoint.unet
    extents = Extents(architecture)
    wanted = TEST_EXTENT[architecture.ndim]
    shape = tuple(extents.within(axis, max(wanted, extents.least(axis))) for axis in extents.axes)
    random = np.random.default_rng(0)
    if checkpoint.normalization is None or checkpoint.normalization.mode == "none":
        return random.random((architecture.in_channels, *shape), dtype=np.float32)
    return random.integers(0, 256, (architecture.in_channels, *shape), dtype=np.uint8)


def _block(architecture: Architecture, sample: np.ndarray) -> np.ndarray:
    """The middle of a sample, of legal extents, (C, S)."""
    extents = Extents(architecture)
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
    return np.ascontiguousarray(sample_CS[(slice(None), *middle(sample_CS.shape[1:], shape))])


def middle(shape: Sequence[int], wanted: Sequence[int]) -> Iterator[slice]:
    """Slices that take the middle of an extent."""
    return (slice((n - w) // 2, (n - w) // 2 + w) for n, w in zip(shape, wanted, strict=True))


def _measured(rule: Normalization, block_CS: np.ndarray) -> Normalization:
    """`rule` with the numbers of a block, by the code that measures a run's volume."""
    block_CZYX = block_CS if block_CS.ndim == 4 else block_CS[:, np.newaxis]
    shape = triple(block_CZYX.shape[1:])
    space, dtype = Space.unknown(3), str(block_CS.dtype)
    description = Description("sample", 0, "czyx", block_CS.shape[0], shape, dtype, shape, space, "")
    return measured(rule, Volume(description, block_CZYX), nonfinite="fail")


def cover(case: Case) -> Image.Image:
    """Input beside output: the middle slice, squares of what both show."""
    input_YX, output_YX = (_slice(array) for array in (case.input, case.output))
    side = min(output_YX.shape)
    panels = [_grey(array[tuple(middle(array.shape, (side, side)))]) for array in (input_YX, output_YX)]
    image = Image.fromarray(np.concatenate(panels, axis=1))
    scale = max(1, 256 // side)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _slice(array_BCS: np.ndarray) -> np.ndarray:
    array_S: np.ndarray = array_BCS[0, -1]
    return array_S if array_S.ndim == 2 else array_S[array_S.shape[0] // 2]


def _grey(array: np.ndarray) -> np.ndarray:
    low, high = float(array.min()), float(array.max())
    return np.rint((array.astype(np.float64) - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)

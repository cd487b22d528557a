"""Two figures that tell whether a network may be tiled: what the seams show, and what learning under other statistics costs.

Reference: Buglakova et al. 2025, arXiv 2503.19545 (tile mismatch; disparity between training and evaluation).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.core.network.receptive import least_halo
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.model import UNet
from pipeline.networks.predictor import activated
from pipeline.training.samples import Region
from pipeline.training.validation import activation_of, prediction, values_of


def disparity(net: UNet, patches: Sequence[Tensor]) -> float:
    """How far apart the probabilities are that a network gives to a patch as it learns and as it predicts, on average.

    Args:
        net: As it is; neither its weights nor its running statistics move.
        patches: Each a batch of its own, (1, C, S).
    """
    learning, predicting = (deepcopy(net) for _ in range(2))
    predicting.eval()
    learning.eval()  # drop-out is left out: it is chance, and no statistics
    for module in learning.modules():
        if isinstance(module, _BatchNorm):
            module.train().momentum = 0.0
    activation = activation_of(net.architecture.out_channels)
    with torch.inference_mode():
        differences = [
            float(
                np.abs(
                    _probabilities(learning, patch, activation) - _probabilities(predicting, patch, activation)
                ).mean()
            )
            for patch in patches
        ]
    return float(np.mean(differences))


def _probabilities(net: nn.Module, patch_BCS: Tensor, activation: str) -> np.ndarray:
    values: np.ndarray = activated(net(patch_BCS)[0].float(), activation).cpu().numpy()
    return values


def tile_mismatch(checkpoint: Checkpoint, region: Region, device: str) -> float | None:
    """The largest difference of probabilities between a region and its first half, predicted with its halo as a tile is.

    Args:
        checkpoint: The network.
        region: Held back.
        device: Where it predicts.

    Returns:
        None where the region is too short for a half with its halo.
    """
    graph, axis = checkpoint.architecture.graph, 2
    stride, halo = graph.stride[axis], least_halo(graph)[axis]
    half = region.box.shape[axis] // 2 // stride * stride
    if not half or half + halo >= region.box.shape[axis]:
        return None
    array = region.image.read(region.box)
    part = values_of(checkpoint, array[..., : half + halo], region.normalization, device)
    return float(np.abs(part[..., :half] - prediction(checkpoint, region, device)[..., :half]).max())

"""The loss: pixel-wise cross entropy, each voxel with a weight of its own.

Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597, equation 1.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def weighted_cross_entropy(logits_BKS: Tensor, target_BS: Tensor, weight_BS: Tensor) -> Tensor:
    """The mean cross entropy of voxels, by weight; of one channel that of its sigmoid, of more that of their softmax.

    Args:
        logits_BKS: Of K channels.
        target_BS: Numbers of classes; 1 or 0 where there is one channel. What they are where the weight is 0 is no matter.
        weight_BS: Not negative.
    """
    if logits_BKS.shape[1] == 1:
        loss_BS = F.binary_cross_entropy_with_logits(
            logits_BKS[:, 0], (target_BS == 1).to(logits_BKS.dtype), reduction="none"
        )
    else:
        known_BS = target_BS.clamp(max=logits_BKS.shape[1] - 1)
        loss_BS = F.cross_entropy(logits_BKS, known_BS.long(), reduction="none")
    return (loss_BS * weight_BS).sum() / weight_BS.sum().clamp(min=1e-6)

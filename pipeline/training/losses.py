"""The loss of a membrane network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def balanced_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy in which both classes weigh the same, whatever their share of the patch.

    Args:
        logits: Any shape.
        target: 1 or 0, the same shape.
    """
    share = target.mean().clamp(0.01, 0.99)
    weight = torch.where(target > 0.5, 0.5 / share, 0.5 / (1 - share))
    return F.binary_cross_entropy_with_logits(logits, target, weight=weight)

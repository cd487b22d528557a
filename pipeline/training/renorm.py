"""Batch renormalisation: a batch norm that learns under the statistics that it will predict with.

A batch norm learns under the statistics of each batch and predicts with running ones; of small batches the two differ, and so do the
network's answers. Renormalisation corrects each batch to the running statistics, within limits that open as the training goes on. In
prediction it is a batch norm, with the same tensors, so nothing else knows of it.

References: Ioffe 2017, arXiv 1702.03275 (the correction, its limits); Buglakova et al. 2025, arXiv 2503.19545 (why it suits tiles).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.networks.model import UNet

LARGEST_RATIO, LARGEST_SHIFT = 3.0, 5.0
"""How far a batch is corrected at the end: of its standard deviation, a factor; of its mean, running standard deviations."""

PLAIN, OPEN = 1 / 8, 1 / 2
"""Shares of the steps up to which it is a plain batch norm, and from which the limits are open: running statistics must be known first."""


class BatchRenorm(_BatchNorm):
    """A batch norm that corrects each batch to the running statistics.

    Args:
        like: The batch norm whose tensors it takes over.
        steps: Of the whole training.
    """

    def __init__(self, like: _BatchNorm, steps: int) -> None:
        super().__init__(like.num_features, like.eps, like.momentum)
        self.load_state_dict(like.state_dict())
        self._steps = steps

    def _check_input_dim(self, _: Tensor) -> None:
        """Of any number of axes."""

    def limits(self) -> tuple[float, float]:
        """The largest factor and the largest shift of the next batch."""
        known = 0 if self.num_batches_tracked is None else int(self.num_batches_tracked)
        share = min(max((known / self._steps - PLAIN) / (OPEN - PLAIN), 0.0), 1.0)
        return 1 + share * (LARGEST_RATIO - 1), share * LARGEST_SHIFT

    def forward(self, x_BCS: Tensor) -> Tensor:
        """Normalised values, of the same shape; the correction is a constant to the gradient."""
        mean, variance = self.running_mean, self.running_var
        if not self.training or mean is None or variance is None:
            return super().forward(x_BCS)
        largest, shift = self.limits()
        with torch.no_grad():
            axes = [0, *range(2, x_BCS.ndim)]
            batch_variance, batch_mean = torch.var_mean(x_BCS.float(), axes, correction=0)
            deviation = torch.sqrt(variance + self.eps)
            ratio = (torch.sqrt(batch_variance + self.eps) / deviation).clamp(1 / largest, largest)
            offset = ((batch_mean - mean) / deviation).clamp(-shift, shift)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        weight, bias = self.weight * ratio, self.weight * offset + self.bias
        return F.batch_norm(x_BCS, mean, variance, weight, bias, True, self.momentum or 0.0, self.eps)


def with_renorm(net: UNet, steps: int) -> UNet:
    """A network whose batch norms renormalise; changed in place, its tensors keep their names.

    Args:
        net: The network.
        steps: Of the whole training.
    """
    for block in [module for module in net.modules() if isinstance(module, nn.Sequential)]:
        for name, child in block.named_children():
            if isinstance(child, _BatchNorm):
                block.register_module(name, BatchRenorm(child, steps))
    return net

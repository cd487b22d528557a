"""The UNet in torch: one parametric class, of which the notes' network is one setting.

References: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597 (the network, copy and crop, initialisation);
He et al. 2015, arXiv 1502.01852 (standard deviation sqrt(2 / fan-in)).

Shape suffixes: B batch, C channels, S the spatial axes (Y X, or Z Y X).
"""

from __future__ import annotations

from math import prod, sqrt

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pipeline.core.network.unet import Architecture

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_UP = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


class UNet(nn.Module):
    """A UNet whose tensors carry the notes' names (`encoder1_1.0.weight` ... `fc.bias`).

    Args:
        architecture: What to build. Weights start at torch's defaults; see `initialise`.
        dropout: Lease of values that training sets to 0 at the end of the contracting path: what the lowest skip and
            the bottom pass on. It leaves no tensor, and does nothing in evaluation.
    """

    def __init__(self, architecture: Architecture, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        a, depth = architecture, architecture.depth
        self.architecture = a
        channels = a.in_channels
        for k in range(depth):
            self.add_module(f"encoder{k + 1}_1", self._block(channels, a.channels(k)))
            self.add_module(f"encoder{k + 1}_2", self._block(a.channels(k), a.channels(k)))
            channels = a.channels(k)
        self.add_module(f"encoder{depth + 1}_1", self._block(channels, a.channels(depth)))
        self.add_module(f"decoder{depth + 1}_1", self._block(a.channels(depth), a.channels(depth - 1)))
        for k in reversed(range(depth)):
            width = a.channels(k)
            self.add_module(f"unpool{k + 1}", _UP[a.ndim](width, width, 2, stride=2, bias=a.bias))
            self.add_module(f"decoder{k + 1}_2", self._block(2 * width, width))
            self.add_module(f"decoder{k + 1}_1", self._block(width, a.channels(max(k - 1, 0))))
        self.fc = _CONV[a.ndim](a.width, a.out_channels, 1, bias=a.bias)
        self.pool = _POOL[a.ndim](2)

    def _block(self, in_channels: int, out_channels: int) -> nn.Sequential:
        a = self.architecture
        padding = 1 if a.padding == "same" else 0
        block: list[nn.Module] = [_CONV[a.ndim](in_channels, out_channels, 3, padding=padding, bias=a.bias)]
        if a.norm == "batch":
            block.append(_NORM[a.ndim](out_channels))
        return nn.Sequential(*block, nn.ReLU(inplace=True))

    def _run(self, name: str, x_BCS: Tensor) -> Tensor:
        output: Tensor = self.get_submodule(name)(x_BCS)
        return output

    def forward(self, x_BCS: Tensor) -> Tensor:
        """Logits for `x_BCS`; the extents must be legal (`core.network.receptive.legal_extent`).

        One layer a statement: in a nested call the outer layer's caller would keep the inner one's input alive.
        """
        depth = self.architecture.depth
        skips = []
        for k in range(1, depth + 1):
            x_BCS = self._run(f"encoder{k}_1", x_BCS)
            x_BCS = self._run(f"encoder{k}_2", x_BCS)
            if k == depth:
                x_BCS = self.dropout(x_BCS)
            skips.append(x_BCS)
            x_BCS = self.pool(x_BCS)
        x_BCS = self._run(f"encoder{depth + 1}_1", x_BCS)
        x_BCS = self._run(f"decoder{depth + 1}_1", x_BCS)
        x_BCS = self.dropout(x_BCS)
        for k in range(depth, 0, -1):
            x_BCS = self._run(f"unpool{k}", x_BCS)
            x_BCS = _joined(x_BCS, skips.pop())
            x_BCS = self._run(f"decoder{k}_2", x_BCS)
            x_BCS = self._run(f"decoder{k}_1", x_BCS)
        logits_BKS: Tensor = self.fc(x_BCS)
        return logits_BKS

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())


def _joined(up_BCS: Tensor, skip_BCS: Tensor) -> Tensor:
    """Copy and crop: the up-sampled map first, then the centre of the skip."""
    for axis in range(2, up_BCS.ndim):
        extra = skip_BCS.shape[axis] - up_BCS.shape[axis]
        skip_BCS = skip_BCS.narrow(axis, extra // 2, up_BCS.shape[axis])
    return torch.cat([up_BCS, skip_BCS], dim=1)


def initialise(model: UNet, seed: int) -> UNet:
    """Draw every convolution from a Gaussian of standard deviation sqrt(2 / fan-in); biases start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _ConvNd):
            fan_in = module.in_channels
            if not isinstance(module, tuple(_UP.values())):  # stride 2, 2 taps: each output voxel sees one tap
                fan_in *= prod(module.kernel_size)
            with torch.no_grad():
                module.weight.normal_(0.0, sqrt(2.0 / fan_in), generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
    return model

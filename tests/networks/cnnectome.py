"""The layout of CNNectome's UNet, which is on no package index.

Written from what its source describes: `networks/unet_class.py` of https://github.com/saalfeldlab/CNNectome, of which
`funlib/learn/torch/models/unet.py` of https://github.com/funkelab/funlib.learn.torch is the version for torch. Convolutions pad
nothing; what was up-sampled is cut to whole groups of the lowest level, so that the network commutes with shifts by its
stride whatever it is given; what is joined is cut to its middle.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CNNectome(nn.Module):
    """Two convolutions a level, a maximum of `factors` between, width times four a level.

    Args:
        width: Channels of the first level.
        factors: Of each down-sampling, along z, y, x.
        transposed: Up-sampling by transposed convolutions, or by nearest neighbours and one convolution of a voxel.
        norm: Behind each convolution: a class that takes channels.
    """

    def __init__(
        self,
        width: int = 4,
        factors: tuple[tuple[int, int, int], ...] = ((2, 2, 2), (2, 2, 2)),
        *,
        transposed: bool = True,
        norm: type[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        widths = [width * 3**level for level in range(len(factors) + 1)]
        self.factors, self.transposed = factors, transposed
        self.down = nn.ModuleList(_two(a, b, norm) for a, b in pairwise([1, *widths]))
        self.rise = nn.ModuleList(
            nn.ConvTranspose3d(high, high, factor, factor) if transposed else nn.Conv3d(high, low, 1)
            for (low, high), factor in zip(pairwise(widths), factors, strict=True)
        )
        self.up = nn.ModuleList(_two(low + (high if transposed else low), low, norm) for low, high in pairwise(widths))
        self.last = nn.Conv3d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for level, block in enumerate(self.down):
            x = block(x)
            if level < len(self.factors):
                seen.append(x)
                x = F.max_pool3d(x, self.factors[level])
        for level in reversed(range(len(self.factors))):
            rise, factor = self.rise[level], self.factors[level]
            x = rise(x) if self.transposed else rise(F.interpolate(x, scale_factor=[float(f) for f in factor]))
            x = self._cut(x, level)
            x = self.up[level](torch.cat([_middle(seen[level], tuple(x.shape[2:])), x], 1))
        return torch.sigmoid(self.last(x))

    def _cut(self, x: Tensor, level: int) -> Tensor:
        """What two convolutions of three taps leave in whole groups of the levels below."""
        groups = [prod(factor[axis] for factor in self.factors[level:]) for axis in range(3)]
        return _middle(x, tuple((n - 4) // g * g + 4 for n, g in zip(x.shape[2:], groups, strict=True)))


def _two(given: int, width: int, norm: type[nn.Module] | None) -> nn.Sequential:
    """Two convolutions that pad nothing."""
    layers: list[nn.Module] = []
    for channels in (given, width):
        layers += [nn.Conv3d(channels, width, 3), *([norm(width)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers)


def _middle(x: Tensor, extents: tuple[int, ...]) -> Tensor:
    """The middle of a map."""
    starts = [(n - m) // 2 for n, m in zip(x.shape[2:], extents, strict=True)]
    z, y, x_ = (slice(a, a + m) for a, m in zip(starts, extents, strict=True))
    return x[:, :, z, y, x_]

"""Small networks of other layouts than ours, with random weights and running statistics; and their files."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram, export, save


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Statistics and affine maps of norms that change values; evaluation mode, float64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.uniform_(-0.5, 0.5, generator=generator)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.uniform_(0.7, 1.3, generator=generator)
    return network.double().eval().requires_grad_(False)


class Residual(nn.Module):
    """Strided down, transposed up with a voxel more at the end, sums, in-place activations after which others read: as MONAI's UNet."""

    shape = (1, 1, 24, 28, 32)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4)
        self.down = nn.Conv3d(4, 6, 3, stride=2, padding=1)
        self.inner, self.slope = nn.Conv3d(6, 6, 3, padding=1, groups=2), nn.PReLU(6)
        self.up = nn.ConvTranspose3d(6, 4, 3, stride=2, padding=1, output_padding=1)
        self.last = nn.Conv3d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.norm(self.first(x))
        shown = F.leaky_relu_(first, 0.1)  # `first` is changed, and joined below
        low = self.down(shown)
        low = low + self.slope(self.inner(low)) * 0.5
        return torch.softmax(self.last(torch.cat([first, self.up(low)], 1)), 1)


class Planar(nn.Module):
    """2D: overlapping and blurred poolings, padding that mirrors, linear and nearest up-sampling, dilation, a slice of channels."""

    shape = (1, 2, 48, 64)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect")
        self.wide = nn.Conv2d(4, 6, 3, padding=2, dilation=2)
        self.low, self.norm = nn.Conv2d(6, 6, 5, padding="same"), nn.BatchNorm2d(6)
        self.last = nn.Conv2d(4 + 6 + 6, 3, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        first = F.elu(self.first(x))
        half = F.max_pool2d(first, 3, 2, 1)
        half = torch.sigmoid(self.wide(half))
        quarter = F.avg_pool2d(F.pad(half, (1, 1, 1, 1), "reflect"), 4, 2)
        quarter = F.gelu(self.norm(self.low(quarter)))
        up = F.interpolate(quarter, scale_factor=2, mode="bilinear", align_corners=False)
        both = torch.maximum(up, half)
        joined = torch.cat(
            [first, F.interpolate(both, scale_factor=2, mode="nearest"), F.interpolate(half, scale_factor=2)], 1
        )
        return self.last(joined).clamp(-1, 1)[:, 1:]


class Valid(nn.Module):
    """Pads nothing, and crops what it joins: as CNNectome's."""

    shape = (1, 1, 36, 40, 44)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.Conv3d(4, 4, (1, 3, 3)), nn.ReLU())
        self.low = nn.Sequential(nn.Conv3d(4, 6, 3), nn.ReLU())
        self.up = nn.ConvTranspose3d(6, 4, (1, 2, 2), (1, 2, 2))
        self.last = nn.Sequential(nn.Conv3d(8, 4, 3), nn.ReLU(), nn.Conv3d(4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        up = self.up(self.low(F.max_pool3d(first, (1, 2, 2))))
        z, y, x_ = ((m - n) // 2 for m, n in zip(first.shape[2:], up.shape[2:], strict=True))
        cropped = first[:, :, z : first.shape[2] - z, y : first.shape[3] - y, x_ : first.shape[4] - x_]
        return self.last(torch.cat([up, cropped], 1))


class Odd(nn.Module):
    """Pads nothing, loses an odd number of voxels along z, and joins nothing that would tell odd extents."""

    shape = (1, 1, 20, 27, 32)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.low = nn.Conv3d(1, 4, (2, 3, 3)), nn.Conv3d(4, 4, 3)
        self.up, self.last = nn.ConvTranspose3d(4, 4, (1, 2, 2), (1, 2, 2)), nn.Conv3d(4, 2, (1, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        low = F.relu(self.low(F.max_pool3d(F.relu(self.first(x)), (1, 2, 2))))
        return self.last(self.up(low))


class Deep(nn.Module):
    """Three poolings by two and skips that must fit: takes no extents but multiples of 8."""

    shape = (1, 1, 16, 24, 32)

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv3d(n, 4, 3, padding=1) for n in (1, 4, 4, 4)])
        self.up = nn.ModuleList([nn.ConvTranspose3d(4, 4, 2, stride=2) for _ in range(3)])
        self.last = nn.Conv3d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, convolution in enumerate(self.down):
            x = F.relu(convolution(F.max_pool3d(x, 2) if level else x))
            skips.append(x)
        for skip, up in zip(reversed(skips[:-1]), self.up, strict=True):
            x = up(x) + skip
        return self.last(x)


class Aligned(nn.Module):
    """Linear up-sampling with corners on corners, at two levels: as pytorch-3dunet's and others', which lies by the volume's extent."""

    shape = (1, 1, 16, 24, 32)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.low = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1)
        self.inner, self.last = nn.Conv3d(8, 4, 3, padding=1), nn.Conv3d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.first(x))
        low = F.relu(self.low(F.max_pool3d(first, 2)))
        lowest = F.max_pool3d(low, (1, 2, 2))
        raised = F.interpolate(lowest, scale_factor=(1, 2, 2), mode="trilinear", align_corners=True)
        low = F.interpolate(self.inner(torch.cat([low, raised], 1)), None, 2, "trilinear", align_corners=True)
        return self.last(torch.cat([first, low], 1))


class Normed(nn.Module):
    """Instance and group norms, squeeze-and-excite: looks at its whole input, as nnU-Net and pytorch-3dunet do."""

    shape = (1, 1, 16, 24, 24)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(1, 4, 3, padding=1, bias=False), nn.InstanceNorm3d(4, affine=True)
        self.down, self.group = nn.Conv3d(4, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8)
        self.squeeze, self.excite = nn.Linear(8, 2), nn.Linear(2, 8)
        self.up = nn.ConvTranspose3d(8, 4, 2, stride=2)
        self.low, self.lower = nn.Conv3d(8, 4, 3, padding=1), nn.InstanceNorm3d(4)
        self.last = nn.Conv3d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.leaky_relu(self.norm(self.first(x)), 0.01)
        low = F.relu(self.group(self.down(first)))
        values = F.adaptive_avg_pool3d(low, 1).view(1, 8)
        low = low * torch.sigmoid(self.excite(F.relu(self.squeeze(values)))).view(1, 8, 1, 1, 1)
        return self.last(F.relu(self.lower(self.low(torch.cat([first, self.up(low)], 1)))))


NETWORKS = {"residual": Residual, "planar": Planar, "valid": Valid, "odd": Odd, "aligned": Aligned}


def exported(network: nn.Module, shape: tuple[int, ...] | None = None) -> ExportedProgram:
    """Its program, before decompositions."""
    dtype = next((p.dtype for p in network.parameters()), torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export(network, (torch.zeros(shape or network.shape, dtype=dtype),), strict=False)


def save_program(path: Path, network: nn.Module, shape: tuple[int, ...] | None = None) -> Path:
    """Its file, float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(exported(network.float(), shape), path)
    return path

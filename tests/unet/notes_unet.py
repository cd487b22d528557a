"""The notes' network, written down again from their table and from nothing else: what the pipeline's must agree with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def cbr(i, o):
    """Convolution 3x3, padding 1, with bias; batch norm; ReLU."""
    return nn.Sequential(nn.Conv2d(i, o, 3, stride=1, padding=1, bias=True), nn.BatchNorm2d(o), nn.ReLU())


def unpool(c):
    """Transposed convolution 2x2 of stride 2, with bias."""
    return nn.ConvTranspose2d(c, c, kernel_size=2, stride=2, padding=0, bias=True)


class NotesUNet(nn.Module):
    """Line by line as the notes have it: base width 64, four poolings, one channel in and out."""

    def __init__(self):
        super().__init__()
        self.encoder1_1 = cbr(1, 64)
        self.encoder1_2 = cbr(64, 64)
        self.pool1 = nn.MaxPool2d(2)
        self.encoder2_1 = cbr(64, 128)
        self.encoder2_2 = cbr(128, 128)
        self.pool2 = nn.MaxPool2d(2)
        self.encoder3_1 = cbr(128, 256)
        self.encoder3_2 = cbr(256, 256)
        self.pool3 = nn.MaxPool2d(2)
        self.encoder4_1 = cbr(256, 512)
        self.encoder4_2 = cbr(512, 512)
        self.pool4 = nn.MaxPool2d(2)
        self.encoder5_1 = cbr(512, 1024)
        self.decoder5_1 = cbr(1024, 512)
        self.unpool4 = unpool(512)
        self.decoder4_2 = cbr(1024, 512)
        self.decoder4_1 = cbr(512, 256)
        self.unpool3 = unpool(256)
        self.decoder3_2 = cbr(512, 256)
        self.decoder3_1 = cbr(256, 128)
        self.unpool2 = unpool(128)
        self.decoder2_2 = cbr(256, 128)
        self.decoder2_1 = cbr(128, 64)
        self.unpool1 = unpool(64)
        self.decoder1_2 = cbr(128, 64)
        self.decoder1_1 = cbr(64, 64)
        self.fc = nn.Conv2d(64, 1, kernel_size=1, bias=True)

    def forward(self, x):
        """Logits; the up-sampled map comes first in every concatenation."""
        encoder1 = self.encoder1_2(self.encoder1_1(x))
        encoder2 = self.encoder2_2(self.encoder2_1(self.pool1(encoder1)))
        encoder3 = self.encoder3_2(self.encoder3_1(self.pool2(encoder2)))
        encoder4 = self.encoder4_2(self.encoder4_1(self.pool3(encoder3)))
        decoder5 = self.decoder5_1(self.encoder5_1(self.pool4(encoder4)))
        cat4 = torch.cat((self.unpool4(decoder5), encoder4), dim=1)
        decoder4 = self.decoder4_1(self.decoder4_2(cat4))
        cat3 = torch.cat((self.unpool3(decoder4), encoder3), dim=1)
        decoder3 = self.decoder3_1(self.decoder3_2(cat3))
        cat2 = torch.cat((self.unpool2(decoder3), encoder2), dim=1)
        decoder2 = self.decoder2_1(self.decoder2_2(cat2))
        cat1 = torch.cat((self.unpool1(decoder2), encoder1), dim=1)
        decoder1 = self.decoder1_1(self.decoder1_2(cat1))
        return self.fc(decoder1)


# --- other settings -------------------------------------------------------------------------------------------------------


def logits_by_names(state, x, *, depth, padding="same"):
    """What tensors of these names compute, at any depth, in 2D or 3D, padded or not, with or without bias and norm.

    Args:
        state: Tensors by the notes' names.
        x: Input, (B, C, Y, X) or (B, C, Z, Y, X).
        depth: Number of poolings.
        padding: `same` or `valid`; where nothing is padded, the centre of the larger map is concatenated.
    """
    conv, up, pool = (
        (F.conv2d, F.conv_transpose2d, F.max_pool2d) if x.ndim == 4 else (F.conv3d, F.conv_transpose3d, F.max_pool3d)
    )

    def block(x, *names):
        for name in names:
            x = conv(x, state[f"{name}.0.weight"], state.get(f"{name}.0.bias"), padding=1 if padding == "same" else 0)
            if f"{name}.1.running_mean" in state:
                norm = (state[f"{name}.1.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
                x = F.batch_norm(x, *norm, training=False)
            x = x.clamp(min=0)
        return x

    kept = []
    for level in range(1, depth + 1):
        kept.append(block(x, f"encoder{level}_1", f"encoder{level}_2"))
        x = pool(kept[-1], 2)
    x = block(x, f"encoder{depth + 1}_1", f"decoder{depth + 1}_1")
    for level in range(depth, 0, -1):
        x = up(x, state[f"unpool{level}.weight"], state.get(f"unpool{level}.bias"), stride=2)
        x = torch.cat([x, centre(kept.pop(), x.shape)], dim=1)
        x = block(x, f"decoder{level}_2", f"decoder{level}_1")
    return conv(x, state["fc.weight"], state.get("fc.bias"))


def centre(x, shape):
    """The centre of a map, of another map's extents."""
    lost = [(n - m) // 2 for n, m in zip(x.shape[2:], shape[2:], strict=True)]
    return x[(..., *(slice(a, a + n) for a, n in zip(lost, shape[2:], strict=True)))]


def randomise(model, seed=0):
    """Weights that keep the signal's size, and batch norms as if trained: torch's defaults would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("running_var", ".1.weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith(("bias", "running_mean")):
                tensor.normal_(0.0, 0.2, generator=generator)
            elif tensor.ndim > 1:
                taps = tensor[0, 0].numel() if "unpool" not in name else 1
                inputs = tensor.shape[0] if "unpool" in name else tensor.shape[1]
                tensor.normal_(0.0, (2 / (taps * inputs)) ** 0.5, generator=generator)
            else:
                tensor.fill_(17)
    return model.eval()

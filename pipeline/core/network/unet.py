"""What a UNet is made of, as a value: enough to build it, to place its tiles and to price it.

One parametric network; the notes' class is `Architecture(ndim=2, depth=4, width=64)`. Level 0 is the finest.
At depth d there are d poolings, `width * 2**k` channels at level k, and a bottom of one convolution down
(`encoder{d+1}_1`) and one back (`decoder{d+1}_1`). Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from pipeline.core.box import Triple

Padding = Literal["same", "valid"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """One setting of the network.

    Args:
        ndim: 2 or 3 spatial axes of its convolutions.
        depth: Number of poolings by two.
        width: Channels of the finest level.
        in_channels: Channels read.
        out_channels: Channels predicted.
        padding: `same` pads every 3-convolution with zeros; `valid` pads none and crops the skips.
        bias: Whether convolutions add a bias.
        norm: `batch` puts a batch norm behind every 3-convolution; `none` puts nothing.
    """

    ndim: int
    depth: int
    width: int
    in_channels: int = 1
    out_channels: int = 1
    padding: Padding = "same"
    bias: bool = True
    norm: Literal["batch", "none"] = "batch"

    @property
    def stride(self) -> Triple:
        """Total down-sampling along z, y, x; a 2D network has 1 in z."""
        s = 1 << self.depth
        return (s, s, s) if self.ndim == 3 else (1, s, s)

    def channels(self, level: int) -> int:
        return self.width << level

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer with weights, or one pooling.

    Args:
        name: Name of the module that owns its weights; a pooling's is `pool` and the level that it reads, from 1.
        kind: `conv` (3 taps an axis), `pool` (2 taps, stride 2), `up` (transposed, 2 taps, stride 2) or `point` (1 tap).
        level: Of what it writes; a pooling and an `up` read one level finer and one coarser.
        in_channels: Channels read.
        out_channels: Channels written.
    """

    name: str
    kind: Literal["conv", "pool", "up", "point"]
    level: int
    in_channels: int
    out_channels: int

    def weights(self, ndim: int) -> int:
        """Values of its kernel."""
        taps: int = {"conv": 3, "up": 2, "point": 1}.get(self.kind, 0) ** ndim
        return self.in_channels * self.out_channels * taps

    def multiply_adds(self, ndim: int) -> int:
        """Multiplications with addition a voxel that is written; a transposed convolution has one tap for each."""
        taps: int = {"conv": 3**ndim, "up": 1, "point": 1}.get(self.kind, 0)
        return self.in_channels * self.out_channels * taps


def layers(architecture: Architecture) -> Iterator[Layer]:
    """The layers in the order in which one forward pass runs them."""
    a, depth = architecture, architecture.depth
    channels = a.in_channels
    for k in range(depth):
        yield Layer(f"encoder{k + 1}_1", "conv", k, channels, a.channels(k))
        yield Layer(f"encoder{k + 1}_2", "conv", k, a.channels(k), a.channels(k))
        channels = a.channels(k)
        yield Layer(f"pool{k + 1}", "pool", k + 1, channels, channels)
    yield Layer(f"encoder{depth + 1}_1", "conv", depth, channels, a.channels(depth))
    yield Layer(f"decoder{depth + 1}_1", "conv", depth, a.channels(depth), a.channels(depth - 1))
    for k in reversed(range(depth)):
        channels = a.channels(k)
        yield Layer(f"unpool{k + 1}", "up", k, channels, channels)
        yield Layer(f"decoder{k + 1}_2", "conv", k, 2 * channels, channels)
        yield Layer(f"decoder{k + 1}_1", "conv", k, channels, a.channels(max(k - 1, 0)))
    yield Layer("fc", "point", 0, a.width, a.out_channels)

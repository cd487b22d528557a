"""What a UNet is made of, as a value: enough to build it, to place its tiles and to price it.

One parametric network; the notes' class is `Architecture(ndim=2, depth=4, width=64)`. Level 0 is the finest.
At depth d there are d poolings, `width * 2**k` channels at level k, and a bottom of one convolution down
(`encoder{d+1}_1`) and one back (`decoder{d+1}_1`). Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal

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
        s = 2**self.depth
        return (s, s, s) if self.ndim == 3 else (1, s, s)

    def channels(self, level: int) -> int:
        return self.width * 2**level

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Layer:
    """One parametric layer at work.

    Args:
        name: Name of the module that owns its weights.
        kind: `conv` (3 taps an axis), `up` (transposed, 2 taps, stride 2) or `point` (1 tap).
        in_channels: Channels read.
        out_channels: Channels written.
        in_extent: Voxels read along z, y, x.
        out_extent: Voxels written along z, y, x.
        skips: Values (channels x voxels) of skips that wait in memory while it runs.
    """

    name: str
    kind: Literal["conv", "up", "point"]
    in_channels: int
    out_channels: int
    in_extent: Triple
    out_extent: Triple
    skips: int

    @property
    def in_values(self) -> int:
        return self.in_channels * prod(self.in_extent)

    @property
    def out_values(self) -> int:
        return self.out_channels * prod(self.out_extent)

    def multiply_adds(self, ndim: int) -> int:
        """Multiplications with addition; a transposed convolution of stride 2 has one tap an output voxel."""
        taps = 3**ndim if self.kind == "conv" else 1
        return self.out_values * self.in_channels * taps


def layers(architecture: Architecture, extent: Triple) -> Iterator[Layer]:
    """The layers in the order in which one forward pass over `extent` voxels runs them.

    `extent` must be legal: pooled extents even, and nothing consumed to zero.
    """
    walk = _Walk(architecture, extent)
    depth = architecture.depth
    for k in range(depth):
        yield walk.conv(f"encoder{k + 1}_1", architecture.channels(k))
        yield walk.conv(f"encoder{k + 1}_2", architecture.channels(k))
        walk.pool()
    yield walk.conv(f"encoder{depth + 1}_1", architecture.channels(depth))
    yield walk.conv(f"decoder{depth + 1}_1", architecture.channels(depth - 1))
    for k in reversed(range(depth)):
        yield walk.up(f"unpool{k + 1}")
        walk.concatenate()
        yield walk.conv(f"decoder{k + 1}_2", architecture.channels(k))
        yield walk.conv(f"decoder{k + 1}_1", architecture.channels(max(k - 1, 0)))
    yield walk.layer("fc", "point", architecture.out_channels, walk.extent)


class _Walk:
    """The state of a forward pass: channels and extent now, and the skips that wait."""

    def __init__(self, architecture: Architecture, extent: Triple) -> None:
        self.spatial = (architecture.ndim == 3, True, True)
        self.loss = 2 if architecture.padding == "valid" else 0
        self.channels = architecture.in_channels
        self.extent = extent
        self.skips: list[tuple[int, Triple]] = []

    def _scaled(self, change: Any) -> Triple:
        return tuple(change(n) if on else n for n, on in zip(self.extent, self.spatial, strict=True))  # type: ignore[return-value]

    def layer(self, name: str, kind: Any, channels: int, extent: Triple) -> Layer:
        waiting = sum(c * prod(e) for c, e in self.skips)
        layer = Layer(name, kind, self.channels, channels, self.extent, extent, waiting)
        self.channels, self.extent = channels, extent
        return layer

    def conv(self, name: str, channels: int) -> Layer:
        return self.layer(name, "conv", channels, self._scaled(lambda n: n - self.loss))

    def pool(self) -> None:
        self.skips.append((self.channels, self.extent))
        self.extent = self._scaled(lambda n: n // 2)

    def up(self, name: str) -> Layer:
        return self.layer(name, "up", self.channels, self._scaled(lambda n: n * 2))

    def concatenate(self) -> None:
        self.channels += self.skips.pop()[0]

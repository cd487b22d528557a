"""The UNet of the notes: its setting as a value, and the graph that it is built as.

One parametric network; the notes' class is `Architecture(ndim=2, depth=4, width=64)`. Level 0 is the finest.
At depth d there are d poolings, `width * 2**k` channels at level k, and a bottom of one convolution down
(`encoder{d+1}_1`) and one back (`decoder{d+1}_1`). Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Literal

from pipeline.core.geometry.box import Triple, triple
from pipeline.core.network.graph import Graph, Node
from pipeline.core.network.operations import (
    Activation,
    Concatenation,
    Convolution,
    Input,
    MaxPool,
    Operation,
    TransposedConvolution,
)

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

    @property
    def graph(self) -> Graph:
        """The network that it describes; one object for equal architectures."""
        return unet(self)

    @property
    def title(self) -> str:
        """What it is, in a line."""
        return f"{self.ndim}D, depth {self.depth}, width {self.width}, {self.padding} padding"

    @property
    def summary(self) -> str:
        """The same within a sentence."""
        return f"{self.ndim}D network of depth {self.depth}, width {self.width}"

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    def identity(self) -> dict[str, object]:
        """What a fingerprint covers of it."""
        return self.to_dict()


@lru_cache(maxsize=32)
def unet(architecture: Architecture) -> Graph:
    """The network, in the order in which one forward pass runs it; nodes with weights have the notes' names."""
    a, nodes = architecture, [Node("input", Input(), (), architecture.in_channels)]
    kernel, pair = ((3, 3, 3), (2, 2, 2)) if a.ndim == 3 else ((1, 3, 3), (1, 2, 2))
    convolution = Convolution(kernel, triple(k // 2 if a.padding == "same" else 0 for k in kernel))

    def add(name: str, operation: Operation, channels: int, *inputs: str) -> str:
        nodes.append(Node(name, operation, inputs or (nodes[-1].name,), channels))
        return name

    def block(name: str, channels: int) -> str:
        add(name, convolution, channels)
        return add(f"{name}.relu", Activation("relu"), channels)

    phases = [triple(phase if n > 1 else 0 for n in pair) for phase in pair_phases(a)]
    skips = []
    for k in range(a.depth):
        block(f"encoder{k + 1}_1", a.channels(k))
        skips.append(block(f"encoder{k + 1}_2", a.channels(k)))
        add(f"pool{k + 1}", MaxPool(pair, phases[k]), a.channels(k))
    block(f"encoder{a.depth + 1}_1", a.channels(a.depth))
    block(f"decoder{a.depth + 1}_1", a.channels(a.depth - 1))
    for k in reversed(range(a.depth)):
        raised = add(f"unpool{k + 1}", TransposedConvolution(pair, phases[k]), a.channels(k))
        add(f"concatenation{k + 1}", Concatenation(), 2 * a.channels(k), raised, skips[k])
        block(f"decoder{k + 1}_2", a.channels(k))
        block(f"decoder{k + 1}_1", a.channels(max(k - 1, 0)))
    add("fc", Convolution((1, 1, 1), (0, 0, 0)), a.out_channels)
    return Graph(tuple(nodes))


def pair_phases(architecture: Architecture) -> tuple[int, ...]:
    """By level, the offset of the pairs that a pooling joins, in the volume's coordinates.

    With same padding pairs start at even voxels. An unpadded network's one pass starts a margin before the volume, and
    each convolution moves its first voxel on by one.
    """
    if architecture.padding == "same":
        return (0,) * architecture.depth
    phases = []
    first = -(3 * 2 ** (architecture.depth + 1) - 4)
    for _ in range(architecture.depth):
        first += 2
        phases.append(first % 2)
        first = (first - first % 2) // 2
    return tuple(phases)

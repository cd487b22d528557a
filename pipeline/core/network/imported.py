"""A network of another library: its graph, where a UNet of ours has an architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.core.geometry.box import Triple
from pipeline.core.network.document import digest, document, graph_of
from pipeline.core.network.graph import Graph
from pipeline.core.network.unet import Architecture


@dataclass(frozen=True)
class Imported:
    """A network that came as a graph; read where an `Architecture` is.

    Args:
        graph: What it does.
        ndim: Spatial axes that it has, 2 or 3.
    """

    graph: Graph
    ndim: int

    @property
    def stride(self) -> Triple:
        """Total down-sampling along z, y, x."""
        return self.graph.stride

    @property
    def in_channels(self) -> int:
        return self.graph.input.channels

    @property
    def out_channels(self) -> int:
        return self.graph.output.channels

    @property
    def padding(self) -> Literal["same", "valid"]:
        """`same` where it pads at the volume's ends; else one pass loses a margin."""
        return "same" if self.graph.is_padded else "valid"

    @property
    def title(self) -> str:
        """What it is, in a line."""
        return f"{self.ndim}D, imported, {len(self.graph.nodes) - 1} operations, {self.padding} padding"

    @property
    def summary(self) -> str:
        """The same within a sentence."""
        return f"imported {self.ndim}D network of {len(self.graph.nodes) - 1} operations"

    def identity(self) -> dict[str, object]:
        """What a fingerprint covers of it."""
        return {"ndim": self.ndim, "graph": digest(self.graph)}

    def to_dict(self) -> dict[str, object]:
        return {"ndim": self.ndim, "graph": document(self.graph)}

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> Imported:
        """What `to_dict` gave.

        Raises:
            ValueError: It is not that.
        """
        if content.get("ndim") not in (2, 3):
            raise ValueError(f"a network has 2 or 3 spatial axes, not {content.get('ndim')}")
        return cls(graph_of(content.get("graph")), 2 if content["ndim"] == 2 else 3)


AnyNetwork = Architecture | Imported
"""A UNet of ours by its setting, or a graph."""


def network_of(content: Mapping[str, object]) -> AnyNetwork:
    """What the `to_dict` of either gave.

    Raises:
        ValueError, TypeError: It is neither.
    """
    values: dict[str, Any] = dict(content)
    return Imported.from_dict(content) if "graph" in content else Architecture(**values)

"""The UNet as a list of layers, and what each needs, walked by their names: the rule before networks were graphs.

Kept as an independent reference: it knows nothing of nodes, readers and hulls, only of this one network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log2
from typing import Literal

from pipeline.core.geometry.box import Span
from pipeline.core.network.graph import Graph
from pipeline.core.network.unet import Architecture, pair_phases


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer with weights, or one pooling."""

    name: str
    kind: Literal["conv", "pool", "up", "point"]
    level: int
    in_channels: int
    out_channels: int


def architecture_of(graph: Graph) -> Architecture:
    """The setting of which a graph is the UNet, bias and norm aside."""
    return Architecture(
        ndim=2 if graph.stride[0] == 1 else 3,
        depth=int(log2(graph.stride[2])),
        width=graph.node("encoder1_1").channels,
        in_channels=graph.input.channels,
        out_channels=graph.output.channels,
        padding="same" if graph.is_padded else "valid",
    )


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


def sources(architecture: Architecture, layer: Layer) -> list[str]:
    """Names of the layers, or `input`, whose output a layer reads."""
    order = [found.name for found in layers(architecture)]
    at = order.index(layer.name)
    before = [order[at - 1] if at else "input"]
    joins = layer.kind == "conv" and before[0].startswith("unpool")
    return [*before, f"encoder{layer.level + 1}_2"] if joins else before


def spans_by_layer(
    architecture: Architecture, axis: int, core: Span, ends: Span | None
) -> dict[str, tuple[Span, Span]]:
    """By layer, what it writes and what it reads for a core along an axis; an encoder's need is its pooling's."""
    spatial, phases = architecture.stride[axis] > 1, pair_phases(architecture)
    found, need = {}, core
    for layer in reversed(list(layers(architecture))):
        written = need
        if not spatial:
            pass
        elif layer.kind == "conv":
            need = need.grown(1)
            need = need.clipped(Span(*(e >> layer.level for e in ends))) if ends else need
        elif layer.kind == "up":
            phase = phases[layer.level]
            need = Span((need.start - phase) // 2, -((phase - need.stop) // 2))
        elif layer.kind == "pool":
            phase = phases[layer.level - 1]
            need = Span(2 * need.start + phase, 2 * need.stop + phase)
        found[layer.name] = (written, need)
    return found


def starts_by_layer(architecture: Architecture, axis: int, core: Span, ends: Span | None) -> dict[str, int]:
    """By layer, the slice that it would have reached before a sweep's first turn, were there input."""
    spatial, phases = architecture.stride[axis] > 1, pair_phases(architecture)
    order = list(layers(architecture))
    reached, found = spans_by_layer(architecture, axis, core, ends)[order[0].name][1].start, {}
    for layer in order if spatial else ():
        if layer.kind == "pool":
            reached = (reached - phases[layer.level - 1]) // 2
        elif layer.kind == "up":
            reached = 2 * reached + phases[layer.level]
        elif layer.kind == "conv":
            reached -= 1
            if layer.level < architecture.depth and layer.name == f"encoder{layer.level + 1}_2":
                reached -= (reached - phases[layer.level]) % 2
        found[layer.name] = reached
    return found or {layer.name: reached for layer in order}

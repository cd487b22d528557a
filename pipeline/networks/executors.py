"""A network that computes a core, whichever way: normalised slabs in, logits out, as z advances."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from pipeline.core.geometry.box import Span
from pipeline.core.network.schedule import Schedule
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.evaluate import evaluate, placed
from pipeline.networks.streaming import Streaming
from pipeline.networks.sweep import Arena, Sweep, kernels

Executor = Callable[[Schedule, Iterable[Tensor]], Iterator[tuple[Span, Tensor]]]
"""Of a schedule, and the slabs that it takes in turn by turn, Z Y X C: slices of the core along z, and their logits, C Z Y X."""


StreamMaker = Callable[[Schedule, Arena], Sweep | Streaming]
"""Of a schedule, and memory: the network ready to stream."""


def stream_maker(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> StreamMaker:
    """What streams a network that can be streamed: the sweep where it has a step for each of its operations, else a stream of any graph.

    Args:
        checkpoint: The network.
        device: Where it is computed.
        dtype: Of values inside it.
    """
    if checkpoint.architecture.graph.is_swept:
        swept = kernels(checkpoint.build(), device=device, dtype=dtype)
        return lambda schedule, arena: Sweep(swept, schedule, arena)
    weights, like = placed(checkpoint, device, dtype), torch.zeros(1, dtype=dtype, device=device)
    return lambda schedule, arena: Streaming(weights, schedule, like, arena)


def executor_of(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, arena: Arena) -> Executor:
    """The executor of a network: a stream where it can be one, else one window.

    Args:
        checkpoint: The network.
        device: Where it is computed.
        dtype: Of values inside it.
        arena: Memory of streams, while no other network uses it.
    """
    if not checkpoint.architecture.graph.is_streamed:
        return _windowed(checkpoint, device, dtype)
    make = stream_maker(checkpoint, device, dtype)

    def run(schedule: Schedule, slabs_ZYXC: Iterable[Tensor]) -> Iterator[tuple[Span, Tensor]]:
        for span, logits_ZYXC in make(schedule, arena).run(slabs_ZYXC):
            yield span, logits_ZYXC.permute(3, 0, 1, 2)

    return run


def _windowed(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Executor:
    weights, graph = placed(checkpoint, device, dtype), checkpoint.architecture.graph

    def run(schedule: Schedule, slabs_ZYXC: Iterable[Tensor]) -> Iterator[tuple[Span, Tensor]]:
        window = torch.cat([slab.to(dtype) for slab in slabs_ZYXC]).permute(3, 0, 1, 2)[None]
        with torch.inference_mode():
            logits = evaluate(graph, weights, window, schedule.axes)[0]
        yield Span(schedule.needs.core.start, schedule.needs.core.stop), logits

    return run

"""Where a network looks: which voxels of its image a predicted voxel can depend on, by gradients of its own calls.

A gradient of the network as it is would miss some: a rectifier that is closed, a pooling that takes another voxel, a weight that is zero, sums
that cancel. So each call is replaced by one that is linear, has no weight below zero, and depends on all that the call may depend on: kernels
are ones, activations and norms of fixed statistics give what they are given, the largest of a group is the sum of the group, and what
joins maps is their sum. Then nothing cancels, and a gradient is zero just where no path leads. Where voxels lie is torch's own doing, by the
arguments of the very call: no rule of ours takes part. Which channel is which does not matter, so each map has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree

from pipeline.core.geometry.box import Span, Triple, per_axis, triple
from pipeline.core.network.graph import Graph
from pipeline.core.network.local import local
from pipeline.core.network.need import needs
from pipeline.core.network.receptive import Sides, lost_margin, reach
from pipeline.errors import ModelError
from pipeline.networks.importing.lowering import COPIES, FUNCTIONS, SAME, Call, Network, as_it_was

AS_THEY_ARE = ("avg_pool", "upsample", "pad", "constant_pad", "replication_pad", "reflection_pad", "slice", "narrow")
"""Calls that are linear and have no weight below zero, by how they begin."""

JOINS = frozenset(
    (
        "add",
        "sub",
        "rsub",
        "mul",
        "div",
        "maximum",
        "minimum",
        "addcmul",
        "addcdiv",
        "lerp",
        "cat",
        "concat",
        "concatenate",
    )
)
"""Calls that read several maps."""

WHOLE = ("mean", "amax", "adaptive", "_adaptive", "expand_as")
"""Calls that give one value a channel, or show it at every voxel, by how they begin: fixed, so that it depends on none."""

VALUE_BY_VALUE = frozenset([
    *FUNCTIONS, *SAME, *COPIES, "getitem", "prelu", "_prelu_kernel", "gelu", "clamp", "clamp_min", "clamp_max",
    "softmax", "_softmax", "log_softmax", "_log_softmax", "batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "instance_norm", "group_norm", "native_group_norm", "layer_norm", "native_layer_norm",
])  # fmt: skip
"""Calls of which a voxel depends on that voxel, statistics being fixed."""


class _Fixed:
    """Stands for what depends on no voxel: one value a channel of a whole map."""


FIXED = _Fixed()


@dataclass(frozen=True)
class Support:
    """How far blocks of one stride see, along z, y, x.

    Args:
        seen: By gradients, before and after; None where the image of the program is too short to tell.
        halo: By the rules of the operations.
    """

    seen: tuple[Sides | None, Sides | None, Sides | None]
    halo: tuple[Sides, Sides, Sides]

    def __str__(self) -> str:
        along = [*zip("zyx", self.seen, self.halo, strict=True)]
        wider = [
            f"{axis} {halo} where gradients reach {seen}" for axis, seen, halo in along if seen not in (None, halo)
        ]
        unknown = [axis for axis, seen, _ in along if seen is None]
        shown = (
            f"halo wider than the support of gradients: {', '.join(wider)}"
            if wider
            else "halo as the support of gradients"
        )
        return f"{shown} (image too short to tell along {', '.join(unknown)})" if unknown else shown


def support(network: Network) -> Support:
    """Compare what voxels need by the rules with where gradients reach: in the first, a middle and the last block of the image of its program.

    Raises:
        ModelError: A gradient reaches what is not needed: a rule is wrong, and tiles would be.
    """
    graph, extents = local(network.graph), network.program.image[1][2:]
    shape = triple([*[1] * (3 - network.ndim), *extents])
    with torch.inference_mode(False), torch.enable_grad():
        image = torch.zeros((1, 1, *extents), requires_grad=True)
        predicted = network.program.run_by(_paths, image)
    given = triple([*[1] * (3 - network.ndim), *predicted.shape[2:]])
    seen: list[list[Sides]] = [[], [], []]
    for block, voxel in _voxels(given, graph.stride):
        place = predicted[(0, 0, *voxel[3 - network.ndim :])]
        (gradient,) = torch.autograd.grad(place, image, retain_graph=True)
        places = torch.nonzero(gradient.view(shape))
        if not len(places):
            continue
        for axis, margin in enumerate(lost_margin(graph)):
            reached = Span(int(places[:, axis].min()) - margin, int(places[:, axis].max()) + 1 - margin)
            _check(graph, axis, voxel[axis], reached, shape[axis])
            seen[axis].append((block[axis] - reached.start, reached.stop - block[axis] - graph.stride[axis]))
    halo = reach(graph)
    return Support(
        triple(_told(sides, halo[axis], _room(graph, axis, given, shape)) for axis, sides in enumerate(seen)), halo
    )


def _voxels(given: Triple, stride: Triple) -> Iterator[tuple[Triple, Triple]]:
    """First voxels of blocks of one stride, and of each block its first, a middle and its last voxel."""
    last = per_axis(lambda n, s: max(n - s, 0) // s * s, given, stride)
    middle = per_axis(lambda n, s: n // 2 // s * s, given, stride)
    for block in dict.fromkeys(((0, 0, 0), middle, last)):
        for inside in dict.fromkeys(((0, 0, 0), per_axis(lambda s: s // 2, stride), per_axis(lambda s: s - 1, stride))):
            yield block, per_axis(lambda b, i, n: min(b + i, n - 1), block, inside, given)


def _check(graph: Graph, axis: int, voxel: int, reached: Span, extent: int) -> None:
    """Refuse a gradient that reaches what a voxel does not need.

    Raises:
        ModelError: It does.
    """
    read = needs(graph, axis, Span(voxel, voxel + 1), Span(0, extent) if graph.is_padded else None).input
    if read.hull(reached) != read:
        raise ModelError(
            f"Along {'zyx'[axis]}, voxel {voxel} of the network's prediction depends on the voxels {reached} of its image, and its halo ends "
            f"at {read}: tiles would be wrong. A rule of an operation is wrong: please report it, with the network."
        )


def _room(graph: Graph, axis: int, given: Triple, shape: Triple) -> Sides:
    """Voxels of the image before the last block that was looked at, and after the first."""
    stride, margin = graph.stride[axis], lost_margin(graph)[axis]
    return max(given[axis] - stride, 0) // stride * stride + margin, shape[axis] - margin - stride


def _told(sides: list[Sides], halo: Sides, room: Sides) -> Sides | None:
    """How far blocks were seen to reach; None where they might reach further in a longer image. What is mirrored at an end counts on one side."""
    seen = tuple(min(max(0, *(side[n] for side in sides)) if sides else 0, halo[n]) for n in (0, 1))
    known = all(seen[n] == halo[n] or room[n] >= halo[n] for n in (0, 1))
    return (seen[0], seen[1]) if known else None


# --- calls as paths -------------------------------------------------------------------------------------------------------


def _told_apart(gradient: Tensor) -> Tensor:
    """One where there is a gradient: it neither grows nor vanishes, however deep a network is."""
    return (gradient > 0).to(gradient.dtype)


def _paths(call: Call, arguments: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """What a call gives that is linear, without weights below zero, and depends on all that the call may depend on; one channel."""
    leaves = _pytree.tree_leaves(dict(arguments))
    maps = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    if call.word.startswith("_assert") or (call.word == "getitem" and arguments.get("1") != 0):
        return None
    if not maps and FIXED not in leaves:
        return as_it_was(call, arguments, dtype)
    result: Any = FIXED
    if maps and not call.word.startswith(WHOLE):
        result = _path(call, arguments, maps, dtype)
        result.register_hook(_told_apart)
    return result if len(call.shapes) < 2 else (result, *[None] * (len(call.shapes) - 1))


def _path(call: Call, arguments: Mapping[str, Any], maps: list[Tensor], dtype: torch.dtype) -> Tensor:
    if call.word in JOINS:
        return sum(maps[1:], start=maps[0])
    if "conv" in call.word:
        return _convolution(call, arguments, dtype)
    if call.word.startswith("max_pool"):
        return _sum_pool(call, arguments, maps[0])
    if call.word in ("slice", "narrow") and arguments.get("dim", 0) % maps[0].ndim == 1:
        return maps[0]
    if call.word.startswith(AS_THEY_ARE):
        zero = {"value": 0} if arguments.get("value") else {}
        linear: Tensor = as_it_was(call, {**arguments, **zero}, dtype)
        return linear
    if call.word in VALUE_BY_VALUE:
        return maps[0]
    raise ModelError(
        f"Of {call.word} ('{call.name}') it is not known where gradients reach. This is a defect of Halotile: please report it."
    )


def _convolution(call: Call, arguments: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    ones = torch.ones((1, 1, *arguments["weight"].shape[2:]), dtype=dtype)
    linear: Tensor = as_it_was(call, {**arguments, "weight": ones, "bias": None, "groups": 1}, dtype)
    return linear


def _sum_pool(call: Call, arguments: Mapping[str, Any], x: Tensor) -> Tensor:
    """Of each group the sum; beyond the ends lies as much as the last group needs."""
    ndim, wanted = x.ndim - 2, next(iter(call.shapes.values()))[2:]

    def given(key: str, default: Any) -> list[int]:
        value = arguments.get(key) or default
        values = [*value] if isinstance(value, (list, tuple)) else [value]
        return values * ndim if len(values) == 1 else values

    kernel = given("kernel_size", 1)
    stride, padding, dilation = given("stride", kernel), given("padding", 0), given("dilation", 1)
    missing = [
        max((count - 1) * s + d * (k - 1) + 1 - n - p, p)
        for count, s, d, k, n, p in zip(wanted, stride, dilation, kernel, x.shape[2:], padding, strict=True)
    ]
    padded = F.pad(x, [side for p, m in reversed([*zip(padding, missing, strict=True)]) for side in (p, m)])
    convolution: Callable[..., Tensor] = F.conv3d if ndim == 3 else F.conv2d
    return convolution(padded, torch.ones((1, 1, *kernel), dtype=x.dtype), None, stride, 0, dilation)

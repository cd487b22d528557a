"""Networks slab by slab, beside the sweep of our own UNet and beside one pass of a module over the whole volume.

    python -m tests.benchmarks.streaming [--extent 128 128 128] [--rounds 7] [--threads 1] [--widen 8] [--table docs/streaming.md]
    python -m tests.benchmarks.streaming --file NETWORK.pt2      # instead of the committed networks: a program of torch.export

Both sides of a case are in one process and take turns, and who begins changes with each round. Seconds are of the processor, in all
threads, so that what else the machine does costs them little. Compared are the least times; where the better half of the rounds of a side
lies further apart than the bar allows, nothing is decided.

Networks of libraries are those of tests/networks/data with random weights, their channels widened to what people train (input and
output are as they were). Without the library, "the module's own pass" is what its layers do: torch's functions in the memory format that
a module has by default, batch norm by itself. Of a program that is named, it is the program.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.core.geometry.box import Span, Triple, round_up, triple
from pipeline.core.network.flow import Flow
from pipeline.core.network.graph import Graph, Node
from pipeline.core.network.need import Needs, needs
from pipeline.core.network.operations import (
    Activation,
    Affine,
    AveragePool,
    Combination,
    Concatenation,
    Convolution,
    MaxPool,
    TransposedConvolution,
)
from pipeline.core.network.schedule import Schedule
from pipeline.core.network.unet import Architecture
from pipeline.core.tiles.cost import one_pass_multiply_adds
from pipeline.core.tiles.tiling import LARGEST_SLAB, SLAB_VOXELS
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.networks.device import computes_bfloat16, cpuinfo
from pipeline.networks.evaluate import FUNCTIONS, Weights, folded, laid_out
from pipeline.networks.importing.exported import graph_of
from pipeline.networks.model import UNet
from pipeline.networks.streaming import Streaming
from pipeline.networks.sweep import Sweep, kernels
from tests.benchmarks.against import spread
from tests.benchmarks.contenders import ALLOCATOR, ROOT

DATA = ROOT / "tests" / "networks" / "data"

NETWORKS = {"monai-unet": "MONAI UNet, residual", "nnunet-residual": "nnU-Net's ResidualEncoderUNet"}
"""Committed ones that are compared with their own pass."""

SWEEP_BAR, PASS_BAR = 0.95, 1.0
"""Speed of the stream of any graph / the sweep on our UNet, and / the module's own pass, at least."""

ROUNDS = 7

PAGE = """# Networks slab by slab: how fast

Made by `python -m tests.benchmarks.streaming {arguments}` on {processor}, {threads} thread(s), {dtypes}; volumes of
{extent} voxels, least processor time of {rounds} rounds in turns. What is exact, what it computes and what it holds are tests (`tests/networks/test_streaming.py`,
`tests/networks/test_arithmetic.py`).

{table}

A ratio above 1 is in favour of the stream. "The sweep" is what runs our own UNet; "the module's own pass" is one pass over the whole
volume in the memory format that a module has by default, every map of it in memory at once. "Undecided": the better half of the rounds of a
side lies further apart than the ratio from the bar.
"""

Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """Two ways to compute the same.

    Args:
        title: Of the network.
        beside: What it is compared with.
        bar: Speed of the stream / speed of the other, at least.
        dtype: Of values inside it.
        work: Multiply-adds of one pass.
        stream: Slab by slab, (K, Z, Y, X).
        other: The other way.
    """

    title: str
    beside: str
    bar: float
    dtype: torch.dtype
    work: int
    stream: Run
    other: Run


@dataclass(frozen=True)
class Found:
    """Processor seconds of all rounds.

    Args:
        case: Whose.
        stream: Of the stream.
        other: Of the other way.
    """

    case: Case
    stream: list[float]
    other: list[float]

    @property
    def ratio(self) -> float:
        """Speed of the stream / speed of the other."""
        return min(self.other) / min(self.stream)

    @property
    def verdict(self) -> str:
        if max(spread(self.stream), spread(self.other)) > abs(self.ratio / self.case.bar - 1):
            return "undecided"
        return "reached" if self.ratio >= self.case.bar else "missed"

    def __str__(self) -> str:
        case, rates = self.case, [self.case.work / min(s) / 1e9 for s in (self.stream, self.other)]
        dtype = str(case.dtype).removeprefix("torch.")
        cells = (case.title, case.beside, dtype, f"{rates[0]:.1f}", f"{rates[1]:.1f}", f"{self.ratio:.2f}")
        return f"| {' | '.join(cells)} | {case.bar:g} | {self.verdict} |"


HEAD = """| network | beside | dtype | stream, G multiply-adds/s | the other | ratio | bar | |
|---|---|---|---:|---:|---:|---:|---|"""


# --- networks -----------------------------------------------------------------------------------------------------------


def widened(graph: Graph, factor: int) -> Graph:
    """The same network with so many times the channels, but for those that are as few as what it reads or gives."""
    few = max(graph.input.channels, graph.output.channels)
    nodes = (replace(n, channels=n.channels * (factor if n.channels > few else 1)) for n in graph.nodes)
    return Graph(tuple(nodes))


def random_weights(graph: Graph, seed: int = 0) -> Weights:
    """Of its nodes, float32, such that values stay about as large as they are."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, tuple[Tensor, ...]] = {}
    for node in graph.nodes:
        operation, channels = node.operation, graph.in_channels(node)
        bias = torch.randn(node.channels, generator=generator) * 0.1
        if isinstance(operation, Convolution):
            shape = (node.channels, channels // operation.groups, *operation.kernel)
            weights[node.name] = torch.randn(shape, generator=generator) / prod(shape[1:]) ** 0.5, bias
        elif isinstance(operation, TransposedConvolution):
            shape = (channels, node.channels // operation.groups, *operation.taps)
            weights[node.name] = torch.randn(shape, generator=generator) / channels**0.5, bias
        elif isinstance(operation, Affine):
            weights[node.name] = 1 + bias, -bias
        elif isinstance(operation, Activation) and operation.function == "prelu":
            weights[node.name] = (torch.tensor([0.25]),)
    return weights


def layers(graph: Graph, weights: Weights, x_BCZYX: Tensor) -> Tensor:
    """One pass as a module of these layers does it, by torch's functions in the format in which it is given its image.

    Raises:
        TypeError: The graph has an operation that none of these layers is.
    """
    values, last = {graph.input.name: x_BCZYX}, {name: node.name for node in graph.nodes for name in node.inputs}
    for node in graph.nodes[1:]:
        given = [values[name] for name in node.inputs]
        values[node.name] = _layer(node, weights.get(node.name, ()), given)
        del given
        for name in set(node.inputs):
            if last[name] == node.name:
                del values[name]
    return values[graph.output.name]


def _layer(node: Node, weights: tuple[Tensor, ...], given: list[Tensor]) -> Tensor:
    operation, x = node.operation, given[0]
    if isinstance(operation, Convolution):
        return F.conv3d(
            x, *(*weights, None)[:2], operation.stride, operation.padding, operation.dilation, operation.groups
        )
    if isinstance(operation, TransposedConvolution):
        weight, bias = (*weights, None)[:2]
        crop, extra = operation.cropped, operation.extra
        return F.conv_transpose3d(x, weight, bias, operation.factor, crop, extra, operation.groups, operation.dilation)
    if isinstance(operation, Affine):
        factor, summand = weights
        variance = torch.full_like(factor, 1 - 1e-5)
        return F.batch_norm(x, torch.zeros_like(factor), variance, factor, summand, eps=1e-5)
    if isinstance(operation, MaxPool):
        return F.max_pool3d(x, operation.taps, operation.factor, operation.padding, operation.dilation)
    if isinstance(operation, AveragePool):
        return F.avg_pool3d(x, operation.taps, operation.factor, operation.padding)
    if isinstance(operation, Activation):
        if operation.function == "leaky_relu":
            return F.leaky_relu(x, *operation.values)
        return FUNCTIONS[operation.function](x, *weights, *operation.values)
    if isinstance(operation, Concatenation):
        return torch.cat(given, 1)
    if isinstance(operation, Combination):
        combine: Callable[[Tensor, Tensor], Tensor] = getattr(torch, operation.function)
        return combine(*given)
    raise TypeError(f"Node '{node.name}' is a {type(operation).__name__}: name the network's program with --file.")


# --- cases --------------------------------------------------------------------------------------------------------------


def whole_axes(graph: Graph, extent: Triple) -> tuple[Needs, Needs, Needs]:
    """What the whole volume needs, as one column."""
    return triple(needs(graph, axis, Span(0, n), Span(0, n)) for axis, n in enumerate(extent))


def slab_of(graph: Graph, extent: Triple) -> int:
    """Slices that a plan takes at once of such a column."""
    return round_up(min(max(SLAB_VOXELS["cpu"] // (extent[1] * extent[2]), 1), LARGEST_SLAB), graph.stride[0])


def _stream(graph: Graph, weights: Weights, image_ZYXC: Tensor, dtype: torch.dtype) -> Run:
    extent = triple(image_ZYXC.shape[:3])
    flow = Flow(graph, whole_axes(graph, extent), slab_of(graph, extent))
    placed = {name: tuple(laid_out(w.to(dtype)) for w in ws) for name, ws in folded(graph, weights).items()}
    streaming = Streaming(placed, flow, torch.zeros(1, dtype=dtype))
    return lambda: _joined(streaming, image_ZYXC, flow)


def _joined(stream: Streaming | Sweep, image_ZYXC: Tensor, schedule: Schedule) -> Tensor:
    parts = [values for _, values in stream.run(image_ZYXC[a:b] for a, b in schedule.inputs())]
    return torch.cat(parts).permute(3, 0, 1, 2)


def beside_the_sweep(extent: Triple, dtype: torch.dtype) -> Case:
    """Our UNet, by the stream of any graph and by its own."""
    architecture = Architecture(ndim=3, depth=3, width=16)
    graph = architecture.graph
    model = UNet(architecture).eval()
    image_ZYXC = _image(graph, extent)
    swept = kernels(model, device=torch.device("cpu"), dtype=dtype)
    weights: dict[str, tuple[Tensor, ...]] = {}
    for node in graph.nodes:
        if isinstance(node.operation, TransposedConvolution):
            weights[node.name] = tuple(p.detach() for p in model.get_submodule(node.name).parameters())
        elif isinstance(node.operation, Convolution):
            kernel = swept[node.name]
            weight = kernel.weight.float().view(node.channels, -1, *node.operation.kernel)
            weights[node.name] = (weight,) if kernel.bias is None else (weight, kernel.bias.float())
    schedule = Schedule(graph, whole_axes(graph, extent), slab_of(graph, extent))
    sweep = Sweep(swept, schedule)
    return Case(
        "our UNet, depth 3, width 16", "the sweep", SWEEP_BAR, dtype, one_pass_multiply_adds(graph, extent),
        _stream(graph, weights, image_ZYXC, dtype), lambda: _joined(sweep, image_ZYXC, schedule),
    )  # fmt: skip


def beside_its_layers(name: str, extent: Triple, dtype: torch.dtype, factor: int) -> Case:
    """A committed network, by the stream and by one pass of its layers."""
    graph = widened(load_checkpoint(DATA / f"{name}.safetensors").architecture.graph, factor)
    weights = random_weights(graph)
    image_ZYXC = _image(graph, extent)
    x_BCZYX = image_ZYXC.permute(3, 0, 1, 2)[None].contiguous().to(dtype)
    plain = {node: tuple(w.to(dtype) for w in ws) for node, ws in weights.items()}
    return Case(
        f"{NETWORKS[name]}, {factor} times as wide", "the module's own pass", PASS_BAR, dtype, one_pass_multiply_adds(graph, extent),
        _stream(graph, weights, image_ZYXC, dtype), lambda: layers(graph, plain, x_BCZYX)[0],
    )  # fmt: skip


def beside_its_program(path: Path, extent: Triple, dtype: torch.dtype) -> Case:
    """A network of a file of torch.export, by the stream and by its own program."""
    program = torch.export.load(path)
    network = graph_of(program)
    image_ZYXC = _image(network.graph, extent)
    x_BCZYX = image_ZYXC.permute(3, 0, 1, 2)[None].contiguous().to(dtype)
    if network.ndim == 2:
        x_BCZYX = x_BCZYX[0].transpose(0, 1).contiguous()
    module = program.module().to(dtype)

    def own() -> Tensor:
        values: Tensor = module(x_BCZYX)
        return values[0] if network.ndim == 3 else values.transpose(0, 1)

    return Case(
        path.name, "the module's own pass", PASS_BAR, dtype, one_pass_multiply_adds(network.graph, extent),
        _stream(network.graph, network.weights, image_ZYXC, dtype), own,
    )  # fmt: skip


def _image(graph: Graph, extent: Triple) -> Tensor:
    """Z Y X C.

    Raises:
        SystemExit: It is not of whole strides.
    """
    if any(n % stride for n, stride in zip(extent, graph.stride, strict=True)):
        raise SystemExit(f"The extent {extent} is no multiple of the network's stride {graph.stride}.")
    return torch.rand((*extent, graph.input.channels), generator=torch.Generator().manual_seed(0))


# --- measuring ----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def measured(case: Case, rounds: int) -> Found:
    """Both ways in turns, after one of each whose values are compared.

    Raises:
        RuntimeError: They differ.
    """
    given, expected = case.stream().float(), case.other().float()
    limit = 1e-3 if case.dtype == torch.float32 else 0.1
    difference = float((given - expected).abs().max() / (expected.max() - expected.min()))
    if not difference <= limit:
        raise RuntimeError(f"{case.title}: the stream is {difference:.1e} of the range off {case.beside}.")
    del given, expected
    seconds: dict[Run, list[float]] = {case.stream: [], case.other: []}
    for number in range(rounds):
        for run in list(seconds)[:: 1 if number % 2 else -1]:
            started = time.process_time()
            run()
            seconds[run].append(time.process_time() - started)
        print(f"{case.title}, {number + 1}/{rounds}: {[f'{s[-1]:.2f}' for s in seconds.values()]}", file=sys.stderr)
    return Found(case, *seconds.values())


def cases(extent: Triple, factor: int, file: Path | None, dtypes: Sequence[torch.dtype]) -> Iterator[Case]:
    """What is compared, made one by one."""
    for dtype in dtypes:
        if file:
            yield beside_its_program(file, extent, dtype)
            continue
        yield beside_the_sweep(extent, dtype)
        for name in NETWORKS:
            yield beside_its_layers(name, extent, dtype, factor)


def main() -> None:
    """Measure, and print the page or write it."""
    parser = argparse.ArgumentParser(description="Networks slab by slab, beside the sweep and beside one pass.")
    parser.add_argument("--extent", type=int, nargs=3, default=(128, 128, 128), help="voxels along z, y, x")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each side, at least 7 to decide anything")
    parser.add_argument("--threads", type=int, default=1, help="that compute")
    parser.add_argument("--widen", type=int, default=8, help="times the channels of the committed networks")
    parser.add_argument("--file", type=Path, help="a program of torch.export (.pt2), in their place")
    parser.add_argument("--table", type=Path, help="where the page is written; printed without")
    asked = parser.parse_args()
    if not ALLOCATOR.items() <= os.environ.items():  # as our workers have it; it is read when a process begins
        again = [sys.executable, "-m", "tests.benchmarks.streaming", *sys.argv[1:]]
        raise SystemExit(subprocess.run(again, cwd=ROOT, env={**os.environ, **ALLOCATOR}, check=False).returncode)
    torch.set_num_threads(asked.threads)
    dtypes = [torch.float32, *([torch.bfloat16] if computes_bfloat16("cpu") else [])]
    extent = triple(asked.extent)
    rows = [str(measured(case, asked.rounds)) for case in cases(extent, asked.widen, asked.file, dtypes)]
    page = PAGE.format(
        arguments=" ".join(sys.argv[1:]).replace(f" --table {asked.table}", ""),
        processor=cpuinfo("model name"),
        threads=asked.threads,
        dtypes="float32 and bfloat16" if len(dtypes) > 1 else "float32 alone, since this processor has no bfloat16",
        extent=" x ".join(map(str, extent)),
        rounds=asked.rounds,
        table="\n".join([HEAD, *rows]),
    )
    if asked.table:
        asked.table.write_text(page)
    print(page)


if __name__ == "__main__":
    main()

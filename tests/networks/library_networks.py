"""Networks of libraries, as they are committed and as they were made anew; boxes of them, and runs of the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.core.geometry.box import Span, per_axis, round_up, triple
from pipeline.core.network import imported as networks
from pipeline.core.network.graph import Graph
from pipeline.core.network.need import needs
from pipeline.core.network.receptive import legal_extent, lost_margin
from pipeline.core.network.unet import Architecture
from pipeline.networks.checkpoint import Checkpoint, load_checkpoint
from pipeline.networks.evaluate import Weights, evaluate
from pipeline.networks.frozen import localised, measured
from tests.networks.make import CASES, Case
from tests.pipeline_cases import Run, make_run

COMMITTED = Path(__file__).parent / "data"
"""For each network NAME.safetensors, as `halotile import` writes it, and NAME.npz: a volume and the module's whole pass in float64."""

MADE = Path(__file__).parents[2] / "build" / "networks"
"""Where `make test-networks` makes them anew."""

LOCAL = [name for name, case in CASES.items() if not case.whole]
WHOLE = [name for name, case in CASES.items() if case.whole]


def manifest(folder: Path = COMMITTED) -> dict[str, Any]:
    """Of each network: library, versions, seed, stride, and reach of its gradients."""
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


@dataclass(frozen=True)
class Imported:
    """A network as it was imported, and a pass of the module that it was imported from.

    Args:
        case: Which.
        graph: Of it.
        weights: float64.
        volume: uint8, (1, Z, Y, X).
        expected: The module's pass over the volume, float64, (K, Z, Y, X); where statistics are frozen, one pass by these.
    """

    case: Case
    graph: Graph
    weights: Weights
    volume: np.ndarray
    expected: np.ndarray

    @property
    def range(self) -> float:
        """Of what the module gives."""
        return float(np.ptp(self.expected))

    @property
    def whole(self) -> tuple[Span, ...]:
        """The volume."""
        return tuple(Span(0, n) for n in self.volume.shape[1:])

    @property
    def legal(self) -> tuple[Span, ...]:
        """What one pass is given of it, mirrored; what it loses is before and after."""
        return tuple(
            Span(-m, n - m)
            for n, m in zip(self.case.legal(self.volume).shape[1:], lost_margin(self.graph), strict=True)
        )

    def image(self) -> Tensor:
        """The same, normalised, 1 C Z Y X."""
        return torch.from_numpy(self.case.legal(self.volume)).double()[None] / 255

    def box(
        self, cores: tuple[Span, ...], ends: tuple[Span, ...] | None = None, seen: tuple[Span, ...] | None = None
    ) -> np.ndarray:
        """What the graph gives in a box, of what the box needs of the image.

        Args:
            cores: The box.
            ends: Where the image ends; elsewhere than it does, in a control.
            seen: What of it is not blank, in a control of a network that knows no ends.
        """
        padded = self.graph.is_padded
        axes = triple(
            needs(self.graph, axis, core, (ends or self.legal)[axis] if padded else None)
            for axis, core in enumerate(cores)
        )
        image, origin = self.image(), [-span.start for span in self.legal]
        if seen:
            kept = (slice(None), slice(None), *(slice(a + o, b + o) for (a, b), o in zip(seen, origin, strict=True)))
            blank = torch.zeros_like(image)
            blank[kept] = image[kept]
            image = blank
        window = image[
            (
                slice(None),
                slice(None),
                *(slice(a.input.start + o, a.input.stop + o) for a, o in zip(axes, origin, strict=True)),
            )
        ]
        with torch.inference_mode():
            return evaluate(self.graph, self.weights, window, axes)[0].numpy()

    def difference(self, values: np.ndarray, cores: tuple[Span, ...]) -> float:
        """Of a box and the module's pass, at most, of its range."""
        expected = self.expected[(slice(None), *(slice(*core) for core in cores))]
        return float(np.abs(values - expected).max()) / self.range

    def short(self, cores: tuple[Span, ...]) -> float:
        """How far a box is from the module's pass where it sees one stride less than it needs, at every side."""
        around = []
        for axis, (core, stride) in enumerate(zip(cores, self.graph.stride, strict=True)):
            need = needs(self.graph, axis, core, self.legal[axis] if self.graph.is_padded else None).input
            start = min((need.start // stride + 1) * stride, core.start // stride * stride)
            stop = max((round_up(need.stop, stride) - stride), round_up(core.stop, stride))
            around.append(Span(start, stop))
        narrow = tuple(around)
        values = self.box(cores, ends=narrow) if self.graph.is_padded else self.box(cores, seen=narrow)
        return self.difference(values, cores)

    def tiles(self) -> Iterator[tuple[Span, ...]]:
        """Cores of tiles of about half the volume along each axis, of whole strides; they cover it."""
        halves = []
        for n, stride in zip(self.volume.shape[1:], self.graph.stride, strict=True):
            middle = min(round_up(ceil(n / 2), stride), n)
            halves.append([span for span in (Span(0, middle), Span(middle, n)) if span.extent])
        return product(*halves)

    def patches(self, number: int) -> list[Tensor]:
        """Of about half the volume along each axis, of legal extents, from its beginning to its end; 1 C Z Y X, normalised."""
        image = self.image()
        extents = [min(legal_extent(self.graph, axis, ceil(n / 2)), n) for axis, n in enumerate(self.volume.shape[1:])]
        found = []
        for part in range(number):
            starts = [(n - m) * part // (number - 1) for n, m in zip(image.shape[2:], extents, strict=True)]
            inside = (slice(a, a + m) for a, m in zip(starts, extents, strict=True))
            found.append(image[(slice(None), slice(None), *inside)])
        return found

    def frozen(self, patches: Sequence[Tensor]) -> Imported:
        """The same network by joint statistics of patches that are counted whole, and one pass of it."""
        numbers = measured(self.graph, self.weights, patches, (0, 0, 0)).numbers
        state = {f"{node}.{n}": tensor for node, tensors in self.weights.items() for n, tensor in enumerate(tensors)}
        fixed = localised(Checkpoint(networks.Imported(self.graph, self.case.ndim), state), numbers)
        weights = {node: tuple(w.double() for w in tensors) for node, tensors in fixed.weights.items()}
        local = replace(self, graph=fixed.architecture.graph, weights=weights)
        return replace(local, expected=local.box(local.whole))

    def block(self) -> tuple[Span, ...]:
        """One stride in the middle."""
        stride = self.graph.stride
        starts = per_axis(lambda n, s: n // 2 // s * s, triple(self.volume.shape[1:]), stride)
        return tuple(Span(a, a + s) for a, s in zip(starts, stride, strict=True))


def imported(name: str, graph: Graph, weights: Weights, file: Path, size: str) -> Imported:
    """A network that was imported, beside the pass of a size (`small` or `large`) in a file."""
    with np.load(file) as arrays:
        volume, expected = arrays[size], arrays[f"{size}_pass"]
    precise = {node: tuple(w.double() for w in tensors) for node, tensors in weights.items()}
    return Imported(CASES[name], graph, precise, volume, expected)


def stored(name: str, checkpoint: Path, file: Path, size: str) -> Imported:
    """The same of a checkpoint."""
    found = load_checkpoint(checkpoint)
    return imported(name, found.architecture.graph, found.weights, file, size)


def committed(name: str) -> Imported:
    """A network as it is committed."""
    return stored(name, COMMITTED / f"{name}.safetensors", COMMITTED / f"{name}.npz", "small")


def note(name: str, **figures: float) -> None:
    """Keep what was measured of a network that was made anew, for the table."""
    path = MADE / "figures.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known.setdefault(name, {}).update(figures)
    path.write_text(json.dumps(known, indent=1) + "\n")


def run_of(folder: Path, checkpoint: Path, network: Imported, **model: object) -> Run:
    """A run of eight tiles or so over a network's volume, float32; its model by further keys."""
    volume = network.volume[0]
    core = [round_up(ceil(n / 2), s) for n, s in zip(volume.shape, network.graph.stride, strict=True)]
    run = make_run(
        folder,
        architecture=Architecture(3, 1, 1),
        shape=volume.shape,
        volume=volume,
        tiles={"core": core},
        compute={"dtype": "float32"},
    )
    content = {**run.content, "model": {"checkpoint": str(checkpoint), **model}}
    run.yaml.write_text(json.dumps(content))
    return Run(run.folder, content, run.network, run.volume)

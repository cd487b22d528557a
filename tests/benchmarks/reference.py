"""The answer that all are compared with: the sigmoid of one pass over the whole volume, in float64.

    python -m tests.benchmarks.reference FOLDER --threads N

One float64 pass over a large volume needs more memory than most machines have, so it is streamed by our own sweep. That
this is the same answer is not taken on trust: over a corner of the volume, as a volume of its own, it is compared with
the network's plain float64 forward pass.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.core.network.receptive import least_halo
from pipeline.core.network.stream import Stream
from pipeline.networks.model import UNet
from pipeline.networks.sweep import Sweep, kernels
from tests.benchmarks.contenders import arguments, network

CORNER = 96
EQUAL = 1e-12


def streamed(model: UNet, volume: np.ndarray) -> np.ndarray:
    """The sigmoid of a whole volume, float64; its extents are multiples of the stride."""
    architecture, shape = model.architecture, volume.shape
    whole = Stream.over(architecture.graph, shape, shape, least_halo(architecture.graph), architecture.stride[0])
    schedule = whole.schedule(whole.grid.tile(0))
    sweep = Sweep(kernels(model, device=torch.device("cpu"), dtype=torch.float64), schedule)
    slabs = (torch.from_numpy(volume[a:b, ..., None]).double() / 255 for a, b in schedule.inputs())
    output = np.empty(shape)
    for (start, stop), logits_ZYXC in sweep.run(slabs):
        output[start:stop] = torch.sigmoid(logits_ZYXC[..., 0]).numpy()
    return output


def one_pass(model: UNet, volume: np.ndarray) -> np.ndarray:
    """The same by one plain forward pass."""
    with torch.inference_mode():
        return torch.sigmoid(model(torch.from_numpy(volume)[None, None].double() / 255))[0, 0].numpy()


def reference(folder: Path) -> dict[str, Any]:
    """Write reference.npy, and say how far streamed and plain are apart over a corner.

    Raises:
        RuntimeError: They differ by more than round-off.
    """
    model, volume = network(folder).double(), np.load(folder / "volume.npy")
    corner = np.ascontiguousarray(volume[:CORNER, :CORNER, :CORNER])
    difference = float(np.abs(streamed(model, corner) - one_pass(model, corner)).max())
    if not difference <= EQUAL:
        raise RuntimeError(
            f"Streamed and plain float64 differ by {difference:.2g} over {corner.shape}, above {EQUAL:g}."
        )
    np.save(folder / "reference.npy", streamed(model, volume))
    return {"corner": corner.shape, "difference": difference}


if __name__ == "__main__":
    print(json.dumps(reference(arguments().folder)))

"""A small region through the network, to compare one precision or device with another before a run depends on it."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.core.geometry.box import Box, Triple, per_axis, round_up, triple
from pipeline.core.geometry.mirror import shown, spread
from pipeline.core.network.imported import AnyNetwork
from pipeline.core.network.receptive import least_halo
from pipeline.core.network.stream import Stream
from pipeline.core.normalization import Normalization
from pipeline.core.plan import Plan
from pipeline.errors import ModelError
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.evaluate import placed
from pipeline.networks.executors import executor_of
from pipeline.networks.mismatch import whole_pass
from pipeline.networks.predictor import DTYPES, activated, normalised
from pipeline.networks.sweep import Arena

SELF_TEST_LIMITS = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}
"""Largest difference between a device and float32 on the processor, of the logits' range: far above round-off, far
below what a wrong kernel gives."""


def region(architecture: AnyNetwork, volume: Triple) -> Box:
    """The middle of a volume, large enough that most of it is not edge."""
    wanted = (48, 96, 96) if architecture.ndim == 3 else (2, 256, 256)
    shape = per_axis(min, wanted, volume)
    return Box.of_shape(shape).moved(per_axis(lambda n, w: (n - w) // 2, volume, shape))


COLUMN = 512
"""Extent in y and x of the columns in which an array is predicted."""


def predicted(
    checkpoint: Checkpoint, array: np.ndarray, rule: Normalization, activation: str, device: str, dtype: str
) -> np.ndarray:
    """The prediction for an array as a volume of its own, (C, Z, Y, X), float32: what one pass over all of it gives."""
    architecture, graph, place = checkpoint.architecture, checkpoint.architecture.graph, torch.device(device)
    shape = triple(array.shape[1:])
    if not graph.is_local:
        x_ZYXC = normalised(torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64)).to(place), rule)
        logits = whole_pass(graph, placed(checkpoint, place, DTYPES[dtype]), x_ZYXC.to(DTYPES[dtype]))
        return activated(logits.to(torch.float32), activation).cpu().numpy()
    core = per_axis(round_up, (shape[0], min(shape[1], COLUMN), min(shape[2], COLUMN)), graph.stride)
    tiles = Stream.over(graph, shape, core, least_halo(graph), round_up(8, graph.stride[0]))
    network = executor_of(checkpoint, place, DTYPES[dtype], Arena())
    prediction = np.empty((architecture.out_channels, *shape), dtype=np.float32)
    for tile in tiles.grid:
        schedule = tiles.schedule(tile)
        inside, indices = shown(schedule.window, shape)
        window = spread(array[:, *inside.within(Box.of_shape(shape))], indices)
        x_ZYXC = normalised(torch.from_numpy(np.ascontiguousarray(window, dtype=np.float64)).to(place), rule)
        first = schedule.window.start[0]
        slabs = (x_ZYXC[a - first : b - first] for a, b in schedule.inputs())
        logits = torch.cat([logits_CZYX.to(torch.float32) for _, logits_CZYX in network(schedule, slabs)], 1)
        values = activated(logits, activation)
        prediction[:, *tile.core.within(Box.of_shape(shape))] = values.cpu().numpy()
    return prediction


def self_test(checkpoint: Checkpoint, plan: Plan) -> None:
    """Compare the plan's device and dtype with float32 on the processor, over noise.

    Raises:
        ModelError: They differ by more than rounding can.
    """
    a = checkpoint.architecture
    shape = (24, 40, 40) if a.ndim == 3 else (2, 64, 64)
    noise = np.random.default_rng(0).normal(size=(a.in_channels, *shape)).astype(np.float32)
    compute, rule = plan.compute, Normalization()
    prediction = predicted(checkpoint, noise, rule, "none", compute.device, compute.dtype)
    expected = predicted(checkpoint, noise, rule, "none", "cpu", "float32")
    difference = float(np.abs(prediction - expected).max() / max(np.ptp(expected), np.finfo(np.float32).tiny))
    limit = SELF_TEST_LIMITS[compute.dtype]
    if not difference <= limit:
        raise ModelError(
            f"Device '{compute.device}' computes this network wrongly in {compute.dtype}: over a small region of noise it is "
            f"{difference:.2g} of the output's range away from float32 on the processor, and rounding explains {limit:g} at "
            f"most (torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}). Set compute.dtype to float32, or "
            "install another torch."
        )

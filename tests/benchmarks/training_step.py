"""What reading, deforming and logging cost a training step: the loop beside the bare step on data in memory, in one run.

HALOTILE_TEST_DATA=... python -m tests.benchmarks.training_step configs/train-isbi-2d.yaml
"""

from __future__ import annotations

import sys
import tempfile
import time
from statistics import median

import numpy as np
import torch

from pipeline.config import read_config
from pipeline.networks.model import UNet, initialise
from pipeline.training.dataset import gather
from pipeline.training.losses import weighted_cross_entropy
from pipeline.training.machine import resolved
from pipeline.training.optimisation import make_optimiser
from pipeline.training.recipe import TrainConfig
from pipeline.training.trainer import Advance, train

ROUNDS, STEPS = 3, 40


def bare_seconds(config: TrainConfig) -> float:
    """Of one forward pass, loss, backward pass and step; the median of several, data in memory."""
    precision = resolved(config).precision
    flat = config.network.ndim == 2
    layout = torch.channels_last if flat else torch.channels_last_3d
    model = initialise(UNet(config.network.architecture, config.network.dropout), 0).to(memory_format=layout).train()
    optimiser = make_optimiser(model, config.optimiser)
    samples = [gather(config).samples[n] for n in range(config.batch)]
    image, target, weight = (np.stack([getattr(s, name) for s in samples]) for name in ("image", "target", "weight"))
    if flat:
        image, target, weight = image[:, :, 0], target[:, 0], weight[:, 0]
    x, t, w = (
        torch.from_numpy(image).contiguous(memory_format=layout),
        torch.from_numpy(target),
        torch.from_numpy(weight),
    )
    times = []
    for _ in range(STEPS):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(x)
        loss = weighted_cross_entropy(logits.float(), t, w)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        times.append(time.perf_counter() - started)
    return median(times[5:])


def loop_seconds(config: TrainConfig) -> float:
    """Of one step of `train`, with everything that it does between."""
    times: dict[int, float] = {}

    def told(advance: Advance) -> None:
        if advance.phase == "training":
            times[advance.done] = time.perf_counter()

    train(config, told)
    return (times[STEPS] - times[10]) / (STEPS - 10)


def main() -> None:
    """Print both, in turns, and their ratio."""
    ratios = []
    for number in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            small = [f"output={folder}/out", f"steps={STEPS}"]
            config = read_config(TrainConfig, sys.argv[1], small)
            content = config.model_dump()
            for volume in content["data"]["volumes"]:
                volume["validation"] = []
            config = TrainConfig.model_validate(content)
            bare, loop = bare_seconds(config), loop_seconds(config)
        ratios.append(loop / bare)
        print(f"round {number + 1}: bare step {bare:.3f} s, step of the loop {loop:.3f} s, ratio {loop / bare:.3f}")
    print(f"median ratio {median(ratios):.3f}")


if __name__ == "__main__":
    main()

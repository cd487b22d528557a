"""Wall-clock figures behind choices in the code; run alone, with `pytest -m benchmark -s tests/benchmarks`."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from pipeline.core.network.unet import Architecture
from pipeline.networks.model import UNet, initialise


def _seconds(work: Callable[[], object], repeats: int = 5) -> float:
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return sorted(times)[repeats // 2]


@pytest.mark.benchmark
@torch.inference_mode()
def test_what_channels_last_is_worth() -> None:
    """`unet/predictor.py` computes in channels_last_3d; this prints how much faster that is here."""
    torch.set_num_threads(1)
    image = torch.randn(1, 1, 64, 96, 96)
    seconds = {}
    for name, layout in (("contiguous", torch.contiguous_format), ("channels_last_3d", torch.channels_last_3d)):
        model = initialise(UNet(Architecture(3, 2, 16)), 0).eval().to(memory_format=layout)
        seconds[name] = _seconds(lambda model=model: model(image))
        print(f"{name}: {image.numel() / seconds[name] / 1e6:.2f} Mvoxel/s")
    print(f"ratio {seconds['contiguous'] / seconds['channels_last_3d']:.2f}")
    assert min(seconds.values()) > 0

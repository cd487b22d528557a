"""What a run trains on, with every `auto` resolved: it changes low bits, so it is kept and compared."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import ConfigError
from pipeline.networks.device import computes_bfloat16, device_count, resolved_device
from pipeline.training.recipe import TrainConfig


@dataclass(frozen=True)
class Machine:
    """What a run trains on.

    Args:
        device: `cpu` or `cuda`.
        devices: Processes, one a GPU.
        precision: `float32`, `bfloat16` or `float16`.
        threads: Of the processor, of all processes together.
    """

    device: str
    devices: int
    precision: str
    threads: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def resolved(config: TrainConfig) -> Machine:
    """The machine that a recipe asks for, on this one.

    Raises:
        ConfigError, ModelError: It is not here.
    """
    device = resolved_device(config.device)
    gpus = device_count(device)
    count = max(gpus, 1) if config.devices == "auto" else config.devices
    if gpus and count > gpus:
        raise ConfigError(
            f"devices is {count}, but this machine has {gpus} GPU(s). Set it to at most that, or to auto."
        )
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if computes_bfloat16(device) else "float32"
    if precision == "float16" and device == "cpu":
        raise ConfigError("precision float16 trains on GPUs alone; set it to bfloat16 or float32, or to auto.")
    threads = len(os.sched_getaffinity(0)) if config.threads == "auto" else config.threads
    return Machine(device, count, precision, threads)

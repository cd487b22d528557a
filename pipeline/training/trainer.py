"""A training run from its recipe to its checkpoint, on one device or several.

recipe --gather--> samples 0, 1, 2, ...  --step by step-->  state.pt  --at the end-->  checkpoint.safetensors
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment

from pipeline.config import NormalizeConfig
from pipeline.core.normalization import Normalization
from pipeline.errors import PipelineError
from pipeline.networks.device import make_deterministic
from pipeline.training.dataset import gather
from pipeline.training.loop import Advance, Loop, Told
from pipeline.training.machine import Machine, resolved
from pipeline.training.recipe import TrainConfig
from pipeline.training.state import (
    alone,
    as_begun,
    force_range,
    is_range_forced,
    keep_recipe,
    refuse_other_recipe,
)

__all__ = ["Advance", "Told", "train"]

log = logging.getLogger("pipeline.training")

PRECISIONS: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "float32": "32-true",
    "bfloat16": "bf16-mixed",
    "float16": "16-mixed",
}


def train(config: TrainConfig, on_advance: Told = lambda _: None, *, any_range: bool = False) -> Path:
    """Train a network by a recipe, or go on where an earlier session stopped.

    Writes `checkpoint.safetensors` (of the best validation where there is one, else of the last step), `metrics.json`,
    `recipe.json` and TensorBoard's `logs/` into the output folder. Deterministic from the seed, on one kind of processor
    and one number of threads. Ctrl-C and SIGTERM let the step in progress end and keep it, then raise KeyboardInterrupt.

    Args:
        config: The recipe.
        on_advance: Called with how far it is; must survive pickling where there are several devices.
        any_range: Whether to train on values that span too little to learn from; a run that goes on remembers it.

    Returns:
        The checkpoint's path.

    Raises:
        ConfigError, StorageError: The data is not what the recipe says, nothing could be learnt from it, or the folder is
            another run's.
        TrainingError: The loss is no longer finite.
    """
    folder, machine = Path(config.output), resolved(config)
    with alone(folder):
        config = as_begun(folder, config)
        refuse_other_recipe(folder, config)
        path = folder / "checkpoint.safetensors"
        if path.is_file():
            log.info("'%s' was trained already", folder)
            return path
        any_range = any_range or is_range_forced(folder)
        data = gather(config, lambda done, total: on_advance(Advance("preparing", done, total)), any_range=any_range)
        if any_range:
            force_range(folder)
        config = _resolved(config, data.rule)
        keep_recipe(folder, config)
        _launch(config, machine, on_advance)
        return path


def _resolved(config: TrainConfig, rule: Normalization) -> TrainConfig:
    """The recipe with the rule that it came to: what is kept says what was done."""
    normalize = NormalizeConfig(mode=rule.mode, low=rule.low, high=rule.high)
    return config.model_copy(update={"normalize": normalize})


def _launch(config: TrainConfig, machine: Machine, on_advance: Told) -> None:
    several = machine.devices > 1
    fabric = Fabric(
        accelerator=machine.device,
        devices=machine.devices,
        strategy="ddp_spawn" if several else "auto",
        precision=PRECISIONS[machine.precision],
        plugins=[LightningEnvironment()],  # its processes are its own, also where a batch system has tasks
    )
    with _passed_on() if several else nullcontext():
        ended = fabric.launch(partial(_fit, config=config, on_advance=on_advance))
    if isinstance(ended, PipelineError):
        raise ended
    if not ended:
        raise KeyboardInterrupt


def _fit(fabric: Fabric, config: TrainConfig, on_advance: Told) -> bool | PipelineError:
    """Train on one device; where there are several, this runs in a process for each.

    Returns:
        Whether it came to the end; or why it failed, which as an exception would lose its type on the way.
    """
    machine = resolved(config)
    make_deterministic()
    torch.set_num_threads(max(machine.threads // (machine.devices if machine.device == "cpu" else 1), 1))
    alone_here = machine.devices == 1
    try:
        with (
            _stoppable(patient=not alone_here) as stop,
            Loop(fabric, config, gather(config, trusted=True), machine) as loop,
        ):
            done = loop.run(on_advance, stop)
            if done and fabric.is_global_zero:
                loop.finish()
            fabric.barrier()
            return done
    except PipelineError as error:
        return error


# --- signals ------------------------------------------------------------------------------------------------------------


@contextmanager
def _passed_on() -> Iterator[None]:
    """Ctrl-C and SIGTERM go to the processes that train, which end in order; this one waits for them."""

    def tell(number: int, _frame: object) -> None:
        for child in multiprocessing.active_children():
            with suppress(ProcessLookupError):
                os.kill(child.pid or 0, number)

    with _handled(tell):
        yield


@contextmanager
def _stoppable(*, patient: bool) -> Iterator[threading.Event]:
    """Let the step in progress end before Ctrl-C or SIGTERM does its work; a second one works at once.

    Args:
        patient: Whether a second one does not: a terminal's Ctrl-C reaches each of several processes twice.
    """
    event = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        if event.is_set() and not patient:
            raise KeyboardInterrupt
        event.set()

    with _handled(stop):
        yield event


@contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Handle both signals, in a main thread; elsewhere they are whoever else's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)

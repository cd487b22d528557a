"""The training loop, and the checkpoint that comes of it.

    recipe --gather--> samples 0, 1, 2, ...  --step by step-->  state.pt  --at the end-->  checkpoint.safetensors

Sample n is a function of the seed and n; what chance a step needs is drawn from the seed and its number. So the state is
weights, momenta and a number, and a run that stops anywhere goes on bit for bit, on one kind of processor.
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from pipeline import __version__
from pipeline.core.architecture import Architecture
from pipeline.core.normalization import Normalization
from pipeline.errors import ConfigError, TrainingError
from pipeline.training.dataset import Dataset, gather
from pipeline.training.logbook import Logbook
from pipeline.training.losses import weighted_cross_entropy
from pipeline.training.optimisation import make_average, make_optimiser, rate_at
from pipeline.training.recipe import TrainConfig
from pipeline.training.samples import Sample, read_ahead
from pipeline.training.state import alone, keep_recipe, load_state, refuse_other_recipe, replace
from pipeline.training.validation import DIVERGED, score, validated_on
from pipeline.unet.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pipeline.unet.device import computes_bfloat16, device_count, make_deterministic, resolved_device
from pipeline.unet.model import UNet, initialise

log = logging.getLogger("pipeline.training")

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
PLACES = {"image", "labels"}
"""Keys of a recipe that say where a machine keeps things; a checkpoint does not carry them."""

LOOKED_AT = 10
"""Steps between looks at the loss: on a GPU each look waits for it."""


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a run is.

    Args:
        phase: `preparing` labels (voxels), or `training` (steps).
        done: Of `total`, those of earlier sittings included.
        total: Of the whole run.
        loss: Mean since the last time; of training.
        metrics: The last validation's; empty before.
        samples_per_second: In this sitting; of training.
        seconds_left: At this sitting's pace; None while it is not known.
    """

    phase: str
    done: int
    total: int
    loss: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    samples_per_second: float = 0.0
    seconds_left: float | None = None


Told = Callable[[Advance], None]


def train(config: TrainConfig, on_advance: Told = lambda _: None) -> Path:
    """Train a network by a recipe, or go on where an earlier sitting stopped.

    Writes `checkpoint.safetensors` (of the best validation where there is one, else of the last step), `metrics.json`,
    `recipe.json` and TensorBoard's `logs/` into the output folder. Deterministic from the seed, on one kind of processor
    and one number of threads.

    Args:
        config: The recipe.
        on_advance: Told how far it is; must survive pickling where there are several devices.

    Returns:
        The checkpoint's path.

    Raises:
        ConfigError, StorageError: The data is not what the recipe says, or the folder is another run's.
        TrainingError: The loss is no longer finite.
    """
    folder = Path(config.output)
    device, count, precision = _machine(config)
    with alone(folder):
        refuse_other_recipe(folder, config)
        path = folder / "checkpoint.safetensors"
        if path.is_file():
            log.info("'%s' was trained already", folder)
            return path
        gather(config, lambda done, total: on_advance(Advance("preparing", done, total)))
        keep_recipe(folder, config)
        strategy = "ddp_spawn" if count > 1 else "auto"
        fabric = Fabric(accelerator=device, devices=count, strategy=strategy, precision=PRECISIONS[precision])  # type: ignore[arg-type]
        fabric.launch(_fit, config, on_advance)
        return path


def _machine(config: TrainConfig) -> tuple[str, int, str]:
    """Device, number of devices and precision, with every `auto` resolved."""
    device = resolved_device(config.device)
    there = device_count(device)
    count = max(there, 1) if config.devices == "auto" else config.devices
    if there and count > there:
        raise ConfigError(
            f"devices is {count}, but this machine has {there} GPU(s). Set it to at most that, or to auto."
        )
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if computes_bfloat16(device) else "float32"
    if precision == "float16" and device == "cpu":
        raise ConfigError("precision float16 trains on GPUs alone; set it to bfloat16 or float32, or to auto.")
    return device, count, precision


def _fit(fabric: Fabric, config: TrainConfig, on_advance: Told) -> None:
    """Train on one device; where there are several, this runs in a process for each."""
    make_deterministic()
    torch.set_num_threads(_threads(config) // (fabric.world_size if fabric.device.type == "cpu" else 1) or 1)
    with _stoppable() as stop, _Loop(fabric, config, gather(config)) as loop:
        loop.run(on_advance, stop)
        if fabric.is_global_zero:
            loop.finish()
        fabric.barrier()


def _threads(config: TrainConfig) -> int:
    return len(os.sched_getaffinity(0)) if config.threads == "auto" else config.threads


class _Loop:
    """A run on one device, from the state that was left to the last step."""

    def __init__(self, fabric: Fabric, config: TrainConfig, data: Dataset) -> None:
        self.fabric, self.config, self.data = fabric, config, data
        self.folder = Path(config.output)
        network = config.network
        self._layout = torch.channels_last_3d if network.ndim == 3 else torch.channels_last
        self.net = initialise(UNet(network.architecture, network.dropout), config.seed).to(memory_format=self._layout)
        self.average = make_average(self.net, config.optimiser.average)
        self.step, self.best, self.metrics, self.seconds = 0, None, {}, 0.0
        optimiser = make_optimiser(self.net, config.optimiser)
        state = load_state(self.folder)
        if state is not None:
            self._restore(state, optimiser)
        self.model, self.optimiser = fabric.setup(self.net, optimiser)
        if self.average is not None:
            self.average.to(fabric.device)
        self.logbook = Logbook(self.folder / "logs", self.step) if fabric.is_global_zero else None

    def __enter__(self) -> _Loop:
        return self

    def __exit__(self, *_: object) -> None:
        if self.logbook:
            self.logbook.close()

    def _restore(self, state: dict[str, Any], optimiser: torch.optim.Optimizer) -> None:
        self.net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.step, self.best, self.metrics = state["step"], state["best"], state["metrics"]
        self.seconds = state["seconds"]
        log.info("going on after step %d", self.step)

    def save(self) -> None:
        """Keep all that the next sitting needs; one process alone writes."""
        if not self.fabric.is_global_zero:
            return
        content = io.BytesIO()
        torch.save(
            {
                "net": self.net.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "step": self.step,
                "best": self.best,
                "metrics": self.metrics,
                "seconds": self.seconds,
            },
            content,
        )
        replace(self.folder / "state.pt", content.getvalue())

    # --- steps ------------------------------------------------------------------------------------------------------

    def run(self, on_advance: Told, stop: threading.Event) -> None:
        """All steps that are left; saves the state, and raises KeyboardInterrupt, where it is asked to stop."""
        config, every = self.config, self.config.every
        losses: list[Tensor] = []
        began, first, before = time.perf_counter(), self.step, self.seconds
        for batch in self._batches():
            losses.append(self._step(batch))
            self.step += 1
            self.seconds = before + time.perf_counter() - began
            last = self.step == config.steps
            if self.step % LOOKED_AT == 0 or last:
                loss = self._looked(losses)
                self._tell(on_advance, loss, (self.step - first) / (time.perf_counter() - began))
            if self.data.validation and (self.step % every.validation == 0 or last):
                self._validate()
            stopping = self._agreed(stop)
            if self.step % every.checkpoint == 0 or last or stopping:
                self.save()
            if stopping:
                raise KeyboardInterrupt

    def _agreed(self, stop: threading.Event) -> bool:
        """Whether any process was asked to stop. All stop after the same step, or one would wait for the others for ever."""
        if self.fabric.world_size == 1:
            return stop.is_set()
        if self.step % LOOKED_AT:
            return False
        asked = torch.tensor(float(stop.is_set()), device=self.fabric.device)
        return bool(self.fabric.all_reduce(asked, reduce_op="max"))

    def _batches(self) -> Iterator[list[Sample]]:
        """Of the steps that are left, this process's share of each."""
        size, world, rank = self.config.batch, self.fabric.world_size, self.fabric.global_rank
        numbers = (
            (step * world + rank) * size + n for step in range(self.step, self.config.steps) for n in range(size)
        )
        samples = read_ahead(
            self.data.samples, numbers, threads=self.config.readers, ahead=2 * size + self.config.readers
        )
        try:
            while batch := [sample for _, sample in zip(range(size), samples, strict=False)]:
                yield batch
        finally:
            samples.close()

    def _step(self, batch: list[Sample]) -> Tensor:
        config, fabric = self.config, self.fabric
        torch.manual_seed(
            int(np.random.SeedSequence((config.seed, self.step, fabric.global_rank)).generate_state(1)[0])
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(self.step, config.steps, config.optimiser)
        image_BCS, target_BS, weight_BS = self._tensors(batch)
        self.model.train()
        logits_BKS = self.model(image_BCS)
        loss = weighted_cross_entropy(logits_BKS.float(), target_BS, weight_BS)
        self.optimiser.zero_grad()
        fabric.backward(loss)
        if config.optimiser.clip:
            fabric.clip_gradients(self.model, self.optimiser, max_norm=config.optimiser.clip)
        self.optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.net)
        if self.logbook and (self.step + 1) % config.every.picture == 0:
            self.logbook.picture(self.step + 1, batch[0], logits_BKS[0])
        return loss.detach()

    def _tensors(self, batch: list[Sample]) -> tuple[Tensor, Tensor, Tensor]:
        """A batch on the device; without z where the network is 2D."""
        image, target, weight = (np.stack([getattr(s, name) for s in batch]) for name in ("image", "target", "weight"))
        if self.config.network.ndim == 2:
            image, target, weight = image[:, :, 0], target[:, 0], weight[:, 0]
        place = self.fabric.device
        image_BCS = torch.from_numpy(image).contiguous(memory_format=self._layout)
        return tuple(_moved(t, place) for t in (image_BCS, torch.from_numpy(target), torch.from_numpy(weight)))  # type: ignore[return-value]

    def _looked(self, losses: list[Tensor]) -> float:
        loss = float(torch.stack(losses).mean())
        losses.clear()
        if not isfinite(loss):
            raise TrainingError(DIVERGED.format(f"The loss is {loss} at step {self.step}"))
        return loss

    def _tell(self, on_advance: Told, loss: float, steps_per_second: float) -> None:
        if not self.logbook:
            return
        steps = self.config.steps
        self.logbook.step(self.step, loss, rate_at(self.step - 1, steps, self.config.optimiser))
        samples = steps_per_second * self.config.batch * self.fabric.world_size
        left = (steps - self.step) / steps_per_second
        on_advance(Advance("training", self.step, steps, loss, self.metrics, samples, left))

    # --- what comes of it -------------------------------------------------------------------------------------------

    def _validate(self) -> None:
        """Judge the weights as they are; keep them where none were better."""
        if not self.logbook:
            return
        checkpoint = self._checkpoint()
        self.metrics = validated_on(checkpoint, self.data.validation, str(self.fabric.device))
        self.logbook.metrics(self.step, self.metrics)
        if self.best is None or score(self.metrics) > score(self.best):
            self.best = {**self.metrics, "step": self.step}
            save_checkpoint(self.folder / "best.safetensors", checkpoint)

    def finish(self) -> None:
        """Write the checkpoint and its figures."""
        metrics = {**(self.best or {"step": self.step}), "training_seconds": round(self.seconds, 1)}
        (self.folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        state = None if self.best is None else load_checkpoint(self.folder / "best.safetensors").state
        save_checkpoint(self.folder / "checkpoint.safetensors", self._checkpoint(state, metrics))

    def _checkpoint(self, state: dict[str, Tensor] | None = None, metrics: dict[str, Any] | None = None) -> Checkpoint:
        if state is None:
            net = self.net if self.average is None else self.average.module
            state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in net.state_dict().items()}
        architecture: Architecture = self.config.network.architecture
        return Checkpoint(
            architecture=architecture,
            state=state,
            normalization=Normalization(**self.config.normalize.model_dump()),
            axes=self.data.axes,
            voxel_size_nm=self.data.voxel_size_nm,
            provenance=self._provenance(metrics or {}),
        )

    def _provenance(self, metrics: dict[str, Any]) -> dict[str, Any]:
        recipe = self.config.model_dump(mode="json", exclude={"output": True, "data": {"volumes": {"__all__": PLACES}}})
        return {
            "made_by": f"halotile {__version__}",
            "torch": torch.__version__,
            "target": self.config.data.target,
            "recipe": recipe,
            "data": self.data.fingerprints,
            "validation": metrics,
            "attribution": self.config.data.attribution,
        }


def _moved(tensor: Tensor, place: torch.device) -> Tensor:
    return tensor.pin_memory().to(place, non_blocking=True) if place.type == "cuda" else tensor


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """Let the step in progress end before Ctrl-C or SIGTERM does its work; a second one works at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def stop(number: int, _frame: object) -> None:
        asked.set()
        signal.signal(number, before[number])

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

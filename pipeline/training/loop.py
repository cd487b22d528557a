"""The training loop on one device: from the state that was left to the last step, and the checkpoint that comes of it.

Sample n is a function of the seed and n; what chance a step needs is drawn from the seed and its number. So the state is
weights, momenta and a number, and a run that stops anywhere goes on bit for bit, on one kind of processor.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from pipeline import __version__
from pipeline.core.lesson import constant_loss, has_learned
from pipeline.core.strict_json import json_text
from pipeline.errors import TrainingError
from pipeline.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pipeline.networks.model import UNet, initialise
from pipeline.places.durable import replace
from pipeline.training.dataset import Dataset
from pipeline.training.indicators import disparity, tile_mismatch
from pipeline.training.logbook import Logbook
from pipeline.training.losses import weighted_cross_entropy
from pipeline.training.machine import Machine
from pipeline.training.optimisation import make_average, make_optimiser, rate_at
from pipeline.training.recipe import TrainConfig
from pipeline.training.renorm import with_renorm
from pipeline.training.samples import Sample, read_ahead
from pipeline.training.state import load_state
from pipeline.training.validation import DIVERGED, score, validated_on

log = logging.getLogger("pipeline.training")

PLACES = {"image", "labels"}
"""Keys of a recipe that say where a machine keeps things; a checkpoint does not carry them."""

LOOKED_AT = 10
"""Steps between looks at the loss: on a GPU each look waits for it."""

PATCHES = 8
"""Of which the disparity between training and evaluation is the mean."""

RECENT = 0.2
"""How much of the recent loss each look renews: it is of the last fifty steps or so."""


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a run is.

    Args:
        phase: `preparing` labels (voxels), or `training` (steps).
        done: Of `total`, those of earlier sessions included.
        total: Of the whole run.
        loss: Mean since the last time; of training.
        metrics: The last validation's; empty before.
        samples_per_second: In this session; of training.
        seconds_left: At this session's pace; None while it is not known.
    """

    phase: str
    done: int
    total: int
    loss: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    samples_per_second: float = 0.0
    seconds_left: float | None = None


Told = Callable[[Advance], None]


class Loop:
    """A run on one device, from the state that was left to the last step."""

    def __init__(self, fabric: Fabric, config: TrainConfig, data: Dataset, machine: Machine) -> None:
        self.fabric, self.config, self.data, self.machine = fabric, config, data, machine
        self.folder = Path(config.output)
        network = config.network
        self._layout = torch.channels_last_3d if network.ndim == 3 else torch.channels_last
        self.net = initialise(UNet(network.architecture, network.dropout), config.seed)
        if network.norm == "batch_renorm":
            with_renorm(self.net, config.steps)
        self._lay_out(self.net)
        self.average = make_average(self.net, config.optimiser.average)
        self.step, self.seconds = 0, 0.0
        self.best: dict[str, Any] | None = None
        self.metrics: dict[str, Any] = {}
        self._losses: list[Tensor] = []
        self._shares: list[np.ndarray] = []
        self.recent: dict[str, Any] = {}
        self._failed: TrainingError | None = None
        optimiser = make_optimiser(self.net, config.optimiser)
        state = load_state(self.folder)
        if state is not None:
            self._restore(state, optimiser)
        self.model, self.optimiser = fabric.setup(self.net, optimiser)
        if self.average is not None:
            self.average.to(fabric.device)
        self.logbook = Logbook(self.folder / "logs", self.step) if fabric.is_global_zero else None

    def __enter__(self) -> Loop:
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
        self.seconds, self.recent = state["seconds"], state.get("recent", {})  # of older versions without
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        if state["machine"] != self.machine.to_dict():
            log.warning(
                "the run was begun on %s and goes on with %s: its weights will not be those of one session, bit for bit",
                state["machine"],
                self.machine.to_dict(),
            )

    def save(self) -> None:
        """Keep all that the next session needs; one process alone writes.

        Raises:
            TrainingError: The weights are not finite; what was kept before stays.
        """
        # weights are alike in all processes; each has statistics of its own, but what makes one infinite makes all
        if not all(torch.isfinite(tensor).all() for tensor in self.net.state_dict().values()):
            raise TrainingError(DIVERGED.format(f"Weights are not finite after step {self.step}"))
        if not self.fabric.is_global_zero:
            return
        state = {
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "step": self.step,
            "best": self.best,
            "metrics": self.metrics,
            "seconds": self.seconds,
            "recent": self.recent,
            "machine": self.machine.to_dict(),
        }
        content = io.BytesIO()
        torch.save(state, content)
        replace(self.folder / "state.pt", content.getvalue())

    # --- steps ------------------------------------------------------------------------------------------------------

    def run(self, on_advance: Told, stop: threading.Event) -> bool:
        """All steps that are left, or until it is asked to stop; whether it came to the end.

        Raises:
            TrainingError: The network does not learn.
        """
        began, first, before = time.perf_counter(), self.step, self.seconds
        for batch in self._batches():
            self._losses.append(self._step(batch))
            self.step += 1
            self.seconds = before + time.perf_counter() - began
            pace = (self.step - first) / (time.perf_counter() - began)
            if self._due(LOOKED_AT):
                self._look(on_advance, pace)
            if self.data.validation and self._due(self.config.every.validation):
                self._validate()
            stops = self._stops(stop)
            if stops or self._due(self.config.every.checkpoint):
                self._look(on_advance, pace)  # nothing that is not finite is kept
                self.save()
            if stops:
                return self.step == self.config.steps
        return True

    def _due(self, steps: int) -> bool:
        return self.step % steps == 0 or self.step == self.config.steps

    def _stops(self, stop: threading.Event) -> bool:
        """Whether any process was asked to stop, or failed. All leave after the same step, or one would wait for ever.

        Raises:
            TrainingError: This one failed.
        """
        if self.fabric.world_size > 1:
            if not self._due(LOOKED_AT):
                return False
            flag = torch.tensor(float(stop.is_set() or self._failed is not None), device=self.fabric.device)
            stops = bool(self.fabric.all_reduce(flag, reduce_op="max"))
        else:
            stops = stop.is_set() or self._failed is not None
        if self._failed is not None:
            raise self._failed
        return stops

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
        self._shares.append(_shares(batch, max(config.network.classes, 2)))
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
        target_BS, weight_BS = torch.from_numpy(target), torch.from_numpy(weight)
        return _moved(image_BCS, place), _moved(target_BS, place), _moved(weight_BS, place)

    def _look(self, on_advance: Told, steps_per_second: float) -> None:
        """Look at the losses since the last time, which all processes share, and report how far it is.

        Raises:
            TrainingError: They are not finite.
        """
        if not self._losses:
            return
        mean = torch.stack(self._losses).mean()
        self._losses.clear()
        if self.fabric.world_size > 1:
            mean = torch.as_tensor(self.fabric.all_reduce(mean, reduce_op="mean"))
        loss = float(mean)
        if not isfinite(loss):
            raise TrainingError(DIVERGED.format(f"The loss is {loss} at step {self.step}"))
        self._remember(loss)
        if not self.logbook:
            return
        steps = self.config.steps
        self.logbook.step(self.step, loss, rate_at(self.step - 1, steps, self.config.optimiser))
        samples = steps_per_second * self.config.batch * self.fabric.world_size
        left = (steps - self.step) / steps_per_second
        on_advance(Advance("training", self.step, steps, loss, self.metrics, samples, left))

    def _remember(self, loss: float) -> None:
        """Move the recent loss, and the classes' shares of the weight that it was taken over."""
        shares = np.mean(self._shares, axis=0).tolist()
        self._shares.clear()
        rate = min(max(RECENT, 2 / (self.step / LOOKED_AT + 1)), 1.0)
        then = self.recent or {"loss": loss, "shares": shares}
        moved = zip(then["shares"], shares, strict=True)
        self.recent = {
            "loss": then["loss"] + rate * (loss - then["loss"]),
            "shares": [a + rate * (b - a) for a, b in moved],
        }

    def _recent_figures(self) -> dict[str, float]:
        if not self.recent:
            return {}
        constant = constant_loss(np.array(self.recent["shares"]))
        return {"training_loss": round(self.recent["loss"], 4), "training_constant_loss": round(constant, 4)}

    # --- what comes of it -------------------------------------------------------------------------------------------

    def _validate(self) -> None:
        """Judge the weights as they are; keep them where none were better."""
        if not self.logbook:
            return
        checkpoint = self._checkpoint()
        try:
            weights = self.data.samples.class_weights
            self.metrics = validated_on(checkpoint, self.data.validation, str(self.fabric.device), weights)
        except TrainingError as error:  # the other processes are told before this one leaves them
            self._failed = error
            return
        self.logbook.metrics(self.step, self.metrics)
        if self.best is None or score(self.metrics) > score(self.best):
            self.best = {**self.metrics, **self._recent_figures(), "step": self.step}
            save_checkpoint(self.folder / "best.safetensors", checkpoint)

    def finish(self) -> None:
        """Write the checkpoint and its figures."""
        metrics = self.best or {**self._recent_figures(), "step": self.step}
        metrics = {**metrics, "training_seconds": round(self.seconds, 1)}
        state = None if self.best is None else load_checkpoint(self.folder / "best.safetensors").state
        metrics |= self._indicators(self._checkpoint(state))
        if (learned := has_learned(metrics)) is not None:
            metrics["learned"] = learned
        replace(self.folder / "metrics.json", json_text(metrics, indent=2).encode() + b"\n")
        save_checkpoint(self.folder / "checkpoint.safetensors", self._checkpoint(state, metrics))

    def _indicators(self, checkpoint: Checkpoint) -> dict[str, float]:
        """Of tiling: see `pipeline.training.indicators`."""
        indicators: dict[str, float] = {}
        device = str(self.fabric.device)
        if self.config.network.norm != "none":
            first = self.config.steps * self.config.batch * self.fabric.world_size
            patches = [self._tensors([self.data.samples[first + n]])[0] for n in range(PATCHES)]
            net = self._lay_out(checkpoint.build().to(self.fabric.device))
            indicators["train_evaluation_disparity"] = disparity(self._as_learning(net), patches)
        mismatches = [tile_mismatch(checkpoint, region, device) for region in self.data.validation]
        if measured := [value for value in mismatches if value is not None]:
            indicators["tile_mismatch"] = max(measured)
        return {name: float(f"{value:.3g}") for name, value in indicators.items()}

    def _lay_out(self, net: UNet) -> UNet:
        """A network whose kernels have their channels last; changed in place."""
        net.to(memory_format=self._layout)  # type: ignore[call-overload]  # torch's stubs lack it
        return net

    def _as_learning(self, net: UNet) -> UNet:
        """A network with the norms that this training has."""
        return with_renorm(net, self.config.steps) if self.config.network.norm == "batch_renorm" else net

    def _checkpoint(self, state: dict[str, Tensor] | None = None, metrics: dict[str, Any] | None = None) -> Checkpoint:
        if state is None:
            net = self.net if self.average is None else self.average.module
            state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in net.state_dict().items()}
        return Checkpoint(
            architecture=self.config.network.architecture,
            state=state,
            normalization=self.data.rule,
            axes=self.data.axes,
            voxel_size_nm=self.data.voxel_size_nm,
            provenance=self._provenance(metrics or {}),
            training_data=self.data.appearances,
            learned=(metrics or {}).get("learned"),
        )

    def _provenance(self, metrics: dict[str, Any]) -> dict[str, Any]:
        recipe = self.config.model_dump(
            mode="json", exclude={"output": True, "register_as": True, "data": {"volumes": {"__all__": PLACES}}}
        )
        return {
            "made_by": f"halotile {__version__}",
            "torch": torch.__version__,
            "machine": self.machine.to_dict(),
            "target": self.config.data.target,
            "recipe": recipe,
            "data": self.data.fingerprints,
            "validation": metrics,
            "attribution": self.config.data.attribution,
        }


def _shares(batch: list[Sample], classes: int) -> np.ndarray:
    """Each class's share of the weight of a batch; of one channel, of its two answers."""
    counts = (np.bincount(s.target.ravel(), s.weight.ravel(), minlength=256)[:classes] for s in batch)
    weights = sum(counts, np.zeros(classes))
    return weights / max(float(np.sum(weights)), 1e-6)


def _moved(tensor: Tensor, place: torch.device) -> Tensor:
    return tensor.pin_memory().to(place, non_blocking=True) if place.type == "cuda" else tensor

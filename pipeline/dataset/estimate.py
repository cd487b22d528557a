"""What a dataset will cost before it costs: volumes, voxels, arithmetic, hours, bytes, money. Nothing is written."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta

from pipeline.cluster.kind import WorkerSpec
from pipeline.cluster.pool import machine
from pipeline.core.machine import Machine
from pipeline.core.plan import Plan
from pipeline.core.stored import Stored
from pipeline.dataset.outcome import Outcome, reason_of
from pipeline.dataset.reprocess import dataset_workers, shared_machine, typical
from pipeline.dataset.settings import DatasetConfig, PriceConfig
from pipeline.dataset.threads import Threads
from pipeline.dataset.volume import Member, current_outcome
from pipeline.errors import ModelError
from pipeline.planning.ensemble import named_networks
from pipeline.planning.measure import Expectation, expectation
from pipeline.planning.resolve import make_plan
from pipeline.registry import with_model
from pipeline.stages import count_input

log = logging.getLogger("pipeline")

LOOKERS = 4

VOLUME_SECONDS = 0.3
"""Of each volume besides its tiles: plan, verification, report, switch."""

MEASURED = 3
"""Volumes that are tried at most until the voxels of one can be read; each costs a few slabs of computing."""

NAMED = 10
"""Volumes that cannot be done, named at most."""


@dataclass(frozen=True)
class Estimate:
    """A dataset before a go over it.

    Args:
        volumes: In the catalogue.
        skipped: Done already.
        plans: Of those that are to do; their statistics are rough.
        refused: Why others cannot be done, by name.
        stored: What was counted of the inputs of those that are to do, by name.
        workers: That would share them.
        measured: What the largest volume that can be read was found to take, from a few of its turns; None where that cannot be
            found here.
        price: Of things.
    """

    volumes: int
    skipped: int
    plans: Sequence[Plan]
    refused: dict[str, str]
    stored: dict[str, Stored]
    workers: int
    measured: Expectation | None
    price: PriceConfig

    @property
    def worker_seconds(self) -> float:
        """Of all workers together."""
        if self.measured is None:
            return 0.0
        work = sum(plan.cost.multiply_adds for plan in self.plans) / self.measured.multiply_adds_a_second
        return work + VOLUME_SECONDS * len(self.plans)

    @property
    def seconds(self) -> float:
        """Of the clock: as long as every worker has a tile, and no shorter than the longest volume's tiles in a row."""
        if self.measured is None:
            return 0.0
        rate = self.measured.multiply_adds_a_second
        longest = max(plan.cost.multiply_adds / min(len(plan.grid), self.workers) for plan in self.plans) / rate
        return max(self.worker_seconds / self.workers, longest)

    @property
    def output_bytes(self) -> int:
        """Before compression."""
        return sum(plan.cost.output_bytes for plan in self.plans)

    def rows(self) -> list[tuple[str, str]]:
        """For people."""
        done = sum(plan.cost.multiply_adds for plan in self.plans)
        once = sum(plan.cost.one_pass_multiply_adds for plan in self.plans)
        rows = [
            (
                "volumes",
                f"{self.volumes:,}: {len(self.plans):,} to do, {self.skipped:,} done, {len(self.refused):,} that cannot be",
            ),
            ("voxels to do", f"{sum(plan.source.voxels for plan in self.plans):,}"),
            ("tiles", f"{sum(len(plan.grid) for plan in self.plans):,}"),
            ("arithmetic", f"{done / 1e12:.3f} T multiply-adds, {done / once if once else 1:.2f} x one pass"),
            *self._stored_rows(),
            ("to write", f"up to {self.output_bytes / 1e9:.3f} GB before compression"),
            ("time", self._time()),
            *self._money(),
        ]
        named = [(name, why) for name, why in self.refused.items()]
        rows += [(f"cannot: {name}", why.splitlines()[0]) for name, why in named[:NAMED]]
        return [*rows, *([("cannot", f"and {len(named) - NAMED} more")] if len(named) > NAMED else [])]

    def _stored_rows(self) -> list[tuple[str, str]]:
        """How much of the inputs is there, and each that has holes by its name: they are read as fill."""
        if not self.stored:
            return []
        present, total = (sum(getattr(one, part) for one in self.stored.values()) for part in ("count", "total"))
        sampled = " (where there are too many, of a sample)" if any(one.sampled for one in self.stored.values()) else ""
        holes = [(name, one) for name, one in self.stored.items() if one.count < one.total]
        rows = [("stored", f"{present:,} of {total:,} chunks, shards or files{sampled}")]
        rows += [(f"stored: {name}", f"{one}; what is absent is read as fill") for name, one in holes[:NAMED]]
        return [*rows, *([("stored", f"and {len(holes) - NAMED} more with holes")] if len(holes) > NAMED else [])]

    def _time(self) -> str:
        if not self.plans:
            return "none: nothing is to do"
        if self.measured is None:
            return "could not be measured on this machine; the log says why"
        return (
            f"about {_duration(self.seconds)} with {self.workers} worker(s), {self.worker_seconds / 3600:.2f} worker hours, "
            "from a few slabs of a large volume computed here"
        )

    def _money(self) -> list[tuple[str, str]]:
        hours, stored = self.worker_seconds / 3600, self.output_bytes / 1e12
        rows = []
        if self.price.worker_hour and self.measured:
            rows.append(("workers", f"{hours * self.price.worker_hour:,.2f} {self.price.currency}"))
        if self.price.terabyte_month:
            rows.append(("storage", f"up to {stored * self.price.terabyte_month:,.2f} {self.price.currency} a month"))
        return rows or [("money", "not told: set price.worker_hour and price.terabyte_month")]


def estimate(
    config: DatasetConfig, volumes: Sequence[Member], on_advance: Callable[[int, int], None] = lambda *_: None
) -> Estimate:
    """Plan every volume that is to do, roughly, and measure the largest on this machine.

    Args:
        config: The set.
        volumes: Its volumes.
        on_advance: Told how many were looked at, of all.

    Raises:
        PipelineError: Nothing can be said at all.
    """
    offered = machine(config.cluster)
    looks = _look_at(volumes, offered, on_advance)
    left = [volume for volume, seen in looks if not isinstance(seen, Outcome)]
    like = typical(left, offered) if left else None
    spec = dataset_workers(like, len(left), offered) if like else WorkerSpec(1, 1, offered.memory_bytes)
    plans, refused, stored = _plan(left, shared_machine(offered, spec), like.plan if like else None)
    refused |= {volume.name: seen.reason for volume, seen in looks if seen and seen.state == "failed"}
    done = sum(seen is not None and seen.state != "failed" for _, seen in looks)
    return Estimate(len(volumes), done, plans, refused, stored, spec.workers, _measure(config, plans), config.price)


def _measure(config: DatasetConfig, plans: Sequence[Plan]) -> Expectation | None:
    """What the most costly of the plans that can be read takes on this machine, where it has what the workers compute on."""
    for plan in heapq.nlargest(MEASURED, plans, key=lambda plan: plan.cost.multiply_adds):
        try:
            return expectation(plan, 1, named_networks(with_model(config).model)[0])
        except ModelError as error:
            log.warning("how long it takes cannot be measured here: %s", error)
            return None
        except Exception as error:  # of this volume: plans read no voxel, mostly
            log.warning("'%s' cannot say how long it takes: %s", plan.source.url, reason_of(error))
            log.debug("the same, at length", exc_info=True)
    return None


def _look_at(
    volumes: Sequence[Member], offered: Machine, on_advance: Callable[[int, int], None]
) -> list[tuple[Member, Outcome | None]]:
    with Threads(LOOKERS, "look") as threads:
        looks: list[tuple[Member, Future[Outcome | None]]] = [
            (volume, threads.submit(_done, volume, offered)) for volume in volumes
        ]
        outcomes = []
        for number, (volume, look) in enumerate(looks, start=1):
            outcomes.append((volume, look.result()))
            on_advance(number, len(volumes))
    return outcomes


def _done(volume: Member, offered: Machine) -> Outcome | None:
    try:
        return current_outcome(volume, offered)
    except Exception as error:  # whatever it is: the volume is planned in full, and refused there by name
        log.debug("%s cannot be looked at: %s", volume.name, reason_of(error), exc_info=True)
        return None


def _plan(
    volumes: Sequence[Member], offered: Machine, like: Plan | None
) -> tuple[list[Plan], dict[str, str], dict[str, Stored]]:
    plans, refused, stored = [], {}, {}
    for volume in volumes:
        try:
            run = volume.run(str(volume.folder / "plan"))
            _, inventory = count_input(run)
            plans.append(make_plan(run, offered, like=like, rough=True, inventory=inventory))
            stored[volume.name] = inventory.stored
        except Exception as error:  # one volume that nobody foresaw does not hide the others
            log.debug("%s cannot be planned", volume.name, exc_info=True)
            refused[volume.name] = reason_of(error)
    return plans, refused, stored


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else str(timedelta(seconds=round(seconds)))

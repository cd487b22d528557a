"""All volumes of a dataset, each a run, a few at a time, on one pool of workers.

What readers have already is found first, by metadata, and skipped. The pool is opened only where something is left, and once.
A volume that fails is noted and left; the others go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pipeline.cluster.dashboard import dashboard_link
from pipeline.cluster.forwarding import forward
from pipeline.cluster.kind import WorkerSpec
from pipeline.cluster.pool import SharedPool, StartedWorkers, machine, open_pool
from pipeline.config import RunConfig
from pipeline.core.machine import Machine
from pipeline.core.plan import Plan
from pipeline.dataset.outcome import Outcome, reason_of
from pipeline.dataset.settings import DatasetConfig
from pipeline.dataset.threads import Threads
from pipeline.dataset.volume import DatasetWorkers, Member, current_outcome, note, segment
from pipeline.inference.session import worker_spec
from pipeline.planning.resolve import make_plan
from pipeline.volumes.volume import open_volume

log = logging.getLogger("pipeline")

LOOKERS = 4
"""Volumes whose metadata are looked at, at once."""

MOST_AT_ONCE = 64
"""Volumes in hand, where the configuration leaves that open."""

Segment = Callable[[Member, DatasetWorkers], Outcome]


def reprocess(
    volumes: Sequence[Member],
    on_outcome: Callable[[Outcome], None],
    *,
    segment_one: Segment = segment,
    on_dashboard: Callable[[str], None] = lambda _: None,
    started: StartedWorkers | None = None,
) -> None:
    """Have every volume's output as it is asked for.

    Args:
        volumes: Of one set.
        on_outcome: Told of each, in this thread, as it ends.
        segment_one: What is done with each that is not done; called in threads, in a copy of this one's context.
        on_dashboard: Told where Dask's dashboard is, where there is one.
        started: Workers that are started already.

    Raises:
        PipelineError: There are no workers; volumes that were not come to have no outcome.
        KeyboardInterrupt: It was asked to end; the volumes in hand have ended in order.
    """
    if not volumes:
        return
    config = volumes[0].config
    offered = machine(config.cluster)
    left = _look_at(volumes, offered, on_outcome)
    if not left:
        return
    log.info("%d of %d volumes to do", len(left), len(volumes))
    with _team(config, left, offered, on_dashboard, started) as team:
        many = min(team.machine.workers or 1, len(left)) + 2 if config.concurrency == "auto" else config.concurrency
        with Threads(min(many, MOST_AT_ONCE, len(left)), "volume") as threads:
            for ended in as_completed([threads.submit(segment_one, volume, team) for volume in left]):
                on_outcome(ended.result())


def _look_at(volumes: Sequence[Member], offered: Machine, on_outcome: Callable[[Outcome], None]) -> list[Member]:
    """Look at all volumes; give those that are not done, in order, and report the others."""
    left = []
    with Threads(LOOKERS, "look") as threads:
        looks: list[tuple[Member, Future[Outcome | None]]] = [
            (volume, threads.submit(_look, volume, offered)) for volume in volumes
        ]
        for volume, look in looks:
            if outcome := look.result():
                on_outcome(outcome)
            else:
                left.append(volume)
    return left


def _look(volume: Member, offered: Machine) -> Outcome | None:
    try:
        outcome = current_outcome(volume, offered)
        return outcome and note(volume, outcome)
    except Exception as error:  # whatever it is: the volume is tried in full, and fails there by name
        log.debug("%s cannot be looked at: %s", volume.name, reason_of(error), exc_info=True)
        return None


# --- who computes -----------------------------------------------------------------------------------------------------


@contextmanager
def _team(
    config: DatasetConfig,
    left: Sequence[Member],
    offered: Machine,
    on_dashboard: Callable[[str], None],
    started: StartedWorkers | None,
) -> Iterator[DatasetWorkers]:
    """Workers for all that is left; what they log goes to the logs of the runs that it is about."""
    like = typical(left, offered)
    if like is None:  # not one can be planned: each says why, and needs no worker for that
        yield DatasetWorkers(offered, None, None)
        return
    spec = dataset_workers(like, len(left), offered)
    opening = open_pool(config.cluster, spec, config.directory.jobs_path, started)
    with opening as pool, forward(pool.client, config.log.level):
        if link := dashboard_link(pool.client, config.cluster):
            log.info("Dask's dashboard: %s", link)
            on_dashboard(link)
        yield DatasetWorkers(shared_machine(offered, spec), SharedPool(pool), like.plan)


def shared_machine(offered: Machine, spec: WorkerSpec) -> Machine:
    """What a volume's planner may count on: that there are so many workers, and as many volumes at once."""
    return replace(offered, workers=spec.workers, runs=spec.workers)


@dataclass(frozen=True, slots=True)
class Typical:
    """The largest volume of a set that can be planned, roughly; its threads, dtype and device are the set's."""

    config: RunConfig
    plan: Plan


def typical(volumes: Sequence[Member], offered: Machine) -> Typical | None:
    """The one of these; None where none can be planned."""
    runs = replace(offered, runs=len(volumes))
    for _, config in sorted(_sizes(volumes), key=lambda pair: -pair[0]):
        try:
            return Typical(config, make_plan(config, runs, rough=True))
        except Exception as error:  # as above
            log.debug("'%s' cannot say what workers should be: %s", config.input.url, reason_of(error), exc_info=True)
    return None


def _sizes(volumes: Sequence[Member]) -> Iterator[tuple[int, RunConfig]]:
    """Voxels of those that can be opened, and their runs."""
    for volume in volumes:
        try:
            config = volume.run(str(volume.folder / "plan"))
            source = open_volume(config.input.url, config.input.selection)
        except Exception as error:  # as above
            log.debug("%s cannot be opened: %s", volume.name, reason_of(error), exc_info=True)
        else:
            yield source.description.voxels, config


def dataset_workers(like: Typical, volumes: int, offered: Machine) -> WorkerSpec:
    """Workers for so many volumes: as for a run of as many tiles as there may be at most."""
    return worker_spec(like.config, offered, like.plan, len(like.plan.grid) * volumes)

"""True statistics of norms over the whole input, of a plan: passes over its tiles by the workers, each up to the next norms."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

from pipeline.cluster import norm_passes
from pipeline.cluster.dispatch import Work
from pipeline.cluster.pool import Pool
from pipeline.config import RunConfig
from pipeline.core.frozen import Frozen, WholeVolume
from pipeline.core.normalization import Normalization
from pipeline.core.plan import Plan
from pipeline.core.statistics import digest_of_norm_pass
from pipeline.inference.frozen import check_finite
from pipeline.inference.survey import Word, records_of
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.networks.frozen import check_same
from pipeline.networks.norm_passes import NormMeasurement
from pipeline.outputs.rundir import Driver

log = logging.getLogger("pipeline")


def measure_norms(
    config: RunConfig,
    plan: Plan,
    rule: Normalization,
    driver: Driver,
    workers: Callable[[int], AbstractContextManager[Pool]],
    tell: Callable[[str], None],
) -> Frozen:
    """The statistics of all norms over the whole volume; tiles of passes that an earlier driver has are taken over.

    The same for any number of workers, restarts and orders; see `networks.norm_passes`. Memory is that of a tile: what a pass looks at is kept by
    nobody.

    Args:
        config: The run.
        plan: Its plan, whose statistics are of the whole volume.
        rule: How stored values become the network's input, with its numbers.
        driver: Of its output.
        workers: Lends workers for so many tiles.
        tell: Told now and then how far it is.

    Raises:
        ModelError: The checkpoint is not the plan's.
        StorageError, InferenceError: A tile could not be measured, and all others are kept; or statistics are not finite.
    """
    directory, grid, whole = driver.directory, plan.grid, plan.model.frozen
    if not isinstance(whole, WholeVolume):
        raise ValueError("The plan's statistics are not of the whole volume.")
    checkpoint = load_checkpoint(directory.checkpoint_path(plan), padding=plan.model.architecture.padding)
    check_same(checkpoint, plan)
    measurement = NormMeasurement(checkpoint, grid)

    def about(tile: int) -> str:
        return f"{grid.tile(tile)} in pass {measurement.number} over the norms"

    with ExitStack() as stack:
        pool = ledger = None
        word = Word(tell)
        while now := measurement.now:
            number = measurement.number
            check_finite(measurement.numbers, "the whole volume")
            of = _digest(plan, rule, measurement)
            for record in directory.parts():
                if record.of == of and 0 <= record.part < len(grid) and measurement.number == number:
                    measurement.add(record.part, record.found)
            if measurement.number != number or measurement.now is None:
                continue
            if pool is None or ledger is None:
                pool = stack.enter_context(workers(len(grid)))
                ledger = stack.enter_context(directory.survey_ledger())
            directory.write_norms(of, measurement.numbers)
            job = norm_passes.NormJob(config.output.url, plan.fingerprint, driver.token, number, of, rule)
            work = Work(
                functools.partial(norm_passes.prepare, job),
                functools.partial(norm_passes.look, job),
                run=f"{driver.token}-norms-{number}",
            )
            to_do = measurement.to_do
            log.info("pass %d of %d, maps of %s: %d tiles", number, whole.passes, ", ".join(now.maps), len(to_do))
            for record in records_of(work, to_do, about, config, driver, pool, ledger):
                measurement.add(record.part, record.found)
                word.tell(functools.partial(_said, measurement, whole, len(grid)))
    check_finite(measurement.numbers, "the whole volume")
    figures = {
        "volume": "whole",
        "passes": whole.passes,
        "multiply_adds": whole.multiply_adds,
        "arithmetic": round(whole.multiply_adds / plan.cost.one_pass_multiply_adds, 3),
    }
    return Frozen(measurement.numbers, figures)


def _digest(plan: Plan, rule: Normalization, measurement: NormMeasurement) -> str:
    files = plan.stored.signature if plan.stored else ""
    maps = measurement.now.maps if measurement.now else ()
    return digest_of_norm_pass(plan.surveyed_over, files, rule, maps, measurement.numbers)


def _said(measurement: NormMeasurement, whole: WholeVolume, tiles: int) -> str:
    """How far it is; empty at its end."""
    if measurement.now is None:
        return ""
    done = tiles - len(measurement.to_do)
    return f"survey: norms, pass {measurement.number} of {whole.passes}, {done} of {tiles} tiles"

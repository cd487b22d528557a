"""The survey stage: plan.json -> statistics.json, the numbers by which the input's values become the network's.

Where the plan has its numbers (they follow from the rule, or an earlier version's plan measured them) there is nothing to survey, and no file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from pipeline.cluster.pool import Pool, SharedPool, StartedWorkers
from pipeline.core.frozen import Frozen, WholeVolume
from pipeline.core.ledger import Progress
from pipeline.core.normalization import Normalization
from pipeline.core.plan import Plan
from pipeline.core.statistics import InconsistentPartsError, Statistics, Survey
from pipeline.errors import InferenceError, StorageError
from pipeline.inference.frozen import measure_frozen
from pipeline.inference.norm_passes import measure_norms
from pipeline.inference.session import workers_of
from pipeline.inference.survey import measure_missing
from pipeline.outputs.rundir import Driver
from pipeline.stages.run import Run
from pipeline.stages.source import confirm, open_source

log = logging.getLogger("pipeline")


def survey(
    run: Run,
    tell: Callable[[str], None] = lambda _: None,
    on_dashboard: Callable[[str], None] = lambda _: None,
    shared: SharedPool | None = None,
    started: StartedWorkers | None = None,
) -> Statistics | None:
    """Measure what the plan's rule asks of the whole volume, in passes by the workers.

    Safe to run again after any end: what parts of a pass gave is kept as it comes, and the numbers do not depend on who measured which.

    Args:
        run: The run; its plan must have been made.
        tell: Told now and then how far it is.
        on_dashboard: Told where Dask's dashboard is, where there is one.
        shared: Workers that this run shares with others; it has its own otherwise.
        started: Workers of its own that are started already; in the end they are left for its tiles.

    Returns:
        What was measured, now or before; None where the plan has its numbers.

    Raises:
        PlanError: The volume holds values that are not finite.
        StorageError: It cannot be read; or tiles that are done stand by other numbers.
        InferenceError: A part could not be measured, or the input changed meanwhile.
    """
    plan, directory = run.plan, run.directory
    with run.lock() as driver, run.log("survey"):
        if not plan.is_measured:
            log.info("nothing to survey: the plan has its numbers, %s", told(plan.normalization))
            return None
        progress = run.progress()
        statistics = statistics_of(run, progress)
        if statistics is None:

            def workers(parts: int) -> AbstractContextManager[Pool]:
                return workers_of(
                    parts, run.config, plan, progress, directory, on_dashboard, shared, started, keep=True
                )

            survey = plan.survey
            numbers = plan.normalization if survey is None else _measure(run, survey, driver, workers, tell)
            statistics = Statistics(numbers, plan.surveyed_over, _freeze(run, numbers, driver, workers, tell))
        if directory.load_statistics() != statistics:
            directory.write_statistics(statistics)
        directory.drop_parts()
        log.info("statistics %s: %s", statistics.digest[:12], told(statistics.normalization))
        if statistics.frozen:
            log.info("%d norms with fixed statistics: %s", len(statistics.frozen.numbers), statistics.frozen.figures)
        return statistics


def _measure(
    run: Run,
    passes: Survey,
    driver: Driver,
    workers: Callable[[int], AbstractContextManager[Pool]],
    tell: Callable[[str], None],
) -> Normalization:
    """The numbers, of an input that was the same all the while. What was measured of another is not kept: it may be put back.

    Raises:
        PlanError, StorageError, InferenceError: As of `survey`.
    """
    try:
        numbers = measure_missing(run.config, run.plan, passes, driver, workers, tell)
    except InconsistentPartsError as error:
        run.directory.drop_parts()
        raise InferenceError(
            f"The input '{run.plan.source.url}' changed while the survey read it, or is not read alike each time: a pass found {error}. "
            "Nothing is kept of this survey. See that nobody writes to the input, and run again."
        ) from error
    try:
        confirm(run)
    except InferenceError:
        run.directory.drop_parts()
        raise
    return numbers


def _freeze(
    run: Run,
    numbers: Normalization,
    driver: Driver,
    workers: Callable[[int], AbstractContextManager[Pool]],
    tell: Callable[[str], None],
) -> Frozen | None:
    """Statistics of the network's norms over the whole input; None where it has none. Of a sample in this process, since that is small; of the
    whole volume by workers.

    Raises:
        ModelError, PlanError, StorageError, InferenceError: As of `survey`.
    """
    if run.plan.model.frozen is None:
        return None
    tell(f"survey: statistics of norms over {run.plan.model.frozen}")
    if isinstance(run.plan.model.frozen, WholeVolume):
        frozen: Frozen | None = measure_norms(run.config, run.plan, numbers, driver, workers, tell)
    else:
        frozen = measure_frozen(run.plan, run.directory.checkpoint_path(run.plan), open_source(run), numbers)
    try:
        confirm(run)
    except InferenceError:
        run.directory.drop_parts()
        raise
    return frozen


def surveyed(run: Run, progress: Progress | None = None) -> Plan:
    """The plan of a run with the numbers that its survey has measured, where it has.

    Raises:
        StorageError: Tiles that are done stand by others.
    """
    if not run.plan.is_measured:
        return run.plan
    return replace(run.plan, statistics=statistics_of(run, progress or run.progress()))


def statistics_of(run: Run, progress: Progress) -> Statistics | None:
    """What is measured of a run's input: by its file; where that is lost, by the ledger, as long as tiles stand by it. None where nothing is.

    Raises:
        StorageError: The file has other numbers than those by which tiles were computed.
    """
    plan, path = run.plan, run.directory.statistics_path
    there = run.directory.load_statistics()
    if there is not None and there.over != plan.surveyed_over:
        log.info("'%s' is of other voxels, or by another rule, and is passed over", path)
        there = None
    if not progress.count("done") or (there is not None and there.digest == progress.stand_by):
        return there
    if progress.surveyed is None:  # its record is damaged
        if there is None:
            log.warning("'%s' is not there, and the ledger has lost its numbers: they are measured again", path)
            return None
        raise StorageError(
            f"'{path}' has other numbers ({told(there.normalization)}, digest {there.digest[:12]}) than those by which "
            f"{progress.count('done'):,} of {progress.total:,} tiles of '{plan.output.url}' were computed (digest {progress.stand_by[:12]}; the ledger "
            f"has lost the numbers). Tiles of two normalisations are never mixed. Delete '{path}', and it is measured again; to start over with "
            f"others, delete the output and '{run.directory.path}'."
        )
    if there is None:
        log.warning("'%s' is not there, or not whole: its numbers are taken from the ledger", path)
        return Statistics.from_dict(progress.surveyed.values)
    if there.digest != progress.surveyed.digest:
        before = Statistics.from_dict(progress.surveyed.values)
        raise StorageError(
            f"'{path}' has other numbers than those by which {progress.count('done'):,} of {progress.total:,} tiles of "
            f"'{plan.output.url}' were computed: {told(there.normalization)} (digest {there.digest[:12]}) there, "
            f"{told(before.normalization)} (digest {before.digest[:12]}) in '{run.directory.ledger_path}'. Tiles of two normalisations are never "
            f"mixed. Delete '{path}', and it is made again from the ledger; to start over with others, delete the output and "
            f"'{run.directory.path}'."
        )
    return there


def told(numbers: Normalization) -> str:
    """A normalisation for a person, to its last digit."""
    return (
        "as stored" if numbers.mode == "none" else f"{numbers.mode}: (value - {numbers.offset!r}) * {numbers.scale!r}"
    )

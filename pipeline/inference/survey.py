"""The survey stage's inside: parts of passes to workers, what they give into a record, and the numbers that it adds up to."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np

from pipeline.cluster import survey
from pipeline.cluster.dispatch import Work, dispatch
from pipeline.cluster.pool import Pool
from pipeline.config import RunConfig
from pipeline.core.assignments import Outcome
from pipeline.core.normalization import Normalization
from pipeline.core.plan import Plan
from pipeline.core.statistics import Measurement, PartRecord, Parts, Survey, digest_of_pass
from pipeline.errors import InferenceError, PipelineError
from pipeline.outputs.rundir import Driver, LedgerWriter, RunDirectory
from pipeline.places.credentials import redacted

log = logging.getLogger("pipeline")

SAY_SECONDS = 15.0
"""Between two words on how far it is."""


def measure_missing(
    config: RunConfig,
    plan: Plan,
    passes: Survey,
    driver: Driver,
    workers: Callable[[int], AbstractContextManager[Pool]],
    tell: Callable[[str], None],
) -> Normalization:
    """The numbers of a plan's rule, by the passes that it names; what an earlier driver has measured of them is taken over.

    The same for any number of workers, restarts and orders; see `core.statistics`.

    Args:
        config: The run.
        plan: Its plan.
        passes: Its survey.
        driver: Of its output.
        workers: Lends workers for so many parts.
        tell: Told now and then how far it is.

    Raises:
        PlanError: The volume holds values that are not finite.
        StorageError, InferenceError: A part could not be measured; all others are kept.
    """
    source, directory = plan.source, driver.directory
    parts = Parts(source.shape, passes.box)
    measurement = Measurement(plan.normalization, source.dtype, source.channels * source.voxels, len(parts))
    files = plan.stored.signature if plan.stored else ""
    _take_over(measurement, directory, plan, files)

    def about(part: int) -> str:
        return f"Part {part} of pass {measurement.number} of the survey, from {next(parts.boxes(part))} on,"

    if measurement.now:
        with workers(len(parts)) as pool, directory.survey_ledger() as ledger:
            word = Word(tell)
            while measurement.now:
                of = digest_of_pass(plan.surveyed_over, files, measurement.now)
                job = survey.SurveyJob(config.output.url, plan.fingerprint, measurement.now, of, driver.token)
                work = Work(
                    functools.partial(survey.prepare, job),
                    functools.partial(survey.look, job),
                    run=f"{driver.token}-survey-{measurement.number}",
                )
                log.info("pass %d, %s: %d parts, %d workers wanted", *_about(measurement), pool.workers)
                for record in records_of(work, measurement.to_do, about, config, driver, pool, ledger):
                    measurement.add(record.part, record.found)
                    word.tell(functools.partial(_said, measurement, passes))
    if measurement.result is None:
        raise InferenceError(
            f"The survey of '{source.url}' came to no end. This is a defect of Halotile: please report it."
        )
    return measurement.result


def _about(measurement: Measurement) -> tuple[int, str, int]:
    return measurement.number, measurement.now.kind if measurement.now else "", len(measurement.to_do)


def _take_over(measurement: Measurement, directory: RunDirectory, plan: Plan, files: str) -> None:
    """Take in what is recorded of the present pass, and of those that follow from it."""
    at = 0
    while measurement.now and measurement.number > at:
        at = measurement.number
        of = digest_of_pass(plan.surveyed_over, files, measurement.now)
        for record in directory.parts():
            if record.of == of and 0 <= record.part < measurement.parts and measurement.number == at:
                measurement.add(record.part, record.found)


def records_of(
    work: Work,
    to_do: np.ndarray,
    about: Callable[[int], str],
    config: RunConfig,
    driver: Driver,
    pool: Pool,
    ledger: LedgerWriter,
) -> Iterator[PartRecord]:
    """What the parts of a pass give, as they come; each is kept.

    Args:
        work: What workers do with a part.
        to_do: Parts.
        about: Begins a sentence on a part, for errors.
        config: The run.
        driver: Of its output.
        pool: Workers.
        ledger: Where records go.

    Raises:
        PipelineError: One gave nothing, and why.
        InferenceError: What one gave came damaged.
    """
    outcomes = dispatch(pool, work, to_do, retries=config.cluster.retries, is_cancelled=driver.is_cancelled)
    try:
        for outcome in outcomes:
            record = PartRecord.from_line(_line(outcome, about))
            if record is None:
                raise InferenceError(
                    "What a worker sent of the survey came damaged: its checksum is not its own. Run again to resume."
                )
            ledger.append(record)
            yield record
    finally:
        outcomes.close()


def _line(outcome: Outcome, about: Callable[[int], str]) -> str:
    """What a part gave, as its record's line.

    Raises:
        PipelineError: It gave nothing, and why.
    """
    if not outcome.failed:
        return str(outcome.result)
    error = outcome.error
    if error is None:
        raise InferenceError(
            f"{about(outcome.index)} failed: its worker vanished each time, {outcome.attempt} times, the last times with no other part on it. "
            "Likely the memory is too small (see cluster.memory_gb, and the limits of the machine), or something outside ends the "
            "process. What other parts gave is kept: run again to resume."
        )
    if isinstance(error, PipelineError):
        raise error
    raise InferenceError(redacted(f"{about(outcome.index)} failed: {type(error).__name__}: {error}")) from error


class Word:
    """How far a survey is, now and then."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._said = time.monotonic()

    def tell(self, text: Callable[[], str]) -> None:
        """Say it, where the last word was a while ago and there is something to say."""
        if time.monotonic() - self._said >= SAY_SECONDS and (said := text()):
            self._said = time.monotonic()
            self._tell(said)


def _said(measurement: Measurement, passes: Survey) -> str:
    """How far it is; empty at its end."""
    number, kind, to_do = _about(measurement)
    if not measurement.now:
        return ""
    done = measurement.parts - to_do
    most = "up to " if passes.passes > 1 else ""
    return f"survey: pass {number} of {most}{passes.passes} ({kind}), {done} of {measurement.parts} parts"

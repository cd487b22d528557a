"""What a worker process does with a part of a pass over the input: it reads its boxes, and sends back what they add up to."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from distributed import get_worker

from pipeline.cluster.worker import SURVEYED, ends_at, plan_of
from pipeline.core.plan import Plan
from pipeline.core.statistics import PartRecord, Parts, Pass
from pipeline.errors import StorageError
from pipeline.outputs.rundir import RunDirectory
from pipeline.volumes.values import finite_values
from pipeline.volumes.volume import Volume, open_volume

_looking = threading.Lock()
"""One part at a time a process, also where somebody gave a worker several threads: memory is reckoned for one."""


@dataclass(frozen=True, slots=True)
class SurveyJob:
    """What a worker is told of a pass.

    Args:
        output: Path of the output; the plan lies beside it.
        fingerprint: Of the plan.
        now: The pass.
        of: Its digest, which goes into records.
        token: Names the driver.
    """

    output: str
    fingerprint: str
    now: Pass
    of: str
    token: str

    @property
    def input(self) -> tuple[str, str, str]:
        """What is opened for it, and for other passes of the same driver."""
        return self.output, self.fingerprint, self.token


def prepare(job: SurveyJob) -> float | None:
    """Find out that the input can be opened here, before any part is begun: one error is told once.

    Returns:
        When this process will be ended, seconds since the epoch; None where it will not.
    """
    with _looking:
        _open(job)
    return ends_at()


def look(job: SurveyJob, part: int) -> str:
    """One part of a pass, as the line of its record: small, and whole if its checksum is. Nothing is written.

    Raises:
        StorageError: The input cannot be read, or the plan is another.
        PlanError: It holds values that are not finite.
    """
    with _looking:
        plan, source, parts = _open(job)
        numbers = job.now.look(finite_values(source, box, plan.nonfinite) for box in parts.boxes(part))
    return PartRecord(part, job.of, numbers).to_line()


def _open(job: SurveyJob) -> tuple[Plan, Volume, Parts]:
    """What a job reads. The worker keeps it for further parts of the same driver, as it keeps a tile's job, until it lets go."""
    kept = vars(get_worker()).setdefault(SURVEYED, {})
    if job.input not in kept:
        kept.clear()
        kept[job.input] = _opened(job)
    opened: tuple[Plan, Volume, Parts] = kept[job.input]
    return opened


def _opened(job: SurveyJob) -> tuple[Plan, Volume, Parts]:
    directory = RunDirectory(job.output)
    plan = plan_of(directory, job.fingerprint)
    if plan.survey is None:
        raise StorageError(f"The plan in '{directory.path}' has no survey.")
    volume = open_volume(plan.source.url, plan.source.selection)
    return plan, directory.counted(plan, volume), Parts(plan.source.shape, plan.survey.box)

"""One volume of a dataset: which version is asked for, the stages that make it, and the switch that shows it to readers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline import stages
from pipeline.cluster.pool import SharedPool
from pipeline.config import RunConfig
from pipeline.core.plan import Plan
from pipeline.credentials import redacted
from pipeline.dataset.catalogue import Entry
from pipeline.dataset.outcome import Outcome, read_mark, write_mark
from pipeline.dataset.settings import DatasetConfig
from pipeline.dataset.version import Settled, published, settled
from pipeline.errors import BusyError, PipelineError, StorageError
from pipeline.planning import Machine
from pipeline.storage.publication import Publication, open_publication
from pipeline.storage.rundir import RunDirectory

log = logging.getLogger("pipeline")


@dataclass(frozen=True, slots=True)
class Team:
    """Who computes for the volumes of a set.

    Args:
        machine: What the workers have.
        pool: The workers; None where there is nothing that they could do.
        like: A plan whose threads, dtype and device new plans take.
    """

    machine: Machine
    pool: SharedPool | None
    like: Plan | None


@dataclass(frozen=True)
class VolumeOfSet:
    """A volume, and its place in the output.

    Args:
        config: Of the set; its model is a file.
        entry: As the catalogue has it.
        signature: Of its files, where they were looked at.
        mark: What had become of it by then.
        moved: Whether it may lie elsewhere than when it was done.
    """

    config: DatasetConfig
    entry: Entry
    signature: str = ""
    mark: Outcome | None = None
    moved: bool = False

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def output(self) -> str:
        """Path or URL of its output."""
        return f"{self.config.output.url.rstrip('/')}/{self.name}"

    @property
    def folder(self) -> Path:
        """Its local folder."""
        return self.config.home / self.name

    def publication(self) -> Publication:
        return open_publication(self.output, self.name, self.config.staging)

    def run(self, image: str) -> RunConfig:
        """The run that writes to an image's path."""
        return self.config.run(self.entry.url, image, level=self.entry.level, axes=self.entry.axes)

    def outcome(self, state: str, reason: str = "") -> Outcome:
        """What became of it, in short."""
        return Outcome(self.name, self.entry.url, state, reason, signature=self.signature)  # type: ignore[arg-type]


def skipped(volume: VolumeOfSet, machine: Machine) -> Outcome | None:
    """Its outcome, where readers see what is asked for already; costs a look at metadata.

    Raises:
        PipelineError: It cannot be a run any more, or is another volume.
    """
    before = read_mark(volume.folder)
    _refuse_another(volume, before)
    found = published(volume.run, volume.publication(), machine)
    if found is None:
        return None
    reason = f"version {found.plan.fingerprint[:12]} is there and verified"
    outcome = _told(volume.outcome("skipped", reason), volume, found)
    if before and before.url != volume.entry.url:
        with volume.publication().exclusive():
            write_mark(volume.folder, outcome)
    return outcome


def _refuse_another(volume: VolumeOfSet, before: Outcome | None) -> None:
    """Refuse an output that was made from another place: a fingerprint knows of neither places nor voxels.

    Raises:
        StorageError: It was.
    """
    if before and before.url != volume.entry.url and not volume.moved:
        raise StorageError(
            f"Output '{volume.output}' was made from '{before.url}', but the catalogue names '{volume.entry.url}' now. If it is the "
            "same volume and was moved, run once with --moved; if it is another one, give it another name in the catalogue, "
            f"or delete '{volume.folder}'."
        )


def segment(volume: VolumeOfSet, team: Team, on_stage: Callable[[str], None] = lambda _: None) -> Outcome:
    """Make the version that is asked for, verify it, and only then show it to readers. Never raises what is the volume's own.

    Args:
        volume: The volume.
        team: Who computes.
        on_stage: Told the name of each stage before it begins.

    Raises:
        KeyboardInterrupt: It was asked to end.
    """
    began = time.perf_counter()
    publication = volume.publication()
    try:
        with publication.exclusive():
            before = read_mark(volume.folder)
            if volume.signature and before and before != volume.mark and before.signature == volume.signature:
                return before if before.state == "failed" else replace(before, state="skipped", reason="done meanwhile")
            _refuse_another(volume, before)
            outcome = _attempted(volume, publication, team, on_stage)
            return _marked(volume, replace(outcome, seconds=round(time.perf_counter() - began, 3)), before)
    except BusyError as error:
        return volume.outcome("busy", str(error))
    except StorageError as error:
        return volume.outcome("failed", str(error))
    except OSError as error:  # the lock itself
        return volume.outcome("failed", f"Its folder '{volume.folder}' cannot be written ({error}).")


def _attempted(
    volume: VolumeOfSet, publication: Publication, team: Team, on_stage: Callable[[str], None]
) -> Outcome:
    try:
        return _made(volume, publication, team, on_stage)
    except PipelineError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error}. Make room or repair the file system, then run again: finished tiles are kept."
    except Exception as error:  # one volume that nobody foresaw does not stop the others
        log.exception("%s failed in a way that nobody foresaw", volume.name)
        reason = f"{type(error).__name__}: {error}"
    log.error("%s failed: %s", volume.name, redacted(reason))
    return replace(volume.outcome("failed", redacted(reason)), seen=_seen(publication))


def _seen(publication: Publication) -> str:
    """Fingerprint of what readers see of a volume that failed."""
    try:
        current = publication.current()
    except (PipelineError, OSError) as error:
        log.warning("%s", error)
        return ""
    return current.fingerprint if current else ""


def _made(volume: VolumeOfSet, publication: Publication, team: Team, on_stage: Callable[[str], None]) -> Outcome:
    on_stage("plan")
    found = settled(volume.run, publication, team.machine, team.like)
    if found.is_current:  # another process has made it since it was looked for
        return _told(volume.outcome("skipped", "it was done meanwhile"), volume, found)
    computed = 0 if publication.is_kept(found.plan.fingerprint) else _computed(found, team, on_stage)
    on_stage("publish")
    with stages.stage_log(RunDirectory(found.config.output.url), found.config, "publish"):
        _publish(volume, publication, found.plan)
    return replace(_told(volume.outcome("done"), volume, found), tiles=computed)


def _computed(found: Settled, team: Team, on_stage: Callable[[str], None]) -> int:
    """The stages; gives the tiles that were computed now."""
    stages.adopt(found.config, found.plan)
    with stages.driving(found.config):
        on_stage("infer")
        computed = stages.infer(found.config, shared=team.pool).tiles
        on_stage("verify")
        stages.verify(found.config)
        on_stage("report")
        stages.report(found.config)
    return computed


def _publish(volume: VolumeOfSet, publication: Publication, plan: Plan) -> None:
    about = {"input": plan.source.url, "model": _model(plan), "voxels": plan.source.voxels}
    publication.publish(plan.fingerprint, about)
    publication.free(plan.fingerprint)
    gone = publication.expire(volume.config.keep.rule, datetime.now(UTC), spare={plan.fingerprint})
    log.info("published %s%s", plan.fingerprint[:12], f"; {len(gone)} old version(s) removed" if gone else "")


def _told(outcome: Outcome, volume: VolumeOfSet, found: Settled) -> Outcome:
    """With what its version is."""
    plan = found.plan
    place = Path(found.config.output.url).relative_to(volume.folder)
    return replace(
        outcome,
        fingerprint=plan.fingerprint,
        seen=plan.fingerprint,
        image=f"{volume.output}/{place}",
        model=_model(plan),
        voxels=plan.source.voxels,
    )


def _model(plan: Plan) -> str:
    """The network as a person names it."""
    return f"{plan.model.title}, weights {plan.model.sha256[:12]}"


def _marked(volume: VolumeOfSet, outcome: Outcome, before: Outcome | None) -> Outcome:
    """The outcome as it is left beside the versions, where that can be written."""
    again = before is not None and before.state == "failed" and before.signature == outcome.signature
    attempts = (before.attempts if again and before else 0) + 1 if outcome.state == "failed" else 0
    try:
        return write_mark(volume.folder, replace(outcome, attempts=attempts))
    except OSError as error:
        log.warning("what became of %s could not be noted in its folder: %s", volume.name, error)
        return outcome

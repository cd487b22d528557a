"""One volume of a dataset: which version is asked for, the stages that make it, and the switch that shows it to readers."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline import stages
from pipeline.cluster.pool import SharedPool
from pipeline.config import RunConfig
from pipeline.core.machine import Machine
from pipeline.core.plan import Plan
from pipeline.core.stored import Inventory
from pipeline.dataset.catalogue import Entry
from pipeline.dataset.housekeeping import clear, free, tidy
from pipeline.dataset.origin import Origin, origin_of, write_origin
from pipeline.dataset.outcome import Outcome, State, read_mark, write_mark
from pipeline.dataset.settings import DatasetConfig
from pipeline.dataset.version import ChosenVersion, choose_version, current_version
from pipeline.errors import BusyError, PipelineError, StorageError
from pipeline.outputs.metadata import described_image, exactness
from pipeline.places.credentials import redacted
from pipeline.publishing.publication import Publication, open_publication
from pipeline.publishing.version_folder import Published

log = logging.getLogger("pipeline")


@dataclass(frozen=True, slots=True)
class DatasetWorkers:
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
class Member:
    """A volume, and its place in the output.

    Args:
        config: Of the set; its model is a file.
        entry: As the catalogue has it.
        signature: Of its files, where they were looked at.
        mark: What had become of it by then.
        moved: Whether it may lie elsewhere, or have other times, than when it was done or begun: its voxels are the same.
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

    @property
    def places(self) -> str:
        """All that there is of its output, for a person who is to delete it."""
        return " and ".join(f"'{place}'" for place in dict.fromkeys((self.output, str(self.folder))))

    def origin(self) -> Origin:
        """What it would be made from now; lists its files."""
        return replace(origin_of(self.run(str(self.folder / "plan"))), url=self.entry.url)

    def publication(self) -> Publication:
        return open_publication(self.output, self.name, self.config.staging)

    def run(self, image: str) -> RunConfig:
        """The run that writes to an image's path."""
        return self.config.run(self.entry.url, image, self.entry.reading)

    def outcome(self, state: State, reason: str = "") -> Outcome:
        """What became of it, in short."""
        return Outcome(self.name, self.entry.url, state, reason, signature=self.signature)


def current_outcome(volume: Member, machine: Machine) -> Outcome | None:
    """Its outcome, where readers see what is asked for already; costs a look at metadata, mostly.

    `skipped`; or `failed`, where its files are known to have changed since.

    Raises:
        PipelineError: It cannot be a run any more, or is another volume.
    """
    publication, before = volume.publication(), read_mark(volume.folder)
    current = publication.current()
    if current is None:
        return None
    source = _source(current, before)
    _refuse_another(volume, source)
    version = current_version(volume.run, publication, machine, current)
    return (
        None
        if version is None
        else _describe(publication, version, _outcome_of_current(volume, version, source, before))
    )


def note(volume: Member, outcome: Outcome) -> Outcome:
    """Bring the mark in its folder up to an outcome, and remove what readers need no more; gives the outcome.

    Raises:
        BusyError: Somebody else writes there.
    """
    publication, before = volume.publication(), read_mark(volume.folder)
    tidy(publication, outcome.seen, volume.config.keep.rule)
    now = replace(outcome, signature=outcome.signature or before.signature) if before else outcome
    if before and before.state in ("done", "skipped") and _content(before) == _content(now):
        return outcome
    with publication.exclusive():
        return _mark(volume, outcome, read_mark(volume.folder))


def _content(mark: Outcome) -> tuple[str, ...]:
    return ("skipped" if mark.state == "done" else mark.state, mark.url, mark.seen, mark.seen_url, mark.signature)


def _source(current: Published, before: Outcome | None) -> Origin:
    """What readers see was made from; a mark knows of moves since."""
    if before and before.seen == current.fingerprint and before.seen_url:
        return Origin(before.seen_url, before.seen_files)
    return Origin(str(current.about.get("input", "")), str(current.about.get("files", "")))


def _refuse_another(volume: Member, source: Origin) -> None:
    """Refuse to take what was made from another place for this volume's: a fingerprint knows of neither places nor voxels.

    Raises:
        StorageError: It was.
    """
    if source.url and source.url != volume.entry.url and not volume.moved:
        raise StorageError(
            f"Output '{volume.output}' was made from '{source.url}', but the catalogue names '{volume.entry.url}' now. If it is the "
            "same volume and was moved, run once with --moved; if it is another one, give it another name in the catalogue, "
            f"or delete {volume.places}."
        )


def _outcome_of_current(volume: Member, version: ChosenVersion, source: Origin, before: Outcome | None) -> Outcome:
    """Of what readers see already. The files are listed only where something says that they may have changed."""
    suspect = volume.signature or volume.moved or (before and before.state == "failed")
    origin = volume.origin() if suspect else replace(source, url=volume.entry.url)
    if source.differs(origin) and not volume.moved:
        reason = (
            "Its files have changed since its output was made from them, and the output still is of the old ones. To make it "
            f"again, delete {volume.places}; to keep both, bring the new files under another name; if the voxels are the same, "
            "run `halotile reprocess --moved` once."
        )
        outcome = replace(
            _with_version(volume.outcome("failed", reason), volume, version, source), fingerprint="", image=""
        )
        return replace(outcome, attempts=volume.config.watch.attempts)  # it is told once
    reason = f"version {version.plan.fingerprint[:12]} is there and verified"
    return _with_version(volume.outcome("skipped", reason), volume, version, origin)


def _describe(publication: Publication, version: ChosenVersion, outcome: Outcome) -> Outcome:
    """Bring a version's metadata up to what describes its input now, without reading a voxel; gives the outcome, which says so."""
    space = version.plan.source.space
    if outcome.state != "skipped" or version.was in (None, space):
        return outcome
    try:
        with publication.exclusive():
            stages.describe(
                version.run,
                version.plan,
                lambda: publication.describe(version.plan.fingerprint, described_image(version.plan)),
            )
    except (StorageError, OSError) as error:
        log.warning(
            "%s: its voxel size is told as %s now, and its metadata still say %s: %s",
            publication.output,
            space,
            version.was,
            error,
        )
        return replace(
            outcome,
            reason=f"{outcome.reason}; its metadata still tell a voxel size of {version.was}, the input tells {space}",
        )
    return replace(
        outcome, reason=f"{outcome.reason}; its metadata were brought up to a voxel size of {space}, from {version.was}"
    )


def segment(volume: Member, team: DatasetWorkers) -> Outcome:
    """Make the version that is asked for, verify it, and only then show it to readers. Never raises what is the volume's own.

    Args:
        volume: The volume.
        team: Who computes.

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
            outcome = _attempt(volume, publication, team, before)
            return _mark(volume, replace(outcome, seconds=round(time.perf_counter() - began, 3)), before)
    except BusyError as error:
        return volume.outcome("busy", str(error))
    except StorageError as error:
        return volume.outcome("failed", str(error))
    except OSError as error:  # the lock itself
        return volume.outcome("failed", f"Its folder '{volume.folder}' cannot be written ({error}).")


def _attempt(volume: Member, publication: Publication, team: DatasetWorkers, before: Outcome | None) -> Outcome:
    try:
        return _make(volume, publication, team, before)
    except PipelineError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error}. Make room or repair the file system, then run again: finished tiles are kept."
    except Exception as error:  # one volume that nobody foresaw does not stop the others
        log.exception("%s failed in a way that nobody foresaw", volume.name)
        reason = f"{type(error).__name__}: {error}"
    log.error("%s failed: %s", volume.name, redacted(reason))
    return replace(volume.outcome("failed", redacted(reason)), seen=_fingerprint_seen(publication))


def _fingerprint_seen(publication: Publication) -> str:
    """Fingerprint of what readers see of a volume that failed."""
    try:
        current = publication.current()
    except (PipelineError, OSError) as error:
        log.warning("%s", error)
        return ""
    return current.fingerprint if current else ""


def _make(volume: Member, publication: Publication, team: DatasetWorkers, before: Outcome | None) -> Outcome:
    current = publication.current()
    source = _source(current, before) if current else Origin("")
    _refuse_another(volume, source)
    origin = volume.origin()
    begun_from = None if volume.moved else origin
    version = choose_version(volume.run, publication, team.machine, team.like, begun_from, origin.inventory)
    if version.is_current:  # another process has made it since it was looked for
        return _describe(publication, version, _outcome_of_current(volume, version, source, before))
    if current:  # its copy may be here still, where its publisher was killed
        free(publication, current.fingerprint)
    computed = 0
    if not publication.is_kept(version.plan.fingerprint):
        write_origin(version.run.directory, origin)
        computed = _compute(version, team, origin.inventory, moved=volume.moved)
        _refuse_changing(volume, origin)
    with version.run.log("publish"):
        _publish(volume, publication, version.plan, origin)
    return replace(_with_version(volume.outcome("done"), volume, version, origin), tiles=computed)


def _refuse_changing(volume: Member, origin: Origin) -> None:
    """Refuse to show what was computed while its files were written: some tiles are of the old ones.

    Raises:
        StorageError: They were.
    """
    if origin.differs(volume.origin()):
        raise StorageError(
            f"The files of '{volume.entry.url}' changed while it was segmented, so that its tiles may be of different voxels; nothing "
            "of it is published. Run it again when nobody writes to it any more: it is begun anew."
        )


def _compute(version: ChosenVersion, team: DatasetWorkers, inventory: Inventory | None, *, moved: bool) -> int:
    """Run the stages; gives the number of tiles that were computed now."""
    stages.adopt(version.run, version.plan, inventory, input_changed="keep" if moved else None)
    return stages.follow(version.run, stages.Host(shared=team.pool)).computed


def _publish(volume: Member, publication: Publication, plan: Plan, origin: Origin) -> None:
    _refuse_inexact(volume, plan)
    about = {"input": origin.url, "files": origin.files, "model": _model(plan), "voxels": plan.source.voxels}
    about |= exactness(plan)
    publication.publish(plan.fingerprint, about)
    log.info("published %s", plan.fingerprint[:12])
    clear(publication, plan.fingerprint, volume.config.keep.rule)


def _refuse_inexact(volume: Member, plan: Plan) -> None:
    """Show no output that is not exact to readers who were not told so.

    Raises:
        StorageError: The dataset's YAML does not say it.
    """
    if not plan.model.is_exact and volume.config.model.exact:
        raise StorageError(
            f"Version {plan.fingerprint[:12]} of '{volume.entry.url}' is not exact: it is blended from windows ({plan.model.window}), and "
            "the dataset's YAML does not say so. Nothing of it is published. Set model.exact to false and model.window there, or have it "
            "computed exactly."
        )


def _with_version(outcome: Outcome, volume: Member, version: ChosenVersion, origin: Origin) -> Outcome:
    """With what its version is, and was made from."""
    plan = version.plan
    place = Path(version.run.config.output.url).relative_to(volume.folder)
    return replace(
        outcome,
        fingerprint=plan.fingerprint,
        seen=plan.fingerprint,
        seen_url=origin.url,
        seen_files=origin.files,
        image=f"{volume.output}/{place}",
        model=_model(plan),
        voxels=plan.source.voxels,
    )


def _model(plan: Plan) -> str:
    """The network as a person names it."""
    return f"{plan.model.title}, weights {plan.model.sha256[:12]}"


def _mark(volume: Member, outcome: Outcome, before: Outcome | None) -> Outcome:
    """Leave the outcome beside the versions, where that can be written; gives it as it was left."""
    if before and not outcome.signature:  # what watchers saw holds
        outcome = replace(outcome, signature=before.signature)
    if before and outcome.state == "failed" and outcome.seen == before.seen:
        outcome = replace(outcome, seen_url=before.seen_url, seen_files=before.seen_files)
    if outcome.state == "failed" and volume.signature:
        again = before is not None and before.state == "failed" and before.signature == outcome.signature
        outcome = replace(outcome, attempts=max(outcome.attempts, (before.attempts if again and before else 0) + 1))
    try:
        return write_mark(volume.folder, outcome)
    except OSError as error:
        log.warning("what became of %s could not be noted in its folder: %s", volume.name, error)
        return outcome

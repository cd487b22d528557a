"""Which version of a volume's output a run is: one that is there, or a new one.

A plan that is there governs, as with a single run: where it agrees with what is asked for now, its version is the one. The
current version is asked first, then those that were begun last. So a volume that is done costs a look at metadata, a run that
was killed goes on, and a model that is set back finds the version that it once made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pipeline import stages
from pipeline.config import RunConfig
from pipeline.core.machine import Machine
from pipeline.core.plan import Plan
from pipeline.core.stored import Inventory
from pipeline.core.versions import Version
from pipeline.core.volume import Space
from pipeline.dataset.origin import Origin, read_origin
from pipeline.errors import ConfigError, ModelError, PlanError
from pipeline.planning.resolve import make_plan
from pipeline.publishing.publication import Publication
from pipeline.publishing.version_folder import Published

log = logging.getLogger("pipeline")

ANY_MEMORY = 2**60
"""Bytes; more than any tile that was ever computed needs."""


@dataclass(frozen=True, slots=True)
class ChosenVersion:
    """A version, and the run that makes it.

    Args:
        run: The run; its output is the version's image.
        plan: Its plan.
        is_current: Whether it is what readers see.
        was: Where its voxels lay by the plan that is stored; the plan here has it as the input tells it now.
    """

    run: stages.Run
    plan: Plan
    is_current: bool
    was: Space | None = None


def choose_version(
    run: Callable[[str], RunConfig],
    publication: Publication,
    machine: Machine,
    like: Plan | None,
    origin: Origin | None,
    inventory: Inventory | None = None,
) -> ChosenVersion:
    """The version that a configuration asks for. One that was begun from other files is begun anew.

    Args:
        run: The run that writes to an image's path.
        publication: Of the volume.
        machine: What its workers have.
        like: A plan of another volume of the set; see `make_plan`.
        origin: What it would be made from now; None: from the voxels that those that are there were made from.
        inventory: What is stored of the volume.

    Raises:
        StorageError, ModelError, ConfigError, PlanError: It cannot be a run; says what to do.
    """
    current = publication.current()
    version = current_version(run, publication, machine, current) if current else None
    if version := version or _find_begun(run, publication, machine, origin):
        return version
    earlier = next(_plans(publication, origin), None)  # its numbers hold, whatever else has changed
    place = stages.Run(run(str(publication.image("new"))))
    made = make_plan(place.config, machine, earlier=earlier and place.relocate(earlier), like=like, inventory=inventory)
    if _is_of_others(publication, made.fingerprint, origin):
        log.warning(
            "%s: its files have changed since it was begun; what was computed from the old ones is dropped",
            publication.output,
        )
        publication.discard(made.fingerprint)
    begun = stages.Run(run(str(publication.image(made.fingerprint))))
    return ChosenVersion(begun, begun.relocate(made), is_current=False)


def current_version(
    run: Callable[[str], RunConfig], publication: Publication, machine: Machine, current: Published
) -> ChosenVersion | None:
    """The current version, where it is the one that a configuration asks for."""
    return _match(run, publication, machine, current.fingerprint, is_current=True, is_made=True)


def _find_begun(
    run: Callable[[str], RunConfig], publication: Publication, machine: Machine, origin: Origin | None
) -> ChosenVersion | None:
    for version in _newest_first(publication):
        if _is_of_others(publication, version.fingerprint, origin):
            continue
        is_made = version.published is not None
        try:
            chosen = _match(run, publication, machine, version.fingerprint, is_current=False, is_made=is_made)
        except (ModelError, ConfigError) as error:  # it was begun on a device that is not here
            log.debug("%s: version %s does not go on here: %s", publication.output, version.fingerprint, error)
            continue
        if chosen:
            return chosen
    return None


def _match(
    run: Callable[[str], RunConfig],
    publication: Publication,
    machine: Machine,
    fingerprint: str,
    *,
    is_current: bool,
    is_made: bool,
) -> ChosenVersion | None:
    """A version that is there, where what is asked for now would be it. One that is made needs neither device nor memory here."""
    publication.recall(fingerprint)
    there = stages.Run(run(str(publication.image(fingerprint))))
    stored = there.directory.load_plan()
    if stored is None or stored.fingerprint != fingerprint:
        return None
    earlier = there.relocate(stored)
    asked = there.config
    if is_made:
        asked = asked.model_copy(update={"cluster": asked.cluster.model_copy(update={"memory_gb": "auto"})})
        machine = replace(machine, memory_bytes=ANY_MEMORY)
        if machine.device is None:
            machine = replace(machine, device=stored.compute.device, workers=machine.workers or 1)
    try:
        under = make_plan(asked, machine, earlier=earlier, governs=True)
    except PlanError:
        return None
    if under.fingerprint != fingerprint:
        return None
    return ChosenVersion(there, stages.redescribe(earlier, under), is_current, earlier.source.space)


def _is_of_others(publication: Publication, fingerprint: str, origin: Origin | None) -> bool:
    """Whether a version that is there was made from files that are not there any more."""
    if origin is None:
        return False
    publication.recall(fingerprint)
    made_from = read_origin(publication.directory(fingerprint))
    return made_from is not None and made_from.differs(origin)


def _plans(publication: Publication, origin: Origin | None) -> Iterator[Plan]:
    """Of the versions that are there, with what their surveys have measured; those of other files left out."""
    for version in _newest_first(publication):
        if _is_of_others(publication, version.fingerprint, origin):
            continue
        directory = publication.directory(version.fingerprint)
        if plan := directory.load_plan():
            yield replace(plan, statistics=directory.load_statistics() if plan.is_measured else None)


def _newest_first(publication: Publication) -> list[Version]:
    return sorted(publication.versions(), key=lambda version: version.dated, reverse=True)

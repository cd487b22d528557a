"""Which version of a volume's output a run is: one that is there, or a new one.

A plan that is there governs, as with a single run: where it agrees with what is asked for now, its version is the one. The
current version is asked first, then those that were begun last. So a volume that is done costs a look at metadata, a run that
was killed goes on, and a model that is set back finds the version that it once made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline import stages
from pipeline.config import RunConfig
from pipeline.core.plan import Plan
from pipeline.core.versions import Version
from pipeline.errors import PlanError
from pipeline.planning import Machine, make_plan
from pipeline.storage.publication import Publication
from pipeline.storage.rundir import RunDirectory


@dataclass(frozen=True, slots=True)
class Settled:
    """A version, and the run that makes it.

    Args:
        config: The run; its output is the version's image.
        plan: Its plan.
        is_current: Whether it is what readers see.
    """

    config: RunConfig
    plan: Plan
    is_current: bool


def settled(
    run: Callable[[str], RunConfig], publication: Publication, machine: Machine, like: Plan | None
) -> Settled:
    """The version that a configuration asks for.

    Args:
        run: The run that writes to an image's path.
        publication: Of the volume.
        machine: What its workers have.
        like: A plan of another volume of the set; see `make_plan`.

    Raises:
        StorageError, ModelError, ConfigError, PlanError: It cannot be a run; says what to do.
    """
    found = published(run, publication, machine) or _begun(run, publication, machine)
    if found:
        return found
    earlier = next(_plans(publication), None)  # its statistics hold, whatever else has changed
    place = run(str(publication.image("new")))
    made = make_plan(place, machine, earlier=earlier and stages.placed(earlier, place), like=like)
    config = run(str(publication.image(made.fingerprint)))
    return Settled(config, stages.placed(made, config), is_current=False)


def published(run: Callable[[str], RunConfig], publication: Publication, machine: Machine) -> Settled | None:
    """The current version, where it is the one that a configuration asks for."""
    current = publication.current()
    return _agreeing(run, publication, machine, current.fingerprint, is_current=True) if current else None


def _begun(run: Callable[[str], RunConfig], publication: Publication, machine: Machine) -> Settled | None:
    for version in _newest_first(publication):
        if found := _agreeing(run, publication, machine, version.fingerprint, is_current=False):
            return found
    return None


def _agreeing(
    run: Callable[[str], RunConfig], publication: Publication, machine: Machine, fingerprint: str, *, is_current: bool
) -> Settled | None:
    """A version that is there, where what is asked for now would be it."""
    config = run(str(publication.image(fingerprint)))
    publication.recall(fingerprint)
    stored = RunDirectory(config.output.url).load_plan()
    if stored is None or stored.fingerprint != fingerprint:
        return None
    earlier = stages.placed(stored, config)
    try:
        under = make_plan(config, machine, earlier=earlier, governs=True)
    except PlanError:
        return None
    if under.fingerprint != fingerprint:
        return None
    return Settled(config, earlier, is_current)


def _plans(publication: Publication) -> Iterator[Plan]:
    for version in _newest_first(publication):
        if plan := RunDirectory(publication.image(version.fingerprint)).load_plan():
            yield plan


def _newest_first(publication: Publication) -> list[Version]:
    return sorted(publication.versions(), key=lambda version: version.dated, reverse=True)

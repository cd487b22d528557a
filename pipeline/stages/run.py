"""One run, as the stages hand it on: what was asked for, where it is kept, its plan, its output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pipeline.config import ModelConfig, RunConfig
from pipeline.core.ledger import Progress
from pipeline.core.plan import Model, Plan
from pipeline.errors import PlanError
from pipeline.logs import logged
from pipeline.outputs.image import Image
from pipeline.outputs.rundir import Driver, RunDirectory


@dataclass(frozen=True, eq=False)
class Run:
    """One run, built once of its configuration.

    Plan and output are read when they are first asked for, and stay as they were. Only the plan stage writes a plan: it reads
    the stored one itself, so that a `Run` that was given to it has the new one.

    Args:
        config: What is asked for.
        driver: The driver of its output, where the one who calls stages is it already; else each stage is it for itself.
    """

    config: RunConfig
    driver: Driver | None = None

    @cached_property
    def directory(self) -> RunDirectory:
        """Where the run is kept, `OUTPUT.run`."""
        return RunDirectory(self.config.output.url)

    @cached_property
    def plan(self) -> Plan:
        """The plan that the plan stage wrote, with paths as they are now.

        Raises:
            PlanError: There is none.
        """
        stored = self.directory.load_plan()
        if stored is None:
            raise PlanError(
                f"There is no plan in '{self.directory.path}'. Run `halotile plan` or `halotile run` first."
            )
        return self.relocate(stored)

    @cached_property
    def output(self) -> Image:
        """The image of the plan, opened.

        Raises:
            PlanError: There is no plan.
        """
        return Image(self.plan)

    @contextmanager
    def lock(self) -> Iterator[Driver]:
        """Hold the lock of its output's driver: it was given with the run, or is taken until the context ends.

        Raises:
            StorageError: Another drives it.
        """
        if self.driver is not None:
            yield self.driver
            return
        with self.directory.driver() as driver:
            yield driver

    def progress(self) -> Progress:
        """What the ledger adds up to for the plan, now."""
        return self.directory.progress(self.plan)

    def log(self, stage: str) -> AbstractContextManager[None]:
        """While open, what a stage logs is in the run's log."""
        return logged(self.directory.log_path, self.config.log, run=Path(self.config.output.url).name, stage=stage)

    def relocate(self, stored: Plan) -> Plan:
        """Give a stored plan the paths of now: stores may be moved, or copied, between two sessions."""
        config = self.config
        return replace(
            stored,
            source=replace(stored.source, url=config.input.url),
            output=replace(stored.output, url=config.output.url),
            model=_relocated(stored.model, config.model),
        )


def _relocated(stored: Model, config: ModelConfig) -> Model:
    """A stored model with the paths of now; of an ensemble, where it has as many networks."""
    members = config.ensemble or ()
    if len(members) != len(stored.members):
        return stored  # another model, which is told as such
    checkpoint = members[0].checkpoint if members else config.checkpoint
    return replace(
        stored,
        checkpoint=checkpoint,
        title=config.title,
        members=tuple(
            replace(member, checkpoint=now.checkpoint, title=now.title)
            for member, now in zip(stored.members, members, strict=True)
        ),
    )

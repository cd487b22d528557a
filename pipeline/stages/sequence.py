"""The stages that follow a plan, in order. It stands here once: the command, the flow and a dataset go over it.

The plan comes before: it is made, printed and refused before anybody drives the output or starts workers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

from pipeline.cluster.pool import SharedPool, StartedWorkers
from pipeline.inference.session import Advance
from pipeline.stages.driving import drive, workers_kept
from pipeline.stages.infer import infer
from pipeline.stages.report import report
from pipeline.stages.run import Run
from pipeline.stages.survey import survey
from pipeline.stages.verify import verify


@dataclass(frozen=True, slots=True)
class Host:
    """What the one who has the stages run brings along.

    Args:
        following: Entered with the output's path around the infer stage; gives what is told after each tile.
        on_dashboard: Told where Dask's dashboard is, where there is one.
        on_survey: Told now and then, in words, how far the survey is.
        on_report: Told the report's content, once it is written.
        shared: Workers that the run shares with others; it has its own otherwise.
        started: Workers of its own that are started already.
    """

    following: Callable[[str], AbstractContextManager[Callable[[Advance], None]]] = lambda _: nullcontext(
        lambda _: None
    )
    on_dashboard: Callable[[str], None] = lambda _: None
    on_survey: Callable[[str], None] = lambda _: None
    on_report: Callable[[dict[str, object]], None] = lambda _: None
    shared: SharedPool | None = None
    started: StartedWorkers | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """What stages came to; those of several add up.

    Args:
        computed: Tiles that were computed now.
        report: Content of `report.json`.
    """

    computed: int = 0
    report: dict[str, object] = field(default_factory=dict)

    def __add__(self, other: Account) -> Account:
        return Account(self.computed + other.computed, self.report | other.report)

    def to_dict(self) -> dict[str, object]:
        """The report's content, and `computed`."""
        return {**self.report, "computed": self.computed}


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the sequence.

    Args:
        name: Of its file and its function, in the log, and on Prefect's page.
        work: Does it; it can be run again alone.
    """

    name: str
    work: Callable[[Run, Host], Account]


def _survey(run: Run, host: Host) -> Account:
    survey(run, host.on_survey, host.on_dashboard, host.shared, host.started)
    return Account()


def _infer(run: Run, host: Host) -> Account:
    with host.following(run.config.output.url) as on_advance:
        return Account(computed=infer(run, on_advance, host.on_dashboard, host.shared, host.started).tiles)


def _verify(run: Run, _: Host) -> Account:
    verify(run)
    return Account()


def _report(run: Run, host: Host) -> Account:
    content = report(run)
    host.on_report(content)
    return Account(report=content)


SEQUENCE = (Stage("survey", _survey), Stage("infer", _infer), Stage("verify", _verify), Stage("report", _report))


def follow(run: Run, host: Host | None = None) -> Account:
    """Have a planned run's stages done, one after the other, as the one driver of its output. What is done already is not done again.

    Raises:
        PipelineError: A stage failed; those before it are done.
    """
    account = Account()
    host = host or Host()
    with drive(run) as run, workers_kept(run, host.started, host.shared) as started:
        for stage in SEQUENCE:
            account += stage.work(run, replace(host, started=started))
    return account

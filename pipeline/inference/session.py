"""The infer stage's inside: workers for a plan, tiles to them, their outcomes into the ledger."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pipeline.cluster import worker
from pipeline.cluster.dashboard import dashboard_link
from pipeline.cluster.dispatch import Work, dispatch
from pipeline.cluster.forwarding import forward
from pipeline.cluster.kind import WorkerSpec
from pipeline.cluster.pool import Pool, SharedPool, StartedWorkers, machine, open_pool
from pipeline.config import RunConfig
from pipeline.core.assignments import Outcome
from pipeline.core.ledger import Progress, Session, TileRecord
from pipeline.core.machine import Machine
from pipeline.core.plan import Plan
from pipeline.errors import FileError, InferenceError, PipelineError
from pipeline.logs import FailedTiles
from pipeline.outputs.rundir import Driver, LedgerWriter, RunDirectory
from pipeline.places.credentials import redacted
from pipeline.planning.resolve import memory_bytes_a_worker, workers_that_fit

log = logging.getLogger("pipeline")

HOPELESS = 64
"""Tiles that fail in a row, with none done between, after which no more are tried."""

HOPELESS_VANISHED = 8
"""The same where each of them ended its workers, which takes longer."""


@dataclass(frozen=True, slots=True)
class Advance:
    """How far the infer stage is.

    Args:
        done: Tiles done, those of earlier sessions included.
        total: Tiles of the plan.
        computed: Tiles done in this session.
        voxels: Of their cores.
        seconds: Since its first submission.
    """

    done: int
    total: int
    computed: int
    voxels: int
    seconds: float


def workers_for(config: RunConfig, plan: Plan, progress: Progress) -> WorkerSpec:
    """Workers for what is to do."""
    return worker_spec(config, machine(config.cluster), plan, progress.total - progress.count("done"))


def worker_spec(config: RunConfig, offered: Machine, plan: Plan, tiles: int = 2**62) -> WorkerSpec:
    """Workers for so many tiles of a plan."""
    wanted = min(workers_that_fit(config, offered, plan), tiles)
    number = wanted if config.cluster.kind in ("local", "cuda", "slurm", "kubernetes") else offered.workers or wanted
    memory_bytes = memory_bytes_a_worker(config, offered, offered.workers or number)
    return WorkerSpec(number, plan.compute.threads, memory_bytes, plan.compute.device)


def infer_missing(
    config: RunConfig,
    plan: Plan,
    driver: Driver,
    progress: Progress,
    on_advance: Callable[[Advance], None],
    on_dashboard: Callable[[str], None],
    shared: SharedPool | None = None,
    started: StartedWorkers | None = None,
) -> Session:
    """Compute the tiles that the ledger does not call done, and record each; gives the session.

    Args:
        config: The run.
        plan: Its plan.
        driver: Of its output.
        progress: What the ledger adds up to; kept up to date.
        on_advance: Told after each tile.
        on_dashboard: Told where Dask's dashboard is, where the run has workers of its own, and there is one.
        shared: Workers that it shares with others.
        started: Workers of its own that are started already.

    Raises:
        InferenceError: Tiles failed, by name; all others are kept.
    """
    job = worker.Job(config.output.url, plan.fingerprint, driver.token, plan.survey_digest)
    work = Work(functools.partial(worker.prepare, job), functools.partial(worker.infer, job), run=driver.token)
    to_do = progress.total - progress.count("done")
    hired = workers_of(to_do, config, plan, progress, driver.directory, on_dashboard, shared, started)
    with hired as pool, driver.directory.ledger() as ledger:
        log.info("%d tiles to do, %d workers wanted", to_do, pool.workers)
        current = _InferSession(plan, progress, pool, on_advance)
        outcomes = dispatch(
            pool,
            work,
            progress.to_do(),
            retries=config.cluster.retries,
            on_ready=current.begin,
            is_cancelled=driver.is_cancelled,
        )
        try:
            failures = current.record_all(outcomes, ledger)
        except BaseException:  # a session that was interrupted counts as well
            with suppress(FileError):  # what ended it is told, not what cannot be written for it
                current.settle(ledger)
                ledger.append(current.session())
            raise
        finally:
            outcomes.close()
        session = current.session()
        ledger.append(session)
    if failures:
        raise InferenceError(_message(failures, progress))
    log.info("%d tiles done in %.1f s", session.tiles, session.seconds)
    return session


def workers_of(
    tasks: int,
    config: RunConfig,
    plan: Plan,
    progress: Progress,
    directory: RunDirectory,
    on_dashboard: Callable[[str], None],
    shared: SharedPool | None,
    started: StartedWorkers | None,
    *,
    keep: bool = False,
) -> AbstractContextManager[Pool]:
    """Workers for so many tasks of a run: of those that it shares; or its own, which are the same ones for each of its stages.

    Args:
        tasks: For which the run wants some of those that it shares.
        config: The run.
        plan: Its plan.
        progress: What the ledger adds up to.
        directory: Its run directory.
        on_dashboard: Told where Dask's dashboard is, where the run has workers of its own, and there is one.
        shared: Workers that it shares with others.
        started: Workers of its own that are started already.
        keep: Whether those that were started are left for a later stage.
    """
    if shared:
        return shared.lend(tasks)
    spec = workers_for(config, plan, progress)
    spec = replace(spec, workers=max(spec.workers, 1))  # a survey may have work where no tile has
    return _own(config, spec, directory, on_dashboard, started, keep=keep)


@contextmanager
def _own(
    config: RunConfig,
    spec: WorkerSpec,
    directory: RunDirectory,
    on_dashboard: Callable[[str], None],
    started: StartedWorkers | None,
    *,
    keep: bool,
) -> Iterator[Pool]:
    """Workers of this run alone; what they log is handled here."""
    opening = open_pool(config.cluster, spec, directory.jobs_path, started, keep=keep)
    with opening as pool, forward(pool.client, config.log.level):
        if link := dashboard_link(pool.client, config.cluster):
            log.info("Dask's dashboard: %s", link)
            on_dashboard(link)
        yield pool


class _InferSession:
    """One session of the driver: its clock, and what came of it."""

    def __init__(self, plan: Plan, progress: Progress, pool: Pool, on_advance: Callable[[Advance], None]) -> None:
        self._plan, self._progress, self._pool, self._on_advance = plan, progress, pool, on_advance
        self._opened = time.perf_counter()
        self._started: float | None = None
        self._before = progress.count("done")
        self._voxels = self._computed = 0
        self._last: TileRecord | None = None

    def begin(self) -> None:
        """The first worker is ready."""
        self._started = time.perf_counter()

    def session(self) -> Session:
        now = time.perf_counter()
        started = now if self._started is None else self._started
        return Session(
            self._plan.fingerprint,
            self._progress.count("done") - self._before,
            round(now - started, 3),
            round(self._pool.start_seconds, 3),
            round(started - self._opened, 3),
            self._pool.workers,
            datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def record_all(self, outcomes: Iterator[Outcome], ledger: LedgerWriter) -> list[TileRecord]:
        """Write every outcome into the ledger; gives the failures. Ends early where nothing succeeds any more."""
        failures: list[TileRecord] = []
        failed, vanished = FailedTiles(), 0
        for outcome in outcomes:
            record = self._last = _record(outcome, self._plan)
            ledger.append(record)
            self._progress.add(record)
            if record.state == "done":
                failed.end_row()
                vanished = 0
                self._advance(record)
                continue
            failed.tell(record.tile, record.error)
            failures.append(record)
            vanished += outcome.vanished
            if failed.in_a_row >= HOPELESS or vanished >= HOPELESS_VANISHED:
                log.error("%d tiles in a row failed: no more are tried", failed.in_a_row)
                break
        failed.end_row()
        return failures

    def settle(self, ledger: LedgerWriter) -> None:
        """Count the last tile too, where the ledger has it: an interruption may come between the two."""
        if self._last and ledger.ends_with(self._last):
            self._progress.add(self._last)

    def _advance(self, record: TileRecord) -> None:
        self._computed += 1
        self._voxels += self._plan.grid.tile(record.tile).core.voxels
        seconds = time.perf_counter() - (self._started or self._opened)
        done = self._before + self._computed
        self._on_advance(Advance(done, self._progress.total, self._computed, self._voxels, seconds))


def _record(outcome: Outcome, plan: Plan) -> TileRecord:
    if not outcome.failed:
        record = outcome.result
        if not isinstance(record, TileRecord):
            raise TypeError(f"{plan.grid.tile(outcome.index)} gave a {type(record).__name__} instead of a record.")
        return replace(record, attempt=outcome.attempt, survey=plan.survey_digest)
    tile, error = plan.grid.tile(outcome.index), outcome.error
    if error is None:
        text = (
            f"{tile} failed: its worker vanished each time, {outcome.attempt} times, the last times with no other tile on it. "
            "Likely the memory is too small (see cluster.memory_gb, and the limits of the machine), a job's walltime is shorter "
            "than the tile, or something outside ends the process."
        )
    elif isinstance(error, PipelineError):
        text = str(error) if str(error).startswith(str(tile)) else f"{tile} failed: {error}"
    else:
        text = f"{tile} failed: {type(error).__name__}: {error}"
    return TileRecord(outcome.index, "failed", plan.fingerprint, attempt=outcome.attempt, error=redacted(text))


def _message(failures: list[TileRecord], progress: Progress) -> str:
    shown = [f"  {record.error}" for record in failures[:5]]
    more = [f"  and {len(failures) - 5} more: see the ledger"] if len(failures) > 5 else []
    done = f"{progress.count('done')} of {progress.total} tiles are done and kept."
    return "\n".join(
        [f"{len(failures)} tile(s) failed:", *shown, *more, f"{done} Running again computes only the others."]
    )

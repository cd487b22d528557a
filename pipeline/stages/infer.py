"""The infer stage: plan.json + statistics.json -> ledger + output.zarr."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime

from pipeline.cluster.pool import SharedPool, StartedWorkers
from pipeline.cluster.security import sweep_keys
from pipeline.core.ledger import Progress, Session, StatisticsRecord
from pipeline.core.plan import Plan
from pipeline.errors import StorageError
from pipeline.inference.session import Advance, infer_missing
from pipeline.outputs.image import Image
from pipeline.outputs.rundir import RunDirectory
from pipeline.stages.plan import refuse_foreign_output
from pipeline.stages.run import Run
from pipeline.stages.source import confirm
from pipeline.stages.survey import surveyed, told

log = logging.getLogger("pipeline")


def infer(
    run: Run,
    on_advance: Callable[[Advance], None] = lambda _: None,
    on_dashboard: Callable[[str], None] = lambda _: None,
    shared: SharedPool | None = None,
    started: StartedWorkers | None = None,
) -> Session:
    """Compute the tiles that have no valid ledger entry, and publish the output.

    Safe to run again after any end: a tile counts only once its bytes are durable and recorded, and it owns whole
    write units, so one that runs twice writes the same bytes.

    Args:
        run: The run; its plan must have been made.
        on_advance: Told after each tile.
        on_dashboard: Told where Dask's dashboard is, where there is one.
        shared: Workers that this run shares with others; it has its own otherwise.
        started: Workers of its own that are started already; taken where they are what it needs.

    Returns:
        This session; `tiles` is 0 where all was done before.

    Raises:
        InferenceError: Tiles failed, by name; all others are kept. Or the input changed meanwhile: nothing is published.
        StorageError: The output is not the plan's, or another driver's; or tiles that are done stand by other numbers.
        PlanError: The numbers are not measured yet.
    """
    directory = run.directory
    with run.lock() as driver, run.log("infer"):
        sweep_keys(directory.jobs_path)
        progress = run.progress()
        plan = surveyed(run, progress)
        _refuse_another(run, progress)
        if progress.count("done") < progress.total:
            log.debug(
                "values become the network's input by %s", told(plan.numbers)
            )  # refused here where they are not measured
        with directory.tiles_at_rest(run.config.cluster.orphan_seconds):
            _prepare(run.output)
        if progress.count("done") == progress.total:
            confirm(run)
            run.output.publish()
            log.info("all %d tiles were done already; nothing to compute", progress.total)
            return Session(plan.fingerprint, 0, 0.0, 0.0, 0.0, 0, _now())
        _note_statistics(plan, directory, progress)
        driver.open_tiles()
        try:
            session = infer_missing(run.config, plan, driver, progress, on_advance, on_dashboard, shared, started)
        finally:
            driver.close_tiles()  # a worker that wakes later writes nothing
        confirm(run)
        run.output.publish()
        return session


def _refuse_another(run: Run, progress: Progress) -> None:
    """Refuse a store that is not what the ledger speaks of."""
    state, directory = run.output.state(), run.directory
    if state == "foreign":
        refuse_foreign_output(run.plan)
    if state == "absent" and progress.count("done"):
        raise StorageError(
            f"Output '{run.output.store.place}' is gone, but '{directory.ledger_path}' says that {progress.count('done')} of its tiles "
            f"are done. Put it back, or delete '{directory.path}' to start over."
        )


def _note_statistics(plan: Plan, directory: RunDirectory, progress: Progress) -> None:
    """Say in the ledger, before the first tile, which numbers of a survey the tiles stand by; nothing where the plan has them."""
    statistics = plan.statistics
    if statistics and (progress.surveyed is None or progress.surveyed.digest != statistics.digest):
        with directory.ledger() as ledger:
            ledger.append(StatisticsRecord(plan.fingerprint, statistics.digest, statistics.to_dict()))


def _prepare(output: Image) -> None:
    """Make the store, or mend what is damaged of it beside its objects. Nobody may be writing to it."""
    is_new = output.state() == "absent"
    mended = output.create()
    if mended and not is_new:
        log.warning("metadata that were not as written are put back: %s", "; ".join(mended))
    for key in output.sweep():
        log.warning("object '%s' is of no write unit, and is removed", key)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

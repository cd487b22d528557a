"""The stages after the plan: plan.json -> ledger + output.zarr -> verification.json -> report.html."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pipeline.cluster.pool import SharedPool
from pipeline.config import RunConfig
from pipeline.core.ledger import Progress, Session
from pipeline.errors import StorageError, VerificationError
from pipeline.inference import Advance, infer_missing
from pipeline.report import write_report
from pipeline.stages.planned import load_plan, refuse_foreign_output, stage_log
from pipeline.storage.output import Output
from pipeline.storage.rundir import RunDirectory
from pipeline.storage.volume import open_volume
from pipeline.verify import Verification, verify_output

log = logging.getLogger("pipeline")

# --- infer ------------------------------------------------------------------------------------------------------------


def infer(
    config: RunConfig,
    on_advance: Callable[[Advance], None] = lambda _: None,
    on_dashboard: Callable[[str], None] = lambda _: None,
    shared: SharedPool | None = None,
) -> Session:
    """Compute the tiles that have no valid ledger entry, and publish the output.

    Safe to run again after any end: a tile counts only once its bytes are durable and recorded, and it owns whole
    write units, so one that runs twice writes the same bytes.

    Args:
        config: The run; its plan must have been made.
        on_advance: Told after each tile.
        on_dashboard: Told where Dask's dashboard is, where there is one.
        shared: Workers that this run shares with others; it has its own otherwise.

    Returns:
        This session; `tiles` is 0 where all was done before.

    Raises:
        InferenceError: Tiles failed, by name; all others are kept.
        StorageError: The output is not the plan's, or another driver's.
    """
    plan = load_plan(config)
    directory = RunDirectory(config.output.url)
    with directory.driver() as token, stage_log(directory, config, "infer"):
        output = Output(plan)
        progress = directory.progress(plan)
        _prepare(output, progress, directory)
        if progress.count("done") == progress.total:
            output.publish()
            log.info("all %d tiles were done already; nothing to compute", progress.total)
            return Session(plan.fingerprint, 0, 0.0, 0.0, 0.0, 0, _now())
        directory.wait_for_orphans(config.cluster.orphan_seconds)
        session = infer_missing(config, plan, directory, token, progress, on_advance, on_dashboard, shared)
        output.publish()
        return session


def _prepare(output: Output, progress: Progress, directory: RunDirectory) -> None:
    """Make the store, or refuse one that is not what the ledger speaks of."""
    state = output.state()
    if state == "foreign":
        refuse_foreign_output(output.plan)
    if state == "absent" and progress.count("done"):
        raise StorageError(
            f"Output '{output.root}' is gone, but '{directory.ledger_path}' says that {progress.count('done')} of its tiles "
            f"are done. Put it back, or delete '{directory.path}' to start over."
        )
    output.create()
    output.check_array()


# --- verify, report ---------------------------------------------------------------------------------------------------


def verify(config: RunConfig) -> Verification:
    """Compare every stored byte with the ledger; tiles that differ are marked invalid, so that a run mends them.

    Raises:
        VerificationError: The output does not cover the plan.
        StorageError: The output is not the plan's.
    """
    plan = load_plan(config)
    directory = RunDirectory(config.output.url)
    with directory.driver(), directory.ledger() as ledger, stage_log(directory, config, "verify"):
        output = Output(plan)
        if output.state() != "ours":
            raise StorageError(
                f"Output '{output.root}' is not that of the plan in '{directory.path}'. Nothing was verified."
            )
        output.check_array()
        found = verify_output(output, directory, ledger.append)
        directory.write_json(directory.verification_path, found.to_dict())
        log.info("%d of %d tiles are as written", found.valid, found.tiles)
        if not found.complete:
            raise VerificationError(_uncovered(found, config))
    return found


def _uncovered(found: Verification, config: RunConfig) -> str:
    more = found.missing + found.invalid - len(found.problems)
    return "\n".join(
        [
            (
                f"Output '{config.output.url}' does not cover its plan: of {found.tiles} tiles {found.invalid} are not as written "
                f"and {found.missing} were never finished."
            ),
            *(f"  {problem}" for problem in found.problems),
            *([f"  and {more} more"] if more > 0 else []),
            "`halotile run` computes just these again.",
        ]
    )


def report(config: RunConfig) -> dict[str, Any]:
    """Write the page, the picture and `report.json` into the run directory; gives the latter's content."""
    plan = load_plan(config)
    directory = RunDirectory(config.output.url)
    with directory.driver(), stage_log(directory, config, "report"):
        volume = open_volume(plan.source.url, level=plan.source.level, axes=plan.source.axes)
        content = write_report(plan, directory, volume, Output(plan))
        log.info("report in '%s'", directory.path)
        return content


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

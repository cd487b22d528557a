"""The stages after the plan: plan.json -> ledger + output.zarr -> verification.json -> report.html."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline.cluster.pool import SharedPool
from pipeline.cluster.security import sweep_keys
from pipeline.config import RunConfig
from pipeline.core.ledger import Progress, Session
from pipeline.core.plan import Plan
from pipeline.errors import StorageError, VerificationError
from pipeline.inference import Advance, infer_missing
from pipeline.report import write_report
from pipeline.stages.planned import load_plan, refuse_foreign_output, stage_log
from pipeline.stages.source import confirm, open_source
from pipeline.storage.metadata import image_name
from pipeline.storage.output import Output
from pipeline.storage.rundir import RunDirectory
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
        InferenceError: Tiles failed, by name; all others are kept. Or the input changed meanwhile: nothing is published.
        StorageError: The output is not the plan's, or another driver's.
    """
    plan = load_plan(config)
    directory = RunDirectory(config.output.url)
    with directory.driver() as token, stage_log(directory, config, "infer"):
        sweep_keys(directory.jobs_path)
        output = Output(plan)
        progress = directory.progress(plan)
        _refuse_another(output, progress, directory)
        with directory.tiles_at_rest(config.cluster.orphan_seconds):
            _prepare(output)
        if progress.count("done") == progress.total:
            confirm(config, plan, directory)
            output.publish()
            log.info("all %d tiles were done already; nothing to compute", progress.total)
            return Session(plan.fingerprint, 0, 0.0, 0.0, 0.0, 0, _now())
        directory.open_tiles()
        try:
            session = infer_missing(config, plan, directory, token, progress, on_advance, on_dashboard, shared)
        finally:
            directory.close_tiles()  # a worker that wakes later writes nothing
        confirm(config, plan, directory)
        output.publish()
        return session


def describe(config: RunConfig, resolved: Plan, elsewhere: Callable[[], None] = lambda: None) -> None:
    """Bring the output's metadata up to a plan whose tiles are done, and then the stored plan; computes and reads no voxel.

    The plan goes last: where this is killed, the next run finds that there is something to bring up.

    Args:
        config: The run.
        resolved: Its plan, with what is told of the input now.
        elsewhere: Brings up what readers see in another place, before the plan is stored.

    Raises:
        StorageError, OSError: It cannot be written.
    """
    directory = RunDirectory(config.output.url)
    with directory.driver(), stage_log(directory, config, "plan"):
        output = Output(resolved)
        if output.state() == "ours":
            output.publish()
        elsewhere()
        stored = directory.load_plan()
        known = replace(resolved, stored=stored.stored) if stored else resolved  # what was counted is not looked at
        directory.write(directory.plan_path, known.to_json())


def _refuse_another(output: Output, progress: Progress, directory: RunDirectory) -> None:
    """Refuse a store that is not what the ledger speaks of."""
    state = output.state()
    if state == "foreign":
        refuse_foreign_output(output.plan)
    if state == "absent" and progress.count("done"):
        raise StorageError(
            f"Output '{output.root}' is gone, but '{directory.ledger_path}' says that {progress.count('done')} of its tiles "
            f"are done. Put it back, or delete '{directory.path}' to start over."
        )


def _prepare(output: Output) -> None:
    """Make the store, or mend what is damaged of it beside its objects. Nobody may be writing to it."""
    is_new = output.state() == "absent"
    mended = output.create()
    if mended and not is_new:
        log.warning("metadata that were not as written are put back: %s", "; ".join(mended))
    for key in output.sweep():
        log.warning("object '%s' is of no write unit, and is removed", key)


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
        directory.close_tiles()
        with directory.tiles_at_rest(config.cluster.orphan_seconds):
            found = verify_output(output, directory, ledger.append, names=_names(directory))
        directory.write_json(directory.verification_path, found.to_dict())
        log.info("%d of %d tiles are as written", found.valid, found.tiles)
        if found.others:
            log.info("not ours, and left: %s", ", ".join(found.others))
        if not found.complete:
            raise VerificationError(_uncovered(found, config))
    return found


def _names(directory: RunDirectory) -> tuple[str, ...]:
    """What the image may be called besides its present name: stores may be moved, and are named anew by the next run."""
    made = directory.load_plan()
    return (image_name(Path(made.output.url)),) if made else ()


def _uncovered(found: Verification, config: RunConfig) -> str:
    uncovered = found.missing + found.invalid
    more = uncovered - len(found.problems)
    lines = [*(f"  {problem}" for problem in found.problems), *([f"  and {more} more"] if more > 0 else [])]
    if uncovered:
        first = (
            f"Output '{config.output.url}' does not cover its plan: of {found.tiles} tiles {found.invalid} are not as written "
            f"and {found.missing} were never finished."
        )
        lines = [first, *lines, "`halotile run` computes just these again."]
    if found.metadata:
        first = f"Output '{config.output.url}' is not stored as its plan has it:"
        lines += [
            first,
            *(f"  {line}" for line in found.metadata),
            "`halotile run` puts this right, and computes no tile for it.",
        ]
    return "\n".join(lines)


def report(config: RunConfig) -> dict[str, object]:
    """Write the page, the picture and `report.json` into the run directory; gives the latter's content."""
    plan = load_plan(config)
    directory = RunDirectory(config.output.url)
    with directory.driver(), stage_log(directory, config, "report"):
        content = write_report(plan, directory, open_source(plan, directory), Output(plan))
        log.info("report in '%s'", directory.path)
        return content


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

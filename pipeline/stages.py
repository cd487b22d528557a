"""The stages, where the rooms meet. Each reads one artifact and writes the next, and any can run again alone.

run.yaml -plan-> plan.json -infer-> ledger + output.zarr -verify-> verification.json -report-> report.html
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.cluster.pool import allocation_joined, machine, starting
from pipeline.config import RunConfig
from pipeline.core.ledger import Progress, Session
from pipeline.core.plan import Plan
from pipeline.errors import PlanError, StorageError, VerificationError
from pipeline.inference import Advance, crew_for, infer_missing
from pipeline.logs import logged
from pipeline.measure import Expectation, expectation
from pipeline.planning import check_room, make_plan, workers_that_fit
from pipeline.report import write_report
from pipeline.storage.output import Output, is_occupied
from pipeline.storage.rundir import RunDirectory
from pipeline.storage.volume import open_volume
from pipeline.verify import Verification, verify_output

log = logging.getLogger("pipeline")

HEED_SECONDS = 0.5
"""Between two looks whether somebody asks this run to end."""

CANCEL_SECONDS = 120.0
"""What the one who asks waits."""

# --- plan -------------------------------------------------------------------------------------------------------------


def plan(config: RunConfig) -> Plan:
    """Resolve a configuration into `plan.json`, or confirm the one that is there.

    Nothing is written before every check has passed. A plan that is there governs wherever the configuration says
    `auto`; where it does not match, it is replaced, or refused once work has begun under it.

    Raises:
        ConfigError, PlanError, ModelError, StorageError: It cannot be a run, or the output is another run's.
    """
    directory = RunDirectory(config.output.url)
    try:
        with _logged(directory, config, "plan") if directory.path.is_dir() else nullcontext():
            return _planned(config)
    except PermissionError as error:
        raise StorageError(
            f"'{error.filename}' may not be read by this user ({error.strerror}). Change its permissions or those of its "
            "folders, or choose another path."
        ) from error


def _planned(config: RunConfig) -> Plan:
    directory = RunDirectory(config.output.url)
    stored = directory.load_plan()
    earlier = None if stored is None else _placed(stored, config)
    begun = earlier is not None and _begun(earlier, directory)
    if stored is None and is_occupied(Path(config.output.url)):  # before a volume is read for its statistics
        raise _foreign(config.output.url)
    resolved = _resolved(config, stored, begun=begun)
    if begun and earlier is not None:
        _refuse_other_plan(earlier, resolved, directory)
    else:
        _refuse_foreign_output(resolved)
    if earlier is not None and earlier.fingerprint == resolved.fingerprint:
        resolved = earlier
    check_room(config.output.url, _bytes_to_write(resolved, directory))
    _write_plan(directory, resolved, keep=resolved == stored)
    log.info("plan %s of %d tiles", resolved.fingerprint[:12], len(resolved.grid))
    return resolved


def _resolved(config: RunConfig, earlier: Plan | None, *, begun: bool) -> Plan:
    """The plan under the earlier one where that governs, else afresh."""
    if earlier is not None:
        try:
            under = make_plan(config, machine(config.cluster), earlier=earlier, governs=True)
        except PlanError:
            if begun:
                raise
        else:
            if begun or under.fingerprint == earlier.fingerprint:
                return under
    return make_plan(config, machine(config.cluster), earlier=earlier)


def _begun(earlier: Plan, directory: RunDirectory) -> bool:
    return Output(earlier).state() == "ours" or earlier_tiles(directory, earlier) > 0


def _placed(stored: Plan, config: RunConfig) -> Plan:
    """A plan with paths as they are now: stores may be moved, or copied, between two sittings."""
    return replace(
        stored,
        source=replace(stored.source, url=config.input.url),
        output=replace(stored.output, url=config.output.url),
        model=replace(stored.model, checkpoint=config.model.checkpoint),
    )


def earlier_tiles(directory: RunDirectory, plan: Plan) -> int:
    """Tiles of a plan that its ledger knows as done."""
    return directory.progress(plan).count("done")


def _refuse_other_plan(earlier: Plan, resolved: Plan, directory: RunDirectory) -> None:
    different = resolved.differences(earlier)
    if different:
        raise StorageError(
            "\n".join(
                [
                    f"Output '{resolved.output.url}' was begun with another plan ('{directory.plan_path}'):",
                    *(f"  {line}" for line in different),
                    (
                        "Nothing was changed. Set these back to resume it, or choose another output.url; to start over, "
                        f"delete the output and '{directory.path}'."
                    ),
                ]
            )
        )
    for name, value in resolved.environment.items():
        if earlier.environment.get(name) != value:
            log.warning("%s is %s now, and was %s: low bits may differ", name, value, earlier.environment.get(name))


def _refuse_foreign_output(resolved: Plan) -> None:
    if Output(resolved).state() == "foreign":
        raise _foreign(resolved.output.url)


def _foreign(output: str) -> StorageError:
    return StorageError(
        f"Output '{output}' exists and is not of this plan: nothing is ever overwritten. "
        "Choose another output.url, or delete what is there."
    )


def _bytes_to_write(resolved: Plan, directory: RunDirectory) -> int:
    left = 1 - earlier_tiles(directory, resolved) / len(resolved.grid)
    return int(resolved.cost.output_bytes * left)


def _write_plan(directory: RunDirectory, resolved: Plan, *, keep: bool) -> None:
    try:
        with directory.driver():
            if not keep:
                directory.write(directory.plan_path, resolved.to_json())
    except OSError as error:
        raise StorageError(
            f"Run directory '{directory.path}' cannot be written ({error}). Choose another output.url, or change the "
            "permissions of its folder."
        ) from error


@contextmanager
def driving(config: RunConfig) -> Iterator[str]:
    """Be the one driver of the output for several stages, and heed `cancel`. May be entered again within the process.

    Raises (on entering):
        StorageError: Another process drives it.
    """
    directory = RunDirectory(config.output.url)
    with directory.driver() as token:
        over = threading.Event()
        watch = threading.Thread(target=_heed, args=(directory, token, over), name="cancel", daemon=True)
        watch.start()
        try:
            yield token
        finally:
            over.set()
            watch.join()


def _heed(directory: RunDirectory, token: str, over: threading.Event) -> None:
    """End this process as Ctrl-C does, once somebody asks for it."""
    while not over.wait(HEED_SECONDS):
        if directory.heed(token):
            os.kill(os.getpid(), signal.SIGINT)
            return


def cancel(output: str, wait_seconds: float = CANCEL_SECONDS) -> Progress | None:
    """Ask the run that writes to `output`, on whatever machine, to end, and wait until it has.

    Returns:
        How far it came; None where it had not come to its tiles.

    Raises:
        StorageError: There is no such run, or it does not end in time.
    """
    directory = RunDirectory(output)
    if not directory.is_driven():
        raise StorageError(f"No run writes to '{output}' now: there is nothing to cancel.")
    directory.ask_to_cancel()
    deadline = time.monotonic() + wait_seconds
    while directory.is_driven():
        if time.monotonic() > deadline:
            raise StorageError(
                f"The run that writes to '{output}' was asked to end, but still has its lock after {wait_seconds:.0f} s. It may "
                "be at something that takes long; look again, or end its process."
            )
        time.sleep(0.2)
    plan = directory.load_plan()
    return directory.progress(plan) if plan else None


@contextmanager
def part_in_cluster(config: RunConfig) -> Iterator[None]:
    """As one of many tasks of an allocation (kind slurm-allocation): be what it is to be. Others than the driver end here."""
    with allocation_joined(config.cluster, config.compute.threads, RunDirectory(config.output.url).jobs_path):
        yield


def load_plan(config: RunConfig) -> Plan:
    """The plan that the plan stage wrote, with the paths of `config`.

    Raises:
        PlanError: There is none.
    """
    directory = RunDirectory(config.output.url)
    found = directory.load_plan()
    if found is None:
        raise PlanError(f"There is no plan in '{directory.path}'. Run `halotile plan` or `halotile run` first.")
    return _placed(found, config)


def measure(config: RunConfig) -> Expectation:
    """How long the plan that is there will take on this machine; see `measure.expectation`.

    Raises:
        PlanError: There is no plan.
    """
    plan = load_plan(config)
    workers = min(workers_that_fit(config, machine(config.cluster), plan), len(plan.grid))
    return expectation(plan, workers)


@contextmanager
def workers_starting(config: RunConfig) -> Iterator[None]:
    """Start the workers of the infer stage while this process still does other things; those that nobody takes end."""
    plan = load_plan(config)
    directory = RunDirectory(config.output.url)
    progress = directory.progress(plan)
    if progress.count("done") == progress.total:
        yield
        return
    with starting(config.cluster, crew_for(config, plan, progress), directory.jobs_path):
        yield


# --- infer ------------------------------------------------------------------------------------------------------------


def infer(
    config: RunConfig,
    on_advance: Callable[[Advance], None] = lambda _: None,
    on_dashboard: Callable[[str], None] = lambda _: None,
) -> Session:
    """Compute the tiles that have no valid ledger entry, and publish the output.

    Safe to run again after any end: a tile counts only once its bytes are durable and recorded, and it owns whole
    write units, so one that runs twice writes the same bytes.

    Args:
        config: The run; its plan must have been made.
        on_advance: Told after each tile.
        on_dashboard: Told where Dask's dashboard is, where there is one.

    Returns:
        This session; `tiles` is 0 where all was done before.

    Raises:
        InferenceError: Tiles failed, by name; all others are kept.
        StorageError: The output is not the plan's, or another driver's.
    """
    plan = load_plan(config)
    directory = RunDirectory(config.output.url)
    with directory.driver() as token, _logged(directory, config, "infer"):
        output = Output(plan)
        progress = directory.progress(plan)
        _prepare(output, progress, directory)
        if progress.count("done") == progress.total:
            output.publish()
            log.info("all %d tiles were done already; nothing to compute", progress.total)
            return Session(plan.fingerprint, 0, 0.0, 0.0, 0.0, 0, _now())
        directory.wait_for_orphans()
        session = infer_missing(config, plan, directory, token, progress, on_advance, on_dashboard)
        output.publish()
        return session


def _prepare(output: Output, progress: Progress, directory: RunDirectory) -> None:
    """Make the store, or refuse one that is not what the ledger speaks of."""
    state = output.state()
    if state == "foreign":
        _refuse_foreign_output(output.plan)
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
    with directory.driver(), directory.ledger() as ledger, _logged(directory, config, "verify"):
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
    with directory.driver(), _logged(directory, config, "report"):
        volume = open_volume(plan.source.url, level=plan.source.level, axes=plan.source.axes)
        content = write_report(plan, directory, volume, Output(plan))
        log.info("report in '%s'", directory.path)
        return content


def _logged(directory: RunDirectory, config: RunConfig, stage: str) -> AbstractContextManager[None]:
    return logged(directory.log_path, config.log, run=Path(config.output.url).name, stage=stage)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

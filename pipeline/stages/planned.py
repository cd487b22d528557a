"""The plan stage: run.yaml -> plan.json."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from pipeline.cluster.pool import machine
from pipeline.config import RunConfig
from pipeline.core.plan import Plan
from pipeline.errors import PlanError, StorageError
from pipeline.logs import logged
from pipeline.measure import Expectation, expectation
from pipeline.planning import check_room, make_plan, workers_that_fit
from pipeline.storage.output import Output, is_occupied
from pipeline.storage.rundir import RunDirectory

log = logging.getLogger("pipeline")


def plan(config: RunConfig) -> Plan:
    """Resolve a configuration into `plan.json`, or confirm the one that is there.

    Nothing is written before every check has passed. A plan that is there governs wherever the configuration says
    `auto`; where it does not match, it is replaced, or refused once work has begun under it.

    Raises:
        ConfigError, PlanError, ModelError, StorageError: It cannot be a run, or the output is another run's.
    """
    directory = RunDirectory(config.output.url)
    try:
        with stage_log(directory, config, "plan") if directory.path.is_dir() else nullcontext():
            return _planned(config)
    except PermissionError as error:
        raise StorageError(
            f"'{error.filename}' may not be read by this user ({error.strerror}). Change its permissions or those of its "
            "folders, or choose another path."
        ) from error


def adopt(config: RunConfig, resolved: Plan) -> Plan:
    """The same with a plan that was resolved for this output elsewhere.

    Raises:
        StorageError: The output is another run's, or cannot be written.
    """
    directory = RunDirectory(config.output.url)
    stored = directory.load_plan()
    with stage_log(directory, config, "plan"):
        return _adopted(config, directory, stored, resolved, begun=stored is not None and _begun(stored, directory))


def _planned(config: RunConfig) -> Plan:
    directory = RunDirectory(config.output.url)
    stored = directory.load_plan()
    earlier = None if stored is None else placed(stored, config)
    begun = earlier is not None and _begun(earlier, directory)
    if stored is None and is_occupied(Path(config.output.url)):  # before a volume is read for its statistics
        raise _foreign(config.output.url)
    return _adopted(config, directory, stored, _resolved(config, stored, begun=begun), begun=begun)


def _adopted(config: RunConfig, directory: RunDirectory, stored: Plan | None, resolved: Plan, *, begun: bool) -> Plan:
    """The plan, written, where nothing speaks against it."""
    earlier = None if stored is None else placed(stored, config)
    if begun and earlier is not None:
        _refuse_other_plan(earlier, resolved, directory)
    else:
        refuse_foreign_output(resolved)
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


def stage_log(directory: RunDirectory, config: RunConfig, stage: str) -> AbstractContextManager[None]:
    """While open, what a stage logs is in the run's log."""
    return logged(directory.log_path, config.log, run=Path(config.output.url).name, stage=stage)


def placed(stored: Plan, config: RunConfig) -> Plan:
    """A plan with paths as they are now: stores may be moved, or copied, between two sittings."""
    return replace(
        stored,
        source=replace(stored.source, url=config.input.url),
        output=replace(stored.output, url=config.output.url),
        model=replace(stored.model, checkpoint=config.model.checkpoint, title=config.model.title),
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


def refuse_foreign_output(resolved: Plan) -> None:
    """Refuse an output that is not of a plan."""
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


def load_plan(config: RunConfig) -> Plan:
    """The plan that the plan stage wrote, with the paths of `config`.

    Raises:
        PlanError: There is none.
    """
    directory = RunDirectory(config.output.url)
    found = directory.load_plan()
    if found is None:
        raise PlanError(f"There is no plan in '{directory.path}'. Run `halotile plan` or `halotile run` first.")
    return placed(found, config)


def measure(config: RunConfig) -> Expectation:
    """How long the plan that is there will take on this machine; see `measure.expectation`.

    Raises:
        PlanError: There is no plan.
    """
    plan = load_plan(config)
    workers = min(workers_that_fit(config, machine(config.cluster), plan), len(plan.grid))
    return expectation(plan, workers)

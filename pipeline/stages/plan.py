"""The plan stage: run.yaml -> plan.json."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from pipeline.cluster.pool import machine
from pipeline.config import RunConfig
from pipeline.core.plan import Plan
from pipeline.core.statistics import Statistics
from pipeline.core.stored import Inventory
from pipeline.errors import FileError, ModelError, PlanError, StorageError
from pipeline.main_guard import leave_if_run_again
from pipeline.networks.checkpoint import checkpoint_bytes, load_checkpoint
from pipeline.outputs.image import Image
from pipeline.outputs.rundir import RunDirectory
from pipeline.outputs.store import store_at
from pipeline.places.durable import make_folder
from pipeline.planning.ensemble import alone
from pipeline.planning.measure import Expectation, expectation
from pipeline.planning.network import kept_network, named_network
from pipeline.planning.resolve import check_room, make_plan, workers_that_fit
from pipeline.stages.run import Run
from pipeline.stages.source import InputChanged, InputDecision, count_input, mark, open_input, settle

log = logging.getLogger("pipeline")


def plan(run: Run, *, input_changed: InputChanged | None = None, anew: bool = False) -> Plan:
    """Resolve a configuration into `plan.json`, or confirm the one that is there.

    Nothing is written before every check has passed. A plan that is there governs wherever the configuration says
    `auto`; where it does not match, it is replaced, or refused once work has begun under it.

    Args:
        run: The run.
        input_changed: What to do where the input is not as it was when it was planned: `redo` the tiles that read what has changed,
            or `keep` them; None refuses.
        anew: Whether a plan under which nothing was begun is made again for whatever the input is now.

    Raises:
        ConfigError, PlanError, ModelError, StorageError: It cannot be a run, or the output is another run's.
    """
    leave_if_run_again()
    try:
        with run.log("plan") if run.directory.path.is_dir() else nullcontext():
            return _make(run, input_changed, anew=anew)
    except PermissionError as error:
        raise StorageError(
            f"'{error.filename}' may not be read by this user ({error.strerror}). Change its permissions or those of its "
            "folders, or choose another path."
        ) from error


def adopt(
    run: Run, resolved: Plan, inventory: Inventory | None = None, *, input_changed: InputChanged | None = None
) -> Plan:
    """The same with a plan that was resolved for this output elsewhere.

    Args:
        run: The run.
        resolved: The plan.
        inventory: What is stored of its input, where that was counted.
        input_changed: As of `plan`.

    Raises:
        StorageError: The output is another run's, or cannot be written.
    """
    stored = run.directory.load_plan()
    with run.log("plan"):
        volume, counted = count_input(run.config) if inventory is None else (open_input(run.config), inventory)
        begun = stored is not None and _has_begun(stored, run.directory)
        settled = settle(run, stored, volume, counted, input_changed, begun=begun)
        return _adopt(run, stored, resolved, settled, begun=begun)


def _make(run: Run, input_changed: InputChanged | None, *, anew: bool) -> Plan:
    stored = run.directory.load_plan()
    earlier = None if stored is None else run.relocate(stored)
    begun = earlier is not None and _has_begun(earlier, run.directory)
    output = run.config.output.url
    if stored is None and store_at(output).is_occupied():  # before a voxel is read
        raise _foreign(output)
    volume, inventory = count_input(run.config)
    settled = settle(run, stored, volume, inventory, input_changed, begun=begun, anew=anew)
    resolved = _resolve(run.config, stored, settled, begun=begun)
    return _adopt(run, stored, resolved, settled, begun=begun)


def _adopt(run: Run, stored: Plan | None, resolved: Plan, settled: InputDecision, *, begun: bool) -> Plan:
    """The plan, written, where nothing speaks against it."""
    earlier = None if stored is None else run.relocate(stored)
    if begun and earlier is not None:
        _refuse_other_plan(earlier, resolved, run.directory, but_statistics=settled.remeasure)
    else:
        refuse_foreign_output(resolved)
    if earlier is not None and earlier.fingerprint == resolved.fingerprint:
        resolved = redescribe(earlier, resolved)
    resolved = replace(resolved, stored=settled.stored)
    check_room(run.config.output.url, _bytes_to_write(resolved, run.directory))
    _write_plan(run, stored, resolved, settled, begun=begun)
    log.info("plan %s of %d tiles", resolved.fingerprint[:12], len(resolved.grid))
    log.info("stored: %s of '%s'", resolved.stored, resolved.source.url)
    for warning in settled.stored.warnings:
        log.warning("%s", warning)
    return resolved


def redescribe(earlier: Plan, now: Plan) -> Plan:
    """Give an earlier plan what describes the input now and computes nothing: voxel size, origin, units, warnings.

    It has the same fingerprint, so its tiles stay; the output's metadata are written again from it at the end of the next run.
    """
    old, new = earlier.source.space, now.source.space
    if old != new:
        log.info("voxel size of the input: %s now, was %s; no tile is computed for that", new, old)
    return replace(
        earlier,
        source=replace(earlier.source, space=new),
        warnings=now.warnings,
        sample=now.sample,
        model=now.model,  # the same network, that may come from another file now
        normalization=now.normalization,  # of a survey, the numbers of the sample
        statistics=now.statistics,
    )


def _resolve(config: RunConfig, earlier: Plan | None, settled: InputDecision, *, begun: bool) -> Plan:
    """The plan under the earlier one where that governs, else afresh."""
    make = partial(make_plan, earlier=earlier, inventory=settled.inventory, remeasure=settled.remeasure)
    if earlier is not None:
        try:
            under = make(config, machine(config.cluster), governs=True)
        except PlanError:
            if begun:
                raise
        else:
            if begun or under.fingerprint == earlier.fingerprint:
                return under
    return make(config, machine(config.cluster))


def _has_begun(earlier: Plan, directory: RunDirectory) -> bool:
    return Image(earlier).state() == "ours" or earlier_tiles(directory, earlier) > 0


def earlier_tiles(directory: RunDirectory, plan: Plan) -> int:
    """Tiles of a plan that its ledger knows as done."""
    return directory.progress(plan).count("done")


def _refuse_other_plan(earlier: Plan, resolved: Plan, directory: RunDirectory, *, but_statistics: bool) -> None:
    like = earlier
    if but_statistics:
        like = replace(earlier, normalization=resolved.normalization, survey=resolved.survey)
    different = resolved.differences(like)
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
    if Image(resolved).state() == "foreign":
        raise _foreign(resolved.output.url)


def _foreign(output: str) -> StorageError:
    return StorageError(
        f"Output '{output}' exists and is not of this plan: nothing is ever overwritten. "
        "Choose another output.url, or delete what is there."
    )


def _bytes_to_write(resolved: Plan, directory: RunDirectory) -> int:
    left = 1 - earlier_tiles(directory, resolved) / len(resolved.grid)
    return int(resolved.cost.output_bytes * left)


def _refuse_what_moved(run: Run, stored: Plan | None, resolved: Plan, *, begun: bool) -> None:
    """Refuse a plan that was made while another process planned or began this output. For the driver alone."""
    now = run.directory.load_plan()
    is_other = now is not None and now.fingerprint != resolved.fingerprint
    if _as_written(now) != _as_written(stored) or (is_other and now and not begun and _has_begun(now, run.directory)):
        raise StorageError(
            f"Another process planned or began '{resolved.output.url}' while this one made its plan. Nothing was changed. Run again: the "
            "new plan is made on what is there now."
        )


def _as_written(plan: Plan | None) -> Plan | None:
    return None if plan is None else replace(plan, statistics=None)


def _write_plan(run: Run, stored: Plan | None, resolved: Plan, settled: InputDecision, *, begun: bool) -> None:
    """Write the plan, and what is stored. Where tiles that are done are computed again, the output is not complete any more.

    In this order: killed in between, the same command finds the same change again.
    """
    directory = run.directory
    earlier = run.relocate(stored) if stored and begun else None
    try:
        with run.lock():
            _refuse_what_moved(run, stored, resolved, begun=begun)
            if earlier and (settled.redo or earlier.fingerprint != resolved.fingerprint):
                Image(earlier).reopen(resolved)
            if earlier and _lost_units(earlier, resolved):
                Image(resolved).drop_axis_units()
            mark(directory, resolved, settled)
            if settled.remeasure or (stored and stored.surveyed_over != resolved.surveyed_over):
                directory.drop_survey()
            _keep_networks(run, resolved)
            if resolved != stored:
                directory.write(directory.plan_path, resolved.to_json())
            if resolved.statistics:
                _take_over(directory, resolved, resolved.statistics)
    except (FileError, OSError) as error:
        raise StorageError(
            f"Run directory '{directory.path}' cannot be written ({error}). Choose another output.url, or change the "
            "permissions of its folder."
        ) from error


def _keep_networks(run: Run, resolved: Plan) -> None:
    """Keep what came of imports, before the plan that needs it is recorded.

    Raises:
        ModelError: One is not what the plan was made of any more.
    """
    directory = run.directory
    for number, (model, asked) in enumerate(zip(resolved.model.alone, alone(run.config.model), strict=True)):
        if not model.source or kept_network(directory.kept_path(number), model):
            continue
        checkpoint = named_network(asked)
        if checkpoint.sha256 != model.sha256:
            raise ModelError(
                f"'{asked.checkpoint}' changed while the plan was made: it has weights {checkpoint.sha256[:12]} now, and "
                f"{model.sha256[:12]} in the plan. Nothing was changed. Run again."
            )
        make_folder(directory.network_path.parent)
        directory.write(directory.kept_path(number), checkpoint_bytes(checkpoint))


def _take_over(directory: RunDirectory, resolved: Plan, statistics: Statistics) -> None:
    """Keep what an earlier plan has measured, where this one's survey has measured nothing yet."""
    there = directory.load_statistics()
    if there is None or there.over != resolved.surveyed_over:
        directory.write_statistics(statistics)


def _lost_units(before: Plan, now: Plan) -> bool:
    """Whether an axis of the input has no unit any more that is known, so that the one in the output's metadata is false."""
    return any(had and not has for had, has in zip(before.source.space.units, now.source.space.units, strict=False))


def describe(run: Run, resolved: Plan, elsewhere: Callable[[], None] = lambda: None) -> None:
    """Bring the output's metadata up to a plan whose tiles are done, and then the stored plan; computes and reads no voxel.

    The plan goes last: where this is killed, the next run finds that there is something to bring up.

    Args:
        run: The run.
        resolved: Its plan, with what is told of the input now.
        elsewhere: Brings up what readers see in another place, before the plan is stored.

    Raises:
        StorageError, OSError: It cannot be written.
    """
    with run.lock(), run.log("plan"):
        output = Image(resolved)
        if output.state() == "ours":
            output.publish()
        elsewhere()
        stored = run.directory.load_plan()
        known = replace(resolved, stored=stored.stored) if stored else resolved  # what was counted is not looked at
        run.directory.write(run.directory.plan_path, known.to_json())


def measure(run: Run) -> Expectation:
    """How long the plan that is there will take on this machine; see `measure.expectation`.

    Raises:
        PlanError: There is no plan.
    """
    workers = min(workers_that_fit(run.config, machine(run.config.cluster), run.plan), len(run.plan.grid))
    return expectation(
        run.plan,
        workers,
        load_checkpoint(run.directory.checkpoint_path(run.plan), padding=run.plan.model.architecture.padding),
    )

"""The input, against what its plan counted: at the start of a run, where a change is refused or settled, and at its end.

A fingerprint knows no voxels. So where the input's files differ from those that were counted, nobody but a person can say whether
the tiles that are done still hold: `redo` computes those again that read what has changed, `keep` says that it is the same.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

import numpy as np

from pipeline.config import RunConfig
from pipeline.core.ledger import Record, StatisticsRecord, TileRecord
from pipeline.core.plan import Plan
from pipeline.core.stored import Change, Inventory, Stored, compare
from pipeline.errors import InferenceError, StorageError
from pipeline.outputs.rundir import RunDirectory
from pipeline.stages.run import Run
from pipeline.volumes.inventory import Missing, take_inventory
from pipeline.volumes.volume import Volume, open_volume

log = logging.getLogger("pipeline")

InputChanged = Literal["redo", "keep"]

NAMED = 10
"""Tiles that a message names."""

ADVICE = (
    "Nothing was changed or published. Run with `--input-changed redo` to compute these tiles from what is there now, or with "
    "`--input-changed keep` if its voxels are the same: copied, moved or touched. Or put the input back."
)


@dataclass(frozen=True)
class InputDecision:
    """What is to be done about the input as it is now.

    Args:
        inventory: What is stored of it.
        stored: The sum, for the plan, with what has become of it.
        redo: Whether tiles that are done are computed again.
        reads: Whether each tile reads what has changed; None where nothing is computed again.
        remeasure: Whether statistics of the whole volume are measured again.
    """

    inventory: Inventory
    stored: Stored
    redo: bool = False
    reads: np.ndarray | None = None
    remeasure: bool = False


def open_input(config: RunConfig) -> Volume:
    """Open the input of a run.

    Raises:
        StorageError: It cannot be opened.
    """
    return open_volume(config.input.url, config.input.selection)


def count_input(config: RunConfig, missing: Missing | None = None) -> tuple[Volume, Inventory]:
    """Open the input of a run, and count what is stored of it.

    Raises:
        StorageError: It cannot be opened; or nothing of it is stored, and it is not to be taken for fill.
    """
    volume = open_input(config)
    return volume, take_inventory(volume, missing or config.input.missing)


def open_source(run: Run) -> Volume:
    """The input of a run's plan, which refuses to read as fill what was counted.

    Raises:
        StorageError: It cannot be opened, or what was counted is lost.
    """
    source = run.plan.source
    return run.directory.counted(run.plan, open_volume(source.url, source.selection))


def settle(
    run: Run,
    stored: Plan | None,
    volume: Volume,
    inventory: Inventory,
    choice: InputChanged | None,
    *,
    begun: bool,
    anew: bool = False,
) -> InputDecision:
    """What a run does about its input as it is now.

    Args:
        run: The run.
        stored: The plan that is there.
        volume: The input, opened.
        inventory: What is stored of it now.
        choice: What a person says of a change.
        begun: Whether anything was done under that plan.
        anew: Whether a plan under which nothing was begun is made again for whatever is there now.

    Raises:
        StorageError: It has changed, and nobody said what to do.
    """
    if stored is None or stored.stored is None or stored.source.metadata_sha256 != volume.description.metadata_sha256:
        return InputDecision(inventory, inventory.stored)
    copied = stored.source.url != run.config.input.url
    change = _change(stored.stored, inventory, run.directory, copied=copied)
    kept = replace(inventory.stored, history=stored.stored.history)
    if not change:
        return InputDecision(inventory, kept)
    done = run.directory.progress(stored).done()
    frozen = stored.model.frozen
    measured = stored.normalization.is_measured(stored.source.dtype) or (frozen is not None and not frozen.metadata)
    reads = np.ones(len(stored.grid), dtype=bool) if measured else change.tiles(stored.grid)
    if choice is None and anew and not begun:
        return InputDecision(inventory, inventory.stored, remeasure=True)
    if choice is None and (not begun or np.any(done & reads) or len(change.gone)):
        raise StorageError(_message(run.config, stored, change, reads, done, copied=copied))
    history = (*kept.history, _line(choice or "redo", change, reads & done))
    log.warning("input changed: %s", history[-1])
    kept = replace(kept, history=history)
    if choice == "keep":
        return InputDecision(inventory, kept)
    return InputDecision(inventory, kept, bool(np.any(reads & done)), reads, remeasure=measured)


def mark(directory: RunDirectory, plan: Plan, settled: InputDecision) -> None:
    """Say in the ledger that tiles are to be computed again, and keep what is stored now. For the driver alone.

    Each line is written twice, since one that is damaged would leave its tile as done. Where statistics are measured again, no tile stands by the
    earlier ones.
    """
    if settled.reads is not None:
        progress = directory.progress(plan)
        redo = np.flatnonzero(settled.reads & progress.done())
        lines: list[Record] = [
            TileRecord(int(tile), "invalid", plan.fingerprint, error="the input has changed since") for tile in redo
        ]
        if settled.remeasure and progress.stand_by:
            lines.append(StatisticsRecord(plan.fingerprint, "", {}))
        if lines:
            with directory.ledger() as ledger:
                for line in (*lines, *lines):
                    ledger.append(line)
    known = directory.load_inventory(settled.stored)
    if known is None or (known.stored.strict, known.stored.lenient) != (
        settled.inventory.stored.strict,
        settled.inventory.stored.lenient,
    ):
        directory.write_inventory(settled.inventory)


def confirm(run: Run) -> None:
    """Compare the input with what was counted before its tiles were computed, so that nothing is published of what changed meanwhile.

    Raises:
        InferenceError: It did.
    """
    plan = run.plan
    if plan.stored is None:
        return
    try:
        _, now = count_input(run.config, "fill")
    except StorageError as error:
        raise InferenceError(
            f"The input cannot be looked at any more, so that nothing is published: {error}"
        ) from error
    change = _change(plan.stored, now, run.directory)
    if change:
        reads = change.tiles(plan.grid)
        raise InferenceError(
            f"The input '{plan.source.url}' changed while it was read: {change}. {_tiles(reads, 'may be of either')} Nothing is "
            "published. Run again with `--input-changed redo` to compute these tiles from what is there now, or with "
            "`--input-changed keep` if its voxels are the same; a volume of a dataset is begun anew by itself."
        )


def _change(planned: Stored, now: Inventory, directory: RunDirectory, *, copied: bool = False) -> Change:
    if planned.signature == now.stored.signature:  # also where a plan was copied without its inventory
        return Change(now)
    return compare(directory.load_inventory(planned), now, copied=copied)


def _message(
    config: RunConfig, plan: Plan, change: Change, reads: np.ndarray, done: np.ndarray, *, copied: bool
) -> str:
    where = f"'{config.input.url}'" + (f" (planned as '{plan.source.url}')" if copied else "")
    return "\n".join(
        [
            f"The input {where} is not as it was when this run was planned (stored: {plan.stored}, and {change.now.stored} now):",
            f"  {change}",
            f"  {_tiles(reads, 'read it')}",
            f"  {int(np.count_nonzero(reads & done))} of these are done.",
            ADVICE,
        ]
    )


def _tiles(reads: np.ndarray, what: str) -> str:
    numbers = np.flatnonzero(reads)
    if len(numbers) == len(reads):
        return f"All {len(reads):,} tiles {what}."
    named = ", ".join(map(str, numbers[:NAMED])) + (", ..." if len(numbers) > NAMED else "")
    return f"{len(numbers):,} of {len(reads):,} tiles {what}: {named or 'none'}."


def _line(choice: InputChanged, change: Change, reads: np.ndarray) -> str:
    when, tiles = datetime.now(UTC).isoformat(timespec="seconds"), int(np.count_nonzero(reads))
    if choice == "keep":
        return f"{when}: {change}; kept as the same voxels, {tiles:,} tile(s) that read it were not computed again"
    return f"{when}: {change}; {tiles:,} tile(s) that were done and read it are computed again"

"""The verify stage: ledger + output.zarr -> verification.json.

Whether the output covers the plan: every tile recorded, every stored byte and every key of the metadata as it was written.

Compared is what we wrote. What others added is named, and is no problem.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from pipeline.config import RunConfig
from pipeline.core.ledger import Progress, TileRecord
from pipeline.errors import StorageError, VerificationError
from pipeline.outputs.image import Image
from pipeline.outputs.metadata import image_name
from pipeline.outputs.rundir import RunDirectory
from pipeline.stages.run import Run
from pipeline.stages.survey import surveyed

log = logging.getLogger("pipeline")

NAMED = 20
"""Tiles that a verification names at most."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found.

    Args:
        fingerprint: Of the plan.
        tiles: In the plan.
        valid: Tiles whose every object has the bytes that the ledger vouches for.
        missing: Tiles without a valid entry.
        invalid: Tiles whose stored objects differ.
        objects: Stored objects that were read.
        problems: One line for each of the first tiles with a problem.
        metadata: What is not as written of the metadata, and objects that no write unit has; a line each, of the first.
        others: Keys and names that are not ours: viewers and people may add theirs.
        statistics: Digest of what the survey has measured, by which the tiles were computed; empty where the plan has its numbers.
        windows: Of which the output is blended, where it is not exact; empty where it is.
    """

    fingerprint: str
    tiles: int
    valid: int
    missing: int
    invalid: int
    objects: int
    problems: tuple[str, ...]
    metadata: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    statistics: str = ""
    windows: str = ""

    @property
    def complete(self) -> bool:
        return self.valid == self.tiles and not self.metadata

    def to_dict(self) -> dict[str, object]:
        content = asdict(self)
        windows = content.pop("windows")
        return {**content, "complete": self.complete, **({"exact": False, "windows": windows} if windows else {})}


def verify(run: Run) -> Verification:
    """Compare every stored byte with the ledger; tiles that differ are marked invalid, so that a run mends them.

    Raises:
        VerificationError: The output does not cover the plan.
        StorageError: The output is not the plan's, or its tiles stand by other numbers than the survey's.
    """
    output, directory = run.output, run.directory
    with run.lock() as driver, directory.ledger() as ledger, run.log("verify"):
        if output.state() != "ours":
            raise StorageError(
                f"Output '{output.store.place}' is not that of the plan in '{directory.path}'. Nothing was verified."
            )
        driver.close_tiles()
        with directory.tiles_at_rest(run.config.cluster.orphan_seconds):
            statistics = surveyed(run).statistics
            verification = verify_output(output, directory, ledger.append, names=_names(directory))
            verification = replace(verification, statistics=statistics.digest if statistics else "")
        directory.write_json(directory.verification_path, verification.to_dict())
        log.info("%d of %d tiles are as written", verification.valid, verification.tiles)
        if verification.windows:
            log.info("not exact: blended windows, %s", verification.windows)
        if verification.others:
            log.info("not ours, and left: %s", ", ".join(verification.others))
        if not verification.complete:
            raise VerificationError(_message(verification, run.config))
    return verification


def _names(directory: RunDirectory) -> tuple[str, ...]:
    """What the image may be called besides its present name: stores may be moved, and are named anew by the next run."""
    made = directory.load_plan()
    return (image_name(Path(made.output.url)),) if made else ()


def _message(verification: Verification, config: RunConfig) -> str:
    uncovered = verification.missing + verification.invalid
    more = uncovered - len(verification.problems)
    lines = [*(f"  {problem}" for problem in verification.problems), *([f"  and {more} more"] if more > 0 else [])]
    if uncovered:
        first = (
            f"Output '{config.output.url}' does not cover its plan: of {verification.tiles} tiles {verification.invalid} are not as written "
            f"and {verification.missing} were never finished."
        )
        lines = [first, *lines, "`halotile run` computes just these again."]
    if verification.metadata:
        first = f"Output '{config.output.url}' is not stored as its plan has it:"
        lines += [
            first,
            *(f"  {line}" for line in verification.metadata),
            "`halotile run` puts this right, and computes no tile for it.",
        ]
    return "\n".join(lines)


def verify_output(
    output: Image, directory: RunDirectory, mark: Callable[[TileRecord], None], *, names: tuple[str, ...] = ()
) -> Verification:
    """Compare every stored object with the ledger, and the metadata with the plan. Nobody may be writing meanwhile.

    What killed writers left half-written is removed.

    Args:
        output: The store.
        directory: Its run directory.
        mark: Given an `invalid` record for each tile whose objects differ.
        names: That the image may have besides its own; see `Image.metadata`.
    """
    grid = output.plan.grid
    progress = directory.progress(output.plan)
    problems: list[str] = []
    invalid = objects = 0
    for record in _last_records(directory, progress):
        objects += len(record.units)
        differences = list(_differences(output, record))
        if differences:
            invalid += 1
            problem = f"{grid.tile(record.tile)}: {'; '.join(differences)}"
            problems.append(problem)
            mark(TileRecord(record.tile, "invalid", record.fingerprint, error=problem))
    to_do = progress.to_do()
    problems += [f"{grid.tile(int(index))}: never finished" for index in to_do[: max(NAMED - len(problems), 0)]]
    metadata, contents = output.metadata(complete=not len(to_do), names=names), output.contents()
    for key in contents.parts:
        output.store.remove(key)
    strays = (f"object '{key}' is of no write unit" for key in contents.strays)
    return Verification(
        output.plan.fingerprint,
        tiles=len(grid),
        valid=progress.count("done") - invalid,
        missing=len(to_do),
        invalid=invalid,
        objects=objects,
        problems=tuple(problems[:NAMED]),
        metadata=tuple(islice(chain(metadata.differences, strays), NAMED)),
        others=tuple(islice(chain(metadata.others, contents.others), NAMED)),
        windows=str(output.plan.model.window or ""),
    )


def _last_records(directory: RunDirectory, progress: Progress) -> Iterator[TileRecord]:
    """The last `done` record of each tile that is done: a second pass over the ledger, newest kept."""
    latest = np.full(progress.total, -1, dtype=np.int64)
    for number, record in enumerate(directory.records()):
        if progress.owns(record) and record.state == "done":
            latest[record.tile] = number
    for number, record in enumerate(directory.records()):
        if progress.owns(record) and latest[record.tile] == number and progress.is_done(record.tile):
            yield record


def _differences(output: Image, record: TileRecord) -> Iterator[str]:
    core = output.plan.grid.tile(record.tile).core
    expected = {key for unit in output.finest.units(core) for key in output.finest.keys(unit)}
    if expected != set(record.units):
        yield f"the ledger names {len(record.units)} objects, the plan {len(expected)}"
    for key, checksum in record.units.items():
        stored = output.store.checksum(key)
        if stored != checksum:
            yield f"object '{key}' {_checksum_in_words(stored)}, but was written as {_checksum_in_words(checksum)}"


def _checksum_in_words(checksum: str | None) -> str:
    return "is not there" if checksum is None else f"has SHA-256 {checksum[:12]}"

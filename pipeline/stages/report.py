"""The report stage: ledger + verification.json -> report.html.

The report of a run: a page for people, the same figures as JSON for programs, and a picture to look at."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from pipeline.core.ledger import INFER, Session, TileRecord
from pipeline.core.normalization import finite
from pipeline.core.plan import Plan
from pipeline.errors import FileError, PipelineError
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.networks.device import visible_cards
from pipeline.networks.mismatch import comparison_region, mismatch
from pipeline.outputs.image import Image
from pipeline.outputs.rundir import RunDirectory
from pipeline.places.durable import in_words
from pipeline.reports.page import page
from pipeline.reports.pictures import picture, png
from pipeline.stages.run import Run
from pipeline.stages.source import open_source
from pipeline.stages.survey import surveyed
from pipeline.volumes.volume import Volume

log = logging.getLogger("pipeline")

THUMBNAIL_EXTENT = 320
"""Pixels per axis of a thumbnail at most."""


def report(run: Run) -> dict[str, object]:
    """Write the page, the picture and `report.json` into the run directory; gives the latter's content."""
    plan, directory = surveyed(run), run.directory
    with run.lock(), run.log("report"):
        content = write_report(plan, directory, open_source(run), run.output)
        log.info("report in '%s'", directory.path)
        return content


def figures(plan: Plan, directory: RunDirectory) -> dict[str, object]:
    """What the ledger and the verification add up to."""
    sessions, tile_seconds, read_seconds, write_seconds, wait_seconds, peak, failed = [], 0.0, 0.0, 0.0, 0.0, 0, 0
    for record in directory.records():
        if (record.stage, record.fingerprint) != (INFER, plan.fingerprint):
            continue
        if isinstance(record, Session):
            sessions.append(record)
        if not isinstance(record, TileRecord):
            continue
        tile_seconds += record.seconds
        read_seconds += record.read_seconds
        write_seconds += record.write_seconds
        wait_seconds += record.wait_seconds
        peak = max(peak, record.peak_bytes)
        failed += record.state == "failed"
    infer = {
        "seconds": round(sum(s.seconds for s in sessions), 3),
        "cluster_seconds": round(sum(s.cluster_seconds for s in sessions), 3),
        "model_seconds": round(sum(s.model_seconds for s in sessions), 3),
        "sessions": len(sessions),
        "tiles": sum(s.tiles for s in sessions),
        "failed_attempts": failed,
        "tile_seconds": round(tile_seconds, 3),
        "read_seconds": round(read_seconds, 3),
        "write_seconds": round(write_seconds, 3),
        "wait_seconds": round(wait_seconds, 3),
        "worker_peak_bytes": peak,
        "worker_bound_bytes": plan.cost.worker_bytes,
    }
    return {"infer": infer, "verify": _verification(directory)}


def _verification(directory: RunDirectory) -> dict[str, Any] | None:
    """What was found at the last verification; None where there was none, or nobody can read it any more."""
    try:
        return directory.read_json(directory.verification_path)
    except ValueError as error:
        log.warning("'%s' is passed over: %s. `halotile verify` writes it anew", directory.verification_path, error)
        return None


def summary(plan: Plan, directory: RunDirectory) -> dict[str, object]:
    """The report as data; `stages.infer.seconds` is from the first submission to the last durable write."""
    progress = directory.progress(plan)
    return {
        "fingerprint": plan.fingerprint,
        "input": plan.source.url,
        "output": plan.output.url,
        "model": {"title": plan.model.title, "sha256": plan.model.sha256, "checkpoint": plan.model.checkpoint},
        "shape": [plan.source.channels, *plan.source.shape],
        "tiles": {"total": progress.total, "done": progress.count("done")},
        "ensemble": [
            {"title": m.title, "sha256": m.sha256, "checkpoint": m.checkpoint, "weight": m.weight}
            for m in plan.model.members
        ],
        "augment": plan.compute.augment,
        "passes": plan.mean.passes if plan.mean else 1,
        "amplification": round(plan.amplification, 3),
        "read_amplification": round(plan.read_amplification, 3),
        "decoding_amplification": round(plan.decoding_amplification, 3),
        "normalization": plan.normalization.to_dict() if plan.survey is None else _statistics(plan),
        **({"frozen": _frozen(plan)} if plan.model.frozen else {}),
        "environment": plan.environment,
        "stored": asdict(plan.stored) | {"told": str(plan.stored)} if plan.stored else None,
        "warnings": list(plan.all_warnings),
        "stages": figures(plan, directory),
    }


def _statistics(plan: Plan) -> dict[str, object] | None:
    """What the survey has measured; None where it has not."""
    return plan.statistics.to_dict() if plan.statistics else None


def measured_mismatch(plan: Plan, directory: RunDirectory, volume: Volume) -> dict[str, object] | None:
    """How far blended windows are from one pass over a region in the middle of the volume; measured once, and kept.

    None where it could not be measured here; the log says why.
    """
    of = {"fingerprint": plan.fingerprint, "statistics": plan.survey_digest}
    try:
        kept = directory.read_json(directory.mismatch_path)
    except ValueError as error:
        log.warning("'%s' is passed over, and made again: %s", directory.mismatch_path, error)
        kept = None
    if kept and all(kept.get(key) == value for key, value in of.items()):
        return kept
    region = comparison_region(plan)
    if region is None:
        log.warning(
            "how far blended windows are from one pass is not measured: the volume has one window, or a pass of two does not fit the memory"
        )
        return None
    device = plan.compute.device if plan.compute.device == "cpu" or visible_cards() else "cpu"
    try:
        checkpoint = load_checkpoint(directory.checkpoint_path(plan), padding=plan.model.architecture.padding)
        array = finite(volume.read(region), "zero", lambda *_: FileError())
        found = {**of, **mismatch(checkpoint, plan, region, array, device).to_dict()}
    except (PipelineError, RuntimeError) as error:  # torch's, where memory is too small
        log.warning("how far blended windows are from one pass could not be measured: %s", error)
        return None
    with _warn():
        directory.write_json(directory.mismatch_path, found)
    return found


def _frozen(plan: Plan) -> dict[str, object] | None:
    """How far predictions with fixed statistics are from others, or what passes they took; None where they are not measured."""
    statistics = plan.statistics
    return dict(statistics.frozen.figures) if statistics and statistics.frozen else None


def write_report(plan: Plan, directory: RunDirectory, volume: Volume, output: Image) -> dict[str, object]:
    """Write `slices.png`, `thumbnail.png`, `report.html` and `report.json`; gives the latter's content.

    Each is whole or as it was. One that the system refuses to write is told in a warning: what it reports is done all the same.
    """
    content = summary(plan, directory)
    if not plan.model.is_exact:
        content |= {"exact": False, "mismatch": measured_mismatch(plan, directory, volume)}
    with _warn():
        slices = picture(volume, output.finest)
        directory.write(directory.path / "slices.png", png(slices))
        slices.thumbnail((THUMBNAIL_EXTENT, THUMBNAIL_EXTENT))
        directory.write(directory.path / "thumbnail.png", png(slices))
    with _warn():
        directory.write(directory.path / "report.html", page(plan, content))
    with _warn():
        directory.write_json(directory.report_path, content)
    return content


@contextmanager
def _warn() -> Iterator[None]:
    try:
        with in_words():
            yield
    except FileError as error:
        log.warning("the report is not whole: %s", error)

"""The report of a run: a page for people, the same figures as JSON for programs, and a picture to look at."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from io import BytesIO
from typing import Any

import numpy as np
from jinja2 import Environment, select_autoescape
from PIL import Image

from pipeline.core.appearance import ranges
from pipeline.core.box import Box
from pipeline.core.ledger import Session
from pipeline.core.plan import Plan
from pipeline.durable import in_words
from pipeline.errors import FileError
from pipeline.planning.measure import Expectation
from pipeline.storage.output import Output
from pipeline.storage.rundir import RunDirectory
from pipeline.storage.volume import Volume

log = logging.getLogger("pipeline")

PICTURE_EXTENT = 1024
"""Voxels an axis of a picture at most."""

THUMBNAIL_EXTENT = 320
"""Pixels an axis of a thumbnail at most."""


def figures(plan: Plan, directory: RunDirectory) -> dict[str, Any]:
    """What the ledger and the verification add up to."""
    sessions, tile_seconds, read_seconds, write_seconds, wait_seconds, peak, failed = [], 0.0, 0.0, 0.0, 0.0, 0, 0
    for record in directory.records():
        if record.fingerprint != plan.fingerprint:
            continue
        if isinstance(record, Session):
            sessions.append(record)
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


def summary(plan: Plan, directory: RunDirectory) -> dict[str, Any]:
    """The report as data; `stages.infer.seconds` is from the first submission to the last durable write."""
    progress = directory.progress(plan)
    return {
        "fingerprint": plan.fingerprint,
        "input": plan.source.url,
        "output": plan.output.url,
        "model": {"title": plan.model.title, "sha256": plan.model.sha256, "checkpoint": plan.model.checkpoint},
        "shape": [plan.source.channels, *plan.source.shape],
        "tiles": {"total": progress.total, "done": progress.count("done")},
        "amplification": round(plan.amplification, 3),
        "read_amplification": round(plan.read_amplification, 3),
        "decoding_amplification": round(plan.decoding_amplification, 3),
        "environment": plan.environment,
        "stored": asdict(plan.stored) | {"told": str(plan.stored)} if plan.stored else None,
        "warnings": list(plan.all_warnings),
        "stages": figures(plan, directory),
    }


def write_report(plan: Plan, directory: RunDirectory, volume: Volume, output: Output) -> dict[str, Any]:
    """Write `slices.png`, `thumbnail.png`, `report.html` and `report.json`; gives the latter's content.

    Each is whole or as it was. One that the system refuses to write is told in a warning: what it reports is done all the same.
    """
    content = summary(plan, directory)
    with _told():
        slices = picture(volume, output)
        directory.write(directory.path / "slices.png", _png(slices))
        slices.thumbnail((THUMBNAIL_EXTENT, THUMBNAIL_EXTENT))
        directory.write(directory.path / "thumbnail.png", _png(slices))
    with _told():
        directory.write(directory.path / "report.html", _page(plan, content))
    with _told():
        directory.write_json(directory.report_path, content)
    return content


@contextmanager
def _told() -> Iterator[None]:
    try:
        with in_words():
            yield
    except FileError as error:
        log.warning("the report is not whole: %s", error)


def _png(image: Image.Image) -> bytes:
    content = BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def picture(volume: Volume, output: Output) -> Image.Image:
    """The middle slice, input beside output; the central part of it where it is large."""
    box = _middle(volume)
    left = _grey(volume.read(box)[0, 0], limits=None)
    limits = (0, 255) if output.plan.output.dtype == "uint8" else None
    right = _grey(output.read(box)[0, 0], limits=limits)
    gap = np.full((left.shape[0], 8), 255, dtype=np.uint8)
    return Image.fromarray(np.hstack([left, gap, right]))


def _middle(volume: Volume) -> Box:
    z, y, x = volume.shape
    height, width = min(y, PICTURE_EXTENT), min(x, PICTURE_EXTENT)
    start = (z // 2, (y - height) // 2, (x - width) // 2)
    return Box(start, (start[0] + 1, start[1] + height, start[2] + width))


def _grey(plane: np.ndarray, limits: tuple[float, float] | None) -> np.ndarray:
    """A slice as 8-bit grey: between given limits, else between its own 0.5th and 99.5th percentile."""
    plane = np.nan_to_num(plane.astype(np.float64))
    low, high = limits or np.percentile(plane, (0.5, 99.5))
    scaled: np.ndarray = (plane - low) / (high - low) if high > low else np.zeros_like(plane)
    grey: np.ndarray = np.rint(255 * np.clip(scaled, 0, 1))
    return grey.astype(np.uint8)


def plan_rows(plan: Plan) -> list[tuple[str, str]]:
    """The plan in a dozen lines, for the terminal and the page."""
    source, output, cost, grid = plan.source, plan.output, plan.cost, plan.grid
    architecture = plan.model.architecture
    kind = (
        f"{architecture.ndim}D, depth {architecture.depth}, width {architecture.width}, {architecture.padding} padding"
    )
    rows = [
        ("input", f"{source.url} level {source.level}"),
        (
            "volume",
            f"{_by(source.shape)} voxels, {source.channels} channel(s), {source.dtype}, chunks {_by(source.chunks)}",
        ),
        ("voxel size", str(source.space)),
        *_stored_rows(plan),
        ("model", f"{plan.model.title}, weights {plan.model.sha256[:12]}, {plan.model.checkpoint}"),
        ("network", f"{kind}, {plan.model.parameters:,} parameters"),
        ("normalisation", _normalization(plan)),
        *_sample_rows(plan),
        (
            "tiles",
            f"{len(grid):,} ({_by(grid.counts)}), core {_by(plan.core)}, halo {_by(plan.halo)}, slab {plan.slab}",
        ),
        ("arithmetic", f"{cost.multiply_adds / 1e12:.3f} T multiply-adds, {plan.amplification:.2f} x one pass"),
        (
            "reads",
            (
                f"{cost.voxels_read:,} voxels, {plan.read_amplification:.2f} x the volume; "
                f"decodes {plan.decoding_amplification:.2f} x"
            ),
        ),
        ("memory a worker", f"up to {cost.worker_bytes / 1e9:.2f} GB"),
        ("output", f"{output.url}, {output.dtype} {output.activation}, up to {cost.output_bytes / 1e9:.3f} GB"),
        ("write units", f"{_by(output.write_unit)}, chunks {_by(output.chunks)}, {output.codecs}"),
        (
            "compute",
            (
                f"{plan.compute.device}, {plan.compute.dtype} ({plan.compute.reason}), "
                f"{plan.compute.threads} thread(s) a worker"
            ),
        ),
        ("fingerprint", plan.fingerprint[:12]),
    ]
    return [*rows, *(("warning", warning) for warning in plan.all_warnings)]


def _stored_rows(plan: Plan) -> list[tuple[str, str]]:
    """What is stored of the input, and what became of it since."""
    if plan.stored is None:
        return []
    return [
        (f"{plan.stored.unit}s", f"stored: {plan.stored}"),
        *(("input changed", line) for line in plan.stored.history),
    ]


def _sample_rows(plan: Plan) -> list[tuple[str, str]]:
    """What the network will see, where that was looked at."""
    if plan.sample is None:
        return []
    return [
        (
            "values",
            f"{ranges(plan.sample)} as the network sees them, 1st to 99th percentile of {plan.sample.boxes} boxes",
        )
    ]


def expectation_rows(found: Expectation) -> list[tuple[str, str]]:
    """What a measurement says of the time to come."""
    return [
        (
            "expected time",
            (
                f"{_duration(found.seconds)} with {found.workers} worker(s), start excluded: computing "
                f"{_duration(found.compute_seconds)}, beside it reading {_duration(found.read_seconds)}"
            ),
        ),
        (
            "measured",
            (
                f"{found.voxels_a_second / 1e6:.2f} Mvoxel/s in all, {found.multiply_adds_a_second / 1e9:.0f} G "
                "multiply-adds/s a worker that has the machine to itself"
            ),
        ),
    ]


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else str(timedelta(seconds=round(seconds)))


def _by(extent: tuple[int, ...]) -> str:
    return " x ".join(map(str, extent))


def _normalization(plan: Plan) -> str:
    rule = plan.normalization
    return "none" if rule.mode == "none" else f"{rule.mode}: (value - {rule.offset:g}) * {rule.scale:g}"


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Halotile: {{ plan.output.url }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } th { text-align: left; padding-right: 2rem; font-weight: 600; vertical-align: top }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere } tr { border-bottom: 1px solid #eee }
img { max-width: 100%; image-rendering: pixelated } .good { color: #17692f } .bad { color: #a11 }
</style></head><body>
<h1>{{ plan.output.url }}</h1>
<p class="{{ 'good' if complete else 'bad' }}">{{ verdict }}</p>
<h2>Input beside output, z {{ z }}</h2>
<img src="slices.png" alt="Middle slice of the input, and of the prediction">
<h2>Plan</h2>
<table>{% for name, value in rows %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}</table>
<h2>Ledger</h2>
<table>{% for name, value in ledger %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}</table>
</body></html>
"""


def _page(plan: Plan, content: dict[str, Any]) -> str:
    verification = content["stages"]["verify"] or {}
    complete = bool(verification.get("complete"))
    done, total = content["tiles"]["done"], content["tiles"]["total"]
    verdict = f"{done} of {total} tiles done; " + ("every stored byte verified." if complete else "not verified.")
    template = Environment(autoescape=select_autoescape(default=True)).from_string(_TEMPLATE)
    return template.render(
        plan=plan,
        complete=complete,
        verdict=verdict,
        z=plan.source.shape[0] // 2,
        rows=plan_rows(plan),
        ledger=_ledger_rows(plan, content["stages"]["infer"]),
    )


def _ledger_rows(plan: Plan, infer: dict[str, Any]) -> list[tuple[str, str]]:
    seconds = infer["seconds"]
    rate = f"{plan.source.voxels / seconds / 1e6:.2f} Mvoxel/s" if seconds else "nothing computed"
    return [
        ("infer", f"{seconds:.1f} s in {infer['sessions']} session(s), {rate}"),
        ("start", f"workers {infer['cluster_seconds']:.1f} s, network {infer['model_seconds']:.1f} s"),
        ("failed attempts", str(infer["failed_attempts"])),
        (
            "tile time",
            (
                f"{infer['tile_seconds']:.1f} s, of it waiting for data {infer['wait_seconds']:.1f}; beside it reading "
                f"{infer['read_seconds']:.1f}, writing {infer['write_seconds']:.1f}"
            ),
        ),
        (
            "worker memory",
            f"peak {infer['worker_peak_bytes'] / 1e9:.2f} GB, bound {infer['worker_bound_bytes'] / 1e9:.2f} GB",
        ),
    ]

"""Names and values for people: a plan, what it will take, what its ledger adds up to."""

from __future__ import annotations

from datetime import timedelta
from math import prod
from typing import Any

from pipeline.core.appearance import ranges
from pipeline.core.frozen import WholeVolume
from pipeline.core.network.blended import BlendedStream
from pipeline.core.network.graph import Graph
from pipeline.core.network.imported import AnyNetwork, Imported
from pipeline.core.plan import Plan
from pipeline.core.volume import Description
from pipeline.planning.measure import Expectation


def _chosen(source: Description) -> str:
    """Which channels are read, and in which order the axes are stored, where it is not all in the usual one."""
    channels = f" ({', '.join(map(str, source.chosen))} of those stored)" if source.chosen else ""
    return channels + (f", stored as {source.stored}" if source.stored else "")


def plan_rows(plan: Plan) -> list[tuple[str, str]]:
    """The plan in a dozen lines, for the terminal and the page."""
    source, output, cost, grid = plan.source, plan.output, plan.cost, plan.grid
    rows = [
        ("input", f"{source.url} level {source.level}"),
        (
            "volume",
            f"{_by(source.shape)} voxels, {source.channels} channel(s){_chosen(source)}, {source.dtype}, chunks {_by(source.chunks)}",
        ),
        ("voxel size", str(source.space)),
        *_stored_rows(plan),
        ("model", f"{plan.model.title}, weights {plan.model.sha256[:12]}, {plan.model.checkpoint}"),
        *_member_rows(plan),
        ("network", f"{plan.model.architecture.title}, {plan.model.parameters:,} parameters"),
        *([] if plan.model.window else _way_rows(plan.model.architecture)),
        *([("imported", f"from {plan.model.origin}")] if plan.model.origin else []),
        *([("proof", plan.model.proof)] if plan.model.proof else []),
        ("normalisation", _normalization(plan)),
        *([("survey", str(plan.survey))] if plan.survey else []),
        *_frozen_rows(plan),
        *_sample_rows(plan),
        ("tiles", f"{len(grid):,} ({_by(grid.counts)}), core {_by(plan.core)}, {_context(plan)}, slab {plan.slab}"),
        *_mean_rows(plan),
        *_window_rows(plan),
        ("arithmetic", f"{cost.multiply_adds / 1e12:.3f} T multiply-adds, {plan.amplification:.2f} x {_passes(plan)}"),
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


def _way_rows(network: AnyNetwork) -> list[tuple[str, str]]:
    """How an imported network is run, and why."""
    if not isinstance(network, Imported):
        return []
    if network.graph.is_streamed:
        way = "streamed along z, slab by slab: every operation allows it"
    else:
        way = f"a tile as one window: '{network.graph.unstreamed[0]}' cannot go along z slab by slab"
    return [("runs", way), *anchor_rows(network.graph)]


def anchor_rows(graph: Graph) -> list[tuple[str, str]]:
    """Which nodes lie by the extent of the whole volume."""
    if not graph.anchored:
        return []
    more = f" and {len(graph.anchored) - 1} more like it" if len(graph.anchored) > 1 else ""
    return [("", f"coordinates are those of the whole volume: '{graph.anchored[0]}'{more} aligns its corners with it")]


def _mean_rows(plan: Plan) -> list[tuple[str, str]]:
    """What a prediction is the mean of, where it is of several passes."""
    mean = plan.mean
    if mean is None:
        return []
    ways = {
        "none": "as the volume is",
        "flips": "reversed along each axis",
        "rotations": "reversed along each axis, and with y and x changed",
    }
    return [
        (
            "mean",
            f"of {mean.passes} passes, after the activation: the volume {ways[mean.augment]} (compute.augment {mean.augment})",
        )
    ]


def _member_rows(plan: Plan) -> list[tuple[str, str]]:
    """The networks of an ensemble."""
    rows = []
    for member, share in zip(plan.model.members, plan.model.shares, strict=False):
        network = f"{member.title}, weights {member.sha256[:12]}, {member.architecture.title}, {member.checkpoint}"
        rows.append(("member", f"{share:.3g} of the mean: {network}"))
        if member.origin:
            rows += [("", f"imported from {member.origin}"), ("", member.proof)]
    return rows


def _context(plan: Plan) -> str:
    """What a tile reads around its core."""
    return f"halo {_by(plan.halo)}" if plan.model.is_exact else "all windows that touch it"


def _window_rows(plan: Plan) -> list[tuple[str, str]]:
    """That an output is not exact, where it is not, and what windows that tiles share cost."""
    window, stream = plan.model.window, plan.stream
    if window is None or not isinstance(stream, BlendedStream):
        return []
    lattice, computed = prod(map(len, stream.grid.rows)), prod(map(stream.computed, range(3)))
    return [
        (
            "not exact",
            (
                f"blended windows of {_by(window.extent)}: {window}; {lattice:,} windows, of which tiles that share them compute "
                f"{computed:,}, {computed / lattice:.2f} x"
            ),
        )
    ]


def _passes(plan: Plan) -> str:
    return f"the {plan.mean.passes} passes" if plan.mean else "one pass"


def mismatch_rows(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """How far blended windows were found to be from one pass."""
    if found is None:
        return []
    start, stop = found["region"]
    return [
        (
            "mismatch",
            (
                f"{found['largest']:.2g} of the range at most, {found['mean']:.2g} on average, between {found['windows']} blended windows "
                f"and one pass over z, y, x {list(start)} to {list(stop)} as a volume of its own; it steps {found['seams']:.2g} x as much "
                "where windows begin and end as elsewhere"
            ),
        )
    ]


def _stored_rows(plan: Plan) -> list[tuple[str, str]]:
    """What is stored of the input, and what became of it since."""
    if plan.stored is None:
        return []
    return [
        (f"{plan.stored.unit}s", f"stored: {plan.stored}"),
        *(("input changed", line) for line in plan.stored.history),
    ]


def _frozen_rows(plan: Plan) -> list[tuple[str, str]]:
    """Where the statistics of norms over the whole input come from; once they are measured, what they do."""
    sample, statistics = plan.model.frozen, plan.statistics
    if sample is None:
        return []
    if isinstance(sample, WholeVolume):
        share = sample.multiply_adds / plan.cost.one_pass_multiply_adds
        took = f"{sample.multiply_adds / 1e12:.3f} T multiply-adds, {share:.2f} x one pass, before any tile"
        return [("statistics", f"of norms over the whole input, global: of {sample} of the survey, {took}")]
    rows = [("statistics", f"of norms over the whole input, frozen by the survey: {sample}")]
    figures = statistics.frozen.figures if statistics and statistics.frozen else {}
    if parts := figures.get("parts"):
        rows.append(
            ("frozen by parts", f"{', '.join(f'{part:.4f}' for part in parts)} of the range from the whole sample")
        )
    if region := figures.get("region"):
        rows.append(
            (
                "frozen or not",
                (
                    f"over {_by(region)} voxels in the middle, of the range of one pass over these: frozen {figures['frozen']:.4f} off, windows of "
                    f"{_by(figures['window'])} by their own statistics {figures['sliding']:.4f} off, these two {figures['apart']:.4f} apart (means)"
                ),
            )
        )
    return rows


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


def expectation_rows(expectation: Expectation) -> list[tuple[str, str]]:
    """What a measurement says of the time to come."""
    frozen = expectation.frozen_seconds
    first = f", first the statistics of norms over the whole input {_duration(frozen)}" if frozen else ""
    return [
        (
            "expected time",
            (
                f"{_duration(expectation.seconds)} with {expectation.workers} worker(s), start excluded: computing "
                f"{_duration(expectation.compute_seconds)}, beside it reading {_duration(expectation.read_seconds)}{first}"
            ),
        ),
        (
            "measured",
            (
                f"{expectation.voxels_a_second / 1e6:.2f} Mvoxel/s in all, {expectation.multiply_adds_a_second / 1e9:.0f} G "
                "multiply-adds/s a worker that has the machine to itself"
            ),
        ),
    ]


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else str(timedelta(seconds=round(seconds)))


def _by(extent: tuple[int, ...]) -> str:
    return " x ".join(map(str, extent))


def _normalization(plan: Plan) -> str:
    measured = plan.survey is None or plan.statistics is not None
    rule = plan.numbers if measured else plan.normalization
    if rule.mode == "none":
        return "none"
    formula = f"{rule.mode}: (value - {rule.offset:g}) * {rule.scale:g}"
    return (
        formula
        if measured or plan.survey is None
        else f"{formula} from a sample of {plan.survey.sample} boxes; the survey measures the whole volume"
    )


def ledger_rows(plan: Plan, infer: dict[str, Any]) -> list[tuple[str, str]]:
    """What the sessions of a run add up to."""
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

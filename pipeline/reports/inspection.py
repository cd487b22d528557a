"""What a store or a checkpoint is, in rows for a person."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from pipeline.core.appearance import Appearance, ranges
from pipeline.core.geometry.box import Triple, per_axis, triple
from pipeline.core.locations import is_url, without_file_scheme
from pipeline.core.network.imported import AnyNetwork, Imported
from pipeline.core.network.local import local, whole_input
from pipeline.core.network.receptive import least_halo, legal_extent, reach, receptive_radius
from pipeline.core.normalization import Normalization
from pipeline.core.tiles.cost import one_pass_multiply_adds
from pipeline.core.volume import Description, Selection
from pipeline.errors import StorageError
from pipeline.networks.checkpoint import Checkpoint, load_checkpoint
from pipeline.networks.importing.library import LibraryClass
from pipeline.networks.importing.network import import_network, is_foreign
from pipeline.reports.rows import anchor_rows
from pipeline.volumes.volume import is_volume_file, open_volume, store_levels

Rows = list[tuple[str, str]]


def inspect_path(path: str, *, of: LibraryClass | None = None, trust: bool = False, output: int = 0) -> Rows:
    """Rows about a Zarr store, about a checkpoint, or about a network of another library, which is imported for it; nothing is written.

    Args:
        path: What to look at.
        of: The class that a file of weights is of.
        trust: Whether code of any package may be run to build it.
        output: Which output of a network is looked at.

    Raises:
        StorageError: There is nothing, or no readable store.
        ModelError: A file that is no checkpoint.
    """
    if is_volume_file(path):
        return _store_rows(path)
    path = without_file_scheme(path)
    if not is_url(path) and not Path(path).exists():
        raise StorageError(f"'{path}' was asked for, but there is nothing there. Check the path.")
    if not is_url(path) and (of is not None or is_foreign(Path(path))):
        return _checkpoint_rows(path, import_network(path, of=of, trust=trust, output=output))
    return _checkpoint_rows(path, load_checkpoint(path)) if Path(path).is_file() else _store_rows(path)


def _store_rows(url: str) -> Rows:
    levels = store_levels(url)
    rows, warnings = [("store", url), ("levels", str(levels))], dict[str, None]()
    for level in range(levels):
        volume = open_volume(url, Selection(level))
        description = volume.description
        shards = f", shards {_by(volume.shards)}" if volume.shards else ""
        stored, axes = volume.stored_axes, description.axes
        rows += [
            (
                f"level {level}",
                f"axes {stored if stored == axes else f'{stored} (read as {axes})'}, shape {_by(volume.array.shape)}, {description.dtype}, {volume.format}",
            ),
            ("", f"chunks {_by(volume.chunks)}{shards}"),
            ("", f"voxel {_voxel(description)}"),
        ]
        warnings |= dict.fromkeys(volume.warnings)
    return rows + [("warning", warning) for warning in warnings]


def _voxel(description: Description) -> str:
    """Size of a voxel an axis."""
    if description.space.is_unknown:
        return "size unknown"
    placed = zip(description.axes.removeprefix("c"), description.space.scale, description.space.units, strict=True)
    return ", ".join(f"{axis} {size:g} {unit or '(no unit)'}" for axis, size, unit in placed)


def _checkpoint_rows(path: str, checkpoint: Checkpoint) -> Rows:
    a = checkpoint.architecture
    rows = [
        ("checkpoint", path),
        ("network", _network(checkpoint)),
        ("channels", f"{a.in_channels} in, {a.out_channels} out"),
        ("parameters", f"{_parameters(checkpoint):,}"),
        ("stride", _by(a.stride)),
        *_reach_rows(a),
    ]
    if a.padding == "same":
        rows.append(("least halo", _by(least_halo(a.graph))))
    if isinstance(a, Imported):
        rows += [("legal extents", _legal_extents(a)), *anchor_rows(a.graph)]
    if not a.graph.is_local:
        rows.append(("whole input", f"{whole_input(a.graph)}: not by tiles"))
    rows.append(("multiply-adds", f"{_multiply_adds_a_voxel(a):,.0f} a voxel"))
    rows.append(("weights", f"SHA-256 {checkpoint.sha256}"))
    return rows + _training_rows(checkpoint)


def _legal_extents(network: Imported) -> str:
    """Which extents one pass takes, by axis."""
    graph, stride = network.graph, network.stride
    if network.padding == "same":
        return f"multiples of {_by(stride)}; a volume of others is mirrored to them, and cropped again"
    least = triple(legal_extent(graph, axis, 2 * m + 1) for axis, m in enumerate(receptive_radius(graph)))
    return f"{_by(least)} and by {_by(stride)} more, to predict what is {_by(receptive_radius(graph))} less a side"


def _network(checkpoint: Checkpoint) -> str:
    a = checkpoint.architecture
    if isinstance(a, Imported):
        kinds = Counter(type(node.operation).__name__ for node in a.graph.nodes[1:])
        way = "streamed" if a.graph.is_streamed else "by windows"
        return f"{a.title}, {way}: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}"
    norm = "batch norm" if a.norm == "batch" else "no norm"
    padding = f"{a.padding} padding" if checkpoint.padding_known else f"padding not told ({a.padding} by default)"
    return f"{a.ndim}D UNet, depth {a.depth}, width {a.width}, {norm}, {'bias' if a.bias else 'no bias'}, {padding}"


def _parameters(checkpoint: Checkpoint) -> int:
    if isinstance(checkpoint.architecture, Imported):
        return sum(tensor.numel() for tensor in checkpoint.state.values())
    return checkpoint.build().parameter_count


def _reach_rows(network: AnyNetwork) -> Rows:
    """How far an output block reaches; of both sides where they differ."""
    sides = reach(network.graph)
    if all(before == after for before, after in sides):
        return [
            ("receptive radius", f"{_by(receptive_radius(network.graph))} (a side, of a block on the stride lattice)")
        ]
    before, after = (triple(side[n] for side in sides) for n in (0, 1))
    return [("receptive radius", f"{_by(before)} before, {_by(after)} after a block on the stride lattice")]


def _multiply_adds_a_voxel(network: AnyNetwork) -> float:
    """What one large pass comes to; of an unpadded UNet, of the same one padded, where it does not depend on the extent."""
    if isinstance(network, Imported):
        large = per_axis(lambda s, m: 64 * s + 4 * m, network.stride, receptive_radius(network.graph))
        return one_pass_multiply_adds(local(network.graph), large) / prod(large)
    padded = replace(network, padding="same")
    return one_pass_multiply_adds(padded.graph, padded.stride) / prod(padded.stride)


def _training_rows(checkpoint: Checkpoint) -> Rows:
    rows = []
    if checkpoint.axes:
        rows.append(("axes", checkpoint.axes))
    if checkpoint.normalization:
        rows.append(("normalisation", _rule(checkpoint.normalization)))
    if checkpoint.activation:
        rows.append(("activation", checkpoint.activation))
    if checkpoint.voxel_size_nm:
        rows.append(("voxel size", f"{_by(checkpoint.voxel_size_nm)} nm"))
    if checkpoint.learned is not None:
        rows.append(("learned", "true" if checkpoint.learned else "false: its training found nothing"))
    rows += [("trained on", _appearance(appearance)) for appearance in checkpoint.training_data]
    return rows + [(f"  {name}", _shorten(value)) for name, value in checkpoint.provenance.items() if value]


def _rule(rule: Normalization) -> str:
    """A rule, with numbers that hold for every volume."""
    if rule.mode == "fixed":
        return f"fixed: (value - {rule.offset:g}) x {rule.scale:g}"
    return f"percentile, {rule.low:g} to {rule.high:g}" if rule.mode == "percentile" else rule.mode


def _appearance(appearance: Appearance) -> str:
    size = f", voxels of {_by(appearance.voxel_size_nm)} nm" if appearance.voxel_size_nm else ""
    return f"{appearance.dtype}, as the network sees it {ranges(appearance)} from the 1st to the 99th percentile{size}"


def _shorten(value: Any) -> str:
    """A fact of a checkpoint's making; of nested ones the plain values, a level down."""
    if isinstance(value, list):
        return "; ".join(_shorten(part) for part in value)
    if not isinstance(value, dict):
        return str(value)
    plain = (f"{name} {part}" for name, part in value.items() if isinstance(part, int | float | str) and part != "")
    return ", ".join(plain)


def _by(extent: tuple[float, ...] | Triple) -> str:
    return " x ".join(f"{n:g}" if isinstance(n, float) else str(n) for n in extent)

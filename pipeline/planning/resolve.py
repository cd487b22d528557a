"""From a configuration to a plan: every `auto` resolved, every refusal made, nothing written."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import ModelConfig, RunConfig
from pipeline.config.run import EIGHT_BITS_OF_LOGITS, FrozenConfig
from pipeline.core.appearance import Appearance
from pipeline.core.familiarity import strange_values, strange_voxels
from pipeline.core.frozen import Sample, WholeVolume
from pipeline.core.geometry.box import Box, Triple, per_axis, triple
from pipeline.core.lesson import lesson
from pipeline.core.locations import is_url
from pipeline.core.machine import Machine
from pipeline.core.network import document
from pipeline.core.network.graph import Graph
from pipeline.core.network.imported import AnyNetwork
from pipeline.core.network.local import local, whole_input
from pipeline.core.network.mean import Mean
from pipeline.core.network.norm_passes import extended, norm_passes
from pipeline.core.network.receptive import legal_extent, lost_margin, receptive_radius
from pipeline.core.network.stream import Stream
from pipeline.core.normalization import Normalization
from pipeline.core.plan import (
    IDENTITY_VERSION,
    Compute,
    Cost,
    Member,
    Model,
    OutputSpec,
    Plan,
    ensemble_sha256,
    output_bytes,
)
from pipeline.core.statistics import Survey
from pipeline.core.stored import Inventory
from pipeline.core.tiles.cost import (
    cache_bytes,
    network_values,
    norm_pass_multiply_adds,
    norm_pass_values,
    one_pass_multiply_adds,
    pass_extents,
    read_slices,
    total_multiply_adds,
    total_voxels_decoded,
    total_voxels_read,
    window_values,
)
from pipeline.core.tiles.lattice import BlendedWindow
from pipeline.core.tiles.tiling import MEMORY_SHARE, TileRequest, Tiling, choose_tiling
from pipeline.errors import ConfigError, ModelError, PlanError, StorageError
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.device import (
    computes_bfloat16,
    cpuinfo,
    cudnn_warnings,
    device_count,
    environment,
    free_device_bytes,
    resolved_device,
    visible_cards,
)
from pipeline.networks.evaluate import of_one_pass
from pipeline.networks.frozen import legal, localised
from pipeline.networks.probe import predicted, region
from pipeline.planning.ensemble import alone, check_alike, digest, networks_of
from pipeline.planning.network import source_digest
from pipeline.planning.statistics import appearance, sampled, survey_of
from pipeline.volumes.counted import counted
from pipeline.volumes.volume import Volume, open_volume

THREAD_EFFICIENCY = 0.96
"""What a doubling of a worker's compute threads leaves of each: a little is lost where a layer is done by one alone."""

EXACT_IN_FLOAT32 = 2**24
"""Up to here float32 holds every integer."""

ROUGH_EXTENT = 64
"""Voxels an axis of the middle of a volume, which stands for the whole where a rough answer will do."""


def make_plan(
    config: RunConfig,
    machine: Machine,
    *,
    earlier: Plan | None = None,
    governs: bool = False,
    like: Plan | None = None,
    rough: bool = False,
    inventory: Inventory | None = None,
    remeasure: bool = False,
) -> Plan:
    """Resolve a configuration.

    Args:
        config: What is asked for.
        machine: Where workers will run.
        earlier: A plan made before, for the same output or of the same voxels; its numbers are taken over where they still hold.
        governs: Whether the tiles, shards, threads, dtype and device of `earlier` are taken wherever the configuration
            says `auto`, whatever the number of workers now.
        like: A plan of another volume of the same set: its threads, dtype and device are taken wherever the configuration
            says `auto` and `earlier` does not govern.
        rough: Whether to look at the volume's middle alone: for what a run would cost, and never for a run.
        inventory: What is stored of the volume, where that was counted; the plan holds its sum.
        remeasure: Whether numbers of `earlier` are of other voxels.

    Raises:
        StorageError, ModelError, ConfigError, PlanError: It cannot be a run; says what to do.
    """
    volume = open_volume(config.input.url, config.input.selection)
    if inventory:
        volume = counted(volume, inventory)
    networks = networks_of(config, earlier)
    checkpoint = networks[0]
    _check_same(config, networks)
    config, other_activation = _with_activation(config, networks)
    for model, network in zip(alone(config.model), networks, strict=True):
        by_itself = config.model_copy(update={"model": model})
        _check_fit(by_itself, volume, network)
    check_alike(config.model, networks, rule_given=config.normalize is not None)
    frozen = statistics_of_norms(config, volume, networks, machine)
    original = networks
    if frozen:
        networks = tuple(localised(network) for network in networks)
        checkpoint = networks[0]
    mean = _mean(config, volume, networks)
    pinned = earlier if governs else None
    alike = pinned or like
    window = blended_window(config, checkpoint)
    device = _device(config, machine, alike)
    rule, warnings = _rule(config, checkpoint)
    known = None if remeasure else earlier
    normalization, survey = _numbers(rule, volume, config, known, governs=governs, rough=rough)
    sample = None if rough else _sample(volume, checkpoint, normalization, config, known, governs=governs)
    dtype, reason = _dtype(config, volume, networks, normalization, device, alike, is_measured=frozen is None)
    request = _tile_request(config, volume, checkpoint, machine, device, dtype, pinned, mean, window)
    options = worker_choices(config, machine, device, alike)
    tiling, threads = _best_workers(request, options, config, machine, governed=governs)
    frozen, surveyed = _priced(frozen, original[0].architecture.graph, tiling)
    plan = Plan(
        source=volume.description,
        nonfinite=config.input.nonfinite,
        output=_output(config, volume, checkpoint, tiling),
        model=replace(
            _model(config, original, window),
            architecture=checkpoint.architecture,
            frozen=frozen,
        ),
        normalization=normalization,
        survey=survey,
        identity_version=1 if survey is None and rule.is_measured(volume.description.dtype) else IDENTITY_VERSION,
        core=tiling.grid.core,
        halo=tiling.halo,
        slab=tiling.stream.slab,
        compute=Compute(device, dtype, threads, reason, config.compute.augment),
        cost=_cost(config, volume, tiling, _left_bytes(options, config, machine, tiling, threads), surveyed),
        environment={**environment(), "processor": cpuinfo("model name") or platform.machine()},
        warnings=(
            *volume.warnings,
            *warnings,
            *other_activation,
            *precision_warnings(volume, normalization),
            *dict.fromkeys(
                warning
                for network in networks
                for warning in _training_warnings(volume, network, normalization, sample)
            ),
            *cudnn_warnings(checkpoint.architecture.ndim, device, dtype),
        ),
        sample=sample,
        stored=inventory.stored if inventory else None,
    )
    return replace(plan, statistics=plan.measured_by(known)) if known else plan


def _check_same(config: RunConfig, networks: Sequence[Checkpoint]) -> None:
    """Refuse a file that is not what it was when a go over a dataset began."""
    if config.model.digest not in (None, digest(config.model, networks)):
        names = "', '".join(model.checkpoint for model in alone(config.model))
        weights = ", ".join(network.sha256[:12] for network in networks)
        raise ModelError(
            f"Checkpoint '{names}' was overwritten while this go over the dataset was at it: it has weights "
            f"{weights} now, and nothing is made of them in a go that began with others. Run again, and all volumes get "
            "what lies there then; or put the first one back. To have both, give each a file or a version of its own."
        )


def _device(config: RunConfig, machine: Machine, pinned: Plan | None) -> str:
    """What workers compute on. Where they run elsewhere it cannot be looked at, and what is asked for is believed."""
    asked: str = config.compute.device
    if asked == "auto" and pinned:
        asked = pinned.compute.device
    if machine.device is None:
        return resolved_device(asked)
    return machine.device if asked == "auto" else asked


def _device_memory_bytes(config: RunConfig, device: str, machine: Machine) -> int | None:
    """Memory of a card; None where there is none.

    Raises:
        ConfigError: The cards are elsewhere, and nothing says how large they are.
    """
    given = config.compute.device_memory_gb
    if device != "cuda":
        return None
    if given != "auto":
        return int(given * 1e9)
    if _is_elsewhere(machine):
        raise ConfigError(
            f"Workers of cluster.kind '{config.cluster.kind}' compute on cards that this machine cannot see, so tiles cannot be "
            "chosen to fit them. Set compute.device_memory_gb to the free memory of the smallest of them."
        )
    return free_device_bytes(device)


def _is_elsewhere(machine: Machine) -> bool:
    """Whether workers have cards that this machine cannot see."""
    return machine.device is not None and not visible_cards()


def _check_fit(config: RunConfig, volume: Volume, checkpoint: Checkpoint) -> None:
    """The volume and the network must be of one kind.

    Raises:
        PlanError, ConfigError: They are not.
    """
    found, wanted = volume.description, checkpoint.architecture
    if wanted.ndim == 3 and "z" not in found.axes:
        raise PlanError(
            f"Checkpoint '{config.model.checkpoint}' is a 3D network, but input '{found.url}' has the axes {found.axes}, "
            "without z. Use a 2D network, or set input.axes if one of them is z."
        )
    if found.channels != wanted.in_channels:
        enough = found.channels > wanted.in_channels and not found.chosen
        remedy = (
            f"Set input.channels to the {wanted.in_channels} that it was trained on, in their order"
            if enough
            else "Use a volume or a checkpoint with the other number of channels"
        )
        chosen = f", chosen by input.channels {list(config.input.channels)}" if found.chosen else ""
        raise PlanError(
            f"Checkpoint '{config.model.checkpoint}' reads {wanted.in_channels} channels, but input '{found.url}' has "
            f"{found.channels} (axes {found.axes}{chosen}). {remedy}; or set input.axes if that axis is no channel."
        )
    if config.output.activation == "softmax" and wanted.out_channels == 1:
        raise ConfigError(
            "output.activation is 'softmax', but the network predicts one channel, whose softmax is 1 everywhere. "
            "Set output.activation to 'sigmoid'."
        )


PATCH: dict[int, Triple] = {2: (1, 256, 256), 3: (64, 64, 64)}
"""Voxels of a patch in which statistics of norms are measured, by the network's spatial axes."""


def statistics_of_norms(
    config: RunConfig, volume: Volume, networks: Sequence[Checkpoint], machine: Machine
) -> Sample | WholeVolume | None:
    """Where the statistics of norms over the whole input are measured; None where the network has no such norms.

    Of the whole volume, what that takes is known once there are tiles.

    Raises:
        ModelError: It has, and nobody asked that they be fixed; or they cannot be those of the whole volume.
        ConfigError: The whole volume turned has others.
        PlanError: The volume named for it is of another kind, or the patches are more than memory holds.
    """
    looking = [network for network in networks if not network.architecture.graph.is_local]
    if not looking or not config.model.exact:
        return None
    checkpoint, graph = looking[0], looking[0].architecture.graph
    if len(networks) > 1:
        raise ModelError(
            f"A network of model.ensemble cannot be run by tiles: {whole_input(graph)}. Statistics are {config.model.statistics or 'frozen'} of one network alone so far: run "
            "each by itself, with model.statistics."
        )
    if config.model.statistics is None:
        raise ModelError(
            f"Checkpoint '{config.model.checkpoint}' cannot be run by tiles as it is: {whole_input(graph)}. A tile would have the statistics "
            "of its own window, and its values would not be those of one pass over the volume. Set model.statistics to frozen: they are "
            "measured once, over a sample, and tiles are exact by them; or to global: over the whole volume, which takes a pass for each norm, and "
            "gives what one pass would. Or set model.exact to false and model.window: windows are blended, and the output says that it is not exact."
        )
    if config.model.statistics == "global":
        return _whole_volume(config, volume, checkpoint)
    asked = config.model.frozen_from or FrozenConfig()
    found = volume.description
    if asked.url:
        found = open_volume(asked.url).description
        if found.channels != volume.description.channels or ("z" in found.axes) < (checkpoint.architecture.ndim == 3):
            raise PlanError(
                f"model.frozen_from.url '{asked.url}' has {found.channels} channels and the axes {found.axes}, and the input "
                f"'{volume.description.url}' {volume.description.channels} and {volume.description.axes}: statistics of one say nothing of "
                "the other. Name a volume of the same kind."
            )
    wanted = PATCH[checkpoint.architecture.ndim] if asked.patch == "auto" else asked.patch
    least = per_axis(lambda m: 2 * m + 1, lost_margin(graph))
    patch = legal(graph, per_axis(lambda n, m, k: max(min(n, m), k), wanted, found.shape, least))
    context = per_axis(lambda n, m, r: 0 if n >= m else min(r, n // 4), patch, found.shape, receptive_radius(graph))
    sample = Sample(
        document.digest(graph),
        found.shape,
        patch,
        context,
        asked.patches,
        asked.seed,
        found.metadata_sha256 if asked.url else "",
        asked.url or "",
    )
    needed, has = bytes_of_sample(graph, sample), machine.driver_bytes or machine.memory_bytes
    if needed > has:
        raise PlanError(
            f"To freeze the statistics of this network over {sample} takes up to {needed / 1e9:.1f} GB of this process, wherever the workers are, "
            f"and the machine has {has / 1e9:.1f} GB. Set model.frozen_from.patches or model.frozen_from.patch to less."
        )
    return sample


def _whole_volume(config: RunConfig, volume: Volume, checkpoint: Checkpoint) -> WholeVolume:
    """Statistics of the whole volume, what they take not known yet.

    Raises:
        ModelError: Each slice has its own.
        ConfigError: The volume turned has others.
    """
    graph = checkpoint.architecture.graph
    if checkpoint.architecture.ndim == 2 and volume.shape[0] > 1:
        raise ModelError(
            f"model.statistics is 'global', but checkpoint '{config.model.checkpoint}' is a 2D network: each of the {volume.shape[0]} slices is an "
            "image with statistics of its own, and tiles would need as many sets of them. Set model.statistics to frozen: one set for all slices."
        )
    wanted, ends = extended(graph, volume.shape), extended(local(graph), volume.shape)
    if wanted != ends:
        raise ModelError(
            f"model.statistics is 'global', but one pass of checkpoint '{config.model.checkpoint}' takes the volume, mirrored to {list(wanted)} voxels, and "
            f"tiles end at {list(ends)}: a pool over its whole input is coarser than all else of it. Set model.statistics to frozen, or crop the "
            f"volume to multiples of {list(graph.stride)}."
        )
    if config.compute.augment != "none":
        raise ConfigError(
            f"compute.augment is '{config.compute.augment}', but model.statistics is 'global': the volume turned has other statistics, each of which "
            "would take its own passes. Set compute.augment to 'none', or model.statistics to frozen."
        )
    return WholeVolume(document.digest(graph), len(norm_passes(graph, volume.shape)), 0)


def _priced(
    frozen: Sample | WholeVolume | None, graph: Graph, tiling: Tiling
) -> tuple[Sample | WholeVolume | None, int]:
    """The same with what passes over the tiles take; and the values that one of them holds at most, 0 where there are none."""
    if not isinstance(frozen, WholeVolume):
        return frozen, 0
    passes, grid = norm_passes(graph, tiling.grid.volume), tiling.grid
    priced = replace(frozen, multiply_adds=sum(norm_pass_multiply_adds(each, grid) for each in passes))
    return priced, max(norm_pass_values(each, grid, tiling.stream.slab) for each in passes)


def bytes_of_sample(graph: Graph, sample: Sample) -> int:
    """Memory that the maps of all patches take at most, while statistics are measured."""
    fixed = local(graph)
    extents = [pass_extents(fixed, axis)[np.newaxis] for axis in of_one_pass(fixed, sample.patch)]
    return int(4 * sample.patches * window_values(fixed, extents)[0])


def _mean(config: RunConfig, volume: Volume, networks: Sequence[Checkpoint]) -> Mean | None:
    """Of which passes a prediction is the mean; None where it is of one.

    Raises:
        PlanError: The volume or the network is not the same turned.
    """
    asked = config.compute.augment
    graphs = tuple(network.architecture.graph for network in networks)
    mean = Mean(graphs, networks[0].architecture.ndim, asked)
    space = volume.description.space
    problems = list(mean.problems(None if space.is_unknown else space.scale))
    if problems:
        raise PlanError(
            f"compute.augment is '{asked}', whose passes change y and x, but {'; and '.join(problems)}. Set compute.augment to 'flips'."
        )
    return None if mean.is_plain else mean


def blended_window(config: RunConfig, checkpoint: Checkpoint) -> BlendedWindow | None:
    """The windows that an output is blended from; None where it is exact.

    Raises:
        ConfigError: The network can be exact, or cannot have such windows; says what to do.
    """
    asked, network = config.model.window, checkpoint.architecture
    if asked is None:
        return None
    name = f"Checkpoint '{config.model.checkpoint}'"
    if network.graph.is_local:
        raise ConfigError(
            f"model.exact is false, but {name[0].lower()}{name[1:]} can be exact: its network looks at no more than {list(receptive_radius(network.graph))} "
            "voxels a side, so tiles give what one pass over the whole volume does, and cost less than windows that overlap. Leave "
            "model.exact and model.window out."
        )
    if config.compute.augment != "none":
        raise ConfigError(
            f"compute.augment is '{config.compute.augment}', but model.exact is false: blended windows are of one pass each. Set "
            "compute.augment to 'none'."
        )
    if network.padding == "valid":
        raise ConfigError(
            f"{name} is a network without padding, of which a window gives less than it reads: windows of model.window are for networks "
            "that pad themselves. Set model.statistics to 'frozen', or export the network with padding."
        )
    if network.ndim == 2 and isinstance(asked.overlap, tuple) and asked.overlap[0]:
        raise ConfigError(
            f"model.window.overlap is {list(asked.overlap)}, but {name[0].lower()}{name[1:]} is a 2D network, for which every slice is an "
            "image of its own. Set its first number to 0."
        )
    overlap = triple(_overlap(config, network, axis) for axis in range(3))
    return BlendedWindow(asked.core, overlap, asked.blend)


def _overlap(config: RunConfig, network: AnyNetwork, axis: int) -> int:
    """Voxels along an axis that windows share: as given, or as many as give windows of a legal extent."""
    window = config.model.window
    if window is None:
        raise ValueError("no windows were asked for")
    core = window.core[axis]
    if not isinstance(window.overlap, tuple):
        share = 0.0 if network.ndim == 2 and axis == 0 else window.overlap
        return legal_extent(network.graph, axis, ceil(core / (1 - share) - 1e-6)) - core
    extent = core + window.overlap[axis]
    legal = legal_extent(network.graph, axis, extent)
    if legal != extent:
        raise ConfigError(
            f"model.window has core {list(window.core)} and overlap {list(window.overlap)}: windows of {extent} voxels along "
            f"{'zyx'[axis]}, which one pass of the network does not take. The next legal extent is {legal}: set the overlap there to "
            f"{legal - core}."
        )
    return window.overlap[axis]


def _tile_request(
    config: RunConfig,
    volume: Volume,
    checkpoint: Checkpoint,
    machine: Machine,
    device: str,
    dtype: str,
    pinned: Plan | None,
    mean: Mean | None,
    window: BlendedWindow | None,
) -> TileRequest:
    """What tiles are chosen for, but for the workers that will compute them."""
    tiles = _asked_tiles(config)
    here = (checkpoint.architecture, volume.shape, mean, window)
    if pinned and (pinned.model.architecture, pinned.source.shape, pinned.mean, pinned.model.window) == here:
        tiles = _pinned_tiles(tiles, pinned)
    return TileRequest(
        architecture=checkpoint.architecture,
        volume=volume.shape,
        in_chunks=volume.description.chunks,
        in_bytes=volume.array.dtype.itemsize,
        out_bytes=np.dtype(config.output.dtype).itemsize,
        value_bytes=_value_bytes(checkpoint, device, dtype),
        memory_bytes=machine.memory_bytes,
        workers=1,
        device=device,
        device_memory_bytes=None
        if pinned and _is_elsewhere(machine)
        else _device_memory_bytes(config, device, machine),
        mean=mean,
        window=window,
        **tiles,
    )


def _value_bytes(checkpoint: Checkpoint, device: str, dtype: str) -> int:
    """Of a value inside the network: where a half type is emulated it is float32, in float16 on a CPU once for each tap."""
    if dtype == "float16" and device == "cpu":
        taps: int = 3**checkpoint.architecture.ndim
        return 4 * taps
    return 2 if dtype != "float32" and (device == "cuda" or computes_bfloat16(device)) else 4


def worker_choices(
    config: RunConfig, machine: Machine, device: str, pinned: Plan | None = None
) -> list[tuple[int, int]]:
    """Numbers of workers, and compute threads of each, that may share this machine."""
    asked, threads = config.cluster.workers, config.compute.threads
    if threads == "auto" and pinned:
        threads = pinned.compute.threads
    if asked != "auto":
        counts = [asked]
    elif machine.workers is not None:
        counts = [machine.workers]
    elif device == "cuda":
        counts = [device_count(device)]
    elif threads != "auto":
        counts = [max(machine.cores // threads, 1)]
    else:
        counts = [n for n in range(1, machine.cores + 1) if machine.cores % n == 0]
    return [(n, max(machine.cores // n, 1) if threads == "auto" else threads) for n in counts]


def _best_workers(
    request: TileRequest, options: list[tuple[int, int]], config: RunConfig, machine: Machine, *, governed: bool
) -> tuple[Tiling, int]:
    """Tiles, and threads a worker, of the least predicted time. Few wide workers need less halo, many idle less.

    Raises:
        PlanError: No choice of workers has possible tiles; said of the one with the most memory a worker.
    """
    found: list[tuple[float, Tiling, int]] = []
    refusal: PlanError | None = None
    for workers, threads in options:
        memory = memory_bytes_a_worker(config, machine, 1 if governed else workers)
        try:
            tiling = choose_tiling(replace(request, workers=ceil(workers / machine.runs), memory_bytes=memory))
        except PlanError as error:
            refusal = refusal or error
            continue
        efficiency = THREAD_EFFICIENCY ** np.log2(threads)
        found.append((tiling.price / (workers * threads * efficiency), tiling, threads))
    if not found and refusal:
        raise refusal
    _, tiling, threads = min(found, key=lambda option: option[0])
    return tiling, threads


def workers_that_fit(config: RunConfig, machine: Machine, plan: Plan) -> int:
    """Processes that a run of a plan may start: those asked for, or fewer where the memory does not hold as many."""
    asked = worker_choices(config, machine, plan.compute.device, plan)[0][0]
    if config.cluster.memory_gb != "auto":
        return asked
    return max(min(asked, int(machine.memory_bytes * MEMORY_SHARE // plan.cost.worker_bytes)), 1)


def _asked_tiles(config: RunConfig) -> dict[str, Any]:
    """What the configuration says of tiles, as a request names it: None for auto, () for no shards."""
    found = {
        "core": config.tiles.core,
        "halo": config.tiles.halo,
        "chunks": config.output.chunks,
        "shards": config.output.shards,
    }
    return {key: None if value == "auto" else () if value == "none" else value for key, value in found.items()}


def _pinned_tiles(asked: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The plan's tiles where all that is asked for agrees with them; else what is asked for, to be told apart later."""
    padded = plan.grid.padding == "same" and plan.model.is_exact  # else no halo can be asked for
    earlier = {
        "core": plan.core,
        "halo": plan.halo if padded else None,
        "chunks": plan.output.chunks,
        "shards": plan.output.shards or (),
    }
    agrees = all(value in (None, earlier[key]) for key, value in asked.items())
    return {**earlier, "slab": plan.slab} if agrees else asked


def memory_bytes_a_worker(config: RunConfig, machine: Machine, workers: int) -> int:
    """What a worker may fill, bytes: as given, or its share of the machine."""
    given = config.cluster.memory_gb
    return machine.memory_bytes // workers if given == "auto" else int(given * 1e9)


def _dtype(
    config: RunConfig,
    volume: Volume,
    networks: Sequence[Checkpoint],
    normalization: Normalization,
    device: str,
    pinned: Plan | None,
    *,
    is_measured: bool,
) -> tuple[str, str]:
    """Type of values inside the network, and why: bfloat16 where hardware has it and nobody could see the difference."""
    asked, tolerance = config.compute.dtype, config.compute.tolerance
    if asked != "auto":
        return asked, "as asked for"
    if pinned:
        return pinned.compute.dtype, pinned.compute.reason
    if not is_measured:
        return "float32", "statistics of its norms are not measured yet; compute.dtype would say another"
    if device == "cuda" and not visible_cards():
        return "float32", "no card here to try bfloat16 on; compute.dtype would say it"
    if not computes_bfloat16(device):
        return "float32", "the hardware has no bfloat16"
    if tolerance == "auto":
        if config.output.dtype != "uint8":
            return "float32", "a float32 output shows every difference; compute.tolerance would allow some"
        tolerance = 1 / 255
    array = volume.read(region(networks[0].architecture, volume.shape))
    array = np.nan_to_num(array, posinf=0.0, neginf=0.0) if array.dtype.kind == "f" else array
    differences = []
    for checkpoint in networks:
        exact, found = (
            predicted(checkpoint, array, normalization, config.output.activation or "none", device, dtype)
            for dtype in ("float32", "bfloat16")
        )
        differences.append(float(np.abs(exact - found).max()))
    difference = max(differences)
    said = f"over {array[0].size} voxels in the middle bfloat16 is at most {difference:.2g} off float32"
    if difference <= tolerance:
        return "bfloat16", f"{said}, within {tolerance:.2g}"
    return "float32", f"{said}, more than {tolerance:.2g}; a larger compute.tolerance would allow it"


def _rule(config: RunConfig, checkpoint: Checkpoint) -> tuple[Normalization, list[str]]:
    """The normalisation rule, and a warning where it is not the one that the network was trained with."""
    trained = checkpoint.normalization
    if config.normalize is None:
        return trained or Normalization(), []
    asked = Normalization(**config.normalize.model_dump())
    if trained is None or asked.same_rule(trained):
        return asked, []
    return asked, [
        f"normalize.mode is '{asked.mode}', but the checkpoint was trained with '{trained.mode}': predictions may be worse."
    ]


def _with_activation(config: RunConfig, networks: Sequence[Checkpoint]) -> tuple[RunConfig, list[str]]:
    """The configuration with what is applied to the network's output, and a warning where its package declares something else.

    Raises:
        ConfigError: Nothing is, and eight bits are asked for of values of any range; or networks of one mean declare different ones.
    """
    asked, declared = config.output.activation, networks[0].activation
    if asked is None and len({network.activation or "none" for network in networks}) > 1:
        told = ", ".join(network.activation or "none" for network in networks)
        raise ConfigError(
            f"The networks of model.ensemble declare different activations ({told}). Set output.activation, for all."
        )
    if asked is None:
        if config.output.dtype == "uint8" and declared in (None, "none") and not all(n.is_bounded for n in networks):
            raise ConfigError(f"output: {EIGHT_BITS_OF_LOGITS}.")
        update = {"activation": declared or "none"}
        return config.model_copy(update={"output": config.output.model_copy(update=update)}), []
    if declared in (None, asked):
        return config, []
    return config, [
        (
            f"output.activation is '{asked}', but the network's package declares '{declared}' for its output. Leave output.activation "
            "out, and that is taken."
        )
    ]


def _numbers(
    rule: Normalization, volume: Volume, config: RunConfig, earlier: Plan | None, *, governs: bool, rough: bool
) -> tuple[Normalization, Survey | None]:
    """The rule with the numbers that are known of it, or with those of a sample; and the survey that measures them, where one does.

    Nothing here passes over the volume. A plan that governs keeps what it has: of an earlier version, numbers that it measured.
    """
    found = volume.description
    if earlier and _same_volume(earlier, volume, config) and rule.same_rule(earlier.normalization):
        survey = earlier.survey if governs else survey_of(rule, found)
        return earlier.normalization, survey
    if rough:
        middle = Box.of_shape(volume.shape).middle(ROUGH_EXTENT)
        return sampled(rule, volume, nonfinite="zero", boxes=[middle]), survey_of(rule, found)
    return sampled(rule, volume, nonfinite=config.input.nonfinite), survey_of(rule, found)


def _same_volume(earlier: Plan, volume: Volume, config: RunConfig) -> bool:
    """Whether two plans measure the same: how large voxels are changes no statistics, nor where they lie, if they were counted there and here."""
    here = replace(volume.description, space=earlier.source.space)
    if earlier.stored is not None:
        here = replace(here, url=earlier.source.url)
    return (earlier.source, earlier.nonfinite) == (here, config.input.nonfinite)


def precision_warnings(volume: Volume, normalization: Normalization) -> list[str]:
    """A warning where the network's input, which is float32, cannot tell apart values that the volume does; by its middle and corners.

    Integers up to 2^24 are exact in float32. An offset is subtracted before, in float64, so what counts is the distance from it.
    """
    if volume.array.dtype.kind not in "iuf" or volume.array.dtype.itemsize < 4 or volume.array.dtype == np.float32:
        return []
    whole = Box.of_shape(volume.shape)
    samples = [
        volume.read(box).astype(np.float64) for box in (whole.middle(ROUGH_EXTENT), *whole.corners(ROUGH_EXTENT // 4))
    ]
    largest = max(float(np.max(np.abs(v - normalization.offset), initial=0.0, where=np.isfinite(v))) for v in samples)
    if normalization.mode == "minmax":
        largest = max(largest, 1 / normalization.scale)  # of the type, or of more places
    if largest <= EXACT_IN_FLOAT32:
        return []
    return [
        (
            f"Values of dtype {volume.description.dtype} lie {largest:.4g} and more from the offset {normalization.offset:g} of the "
            f"normalisation. The network's input is float32, exact to 2^24 = {EXACT_IN_FLOAT32:,}: above, it loses bits, and values that "
            "differ may become one."
        )
    ]


def _sample(
    volume: Volume,
    checkpoint: Checkpoint,
    normalization: Normalization,
    config: RunConfig,
    earlier: Plan | None,
    *,
    governs: bool,
) -> Appearance | None:
    """What the volume looks like to the network, where that says something; a plan that governs has looked already."""
    if not checkpoint.training_data:
        return None
    same = earlier and _same_volume(earlier, volume, config) and normalization == earlier.normalization
    if earlier and same and (governs or earlier.sample):
        return earlier.sample
    return appearance(volume, normalization)


def _training_warnings(
    volume: Volume, checkpoint: Checkpoint, normalization: Normalization, sample: Appearance | None
) -> list[str]:
    """What speaks against this network on this volume."""
    seen = checkpoint.training_data
    found = [*lesson(checkpoint.learned, checkpoint.provenance.get("validation") or {})]
    if sample:
        found += strange_values(sample, seen, normalization, checkpoint.normalization)
    return found + _voxel_size_warnings(volume, checkpoint)


def _voxel_size_warnings(volume: Volume, checkpoint: Checkpoint) -> list[str]:
    """Anatomy at another scale than in training is the commonest cause of poor predictions."""
    seen = [appearance.voxel_size_nm for appearance in checkpoint.training_data if appearance.voxel_size_nm]
    trained = seen or ([checkpoint.voxel_size_nm] if checkpoint.voxel_size_nm else [])
    found = volume.description.space.nanometers
    if trained and found is None:
        return [
            f"The checkpoint was trained at {trained[0]} nm, and the volume's voxel size in nm is not known: see that they are alike."
        ]
    return list(strange_voxels(found or (), trained, checkpoint.architecture.ndim))


def _output(config: RunConfig, volume: Volume, checkpoint: Checkpoint, tiling: Tiling) -> OutputSpec:
    spatial = volume.description.axes.removeprefix("c")
    channels = checkpoint.architecture.out_channels
    return OutputSpec(
        url=config.output.url,
        axes=spatial if channels == 1 else f"c{spatial}",
        dtype=config.output.dtype,
        activation=config.output.activation or "none",
        chunks=tiling.chunks,
        shards=tiling.shards,
    )


def _model(config: RunConfig, networks: Sequence[Checkpoint], window: BlendedWindow | None) -> Model:
    parameters, first = sum(map(_parameters, networks)), networks[0]
    members = tuple(
        Member(asked.checkpoint, found.sha256, found.architecture, asked.weight, asked.title, *_import(model, found))
        for asked, model, found in zip(config.model.ensemble or (), alone(config.model), networks, strict=False)
    )
    path = members[0].checkpoint if members else config.model.checkpoint
    sha256 = ensemble_sha256(members) if members else first.sha256
    model = Model(path, sha256, first.architecture, parameters, config.model.title, members=members, window=window)
    if members:
        return model
    source, origin, proof = _import(config.model, first)
    return replace(model, source=source, origin=origin, proof=proof)


def _import(asked: ModelConfig, found: Checkpoint) -> tuple[str, str, str]:
    """Of an imported network what a plan says of its import: source, origin and proof; empty of others."""
    source = source_digest(asked)
    if not source:
        return "", "", ""
    made = {name: str(value) for name, value in found.provenance.items()}
    library = f" of {made['library']}, {made['class']}" if made.get("class") else ""
    return source, f"{made['kind']}{library}", made["proof"]


def _parameters(checkpoint: Checkpoint) -> int:
    return sum(t.numel() for name, t in checkpoint.state.items() if "running_" not in name and "tracked" not in name)


def _left_bytes(
    options: list[tuple[int, int]], config: RunConfig, machine: Machine, tiling: Tiling, threads: int
) -> int:
    """What a worker may fill beside its tiles, with as many workers as there may be of so many threads."""
    workers = max(number for number, each in options if each == threads)
    return max(int(memory_bytes_a_worker(config, machine, workers) * MEMORY_SHARE) - tiling.worker_bytes, 0)


def _cost(config: RunConfig, volume: Volume, tiling: Tiling, left_bytes: int, surveyed: int) -> Cost:
    """What tiles cost; a worker's memory also holds so many values of the survey, float32, where they are more than a tile's."""
    grid, stream, stored = tiling.grid, tiling.stream, volume.description
    wanted = (
        cache_bytes(grid, stored.chunks, stored.channels * volume.array.dtype.itemsize) if is_url(stored.url) else 0
    )
    more = 4 * max(surveyed - network_values(stream), 0)
    # Tiles are chosen without it: where a volume lies is no part of what is computed.
    cache = min(wanted, max(left_bytes - more, 0))
    slices = read_slices(stream, stored.chunks[0], volume.array.dtype.itemsize)
    return Cost(
        multiply_adds=total_multiply_adds(stream),
        one_pass_multiply_adds=_one_pass_multiply_adds(stream),
        voxels_read=total_voxels_read(grid),
        voxels_decoded=total_voxels_decoded(grid, stored.chunks, slices),
        worker_bytes=tiling.worker_bytes + more + cache,
        output_bytes=output_bytes(stream.graph.output.channels, grid.volume, config.output.dtype),
        cache_bytes=cache,
    )


def _one_pass_multiply_adds(stream: Stream) -> int:
    """Of one pass over the whole volume; of a mean, of one for each of its passes."""
    if stream.mean is None:
        return one_pass_multiply_adds(stream.graph, stream.grid.volume)
    each = sum(one_pass_multiply_adds(graph, stream.grid.volume) for graph in stream.mean.graphs)
    return each * len(stream.mean.symmetries)


def check_room(output: str, needed_bytes: int) -> None:
    """Refuse an output that cannot be written, before anything is made.

    Args:
        output: Path of the output store.
        needed_bytes: What is still to be written, before compression.

    Raises:
        StorageError: Its folder cannot be written to, or the disk has less room than the output may take.
    """
    folder = Path(output).absolute().parent
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StorageError(
            f"Output '{output}' cannot be written: '{folder}' refuses new files ({error}). "
            "Choose another output.url, or change the folder's permissions."
        ) from error
    if free < needed_bytes:
        raise StorageError(
            f"Output '{output}' takes up to {needed_bytes / 1e9:.3f} GB, but '{folder}' has {free / 1e9:.3f} GB free. "
            "Make room, choose another output.url, or set output.dtype to uint8."
        )

"""The plan: all that will be done, as a value that is printed, hashed and compared before a machine is touched.

It holds the rule by which stored values become the network's input. Where the numbers of that rule take passes over the volume, these are a
stage of their own, the survey: the fingerprint covers the rule, and the ledger says which numbers its tiles stand by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from pipeline.core.appearance import Appearance
from pipeline.core.frozen import Numbers, Sample, WholeVolume, fixed_by
from pipeline.core.geometry.box import Triple
from pipeline.core.network.blended import BlendedStream
from pipeline.core.network.imported import AnyNetwork, network_of
from pipeline.core.network.mean import Mean
from pipeline.core.network.stream import Stream
from pipeline.core.network.symmetry import Augment
from pipeline.core.normalization import Normalization
from pipeline.core.statistics import Statistics, Survey
from pipeline.core.stored import Stored
from pipeline.core.strict_json import json_text
from pipeline.core.tiles.cost import read_slices
from pipeline.core.tiles.grid import TileGrid
from pipeline.core.tiles.lattice import BlendedWindow
from pipeline.core.volume import Description
from pipeline.errors import PlanError

ALGORITHM_VERSION = 2
"""Raised whenever the same plan would give other bytes."""

IDENTITY_VERSION = 2
"""Of what a fingerprint covers. 1: the numbers of every normalisation, which plans measured; 2: where a survey measures them, its rule."""

CODECS = "zstd(level=1), crc32c"
"""How every chunk is stored; the checksum guards the data, not only a shard's index."""


@dataclass(frozen=True, slots=True)
class Member:
    """A network of an ensemble.

    Args:
        checkpoint: Path of its file.
        sha256: Of its tensors.
        architecture: What it is.
        weight: Its share of the mean is this by the sum of all.
        title: As a person names it.
        source: Of an imported network, as of a `Model`.
        origin: The same.
        proof: The same.
    """

    checkpoint: str
    sha256: str
    architecture: AnyNetwork
    weight: float
    title: str = ""
    source: str = ""
    origin: str = ""
    proof: str = ""

    def identity(self) -> dict[str, object]:
        """What a fingerprint covers of it."""
        return {"weights": self.sha256, "architecture": self.architecture.identity(), "weight": self.weight}


def ensemble_sha256(members: Sequence[Member]) -> str:
    """Of all that their mean is of: networks, tensors, weights."""
    return hashlib.sha256(json.dumps([m.identity() for m in members], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Model:
    """The network of a run.

    Args:
        checkpoint: Path of its file.
        sha256: Of its tensors, not of the file that they came in.
        architecture: What it is.
        parameters: How many.
        title: As a person names it: a registered model and its version, or the file.
        source: Of an imported network, the digest of what it was imported from; its run keeps what came of that, and workers
            read it there. Empty where `checkpoint` is read as it lies.
        origin: Of an imported network, what it was imported from, in words.
        proof: Of an imported network, how its graph and its tiles were compared.
        members: Of an ensemble, all; then `checkpoint` and `architecture` are of the first, and the rest of all.
        window: Of which the output is blended, where it is not exact; None where it is.
        frozen: Where the statistics of its norms over the whole input are measured; `architecture` is what it is with these fixed.
            None where it has no such norms.
    """

    checkpoint: str
    sha256: str
    architecture: AnyNetwork
    parameters: int
    title: str = ""
    source: str = ""
    origin: str = ""
    proof: str = ""
    members: tuple[Member, ...] = ()
    window: BlendedWindow | None = None
    frozen: Sample | WholeVolume | None = None

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each network in the mean, in order; together 1."""
        weights = [member.weight for member in self.members] or [1.0]
        return tuple(weight / sum(weights) for weight in weights)

    @property
    def networks(self) -> tuple[AnyNetwork, ...]:
        """All that are computed, in order."""
        return tuple(member.architecture for member in self.members) or (self.architecture,)

    @property
    def alone(self) -> tuple[Model, ...]:
        """Of each network, in order, a model of it alone."""
        if not self.members:
            return (self,)
        return tuple(
            Model(m.checkpoint, m.sha256, m.architecture, 0, m.title, m.source, m.origin, m.proof) for m in self.members
        )

    @property
    def is_exact(self) -> bool:
        """Whether the output is what one pass over the whole volume gives."""
        return self.window is None


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What is written.

    Args:
        url: The OME-Zarr group; the prediction is its array `0`.
        axes: Axes of that array; a channel axis of one is dropped.
        dtype: `float32` or `uint8`.
        activation: Applied to the logits.
        chunks: Extent along z, y, x of what is encoded at once.
        shards: Extent along z, y, x of a stored object; None where each chunk is one.
    """

    url: str
    axes: str
    dtype: str
    activation: str
    chunks: Triple
    shards: Triple | None
    codecs: str = CODECS

    @property
    def write_unit(self) -> Triple:
        """Extent along z, y, x that is written as one object, by one writer."""
        return self.shards or self.chunks


@dataclass(frozen=True, slots=True)
class Compute:
    """How a worker computes.

    Args:
        device: `cpu` or `cuda`.
        dtype: Of values inside the network.
        threads: Compute threads of one worker.
        reason: Why this dtype, where it was left to the plan.
        augment: What a prediction is the mean over.
    """

    device: str
    dtype: str
    threads: int
    reason: str = "as asked for"
    augment: Augment = "none"


@dataclass(frozen=True, slots=True)
class Cost:
    """What the run will cost.

    Args:
        multiply_adds: Of all tiles.
        one_pass_multiply_adds: Of one forward pass over the whole volume.
        voxels_read: That tiles ask for, halos included.
        voxels_decoded: Of the chunks that hold them, as often as they are decoded.
        worker_bytes: Upper bound of a worker's resident memory.
        output_bytes: Of the output before compression.
        cache_bytes: Of `worker_bytes`, those for what a worker keeps of what it read of an object store.
    """

    multiply_adds: int
    one_pass_multiply_adds: int
    voxels_read: int
    voxels_decoded: int
    worker_bytes: int
    output_bytes: int
    cache_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """One run, resolved: it holds no `auto`. Environment, warnings, sample and what is stored are recorded, and are no part of its identity.

    `normalization` has its numbers where they follow from the rule, or were measured by an earlier version's plan (identity 1). Where a survey
    measures them, it has those of a sample, for words and choices; whoever computes asks for `numbers`.
    """

    source: Description
    nonfinite: str
    output: OutputSpec
    model: Model
    normalization: Normalization
    core: Triple
    halo: Triple
    slab: int
    compute: Compute
    cost: Cost
    environment: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    version: int = ALGORITHM_VERSION
    sample: Appearance | None = None  # of the volume, where there is something to compare it with
    stored: Stored | None = None
    survey: Survey | None = None  # the passes that measure the numbers; None where they are known
    statistics: Statistics | None = field(default=None, compare=False)  # what it has measured; in a file of its own
    identity_version: int = IDENTITY_VERSION

    @property
    def numbers(self) -> Normalization:
        """How stored values become the network's input.

        Raises:
            PlanError: A survey measures it, and has not yet.
        """
        if self.survey is None:
            return self.normalization
        if self.statistics is None:
            raise PlanError(
                f"The numbers of the normalisation '{self.normalization.mode}' of '{self.source.url}' are not measured yet: the stage "
                "`survey` comes before any tile is computed."
            )
        return self.statistics.normalization

    @property
    def is_measured(self) -> bool:
        """Whether a survey comes before its tiles: of the normalisation's numbers, or of its network's statistics."""
        return self.survey is not None or self.model.frozen is not None

    @property
    def frozen_numbers(self) -> Numbers:
        """Statistics of the network's norms over the whole input; empty where it has none.

        Raises:
            PlanError: A survey measures them, and has not yet.
        """
        if self.model.frozen is None:
            return {}
        if self.statistics is None or self.statistics.frozen is None:
            raise PlanError(
                f"The statistics of the norms of '{self.model.title or self.model.checkpoint}' are not measured yet: the stage `survey` comes "
                "before any tile is computed."
            )
        return self.statistics.frozen.numbers

    @property
    def survey_digest(self) -> str:
        """Of what its survey has measured, as records of tiles have it; empty where nothing is."""
        return self.statistics.digest if self.statistics else ""

    @property
    def surveyed_over(self) -> dict[str, object]:
        """What a survey of this plan measures, by the names of `identity`: whatever else differs, its numbers are the same."""
        mine = self.identity()
        names = ["input.", "normalize", *(["model."] if self.model.frozen else [])]
        if isinstance(self.model.frozen, WholeVolume):  # its parts are the tiles, on the plan's device and threads
            names += ["tiles.", "compute.device", "compute.threads"]
        return {key: mine[key] for key in mine if key.startswith(tuple(names))}

    def measured_by(self, earlier: Plan) -> Statistics | None:
        """What an earlier plan or its survey has measured of the same voxels by the same rule, as statistics of this plan's survey."""
        if not self.is_measured:
            return None
        if earlier.survey is None and self.model.frozen is None:
            mine, theirs = self.identity(), earlier.identity()
            same = self.normalization.same_rule(earlier.normalization) and all(
                mine.get(key) == theirs.get(key) for key in mine | theirs if key.startswith("input.")
            )
            return Statistics(earlier.normalization, self.surveyed_over) if same else None
        return earlier.statistics if earlier.surveyed_over == self.surveyed_over else None

    @property
    def all_warnings(self) -> tuple[str, ...]:
        """What a person should know of it, what is absent of the input included."""
        return self.warnings + (self.stored.warnings if self.stored else ())

    @property
    def grid(self) -> TileGrid:
        return self.stream.grid

    @property
    def stream(self) -> Stream:
        """The network over the tiles."""
        graph, window = self.model.architecture.graph, self.model.window
        if window:
            return BlendedStream.of_windows(graph, self.source.shape, self.core, window)
        return Stream.over(graph, self.source.shape, self.core, self.halo, self.slab, self.mean)

    @property
    def mean(self) -> Mean | None:
        """Of which passes a prediction is the mean; None where it is of one."""
        graphs = tuple(network.graph for network in self.model.networks)
        mean = Mean(graphs, self.model.architecture.ndim, self.compute.augment)
        return None if mean.is_plain else mean

    def with_checkpoints(self, paths: Sequence[str]) -> Plan:
        """The same with its networks at these paths, one for each."""
        members = (replace(member, checkpoint=path) for member, path in zip(self.model.members, paths, strict=False))
        return replace(self, model=replace(self.model, checkpoint=paths[0], members=tuple(members)))

    @property
    def of_one_pass(self) -> Plan:
        """The same with the first pass of its mean alone, by which the rate of all is told."""
        model = self.model
        if model.members:
            model = replace(model, sha256=model.members[0].sha256, members=())
        return replace(self, model=model, compute=replace(self.compute, augment="none"))

    @property
    def amplification(self) -> float:
        """Arithmetic done / arithmetic of one pass over the whole volume."""
        return self.cost.multiply_adds / self.cost.one_pass_multiply_adds

    @property
    def read_amplification(self) -> float:
        """Voxels asked for / voxels of the volume."""
        return self.cost.voxels_read / self.source.voxels

    @property
    def decoding_amplification(self) -> float:
        """Voxels decoded / voxels of the volume."""
        return self.cost.voxels_decoded / self.source.voxels

    @property
    def read_slices(self) -> int:
        """Slices that a tile reads at once."""
        return read_slices(self.stream, self.source.chunks[0], np.dtype(self.source.dtype).itemsize)

    def identity(self) -> dict[str, object]:
        """All that determines the output's bytes, by the names that a user knows; no paths, no workers."""
        source, output, compute = self.source, self.output, self.compute
        return {
            "algorithm": self.version,
            "input.metadata": source.metadata_sha256,
            "input.shape": [source.channels, *source.shape],
            "input.dtype": source.dtype,
            "input.level": source.level,
            "input.axes": source.stored or source.axes,
            **source.identity(),
            "input.nonfinite": self.nonfinite,
            "model.weights": self.model.sha256,
            "model.architecture": self.model.architecture.identity(),
            **({"model.ensemble": [member.identity() for member in self.model.members]} if self.model.members else {}),
            **self._exactness(),
            **({"model.frozen": self.model.frozen.identity()} if self.model.frozen else {}),
            "normalize": self._rule(),
            "output.dtype": output.dtype,
            "output.activation": output.activation,
            "output.chunks": list(output.chunks),
            "output.shards": list(output.shards) if output.shards else None,
            "output.codecs": output.codecs,
            "tiles.core": list(self.core),
            "tiles.halo": list(self.halo),
            "tiles.slab": self.slab,
            "compute.device": compute.device,
            "compute.dtype": compute.dtype,
            "compute.threads": compute.threads,
            **({"compute.augment": compute.augment} if compute.augment != "none" else {}),
        }

    def _exactness(self) -> dict[str, object]:
        """Of a run that is not exact, how its windows lie and are blended; nothing of one that is."""
        window = self.model.window
        if window is None:
            return {}
        return {
            "model.exact": False,
            "model.window": {"core": list(window.core), "overlap": list(window.overlap), "blend": window.blend},
        }

    def _rule(self) -> dict[str, object]:
        """Of a survey the rule, and the boxes in which it reads: they are in the low bits of what it measures. Else the numbers."""
        if self.survey is None:
            return self.normalization.to_dict()
        return {**self.normalization.rule(), "boxes": list(self.survey.box)}

    @property
    def fingerprint(self) -> str:
        """Digest of `identity`: equal fingerprints mean equal bytes on one kind of processor."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Plan) -> list[str]:
        """What the identities disagree on, a line each, this plan's value first."""
        mine, theirs = self.identity(), other.identity()
        keys = [key for key in mine | theirs if mine.get(key) != theirs.get(key)]
        return [f"{key}: {mine.get(key, 'nothing')} here, {theirs.get(key, 'nothing')} there" for key in keys]

    def to_json(self) -> str:
        content = asdict(self) | {"source": self.source.to_dict()}
        content["model"]["architecture"] = self.model.architecture.to_dict()
        for key in ("source", "origin", "proof", "window", "frozen"):
            if not content["model"][key]:
                del content["model"][key]
        for member, stored in zip(self.model.members, content["model"]["members"], strict=True):
            stored["architecture"] = member.architecture.to_dict()
            for key in ("source", "origin", "proof"):
                if not stored[key]:
                    del stored[key]
        if not self.model.members:
            del content["model"]["members"]
        if not self.cost.cache_bytes:
            del content["cost"]["cache_bytes"]
        del content["statistics"]
        content |= {"tiles": len(self.grid), "counts": self.grid.counts, "fingerprint": self.fingerprint}
        return json_text(content, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            ValueError, KeyError, TypeError: The text is not such a plan, or its fingerprint is not its own.
        """
        content = dict(json.loads(text))
        fingerprint = content.pop("fingerprint")
        content.pop("tiles"), content.pop("counts")
        version = content.setdefault("identity_version", 1)
        if version == 1:
            content = _of_identity_1(content)
        elif version != IDENTITY_VERSION:
            raise ValueError(f"its identity is of version {version}, and this version knows 1 and {IDENTITY_VERSION}")
        plan = cls(**{**content, **_parts(content)})
        if plan.fingerprint != fingerprint:
            raise ValueError(f"the fingerprint {fingerprint[:12]} is not that of its content, {plan.fingerprint[:12]}")
        return plan


def _of_identity_1(content: dict[str, Any]) -> dict[str, Any]:
    """A plan as versions before the survey stored it: the numbers of its normalisation are in it, measured or not, and its fingerprint covers them.

    So it stays, for as long as its run does: there is nothing to survey, and its tiles, ledger and published versions hold.
    """
    return {**content, "survey": None}


def _parts(content: dict[str, Any]) -> dict[str, Any]:
    output = {**content["output"], "chunks": tuple(content["output"]["chunks"])}
    output["shards"] = tuple(output["shards"]) if output["shards"] else None
    architecture, frozen = network_of(content["model"]["architecture"]), content["model"].get("frozen")
    members = tuple(
        Member(**{**member, "architecture": network_of(member["architecture"])})
        for member in content["model"].get("members", ())
    )
    return {
        "source": Description.from_dict(content["source"]),
        "output": OutputSpec(**output),
        "model": Model(
            **{
                **content["model"],
                "architecture": architecture,
                "members": members,
                "window": _window(content["model"]),
                "frozen": fixed_by(frozen) if frozen else None,
            }
        ),
        "normalization": Normalization(**content["normalization"]),
        "compute": Compute(**content["compute"]),
        "cost": Cost(**content["cost"]),
        "warnings": tuple(content["warnings"]),
        "sample": Appearance.from_dict(content["sample"]) if content.get("sample") else None,
        "stored": Stored.from_dict(content["stored"]) if content.get("stored") else None,
        "survey": Survey.from_dict(content["survey"]) if content.get("survey") else None,
        **{key: tuple(content[key]) for key in ("core", "halo")},
    }


def _window(model: dict[str, Any]) -> BlendedWindow | None:
    content = model.get("window")
    return BlendedWindow(tuple(content["core"]), tuple(content["overlap"]), content["blend"]) if content else None


def output_bytes(channels: int, shape: Triple, dtype: str) -> int:
    """Bytes of an output before compression."""
    return channels * prod(shape) * {"float32": 4, "uint8": 1}[dtype]

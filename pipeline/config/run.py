"""A run: a volume in, a prediction out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, StrictInt, model_validator

from pipeline.config.cluster import ClusterConfig
from pipeline.config.section import Auto, Axes, Location, Margin, Positive, Section, Shared, Voxels, Whole
from pipeline.core.locations import is_url
from pipeline.core.network.symmetry import Augment
from pipeline.core.normalization import AskedMode
from pipeline.core.tiles.lattice import Blend
from pipeline.core.volume import Selection


class ReadingConfig(Section):
    """How volumes are read, whichever they are; of a dataset, where its catalogue says nothing else of one."""

    level: Annotated[int, Field(ge=0, description="Resolution level of an OME-Zarr image, 0 the finest.")] = 0
    axes: Axes = Field(
        "auto",
        description="As stored: t, c, z, y, x in any order; auto: as told by the image, dimension_names or _ARRAY_DIMENSIONS, else by their number.",
    )
    channels: Literal["all"] | Annotated[tuple[StrictInt | str, ...], Field(min_length=1)] = Field(
        "all",
        description="Those that the network reads, in its order: indices, or names of the image's omero metadata.",
    )
    nonfinite: Literal["fail", "zero"] = Field(
        "fail", description="What to do with NaN and infinity: fail by the tile's name, or take them as 0."
    )
    missing: Literal["fail", "fill"] = Field(
        "fail",
        description="An array of which nothing is stored, or whose chunks lie under other names: refuse it, or read it as fill.",
    )

    @property
    def selection(self) -> Selection:
        """What of a location is read."""
        return Selection(self.level, self.axes, () if self.channels == "all" else self.channels)


class InputConfig(ReadingConfig):
    """What is read: a Zarr array, an OME-Zarr group, HDF5 (`FILE.h5/dataset`) or TIFF."""

    url: Location = Field(description="A path, or FILE.h5/dataset; never written to.")


EIGHT_BITS_OF_LOGITS = (
    "dtype uint8 stores rint(255 * clip(v, 0, 1)), which means nothing for raw logits (activation none). "
    "Set output.activation to sigmoid or softmax, or output.dtype to float32"
)
"""Why they are refused."""


class OutputConfig(Section):
    """What is written: an OME-Zarr group whose array `0` holds the prediction."""

    url: Location = Field(description="A path; one of its own for each run. Its run directory is PATH.run.")
    dtype: Literal["float32", "uint8"] = Field("float32", description="uint8 is rint(255 * clip(v, 0, 1)).")
    activation: Literal["none", "sigmoid", "softmax"] | None = Field(
        None,
        description="none: logits; not with uint8. Absent: what the network's package declares, else none.",
    )
    chunks: Auto | Voxels = Field("auto", description="z, y, x; auto: at most 64 an axis.")
    shards: Literal["auto", "none"] | Voxels = Field(
        "auto", description="z, y, x; auto: the tile's core, or parts of it."
    )

    @model_validator(mode="after")
    def _eight_bits_need_a_range(self) -> OutputConfig:
        if self.dtype == "uint8" and self.activation == "none":
            raise ValueError(EIGHT_BITS_OF_LOGITS)
        return self


class ArchitectureConfig(Section):
    """The class of another library that a checkpoint's weights are of. It is built in a process of its own, when a run is planned."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    class_: Annotated[str, Field(alias="class", description="package.module.Class, such as monai.networks.nets.UNet.")]
    arguments: dict[str, Any] = Field(
        {}, description='What it is built with; a class among them as {class: "torch.nn.Conv3d"}.'
    )

    @model_validator(mode="after")
    def _a_class_of_a_package(self) -> ArchitectureConfig:
        if not all(part.isidentifier() for part in self.class_.split(".")) or "." not in self.class_:
            raise ValueError(
                f"class is {self.class_[:100]!r}, expected a package and a class, such as monai.networks.nets.UNet"
            )
        try:
            json.dumps(self.arguments, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"arguments hold what JSON has not ({error}); give finite numbers, texts, lists and mappings"
            ) from error
        return self


class MemberConfig(Section):
    """A network of an ensemble: whatever `model` takes alone; or the name of a registered one."""

    checkpoint: Location = Field("", description="A path. Or leave it empty, and give name and registry.")
    weight: float = Field(1.0, gt=0, le=1e6, description="Its share of the mean is this by the sum of all.")
    padding: Literal["same", "valid"] | None = Field(None, description="Only where the checkpoint does not say.")
    architecture: ArchitectureConfig | None = Field(None, description="As of model.")
    trust: bool = Field(False, description="As of model.")
    output: Annotated[int, Field(ge=0, lt=1000, description="As of model.")] = 0
    name: str | None = Field(None, description="Of a registered model.")
    version: Literal["latest"] | Positive = Field("latest", description="Of the registered model.")
    registry: Location | None = Field(None, description="The folder of registered models.")

    @property
    def title(self) -> str:
        """As a person names it."""
        return f"{self.name} version {self.version}" if self.name else Path(self.checkpoint).name

    @model_validator(mode="after")
    def _a_file_or_a_name(self) -> MemberConfig:
        if self.name is None and not self.checkpoint:
            raise ValueError("checkpoint: required, but not there; or name and registry")
        if self.name is not None and not self.registry:
            raise ValueError(
                f"name is '{self.name}', but no registry says where it is kept. Set registry to its folder"
            )
        return self


def _a_list(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise ValueError("a list is needed, of {checkpoint, weight} each")
    return value


class WindowConfig(Section):
    """Windows on a lattice over the volume, each of which is a pass of the network by itself; their outputs are blended."""

    core: Voxels = Field(
        description="z, y, x from the origin of a window to that of the next. A window is core + overlap: as large as what "
        "the network was trained on."
    )
    overlap: (
        Annotated[tuple[Shared, Shared, Shared], Field(description="z, y, x")] | Annotated[float, Field(ge=0, lt=1)]
    ) = Field(0.5, description="z, y, x that windows share; or a share of the window, rounded up to a legal extent.")
    blend: Blend = Field(
        "gaussian",
        description="gaussian: sigma is an eighth of the window; linear: by the distance from the nearer end; none: a voxel is of one window.",
    )


class FrozenConfig(Section):
    """Where statistics of norms over the whole input are measured: a sample of patches."""

    url: Location | None = Field(None, description="A volume, such as that of training; absent: the volume itself.")
    patches: Annotated[int, Field(ge=1, le=10_000, description="How many.")] = 12
    patch: Auto | Voxels = Field(
        "auto", description="z, y, x of each; auto: 64 an axis, 2D 256; a quarter a side is context."
    )
    seed: Annotated[int, Field(ge=0, le=2**63 - 1, description="Of their places.")] = 0


class ModelConfig(Section):
    """Which network: a checkpoint of ours, a plain state_dict of the notes' class, or a file of another library; or the name of a registered one.

    What is named is looked up when a run is read (`registry.with_model`), which puts its file into `checkpoint`.
    """

    checkpoint: Location = Field("", description="A path. Or leave it empty, and give name and registry.")
    padding: Literal["same", "valid"] | None = Field(None, description="Only where the checkpoint does not say.")
    architecture: ArchitectureConfig | None = Field(
        None, description="The class that the checkpoint's weights are of, where it is another library's."
    )
    trust: bool = Field(
        False,
        description="Run code of a package that is not known, or that is pickled in the checkpoint; in a process of its own.",
    )
    output: Annotated[int, Field(ge=0, lt=1000, description="Which output of an imported network is predicted.")] = 0
    name: str | None = Field(None, description="Of a registered model.")
    version: Literal["latest"] | Positive = Field("latest", description="Of the registered model.")
    registry: Location | None = Field(None, description="The folder of registered models.")
    statistics: Literal["frozen", "global"] | None = Field(
        None,
        description="Of norms over the whole input: frozen: measured once by the survey in a sample, and fixed; global: in the whole volume, by "
        "a pass for each norm. Absent: refused.",
    )
    frozen_from: FrozenConfig | None = Field(
        None, description="Where frozen ones are measured; absent: in the volume itself."
    )
    digest: str | None = Field(
        None, description="What the file must be. A go over a dataset sets it: all its volumes have one network."
    )
    ensemble: Annotated[tuple[MemberConfig, ...], BeforeValidator(_a_list)] | None = Field(
        None, description="In place of checkpoint: networks whose predictions are averaged, by weight."
    )
    exact: bool = Field(
        True,
        description="false: the output is blended from windows, for a network that looks at its whole input; it is not exact, and says so.",
    )
    window: WindowConfig | None = Field(None, description="With exact: false, and only there: which windows.")

    @property
    def title(self) -> str:
        """As a person names it; of a registered one, once it has been looked up, its version."""
        if self.ensemble:
            return f"ensemble of {len(self.ensemble)}: {', '.join(member.title for member in self.ensemble)}"
        return f"{self.name} version {self.version}" if self.name else Path(self.checkpoint).name

    @model_validator(mode="after")
    def _windows_where_not_exact(self) -> ModelConfig:
        if self.exact and self.window is not None:
            raise ValueError(
                "window is given, but exact is not false: an exact run has no windows of its own. Set model.exact to false, or leave "
                "model.window out"
            )
        if not self.exact and self.statistics is not None:
            raise ValueError(
                f"exact is false and statistics are {self.statistics}: a window has statistics of its own, or tiles are exact by fixed ones. Leave "
                "model.statistics out, or model.exact and model.window"
            )
        if not self.exact and self.ensemble is not None:
            raise ValueError(
                "exact is false, but blended windows are of one network, and ensemble names several. Leave model.ensemble out, or "
                "model.exact and model.window"
            )
        if not self.exact and self.window is None:
            raise ValueError(
                "exact is false, but no window says what is blended. Set model.window.core, and model.window.overlap, so that their sum "
                "is the patch that the network was trained on; or leave model.exact out"
            )
        return self

    @model_validator(mode="after")
    def _a_file_or_a_name(self) -> ModelConfig:
        if self.ensemble is not None:
            others = ("checkpoint", "padding", "architecture", "trust", "output", "name", "registry")
            given = [key for key in others if getattr(self, key)]
            if given or len(self.ensemble) < 2:
                raise ValueError(
                    f"ensemble has {len(self.ensemble)} member(s)"
                    + (f", and {', '.join(given)} stand beside it" if given else "")
                    + ". It takes the place of model's other keys, which each member has for itself, and has two members or more"
                )
            return self
        if self.name is None and (not self.checkpoint or self.registry or self.version != "latest"):
            raise ValueError(
                "checkpoint: required, but not there; or name and registry, for a model that was registered"
            )
        if self.frozen_from and self.statistics is None:
            raise ValueError("frozen_from is given, but no statistics are to be frozen. Set model.statistics to frozen")
        if self.frozen_from and self.statistics == "global":
            raise ValueError(
                "frozen_from is given, but statistics are global: of the whole volume, and of no sample or other volume. Leave "
                "model.frozen_from out, or set model.statistics to frozen"
            )
        if self.name is not None and not self.registry:
            raise ValueError(
                f"name is '{self.name}', but no registry says where it is kept. Set model.registry to its folder"
            )
        return self


class NormalizeConfig(Section):
    """How stored values become the network's input; absent, the checkpoint's rule."""

    mode: AskedMode = Field(description="One set of numbers a volume.")
    low: float = Field(1.0, ge=0, le=100, description="Percentile that becomes 0 (mode percentile).")
    high: float = Field(99.0, ge=0, le=100, description="Percentile that becomes 1 (mode percentile).")

    @model_validator(mode="after")
    def _low_below_high(self) -> NormalizeConfig:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low} %) must be below high ({self.high} %)")
        return self


class TilesConfig(Section):
    """The unit of work, voxels along z, y, x."""

    core: Auto | Voxels = Field("auto", description="z, y, x that a tile owns and writes.")
    halo: Auto | Margin = Field("auto", description="z, y, x of context a side, at least the receptive radius.")


class ComputeConfig(Section):
    """How a worker computes."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto: bfloat16 where the hardware has it and the values differ by no more than the tolerance.",
    )
    tolerance: Auto | Annotated[float, Field(ge=0)] = Field(
        "auto", description="Of values that are written; auto: one step of a uint8 output, none of a float32 output."
    )
    threads: Auto | Positive = Field("auto", description="Of one worker; part of the plan.")
    augment: Augment = Field(
        "none",
        description="flips: the mean over the volume reversed along each axis, 4 passes in 2D and 8 in 3D; rotations: also by 90 degrees, 8 and 16.",
    )
    device_memory_gb: Auto | Annotated[float, Field(gt=0, le=10**6)] = Field(
        "auto", description="Free memory of a worker's card; needed where workers are on other machines."
    )


class LogConfig(Section):
    """What `OUTPUT.run/run.log` holds. No part of a plan."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


def device_fits_cluster(self: Any) -> Any:
    """Refuse workers on cards that shall not use them."""
    if self.cluster.kind == "cuda" and self.compute.device == "cpu":
        raise ValueError(
            "cluster.kind is 'cuda', a worker a GPU, but compute.device is 'cpu'. Set cluster.kind to 'local', or leave "
            "compute.device at 'auto'"
        )
    return self


class RunConfig(Whole):
    """One run: a volume in, a prediction out."""

    input: InputConfig
    output: OutputConfig
    model: ModelConfig
    normalize: NormalizeConfig | None = None
    tiles: TilesConfig = TilesConfig()
    compute: ComputeConfig = ComputeConfig()
    cluster: ClusterConfig = ClusterConfig()
    log: LogConfig = LogConfig()

    _device = model_validator(mode="after")(device_fits_cluster)

    @model_validator(mode="after")
    def _output_apart_from_input(self) -> RunConfig:
        source, target = Path(self.input.url), Path(self.output.url)
        places = (target, target.with_name(f"{target.name}.run"))
        if not is_url(self.input.url) and any(_inside(a, b) for p in places for a, b in ((p, source), (source, p))):
            raise ValueError(
                f"output.url '{target}' and input.url '{source}' (or its run directory OUTPUT.run) lie inside one another: the input store is never "
                "written to. Set output.url to a path of its own"
            )
        if is_url(self.output.url):
            raise ValueError(f"output.url '{self.output.url}' is not a local path; outputs go to a file system so far")
        return self


def _inside(path: Path, folder: Path) -> bool:
    # `Path.resolve` fails at links that go round
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))

"""A training run as one YAML and one frozen object."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config import Auto, Axes, Location, NormalizeConfig, Positive, Section, Voxels, Whole
from pipeline.core.geometry.box import Box, Triple, per_axis
from pipeline.core.network.receptive import lost_margin, whole_window
from pipeline.core.network.unet import Architecture

Corner = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
Lease = Annotated[float, Field(ge=0, lt=1)]
AtLeastZero = Annotated[float, Field(ge=0)]
MoreThanZero = Annotated[float, Field(gt=0)]


class BoxConfig(Section):
    """A half-open box of voxels, z, y, x."""

    start: Corner
    stop: Corner

    @model_validator(mode="after")
    def _not_empty(self) -> BoxConfig:
        if any(per_axis(lambda a, b: a >= b, self.start, self.stop)):
            raise ValueError(f"start {self.start} must be below stop {self.stop} along every axis")
        return self

    @property
    def box(self) -> Box:
        return Box(self.start, self.stop)


class PairConfig(Section):
    """An image, its labels, and the boxes that training and validation take of them; they share no voxel.

    Zarr, OME-Zarr, HDF5 (`FILE.h5/dataset`) and TIFF, read in place. No boxes for training: the whole volume.
    """

    image: Location = Field(description="Zarr, OME-Zarr, FILE.h5/dataset or TIFF.")
    labels: Location = Field(description="Of the same shape.")
    level: Annotated[int, Field(ge=0)] = 0
    axes: Axes = "auto"
    voxel_size_nm: Auto | tuple[MoreThanZero, MoreThanZero, MoreThanZero] = "auto"
    weight: MoreThanZero = 1.0
    train: tuple[BoxConfig, ...] = ()
    validation: tuple[BoxConfig, ...] = ()

    @model_validator(mode="after")
    def _apart(self) -> PairConfig:
        if self.validation and not self.train:
            raise ValueError("validation names boxes, train none: name the boxes to train on too, apart from these")
        for one in self.train:
            for other in self.validation:
                if one.box.overlaps(other.box):
                    raise ValueError(
                        f"train box {one.start} to {one.stop} and validation box {other.start} to {other.stop} must be apart"
                    )
        return self


class DataConfig(Section):
    """What is learnt, and from what. pipeline/core/targets.py states the rules of targets."""

    volumes: tuple[PairConfig, ...] = Field(min_length=1, description="Where voxels come from.")
    target: Literal["membrane", "foreground", "classes"] = Field(
        "membrane", description="classes: labels are numbers of classes, from 0."
    )
    labels_are: Literal["instances", "mask"] = Field(
        "instances",
        description="Ids, 0 none; or a mask, not 0: inside a cell, whose connected parts are the instances.",
    )
    neighbours: Literal["auto", "yx", "zyx"] = Field(
        "auto",
        description="Axes along which instances touch. auto: y, x for a 2D network or slices at least twice as far apart "
        "as voxels are wide, else z, y, x.",
    )
    ignore: int | None = Field(None, description="Label of voxels that count for nothing.")
    attribution: str = Field("", description="What the data's licence asks to say; kept in the checkpoint.")


class NetworkConfig(Section):
    """The network; `out_channels` follows from the target."""

    ndim: Literal[2, 3] = 3
    depth: Annotated[int, Field(ge=1, le=16)] = 4
    width: Annotated[int, Field(ge=1, le=2**16)] = 64
    in_channels: Annotated[int, Field(ge=1, le=2**16)] = 1
    classes: Annotated[int, Field(ge=1, le=255)] = 1
    padding: Literal["same", "valid"] = "same"
    bias: bool = True
    norm: Literal["batch", "batch_renorm", "none"] = Field(
        "batch", description="batch_renorm: learns under running statistics; predicts as batch does."
    )
    dropout: Lease = 0.0

    @property
    def architecture(self) -> Architecture:
        a = self
        norm: Literal["batch", "none"] = "none" if a.norm == "none" else "batch"
        return Architecture(a.ndim, a.depth, a.width, a.in_channels, a.classes, a.padding, a.bias, norm)


class AugmentConfig(Section):
    """How a patch is varied. Lengths are voxels along the finest axis; intensities are of the normalised image.

    `elastic_sigma: auto` is the paper's 10 voxels, or an eighth of the distance between the grid's points where that is less.
    """

    flip: bool = True
    rotate: bool = True
    zoom: Lease = 0.0
    elastic_sigma: Auto | AtLeastZero = "auto"
    elastic_points: Annotated[int, Field(ge=2)] = 3
    contrast: Lease = 0.2
    brightness: AtLeastZero = 0.1
    noise: AtLeastZero = 0.03


class LossConfig(Section):
    """Pixel-wise cross entropy with a weight map: class balance + `border_weight` where two cells nearly touch."""

    balance: bool = True
    border_weight: AtLeastZero = 10.0
    border_sigma: MoreThanZero = 5.0


class OptimiserConfig(Section):
    """How weights move. `rise` is the share of steps over which the rate rises; `average` that of averaged weights."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: MoreThanZero = 0.001
    momentum: Lease = 0.99
    weight_decay: AtLeastZero = 0.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    rise: Lease = 0.0
    clip: AtLeastZero = 0.0
    average: Lease = 0.0


class EveryConfig(Section):
    """What happens every so many steps."""

    validation: Positive = 500
    checkpoint: Positive = 100
    picture: Positive = 500


class RegisterConfig(Section):
    """Where the checkpoint goes when it is done: the next version of a model in a registry."""

    registry: Location
    name: str


class TrainConfig(Whole):
    """One training run: `steps` of `batch` patches of `patch` voxels that are predicted."""

    data: DataConfig
    output: Location = Field(description="A folder: checkpoint, metrics, logs.")
    network: NetworkConfig = NetworkConfig()
    normalize: NormalizeConfig | None = Field(
        None,
        description="How values become the network's input. Absent: percentile where a volume holds integers of more than 8 "
        "bits, which seldom fill their type's range; else minmax.",
    )
    patch: Voxels = Field(description="z, y, x of voxels that are predicted at a time.")
    batch: Positive = Field(1, description="Patches a step, of one device.")
    steps: Positive = Field(description="Steps of the optimiser.")
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    every: EveryConfig = EveryConfig()
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Auto | Positive = Field("auto", description="How many of them.")
    threads: Auto | Positive = Field("auto", description="That compute.")
    readers: Positive = Field(2, description="Threads that read patches ahead.")
    seed: int = Field(0, ge=0, description="Of all that is drawn.")
    register_as: RegisterConfig | None = Field(None, description="Where the checkpoint goes when it is done.")

    @model_validator(mode="after")
    def _patch_fits_the_network(self) -> TrainConfig:
        margin = lost_margin(self.network.architecture.graph)
        legal = per_axis(lambda window, lost: window - 2 * lost, self.window, margin)
        if self.network.ndim == 2 and self.patch[0] != 1:
            raise ValueError(f"patch {self.patch} has {self.patch[0]} slices; a 2D network takes [1, y, x]")
        if legal != self.patch:
            raise ValueError(
                f"patch {self.patch} is not what this network can put out; the next that it can is {legal}"
            )
        return self

    @property
    def window(self) -> Triple:
        """Extents of what the network sees to predict a patch: larger by the margin where it does not pad."""
        return whole_window(self.network.architecture.graph, self.patch)

    @model_validator(mode="after")
    def _target_and_classes(self) -> TrainConfig:
        target, classes = self.data.target, self.network.classes
        if target == "classes" and self.loss.border_weight:
            raise ValueError("loss.border_weight is of instances; data.target 'classes' has none: set it to 0")
        if (classes > 1) != (target == "classes"):
            raise ValueError(
                f"network.classes is {classes}, data.target '{target}': membrane and foreground are one class, 'classes' two or more"
            )
        return self

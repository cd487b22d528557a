"""A training run as one YAML and one frozen object."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.config import Location, Positive, Section, Voxels

Slice = Annotated[int, Field(ge=0)]
Slices = Annotated[tuple[Slice, Slice], Field(description="first slice, and the one after the last")]


class DataConfig(Section):
    """Image and instance labels in one HDF5 file; slices are along z, and training and validation share none."""

    url: Location
    image: str = "raw"
    labels: str = "neuron_ids"
    train_slices: Slices
    validation_slices: Slices
    voxel_size_nm: tuple[float, float, float]
    attribution: str = ""

    @model_validator(mode="after")
    def _apart(self) -> DataConfig:
        (a, b), (c, d) = self.train_slices, self.validation_slices
        if not (a < b and c < d and (b <= c or d <= a)):
            raise ValueError(
                f"train_slices {self.train_slices} and validation_slices {self.validation_slices} must be apart"
            )
        return self


class NetworkConfig(Section):
    """The 3D network, same padding, batch norm."""

    depth: Positive = 2
    width: Positive = 16


class TrainConfig(Section):
    """One training run.

    `steps` of `batch` patches of `patch` voxels; Adam, whose rate rises to `learning_rate` and falls to zero in one cycle.
    """

    data: DataConfig
    output: Location
    network: NetworkConfig = NetworkConfig()
    steps: Positive = 1000
    batch: Positive = 1
    patch: Voxels = (48, 96, 96)
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    seed: int = 0
    threads: Positive = 2

    @model_validator(mode="after")
    def _on_the_stride(self) -> TrainConfig:
        stride = 2**self.network.depth
        if any(n % stride for n in self.patch):
            raise ValueError(
                f"patch {self.patch} must be multiples of {stride}, the stride of a network of depth {self.network.depth}"
            )
        return self

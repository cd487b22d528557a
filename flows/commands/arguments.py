"""Arguments that several commands take, and what their YAMLs hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.dataset.settings import DatasetConfig

Config = Annotated[Path, Parameter(help="The run's YAML; configs/example.yaml explains every key.")]
DataSet = Annotated[Path, Parameter(help="The dataset's YAML; configs/dataset.yaml explains its keys.")]
Overrides = Annotated[
    list[str] | None,
    Parameter(name="--set", help="Override a key: --set tiles.core='[64, 128, 128]'. May be given again.", negative=()),
]
Missing = Annotated[
    Literal["fail", "fill"],
    Parameter(help="A Zarr or HDF5 array of which nothing is stored: refuse it, or read it as its fill value."),
]


def read_run(path: Path, overrides: list[str] | None) -> RunConfig:
    """The run of a YAML, its model found.

    Raises:
        ConfigError: Something in it, or an override, cannot be.
    """
    from pipeline.config import RunConfig, read_config  # noqa: PLC0415 - slow; `--help` needs none of it
    from pipeline.registry import with_model  # noqa: PLC0415 - slow; `--help` needs none of it

    return with_model(read_config(RunConfig, path, overrides or ()))


def read_dataset(path: Path, overrides: list[str] | None) -> DatasetConfig:
    """The dataset of a YAML.

    Raises:
        ConfigError: Something in it, or an override, cannot be.
    """
    from pipeline.config import read_config  # noqa: PLC0415 - slow; `--help` needs none of it
    from pipeline.dataset.settings import DatasetConfig  # noqa: PLC0415 - slow; `--help` needs none of it

    return read_config(DatasetConfig, path, overrides or ())

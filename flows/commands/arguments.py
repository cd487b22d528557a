"""Arguments that several commands take, and what their YAMLs hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from pipeline.errors import ConfigError

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
LibraryClassName = Annotated[
    str | None,
    Parameter(
        name="--class", help="Class of a library that a file of weights is of, such as monai.networks.nets.UNet."
    ),
]
ClassArguments = Annotated[str, Parameter(help="What the class is built with, as JSON; or a file of it.")]
Trust = Annotated[
    bool,
    Parameter(help="Run code of a package that is not known, or that is pickled in the file.", negative=()),
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


def class_arguments(text: str) -> dict[str, Any]:
    """Of a class, as they were given on the command line.

    Raises:
        ConfigError: It is neither a JSON object nor a file of one.
    """
    try:
        written = text if text.lstrip().startswith("{") else Path(text).read_bytes()
        content = json.loads(written, parse_constant=_refuse_constant)
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"--arguments is {text[:120]!r}: expected a JSON object, such as '{{\"spatial_dims\": 3}}', or a file of one ({error})."
        ) from error
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")

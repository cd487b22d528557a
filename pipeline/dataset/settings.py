"""A dataset as one YAML and one frozen object."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from pipeline.config import (
    Auto,
    ClusterConfig,
    ComputeConfig,
    Location,
    LogConfig,
    ModelConfig,
    NormalizeConfig,
    OutputConfig,
    Positive,
    ReadingConfig,
    RunConfig,
    Section,
    TilesConfig,
    Whole,
    device_fits_cluster,
    validated,
)
from pipeline.core.locations import is_url
from pipeline.core.versions import Keep
from pipeline.dataset.rows import Source, VolumeRow

if TYPE_CHECKING:
    from pipeline.outputs.rundir import RunDirectory


class KeepConfig(Section):
    """Which old versions of an output stay, beside the current one; one stays where either key says so."""

    versions: int = Field(1, ge=0, description="So many of the newest.")
    days: float = Field(7.0, ge=0, description="Those that readers were sent to less than so many days ago.")

    @property
    def rule(self) -> Keep:
        return Keep(self.versions, self.days)


class PriceConfig(Section):
    """What things cost, for the dry run."""

    worker_hour: float = Field(0.0, ge=0, description="Of one worker.")
    terabyte_month: float = Field(0.0, ge=0, description="Of storage of outputs.")
    currency: str = "EUR"


class WatchConfig(Section):
    """When a volume of an inbox is complete, and how often a failed one is tried again."""

    quiet_minutes: float = Field(
        10.0, gt=0, description="A volume is complete when two looks so far apart saw the same files."
    )
    marker: str | None = Field(
        None, description="A suffix such as .done: complete is what has VOLUME.done beside it, and nothing else."
    )
    clock: str | None = Field(
        None,
        description="A name, where watchers run on other machines each time and these keep their wall clocks together.",
    )
    attempts: Positive = Field(3, description="Of a volume that fails; after that it waits until it has changed.")


class DatasetConfig(Whole):
    """A dataset: volumes in, a published output for each."""

    volumes: Location | Annotated[tuple[Location | VolumeRow, ...], Field(min_length=1)] = Field(
        description="A catalogue (YAML, CSV), a glob, a folder or prefix, a plate or collection; or a list of these."
    )
    output: OutputConfig = Field(description="As of a run; the URL is of the folder of all outputs, or a prefix.")
    model: ModelConfig
    staging: Location | None = Field(
        None, description="A folder where outputs are computed before they go to an object store."
    )
    input: ReadingConfig = ReadingConfig()
    normalize: NormalizeConfig | None = None
    tiles: TilesConfig = TilesConfig()
    compute: ComputeConfig = ComputeConfig()
    cluster: ClusterConfig = ClusterConfig()
    log: LogConfig = LogConfig()
    concurrency: Auto | Positive = Field("auto", description="Volumes in hand at once; auto: two more than workers.")
    keep: KeepConfig = KeepConfig()
    price: PriceConfig = PriceConfig()
    watch: WatchConfig = WatchConfig()

    _device = model_validator(mode="after")(device_fits_cluster)

    @model_validator(mode="after")
    def _staging_for_object_stores(self) -> DatasetConfig:
        remote = is_url(self.output.url)
        if remote and self.staging is None:
            raise ValueError(
                f"output.url '{self.output.url}' is on an object store, where a run cannot write its ledger. Set staging to a "
                "folder that all workers see, with room for what is computed at once"
            )
        if self.staging is not None and (not remote or is_url(self.staging)):
            raise ValueError("staging is a folder on a file system, and only for an output.url on an object store")
        return self

    @property
    def source(self) -> Source:
        """As a catalogue is read from."""
        if isinstance(self.volumes, str):
            return self.volumes
        return [row if isinstance(row, str) else row.model_dump(exclude_none=True) for row in self.volumes]

    @property
    def home(self) -> Path:
        """The local folder of all outputs; what is of the whole set lies there too."""
        return Path(self.staging or self.output.url)

    @property
    def directory(self) -> RunDirectory:
        """Where locks, logs and observations of the whole set are."""
        from pipeline.outputs.rundir import RunDirectory  # noqa: PLC0415 - what is wrong with a YAML is told before heavy imports

        return RunDirectory(self.home)

    def run(self, url: str, image: str, reading: Mapping[str, Any], **sections: Any) -> RunConfig:
        """The run of one volume.

        Args:
            url: The volume.
            image: Path of its output.
            reading: Keys of `input` that the catalogue says of it.
            sections: In place of the set's own.

        Raises:
            ConfigError: Input and output lie inside one another.
        """
        content = {
            "input": {**self.input.model_dump(), **reading, "url": url},
            "output": {**self.output.model_dump(), "url": image},
            **{name: getattr(self, name) for name in ("model", "normalize", "tiles", "compute", "cluster", "log")},
            **sections,
        }
        return validated(RunConfig, content, source=url)

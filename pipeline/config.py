"""A run as one YAML and one frozen object. An unknown key is an error, and all violations are told at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.core.box import Triple
from pipeline.credentials import carried, shown
from pipeline.errors import ConfigError

Auto = Literal["auto"]
Positive = Annotated[int, Field(ge=1)]
Voxels = Annotated[tuple[Positive, Positive, Positive], Field(description="z, y, x")]
Margin = Annotated[tuple[int, int, int], Field(description="z, y, x")]
AnyConfig = TypeVar("AnyConfig", bound="Section")

TOLD = 30
"""Problems that one error tells at most: a file that is no configuration at all has hundreds."""


class Section(BaseModel):
    """A group of keys: frozen, and strict about names."""

    # Inputs are hidden where others print pydantic's own error, Prefect for one: they may hold credentials.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class Whole(Section):
    """What one YAML holds, or one form. `${NAME}` is taken from the environment here, so that secrets stay out of both."""

    @model_validator(mode="before")
    @classmethod
    def _expanded_without_empty_sections(cls, content: Any) -> Any:
        if not isinstance(content, Mapping):
            return content
        return {name: _expanded(value) for name, value in content.items() if value is not None}


def _absolute(url: Any) -> Any:
    """Local paths made absolute, against the working directory; `file://` dropped; other URLs as they are."""
    if not isinstance(url, str) or not url.strip():
        raise ValueError("a path is needed")
    if kind := carried(url):
        raise ValueError(
            f"the URL carries {kind}, which would stand in the plan, the ledger, the report and the logs. Take it out, and "
            "give it by the environment variables or the profile of the storage library (such as AWS_PROFILE)"
        )
    url = url.removeprefix("file://")
    if "://" in url:
        return url
    return os.path.abspath(os.path.expanduser(url))  # noqa: PTH100, PTH111 - must not resolve links, nor fail at `~no-one`


Location = Annotated[str, BeforeValidator(_absolute)]


Level = Annotated[int, Field(ge=0, description="Resolution level of an OME-Zarr image, 0 the finest.")]
Axes = Annotated[
    str, Field(description="yx, cyx, zyx or czyx; auto: the metadata's, else by the number of dimensions.")
]
Nonfinite = Annotated[
    Literal["fail", "zero"],
    Field(description="What to do with NaN and infinity: fail by the tile's name, or take them as 0."),
]


class InputConfig(Section):
    """What is read: a Zarr array, an OME-Zarr group, HDF5 (`FILE.h5/dataset`) or TIFF."""

    url: Location = Field(description="A path, or FILE.h5/dataset; never written to.")
    level: Level = 0
    axes: Axes = "auto"
    nonfinite: Nonfinite = "fail"


class OutputConfig(Section):
    """What is written: an OME-Zarr group whose array `0` holds the prediction."""

    url: Location = Field(description="A path; one of its own for each run. Its run directory is PATH.run.")
    dtype: Literal["float32", "uint8"] = Field("float32", description="uint8 is rint(255 * clip(v, 0, 1)).")
    activation: Literal["none", "sigmoid", "softmax"] = Field("none", description="none: logits; not with uint8.")
    chunks: Auto | Voxels = Field("auto", description="z, y, x; auto: at most 64 an axis.")
    shards: Literal["auto", "none"] | Voxels = Field("auto", description="z, y, x; auto: the tile's core, or parts of it.")

    @model_validator(mode="after")
    def _eight_bits_need_a_range(self) -> OutputConfig:
        if self.dtype == "uint8" and self.activation == "none":
            raise ValueError(
                "dtype uint8 stores rint(255 * clip(v, 0, 1)), which means nothing for raw logits (activation none). "
                "Set output.activation to sigmoid or softmax, or output.dtype to float32"
            )
        return self


class ModelConfig(Section):
    """Which network: a checkpoint of ours, or a plain state_dict of the notes' class; or the name of a registered one.

    What is named is looked up when a run is read (`registry.with_model`), which puts its file into `checkpoint`.
    """

    checkpoint: Location = Field("", description="A path. Or leave it empty, and give name and registry.")
    padding: Literal["same", "valid"] | None = Field(None, description="Only where the checkpoint does not say.")
    name: str | None = Field(None, description="Of a registered model.")
    version: Literal["latest"] | Positive = Field("latest", description="Of the registered model.")
    registry: Location | None = Field(None, description="The folder of registered models.")

    @property
    def title(self) -> str:
        """As a person names it; of a registered one, once it has been looked up, its version."""
        return f"{self.name} version {self.version}" if self.name else Path(self.checkpoint).name

    @model_validator(mode="after")
    def _a_file_or_a_name(self) -> ModelConfig:
        if self.name is None and (not self.checkpoint or self.registry or self.version != "latest"):
            raise ValueError(
                "checkpoint: required, but not there; or name and registry, for a model that was registered"
            )
        if self.name is not None and not self.registry:
            raise ValueError(
                f"name is '{self.name}', but no registry says where it is kept. Set model.registry to its folder"
            )
        return self


class NormalizeConfig(Section):
    """How stored values become the network's input; absent, the checkpoint's rule."""

    mode: Literal["none", "minmax", "zscore", "percentile"] = Field(description="One set of numbers a volume.")
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
        "auto", description="auto: bfloat16 where the hardware has it and the values differ by no more than the tolerance."
    )
    tolerance: Auto | Annotated[float, Field(ge=0)] = Field(
        "auto", description="Of values that are written; auto: one step of a uint8 output, none of a float32 output."
    )
    threads: Auto | Positive = Field("auto", description="Of one worker; part of the plan.")
    device_memory_gb: Auto | Annotated[float, Field(gt=0)] = Field(
        "auto", description="Free memory of a worker's card; needed where workers are on other machines."
    )


class TlsConfig(Section):
    """Certificates of a site: all parties show one, signed by its authority."""

    ca_file: Location
    cert_file: Location
    key_file: Location


class SlurmConfig(Section):
    """What each worker's job asks SLURM for."""

    walltime: str = Field(pattern=r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$", description="[days-]hours:minutes:seconds of a job.")
    cores: Positive = Field(description="Of a job.")
    gpus: Literal[0, 1] = Field(0, description="Cards of a job.")
    gpu_type: str | None = Field(None, description="As the site names it, such as a100; empty: any.")
    partition: str | None = Field(None, description="Empty: the site's default.")
    account: str | None = Field(None, description="To be charged.")
    modules: tuple[str, ...] = Field((), description="To load in each job.")
    prologue: tuple[str, ...] = Field((), description="Further lines of the job's script.")
    directives: tuple[str, ...] = Field((), description="Further #SBATCH lines, without that word.")
    python: str | None = Field(None, description="Interpreter on the nodes; empty: this one, by its path.")
    log_directory: Location | None = Field(None, description="Empty: OUTPUT.run/jobs.")

    @property
    def walltime_seconds(self) -> int:
        days, _, clock = self.walltime.rpartition("-")
        hours, minutes, seconds = map(int, clock.split(":"))
        return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253, description="As Kubernetes names things.")]


class ClaimConfig(Section):
    """A PersistentVolumeClaim, and where pods have it: the path at which the driver has it too."""

    claim: DnsLabel
    path: str = Field(pattern=r"^/[^:]+$", description="Absolute; the same for the driver.")
    read_only: bool = False
    sub_path: str | None = Field(None, description="A folder of the volume, instead of all of it.")


class TolerationConfig(Section):
    """A taint of nodes that workers may run on nevertheless."""

    key: str | None = Field(None, description="Empty, with operator Exists: any.")
    operator: Literal["Equal", "Exists"] = "Exists"
    value: str | None = Field(None, description="With operator Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(None, description="Empty: any.")


class KubernetesConfig(Section):
    """What the pods of a run are. They are not root, write to their volumes and /tmp only, and hold no token."""

    image: str = Field(min_length=1, description="With Halotile in it (deploy/Dockerfile), by a tag or digest that never changes.")
    namespace: DnsLabel = Field("halotile", description="Of the pods.")
    cores: Positive = Field(description="Of a worker.")
    gpus: Literal[0, 1] = Field(0, description="Cards of a worker.")
    gpu_resource: str = Field("nvidia.com/gpu", description="As the device plugin names a card.")
    volumes: tuple[ClaimConfig, ...] = Field((), description="Where data, checkpoint and output lie.")
    node_selector: dict[str, str] = Field({}, description="Labels of the nodes for workers.")
    tolerations: tuple[TolerationConfig, ...] = Field((), description="Of workers; the scheduler stays off such nodes.")
    scheduler_node_selector: dict[str, str] = Field({}, description="Labels of the nodes for the scheduler.")
    priority_class: DnsLabel | None = Field(None, description="PriorityClass of all pods.")
    service_account: DnsLabel | None = Field(None, description="Of all pods, for admission and image pulls.")
    image_pull_secrets: tuple[DnsLabel, ...] = ()
    env_from: tuple[DnsLabel, ...] = Field((), description="Secrets whose keys become variables of workers (S3).")
    env: dict[str, str] = Field({}, description="Further variables of workers; no secrets.")
    user: int = Field(10001, ge=1, description="Numeric user of all pods; needs to be allowed to write the output.")
    group: int = Field(10001, ge=1, description="Numeric group of all pods, and of their volumes.")
    labels: dict[str, str] = Field({}, description="Of all pods.")
    annotations: dict[str, str] = Field({}, description="Of all pods.")

    def __hash__(self) -> int:  # mappings have none
        return hash(self.model_dump_json())


LOOPBACK = ("127.0.0.1", "localhost", "::1")

WAIT_MINUTES = {"local": 2, "cuda": 2, "slurm": 24 * 60, "slurm-allocation": 10, "kubernetes": 60, "address": 10}
"""`cluster.wait_minutes: auto`: a queue may hold jobs for a day, a machine's own processes are there in seconds."""


class ClusterConfig(Section):
    """Who computes. `retries` is how often a failed tile is tried again before the run fails by its name."""

    kind: Literal["local", "cuda", "slurm", "slurm-allocation", "kubernetes", "address"] = Field(
        "local",
        description="Where workers come from: this machine, its GPUs, jobs of SLURM, an allocation, pods of Kubernetes, a scheduler.",
    )
    workers: Auto | Positive = Field("auto", description="Processes, jobs or pods; needed for slurm and kubernetes.")
    memory_gb: Auto | Annotated[float, Field(gt=0)] = Field("auto", description="Of one worker; needed for slurm and kubernetes.")
    retries: int = Field(2, ge=0, description="Further attempts of a tile before it is set aside and named.")
    wait_minutes: Auto | Annotated[float, Field(gt=0)] = Field(
        "auto", description="Without any worker for so long, the run ends."
    )
    host: str = Field(LOOPBACK[0], description="What the scheduler binds to; off loopback it speaks TLS.")
    interface: str | None = Field(None, description="Or the network interface, such as ib0.")
    security: Literal["auto", "none"] | TlsConfig = Field(
        "auto", description="auto: TLS off loopback, with certificates of the run's own."
    )
    address: str | None = Field(None, description="Of a scheduler that runs (kind address).")
    slurm: SlurmConfig | None = Field(None, description="What a job asks for (kind slurm).")
    kubernetes: KubernetesConfig | None = Field(None, description="What a pod is (kind kubernetes).")

    @model_validator(mode="after")
    def _what_its_kind_needs(self) -> ClusterConfig:
        lacking = []
        if self.kind == "slurm":
            lacking = [
                *(["slurm (walltime, cores)"] if self.slurm is None else []),
                *(["workers (jobs)"] if self.workers == "auto" else []),
                *(["memory_gb (of a worker)"] if self.memory_gb == "auto" else []),
            ]
        if self.kind == "kubernetes":
            lacking = [
                *(["kubernetes (image, cores)"] if self.kubernetes is None else []),
                *(["workers (pods)"] if self.workers == "auto" else []),
                *(["memory_gb (of a worker)"] if self.memory_gb == "auto" else []),
            ]
        if self.kind == "address" and not self.address:
            lacking = ["address (of a scheduler that runs, such as tls://host:8786)"]
        if lacking:
            raise ValueError(f"kind {self.kind} needs {', '.join(lacking)} too; see configs/{self.kind}.yaml")
        return self

    @property
    def wait_seconds(self) -> float:
        """How long a run may be without any worker."""
        return 60.0 * (WAIT_MINUTES[self.kind] if self.wait_minutes == "auto" else self.wait_minutes)

    @property
    def on_loopback(self) -> bool:
        """Whether nobody but this machine can reach the scheduler."""
        return self.interface is None and self.host in LOOPBACK


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
        if "://" not in self.input.url and any(_inside(a, b) for p in places for a, b in ((p, source), (source, p))):
            raise ValueError(
                f"output.url '{target}' and input.url '{source}' (or its run directory OUTPUT.run) lie inside one another: the input store is never "
                "written to. Set output.url to a path of its own"
            )
        if "://" in self.output.url:
            raise ValueError(f"output.url '{self.output.url}' is not a local path; outputs go to a file system so far")
        return self


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def read_config(cls: type[AnyConfig], path: str | Path, overrides: Sequence[str] = ()) -> AnyConfig:
    """Read one YAML into `cls`.

    Args:
        cls: The object wanted.
        path: The YAML; paths in it are relative to the working directory, `${NAME}` is taken from the environment.
        overrides: `key.key=value` each, applied in order; values are YAML.

    Raises:
        ConfigError: Everything that is wrong with it, at once.
    """
    return validated(cls, read_content(path, overrides), source=str(path))


def read_content(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What one YAML says, overridden, with nothing expanded or checked yet.

    Raises:
        ConfigError: It cannot be read, or is not keys and values.
    """
    content = _load_yaml(Path(path))
    for override in overrides:
        _override(content, override)
    return content


def validated(cls: type[AnyConfig], content: Any, *, source: str) -> AnyConfig:
    """`content` as a `cls`.

    Raises:
        ConfigError: Everything that is wrong with it, at once.
    """
    try:
        return cls.model_validate(content)
    except ValidationError as error:
        problems = violations(cls, error.errors())
        title = f"Configuration '{source}' cannot be a run ({len(problems)} problem{'s'[: len(problems) > 1]}):"
        more = [f"and {len(problems) - TOLD} more"] if len(problems) > TOLD else []
        raise ConfigError("\n".join([title, *(f"  {p}" for p in [*problems[:TOLD], *more])])) from error


def as_parameters(cls: type[AnyConfig], content: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """`content` for another process, which has another working directory: checked, and with local paths made absolute.

    `${NAME}` stays as written, so that what it stands for is kept nowhere.

    Raises:
        ConfigError: It is no `cls`.
    """
    return _placed(content, validated(cls, content, source=source).model_dump(mode="json"))


def _placed(written: Any, found: Any) -> Any:
    """What was written, with paths as they were found to be: the only texts that a configuration changes."""
    if isinstance(written, Mapping):
        return {key: _placed(value, found[key]) for key, value in written.items() if value is not None}
    if isinstance(written, list | tuple) and isinstance(found, list):
        return [_placed(value, other) for value, other in zip(written, found, strict=True)]
    if not isinstance(written, str) or not isinstance(found, str) or found == (meant := _expanded(written)):
        return written
    if meant == written:
        return found
    return written if meant.startswith(("/", "~", "file://")) else f"{Path.cwd()}/{written}"


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        content = content_of_yaml(path.read_text(encoding="utf-8"), f"Configuration '{path}'")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Configuration '{path}' cannot be read ({error}). Check the path.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"Configuration '{path}' holds {type(content).__name__}, not keys. See configs/example.yaml.")
    return content


def content_of_yaml(text: str, what: str) -> Any:
    """What a YAML's text says.

    Args:
        text: Of the YAML.
        what: It is, for errors.

    Raises:
        ConfigError: It is no YAML.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError) as error:  # ValueError: what looks like a date and is none
        raise ConfigError(f"{what} is not YAML:\n  {_of_yaml(error, text)}") from error


def _of_yaml(error: Exception, text: str) -> str:
    """What an error says of a YAML; it quotes lines, so of one that carries credentials only where it is."""
    if not carried(text):
        return str(error)[:600]
    mark = getattr(error, "problem_mark", None)
    return f"{type(error).__name__}{f', line {mark.line + 1}' if mark else ''} {shown(text)}"


def _override(content: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    told = shown(override)
    if not equals or not name.strip():
        raise ConfigError(f"--set '{told}' is not key=value, such as tiles.core=[64, 128, 128].")
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError) as error:
        why = _of_yaml(error, text).splitlines()[0]
        raise ConfigError(f"The value in --set '{told}' is not YAML ({why}).") from error
    *parents, leaf = name.strip().split(".")
    for parent in parents:
        child = content[parent] = {} if content.get(parent) is None else content[parent]
        if not isinstance(child, dict):
            raise ConfigError(f"--set '{told}': '{parent}' holds a value, not keys.")
        content = child
    content[leaf] = value


def _expanded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _expanded(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_expanded(child) for child in value]
    return _from_environment(value) if isinstance(value, str) else value


def _from_environment(text: str) -> str:
    def look_up(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"'{shown(text)}' names the environment variable {match[1]}, which is not set. Set it.")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", look_up, text)


def violations(cls: type[BaseModel], errors: Sequence[Any]) -> list[str]:
    """What pydantic found wrong with a `cls`, for a person. One line a key: what was expected, and what came. A key of several possible types has several expectations."""
    expected: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    for error in errors:
        name = shown(".".join(_keys(cls, error["loc"]))) or "the whole"
        expected.setdefault(name, []).append(_expectation(cls, error))
        if not isinstance(error["input"], dict | BaseModel) and error["type"] not in ("missing", "extra_forbidden"):
            found[name] = f" (found {_shortened(error['input'])})"
    return [f"{name}: {', or '.join(dict.fromkeys(texts))}{found.get(name, '')}" for name, texts in expected.items()]


def _shortened(value: Any) -> str:
    text = shown(repr(value))  # before it is cut: half a URL hides that it is one
    return text if len(text) <= 100 else f"{text[:100]}..."


def _expectation(cls: type[BaseModel], error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown key{_suggestion(cls, [str(part) for part in error['loc']])}"
    if error["type"] == "missing":
        whole = isinstance(error["loc"][-1], str)
        return "required, but not there" if whole else "three numbers, z, y, x"
    if error["type"] in ("tuple_type", "too_long"):
        return "three numbers, z, y, x"
    return error["msg"].removeprefix("Value error, ").replace("Input should", "should")


def _keys(cls: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The part of an error's location that the user wrote; what follows are names of types."""
    keys: list[str] = []
    owner: type[BaseModel] | None = cls
    for part in map(str, location):
        keys.append(part)
        field = owner.model_fields.get(part) if owner else None
        owner = next(_sections(field.annotation), None) if field else None
        if owner is None:
            break
    return keys


def _suggestion(cls: type[BaseModel], keys: list[str]) -> str:
    owner: Any = cls
    for key in keys[:-1]:
        field = owner.model_fields.get(key)
        owner = next(_sections(field.annotation), None) if field else None
        if owner is None:
            return ""
    known = list(owner.model_fields)
    close = get_close_matches(keys[-1], known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(known)}"


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _sections(inner)


def triple(value: Sequence[int]) -> Triple:
    """`value` as z, y, x."""
    z, y, x = value
    return (int(z), int(y), int(x))

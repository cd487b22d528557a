"""Who computes: processes of this machine, jobs of SLURM, pods of Kubernetes, or a scheduler that runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.section import Auto, Location, Positive, Section


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
    python: str | None = Field(
        None, description="Interpreter on the nodes, as a shell is told it; empty: this one, by its path."
    )
    log_directory: Location | None = Field(None, description="Empty: OUTPUT.run/jobs.")

    @property
    def walltime_seconds(self) -> int:
        days, _, clock = self.walltime.rpartition("-")
        hours, minutes, seconds = map(int, clock.split(":"))
        return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


DnsLabel = Annotated[
    str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253, description="As Kubernetes names things.")
]


LabelKey = Annotated[
    str,
    Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$", max_length=317),
]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
Labels = dict[LabelKey, LabelValue]


class ClaimConfig(Section):
    """A PersistentVolumeClaim, and where pods have it: the path at which the driver has it too."""

    claim: DnsLabel
    path: str = Field(pattern=r"^/[^:]+$", description="Absolute; the same for the driver.")
    read_only: bool = False
    sub_path: str | None = Field(None, description="A folder of the volume, instead of all of it.")


class TolerationConfig(Section):
    """A taint of nodes that workers may run on nevertheless."""

    key: str | None = Field(None, description="Empty, with operator Exists: any.")
    operator: Literal["Equal", "Exists"] | None = Field(
        None, description="Empty: Equal where there is a value, else Exists."
    )
    value: str | None = Field(None, description="With operator Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(None, description="Empty: any.")

    @model_validator(mode="after")
    def _as_kubernetes_takes_it(self) -> TolerationConfig:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError(f"operator Exists takes no value, but value is '{self.value}'. Leave one of them out")
        if self.operator == "Equal" and self.value is None:
            raise ValueError("operator Equal needs a value. Give it, or leave the operator out")
        if self.key is None and self.resolved_operator == "Equal":
            raise ValueError("a toleration without a key is of every taint, and takes no value. Give the key")
        return self

    @property
    def resolved_operator(self) -> Literal["Equal", "Exists"]:
        return self.operator or ("Exists" if self.value is None else "Equal")


class KubernetesConfig(Section):
    """What the pods of a run are. They are not root, write to their volumes and /tmp only, and hold no token."""

    image: str = Field(
        min_length=1, description="With Halotile in it (deploy/Dockerfile), by a tag or digest that never changes."
    )
    namespace: DnsLabel = Field("halotile", description="Of the pods.")
    cores: Positive = Field(description="Of a worker.")
    gpus: Literal[0, 1] = Field(0, description="Cards of a worker.")
    gpu_resource: str = Field("nvidia.com/gpu", description="As the device plugin names a card.")
    volumes: tuple[ClaimConfig, ...] = Field((), description="Where data, checkpoint and output lie.")
    node_selector: Labels = Field({}, description="Labels of the nodes for workers.")
    tolerations: tuple[TolerationConfig, ...] = Field((), description="Of workers; the scheduler stays off such nodes.")
    scheduler_node_selector: Labels = Field({}, description="Labels of the nodes for the scheduler.")
    priority_class: DnsLabel | None = Field(None, description="PriorityClass of all pods.")
    service_account: DnsLabel | None = Field(None, description="Of all pods, for admission and image pulls.")
    image_pull_secrets: tuple[DnsLabel, ...] = ()
    env_from: tuple[DnsLabel, ...] = Field((), description="Secrets whose keys become variables of workers (S3).")
    env: dict[str, str] = Field({}, description="Further variables of workers; no secrets.")
    user: int = Field(10001, ge=1, description="Numeric user of all pods; needs to be allowed to write the output.")
    group: int = Field(10001, ge=1, description="Numeric group of all pods, and of their volumes.")
    labels: Labels = Field({}, description="Of all pods.")
    annotations: dict[str, str] = Field({}, description="Of all pods.")

    @model_validator(mode="after")
    def _one_volume_a_path(self) -> KubernetesConfig:
        paths = [volume.path.rstrip("/") for volume in self.volumes]
        if twice := {path for path in paths if paths.count(path) > 1}:
            raise ValueError(f"volumes names {', '.join(sorted(twice))} more than once. Mount one claim at a path")
        return self

    def __hash__(self) -> int:  # mappings have none
        return hash(self.model_dump_json())


WAIT_MINUTES = {"local": 2, "cuda": 2, "slurm": 24 * 60, "slurm-allocation": 10, "kubernetes": 60, "address": 10}
"""`cluster.wait_minutes: auto`: a queue may hold jobs for a day, a machine's own processes are there in seconds."""


class ClusterConfig(Section):
    """Who computes. `retries` is how often a failed tile is tried again before the run fails by its name."""

    kind: Literal["local", "cuda", "slurm", "slurm-allocation", "kubernetes", "address"] = Field(
        "local",
        description="Where workers come from: this machine, its GPUs, jobs of SLURM, an allocation, pods of Kubernetes, a scheduler.",
    )
    workers: Auto | Positive = Field("auto", description="Processes, jobs or pods; needed for slurm and kubernetes.")
    memory_gb: Auto | Annotated[float, Field(gt=0, le=10**6)] = Field(
        "auto", description="Of one worker; needed for slurm and kubernetes."
    )
    retries: int = Field(2, ge=0, le=1000, description="Further attempts of a tile before it is set aside and named.")
    wait_minutes: Auto | Annotated[float, Field(gt=0, le=10**6)] = Field(
        "auto", description="Without any worker for so long, the run ends."
    )
    host: str = Field("127.0.0.1", description="What the scheduler binds to.")
    interface: str | None = Field(None, description="Or the network interface, such as ib0.")
    security: Literal["auto", "none"] | TlsConfig = Field(
        "auto", description="auto: TLS with certificates of the run's own; none: whoever reaches a port runs code."
    )
    dashboard: bool = Field(False, description="Serve Dask's pages, on the scheduler's loopback, without a password.")
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
        if self.kind == "kubernetes" and self.dashboard:
            raise ValueError(
                "kind kubernetes serves no dashboard: its pods' ports are open to other pods. Leave it out"
            )
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
    def orphan_seconds(self) -> float:
        """How long workers may go on whose driver died: those of Kubernetes until its operator has seen that they are alone."""
        return 300.0 if self.kind == "kubernetes" else 60.0

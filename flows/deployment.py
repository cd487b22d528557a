"""Deployments: the flows on a work pool of a Prefect server that stays, with forms, schedules and automations.

    halotile-inference/segment   any run, by the form on Prefect's page
    halotile-training/train      any training
    halotile-dataset/reprocess, halotile-watch/watch   any dataset, any inbox
    halotile-inference/NAME      one run: a YAML's content as parameters; at most one at a time, and maybe on a schedule
    halotile-dataset/NAME, halotile-watch/NAME         the same of a dataset's YAML

All of it is declared: deploying again replaces what this made before, and duplicates nothing. Entry points are paths of
modules, so that no code is copied: a worker runs what is installed beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from httpx import HTTPError
from prefect import Flow, get_client
from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture, SendNotification
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions, StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.utilities.callables import parameter_schema
from prefect.utilities.urls import url_for
from prefect.workers.process import ProcessWorker
from pydantic import ValidationError

from flows.dataset import reprocess_dataset, watch_inbox
from flows.inference import infer_volume
from flows.server.embedded import configured_api
from flows.server.health import check_api
from flows.training import train_network
from pipeline.config import RunConfig, Whole, as_parameters, read_content
from pipeline.dataset.settings import DatasetConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.training.recipe import TrainConfig

TAG = "halotile"
"""Of every deployment, and so of its runs: what the automations look at."""

POOL_TYPES = ("process", "kubernetes")
"""Of work pools: the first is made where there is none, the other by deploy/kubernetes."""

HEARTBEAT_SECONDS = 30
"""Between signs of life of a run; Prefect takes no less."""

LOST_SECONDS = 100
"""Without one, after which a run counts as crashed: three in a row are missing."""

FORMS: dict[str, Flow[..., Any]] = {
    "segment": infer_volume,
    "train": train_network,
    "reprocess": reprocess_dataset,
    "watch": watch_inbox,
}
"""Deployments of the bare flows, by name."""

LOST, FAILED = "halotile: a run whose heartbeat stopped", "halotile: a run that failed"
"""Names of the automations, by which they are found again."""

_ENDED = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}


@dataclass(frozen=True, slots=True)
class Deployment:
    """One deployment, before there is a server to tell.

    Args:
        name: Unique among those of its flow.
        flow: What it runs.
        parameters: Of its runs; empty where a form asks for them.
        schedule: When it runs by itself; None: only when somebody says so.
        paused: Whether its schedule waits to be resumed.
        description: What Prefect's page says of it.
    """

    name: str
    flow: Flow[..., Any]
    parameters: dict[str, Any]
    schedule: CronSchedule | None = None
    paused: bool = False
    description: str | None = None

    @property
    def title(self) -> str:
        return f"{self.flow.name}/{self.name}"


def forms() -> list[Deployment]:
    """The bare flows; who starts one fills in its keys."""
    return [Deployment(name, flow, {}) for name, flow in FORMS.items()]


def deployment_of(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    watch: bool = False,
    schedule: CronSchedule | None = None,
    paused: bool = False,
) -> Deployment:
    """The deployment of one YAML: of training where it has the key `data`, of a dataset where `volumes`, else of a run.

    Args:
        path: The YAML.
        overrides: As of `read_config`.
        name: Of the deployment; the file's by default.
        watch: Whether a dataset is watched for new volumes, instead of gone over.
        schedule: When it runs by itself.
        paused: Whether its schedule waits to be resumed.

    Raises:
        ConfigError: It cannot be a run, or its name is taken by a form.
    """
    name = name or path.stem
    if name in FORMS:
        raise ConfigError(
            f"A deployment of '{path}' would be called '{name}', which is the form of a bare flow. Name it: --name NAME."
        )
    content = read_content(path, overrides)
    flow, cls = _flow_of(content, watch=watch)
    parameters = {"config": as_parameters(cls, content, source=str(path))}
    return Deployment(name, flow, parameters, schedule, paused, f"What `{path.resolve()}` says.")


def _flow_of(content: Mapping[str, Any], *, watch: bool) -> tuple[Flow[..., Any], type[Whole]]:
    """What a YAML is for, and what it must be."""
    if "volumes" in content:
        return (watch_inbox if watch else reprocess_dataset), DatasetConfig
    if watch:
        raise ConfigError(
            "--watch is for a dataset, whose YAML has the key `volumes`: the inbox. See configs/dataset.yaml."
        )
    return (train_network, TrainConfig) if "data" in content else (infer_volume, RunConfig)


def cron_schedule(cron: str, timezone: str | None) -> CronSchedule:
    """When to run.

    Raises:
        ConfigError: It is no cron line, or no time zone.
    """
    try:
        return CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        reasons = "; ".join(str(e["msg"]).removeprefix("Value error, ") for e in error.errors())
        raise ConfigError(
            f"--cron '{cron}' with --timezone '{timezone or 'UTC'}' is no schedule ({reasons}). Five fields are expected, "
            "minute hour day month weekday, such as '0 2 * * *', and a name such as Europe/Berlin."
        ) from error


# --- telling a server -------------------------------------------------------------------------------------------------


def deploy(
    deployments: Sequence[Deployment], *, pool: str, notify: str | None = None, lost_seconds: int = LOST_SECONDS
) -> list[tuple[str, str]]:
    """Make pool, deployments and automations on the configured server; gives what was made, and where to look.

    Args:
        deployments: In addition to the forms.
        pool: Work pool of type process, made where there is none, or of type kubernetes.
        notify: A notification block, TYPE/NAME, told of runs that failed or crashed; none by default.
        lost_seconds: Without a heartbeat, after which a run counts as crashed.

    Raises:
        ConfigError: No server is configured, the pool is of another kind, or the block is none.
        PipelineError: The server cannot be reached, or refuses.
    """
    url = configured_api()
    if not url:
        raise ConfigError(
            "A deployment lives on a Prefect server that stays, and none is configured. Start one (docs/operations.md, "
            "deploy/server/) and set PREFECT_API_URL, such as http://127.0.0.1:4200/api."
        )
    automation = lost_runs(lost_seconds)
    check_api(url)
    with _translate_errors(url), get_client(sync_client=True) as client:
        block = _notification_block(client, notify) if notify else None
        kind = _work_pool(client, pool)
        rows = [("work pool", f"{pool} ({kind})")]
        for deployment in [*forms(), *deployments]:
            page = url_for("deployment", _create(client, deployment, pool, job_variables(kind)))
            rows.append(("deployment", f"{deployment.title}{_when(deployment)}  {page or ''}"))
        rows.append(("automation", _declare(client, automation)))
        if block:
            rows.append(("automation", _declare(client, failed_runs(block))))
    return rows


@contextmanager
def _translate_errors(url: str) -> Iterator[None]:
    """Turn what Prefect's client raises into errors for a user."""
    try:
        yield
    except PrefectHTTPStatusError as error:
        raise PipelineError(f"Prefect's server at '{url}' refused: {error.response.text[:600]}") from error
    except (HTTPError, RuntimeError) as error:  # RuntimeError: what Prefect makes of a connection that is refused
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, HTTPError):
            raise
        raise PipelineError(
            f"Prefect's server at '{url}' cannot be reached ({error}). Start it, or correct PREFECT_API_URL."
        ) from error


def _work_pool(client: SyncPrefectClient, name: str) -> str:
    """Confirm the work pool, or make it; gives its type."""
    try:
        work_pool = client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        work_pool = client.create_work_pool(WorkPoolCreate(name=name, type=POOL_TYPES[0], base_job_template=template))
    if work_pool.type not in POOL_TYPES:
        raise ConfigError(
            f"Work pool '{name}' is of type '{work_pool.type}'; the deployments run on one of type {' or '.join(POOL_TYPES)}. "
            "Name another with --pool; it is made where there is none."
        )
    return work_pool.type


def _create(client: SyncPrefectClient, deployment: Deployment, pool: str, variables: dict[str, Any]) -> UUID:
    """Make the deployment, or replace the one of that name, its schedule included."""
    flow, single = deployment.flow, bool(deployment.parameters)
    schedule = deployment.schedule
    return client.create_deployment(
        client.create_flow_from_name(flow.name),
        deployment.name,
        entrypoint=f"{flow.fn.__module__}.{flow.fn.__name__}",
        work_pool_name=pool,
        job_variables=variables,
        parameters=deployment.parameters,
        parameter_openapi_schema=parameter_schema(flow).model_dump(exclude_unset=True),
        enforce_parameter_schema="${" not in json.dumps(deployment.parameters),  # may stand for a number
        schedules=[DeploymentScheduleCreate(schedule=schedule, active=not deployment.paused)] if schedule else [],
        # Two runs of one output never race, and the runs of a night without a worker do not follow one another.
        concurrency_limit=1 if single else None,
        concurrency_options=ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
        if single
        else None,
        tags=[TAG],
        description=deployment.description or flow.description,
        paused=False,
    )


def job_variables(pool_type: str = POOL_TYPES[0]) -> dict[str, Any]:
    """What a worker gives to a run: signs of life, our log lines, and, to a process, this working directory."""
    environment = {
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_LOGGING_EXTRA_LOGGERS": "pipeline",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # threads that know of no run have lines too
        "DASK_LOGGING__DISTRIBUTED": "warning",  # its comings and goings would fill the worker's log
    }
    return {"env": environment, **({"working_dir": str(Path.cwd())} if pool_type == "process" else {})}


def _when(deployment: Deployment) -> str:
    schedule = deployment.schedule
    if schedule is None:
        return ""
    return f" at '{schedule.cron}' {schedule.timezone or 'UTC'}{' (paused)' if deployment.paused else ''}"


# --- automations --------------------------------------------------------------------------------------------------------


def lost_runs(seconds: int) -> AutomationCore:
    """Calls a run crashed whose process and worker are both gone: nobody else would."""
    if seconds < HEARTBEAT_SECONDS + 10:
        raise ConfigError(
            f"--lost-after {seconds} is too short: a run gives a sign of life every {HEARTBEAT_SECONDS} s. Take "
            f"{HEARTBEAT_SECONDS + 10} or more."
        )
    return AutomationCore(
        name=LOST,
        description=f"No heartbeat for {seconds} s: its machine is gone. The next run resumes. Made by `halotile deploy`.",
        trigger=EventTrigger(
            **_our_runs(),
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *_ENDED},
            posture=Posture.Proactive,
            within=timedelta(seconds=seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"no heartbeat for {seconds} s: process and worker are gone; finished tiles are kept, run again to resume",
            )
        ],
    )


def failed_runs(block: UUID) -> AutomationCore:
    """Tells a notification block of runs that failed or crashed."""
    return AutomationCore(
        name=FAILED,
        description="Tells of runs that failed or crashed. Made by `halotile deploy --notify`.",
        trigger=EventTrigger(
            **_our_runs(),
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            posture=Posture.Reactive,
        ),
        actions=[
            SendNotification(
                block_document_id=block,
                subject="{{ flow.name }}: {{ flow_run.name }} {{ flow_run.state.name }}",
                body="{{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
            )
        ],
    )


def _our_runs() -> dict[str, Any]:
    """The part of a trigger that looks at our runs, each by itself."""
    return {
        "match": {"prefect.resource.id": "prefect.flow-run.*"},
        "match_related": {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"},
        "for_each": {"prefect.resource.id"},
        "threshold": 1,
    }


def _declare(client: SyncPrefectClient, automation: AutomationCore) -> str:
    """Make the automation, or bring the one of its name up to date; one that was switched off stays so."""
    present = client.read_automations_by_name(automation.name)
    if present:
        client.update_automation(present[0].id, automation.model_copy(update={"enabled": present[0].enabled}))
    else:
        client.create_automation(automation)
    return automation.name


def _notification_block(client: SyncPrefectClient, slug: str) -> UUID:
    kind, _, name = slug.partition("/")
    try:
        block = client.read_block_document_by_name(name or " ", kind)
    except ObjectNotFound as error:
        raise ConfigError(
            f"--notify '{slug}' is no block on this server: TYPE/NAME is expected, such as slack-webhook/alerts. "
            "`prefect block ls` lists what is there; make one on Prefect's page, under Blocks."
        ) from error
    if block.block_schema is None or "notify" not in block.block_schema.capabilities:
        raise ConfigError(f"--notify '{slug}' is a block that cannot notify. Name a notification block.")
    return block.id

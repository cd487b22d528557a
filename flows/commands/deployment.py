"""The command of flows on a server that stays: deploy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flows.commands.arguments import Overrides
from flows.commands.status import DONE
from flows.printing import print_rows, say
from pipeline.errors import ConfigError


def deploy(
    *configs: Annotated[
        Path, Parameter(help="YAMLs of runs, datasets or training; each becomes a deployment with a name.")
    ],
    name: Annotated[str | None, Parameter(help="Of the deployment of one YAML; the file's by default.")] = None,
    pool: Annotated[str, Parameter(help="Work pool of type process; made where there is none.")] = "halotile",
    cron: Annotated[
        str | None, Parameter(help="When to run: minute hour day month weekday, such as '0 2 * * *'.")
    ] = None,
    timezone: Annotated[str | None, Parameter(help="Of --cron, such as Europe/Berlin; UTC by default.")] = None,
    paused: Annotated[bool, Parameter(help="Leave the schedule paused.", negative=())] = False,
    watch: Annotated[
        bool, Parameter(help="Watch datasets for new volumes, instead of going over them.", negative=())
    ] = False,
    notify: Annotated[str | None, Parameter(help="A notification block, TYPE/NAME, told of failed runs.")] = None,
    lost_after: Annotated[
        int, Parameter(help="Seconds without a heartbeat after which a run counts as crashed; at least 40.")
    ] = 100,
    set_: Overrides = None,
) -> int:
    """Put the flows on a Prefect server that stays: forms, named runs, schedules. Again: bring them up to date."""
    if not configs and (name or cron or set_):
        raise ConfigError("--name, --cron and --set are of a YAML, and none is named: halotile deploy RUN.yaml ...")
    if len(configs) > 1 and (name or len({path.stem for path in configs}) < len(configs)):
        raise ConfigError("Deployments need a name each: deploy YAMLs of one name one by one, each with its --name.")
    from flows import deployment  # noqa: PLC0415 - slow; `--help` needs none of it

    schedule = deployment.cron_schedule(cron, timezone) if cron else None
    deployments = [
        deployment.deployment_of(path, set_ or (), name=name, watch=watch, schedule=schedule, paused=paused)
        for path in configs
    ]
    print_rows(deployment.deploy(deployments, pool=pool, notify=notify, lost_seconds=lost_after))
    started = deployments[0].title if deployments else "halotile-inference/segment"
    say(f"a worker, where Halotile is installed:  prefect worker start --pool {pool}")
    say(
        f"a run now: on the page above, or        prefect deployment run {started}{'' if deployments else ' --param config=...'}"
    )
    return DONE

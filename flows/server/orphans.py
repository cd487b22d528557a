"""Sub-flows that stayed Running on Prefect's page because their parent was killed: nobody else would ever end them."""

from __future__ import annotations

import logging

from httpx import HTTPError
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import PrefectException
from prefect.states import Crashed

log = logging.getLogger("pipeline")

MOST = 200
"""That are looked at in one go."""


def end_orphans(flow: str) -> int:
    """Call those runs of a sub-flow crashed whose parent has ended; gives their number.

    Args:
        flow: Name of the sub-flow.
    """
    try:
        with get_client(sync_client=True) as client:
            running = client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
                ),
                limit=MOST,
            )
            orphans = [run for run in running if _is_orphan(client, run)]
            for run in orphans:
                client.set_flow_run_state(
                    run.id, Crashed(message="its parent run was killed; running again resumes"), force=True
                )
            return len(orphans)
    except (HTTPError, PrefectException) as error:  # costs the page's truth, not the run
        log.warning("sub-flows of runs that were killed may still be called Running: %s", error)
        return 0


def _is_orphan(client: SyncPrefectClient, run: FlowRun) -> bool:
    if run.parent_task_run_id is None:
        return False
    parent = client.read_task_run(run.parent_task_run_id).flow_run_id
    state = client.read_flow_run(parent).state if parent else None
    return state is not None and state.is_final()

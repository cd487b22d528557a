"""A run that is asked to end, without a server."""

from __future__ import annotations

import inspect
import logging
import signal
import sys

import pytest
from prefect.exceptions import CancelledRun, TerminationSignal

from flows.inference import infer_volume
from flows.interruption import cancel_when_asked, result_of
from flows.tasks import following_tasks
from pipeline import stages
from pipeline.config import RunConfig
from pipeline.errors import InferenceError


@pytest.mark.parametrize("asked", [KeyboardInterrupt(), TerminationSignal(signal.SIGTERM), CancelledRun("so")])
def test_whoever_asks_a_run_to_end_gets_the_state_cancelled(asked):
    """Prefect itself would call it Crashed, and somebody would look for a fault."""

    def interrupted() -> int:
        raise asked

    found = cancel_when_asked("tiles are kept")(interrupted)()
    assert found.is_cancelled()
    assert found.message == "tiles are kept; run again to resume"
    with pytest.raises(CancelledRun, match="tiles are kept"):
        result_of(found)


def test_what_is_given_and_what_is_raised_passes():
    """Only who is asked to end is cancelled; a fault stays a fault."""

    def given(fails: bool) -> int:
        if fails:
            raise InferenceError("no")
        return 3

    guarded = cancel_when_asked("tiles are kept")(given)
    assert result_of(guarded(fails=False)) == 3
    with pytest.raises(InferenceError):
        guarded(fails=True)


def test_prefect_still_finds_the_types_of_a_flows_parameters():
    """They are the form on its page, and what turns a plain dict into a run."""
    assert inspect.signature(infer_volume.fn).parameters["config"].annotation is RunConfig


def test_the_flow_has_a_task_of_each_stage_of_the_sequence():
    """A stage that is added is on Prefect's page, too, and is retried as the others are."""
    tasks = following_tasks()
    assert [task.name for task in tasks] == [stage.name for stage in stages.SEQUENCE]
    assert {(task.retries, task.retry_delay_seconds) for task in tasks} == {(1, 5)}
    assert len({task.task_key for task in tasks}) == len(tasks)


def test_a_cancelled_run_leaves_no_traceback_in_its_log(caplog):
    """Prefect logs whatever a run raises as an error: a page that is red for what was asked for."""
    log = logging.getLogger("prefect.flow_runs")

    def interrupted() -> int:
        raise KeyboardInterrupt

    cancel_when_asked("tiles are kept")(interrupted)()
    for error in (CancelledRun("so"), InferenceError("no")):
        try:
            raise error
        except (CancelledRun, InferenceError):
            record = log.makeRecord(log.name, logging.ERROR, __file__, 1, "ended", (), sys.exc_info())
        assert bool(log.filter(record)) is isinstance(error, InferenceError)

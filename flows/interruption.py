"""Runs that are asked to end: Cancelled on Prefect's page, not Crashed, and in order, whoever asked.

Ctrl-C, `scancel` and `halotile cancel` are a KeyboardInterrupt in the driver; SIGTERM, which a worker sends when someone
cancels on Prefect's page, is Prefect's TerminationSignal. Either runs through the stage like any exception, so that its
context managers close cluster and ledger, and arrives here. Prefect itself would call the run crashed.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun, TerminationSignal
from prefect.states import Cancelled

P = ParamSpec("P")
R = TypeVar("R")


def cancel_when_asked(kept: str) -> Callable[[Callable[P, R]], Callable[P, R | State]]:
    """Make a flow's or task's function return the state Cancelled where it was asked to end.

    The flow takes what its tasks give through `result_of`, and returns the state in turn; its caller gets CancelledRun.

    Args:
        kept: What is not lost; the state's message.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R | State]:
        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R | State:
            try:
                return function(*args, **kwargs)
            except (KeyboardInterrupt, TerminationSignal, CancelledRun):
                logging.getLogger("prefect.flow_runs").addFilter(_is_no_cancellation)  # the same again is not added
                return Cancelled(message=f"{kept}; run again to resume")

        # Prefect reads the types of parameters off the signature, and would look their names up in this module.
        vars(guarded)["__signature__"] = inspect.signature(function, eval_str=True)
        return guarded

    return decorate


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Prefect logs whatever a run raises as an error, with its traceback; that it was cancelled is none."""
    return not (record.exc_info and isinstance(record.exc_info[1], CancelledRun))


def result_of(given: R | State) -> R:
    """What a task gave.

    Raises:
        CancelledRun: It gave the state Cancelled.
    """
    if isinstance(given, State):
        raise CancelledRun(given.message)
    return given

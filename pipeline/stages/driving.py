"""Being the one driver of an output: for several stages, until somebody asks for an end, as one task of many."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from pipeline.cluster.pool import SharedPool, StartedWorkers, join_allocation, starting
from pipeline.config import ClusterConfig, ComputeConfig
from pipeline.core.ledger import Progress
from pipeline.errors import StorageError
from pipeline.inference.session import workers_for
from pipeline.outputs.rundir import Driver, RunDirectory
from pipeline.stages.run import Run

HEED_SECONDS = 0.5
"""Between two looks whether somebody asks this run to end."""

CANCEL_SECONDS = 120.0
"""What the one who asks waits."""


@contextmanager
def driving(directory: RunDirectory) -> Iterator[Driver]:
    """Be the one driver of an output for several stages, and heed `cancel`.

    Gives the driver, which the stages are handed (`Run.driver`).

    Args:
        directory: Of a run, or of a set.

    Raises (on entering):
        StorageError: Another process drives it.
    """
    with directory.driver() as driver:
        over = threading.Event()
        watch = threading.Thread(target=_heed, args=(driver, over), name="cancel", daemon=True)
        watch.start()
        try:
            yield driver
        finally:
            over.set()
            watch.join()


@contextmanager
def drive(run: Run) -> Iterator[Run]:
    """As `driving`, for a run; gives the run with its driver. One that has a driver already is left to whoever gave it.

    Raises (on entering):
        StorageError: Another process drives its output.
    """
    if run.driver is not None:
        yield run
        return
    with driving(run.directory) as driver:
        yield replace(run, driver=driver)


def _heed(driver: Driver, over: threading.Event) -> None:
    """End this process as Ctrl-C does, once somebody asks for it."""
    while not over.wait(HEED_SECONDS):
        if driver.heed():
            os.kill(os.getpid(), _interrupting())
            return


def _interrupting() -> signal.Signals:
    """What ends this process in order. One that a script started in the background ignores Ctrl-C."""
    return signal.SIGTERM if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else signal.SIGINT


def cancel(output: str, wait_seconds: float = CANCEL_SECONDS) -> Progress | None:
    """Ask the run that writes to `output`, on whatever machine, to end, and wait until it has.

    Returns:
        How far it came; None where it had not come to its tiles.

    Raises:
        StorageError: There is no such run, or it does not end in time.
    """
    directory = RunDirectory(output)
    if not directory.is_driven():
        raise StorageError(f"No run writes to '{output}' now: there is nothing to cancel.")
    directory.ask_to_cancel()
    deadline = time.monotonic() + wait_seconds
    while directory.is_driven():
        if time.monotonic() > deadline:
            raise StorageError(
                f"The run that writes to '{output}' was asked to end, but still has its lock after {wait_seconds:.0f} s. It may "
                "be at something that takes long; look again, or end its process."
            )
        time.sleep(0.2)
    plan = directory.load_plan()
    return directory.progress(plan) if plan else None


@contextmanager
def part_in_cluster(
    cluster: ClusterConfig, compute: ComputeConfig, directory: RunDirectory
) -> Iterator[StartedWorkers]:
    """As one of many tasks of an allocation (kind slurm-allocation): be what it is to be. Others than the driver end here.

    Gives the driver the workers of its allocation.
    """
    with join_allocation(cluster, compute.threads, directory.jobs_path) as started:
        yield started


@contextmanager
def workers_kept(
    run: Run, started: StartedWorkers | None = None, shared: SharedPool | None = None
) -> Iterator[StartedWorkers | None]:
    """Have one set of workers for all stages of a run: begin to start it where a survey comes first, and nobody has.

    Gives what the stages are to be given; None where they have shared ones, or but one of them needs any.

    Args:
        run: The run; its plan must have been made.
        started: Workers of its own that are started already.
        shared: Workers that it shares with others.
    """
    if started or shared or run.plan.survey is None:
        yield started
        return
    with workers_starting(run) as found:
        yield found


@contextmanager
def workers_starting(run: Run, joined: StartedWorkers | None = None) -> Iterator[StartedWorkers | None]:
    """Start the workers of the stages while this process still does other things; those that nobody takes end.

    Gives what the stage is to be given; None where nothing is to do.

    Args:
        run: The run; its plan must have been made.
        joined: Workers of the allocation of which this process is a task: they are there already.
    """
    if joined is not None:
        yield joined
        return
    progress = run.progress()
    if progress.count("done") == progress.total:
        yield None
        return
    spec = workers_for(run.config, run.plan, progress)
    with starting(run.config.cluster, spec, run.directory.jobs_path) as started:
        yield started

"""dask-jobqueue, without its taking over Ctrl-C: its import sets a handler of SIGINT, which is put back here."""

from __future__ import annotations

import signal

_interrupt = signal.getsignal(signal.SIGINT)
from dask_jobqueue.slurm import SLURMCluster, SLURMJob, SLURMRunner, WorldTooSmallException  # noqa: E402

signal.signal(signal.SIGINT, _interrupt)

__all__ = ["SLURMCluster", "SLURMJob", "SLURMRunner", "WorldTooSmallException"]

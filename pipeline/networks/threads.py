"""What a process has to compute with, as OpenMP and the kernel say: threads are part of a plan, since they change low bits."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.errors import InferenceError

OPENMP = re.compile(r"\S*/lib(?:gomp|iomp5|omp)[-.\w]*\.so[.\d]*$")


@dataclass(frozen=True, slots=True)
class Threads:
    """What this process computes with.

    Args:
        set: That torch asks for.
        limit: Threads that OpenMP grants at most.
        dynamic: Whether OpenMP may give fewer than are asked for.
        bound: Whether OpenMP ties threads to cores.
        cores: That the threads of this process may use, together.
    """

    set: int
    limit: int
    dynamic: bool
    bound: bool
    cores: int


def threads() -> Threads:
    """The threads of the caller. Call it in the thread that computes, once it has: OpenMP keeps numbers and ties per thread."""
    libraries = [ctypes.CDLL(path) for path in _openmp()]
    return Threads(
        set=torch.get_num_threads(),
        limit=min((library.omp_get_thread_limit() for library in libraries), default=2**31 - 1),
        dynamic=any(library.omp_get_dynamic() for library in libraries),
        bound=any(library.omp_get_proc_bind() for library in libraries),
        cores=len(_cores()),
    )


def _openmp() -> set[str]:
    """The OpenMP libraries of this process: none where the system does not say what is loaded."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if maps.is_file() else []
    return {match[0] for match in map(OPENMP.search, lines) if match}


def _cores() -> set[int]:
    cores: set[int] = set()
    for thread in Path("/proc/self/task").iterdir() if hasattr(os, "sched_getaffinity") else ():
        try:
            cores |= os.sched_getaffinity(int(thread.name))
        except ProcessLookupError:  # it has ended
            continue
    return cores


def check_threads(actual: Threads, planned: int, promised_cores: int | None = None) -> list[str]:
    """Refuse to compute with other threads than the plan's; return warnings of what only costs time.

    Args:
        actual: What there is.
        planned: Threads of a worker, of the plan.
        promised_cores: That the driver counted on for this machine; None where it could not see it.

    Raises:
        InferenceError: Other threads would compute, and so other low bits; or the driver's process was tied to a core.
    """
    where = "Start it without OMP_*, GOMP_*, KMP_* and MKL_* variables"
    if actual.set != planned or actual.limit < planned or actual.dynamic:
        raise InferenceError(
            f"The plan has {planned} compute thread(s) a worker, which determine low bits of its output, but this worker has "
            f"{actual.set} of at most {actual.limit}{', or fewer (OMP_DYNAMIC)' if actual.dynamic else ''}. {where} "
            "(OMP_THREAD_LIMIT, OMP_DYNAMIC)."
        )
    if promised_cores is not None and 0 < actual.cores < promised_cores:
        raise InferenceError(
            f"A worker may use {actual.cores} of the {promised_cores} core(s) that the plan counts on: OpenMP tied the driver's "
            "process to fewer (OMP_PROC_BIND, OMP_PLACES, GOMP_CPU_AFFINITY), and workers inherit that. Start the driver without."
        )
    if actual.bound:
        return [
            f"OpenMP ties this worker's threads to cores, maybe to those of another worker. {where} (OMP_PROC_BIND)."
        ]
    if 0 < actual.cores < planned:
        return [
            f"{planned} compute threads share {actual.cores} core(s), which is all that this worker may use: it will be slow."
        ]
    return []

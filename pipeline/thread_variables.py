"""Variables by which a machine, a module system or a shell would change how a network is computed, whatever the plan says.

Compute threads are part of a plan, because they change low bits. OpenMP, MKL and their kin read the environment when they are
loaded: `OMP_THREAD_LIMIT` takes threads away, `OMP_PROC_BIND=true` pins the first thread of every worker to the same core. So
whoever starts a worker takes these variables out of its environment (`forget`), and sets those that undo what its machine may
say besides (`NEUTRAL`); the worker looks at what it got (`pipeline.networks.threads`).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

FAMILIES = ("OMP_", "GOMP_", "KMP_", "LIBOMP_", "LIBOMPTARGET_")

PRECISIONS = frozenset(
    {
        "DNNL_DEFAULT_FPMATH_MODE",
        "NVIDIA_TF32_OVERRIDE",
        "ONEDNN_DEFAULT_FPMATH_MODE",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    }
)
"""bfloat16 or TF32 where the plan says float32."""

SINGLE = PRECISIONS | frozenset(
    {
        "BLIS_NUM_THREADS",
        "GOTO_NUM_THREADS",
        "MKL_DOMAIN_NUM_THREADS",
        "MKL_DYNAMIC",
        "MKL_NUM_STRIPES",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    }
)

LEFT = frozenset({"KMP_DUPLICATE_LIB_OK"})
"""That change neither threads nor bits."""

COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Threads of a process; a driver may be told, a worker's are the plan's."""

NEUTRAL = {
    "OMP_PROC_BIND": "false",  # comes before OMP_PLACES and GOMP_CPU_AFFINITY
    "OMP_DYNAMIC": "false",
    "OMP_THREAD_LIMIT": str(2**31 - 1),
    "KMP_AFFINITY": "disabled",
}
"""What a variable that cannot be taken away is set to: the image of a pod, a module of a site may have it."""


def meddles(name: str) -> bool:
    """Whether a variable changes how a network is computed."""
    return (name.startswith(FAMILIES) or name in SINGLE) and name not in LEFT


def lowered(environment: Mapping[str, str]) -> list[str]:
    """The variables, with their values, that have a library compute in less than the plan's precision."""
    settings = {name: environment[name] for name in sorted(PRECISIONS) if name in environment}
    return [f"{name}={value}" for name, value in settings.items() if value.upper() not in ("", "0", "STRICT")]


def forget(environment: MutableMapping[str, str]) -> None:
    """Take them out of an environment; the number of a driver's own threads stays, where it is one.

    It must be done before OpenMP is loaded, which is with torch: a bound process would hand its one core on to its workers.
    """
    for name in [name for name in environment if meddles(name)]:
        if not (name in COUNTS and environment[name].isdecimal()):
            del environment[name]

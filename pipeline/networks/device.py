"""Devices and processors: what is there, what it does well, and what a person must know before trusting it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from pipeline.errors import ModelError

BROKEN_CUDNN = (90800, 91500)
"""cuDNN from 9.8 up to 9.15 gives wrong or very slow 3D convolutions in half precision (pytorch issues 163539, 166122)."""


def check_device(device: str) -> None:
    """Refuse a device that this machine lacks.

    Raises:
        ModelError: It is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"compute.device is 'cuda', but torch {torch.__version__} finds no CUDA device here. "
            "Set compute.device to 'cpu' or 'auto', or run where there is a GPU and a CUDA build of torch."
        )


def resolved_device(device: str) -> str:
    """`auto` resolved: the GPU where there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    return device


def device_count(device: str) -> int:
    """Devices that a machine can give to workers, one each; 0 where workers share the processor."""
    return torch.cuda.device_count() if device == "cuda" else 0


def visible_cards() -> tuple[str, ...]:
    """The cards that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return tuple(map(str, range(torch.cuda.device_count())))
    return tuple(filter(None, (name.strip() for name in named.split(","))))


def free_device_bytes(device: str) -> int | None:
    """Free memory of the card with the least; None where there is none."""
    if device != "cuda":
        return None
    return min(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))


def computes_bfloat16(device: str) -> bool:
    """Whether the hardware multiplies bfloat16; elsewhere it is emulated, slower than float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = cpuinfo("flags").split()
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16"))


def cpuinfo(key: str) -> str:
    """A line of the processor's description; empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def environment() -> dict[str, str]:
    """What is recorded beside a plan: versions that may change low bits."""
    versions = {"torch": str(torch.__version__)}
    if torch.cuda.is_available():
        versions["gpu"] = torch.cuda.get_device_name()
        versions["cudnn"] = str(torch.backends.cudnn.version())
    return versions


def cudnn_warnings(ndim: int, device: str, dtype: str, version: int | None = None) -> list[str]:
    """Warnings about the library that convolves on this GPU.

    Args:
        ndim: Of the network.
        device: `cpu` or `cuda`.
        dtype: Of the computation.
        version: As cuDNN numbers itself; by default the one that is there.
    """
    if device != "cuda" or ndim != 3 or dtype == "float32":
        return []
    cudnn = torch.backends.cudnn.version() if version is None else version
    if cudnn is None or not BROKEN_CUDNN[0] <= cudnn < BROKEN_CUDNN[1]:
        return []
    warning = (
        f"cuDNN {cudnn} is known for wrong or slow 3D convolutions in {dtype} (9.8 up to 9.15). The start of each worker "
        "compares a slab with float32; install a torch with cuDNN 9.15.1 or later, or set compute.dtype to float32."
    )
    return [warning]


def make_deterministic() -> None:
    """The same plan gives the same bytes: no autotuned kernels, and float32 means float32."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False

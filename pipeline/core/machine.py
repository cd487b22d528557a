"""What workers have: what plans are made for, whoever starts them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """What all workers have together.

    Args:
        cores: That they may use.
        memory_bytes: That they may use.
        workers: Their number, where it is fixed; None where the planner may choose.
        device: What they compute on; None where they run here, and it can be seen.
        runs: How many runs share them at once.
        driver_bytes: Memory that the process may use that plans, surveys and hands out tiles; None where it is `memory_bytes`.
    """

    cores: int
    memory_bytes: int
    workers: int | None = None
    device: str | None = None
    runs: int = 1
    driver_bytes: int | None = None

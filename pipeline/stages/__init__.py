"""The stages, where the rooms meet. Each reads one artifact and writes the next, and any can run again alone.

run.yaml -plan-> plan.json -infer-> ledger + output.zarr -verify-> verification.json -report-> report.html
"""

from __future__ import annotations

from pipeline.stages.computed import describe, infer, report, verify
from pipeline.stages.driven import cancel, driven, driving, part_in_cluster, workers_starting
from pipeline.stages.planned import adopt, described, load_plan, measure, placed, plan, stage_log
from pipeline.stages.source import count_input

__all__ = [
    "adopt",
    "cancel",
    "count_input",
    "describe",
    "described",
    "driven",
    "driving",
    "infer",
    "load_plan",
    "measure",
    "part_in_cluster",
    "placed",
    "plan",
    "report",
    "stage_log",
    "verify",
    "workers_starting",
]

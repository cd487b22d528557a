"""The stages, where the rooms meet. Each reads one artifact and writes the next, and any can run again alone.

run.yaml -plan-> plan.json -infer-> ledger + output.zarr -verify-> verification.json -report-> report.html

A stage is a file; its function has the same name, and is what `pipeline.stages` gives by it.
"""

from __future__ import annotations

from pipeline.stages.driving import cancel, driven, driving, part_in_cluster, workers_starting
from pipeline.stages.infer import infer
from pipeline.stages.plan import adopt, describe, described, load_plan, measure, placed, plan, stage_log
from pipeline.stages.report import report
from pipeline.stages.source import count_input
from pipeline.stages.verify import verify

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

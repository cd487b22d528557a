"""The stages, where the rooms meet. Each reads one artifact and writes the next, and any can run again alone.

run.yaml -plan-> plan.json -survey-> statistics.json -infer-> ledger + output.zarr -verify-> verification.json -report-> report.html

`SEQUENCE` has the order of those after the plan. A stage is a file; its function has the same name, and is what `pipeline.stages` gives by it.
"""

from __future__ import annotations

from pipeline.stages.driving import cancel, drive, driving, part_in_cluster, workers_kept, workers_starting
from pipeline.stages.infer import infer
from pipeline.stages.plan import adopt, describe, measure, plan, redescribe
from pipeline.stages.report import report
from pipeline.stages.run import Run
from pipeline.stages.sequence import SEQUENCE, Account, Host, Stage, follow
from pipeline.stages.source import count_input
from pipeline.stages.survey import survey
from pipeline.stages.verify import verify

__all__ = [
    "SEQUENCE",
    "Account",
    "Host",
    "Run",
    "Stage",
    "adopt",
    "cancel",
    "count_input",
    "describe",
    "drive",
    "driving",
    "follow",
    "infer",
    "measure",
    "part_in_cluster",
    "plan",
    "redescribe",
    "report",
    "survey",
    "verify",
    "workers_kept",
    "workers_starting",
]

"""Commands of one run: plan, run, verify, cancel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from flows.commands.arguments import Config, Overrides, read_dataset, read_run
from flows.commands.status import DONE
from flows.printing import print_end, print_plan, say


def plan(
    config: Config,
    *,
    measure: Annotated[
        bool, Parameter(help="Compute a few slabs, and print how long the run will take.", negative=())
    ] = False,
    set_: Overrides = None,
) -> int:
    """Dry run: print tiles, halo, amplification, memory and bytes to write; write plan.json."""
    asked = read_run(config, set_)

    from pipeline import stages  # noqa: PLC0415 - slow; `--help` needs none of it

    run = stages.Run(asked)
    resolved = stages.plan(run, anew=True)
    print_plan(resolved, stages.measure(run) if measure else None)
    say(f"plan written to {resolved.output.url}.run/plan.json; `halotile run {config}` does it")
    return DONE


def run(
    config: Config,
    *,
    prefect: Annotated[
        bool, Parameter(help="Report to Prefect's server; without, the stages run by themselves.")
    ] = True,
    input_changed: Annotated[
        Literal["redo", "keep"] | None,
        Parameter(
            help="Where the input is not as it was planned: compute the tiles again that read what changed, or keep them."
        ),
    ] = None,
    set_: Overrides = None,
) -> int:
    """Segment a volume: plan, survey, infer, verify, report. Run it again to resume."""
    asked = read_run(config, set_)

    from flows.commands.running import run_volume  # noqa: PLC0415 - slow; `--help` needs none of it

    print_end(asked, run_volume(asked, prefect=prefect, input_changed=input_changed))
    return DONE


def verify(config: Config, *, set_: Overrides = None) -> int:
    """Compare every stored byte with the ledger and the metadata with the plan; a run mends what differs."""
    asked = read_run(config, set_)

    from pipeline import stages  # noqa: PLC0415 - slow; `--help` needs none of it

    verification = stages.verify(stages.Run(asked))
    say(f"verified: {verification.valid} of {verification.tiles} tiles, {verification.objects} objects, metadata")
    if verification.windows:
        say(f"not exact: blended windows, {verification.windows}")
    if verification.others:
        say(f"not ours, and left: {', '.join(verification.others)}")
    return DONE


def cancel(run: Annotated[Path, Parameter(help="The run's YAML, or its output.")], *, set_: Overrides = None) -> int:
    """End a run in order, on whatever machine it is; what is finished is kept. Returns when it has ended."""
    from pipeline import stages  # noqa: PLC0415 - slow; `--help` needs none of it

    output = _output_of(run, set_) if run.suffix in (".yaml", ".yml") else str(run.absolute())
    progress = stages.cancel(output)
    kept = (
        f"{progress.count('done')} of {progress.total} tiles are done and kept"
        if progress
        else "it had computed nothing"
    )
    say(f"ended: {kept}; `halotile run` resumes it", f"output  {output}")
    return DONE


def _output_of(path: Path, overrides: list[str] | None) -> str:
    """Where the run of a YAML, or a dataset's, keeps its lock."""
    from pipeline.config import read_content  # noqa: PLC0415 - slow; `--help` needs none of it

    if "volumes" in read_content(path, overrides or ()):
        return str(read_dataset(path, overrides).home)
    return read_run(path, overrides).output.url

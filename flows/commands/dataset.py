"""Commands of many volumes: reprocess, watch, current."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from flows.commands.arguments import DataSet, Overrides, read_dataset
from flows.commands.status import DONE
from flows.printing import bar, print_outcome, print_rows, print_summary, say


def reprocess(
    config: DataSet,
    *,
    dry_run: Annotated[
        bool, Parameter(help="Only say what it would do and cost; nothing is written.", negative=())
    ] = False,
    moved: Annotated[
        bool, Parameter(help="Volumes lie elsewhere, or were touched; their voxels are the same.", negative=())
    ] = False,
    prefect: Annotated[bool, Parameter(help="Report to Prefect's server, a sub-flow a volume.")] = True,
    set_: Overrides = None,
) -> int:
    """Segment and publish all volumes of a dataset that are not done yet. Run it again for what is left."""
    from flows.commands.running import run_dataset  # noqa: PLC0415 - slow; `--help` needs none of it

    asked = read_dataset(config, set_)
    if dry_run:
        from pipeline.dataset.estimate import estimate  # noqa: PLC0415 - slow; `--help` needs none of it
        from pipeline.dataset.pass_ import volumes_of  # noqa: PLC0415 - slow; `--help` needs none of it

        with bar("looking at volumes") as tell:
            print_rows(estimate(asked, volumes_of(asked, moved=moved)[0], tell).rows())
        return DONE
    print_summary(asked, run_dataset(asked, prefect=prefect, on_outcome=print_outcome, moved=moved))
    return DONE


def watch(
    config: DataSet,
    *,
    prefect: Annotated[bool, Parameter(help="Report to Prefect's server, a sub-flow a volume.")] = True,
    set_: Overrides = None,
) -> int:
    """Look at an inbox once: segment and publish what is new and complete. For cron, or `halotile deploy --watch`."""
    from flows.commands.running import run_watch  # noqa: PLC0415 - slow; `--help` needs none of it

    asked = read_dataset(config, set_)
    print_summary(asked, run_watch(asked, prefect=prefect, on_outcome=print_outcome))
    return DONE


def current(output: Annotated[str, Parameter(help="The output of one volume, DATASET/NAME: a path or a URL.")]) -> int:
    """Print which version of an output is published: where its image is, its fingerprint, and since when."""
    from pipeline.publishing.publication import read_current  # noqa: PLC0415 - slow; `--help` needs none of it

    version = read_current(output)
    say(
        f"image        {version.image}",
        f"fingerprint  {version.fingerprint}",
        f"published    {version.published.isoformat(timespec='seconds')}",
    )
    return DONE

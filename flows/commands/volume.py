"""Commands of one volume or file as it lies: inspect, convert."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from flows.commands.arguments import ClassArguments, LibraryClassName, Missing, Trust, class_arguments
from flows.commands.status import DONE
from flows.printing import bar, print_rows, say


def inspect(
    path: Annotated[
        str, Parameter(help="A Zarr store, a checkpoint, a network of another library, or a package of bioimage.io.")
    ],
    *,
    class_: LibraryClassName = None,
    arguments: ClassArguments = "{}",
    trust: Trust = False,
    output: Annotated[int, Parameter(help="Which of its outputs is looked at, where a network has several.")] = 0,
) -> int:
    """Print what a store or a checkpoint is: shape, chunks, axes; stride, receptive radius, parameters, arithmetic."""
    from pipeline.networks.importing.library import LibraryClass  # noqa: PLC0415 - slow; `--help` needs none of it
    from pipeline.reports.inspection import inspect_path  # noqa: PLC0415 - slow; `--help` needs none of it

    of = LibraryClass(class_, class_arguments(arguments)) if class_ else None
    print_rows(inspect_path(path, of=of, trust=trust, output=output))
    return DONE


def convert(
    source: Annotated[str, Parameter(help="A volume: HDF5 (FILE.h5/dataset), TIFF, Zarr or OME-Zarr.")],
    target: Annotated[str, Parameter(help="The OME-Zarr to write; must not be there.")],
    *,
    axes: Annotated[str, Parameter(help="Axes as stored: t, c, z, y, x in any order.")] = "auto",
    chunks: Annotated[tuple[int, int, int] | None, Parameter(help="z y x", negative=())] = None,
    shards: Annotated[tuple[int, int, int] | None, Parameter(help="z y x", negative=())] = None,
    voxel_size_nm: Annotated[
        tuple[float, float, float] | None, Parameter(help="z y x; the source's by default.", negative=())
    ] = None,
    missing: Missing = "fail",
) -> int:
    """Write a volume as an OME-Zarr, box by box; no voxel changes."""
    from pipeline.core.volume import Selection  # noqa: PLC0415 - as below
    from pipeline.outputs.convert import convert as convert_volume  # noqa: PLC0415 - slow; `--help` needs none of it
    from pipeline.volumes.volume import open_volume  # noqa: PLC0415 - slow; `--help` needs none of it

    with bar("converting") as tell:
        description = convert_volume(
            source,
            target,
            on_advance=tell,
            axes=axes,
            chunks=chunks,
            shards=shards,
            voxel_size_nm=voxel_size_nm,
            missing=missing,
        )
    say(
        f"{target}: axes {description.axes}, shape (z, y, x) {description.shape}, {description.channels} channel(s), {description.dtype}"
    )
    say(f"voxel size: {description.space}")
    for warning in open_volume(source, Selection(axes=axes)).warnings:
        say(f"warning: {warning}")
    return DONE

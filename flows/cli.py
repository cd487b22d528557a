"""The command `halotile`: a door. It reads arguments, calls a stage or the flow, and turns errors into exit status.

Exit status: 0 done, 1 failed, 2 refused (usage errors too), 3 verification failed, 130 interrupted; 141 where
nobody read what it printed, which `halotile.py` sees to.
Heavy imports wait until a command needs them: `--help` imports neither torch nor Prefect.
"""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, CycloptsPanel, Parameter

from flows.printing import bar, message_of, print_end, print_plan, print_rows, say
from pipeline import __version__
from pipeline.core.strict_json import json_text
from pipeline.errors import REFUSALS, ConfigError, PipelineError, VerificationError

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.core.box import Box
    from pipeline.dataset.settings import DatasetConfig

DONE, FAILED, REFUSED, UNVERIFIED, INTERRUPTED = 0, 1, 2, 3, 130

EXTRAS = dict.fromkeys(("edt", "lightning_fabric", "scipy", "skimage", "tensorboard", "threadpoolctl"), "train") | {
    "dask_jobqueue": "slurm",
    "dask_kubernetes": "kubernetes",
    "kr8s": "kubernetes",
}
"""Packages that are not installed with Halotile itself, and which extra brings them."""

app = App(
    name="halotile",
    version=__version__,
    help="Exact UNet inference over microscopy volumes that are larger than any machine.",
    help_epilogue="Exit status: 0 done, 1 failed, 2 refused, 3 verification failed, 130 interrupted.",
    suppress_keyboard_interrupt=False,  # `status` tells it
    error_formatter=lambda error: CycloptsPanel(message_of(error)),
)

Config = Annotated[Path, Parameter(help="The run's YAML; configs/example.yaml explains every key.")]
DataSet = Annotated[Path, Parameter(help="The dataset's YAML; configs/dataset.yaml explains its keys.")]
Overrides = Annotated[
    list[str] | None,
    Parameter(name="--set", help="Override a key: --set tiles.core='[64, 128, 128]'. May be given again.", negative=()),
]
Missing = Annotated[
    Literal["fail", "fill"],
    Parameter(help="A Zarr or HDF5 array of which nothing is stored: refuse it, or read it as its fill value."),
]


@app.command
def plan(
    config: Config,
    *,
    measure: Annotated[
        bool, Parameter(help="Compute a few slabs, and print how long the run will take.", negative=())
    ] = False,
    set_: Overrides = None,
) -> int:
    """Dry run: print tiles, halo, amplification, memory and bytes to write; write plan.json."""
    asked = _read(config, set_)

    from pipeline import stages  # noqa: PLC0415 - see above

    run = stages.Run(asked)
    found = stages.plan(run, anew=True)
    print_plan(found, stages.measure(run) if measure else None)
    say(f"plan written to {found.output.url}.run/plan.json; `halotile run {config}` does it")
    return DONE


@app.command
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
    """Segment a volume: plan, infer, verify, report. Run it again to resume."""
    found = _read(config, set_)

    from flows.commands.running import run_volume  # noqa: PLC0415 - see above

    print_end(found, run_volume(found, prefect=prefect, input_changed=input_changed))
    return DONE


@app.command
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
    from flows.commands.running import run_dataset  # noqa: PLC0415 - see above
    from flows.printing import print_outcome, print_summary  # noqa: PLC0415 - see above

    found = _read_dataset(config, set_)
    if dry_run:
        from pipeline.dataset.estimate import estimate  # noqa: PLC0415 - see above
        from pipeline.dataset.round import volumes_of  # noqa: PLC0415 - see above

        with bar("looking at volumes") as tell:
            print_rows(estimate(found, volumes_of(found, moved=moved)[0], tell).rows())
        return DONE
    print_summary(found, run_dataset(found, prefect=prefect, on_outcome=print_outcome, moved=moved))
    return DONE


@app.command
def watch(
    config: DataSet,
    *,
    prefect: Annotated[bool, Parameter(help="Report to Prefect's server, a sub-flow a volume.")] = True,
    set_: Overrides = None,
) -> int:
    """Look at an inbox once: segment and publish what is new and complete. For cron, or `halotile deploy --watch`."""
    from flows.commands.running import run_watch  # noqa: PLC0415 - see above
    from flows.printing import print_outcome, print_summary  # noqa: PLC0415 - see above

    found = _read_dataset(config, set_)
    print_summary(found, run_watch(found, prefect=prefect, on_outcome=print_outcome))
    return DONE


@app.command
def cancel(run: Annotated[Path, Parameter(help="The run's YAML, or its output.")], *, set_: Overrides = None) -> int:
    """End a run in order, on whatever machine it is; what is finished is kept. Returns when it has ended."""
    from pipeline import stages  # noqa: PLC0415 - see above

    output = _output_of(run, set_) if run.suffix in (".yaml", ".yml") else str(run.absolute())
    found = stages.cancel(output)
    kept = f"{found.count('done')} of {found.total} tiles are done and kept" if found else "it had computed nothing"
    say(f"ended: {kept}; `halotile run` resumes it", f"output  {output}")
    return DONE


@app.command
def verify(config: Config, *, set_: Overrides = None) -> int:
    """Compare every stored byte with the ledger and the metadata with the plan; a run mends what differs."""
    asked = _read(config, set_)

    from pipeline import stages  # noqa: PLC0415 - see above

    found = stages.verify(stages.Run(asked))
    say(f"verified: {found.valid} of {found.tiles} tiles, {found.objects} objects, metadata")
    if found.others:
        say(f"not ours, and left: {', '.join(found.others)}")
    return DONE


@app.command
def inspect(path: Annotated[str, Parameter(help="A Zarr store, or a checkpoint.")]) -> int:
    """Print what a store or a checkpoint is: shape, chunks, axes; stride, receptive radius, parameters, arithmetic."""
    from pipeline.reports.inspection import inspect_path  # noqa: PLC0415 - see above

    print_rows(inspect_path(path))
    return DONE


@app.command
def train(
    config: Annotated[Path, Parameter(help="The recipe's YAML; configs/train-em-3d.yaml explains its keys.")],
    *,
    force_range: Annotated[
        bool,
        Parameter(
            help="Train also on values that span too little, as the network sees them, to learn from.", negative=()
        ),
    ] = False,
    set_: Overrides = None,
) -> int:
    """Train a network, score it on what is held back, register it. Run it again to resume."""
    from pipeline.config import read_config  # noqa: PLC0415 - see above
    from pipeline.training.recipe import TrainConfig  # noqa: PLC0415 - see above

    # what is wrong with it is told at once, not after heavy imports
    recipe = read_config(TrainConfig, config, set_ or ())

    from flows.training_bar import TrainingBar  # noqa: PLC0415 - see above
    from pipeline.stages import learn  # noqa: PLC0415 - see above

    bar = TrainingBar()
    try:
        checkpoint = learn.train(recipe, bar, any_range=force_range)
    finally:
        bar.stop()
    if not bar.told:
        say("trained already: nothing to do; delete the folder to start over, or name another `output`")
    for found in learn.evaluate_held_back(recipe):
        print_rows(found.rows())
    say(
        f"checkpoint  {checkpoint}",
        f"metrics     {checkpoint.parent / 'metrics.json'}",
        f"logs        {checkpoint.parent / 'logs'}",
    )
    if entry := learn.register_checkpoint(recipe):
        say(f"registered  {entry.name}, version {entry.version}, in {entry.path.parents[2]}")
    if told := learn.shortcoming(recipe):
        say(*told.splitlines())
    return DONE


@app.command
def evaluate(
    prediction: Annotated[str, Parameter(help="Probabilities: Zarr, OME-Zarr, HDF5 (FILE.h5/dataset) or TIFF.")],
    labels: Annotated[str, Parameter(help="Instance ids or a mask of the same shape, in any of these formats.")],
    *,
    predicts: Annotated[Literal["membrane", "foreground"], Parameter(help="What a probability of 1 is.")] = "membrane",
    labels_are: Annotated[
        Literal["auto", "instances", "mask"],
        Parameter(
            help="Ids, 0 none; or not 0: inside a cell, 0: membrane. auto: a mask if they hold one value beside 0."
        ),
    ] = "auto",
    neighbours: Annotated[
        Literal["auto", "yx", "zyx"], Parameter(help="Axes along which instances touch. auto: as segments.")
    ] = "auto",
    segments: Annotated[
        Literal["auto", "slices", "volume"],
        Parameter(
            help="Segments of each slice, or in 3D. auto: of each slice for masks and for slices twice as thick as wide."
        ),
    ] = "auto",
    ignore: Annotated[int | None, Parameter(help="Label of voxels that count for nothing.")] = None,
    thresholds: Annotated[
        list[float] | None, Parameter(help="To make segments at; fifteen from 0.02 to 0.98 by default.", negative=())
    ] = None,
    at: Annotated[float, Parameter(help="The threshold that you would take.")] = 0.5,
    box: Annotated[str | None, Parameter(help="What to compare: z0:z1,y0:y1,x0:x1; the whole by default.")] = None,
    missing: Missing = "fail",
    output: Annotated[Path, Parameter(help="Where the figures go, JSON.")] = Path("evaluation.json"),
) -> int:
    """Compare a prediction with labels: AUC, Dice, IoU, pixel error, V_rand, variation of information."""
    from pipeline.evaluation.evaluation import THRESHOLDS, compare  # noqa: PLC0415 - see above

    with bar("comparing") as tell:
        found = compare(
            prediction,
            labels,
            on_advance=tell,
            thresholds=thresholds or THRESHOLDS,
            at=at,
            box=_box(box),
            missing=missing,
            predicts=predicts,
            labels_are=labels_are,
            neighbours=neighbours,
            segments=segments,
            ignore=ignore,
        )
    output.write_text(json_text(found.to_dict(), indent=2) + "\n", encoding="utf-8")
    print_rows(found.rows())
    say(f"figures written to {output}")
    return DONE


@app.command
def convert(
    source: Annotated[str, Parameter(help="A volume: HDF5 (FILE.h5/dataset), TIFF, Zarr or OME-Zarr.")],
    target: Annotated[str, Parameter(help="The OME-Zarr to write; must not be there.")],
    *,
    axes: Annotated[str, Parameter(help="Axes as stored: yx, cyx, zyx or czyx.")] = "auto",
    chunks: Annotated[tuple[int, int, int] | None, Parameter(help="z y x", negative=())] = None,
    shards: Annotated[tuple[int, int, int] | None, Parameter(help="z y x", negative=())] = None,
    voxel_size_nm: Annotated[
        tuple[float, float, float] | None, Parameter(help="z y x; the source's by default.", negative=())
    ] = None,
    missing: Missing = "fail",
) -> int:
    """Write a volume as an OME-Zarr, box by box; no voxel changes."""
    from pipeline.outputs.convert import convert as convert_volume  # noqa: PLC0415 - see above
    from pipeline.volumes.volume import open_volume  # noqa: PLC0415 - see above

    with bar("converting") as tell:
        found = convert_volume(
            source,
            target,
            on_advance=tell,
            axes=axes,
            chunks=chunks,
            shards=shards,
            voxel_size_nm=voxel_size_nm,
            missing=missing,
        )
    say(f"{target}: axes {found.axes}, shape (z, y, x) {found.shape}, {found.channels} channel(s), {found.dtype}")
    say(f"voxel size: {found.space}")
    for warning in open_volume(source, axes=axes).warnings:
        say(f"warning: {warning}")
    return DONE


@app.command
def export(
    checkpoint: Annotated[Path, Parameter(help="A checkpoint of ours, or of the notes' class.")],
    target: Annotated[Path, Parameter(help="The package: a .zip, or a folder.")],
    *,
    license_: Annotated[
        str | None,
        Parameter(name="--license", help="SPDX name, such as CC-BY-4.0; needed where the checkpoint names none."),
    ] = None,
    sample: Annotated[
        str | None, Parameter(help="A volume; a middle part of it becomes the package's test input.")
    ] = None,
    name: Annotated[str | None, Parameter(help="Of the model.")] = None,
    author: Annotated[list[str] | None, Parameter(help="May be given again.", negative=())] = None,
) -> int:
    """Write a bioimage.io model package that other tools run; `bioimageio test` passes it."""
    from pipeline.stages.learn import export_package  # noqa: PLC0415 - see above

    path = export_package(checkpoint, target, sample=sample, name=name, authors=author or (), license_=license_)
    say(f"package  {path}", f"test it  bioimageio test {path}")
    return DONE


@app.command
def deploy(
    *configs: Annotated[
        Path, Parameter(help="YAMLs of runs, datasets or training; each becomes a deployment with a name.")
    ],
    name: Annotated[str | None, Parameter(help="Of the deployment of one YAML; the file's by default.")] = None,
    pool: Annotated[str, Parameter(help="Work pool of type process; made where there is none.")] = "halotile",
    cron: Annotated[
        str | None, Parameter(help="When to run: minute hour day month weekday, such as '0 2 * * *'.")
    ] = None,
    timezone: Annotated[str | None, Parameter(help="Of --cron, such as Europe/Berlin; UTC by default.")] = None,
    paused: Annotated[bool, Parameter(help="Leave the schedule paused.", negative=())] = False,
    watch: Annotated[
        bool, Parameter(help="Watch datasets for new volumes, instead of going over them.", negative=())
    ] = False,
    notify: Annotated[str | None, Parameter(help="A notification block, TYPE/NAME, told of failed runs.")] = None,
    lost_after: Annotated[
        int, Parameter(help="Seconds without a heartbeat after which a run counts as crashed; at least 40.")
    ] = 100,
    set_: Overrides = None,
) -> int:
    """Put the flows on a Prefect server that stays: forms, named runs, schedules. Again: bring them up to date."""
    if not configs and (name or cron or set_):
        raise ConfigError("--name, --cron and --set are of a YAML, and none is named: halotile deploy RUN.yaml ...")
    if len(configs) > 1 and (name or len({path.stem for path in configs}) < len(configs)):
        raise ConfigError("Deployments need a name each: deploy YAMLs of one name one by one, each with its --name.")
    from flows import deployment  # noqa: PLC0415 - see above

    schedule = deployment.cron_schedule(cron, timezone) if cron else None
    found = [
        deployment.deployment_of(path, set_ or (), name=name, watch=watch, schedule=schedule, paused=paused)
        for path in configs
    ]
    print_rows(deployment.deploy(found, pool=pool, notify=notify, lost_seconds=lost_after))
    started = found[0].title if found else "halotile-inference/segment"
    say(f"a worker, where Halotile is installed:  prefect worker start --pool {pool}")
    say(
        f"a run now: on the page above, or        prefect deployment run {started}{'' if found else ' --param config=...'}"
    )
    return DONE


@app.command
def models(registry: Annotated[Path, Parameter(help="A folder of registered models.")]) -> int:
    """List the models of a registry, and their versions."""
    from pipeline.registry import versions  # noqa: PLC0415 - see above

    rows = [(f"{e.name} {e.version}", f"{e.registered}  {_figures(e.metrics)}") for e in versions(registry)]
    print_rows(rows or [("(none)", str(registry))])
    return DONE


@app.command
def current(output: Annotated[str, Parameter(help="The output of one volume, DATASET/NAME: a path or a URL.")]) -> int:
    """Print which version of an output is published: where its image is, its fingerprint, and since when."""
    from pipeline.publishing.publication import read_current  # noqa: PLC0415 - see above

    found = read_current(output)
    say(
        f"image        {found.image}",
        f"fingerprint  {found.fingerprint}",
        f"published    {found.published.isoformat(timespec='seconds')}",
    )
    return DONE


def _figures(metrics: Mapping[str, Any]) -> str:
    numbers = [
        f"{key} {value}"
        for key, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return ", ".join([*(["learned: false"] if metrics.get("learned") is False else []), *numbers])


def _box(text: str | None) -> Box | None:
    from pipeline.core.box import Box  # noqa: PLC0415 - see above

    if text is None:
        return None
    try:
        pairs = [tuple(int(number) for number in part.split(":")) for part in text.split(",")]
        (z0, z1), (y0, y1), (x0, x1) = pairs
    except ValueError as error:
        raise ConfigError(f"--box '{text}' is not z0:z1,y0:y1,x0:x1, such as 0:10,0:512,0:512.") from error
    return Box((z0, y0, x0), (z1, y1, x1))


def _read(path: Path, overrides: list[str] | None) -> RunConfig:
    from pipeline.config import RunConfig, read_config  # noqa: PLC0415 - see above
    from pipeline.registry import with_model  # noqa: PLC0415 - see above

    return with_model(read_config(RunConfig, path, overrides or ()))


def _output_of(path: Path, overrides: list[str] | None) -> str:
    """Where the run of a YAML, or a dataset's, keeps its lock."""
    from pipeline.config import read_content  # noqa: PLC0415 - see above

    if "volumes" in read_content(path, overrides or ()):
        return str(_read_dataset(path, overrides).home)
    return _read(path, overrides).output.url


def _read_dataset(path: Path, overrides: list[str] | None) -> DatasetConfig:
    from pipeline.config import read_config  # noqa: PLC0415 - see above
    from pipeline.dataset.settings import DatasetConfig  # noqa: PLC0415 - see above

    return read_config(DatasetConfig, path, overrides or ())


def run_command() -> int:
    """Run the command and give its exit status; `halotile.main` calls it. SIGTERM ends it as Ctrl-C does: in order."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.excepthook = _told_in_full
    code = status(lambda: app(exit_on_error=False, print_error=True, result_action="return_value"))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return code


def main() -> None:
    """The same, and leave with it. Scripts of earlier installations come here, past what `halotile.main` looks at."""
    sys.exit(run_command())


def _terminated(*_: object) -> None:
    """Once: batch systems send several, and one that came while the run is put in order would leave its jobs behind."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def status(command: Callable[[], int | None]) -> int:
    """The exit status of a command; errors raised on purpose are told without a traceback."""
    try:
        return command() or DONE
    except CycloptsError:
        return REFUSED
    except VerificationError as error:
        return _told("verification failed", error, UNVERIFIED)
    except REFUSALS as error:
        return _told("refused", error, REFUSED)
    except PipelineError as error:
        return _told("failed", error, FAILED)
    except OSError as error:  # of a file that no room knew what to do about
        from pipeline.places.durable import file_error  # noqa: PLC0415 - seldom

        early = error.errno == errno.ENAMETOOLONG  # of a name that was given, before anything was done with it
        return _told(
            *(("refused", file_error(None, error), REFUSED) if early else ("failed", file_error(None, error), FAILED))
        )
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            return _surroundings(error)
        from pipeline.installation import how_to_install  # noqa: PLC0415 - seldom

        lacking = ConfigError(
            f"This needs the package {error.name}, which is not installed here. To have it, {how_to_install(EXTRAS[error.name])}"
        )
        return _told("refused", lacking, REFUSED)
    except Exception as error:  # noqa: BLE001 - told where the cause is known, raised where it is not
        return _surroundings(error)
    except KeyboardInterrupt:
        print("halotile: interrupted; what is finished is kept, run again to resume", file=sys.stderr)
        return INTERRUPTED


def _surroundings(error: Exception) -> int:
    from flows.commands.surroundings import explained  # noqa: PLC0415 - seldom needed

    found = explained(error)
    if found is None:
        raise error
    return _told("refused", found, REFUSED)


def _told_in_full(*error: Any) -> None:
    """A traceback, of what nobody foresaw, without what acts on a terminal."""
    print(message_of("".join(traceback.format_exception(*error))).rstrip(), file=sys.stderr)


def _told(word: str, error: PipelineError, code: int) -> int:
    print(message_of(f"halotile: {word}: {error}"), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()

"""Input that is gone, cut, replaced or touched, before a run and in the middle of it: told, and never taken for fill."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import zarr

from flows.commands.app import app
from flows.commands.status import status
from pipeline import stages
from pipeline.core.network.unet import Architecture
from pipeline.errors import InferenceError, PlanError, StorageError
from tests.pipeline_cases import Run, done_entries, make_run, one_pass, random_volume, stored_objects

NETWORK = Architecture(3, 1, 2)
SHAPE = (32, 32, 64)
TILES = 32


def command(*arguments: object) -> int:
    """`halotile ARGUMENTS` in this process."""
    called = [str(argument) for argument in arguments]
    return status(lambda: app(called, exit_on_error=False, print_error=True, result_action="return_value"))


def run_of(folder: Path, volume: np.ndarray | None = None, **sections) -> Run:
    """Sixteen chunks, each read by several of 32 tiles; stored as they are, so that a chunk of other voxels has as many bytes."""
    folder.mkdir(exist_ok=True)
    keys = {"tiles": {"core": [8, 16, 16]}, "cluster": {"retries": 0, "workers": 2, "memory_gb": 4}, **sections}
    run = make_run(folder, architecture=NETWORK, shape=SHAPE, volume=volume, **keys)
    shutil.rmtree(folder / "input.zarr")
    store(run, run.volume)
    return run


def store(run: Run, volume: np.ndarray) -> None:
    """A volume at the input's place."""
    zarr.create_array(str(run.folder / "input.zarr"), data=volume, chunks=(16, 16, 16), compressors=None)


def meanwhile(act: Callable[[], object]) -> Callable[[object], None]:
    """What becomes of the input once the first tile is done."""
    left = [act]

    def on_advance(_: object) -> None:
        if left:
            left.pop()()

    return on_advance


def is_published(run: Run) -> bool:
    """Whether readers of OME-Zarr find an image."""
    return "ome" in json.loads((run.output / "zarr.json").read_text())["attributes"]


def is_exact(run: Run, volume: np.ndarray) -> bool:
    """Whether the output is one pass over these voxels."""
    expected = one_pass(run.network, volume[np.newaxis] / np.float32(255))[0]
    return bool(np.abs(run.array() - expected).max() <= 1e-5 * np.ptp(expected))


# --- in the middle of a run ---------------------------------------------------------------------------------------------


def test_a_volume_that_is_moved_while_it_is_read_fails_its_tiles_and_goes_on_once_it_is_back(tmp_path, pooled):
    """Zarr reads what is absent as fill: 23 of 32 tiles were wrong, and verified, for ever."""
    run = run_of(tmp_path)
    stages.plan(run.now)
    place, elsewhere = run.folder / "input.zarr", run.folder / "elsewhere.zarr"
    with pytest.raises(InferenceError, match="was there when it was counted") as error:
        stages.infer(run.now, meanwhile(lambda: place.rename(elsewhere)))
    assert "Traceback" not in str(error.value)
    assert 1 <= len(done_entries(run.directory)) < TILES
    assert not is_published(run)
    with pytest.raises(StorageError, match="there is nothing there"):
        stages.plan(run.now)
    elsewhere.rename(place)
    kept = len(done_entries(run.directory))
    stages.plan(run.now)
    assert stages.infer(run.now).tiles == TILES - kept
    assert is_exact(run, run.volume)


def test_a_volume_that_is_replaced_while_it_is_read_is_not_published(tmp_path, pooled, capsys):
    """Same shape, same sizes: nothing fails, and half of the tiles are of other voxels."""
    run, other = run_of(tmp_path), random_volume(SHAPE, seed=9)

    def replace() -> None:
        (run.folder / "input.zarr").rename(run.folder / "old.zarr")
        store(run, other)

    stages.plan(run.now)
    try:
        stages.infer(run.now, meanwhile(replace))
    except InferenceError as error:
        told = str(error)
    assert "changed while it was read: 16 chunks are written again" in told or "is absent" in told
    assert not is_published(run)
    assert command("run", run.yaml, "--no-prefect") == 2
    assert "All 32 tiles read it" in capsys.readouterr().err
    stages.plan(run.now, input_changed="redo")
    stages.infer(run.now)
    assert stages.verify(run.now).complete
    assert is_exact(run, other)
    assert is_published(run)


# --- before a run -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, workers) -> Run:
    """A run that is done, and verified."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.inference.session.open_pool", lambda *_, **__: nullcontext(workers))
        run = run_of(tmp_path_factory.mktemp("finished"))
        stages.plan(run.now)
        stages.infer(run.now)
        stages.verify(run.now)
        stages.report(run.now)
    return run


@pytest.fixture
def done(finished, tmp_path) -> Run:
    """A copy of it that keeps its times, planned at its new place."""
    shutil.copytree(finished.folder, tmp_path / "run")
    run = Run(tmp_path / "run", finished.content, finished.network, finished.volume)
    moved = run.having(
        input={"url": f"{run.folder}/input.zarr"},
        output={"url": f"{run.folder}/output.zarr"},
        model={"checkpoint": f"{run.folder}/weights.pt"},
    )
    stages.plan(moved.now)
    return moved


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "touched": (os.utime, "1 chunk is written again (another size, time or ETag): c/0/0/0"),
    "deleted": (Path.unlink, "1 chunk is gone: c/0/0/0"),
    "cut": (lambda chunk: chunk.write_bytes(chunk.read_bytes()[:9]), "1 chunk is written again"),
}


@pytest.mark.parametrize(("change", "told"), CHANGES.values(), ids=CHANGES.keys())
def test_a_chunk_that_changed_since_is_told_with_its_tiles(done, capsys, change, told):
    """Nobody but a person knows whether what is done still holds; until then nothing is touched."""
    before = {p: p.read_bytes() for root in (done.output, done.directory.path) for p in root.rglob("*") if p.is_file()}
    change(done.folder / "input.zarr/c/0/0/0")
    assert command("run", done.yaml, "--no-prefect") == 2
    error = capsys.readouterr().err
    assert told in error
    assert f"12 of {TILES} tiles read it: 0, 1, 4, 5" in error
    assert "--input-changed redo" in error
    assert "--input-changed keep" in error
    assert "Traceback" not in error
    assert {p: p.read_bytes() for p in before if p.suffix not in (".log", ".lock")} == {
        p: content for p, content in before.items() if p.suffix not in (".log", ".lock")
    }


def test_redo_computes_the_tiles_that_read_what_changed_and_no_others(done, pooled, tmp_path):
    """And the bytes are those of a run that saw only the new voxels."""
    volume = done.volume.copy()
    volume[:16, :16, :16] = 255 - volume[:16, :16, :16]
    zarr.open_array(str(done.folder / "input.zarr"), mode="r+")[:16, :16, :16] = volume[:16, :16, :16]
    stages.plan(done.now, input_changed="redo")
    assert not is_published(done)
    assert stages.infer(done.now).tiles == 12  # 3 along z, whose cores are of 8; 2 along y and x
    assert stages.verify(done.now).complete
    assert is_exact(done, volume)
    fresh = run_of(tmp_path / "fresh", volume)
    stages.plan(fresh.now)
    stages.infer(fresh.now)
    assert stored_objects(done.output) == stored_objects(fresh.output)
    stages.plan(done.now)  # settled


@pytest.mark.parametrize("mode", ["zscore", "percentile"])
def test_redo_of_a_run_by_statistics_measures_and_computes_all_again(tmp_path, pooled, capsys, mode):
    """Each tile stands by the whole volume's statistics, so one chunk changes all of them; no tile of the old ones may stay."""
    run = run_of(tmp_path / "run", normalize={"mode": mode})
    stages.plan(run.now)
    stages.survey(run.now)
    stages.infer(run.now)
    assert stages.verify(run.now).complete
    before, old = run.plan, stored_objects(run.output)
    measured = run.directory.load_statistics()
    volume = run.volume.copy()
    volume[:16, :16, :16] = 255 - volume[:16, :16, :16] // 64
    zarr.open_array(str(run.folder / "input.zarr"), mode="r+")[:16, :16, :16] = volume[:16, :16, :16]
    assert command("run", run.yaml, "--no-prefect") == 2
    assert f"All {TILES} tiles read it." in capsys.readouterr().err
    assert run.plan == before
    assert run.directory.load_statistics() == measured
    assert stored_objects(run.output) == old

    stages.plan(run.now, input_changed="redo")
    assert not is_published(run)
    assert run.plan.fingerprint == before.fingerprint
    assert run.directory.load_statistics() is None
    assert run.directory.progress(run.plan).count("done") == 0
    with pytest.raises(PlanError, match="are not measured yet"):
        stages.infer(run.now)
    assert stages.survey(run.now) != measured
    assert stages.infer(run.now).tiles == TILES
    assert stages.verify(run.now).complete
    assert is_published(run)
    fresh = run_of(tmp_path / "fresh", volume, normalize={"mode": mode})
    stages.plan(fresh.now)
    assert stages.survey(fresh.now).normalization == run.directory.load_statistics().normalization
    stages.infer(fresh.now)
    assert stored_objects(run.output) == stored_objects(fresh.output) != old
    assert f"{TILES} tile(s) that were done and read it are computed again" in run.plan.stored.history[0]
    stages.plan(run.now)  # settled
    stages.survey(run.now)
    assert stages.infer(run.now).tiles == 0


@pytest.mark.parametrize("mode", ["zscore", "percentile"])
def test_keep_of_a_run_by_statistics_measures_nothing_again(tmp_path, pooled, mode):
    """The negative control: who says that the voxels are the same says so of their statistics, too."""
    run = run_of(tmp_path, normalize={"mode": mode})
    stages.plan(run.now)
    measured = stages.survey(run.now)
    stages.infer(run.now)
    before, old = run.plan, stored_objects(run.output)
    os.utime(run.folder / "input.zarr/c/0/0/0")
    stages.plan(run.now, input_changed="keep")
    assert run.plan.fingerprint == before.fingerprint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.inference.survey.dispatch", lambda *_, **__: pytest.fail("it is measured again"))
        assert stages.survey(run.now) == measured
    assert stages.infer(run.now).tiles == 0
    assert stored_objects(run.output) == old


def test_keep_computes_nothing_and_says_so(done, pooled, capsys):
    """A plain copy has other times, and the same voxels."""
    os.utime(done.folder / "input.zarr/c/0/0/0")
    assert command("run", done.yaml, "--no-prefect", "--input-changed", "keep") == 0
    assert "nothing to compute" in capsys.readouterr().out
    assert (
        "kept as the same voxels, 12 tile(s) that read it were not computed again"
        in (done.directory.path / "report.html").read_text()
    )
    assert command("run", done.yaml, "--no-prefect") == 0
    assert is_exact(done, done.volume)


def test_a_copy_of_a_run_that_keeps_times_goes_on_as_it_is(done, finished):
    """`mv`, `cp -a`, `rsync -t`: nobody is asked, and the fingerprint is the same."""
    assert done.plan.fingerprint == finished.plan.fingerprint
    assert done.plan.stored.history == ()
    assert done.plan.stored.signature != finished.plan.stored.signature  # the inodes' times


def test_a_sparse_volume_is_read_with_a_warning(tmp_path, pooled, capsys):
    """Absent is fill, as Zarr says; plan and report count it."""
    volume = random_volume(SHAPE) | 1
    volume[:16, :, :16] = 0
    run = run_of(tmp_path, volume)
    assert command("run", run.yaml, "--no-prefect") == 0
    assert "stored: 14 of 16 chunks" in " ".join(capsys.readouterr().out.split())
    assert "2 of the 16 chunks of the input are absent" in (run.directory.path / "report.html").read_text()
    assert is_exact(run, volume)


def test_a_header_without_voxels_is_refused_by_the_command(tmp_path, capsys):
    """A copy that broke off at once."""
    run = run_of(tmp_path)
    shutil.rmtree(run.folder / "input.zarr/c")
    assert command("run", run.yaml) == 2
    error = capsys.readouterr().err
    assert "has a header and no voxels (stored: 0 of 16 chunks" in error
    assert "Traceback" not in error
    assert not run.output.exists()
    assert not run.directory.path.exists()


def test_a_plan_of_other_files_does_not_begin(tmp_path, capsys):
    """Planned on Monday, run on Friday: what was looked at is not there any more. A new plan is how to say that it is known."""
    run = run_of(tmp_path)
    assert command("plan", run.yaml) == 0
    (run.folder / "input.zarr/c/0/0/0").unlink()
    assert command("run", run.yaml, "--no-prefect") == 2
    assert "1 chunk is gone: c/0/0/0" in capsys.readouterr().err
    assert not run.output.exists()
    assert command("plan", run.yaml) == 0
    assert "stored: 15 of 16 chunks" in " ".join(capsys.readouterr().out.split())

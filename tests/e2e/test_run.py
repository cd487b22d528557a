"""Whole runs: the command through Prefect and Dask, and what becomes of an output that is damaged, moved or resumed."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaozarrs
import zarr
from PIL import Image

from flows.commands.app import app
from flows.commands.status import status as status_of
from pipeline import stages
from pipeline.core.ledger import TileRecord
from pipeline.core.network.unet import Architecture
from pipeline.errors import InferenceError, StorageError, VerificationError
from tests.e2e.test_exact import as_volume, assert_equal
from tests.pipeline_cases import (
    Run,
    done_entries,
    fill_up,
    make_run,
    mounted,
    one_pass,
    random_network,
    sessions,
    stored_objects,
)

NETWORK = Architecture(3, 2, 4)


def small(folder: Path, **sections) -> Run:
    """Eight tiles of a small network."""
    tiles = {"core": [16, 16, 32]}
    return make_run(folder, architecture=NETWORK, shape=(21, 29, 37), **{"tiles": tiles, **sections})


def command(*arguments: object) -> int:
    """`halotile ARGUMENTS` in this process; for what ends before Prefect is needed."""
    called = [str(argument) for argument in arguments]
    return status_of(lambda: app(called, exit_on_error=False, print_error=True, result_action="return_value"))


def snapshot(run: Run) -> dict[str, bytes]:
    """Every file of the output and of its run directory, logs and locks left out."""
    roots = (run.output, run.directory.path)
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    return {str(p): p.read_bytes() for p in files if p.suffix not in (".log", ".lock")}


@pytest.fixture(scope="module")
def finished(halotile, tmp_path_factory) -> Run:
    """A run that the command did, whole, in a process of its own."""
    run = small(tmp_path_factory.mktemp("finished"))
    done = halotile("run", run.yaml)
    assert done.wait() == 0, done.error
    assert "done: 8 tiles computed; 8 of 8 verified" in done.out
    return run


@pytest.fixture
def copied(finished, tmp_path) -> Run:
    """The finished run at another place, to be spoilt: stores may be moved between two sittings."""
    shutil.copytree(finished.folder, tmp_path / "moved")
    run = Run(tmp_path / "moved", finished.content, finished.network, finished.volume)
    folder = str(run.folder)
    return run.having(
        input={"url": f"{folder}/input.zarr"},
        output={"url": f"{folder}/output.zarr"},
        model={"checkpoint": f"{folder}/weights.pt"},
    )


# --- the whole command --------------------------------------------------------------------------------------------------


def test_the_command_gives_the_answer_of_one_pass(finished):
    """From the YAML to the OME-Zarr through Prefect and Dask, and still equal."""
    assert_equal(finished.array()[np.newaxis], one_pass(finished.network, as_volume(finished) / np.float32(255)))


def test_the_command_does_so_for_an_unpadded_network_of_two_channels(halotile, tmp_path):
    """The other half of the geometry, through the same door, with a key overridden on the way."""
    run = make_run(
        tmp_path,
        architecture=Architecture(2, 2, 4, out_channels=2, padding="valid"),
        shape=(3, 37, 30),
        tiles={"core": [2, 16, 16]},
        output={"activation": "softmax"},
    )
    done = halotile("run", run.yaml, "--no-prefect", "--set", "output.activation=none")
    assert done.wait() == 0, done.error
    assert_equal(run.array(), one_pass(run.network, as_volume(run) / np.float32(255)))
    yaozarrs.validate_zarr_store(str(run.output))


def test_the_report_holds_the_figures_and_a_picture(finished):
    """What programs read (`stages.infer.seconds`), and what people look at."""
    directory = finished.directory.path
    content = json.loads((directory / "report.json").read_text())
    infer = content["stages"]["infer"]
    (session,) = sessions(finished.directory)
    assert infer["seconds"] == session.seconds > 0
    assert (infer["tiles"], infer["sessions"], infer["failed_attempts"]) == (8, 1, 0)
    assert content["tiles"] == {"total": 8, "done": 8}
    assert content["stages"]["verify"]["complete"]
    assert 0 < infer["worker_peak_bytes"] <= infer["worker_bound_bytes"]
    page = (directory / "report.html").read_text()
    assert "every stored byte verified" in page
    assert 'src="slices.png"' in page
    picture = np.asarray(Image.open(directory / "slices.png"))
    left, right = picture[:, :37], picture[:, -37:]
    assert picture.shape == (29, 37 + 8 + 37)
    assert left.std() > 20
    assert right.std() > 20


def test_the_run_directory_holds_no_leftovers(finished):
    """What a finished run leaves is what the README lists."""
    names = {path.name for path in finished.directory.path.iterdir()}
    artifacts = {
        "plan.json",
        "input.npz",
        "ledger.jsonl",
        "run.log",
        "verification.json",
        "report.json",
        "report.html",
        "slices.png",
        "thumbnail.png",
    }
    assert names == artifacts | {"driver.lock", "tiles.lock", "prefect.log"}
    assert not list(finished.output.rglob("*.partial"))
    assert Counter(done_entries(finished.directory)) == Counter(range(8))


def test_running_a_finished_job_again_computes_nothing_and_says_so(finished, halotile):
    """A scheduled flow that runs again must cost seconds, not hours."""
    before, entries = stored_objects(finished.output), len(list(finished.directory.records()))
    again = halotile("run", finished.yaml, "--no-prefect")
    assert again.wait() == 0, again.error
    assert "nothing to compute: all tiles were done already; 8 of 8 verified" in again.out
    assert stored_objects(finished.output) == before
    assert len(list(finished.directory.records())) == entries


def test_a_dry_run_writes_a_plan_and_makes_no_output(tmp_path, capsys):
    """What a run will cost is known, and can be argued about, before a machine is touched."""
    run = small(tmp_path)
    assert command("plan", run.yaml, "--measure") == 0
    told = " ".join(capsys.readouterr().out.split())
    for fact in (
        "8 (2 x 2 x 2), core 16 x 16 x 32, halo 24 x 24 x 24",
        f"{run.plan.amplification:.2f} x one pass",
        f"{run.plan.read_amplification:.2f} x the volume; decodes {run.plan.decoding_amplification:.2f} x",
        "expected time",
        "with 2 worker(s)",
        f"up to {run.plan.cost.worker_bytes / 1e9:.2f} GB",
        "plan written to",
    ):
        assert fact in told
    assert {path.name for path in run.directory.path.iterdir()} == {"plan.json", "input.npz", "driver.lock"}
    assert not run.output.exists()
    other = run.having(tiles={"core": [16, 16, 16]})
    assert command("plan", other.yaml) == 0
    assert run.plan.core == (16, 16, 16)


def test_inspecting_tells_what_a_store_and_a_checkpoint_are(finished, capsys):
    """Before a run: does this network fit that volume?"""
    assert command("inspect", finished.output) == 0
    assert "axes zyx, shape 21 x 29 x 37, float32, Zarr v3" in " ".join(capsys.readouterr().out.split())
    assert command("inspect", finished.folder / "weights.pt") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "3D UNet, depth 2, width 4, batch norm, bias, padding not told" in told
    assert "receptive radius 22 x 22 x 22" in told


# --- another plan for the same output -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["tiles.halo=[24, 24, 28]"], ["tiles.halo: [24, 24, 28] here, [24, 24, 24] there"]),
        (["compute.dtype=bfloat16"], ["compute.dtype: bfloat16 here, float32 there"]),
        (["output.dtype=uint8", "output.activation=sigmoid"], ["output.dtype: uint8", "output.activation: sigmoid"]),
        (["tiles.core=[16, 16, 16]"], ["tiles.core: [16, 16, 16] here, [16, 16, 32] there"]),
        (["normalize.mode=none"], ["normalize:"]),
        (["input.nonfinite=zero"], ["input.nonfinite: zero"]),
        (["compute.threads=2"], ["compute.threads: 2 here, 1 there"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_another_plan_for_the_same_output_is_refused(finished, capsys, overrides, named):
    """Half of one prediction and half of another in one store: nobody would ever notice."""
    before = snapshot(finished)
    assert command("run", finished.yaml, *(part for key in overrides for part in ("--set", key))) == 2
    error = capsys.readouterr().err
    assert "was begun with another plan" in error
    assert all(name in error for name in named)
    assert "choose another output.url" in error
    assert snapshot(finished) == before


def test_another_checkpoint_for_the_same_output_is_refused(finished, tmp_path, capsys):
    """A retrained network of the same name is another network: its weights are hashed, not its path."""
    before = snapshot(finished)
    torch.save(random_network(NETWORK, seed=5).state_dict(), tmp_path / "weights.pt")
    assert command("run", finished.yaml, "--set", f"model.checkpoint={tmp_path / 'weights.pt'}") == 2
    assert "model.weights: " in capsys.readouterr().err
    assert snapshot(finished) == before


def test_what_does_not_touch_the_bytes_may_change(copied, capsys):
    """Paths, workers and retries are no part of a plan's identity."""
    changed = copied.having(cluster={"workers": 1, "retries": 5, "memory_gb": 3})
    stages.plan(changed.now)
    assert stages.infer(changed.now).tiles == 0
    assert command("verify", changed.yaml) == 0
    assert "verified: 8 of 8 tiles, 8 objects" in capsys.readouterr().out


# --- damage and repair --------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def exchange(path: Path) -> None:
    """Let an object and its neighbour change places: both stay intact, and both are wrong."""
    other = path.with_name("0" if path.name != "0" else "1")
    here, there = path.read_bytes(), other.read_bytes()
    path.write_bytes(there)
    other.write_bytes(here)


DAMAGE: dict[str, tuple[Callable[[Path], object], int]] = {
    "a flipped byte": (flip, 1),
    "a truncated object": (lambda path: path.write_bytes(path.read_bytes()[:100]), 1),
    "a deleted object": (Path.unlink, 1),
    "two objects exchanged": (exchange, 2),
}


@pytest.mark.parametrize(("damage", "tiles"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_found_by_name_and_mended_by_running_again(copied, pooled, capsys, damage, tiles):
    """Disks rot, and copies break off: what the ledger vouches for must be what lies there."""
    before = stored_objects(copied.output)
    damage(copied.output / "0/c/1/0/1")  # tile 5: z 16:21, y 0:16, x 32:37
    assert command("verify", copied.yaml) == 3
    error = capsys.readouterr().err
    assert "tile 5 (core z 16:21, y 0:16, x 32:37): object '0/c/1/0/1'" in error
    assert f"of 8 tiles {tiles} are not as written and 0 were never finished" in error
    assert copied.directory.progress(copied.plan).count("invalid") == tiles

    assert stages.plan(copied.now) == copied.plan
    assert stages.infer(copied.now).tiles == tiles
    assert stages.verify(copied.now).complete
    assert stored_objects(copied.output) == before


def test_an_output_that_is_gone_is_not_taken_for_done(copied, pooled):
    """The ledger says done, the store is not there: computing nothing would give nothing."""
    shutil.rmtree(copied.output)
    stages.plan(copied.now)
    with pytest.raises(StorageError, match=r"is gone, but .* says that 8 of its tiles are done"):
        stages.infer(copied.now)
    assert not copied.output.exists()


def test_an_output_without_its_run_directory_is_not_overwritten(copied, capsys):
    """Without a ledger nothing is known of it."""
    shutil.rmtree(copied.directory.path)
    before = stored_objects(copied.output)
    status = command("run", copied.yaml, "--set", "tiles.core=[16, 16, 16]")
    assert status == 2
    assert "exists and is not of this plan" in capsys.readouterr().err
    assert stored_objects(copied.output) == before


# --- tiles that fail ----------------------------------------------------------------------------------------------------


def with_a_nan(folder: Path, **sections) -> Run:
    """Five tiles in a row, and one NaN in the last, which the fourth reads as well."""
    shape = (8, 16, 40)
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    volume[3, 4, 39] = np.nan
    keys = {"tiles": {"core": [8, 16, 8]}, "normalize": {"mode": "none"}, **sections}
    return make_run(folder, architecture=Architecture(3, 1, 4), shape=shape, volume=volume, **keys)


def test_input_that_is_not_finite_fails_its_tiles_by_name_and_keeps_the_others(halotile, tmp_path):
    """One bad voxel in a terabyte: the message says where, and all else is done."""
    run = with_a_nan(tmp_path)
    failed = halotile("run", run.yaml)
    assert failed.wait() == 1
    assert "halotile: failed: 2 tile(s) failed:" in failed.error
    assert "tile 3 (core z 0:8, y 0:16, x 24:32) read input that is not finite: 1 values in the box" in failed.error
    assert "tile 4 (core z 0:8, y 0:16, x 32:40)" in failed.error
    assert "z, y, x = (3, 4, 39)" in failed.error
    assert "3 of 5 tiles are done and kept" in failed.error
    assert "Traceback" not in failed.error
    assert len(failed.error.splitlines()) < 40
    assert sorted(done_entries(run.directory)) == [0, 1, 2]
    assert "ome" not in json.loads((run.output / "zarr.json").read_text())["attributes"]


def test_after_the_repair_only_the_failed_tiles_are_computed(pooled, tmp_path):
    """Whoever mends one voxel must not wait for the whole volume again."""
    run = with_a_nan(tmp_path, cluster={"retries": 0})
    stages.plan(run.now)
    with pytest.raises(InferenceError, match="2 tile"):
        stages.infer(run.now)
    with pytest.raises(VerificationError, match="0 are not as written and 2 were never finished"):
        stages.verify(run.now)
    zarr.open_array(str(tmp_path / "input.zarr"), mode="r+")[3, 4, 39] = 0
    stages.plan(run.now)  # no tile that is done read the chunk: nobody is asked
    assert stages.infer(run.now).tiles == 2
    assert stages.verify(run.now).complete
    assert_equal(run.array()[np.newaxis], one_pass(run.network, np.nan_to_num(run.volume)[np.newaxis]))


def test_where_the_run_says_so_values_that_are_not_finite_count_as_zero(pooled, tmp_path):
    """`nonfinite: zero` passes, and means zero before normalisation."""
    run = with_a_nan(tmp_path, input={"nonfinite": "zero"})
    stages.plan(run.now)
    assert stages.infer(run.now).tiles == 5
    assert_equal(run.array()[np.newaxis], one_pass(run.network, np.nan_to_num(run.volume)[np.newaxis]))


def test_a_chunk_of_the_input_that_cannot_be_decoded_fails_its_tiles_by_name(pooled, tmp_path):
    """A damaged input is the input's owner's to repair; the box says which part."""
    run = small(tmp_path, cluster={"retries": 0}, tiles={"core": [4, 16, 32]})
    (chunk,) = (tmp_path / "input.zarr/c/1/1").glob("2")
    chunk.write_bytes(b"damaged")
    stages.plan(run.now)
    with pytest.raises(InferenceError, match=r"tile \d+ \(core .*\) could not be read: the input box z .* gave \w+"):
        stages.infer(run.now)


def test_a_disk_that_fills_up_fails_the_tiles_by_name_and_room_mends_it(pooled, tmp_path):
    """Somebody else's files may fill what the plan found free; what was written before is kept."""
    run = small(tmp_path, cluster={"retries": 0})
    with mounted(tmp_path / "disk", "-o", "size=1m"):
        run = run.having(output={"url": str(tmp_path / "disk/output.zarr")})
        stages.plan(run.now)
        filler = fill_up(tmp_path / "disk", but=100_000)
        with pytest.raises(InferenceError, match=r"tile \d \(core .*\) could not be written .*No space left"):
            stages.infer(run.now)
        kept = done_entries(run.directory)
        assert 0 < len(kept) < 8
        filler.unlink()
        assert stages.infer(run.now).tiles == 8 - len(kept)
        assert stages.verify(run.now).complete
        assert not list(run.output.rglob("*.partial"))


def test_a_volume_of_fill_is_done_without_an_object(pooled, tmp_path):
    """Nothing is stored, all is done, and verification knows the difference to nothing done."""
    architecture = Architecture(3, 1, 4, norm="none", bias=False)
    shape = (8, 16, 40)
    keys = {"tiles": {"core": [8, 16, 8]}, "input": {"missing": "fill"}}
    run = make_run(tmp_path, architecture=architecture, shape=shape, volume=np.zeros(shape, np.uint8), **keys)
    stages.plan(run.now)
    stages.infer(run.now)
    assert stages.verify(run.now).complete
    assert set(stored_objects(run.output)) == {"zarr.json"}
    assert not run.array().any()
    records = [r for r in run.directory.records() if isinstance(r, TileRecord)]
    assert [value for record in records for value in record.units.values()] == [None] * 5
    stages.report(run.now)


# --- the same plan ------------------------------------------------------------------------------------------------------


def test_one_worker_and_four_write_the_same_bytes(tmp_path):
    """A plan that is there governs: the number of workers changes who computes a tile and when, and nothing else."""
    (tmp_path / "one").mkdir()
    one = small(tmp_path / "one", compute={"threads": "auto"}, cluster={"workers": 1})
    stages.plan(one.now)
    stages.infer(one.now)

    (tmp_path / "four").mkdir()
    four = Run(tmp_path / "four", one.content, one.network, one.volume)
    four = four.having(output={"url": str(tmp_path / "four/output.zarr")}, cluster={"workers": 4})
    four.directory.path.mkdir()
    shutil.copy(one.directory.plan_path, four.directory.plan_path)
    assert stages.plan(four.now).fingerprint == one.plan.fingerprint
    stages.infer(four.now)
    assert len({r.worker for r in four.directory.records() if isinstance(r, TileRecord)}) > 1
    assert stored_objects(four.output) == stored_objects(one.output)


def test_a_run_begun_by_one_number_of_workers_goes_on_with_another(pooled, tmp_path):
    """A night on the cluster, the rest on a workstation: `auto` is resolved once, for a new output."""
    run = small(tmp_path, tiles={"core": "auto"}, compute={"threads": "auto"})
    first = stages.plan(run.now)
    stages.infer(run.now)
    flip(next(path for path in (run.output / "0/c").rglob("*") if path.is_file()))
    with pytest.raises(VerificationError):
        stages.verify(run.now)
    later = run.having(cluster={"workers": 1, "memory_gb": 9})
    assert stages.plan(later.now) == first
    assert stages.infer(later.now).tiles >= 1
    assert stages.verify(later.now).complete

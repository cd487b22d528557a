"""Bad input: told on one screen before any work, with status 2, and nothing made."""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from flows.commands.app import app
from flows.commands.status import status as status_of
from pipeline.core.network.unet import Architecture
from tests.e2e.commands import ROOT
from tests.pipeline_cases import Run, make_run, mounted, random_network, random_volume, save_array

Keys = Mapping[str, Mapping[str, object]]


@pytest.fixture
def run(tmp_path) -> Run:
    """A run that would do, before it is spoilt."""
    return make_run(tmp_path, architecture=Architecture(3, 2, 2), shape=(20, 24, 28))


def command(*arguments: object) -> int:
    """`halotile ARGUMENTS` in this process: a refusal comes before Prefect and Dask."""
    called = [str(argument) for argument in arguments]
    return status_of(lambda: app(called, exit_on_error=False, print_error=True, result_action="return_value"))


def assert_refused(run: Run, status: int, error: str, fact: str) -> None:
    """Status 2, one screen, the fact that matters, and neither output nor run directory."""
    assert status == 2, error
    assert fact in " ".join(error.split()), error
    assert "Traceback" not in error
    assert len(error.splitlines()) < 40
    assert not run.output.exists()
    assert not run.directory.path.exists()


# --- keys ---------------------------------------------------------------------------------------------------------------

KEYS: dict[str, tuple[Keys, str]] = {
    "unknown key": ({"tiles": {"hallo": [8, 8, 8]}}, "tiles.hallo: unknown key; did you mean 'halo'?"),
    "unknown section": ({"outputs": {"url": "x"}}, "outputs: unknown key; did you mean 'output'?"),
    "wrong type": ({"tiles": {"core": [16, 16]}}, "tiles.core"),
    "halo short": (
        {"tiles": {"halo": [20, 20, 20]}},
        "tiles.halo [20, 20, 20] is smaller than the receptive radius [22, 22, 22]",
    ),
    "halo off stride": (
        {"tiles": {"halo": [24, 26, 24]}},
        "tiles.halo [24, 26, 24] is no multiple of the stride [4, 4, 4]",
    ),
    "core off lattice": (
        {"tiles": {"core": [16, 18, 16]}},
        "tiles.core [16, 18, 16] is no multiple of the stride [4, 4, 4]",
    ),
    "core no multiple of the shard": (
        {"tiles": {"core": [16, 16, 24]}, "output": {"shards": [16, 16, 16]}},
        "tiles.core [16, 16, 24] is no multiple of output.shards [16, 16, 16]",
    ),
    "shard no multiple of the chunk": (
        {"output": {"shards": [16, 16, 16], "chunks": [16, 16, 12]}},
        "output.shards [16, 16, 16] is no multiple of output.chunks [16, 16, 12]",
    ),
    "level of a plain array": ({"input": {"level": 1}}, "input.level is 1, but"),
    "axes that do not fit": ({"input": {"axes": "czyx"}}, "has 3 axes, shape (20, 24, 28), read as 'czyx'"),
    "channels read as slices": ({"input": {"axes": "cyx"}}, "is a 3D network, but input"),
    "softmax of one channel": (
        {"output": {"activation": "softmax"}},
        "output.activation is 'softmax', but the network predicts one",
    ),
    "eight bits of logits": ({"output": {"dtype": "uint8"}}, "means nothing for raw logits (activation none)"),
    "unknown device": ({"compute": {"device": "gpu"}}, "compute.device"),
    "no memory": ({"cluster": {"memory_gb": 0.1}}, "A worker has 0.1 GB"),
    "no such checkpoint": ({"model": {"checkpoint": "/nowhere/m.pt"}}, "Checkpoint '/nowhere/m.pt' was asked for"),
    "missing store": (
        {"input": {"url": "/nowhere/v.zarr"}},
        "Input '/nowhere/v.zarr' was asked for, but there is nothing",
    ),
}


@pytest.mark.parametrize(("keys", "fact"), KEYS.values(), ids=KEYS.keys())
def test_keys_that_cannot_be_a_run_are_refused(run, capsys, keys, fact):
    """What the YAML alone, or with the volume and the network, says to be impossible."""
    status = command("run", run.having(**keys).yaml)
    assert_refused(run, status, capsys.readouterr().err, fact)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused(run, capsys):
    """Falling back to the processor would take a month without a word."""
    status = command("run", run.having(compute={"device": "cuda"}).yaml)
    assert_refused(run, status, capsys.readouterr().err, "compute.device is 'cuda', but torch")


def test_all_violations_are_told_at_once(run, capsys):
    """Five errors must not take five attempts."""
    keys = {"tiles": {"core": "big", "halo": [1]}, "cluster": {"workers": 0}, "compute": {"dtype": "int8"}}
    status = command("run", run.having(**keys).yaml)
    error = capsys.readouterr().err
    assert_refused(run, status, error, "(4 problems)")
    assert all(name in error for name in ("tiles.core", "tiles.halo", "cluster.workers", "compute.dtype"))


def test_all_broken_rules_of_tiles_are_told_at_once(run, capsys):
    """Halo and core are set together, so they must be corrected together."""
    status = command("run", run.having(tiles={"core": [16, 18, 16], "halo": [20, 20, 21]}).yaml)
    error = capsys.readouterr().err
    assert_refused(run, status, error, "tiles.core [16, 18, 16] is no multiple")
    assert "tiles.halo [20, 20, 21] is no multiple" in error
    assert "is smaller than the receptive radius" in error


# --- volumes ------------------------------------------------------------------------------------------------------------


def a_group_without_multiscales(run: Run, shared_data: Path) -> Keys:
    """A group that holds an array and says nothing of it."""
    zarr.create_group(str(run.folder / "group.zarr")).create_array("a", data=run.volume)
    return {"input": {"url": str(run.folder / "group.zarr")}}


def five_axes(run: Run, shared_data: Path) -> Keys:
    """A time series."""
    path = save_array(run.folder / "series.zarr", random_volume((3, 1, 9, 9, 9)))
    return {"input": {"url": str(path), "axes": "tczyx"}}


def two_channels(run: Run, shared_data: Path) -> Keys:
    """More channels than the network reads."""
    return {"input": {"url": str(save_array(run.folder / "two.zarr", random_volume((2, 9, 9, 9))))}}


def a_channel_that_is_not_there(run: Run, shared_data: Path) -> Keys:
    """A number behind the last."""
    return {"input": {**two_channels(run, shared_data)["input"], "channels": [7]}}


def a_picture(run: Run, shared_data: Path) -> Keys:
    """No z for a 3D network."""
    return {"input": {"url": str(save_array(run.folder / "picture.zarr", random_volume((40, 40))))}}


def a_picture_file(run: Run, shared_data: Path) -> Keys:
    """A file of a kind that is not read."""
    (run.folder / "v.png").write_bytes(b"\x89PNG")
    return {"input": {"url": str(run.folder / "v.png")}}


def a_torn_tiff(run: Run, shared_data: Path) -> Keys:
    """A copy that ended early."""
    (run.folder / "v.tif").write_bytes(b"II*\0")
    return {"input": {"url": str(run.folder / "v.tif")}}


def values_that_are_not_finite(run: Run, shared_data: Path) -> Keys:
    """Statistics of NaN mean nothing; known in the plan stage."""
    volume = np.full((9, 9, 9), np.nan, np.float32)
    return {"input": {"url": str(save_array(run.folder / "nan.zarr", volume))}, "normalize": {"mode": "zscore"}}


VOLUMES = [
    (a_group_without_multiscales, "has no OME-Zarr image metadata (multiscales); it holds a"),
    (five_axes, "read as 'tczyx': 3 time points along t"),
    (two_channels, "Set input.channels to the 1 that it was trained on"),
    (a_channel_that_is_not_there, "input.channels asks for 7, which is none of them"),
    (a_picture, "is a 3D network, but input"),
    (a_picture_file, "is not a Zarr array or group"),
    (a_torn_tiff, "is no readable TIFF file"),
    (values_that_are_not_finite, "holds 729 values that are not finite"),
]


@pytest.mark.parametrize(("spoil", "fact"), VOLUMES, ids=[spoil.__name__ for spoil, _ in VOLUMES])
def test_volumes_that_cannot_be_predicted_are_refused(run, shared_data, capsys, spoil, fact):
    """What is stored at the input is not what the network reads."""
    status = command("run", run.having(**spoil(run, shared_data)).yaml)
    assert_refused(run, status, capsys.readouterr().err, fact)


# --- checkpoints --------------------------------------------------------------------------------------------------------


def truncated(run: Run, shared_data: Path) -> Path:
    """A copy that broke off."""
    path = run.folder / "weights.pt"
    path.write_bytes(path.read_bytes()[:-3000])
    return path


def random_bytes(run: Run, shared_data: Path) -> Path:
    """A file that only has the right name."""
    path = run.folder / "noise.safetensors"
    path.write_bytes(np.random.default_rng(0).bytes(4000))
    return path


def empty(run: Run, shared_data: Path) -> Path:
    """A file that was never written."""
    path = run.folder / "empty.pt"
    path.write_bytes(b"")
    return path


def other_channels(run: Run, shared_data: Path) -> Path:
    """A network for another kind of input."""
    return save_state(run, random_network(Architecture(3, 2, 2, in_channels=3)).state_dict())


def instance_norm(run: Run, shared_data: Path) -> Path:
    """The notes' names with weights and no statistics: instance or group norm, or a batch norm without."""
    return save_state(
        run, {n: t for n, t in run.network.state_dict().items() if "running" not in n and "tracked" not in n}
    )


def no_state_dict(run: Run, shared_data: Path) -> Path:
    """Something that torch saved, and no weights."""
    return save_state(run, [1, 2, 3])


def two_dimensional_bottom(run: Run, shared_data: Path) -> Path:
    """One tensor of another rank."""
    state = run.network.state_dict()
    return save_state(run, {**state, "encoder3_1.0.weight": state["encoder3_1.0.weight"][..., 0]})


def nuclei_of_bioimageio(run: Run, shared_data: Path) -> Path:
    """A real network of other names."""
    return shared_data / "models/bioimageio_unet2d_nuclei_broad/state_dict_extracted.pt"


def fixed_shape_of_bioimageio(run: Run, shared_data: Path) -> Path:
    """A real network of other names, and of instance norms."""
    return shared_data / "models/bioimageio_unet2d_fixed_shape/weights.pt"


def save_state(run: Run, content: object) -> Path:
    """Save `content` with torch beside the run."""
    torch.save(content, run.folder / "other.pt")
    return run.folder / "other.pt"


CHECKPOINTS = [
    (truncated, "Checkpoint"),
    (random_bytes, "Checkpoint"),
    (empty, "Checkpoint"),
    (other_channels, "reads 3 channels, but input"),
    (instance_norm, "normalises without stored statistics ('encoder1_1.1.weight' has no 'running_mean' beside it)"),
    (no_state_dict, "not a state_dict"),
    (two_dimensional_bottom, "does not fit"),
    (nuclei_of_bioimageio, "is not this UNet: expected tensors named 'encoder1_1.0.weight'"),
    (fixed_shape_of_bioimageio, "is not this UNet: expected tensors named 'encoder1_1.0.weight'"),
]


@pytest.mark.parametrize(("spoil", "fact"), CHECKPOINTS, ids=[spoil.__name__ for spoil, _ in CHECKPOINTS])
def test_checkpoints_that_are_not_this_network_are_refused(run, shared_data, capsys, spoil, fact):
    """A network that is not what it says, or that no halo makes exact."""
    path = spoil(run, shared_data)
    status = command("run", run.having(model={"checkpoint": str(path)}).yaml)
    error = capsys.readouterr().err
    assert_refused(run, status, error, fact)
    assert path.name in error


# --- outputs ------------------------------------------------------------------------------------------------------------


def output_at(run: Run, path: Path) -> Run:
    """The run with another place for its output."""
    return run.having(output={"url": str(path)})


def test_an_output_inside_the_input_is_refused(run, capsys):
    """The input store is never written to."""
    spoilt = output_at(run, run.folder / "input.zarr/prediction")
    before = sorted((run.folder / "input.zarr").rglob("*"))
    assert_refused(spoilt, command("run", spoilt.yaml), capsys.readouterr().err, "lie inside one another")
    assert sorted((run.folder / "input.zarr").rglob("*")) == before


def test_an_input_inside_the_output_is_refused(run, capsys):
    """Nor is it written around."""
    status = command("run", output_at(run, run.folder).yaml)
    assert status == 2
    assert "lie inside one another" in capsys.readouterr().err


def test_an_output_through_a_link_into_the_input_is_refused(run, capsys):
    """A link must not be a way around the rule."""
    (run.folder / "link").symlink_to(run.folder / "input.zarr")
    spoilt = output_at(run, run.folder / "link/prediction")
    assert_refused(spoilt, command("run", spoilt.yaml), capsys.readouterr().err, "lie inside one another")


def test_an_output_below_a_file_is_refused(run, capsys):
    """There is no folder to write into, and none can be made."""
    (run.folder / "file").write_text("notes")
    spoilt = output_at(run, run.folder / "file/o.zarr")
    assert_refused(spoilt, command("run", spoilt.yaml), capsys.readouterr().err, "cannot be written")


def test_an_output_on_a_read_only_file_system_is_refused(run, capsys):
    """Known before the first tile, not after the first hour; root, too, cannot write there."""
    with mounted(run.folder / "frozen", "-o", "ro"):
        spoilt = output_at(run, run.folder / "frozen/o.zarr")
        assert_refused(spoilt, command("run", spoilt.yaml), capsys.readouterr().err, "cannot be written")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_in_a_folder_of_others_is_refused(run, capsys):
    """The commonest kind of read-only."""
    (run.folder / "theirs").mkdir(mode=0o555)
    spoilt = output_at(run, run.folder / "theirs/o.zarr")
    assert_refused(spoilt, command("run", spoilt.yaml), capsys.readouterr().err, "cannot be written")


def test_a_disk_smaller_than_the_output_is_refused(run, capsys):
    """A full disk at nine tenths of a week's work is the worst way to learn it."""
    volume = random_volume((64, 72, 72))
    save_array(run.folder / "large.zarr", volume, (16, 32, 32))
    with mounted(run.folder / "small", "-o", "size=1m"):
        spoilt = output_at(run.having(input={"url": str(run.folder / "large.zarr")}), run.folder / "small/o.zarr")
        error_of = functools.partial(assert_refused, spoilt)
        error_of(command("run", spoilt.yaml), capsys.readouterr().err, "takes up to 0.001 GB, but")


@pytest.mark.parametrize("kind", ["a file", "a folder", "another store"])
def test_an_output_that_is_somebody_elses_is_refused_and_left_as_it_is(run, capsys, kind):
    """Nothing is ever overwritten."""
    if kind == "a file":
        run.output.write_text("notes")
    elif kind == "a folder":
        run.output.mkdir()
        (run.output / "notes.txt").write_text("notes")
    else:
        shutil.copytree(run.folder / "input.zarr", run.output)
    before = {p: p.read_bytes() for p in (run.output, *run.output.rglob("*")) if p.is_file()}
    assert command("run", run.yaml) == 2
    error = capsys.readouterr().err
    assert "exists and is not of this plan: nothing is ever overwritten" in error
    assert len(error.splitlines()) < 40
    assert {p: p.read_bytes() for p in (run.output, *run.output.rglob("*")) if p.is_file()} == before
    assert not run.directory.path.exists()


# --- the command line ---------------------------------------------------------------------------------------------------

USAGE: dict[str, tuple[list[str], str]] = {
    "unknown command": (["segment", "x.yaml"], "segment"),
    "no configuration": (["run"], "parameter --config"),
    "unknown option": (["run", "x.yaml", "--tiles", "3"], "--tiles"),
    "no such configuration": (["run", "/nowhere/x.yaml"], "Configuration '/nowhere/x.yaml' cannot be read"),
}


@pytest.mark.parametrize(("arguments", "fact"), USAGE.values(), ids=USAGE.keys())
def test_usage_errors_are_refusals(capsys, arguments, fact):
    """Scripts tell a mistyped command from a failed run by the status."""
    assert command(*arguments) == 2
    told = capsys.readouterr()
    assert fact in told.err + told.out
    assert "Traceback" not in told.err


@pytest.mark.parametrize(
    ("override", "fact"),
    [("tiles.core", "is not key=value"), ("tiles.core=[1", "is not YAML"), ("input.url.x=3", "'url' holds a value")],
)
def test_overrides_that_say_nothing_are_refused(run, capsys, override, fact):
    """A mistyped override must not be passed over."""
    assert_refused(run, command("run", run.yaml, "--set", override), capsys.readouterr().err, fact)


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("input: {url: [", "is not YAML"),
        ("input: a\ninput: b\n", "is not YAML"),
        ("- just\n- a list\n", "holds list, not keys"),
        ("", "holds NoneType, not keys"),
        ("input: {url: '${HALOTILE_NOT_SET}/v'}\n", "HALOTILE_NOT_SET, which is not set"),
        ("\0\0", "is not YAML"),
    ],
)
def test_text_that_is_no_configuration_is_refused(run, capsys, text, fact):
    """Bad YAML is told as such, with its place, on one screen."""
    run.yaml.write_text(text)
    assert_refused(run, command("run", run.yaml), capsys.readouterr().err, fact)


def test_required_keys_are_named(run, capsys):
    """What must be there is told by its full name."""
    run.yaml.write_text("input: {}\n")
    status = command("run", run.yaml)
    error = capsys.readouterr().err
    assert_refused(run, status, error, "input.url: required, but not there")
    assert "output: required" in error
    assert "model: required" in error


@pytest.mark.parametrize("subcommand", ["plan", "verify"])
def test_other_commands_refuse_in_the_same_way(run, capsys, subcommand):
    """One way to be told, whatever the command."""
    spoilt = run.having(tiles={"hallo": 3})
    assert_refused(run, command(subcommand, spoilt.yaml), capsys.readouterr().err, "did you mean 'halo'?")


def test_verifying_what_was_never_planned_is_refused(run, capsys):
    """There is nothing to compare with; and looking must not make a run directory."""
    assert_refused(run, command("verify", run.yaml), capsys.readouterr().err, "There is no plan in")


@pytest.mark.parametrize("path", ["/nowhere/at/all", __file__])
def test_inspecting_what_is_neither_store_nor_checkpoint_is_refused(capsys, path):
    """`inspect` takes anything, and tells what it is not."""
    assert command("inspect", path) == 2
    assert path in capsys.readouterr().err


# --- as a user sees it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "fact"),
    [
        ({"tiles": {"halo": [20, 20, 20]}}, "receptive radius"),
        ({"input": {"url": "/nowhere"}}, "there is nothing there"),
    ],
    ids=["halo short", "missing store"],
)
def test_the_command_itself_refuses(run, halotile, keys, fact):
    """The whole way through the process: status, standard error, nothing else."""
    refused = halotile("run", run.having(**keys).yaml)
    assert_refused(run, refused.wait(), refused.error, fact)
    assert refused.error.startswith("halotile: refused: ")


def test_a_usage_error_ends_the_command_with_status_two(halotile):
    """Not with 1, which says that a run failed."""
    refused = halotile("run")
    assert refused.wait() == 2
    assert "Traceback" not in refused.error


def test_help_imports_neither_torch_nor_prefect_nor_dask():
    """Help that takes five seconds is not asked for."""
    script = (
        "import sys\nfrom flows.commands.app import app\n"
        "for arguments in (['--help'], ['run', '--help'], ['--version']):\n"
        "    app(arguments, exit_on_error=False, result_action='return_value')\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    imported = set(json.loads(found.stderr.splitlines()[-1].replace("'", '"')))
    assert imported.isdisjoint({"torch", "prefect", "dask", "distributed", "zarr", "numpy", "pydantic"})
    assert "Exit status: 0 done, 1 failed, 2 refused, 3 verification failed, 130 interrupted." in " ".join(
        found.stdout.split()
    )
    assert all(name in found.stdout for name in ("plan", "run", "verify", "inspect", "--set"))

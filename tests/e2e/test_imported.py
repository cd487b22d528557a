"""Networks of other layouts, from the file that their library wrote to stitched tiles: equal to one pass of the module itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import stages
from pipeline.core.network.unet import Architecture
from pipeline.core.plan import Plan
from pipeline.errors import ModelError
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.networks.windows import WindowPredictor
from pipeline.planning import network
from tests.e2e.test_run import command
from tests.networks.network_cases import NETWORKS, Deep, Residual, randomise, save_program
from tests.pipeline_cases import Run, done_entries, make_run, random_volume, stored_objects

EQUAL = 1e-5
"""Of the output's range, float32."""

VOLUMES = {
    "residual": (29, 38, 45),
    "planar": (2, 5, 70, 91),
    "valid": (25, 30, 41),
    "odd": (25, 30, 41),
    "aligned": (19, 38, 45),
    "deep": (19, 35, 45),
}
CORES = {
    "residual": [16, 16, 16],
    "planar": [2, 32, 32],
    "valid": [8, 16, 16],
    "odd": [8, 16, 16],
    "aligned": [8, 16, 16],
    "deep": [16, 16, 16],
}


def imported_run(folder, name, capsys) -> Run:
    """A run of tiles by an imported network: its library's file, `halotile import`, and the YAML of any run."""
    network = randomise({**NETWORKS, "deep": Deep}[name]()).float()
    save_program(folder / "net.pt2", network)
    assert command("import", folder / "net.pt2", folder / "net.safetensors") == 0
    shown = capsys.readouterr().out
    assert "imported" in shown
    assert "graph against program" in shown
    volume = random_volume(VOLUMES[name], "uint8", 0)
    run = make_run(
        folder,
        architecture=Architecture(3, 1, 1),
        shape=volume.shape,
        volume=volume,
        model={"checkpoint": str(folder / "net.safetensors")},
        tiles={"core": CORES[name]},
        compute={"dtype": "float32"},
    )
    content = {**run.content, "model": {"checkpoint": str(folder / "net.safetensors")}}
    run.yaml.write_text(json.dumps(content))
    return Run(run.folder, content, network, volume)


def whole_pass(run: Run) -> np.ndarray:
    """The module's own pass over the whole volume, mirrored as the promise defines it; (K, Z, Y, X)."""
    graph = load_checkpoint(run.content["model"]["checkpoint"]).architecture
    volume = run.volume.astype(np.float32) / 255
    volume = volume if volume.ndim == 4 else volume[np.newaxis]
    grid = run.plan.grid
    pads = [(0, 0)]
    for axis, extent in enumerate(volume.shape[1:]):
        if graph.padding == "same":
            pads.append((0, -extent % graph.stride[axis]))
        else:
            window = grid.window(axis, 0, extent)
            pads.append((-window.start, window.stop - extent))
    x_CZYX = torch.from_numpy(np.pad(volume, pads, mode="reflect"))
    with torch.inference_mode():
        planes = graph.ndim == 2
        y = run.network(x_CZYX.transpose(0, 1)).transpose(0, 1) if planes else run.network(x_CZYX[None])[0]
    return y[(slice(None), *(slice(0, n) for n in volume.shape[1:]))].numpy()


def difference(run: Run) -> float:
    """Of the output and the whole pass, of the range."""
    expected = whole_pass(run)
    output = run.array()
    return float(np.abs(output.reshape(expected.shape) - expected).max() / np.ptp(expected))


@pytest.mark.parametrize("name", NETWORKS)
def test_tiles_of_an_imported_network_are_one_pass_of_the_module(name, pooled, tmp_path, capsys):
    """Strides, sums and transposed convolutions of MONAI, poolings of 2D encoders, crops of an unpadded network, one that loses an odd number of voxels, aligned corners."""
    run = imported_run(tmp_path, name, capsys)
    assert command("run", run.yaml, "--no-prefect") == 0
    assert len(run.plan.grid) > 8
    assert difference(run) <= EQUAL
    shown = capsys.readouterr().out
    assert f"{run.plan.model.architecture.ndim}D, imported" in shown
    assert ("coordinates are those of the whole volume" in shown) == (name == "aligned")
    assert command("verify", run.yaml) == 0


def test_a_network_that_takes_no_odd_volume_sees_it_mirrored_to_legal_extents(pooled, tmp_path, capsys):
    """At its far ends, as our own network does: it is the module's pass over that. The module refuses the volume itself; and where zeros lay there
    instead, the last voxels would be others."""
    run = imported_run(tmp_path, "deep", capsys)
    volume = torch.from_numpy(run.volume.astype(np.float32) / 255)[None, None]
    with torch.inference_mode(), pytest.raises(RuntimeError, match="must match the size"):
        run.network(volume)
    assert command("inspect", tmp_path / "net.safetensors") == 0
    assert "multiples of 8 x 8 x 8; a volume of others is mirrored to them" in capsys.readouterr().out
    assert command("run", run.yaml, "--no-prefect") == 0
    assert run.plan.model.architecture.stride == (8, 8, 8)
    assert difference(run) <= EQUAL
    with torch.inference_mode():
        zeros = run.network(torch.nn.functional.pad(volume, (0, 3, 0, 5, 0, 5)))[0, :, :19, :35, :45].numpy()
    assert np.abs(run.array().reshape(zeros.shape) - zeros).max() / np.ptp(zeros) > 1e-3


def test_a_halo_that_is_one_stride_short_shows_seams(pooled, tmp_path, capsys, monkeypatch):
    """The negative control: the same run, whose tiles see less, is far from the pass."""
    run = imported_run(tmp_path, "residual", capsys)
    stages.plan(run.now)
    plan = run.plan
    assert plan.halo == (6, 6, 6)
    assert plan.grid.margin == (5, 5, 5)
    volume = (run.volume.astype(np.float32) / 255)[np.newaxis]
    tile = plan.grid.tile(0)
    exact = predicted(plan, run, tile, volume)
    np.testing.assert_allclose(exact, of(whole_pass(run), tile), atol=EQUAL)
    short = predicted(plan, run, tile, volume, less=2)
    assert np.abs(short - exact).max() > 1e-4


def of(array, tile):
    """The tile's core."""
    return array[(slice(None), *(slice(a, b) for a, b in zip(tile.core.start, tile.core.stop, strict=True)))]


def predicted(plan: Plan, run: Run, tile, volume, *, less: int = 0) -> np.ndarray:
    """One tile, of a volume that is zero but for what a halo so much narrower would see."""
    seen = np.zeros_like(volume)
    around = tuple(
        slice(max(a - m + less, 0), b + m - less)
        for a, b, m in zip(tile.core.start, tile.core.stop, plan.grid.margin, strict=True)
    )
    seen[(slice(None), *around)] = volume[(slice(None), *around)]
    predictor = WindowPredictor(load_checkpoint(plan.model.checkpoint), plan)
    window = [slice(a, b) for a, b in zip(tile.window.start, tile.window.stop, strict=True)]
    slabs = [
        (seen * 255)[:, span.start : span.stop, window[1], window[2]].astype(np.uint8) for span in predictor.reads(tile)
    ]
    ((_, values),) = predictor.predict(tile, slabs)
    return values


def test_a_plan_of_an_imported_network_is_stored_whole(tmp_path, capsys):
    """With its graph: whoever reads the plan needs no other file to know its tiles. The fingerprint covers it."""
    run = imported_run(tmp_path, "residual", capsys)
    stages.plan(run.now)
    plan = run.plan
    again = Plan.from_json(plan.to_json())
    assert (again, again.fingerprint) == (plan, plan.fingerprint)
    assert "conv_transpose3d" in plan.to_json()
    other = imported_run_of(run, Residual, seed=1)
    with pytest.raises(ModelError, match="changed after the plan was made"):
        stages.infer(other.now)


def imported_run_of(run: Run, kind, seed: int) -> Run:
    """The same run after somebody put another network of the layout at its place."""
    network = randomise(kind(), seed).float()
    save_program(run.folder / "net.pt2", network)
    assert command("import", run.folder / "net.pt2", run.folder / "net.safetensors") == 0
    return Run(run.folder, run.content, network, run.volume)


def direct_run(folder, **model) -> Run:
    """A run that names the library's own file; import and run are one command."""
    network = randomise(Residual()).float()
    save_program(folder / "net.pt2", network)
    volume = random_volume((17, 22, 25), "uint8", 0)
    run = make_run(
        folder,
        architecture=Architecture(3, 1, 1),
        shape=volume.shape,
        volume=volume,
        tiles={"core": [16, 16, 16]},
        compute={"dtype": "float32"},
    )
    content = {**run.content, "model": {"checkpoint": str(folder / "net.pt2"), **model}}
    run.yaml.write_text(json.dumps(content))
    return Run(run.folder, content, network, volume)


def halve(run: Run) -> None:
    """Forget the second half of what was done."""
    lines = run.directory.ledger_path.read_bytes().splitlines(keepends=True)
    run.directory.ledger_path.write_bytes(b"".join(lines[: len(lines) // 2]))


def test_a_run_names_the_file_of_a_library_and_keeps_what_came_of_it(pooled, tmp_path, capsys, monkeypatch):
    """Workers and resumed runs read what is kept, and never the library; another file is another network."""
    run = direct_run(tmp_path)
    assert command("run", run.yaml, "--no-prefect") == 0
    shown = capsys.readouterr().out
    assert "from a program of torch.export (.pt2)" in shown
    assert "tile against whole" in shown
    kept = load_checkpoint(run.directory.network_path)
    assert (kept.sha256, kept.architecture) == (run.plan.model.sha256, run.plan.model.architecture)
    content = {**run.content, "model": {"checkpoint": str(run.directory.network_path)}}
    assert difference(Run(run.folder, content, run.network, run.volume)) <= EQUAL
    assert command("verify", run.yaml) == 0
    wanted = stored_objects(run.output)

    halve(run)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.planning.network.import_network", refuse)
        assert command("run", run.yaml, "--no-prefect") == 0
    assert stored_objects(run.output) == wanted

    halve(run)
    run.directory.network_path.write_bytes(b"damaged")
    forget_imports()
    assert command("run", run.yaml, "--no-prefect") == 0
    assert stored_objects(run.output) == wanted
    assert load_checkpoint(run.directory.network_path).sha256 == kept.sha256

    capsys.readouterr()
    save_program(tmp_path / "net.pt2", randomise(Residual(), seed=1).float())
    assert command("run", run.yaml, "--no-prefect") == 2
    assert "model.weights" in capsys.readouterr().err
    assert stored_objects(run.output) == wanted


def test_a_file_of_a_library_is_inspected_as_it_lies(tmp_path, capsys):
    """What a user asks first: which halo does it need, and can it be tiled at all?"""
    for kind, legal in ((Residual, "multiples of 2 x 2 x 2"), (NETWORKS["valid"], "and by 1 x 2 x 2 more")):
        save_program(tmp_path / "net.pt2", randomise(kind()).float())
        assert command("inspect", tmp_path / "net.pt2") == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert legal in shown.partition("legal extents ")[2].partition(" multiply-adds ")[0]
        assert "a program of torch.export (.pt2)" in shown
        assert "tile against whole" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pt2"]
    assert command("inspect", tmp_path / "net.pt2", "--class", "a.Net", "--arguments", "[1]") == 2
    assert "expected a JSON object" in capsys.readouterr().err


def refuse(*_, **__):
    """In place of an import that must not be."""
    raise AssertionError("imported again")


def forget_imports() -> None:
    """As a new process would."""
    network._imported.cache_clear()


@pytest.mark.network
def test_a_run_that_goes_from_the_checkpoint_to_the_librarys_file_goes_on(pooled, tmp_path):
    """They are one network, whichever it is read from; the tiles stay."""
    run = direct_run(tmp_path)
    assert command("import", tmp_path / "net.pt2", tmp_path / "net.safetensors") == 0
    assert command("run", run.yaml, "--no-prefect", "--set", f"model.checkpoint={tmp_path / 'net.safetensors'}") == 0
    assert not run.directory.network_path.exists()
    wanted = stored_objects(run.output)
    halve(run)
    assert command("run", run.yaml, "--no-prefect") == 0
    assert stored_objects(run.output) == wanted
    assert run.directory.network_path.exists()


def test_keys_that_do_not_go_with_the_file_are_refused(tmp_path, capsys):
    """An output that is not there, the padding of a graph, an output of a checkpoint of ours, a class beside a program."""
    run = direct_run(tmp_path)
    ours = make_run(tmp_path / "ours", architecture=Architecture(3, 1, 1), shape=(8, 8, 8)).content["model"][
        "checkpoint"
    ]
    for keys, why in {
        "model.output=1": "gives 1 maps, and output 1 was asked for",
        "model.padding=valid": "whose graph says 'same'",
        "model.architecture.class=monai.networks.nets.UNet": "holds its own network",
        "model.architecture.class=UNet": "expected a package and a class",
        f"model.checkpoint={ours} model.output=1": "has one output",
        "model.checkpoint=none.pt2 model.architecture.class=monai.networks.nets.UNet": "no such file",
    }.items():
        assert command("plan", run.yaml, *(part for key in keys.split() for part in ("--set", key))) == 2
        assert why in capsys.readouterr().err
        assert not run.directory.path.exists()


@pytest.mark.network
def test_a_run_resumes_with_the_same_class_and_without_the_library(pooled, tmp_path, monkeypatch, capsys):
    """`model.architecture`: built once, when the run is planned."""
    folder = tmp_path / "installed" / "biapy"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(
        (Path(__file__).parents[1] / "networks" / "network_cases.py").read_text()
        + "\nclass Wide(Residual):\n    def __init__(self, double=None):\n        super().__init__()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))
    run = direct_run(tmp_path, architecture={"class": "biapy.Wide", "arguments": {"double": None}})
    torch.save(run.network.state_dict(), tmp_path / "net.pt2")
    assert command("run", run.yaml, "--no-prefect") == 0
    assert "from a class of biapy, biapy.Wide" in capsys.readouterr().out
    wanted = stored_objects(run.output)
    halve(run)
    forget_imports()
    monkeypatch.delenv("PYTHONPATH")
    assert command("run", run.yaml, "--no-prefect") == 0
    assert stored_objects(run.output) == wanted
    assert command("plan", run.yaml, "--set", "output.url=" + str(tmp_path / "other.zarr")) == 2
    assert "'biapy', which is not installed here" in capsys.readouterr().err


def test_a_run_of_an_imported_network_resumes_with_the_same_bytes(pooled, tmp_path, capsys):
    """Its ledger, tiles and checksums are those of any run."""
    run = imported_run(tmp_path, "residual", capsys)
    assert command("run", run.yaml, "--no-prefect") == 0
    wanted = stored_objects(run.output)
    lines = run.directory.ledger_path.read_bytes().splitlines(keepends=True)
    run.directory.ledger_path.write_bytes(b"".join(lines[: len(lines) // 2]))
    assert command("run", run.yaml, "--no-prefect") == 0
    assert stored_objects(run.output) == wanted
    assert sorted(set(done_entries(run.directory))) == list(range(len(run.plan.grid)))


def test_what_is_for_our_unet_alone_refuses_an_imported_network(tmp_path, capsys):
    """A package of bioimage.io is made of our source."""
    run = imported_run(tmp_path, "residual", capsys)
    assert (
        command("export", run.content["model"]["checkpoint"], tmp_path / "package.zip", "--name", "n", "--author", "a")
        == 2
    )
    assert "imported network" in capsys.readouterr().err
    assert command("inspect", run.content["model"]["checkpoint"]) == 0
    shown = capsys.readouterr().out
    assert "4 x 4 x 4 before, 5 x 5 x 5 after" in shown

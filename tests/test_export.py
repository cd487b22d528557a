import ast
import gc
import io
import os
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.core.network.receptive import least_halo
from pipeline.core.network.unet import Architecture
from pipeline.core.normalization import Normalization
from pipeline.errors import ModelError
from pipeline.export.package import export
from pipeline.export.source import architecture_source
from pipeline.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pipeline.networks.model import UNet, initialise

core = pytest.importorskip("bioimageio.core", reason="the extra 'export' is not installed")
digest_spec = pytest.importorskip("bioimageio.core.digest_spec")
spec = pytest.importorskip("bioimageio.spec")

DEMO = Path(__file__).resolve().parents[1] / "configs" / "demo" / "em-membranes-3d.safetensors"
TORCHSCRIPT = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning")  # the format knows nothing newer
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # bioimageio leaves that to the collector

SAME = Architecture(2, 1, 4)
VALID = Architecture(2, 2, 4, padding="valid")
CLASSES = Architecture(3, 1, 2, in_channels=2, out_channels=3)


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    """Bioimageio collects garbage several times a test, which takes seconds where other tests have left much in memory."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _collected():
    """What bioimageio left open is closed here, where that may pass, and not in another file's test."""
    yield
    gc.collect()


def saved(folder, architecture, mode="minmax", **said):
    """A checkpoint of random weights whose logits spread, in a file."""
    state = initialise(UNet(architecture), seed=1).state_dict()
    rule = None if mode is None else Normalization(mode, low=2.0, high=98.0)
    folder.mkdir(exist_ok=True)
    save_checkpoint(folder / "tiny-net.safetensors", Checkpoint(architecture, state, normalization=rule, **said))
    return folder / "tiny-net.safetensors"


def values(dtype, *shape):
    """Skewed values of a type."""
    random = np.random.default_rng(3).gamma(2.0, 30.0, shape)
    return random.astype(dtype) if np.dtype(dtype).kind == "f" else np.minimum(random, 255).astype(dtype)


def found_by_bioimageio(package):
    """What bioimageio.core finds."""
    return core.test_model(package, devices=["cpu"])


def described(package):
    """The description, as bioimageio.spec reads it."""
    return spec.load_description(package, format_version="latest")


def space(tensor):
    """Spatial axes by name."""
    return {str(axis.id): axis for axis in tensor.axes if axis.type == "space"}


# --- bioimage.io's own tests ---------------------------------------------------------------------------------------------

OFFLINE = """
import pathlib, socket
def refused(*args, **kwargs):
    pathlib.Path({marker!r}).touch()
    raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = refused
socket.getaddrinfo = socket.create_connection = refused
"""


@pytest.mark.slow
def test_the_demos_package_passes_the_real_command_offline(tmp_path):
    """What a user runs before an upload passes on a machine without a network, and does not even try it."""
    package = export(DEMO, tmp_path / "demo.zip", license="CC-BY-4.0", authors=["A. Author"])
    marker, site = tmp_path / "tried", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(OFFLINE.format(marker=str(marker)))
    env = os.environ | {
        "PYTHONPATH": str(site),
        "BIOIMAGEIO_CACHE_PATH": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "bioimageio.core", "test", str(package)]
    asked = {"env": env, "cwd": tmp_path, "capture_output": True, "text": True, "timeout": 280}
    done = subprocess.run(command, check=False, **asked)
    assert done.returncode == 0, done.stdout + done.stderr
    for form in ("pytorch_state_dict", "torchscript"):
        assert f"Run {form} inference" in done.stdout
    assert not marker.exists()
    try_it = [sys.executable, "-c", "import socket; socket.create_connection(('127.0.0.1', 9))"]
    tried = subprocess.run(try_it, check=False, **asked)
    assert tried.returncode != 0
    assert marker.exists(), "the guard guards nothing"


CASES = {
    "same, uint8 by its type": (SAME, "minmax", values("uint8", 40, 50)),
    "same, int16 by its type": (SAME, "minmax", values("int16", 1, 40, 50) - 100),
    "same, floats by their range": (SAME, "minmax", values("float32", 40, 50)),
    "valid, uint16 by percentiles": (VALID, "percentile", values("uint16", 70, 80)),
    "valid, float64 by its deviation": (VALID, "zscore", values("float64", 70, 80)),
    "classes of two channels, as they are": (CLASSES, "none", values("float32", 2, 20, 24, 28) / 50),
    "classes of two channels, of noise": (CLASSES, "zscore", None),
    "a checkpoint that says no rule": (SAME, None, None),
    "a stack for a 2D network": (SAME, "percentile", values("uint8", 1, 5, 40, 50)),
}


@TORCHSCRIPT
@pytest.mark.parametrize(
    ("case", "suffix"), [(case, ".zip" if number == 0 else "") for number, case in enumerate(CASES)]
)
def test_a_package_reproduces_our_output(tmp_path, case, suffix):
    """Other software normalises, pads and activates as a run does, by both kinds of weights and at any extents."""
    architecture, mode, sample = CASES[case]
    package = export(saved(tmp_path, architecture, mode), tmp_path / f"p{suffix}", sample=sample, license="MIT")
    assert package.is_file() == bool(suffix)
    summary = found_by_bioimageio(package)
    assert summary.status == "passed", summary.format()
    names = [detail.name for detail in summary.details]
    for form in ("pytorch_state_dict", "torchscript"):
        assert f"Reproduce test outputs from test inputs ({form})" in names
        assert sum(name.startswith(f"Run {form} inference") for name in names) == 6


def test_the_test_tensors_are_a_runs(tmp_path):
    """The expected output is not the package's own word: it is our network's, of values normalised as a run does."""
    path = saved(tmp_path, SAME)
    package = export(path, tmp_path / "p", sample=values("uint8", 40, 50), license="MIT")
    given, expected = np.load(package / "test_input.npy"), np.load(package / "test_output.npy")
    assert given.dtype == np.uint8
    np.testing.assert_array_equal(given[0, 0], values("uint8", 40, 50))
    with torch.inference_mode():
        logits = load_checkpoint(path).build()(torch.from_numpy(given.astype(np.float32) / 255))
    np.testing.assert_allclose(expected, torch.sigmoid(logits).numpy(), atol=1e-6)
    assert expected.max() - expected.min() > 0.05, "outputs that are all alike would test nothing"


@TORCHSCRIPT
@pytest.mark.parametrize("honest", [True, False], ids=["with its new digest", "with the old digest"])
def test_changed_weights_fail(tmp_path, honest):
    """The negative control: a package of other weights than the expected output came from does not pass."""
    package = export(saved(tmp_path, SAME), tmp_path / "p", sample=values("uint8", 40, 50), license="MIT")
    assert found_by_bioimageio(package).status == "passed"
    weights = package / "weights.pt"
    old = sha256(weights.read_bytes()).hexdigest()
    state = torch.load(weights, weights_only=True)
    state["decoder1_1.0.weight"] *= -1
    torch.save(state, weights)
    if honest:
        description = (package / "rdf.yaml").read_text()
        assert old in description
        (package / "rdf.yaml").write_text(description.replace(old, sha256(weights.read_bytes()).hexdigest()))
    summary = found_by_bioimageio(package)
    assert summary.status != "passed"
    failed = {detail.name for detail in summary.details if detail.status == "failed"}
    assert ("Reproduce test outputs from test inputs (pytorch_state_dict)" in failed) == honest, failed


# --- tiles ---------------------------------------------------------------------------------------------------------------


def predicted_in_tiles(package, array):
    """The package's answer of bioimageio.core, tile by tile, each as small as the package allows."""
    model = described(package)
    sample = digest_spec.create_sample_for_model(model, inputs={"input": array})
    with core.create_prediction_pipeline(model, weight_format="pytorch_state_dict", devices=["cpu"]) as pipeline:
        result = pipeline.predict_sample_with_blocking(sample, ns=0)
    return result.members["output"].data.to_numpy()


@pytest.mark.parametrize(("short", "equal"), [(0, True), (2, False)], ids=["as declared", "one stride short"])
def test_tiles_with_the_declared_halo_equal_one_pass(tmp_path, short, equal):
    """The halo is what other software crops: as declared it leaves no seam, one stride less leaves one."""
    path = saved(tmp_path, SAME)
    package = export(path, tmp_path / "p", sample=values("uint8", 40, 50), license="MIT")
    halo = least_halo(SAME.graph)[2]
    description = (package / "rdf.yaml").read_text()
    assert description.count(f"halo: {halo}\n") == 2
    (package / "rdf.yaml").write_text(description.replace(f"halo: {halo}\n", f"halo: {halo - short}\n"))
    array = values("uint8", 1, 1, 60, 72)
    with torch.inference_mode():
        whole = torch.sigmoid(load_checkpoint(path).build()(torch.from_numpy(array.astype(np.float32) / 255))).numpy()
    inside = (..., slice(halo, -halo), slice(halo, -halo))  # at the ends bioimageio mirrors, and a run does not
    difference = np.abs(predicted_in_tiles(package, array)[inside] - whole[inside]).max()
    assert (difference < 1e-5) == equal, difference


def test_same_padding_declares_legal_extents_and_the_true_halo(tmp_path):
    """A halo by guess is a seam, or work for nothing."""
    package = export(saved(tmp_path, Architecture(2, 2, 2)), tmp_path / "p", license="MIT")
    model = described(package)
    for axis in "yx":
        given, made = space(model.inputs[0])[axis], space(model.outputs[0])[axis]
        assert (given.size.min, given.size.step, given.concatenable) == (52, 4, True)
        assert (made.halo, made.size.offset) == (24, 0)


def test_valid_padding_declares_what_each_side_loses_and_no_halo(tmp_path):
    """The network crops its halo itself; and blocks edge to edge would be off the stride lattice."""
    model = described(export(saved(tmp_path, VALID), tmp_path / "p", license="MIT"))
    assert list(space(model.inputs[0])) == ["y", "x"]
    for axis in "yx":
        given, made = space(model.inputs[0])[axis], space(model.outputs[0])[axis]
        assert (given.size.min, given.size.step, given.concatenable) == (44, 4, False)
        assert made.size.offset == -40
        assert not hasattr(made, "halo")


@pytest.mark.parametrize(
    ("size", "unit", "scales"),
    [
        ((8.0, 8.0), "nanometer", [8.0, 8.0]),
        ((40.0, 4.5, 4.5), "picometer", [4500.0, 4500.0]),
        ((1.23456, 0.1), "femtometer", [1234560.0, 100000.0]),
        (None, None, [1.0, 1.0]),
    ],
)
def test_voxel_sizes_are_whole_numbers_of_their_unit(tmp_path, size, unit, scales):
    """The format multiplies and divides extents by them: 0.1 nm would not give every extent back."""
    model = described(export(saved(tmp_path, SAME, voxel_size_nm=size), tmp_path / "p", license="MIT"))
    for tensor in (*model.inputs, *model.outputs):
        axes = space(tensor).values()
        assert [axis.unit for axis in axes] == [unit] * 2
        assert [axis.scale for axis in axes] == scales


# --- files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [SAME, VALID, CLASSES], ids=["same", "valid", "classes"])
def test_the_source_needs_nothing_but_torch(architecture):
    """Who opens the package has no Halotile; and the gathered source is the network that was trained."""
    source = architecture_source()
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert {name.partition(".")[0] for name in names} <= {"torch", *sys.stdlib_module_names}
    module = type(sys)("gathered_unet")
    sys.modules[module.__name__] = module  # as bioimageio.core does: dataclasses look their module up
    try:
        exec(compile(source, "unet.py", "exec"), module.__dict__)
        theirs = module.unet(**architecture.to_dict())
    finally:
        del sys.modules[module.__name__]
    ours = initialise(UNet(architecture), seed=2).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.rand(1, architecture.in_channels, *[44] * architecture.ndim)
    with torch.inference_mode():
        assert torch.equal(theirs.eval()(x), ours(x))


@TORCHSCRIPT
@pytest.mark.parametrize("architecture", [SAME, VALID, CLASSES], ids=["same", "valid", "classes"])
def test_the_trace_is_general_in_batch_and_extents(tmp_path, architecture):
    """A trace that bakes in the extents it saw would crop skips wrongly at any other."""
    path = saved(tmp_path, architecture)
    script = torch.jit.load(export(path, tmp_path / "p", license="MIT") / "weights.torchscript.pt")
    ours = load_checkpoint(path).build()
    for batch, first, second in ((1, 44, 44), (2, 48, 60), (3, 64, 52)):
        extents = (first, second) if architecture.ndim == 2 else (first // 2, second // 2, 20)
        x = torch.rand(batch, architecture.in_channels, *extents)
        assert torch.equal(script(x), ours(x))


def contents(data):
    """Every file's bytes, those inside archives included."""
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield from contents(archive.read(name))
    yield data


def test_a_package_names_no_path_of_the_machine_that_made_it(tmp_path):
    """TorchScript's debug records do, and packages are published."""
    package = export(saved(tmp_path, SAME), tmp_path / "p.zip", license="MIT")
    places = [
        str(tmp_path).encode(),
        str(Path(UNet.__module__.partition(".")[0]).resolve()).encode(),
        sys.prefix.encode(),
    ]
    for data in contents(package.read_bytes()):
        assert not [place for place in places if place in data]


def test_the_documentation_says_what_the_format_cannot(tmp_path):
    """Provenance, figures, the voxel size, the true radius, and whose statistics."""
    provenance = {"steps": 1500, "data": "some-volume", "validation": {"dice": 0.7881}}
    path = saved(tmp_path, VALID, "zscore", provenance=provenance, voxel_size_nm=(4.0, 4.0))
    package = export(path, tmp_path / "p", license="MIT", documentation="For membranes of one stack.", name="Fine name")
    text = (package / "README.md").read_text()
    told = (
        "# Fine name\n\nFor membranes of one stack.",
        '"steps": 1500',
        "some-volume",
        "| dice | 0.7881 |",
        "4 x 4 nm",
    )
    exact = ("stride 4, 4", "receptive radius 20, 20", "lost a side 20, 20", "statistics of the whole volume")
    for part in (*told, *exact):
        assert part in text
    assert text.startswith("# Fine name")


def test_the_cover_shows_input_beside_output(tmp_path):
    """A collection shows it; one of another shape than 2:1 is refused there."""
    package = export(saved(tmp_path, SAME), tmp_path / "p", sample=values("uint8", 40, 50), license="MIT")
    with Image.open(package / "cover.png") as cover:
        assert cover.width == 2 * cover.height
        left, right = (np.asarray(cover)[:, part] for part in (np.s_[: cover.height], np.s_[cover.height :]))
    assert left.std() > 1
    assert right.std() > 1
    assert not np.array_equal(left, right)


def test_licence_and_authors_are_the_checkpoints_where_it_names_them(tmp_path):
    """What the training knew need not be typed again."""
    path = saved(tmp_path, SAME, provenance={"license": "CC0-1.0", "authors": "B. Author"})
    model = described(export(path, tmp_path / "p"))
    assert str(model.license) == "CC0-1.0"
    assert [author.name for author in model.authors] == ["B. Author"]
    assert [author.name for author in described(export(path, tmp_path / "q", authors=["C"])).authors] == ["C"]


# --- refusals ------------------------------------------------------------------------------------------------------------

REFUSALS = {
    "no licence": ({"license": None}, ["licence", "tiny-net.safetensors", "CC-BY-4.0"]),
    "no such licence": ({"license": "do what you like"}, ["license", "bioimageio.spec"]),
    "a name that is none": ({"name": "a/b: c"}, ["name", "bioimageio.spec"]),
    "a sample too small": ({"sample": values("uint8", 16, 50)}, ["(16, 50)", "(18, 18)", "larger"]),
    "too many channels": ({"sample": values("uint8", 2, 40, 50)}, ["(2, 40, 50)", "1 channel(s)"]),
    "too few axes": ({"sample": values("uint8", 50)}, ["(50,)", "(y, x)"]),
    "half floats": ({"sample": values("float16", 40, 50)}, ["float16", "float32"]),
    "truth values": ({"sample": values("uint8", 40, 50) > 9}, ["bool", "uint8"]),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_cannot_be_a_package_is_refused_and_leaves_nothing(tmp_path, refusal):
    """Half a package would be uploaded by someone."""
    asked, parts = REFUSALS[refusal]
    path = saved(tmp_path / "from", SAME)
    with pytest.raises(ModelError) as refused:
        export(path, tmp_path / "to" / "p.zip", **{"license": "MIT", **asked})
    assert all(part in str(refused.value) for part in parts), refused.value
    assert not (tmp_path / "to").exists() or not list((tmp_path / "to").iterdir())


def test_a_target_that_exists_is_refused(tmp_path):
    """An export never replaces what someone may have uploaded from."""
    target = tmp_path / "p.zip"
    target.write_text("mine")
    with pytest.raises(ModelError, match="exists"):
        export(saved(tmp_path, SAME), target, license="MIT")
    assert target.read_text() == "mine"


def test_without_bioimageio_the_extra_is_named(tmp_path, monkeypatch):
    """The package is optional: whoever lacks it learns what to install."""
    monkeypatch.setitem(sys.modules, "bioimageio", None)
    with pytest.raises(ModelError, match=r"pip install .*-e '\.\[export\]'"):
        export(DEMO, tmp_path / "p.zip", license="MIT")

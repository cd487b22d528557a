"""Archives of TorchScript: converted in a child, equal to themselves, and never run before they are looked at."""

import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.networks.importing import torchscript
from pipeline.networks.importing.archive import is_archive
from pipeline.networks.importing.network import import_network, kind_of
from pipeline.networks.importing.onnx import is_onnx
from pipeline.networks.importing.proof import prove
from pipeline.networks.importing.torchscript import is_torchscript, read_torchscript
from tests.networks.network_cases import NETWORKS, randomise, save_program

EQUAL = 1e-9


@pytest.fixture(autouse=True)
def _quiet():
    """torch says at each call that TorchScript is old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def traced(network, path, shape=None):
    """An archive of a network."""
    torch.jit.trace(network, torch.zeros(shape or network.shape)).save(str(path))
    return path


@pytest.mark.parametrize(
    "name", ["valid", *(pytest.param(name, marks=pytest.mark.network) for name in ("residual", "planar"))]
)
def test_an_archive_is_the_network_that_was_traced(name, tmp_path):
    """Its graph against the archive itself, run by torch in float64; a tile against the whole."""
    path = traced(randomise(NETWORKS[name]()).float(), tmp_path / "net")
    assert is_torchscript(path)
    assert not is_archive(path)
    assert not is_onnx(path)
    assert kind_of(path).name == "an archive of TorchScript"
    imported = read_torchscript(path)
    proof = prove(imported)
    assert max(proof.graph, proof.origin, proof.tile) < EQUAL
    assert imported.origin.image[1] != imported.program.image[1]


@pytest.mark.network
def test_what_is_scripted_is_imported_where_its_branches_follow_from_sizes(tmp_path):
    """And a graph that differs from the archive is found by it: the negative control."""
    torch.jit.script(randomise(NETWORKS["residual"]()).float()).save(str(tmp_path / "net"))
    imported = read_torchscript(tmp_path / "net")
    assert prove(imported).origin < EQUAL
    weights = {name: tuple(1.001 * w for w in tensors) for name, tensors in imported.weights.items()}
    program = type(imported.program)(
        imported.program.image, {k: 1.001 * w for k, w in imported.program.weights.items()}, imported.program.calls, imported.program.output
    )  # fmt: skip
    with pytest.raises(ModelError, match="does not compute what the network does"):
        prove(type(imported)(imported.graph, weights, imported.ndim, program, imported.origin))


def test_a_program_of_torch_export_is_no_such_archive(tmp_path):
    """Both are zips."""
    assert not is_torchscript(save_program(tmp_path / "net.pt2", randomise(NETWORKS["residual"]())))
    (tmp_path / "text").write_text("PK")
    assert not is_torchscript(tmp_path / "text")


# --- hostile files --------------------------------------------------------------------------------------------------------


class Writes(nn.Module):
    """A network whose archive writes a file when it is run."""

    shape = (1, 1, 32, 32)

    def __init__(self, marker: str):
        super().__init__()
        self.conv, self.marker = nn.Conv2d(1, 1, 3, padding=1), marker

    def forward(self, x):
        torch.save(x, self.marker)
        return self.conv(x)


class WritesOnLoading(nn.Module):
    """One whose archive does so when it is loaded."""

    shape = (1, 1, 32, 32)

    def __init__(self, marker: str):
        super().__init__()
        self.marker, self.kept = marker, torch.zeros(1)

    @torch.jit.export
    def __getstate__(self):
        return self.marker, self.kept, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]):
        self.marker = state[0]
        self.kept = state[1]
        self.training = state[2]
        torch.save(state[1], state[0])

    def forward(self, x):
        return x + self.kept


@pytest.mark.parametrize(("kind", "why"), [(Writes, "operation aten::save"), (WritesOnLoading, "__setstate__")])
def test_an_archive_that_writes_files_is_refused_before_it_can(kind, why, tmp_path):
    """The control: torch itself lets it."""
    marker, path = tmp_path / "marker", tmp_path / "net"
    torch.jit.script(kind(str(marker))).save(str(path))
    assert not marker.exists()
    with pytest.raises(ModelError, match=why):
        import_network(path)
    assert not marker.exists()
    module = torch.jit.load(str(path))
    if kind is Writes:
        module(torch.zeros(kind.shape))
    assert marker.exists()


class Marker:
    """Pickled, it makes a file of whoever unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "part",
    [
        "data.pkl",
        *(
            pytest.param(name, marks=pytest.mark.network)
            for name in ("constants.pkl", "traced_inputs.pkl", "debug_pkl")
        ),
    ],
)
def test_pickles_of_an_archive_run_nothing(part, tmp_path):
    """They are read by a reader that knows no Python. The control goes off."""
    marker, path = tmp_path / "marker", traced(randomise(NETWORKS["residual"]()).float(), tmp_path / "net")
    bomb = pickle.dumps(Marker(marker), protocol=2)
    pickle.loads(bomb)
    marker.unlink()
    changed, parts = tmp_path / "changed", 0
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        for member in old.infolist():
            parts += member.filename.endswith(part)
            new.writestr(member.filename, bomb if member.filename.endswith(part) else old.read(member))
    assert parts
    try:
        import_network(changed)
    except ModelError:
        assert part != "traced_inputs.pkl"  # which is of no use, and not read at all
    assert not marker.exists()


def test_a_torch_without_the_converter_says_so(tmp_path, monkeypatch):
    """It is private, and may go: by a stand-in that hides it from the child."""
    path = traced(randomise(NETWORKS["residual"]()).float(), tmp_path / "net")
    from pipeline.networks.importing import builder  # noqa: PLC0415 - to run it here

    monkeypatch.setitem(__import__("sys").modules, "torch._export.converter", None)
    allowed = sorted({word.strip("_") for word in (*torchscript.RULES, *torchscript.OF_WEIGHTS, *torchscript.OF_SIZES)})
    answer = builder.built(
        {"torchscript": str(path), "allowed": allowed, "sizes": [32], "steps": [16], "folder": str(tmp_path)}
    )
    assert "has no converter of TorchScript" in answer["error"]


@pytest.mark.network
def test_a_network_without_rules_is_refused_by_name(tmp_path):
    """As of any other file."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.PixelShuffle(2))
    with pytest.raises(ModelError, match="aten::pixel_shuffle"):
        import_network(traced(network, tmp_path / "net", (1, 1, 32, 32)))


@pytest.mark.network
def test_a_damaged_archive_is_refused_in_words(tmp_path):
    """Nothing of torch's own errors gets out unsaid."""
    path = traced(randomise(NETWORKS["residual"]()).float(), tmp_path / "net")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "cut", "w") as new:
        for member in old.infolist():
            if not member.filename.endswith("data/0"):
                new.writestr(member.filename, old.read(member))
    with pytest.raises(ModelError, match="cannot be imported"):
        import_network(tmp_path / "cut")

"""Packages of bioimage.io: what they declare is done as bioimageio.core does it, and nothing of theirs is believed or run."""

import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from pipeline.core.normalization import Normalization
from pipeline.errors import ModelError
from pipeline.networks.checkpoint import load_checkpoint, save_checkpoint
from pipeline.networks.importing import package_files
from pipeline.networks.importing.network import import_network
from pipeline.networks.importing.package_files import PackageFiles, is_package
from pipeline.networks.importing.processing import Step, Tensors, after, before
from tests.networks.network_cases import randomise, save_program
from tests.networks.package_cases import (
    DESCRIPTIONS,
    FixedShape,
    Small,
    digest,
    new_description,
    published,
    reference,
    write_package,
    zipped,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A network, and the file of its program."""
    network = randomise(Small()).float()
    return network, save_program(tmp_path_factory.mktemp("small") / "weights.pt2", network)


def step(version, name, **kwargs):
    """A step as YAML has it."""
    return {"id" if version == "0.5" else "name": name, **({"kwargs": kwargs} if kwargs else {})}


def image_of(dtype="float32"):
    """Values as a camera has them."""
    return np.random.default_rng(0).gamma(3, 20, Small.shape).clip(0, 255).astype(dtype)


PLAIN = {
    "zero_mean_unit_variance": lambda x, **_: (x - x.mean()) / x.std(),
    "fixed_zero_mean_unit_variance": lambda x, mean, std: (x - mean) / std,
    "ensure_dtype": lambda x, dtype: x.astype(dtype),
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True),
}
"""Steps of quick tests."""


def plain(described, network, image):
    """What a package publishes, by steps that are written out here."""

    def done(values, key):
        for one in described[key[0]][0][key[1]]:
            values = PLAIN[one["id"]](values, **one.get("kwargs", {}))
        return values

    given = done(image, ("inputs", "preprocessing")).astype(np.float32)
    return done(network(torch.from_numpy(given)).numpy(), ("outputs", "postprocessing"))


@pytest.fixture
def make(small, tmp_path):
    """Write a package with its published output."""
    network, program = small

    def write(version="0.5", first=(), last=(), dtype="float32", change=lambda _: None, publish=plain):
        weights = {"torchscript": {"source": "weights.pt2", "sha256": digest(program), "pytorch_version": "2.10"}}
        described = DESCRIPTIONS[version](list(first), list(last), weights, dtype=dtype)
        output = publish(described, network, image_of(dtype))
        change(described)
        return write_package(
            tmp_path / "package", described, image=image_of(dtype), output=output, weights__pt2=program
        )

    return write


ALL = ["channel", "y", "x"]
PROCESSING = {
    "nothing": ("0.5", [], [], Normalization(), "none"),
    "zscore, sigmoid": (
        "0.5",
        [step("0.5", "zero_mean_unit_variance", axes=ALL)],
        [step("0.5", "sigmoid")],
        Normalization("zscore"),
        "sigmoid",
    ),
    "percentiles, clipped, softmax": (
        "0.5",
        [
            step("0.5", "scale_range", axes=ALL, min_percentile=5, max_percentile=95),
            step("0.5", "clip", min=0.0, max=1.0),
        ],
        [step("0.5", "softmax", axis="channel")],
        Normalization("percentile", low=5, high=95),
        "softmax",
    ),
    "fixed, sigmoid and threshold": (
        "0.5",
        [step("0.5", "fixed_zero_mean_unit_variance", mean=60.0, std=30.0)],
        [step("0.5", "sigmoid"), step("0.5", "binarize", threshold=0.5), step("0.5", "ensure_dtype", dtype="uint8")],
        Normalization("fixed", 60.0, 1 / 30),
        "none",
    ),
    "fixed by channel, scaled": (
        "0.5",
        [step("0.5", "fixed_zero_mean_unit_variance", axis="channel", mean=[60.0, 50.0], std=[30.0, 20.0])],
        [step("0.5", "scale_linear", axis="channel", gain=[1.0, 2.0, -1.0], offset=[0.0, 1.0, 0.5])],
        Normalization(),
        "none",
    ),
    "scaled twice": (
        "0.5",
        [step("0.5", "scale_linear", gain=1 / 255, offset=-0.25), step("0.5", "scale_linear", gain=2.0, offset=0.5)],
        [step("0.5", "clip", min=0.0)],
        Normalization("fixed", 0.0, 2 / 255),
        "none",
    ),
    "0.4, measured": (
        "0.4",
        [step("0.4", "zero_mean_unit_variance", mode="per_sample", axes="cyx")],
        [step("0.4", "sigmoid")],
        Normalization("zscore"),
        "sigmoid",
    ),
    "0.4, fixed": (
        "0.4",
        [step("0.4", "zero_mean_unit_variance", mode="fixed", axes="cyx", mean=60.0, std=30.0)],
        [step("0.4", "clip", min=-1.0, max=1.0), step("0.4", "sigmoid")],
        Normalization("fixed", 60.0, 1 / 30),
        "none",
    ),
}


@pytest.mark.network
@pytest.mark.parametrize("name", PROCESSING)
def test_what_a_package_declares_is_done_as_bioimageio_core_does_it(make, name):
    """The published output is theirs; the rule, the activation and the nodes are ours."""
    version, first, last, rule, activation = PROCESSING[name]
    found = import_network(make(version=version, first=first, last=last, publish=reference))
    assert found.normalization.same_rule(rule) or (
        found.normalization.mode == rule.mode == "fixed"
        and np.allclose((found.normalization.offset, found.normalization.scale), (rule.offset, rule.scale), atol=1e-12)
    )
    assert found.activation == activation
    assert float(found.provenance["published test"].split()[0]) <= 1e-5


def test_another_rule_than_what_was_done_is_refused(make):
    """The negative control: the published test looks at processing too."""

    def other(described):
        described["inputs"][0]["preprocessing"][0]["kwargs"]["mean"] = 61.0

    package = make(first=[step("0.5", "fixed_zero_mean_unit_variance", mean=60.0, std=30.0)], change=other)
    with pytest.raises(ModelError, match=r"of the range off the published output \(1e-05 is allowed\)"):
        import_network(package)


def test_a_package_is_read_as_folder_zip_and_description(make, tmp_path):
    """Whatever somebody has of it."""
    first = [step("0.5", "zero_mean_unit_variance"), step("0.5", "ensure_dtype", dtype="float32")]
    package = make(first=first, last=[step("0.5", "softmax")], dtype="uint8")
    sources = [package, package / "rdf.yaml", zipped(package, tmp_path / "a.zip")]
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:  # a folder in the zip
        for path in package.iterdir():
            file.write(path, f"model/{path.name}")
    found = [import_network(source) for source in [*sources, tmp_path / "b.zip"]]
    assert all(is_package(source) for source in sources)
    assert len({one.digest for one in found}) == 1
    save_checkpoint(tmp_path / "kept.safetensors", found[0])
    kept = load_checkpoint(tmp_path / "kept.safetensors")
    assert (kept.digest, kept.activation) == (found[0].digest, "softmax")


def test_what_is_no_package_is_not_taken_for_one(small, tmp_path):
    """Files of other kinds are tried by their own readers."""
    (tmp_path / "run.yaml").write_text("input: {url: a}\n")
    assert not any(map(is_package, [small[1], tmp_path / "run.yaml", tmp_path, tmp_path / "absent"]))


def test_a_halo_that_is_declared_stands_beside_what_is_needed(make):
    """People tile by what a package says."""
    halo = import_network(make()).provenance["halo"]
    assert halo.startswith("declared y 2, x 2; needed y 4, x 4: y 2, x 2 more than declared")


# --- code of a package ----------------------------------------------------------------------------------------------------

CODE = """
from pathlib import Path
import torch
import torch.nn.functional as F
from torch import nn

Path({marker!r}).touch()


class Small(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first, self.low = nn.Conv2d(channels, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        first = F.relu(self.first(x))
        low = F.interpolate(F.relu(self.low(F.max_pool2d(first, 2))), scale_factor=2)
        return self.last(torch.cat([first, low], 1))
"""


def with_code(make, small, marker):
    """A package whose state dict needs its own architecture."""
    package = make()
    (package / "net.py").write_text(CODE.format(marker=str(marker)))
    torch.save(small[0].state_dict(), package / "state.pt")
    code = {"source": "net.py", "sha256": digest(package / "net.py"), "callable": "Small", "kwargs": {"channels": 2}}
    state = {"source": "state.pt", "sha256": digest(package / "state.pt"), "pytorch_version": "2.10"}
    described = new_description([], [], {"pytorch_state_dict": state | {"architecture": code}})
    with (package / "rdf.yaml").open("w") as file:
        YAML(typ="safe").dump(described, file)
    return package


def test_code_of_a_package_is_not_run_without_trust(make, small, tmp_path):
    """Nor is it copied anywhere."""
    package = with_code(make, small, tmp_path / "marker")
    with pytest.raises(ModelError, match=r"'Small' in 'net.py', is code of the package, which somebody must trust"):
        import_network(package)
    assert not (tmp_path / "marker").exists()


@pytest.mark.network
def test_code_that_is_trusted_is_run_in_a_process_of_its_own(make, small, tmp_path):
    """The negative control: its marker is there; and what it gives is what was published. Code of another digest is not run."""
    package = with_code(make, small, tmp_path / "marker")
    found = import_network(package, trust=True)
    assert (tmp_path / "marker").exists()
    assert found.provenance["architecture"] == "Small of 'net.py', trusted"
    (tmp_path / "marker").unlink()
    (package / "net.py").write_text(CODE.format(marker=str(tmp_path / "marker")) + "\n")
    with pytest.raises(ModelError, match=r"net.py' has SHA-256 .*is not read"):
        import_network(package, trust=True)
    assert not (tmp_path / "marker").exists()


# --- refusals -------------------------------------------------------------------------------------------------------------

REFUSED_BEFORE = {
    "each channel by itself": (
        Step("zero_mean_unit_variance", {"axes": ["y", "x"]}),
        "measures each channel by itself",
    ),
    "each row by itself": (Step("scale_range", {"axes": ["channel", "x"]}), "measures each y by itself"),
    "another tensor": (
        Step("scale_range", {"axes": None, "reference_tensor": "other"}),
        "measures another tensor, 'other'",
    ),
    "at percentiles": (
        Step("clip", {"min_percentile": 1, "max": None}),
        "'clip', which cannot be done here: it clips at",
    ),
    "along space": (Step("softmax", {"axis": "x"}), "goes over axis 'x'"),
    "more channels": (
        Step("binarize", {"threshold": [1, 2, 3], "axis": "channel"}),
        "has 3 numbers along axis 'channel'",
    ),
    "unheard of": (Step("cellpose_flow_dynamics", {}), "'cellpose_flow_dynamics', which cannot be done here"),
}


@pytest.mark.parametrize("name", REFUSED_BEFORE)
def test_a_step_that_has_no_equal_is_refused_by_its_name(name):
    """Rather than left out."""
    declared, reason = REFUSED_BEFORE[name]
    with pytest.raises(ModelError, match=reason):
        before([declared], Tensors(2, 2))


def test_a_change_of_type_is_refused_where_it_cuts_values():
    """At first it is the type of what is stored, and after a threshold values are 0 and 1."""
    cast = Step("ensure_dtype", {"dtype": "uint8"})
    assert before([cast, Step("zero_mean_unit_variance", {})], Tensors(2, 1))[0].mode == "zscore"
    assert len(after([Step("binarize", {"threshold": 0.5}), cast], Tensors(2, 1))[1]) == 1
    with pytest.raises(ModelError, match="makes values uint8, which cuts them"):
        before([Step("zero_mean_unit_variance", {}), cast], Tensors(2, 1))
    with pytest.raises(ModelError, match="makes values uint8, which cuts them"):
        after([Step("sigmoid", {}), cast], Tensors(2, 1))


def test_statistics_of_what_another_step_made_are_refused():
    """A survey measures the volume as it is stored; of scaled values it is the same."""
    zscore = Step("zero_mean_unit_variance", {"axes": None})
    scale = Step("scale_linear", {"gain": 2.0, "offset": 1.0})
    assert before([scale, zscore], Tensors(2, 1))[0].same_rule(Normalization("zscore"))
    for first in (Step("sigmoid", {}), Step("scale_linear", {"gain": -1.0, "offset": 0.0})):
        with pytest.raises(ModelError, match="measures what another step has changed"):
            before([first, zscore], Tensors(2, 1))


@pytest.mark.parametrize("declared", [Step("zero_mean_unit_variance", {}), Step("scale_mean_variance", {})])
def test_statistics_of_the_output_are_refused(declared):
    """They are known when all tiles are done."""
    with pytest.raises(ModelError, match="which cannot be done here"):
        after([Step("sigmoid", {}), declared], Tensors(2, 1))


def test_a_file_that_is_not_what_was_published_is_refused(make):
    """Its digest is looked at before anything reads it."""
    package = make()
    weights = package / "weights.pt2"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"its file 'weights.pt2' has SHA-256 .*is not read"):
        import_network(package)


def edited(key, value, *, where=()):
    """A change of the description."""

    def change(described):
        for part in where:
            described = described[part]
        described[key] = value

    return change


REFUSED = {
    "a file at an address": (
        edited("source", "https://example.com/weights.pt", where=("weights", "torchscript")),
        "lies at the address https://example.com/weights.pt, and nothing is downloaded",
    ),
    "no weights that are read": (
        edited("weights", {"keras_hdf5": {"source": "weights.h5", "tensorflow_version": "2.10"}}),
        "no weights can be read:\n  keras_hdf5: is not read here",
    ),
    "no weights": (
        edited("weights", {"onnx": {"source": "absent.onnx", "opset_version": 20}}),
        "'absent.onnx' is not there",
    ),
    "another format": (edited("format_version", "0.6.0"), "is of format 0.6.0, and 0.4 and 0.5 are read"),
    "no description": (edited("inputs", []), r"is refused by bioimageio.spec .*inputs"),
    "no model": (edited("type", "dataset"), "describes no model|no network that can be imported"),
    "other channels": (
        edited("channel_names", ["one"], where=("inputs", 0, "axes", 1)),
        "declared with 1 channels, and its network has 2",
    ),
    "other axes": (edited("axes", "bcxy", where=("inputs", 0)), "has the axes batch, channel, x, y; expected"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_package_must_not_be(make, name):
    """In words that say what is the matter."""
    change, reason = REFUSED[name]
    with pytest.raises(ModelError, match=reason):
        import_network(make(change=change, version="0.4" if name == "other axes" else "0.5"))


@pytest.mark.parametrize("kind", ["shape", "object", "values"])
def test_a_published_test_that_is_no_array_is_refused(make, tmp_path, kind):
    """A header may say any shape, and objects are pickles."""
    package = make()
    path = package / "test_input.npy"
    if kind == "shape":
        path.write_bytes(path.read_bytes().replace(b"(1, 2, 32, 40)", b"(9, 2, 32, 40)"))
    elif kind == "object":
        np.save(path, np.array([Path(tmp_path / "marker")]), allow_pickle=True)
    else:
        np.save(path, np.full(Small.shape, np.nan, np.float32))
    with pytest.raises(ModelError, match=r"is no array|not finite"):
        import_network(package)


def hostile(path, kind):
    """A zip that no packer makes."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("rdf.yaml", "type: model\nformat_version: 0.5.4\n")
        info = zipfile.ZipInfo({"up": "../marker", "absolute": "/tmp/marker", "drive": "C:\\marker"}.get(kind, "inner"))
        if kind == "link":
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
        if kind == "bomb":
            info.compress_type = zipfile.ZIP_DEFLATED
        with file.open(info, "w") as member:
            for _ in range(4 if kind == "bomb" else 1):
                member.write(bytes(2**20) if kind == "bomb" else b"x")
        if kind == "twice":
            with pytest.warns(UserWarning, match="Duplicate name"):
                file.writestr("inner", b"y")
    return path


@pytest.mark.parametrize("kind", ["up", "absolute", "drive", "link", "bomb", "twice"])
def test_a_hostile_zip_is_refused_whole(tmp_path, monkeypatch, kind):
    """Nothing of it is unpacked, there or elsewhere."""
    monkeypatch.setattr(package_files, "LARGEST_UNSEEN", 2**20)
    (tmp_path / "inner").mkdir()
    path = hostile(tmp_path / "inner" / "package.zip", kind)
    with pytest.raises(
        ModelError, match=r"Zip '.*' is refused: its file '.*' (lies outside|is a link|is there twice|has .* bytes)"
    ):
        import_network(path)
    assert [p.name for p in tmp_path.rglob("*")] == ["inner", "package.zip"]


def test_a_link_out_of_a_folder_is_not_followed(make, tmp_path):
    """A package that was unpacked by somebody else."""
    package = make()
    weights = package / "weights.pt2"
    weights.rename(tmp_path / "elsewhere.pt2")
    weights.symlink_to(tmp_path / "elsewhere.pt2")
    with pytest.raises(ModelError, match=r"is a link out of the package"):
        import_network(package)


def test_names_that_lead_out_of_a_package_are_refused(make):
    """Of files that a description names."""
    with PackageFiles(make()) as files:
        for name in ("../a", "/etc/passwd", "a/../../b", "C:\\a", "https://a/b", ""):
            assert not files.has(name)
            with pytest.raises(ModelError, match=r"lies at an address|lies outside"):
                files.read(name, None)


@pytest.mark.network
def test_a_published_package_with_instance_norm_is_its_published_output_as_one_pass(shared_data, tmp_path):
    """No tile is exact, and its graph says so; a run needs its statistics frozen or global."""
    source = shared_data / "models/bioimageio_unet2d_fixed_shape"
    network = published(source, FixedShape(), "weights.pt")
    program = save_program(tmp_path / "weights.pt2", network, (1, 1, 256, 256))
    described = YAML(typ="safe").load((source / "v0_4.bioimageio.yaml").read_text(encoding="utf-8"))
    described["weights"] = {"torchscript": {"source": "weights.pt2", "sha256": digest(program)}}
    image, output = (np.load(source / f"test_{name}.npy") for name in ("input", "output"))
    found = import_network(
        write_package(tmp_path / "fixed", described, image=image, output=output, weights__pt2=program)
    )
    assert not found.architecture.graph.is_local
    assert float(found.provenance["published test"].split()[0]) <= 1e-5

"""Files of `torch.export.save`: read without unpickling, importing or evaluating what they say."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.errors import ModelError
from pipeline.networks.checkpoint import load_checkpoint, save_checkpoint
from pipeline.networks.importing.archive import is_archive, read_archive
from pipeline.networks.importing.exported import graph_of
from pipeline.networks.importing.network import import_network
from pipeline.networks.importing.proof import prove
from tests.networks.network_cases import NETWORKS, Residual, exported, randomise, save_program


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The file of a small network."""
    return save_program(tmp_path_factory.mktemp("program") / "net.pt2", randomise(Residual()))


def rewritten(source, target, change):
    """The file with parts changed: `change(name, content)` gives the new content, or None for no such part."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            content = change(member.filename, old.read(member))
            if content is not None:
                new.writestr(member.filename, content)
    return target


def of_json(part, edit):
    """A change of the JSON part whose name ends so."""

    def change(name, content):
        if not name.endswith(part):
            return content
        document = json.loads(content)
        edit(document)
        return json.dumps(document).encode()

    return change


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_is_the_program_that_was_saved(name, tmp_path):
    """The same operations of the same weights, whichever way it is read."""
    network = randomise(NETWORKS[name]()).float()
    path = save_program(tmp_path / "net.bin", network)
    assert is_archive(path)
    read, expected = read_archive(path), graph_of(exported(network))
    assert read.graph == expected.graph
    assert read.weights.keys() == expected.weights.keys()
    for node, tensors in read.weights.items():
        for one, other in zip(tensors, expected.weights[node], strict=True):
            assert torch.equal(one, other)


def test_extents_that_were_exported_as_symbols_are_those_of_the_example(tmp_path):
    """A program for any multiple of two says `2*s0`; nothing of that is evaluated."""
    network, shape = randomise(Residual()).float(), Residual.shape
    half = [torch.export.Dim(f"half_{axis}", min=4) for axis in "zyx"]
    dims = {axis + 2: 2 * dim for axis, dim in enumerate(half)}
    saved = torch.export.export(network, (torch.zeros(shape),), dynamic_shapes={"x": dims}, strict=False)
    torch.export.save(saved, tmp_path / "net.pt2")
    assert read_archive(tmp_path / "net.pt2").graph == graph_of(exported(network)).graph


class Typed(nn.Module):
    """Asks for types by name: of a kernel that is no parameter, and of what a soft-max gives."""

    shape = (1, 1, 12, 12)

    def __init__(self):
        super().__init__()
        self.kernel = torch.arange(18).view(2, 1, 3, 3)

    def forward(self, x):
        return F.conv2d(x, self.kernel.to(torch.float32) / 100, padding=1).softmax(1, dtype=torch.float32)


def test_types_that_are_asked_for_are_real_or_not(tmp_path):
    """Whole numbers become real ones where the network says so; which real ones is said by the image."""
    path = save_program(tmp_path / "net.pt2", Typed())
    read = read_archive(path)
    assert read.graph == graph_of(exported(Typed().float())).graph
    assert prove(read).graph < 1e-12


# --- hostile files --------------------------------------------------------------------------------------------------------


class Marker:
    """Pickled, it makes a file of whoever unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def bomb(marker):
    """Such a pickle, by itself and as torch saves it."""
    content = io.BytesIO()
    torch.save(Marker(marker), content)
    return pickle.dumps(Marker(marker)), content.getvalue()


def test_the_bombs_go_off_where_somebody_unpickles(tmp_path):
    """The negative control of the tests below."""
    for number, content in enumerate(bomb(tmp_path / "marker")):
        if number == 0:
            pickle.loads(content)
        else:
            torch.load(io.BytesIO(content), weights_only=False)
        (tmp_path / "marker").unlink()


@pytest.mark.parametrize("kind", [0, 1])
def test_examples_that_run_code_are_never_opened(program, tmp_path, kind):
    """torch keeps the example's tensors as a pickle, which nobody needs here."""
    marker = tmp_path / "marker"
    content = bomb(marker)[kind]
    path = rewritten(program, tmp_path / "net.pt2", lambda name, old: content if "sample_inputs" in name else old)
    assert import_network(path).architecture == import_network(program).architecture
    assert not marker.exists()


def test_a_pickled_tensor_is_refused(program, tmp_path):
    """By its name; nothing is unpickled."""
    marker = tmp_path / "marker"
    content = bomb(marker)[1]

    def pickled(document):
        entry = document["config"]["first.weight"]
        entry["use_pickle"] = True

    edit = of_json("weights_config.json", pickled)
    path = rewritten(
        program, tmp_path / "net.pt2", lambda name, old: content if name.endswith("weight_0") else edit(name, old)
    )
    with pytest.raises(ModelError, match=r"tensor 'first.weight' is pickled, and nothing is unpickled"):
        import_network(path)
    assert not marker.exists()


def call(number, **changes):
    """A change of one call of the program."""

    def edit(document):
        document["graph_module"]["graph"]["nodes"][number].update(changes)

    return of_json("models/model.json", edit)


def program_edit(edit):
    """A change of the program's graph."""
    return of_json("models/model.json", lambda document: edit(document["graph_module"]["graph"]))


def expression(marker):
    """A size that is code, for whoever evaluates it."""

    def edit(graph):
        text = f"__import__('pathlib').Path({str(marker)!r}).touch()"
        graph["tensor_values"]["x"]["sizes"][2] = {"as_expr": {"expr_str": text, "hint": {"as_int": 24}}}

    return program_edit(edit)


def test_a_size_that_is_code_is_not_evaluated(program, tmp_path):
    """torch's loader gives such texts to sympy, which evaluates them."""
    marker = tmp_path / "marker"
    path = rewritten(program, tmp_path / "net.pt2", expression(marker))
    assert import_network(path).architecture == import_network(program).architecture
    assert not marker.exists()


def without_image(target, **given):
    """A call more, before all others, that reads no image."""
    inputs = [{"name": name, "arg": arg, "kind": 1} for name, arg in given.items()]
    node = {"target": f"torch.ops.aten.{target}", "inputs": inputs, "outputs": [{"as_tensor": {"name": "more"}}]}
    return program_edit(lambda graph: graph.update(nodes=[{**node, "metadata": {}}, *graph["nodes"]]))


def test_a_call_that_makes_a_file_is_not_done(program, tmp_path):
    """What touches weights alone is done at once, but for what does more than compute."""
    marker = tmp_path / "marker"
    torch.ops.aten.from_file.default(str(marker), True, 8)  # the negative control
    assert marker.exists()
    marker.unlink()
    change = without_image(
        "from_file.default", filename={"as_string": str(marker)}, shared={"as_bool": True}, size={"as_int": 8}
    )
    with pytest.raises(ModelError, match=r"'more' calls from_file, and it touches no image"):
        import_network(rewritten(program, tmp_path / "net.pt2", change))
    assert not marker.exists()


HOSTILE = {
    "weights of a terabyte": (
        without_image("full.default", size={"as_ints": [2**20, 2**20]}, fill_value={"as_float": 1.0}), "asks for more than",
    ),
    "a range without end": (without_image("arange.default", end={"as_int": 2**40}), "asks for more than"),
    "weights that do not fit": (
        without_image(
            "add.Tensor", self={"as_tensor": {"name": "p_first_weight"}}, other={"as_tensor": {"name": "p_down_weight"}}
        ),
        "cannot be read",
    ),
    "another module's function": (call(0, target="os.system"), "only torch's own operations"),
    "a function of Python's": (call(0, target="builtins.eval.x.y.z"), "only torch's own operations"),
    "another library of operations": (call(0, target="torch.ops.fbgemm.f.default"), "only torch's own operations"),
    "an attribute of the library": (call(0, target="torch.ops.aten.__class__.default"), "does not know"),
    "an operation that reads files": (call(0, target="torch.ops.aten.from_file.default"), "from_file"),
    "an operation of tomorrow": (call(0, target="torch.ops.aten.conv9d.default"), "does not know"),
    "an argument that is a graph": (
        call(0, inputs=[{"name": "input", "arg": {"as_graph": {"name": "g", "graph": {}}}}]), "has no rule",
    ),
    "what nobody wrote": (
        call(0, inputs=[{"name": "input", "arg": {"as_tensor": {"name": "nobody"}}}]), "uses 'nobody'",
    ),
    "a path out of the file": (
        of_json("weights_config.json", lambda d: d["config"]["first.weight"].update(path_name="../../../../etc/passwd")),
        "no place of a tensor",
    ),
    "more values than are stored": (
        of_json(
            "weights_config.json",
            lambda d: d["config"]["first.weight"]["tensor_meta"].update(
                sizes=[{"as_int": 10**6}] * 2, strides=[{"as_int": 0}] * 2
            ),
        ),
        "values, and",
    ),
    "a type that is not known": (
        of_json("weights_config.json", lambda d: d["config"]["first.weight"]["tensor_meta"].update(dtype=99)), "number 99"
    ),
    "a version of tomorrow": (
        of_json("models/model.json", lambda d: d.update(schema_version={"major": 99, "minor": 0})), "version 99"
    ),
    "no program": (lambda name, old: None if "models/" in name else old, "no network that can be imported"),
    "a program of zeros": (lambda name, old: bytes(100) if "models/" in name else old, "cannot be read"),
    "a program cut": (lambda name, old: old[: len(old) // 2] if "models/" in name else old, "cannot be read"),
    "no weights": (lambda name, old: None if "weight_0" in name else old, "cannot be read"),
    "weights cut": (lambda name, old: old[:7] if name.endswith("weight_0") else old, "cannot be read|values, and"),
    "two programs": (None, "2 programs"),
    "too many calls": (program_edit(lambda g: g.update(nodes=[{}] * 100_001)), "calls; at most"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_such_a_file_should_not_hold_is_refused_in_words(name, program, tmp_path):
    """In a sentence, with the file's name, and nothing done."""
    change, why = HOSTILE[name]
    path = tmp_path / "net.pt2"
    if change:
        rewritten(program, path, change)
    else:
        path.write_bytes(program.read_bytes())
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("net/models/other.json", "{}")
    with pytest.raises(ModelError, match=why) as refused:
        import_network(path)
    assert str(path) in str(refused.value)


def test_a_file_that_is_cut_is_refused(program, tmp_path):
    """Wherever that was."""
    content = program.read_bytes()
    for part in range(1, 16):
        path = tmp_path / "net.pt2"
        path.write_bytes(content[: len(content) * part // 16])
        with pytest.raises(ModelError, match=r"no network that can be imported|cannot be read"):
            import_network(path)


# --- as a checkpoint ------------------------------------------------------------------------------------------------------


def test_an_imported_network_is_a_checkpoint_that_needs_no_library(program, tmp_path):
    """Graph and weights in one safetensors file; what it was proven by stands in it."""
    checkpoint = import_network(program)
    save_checkpoint(tmp_path / "net.safetensors", checkpoint)
    read = load_checkpoint(tmp_path / "net.safetensors")
    assert read.architecture == checkpoint.architecture
    assert (read.sha256, read.digest) == (checkpoint.sha256, checkpoint.digest)
    assert read.provenance["imported from"] == "net.pt2"
    assert "tile against whole" in read.provenance["proof"]
    assert read.weights.keys() == checkpoint.weights.keys()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda state: state.pop("conv3d.0"), "conv3d.0 is missing"),
        (lambda state: state.update({"conv3d.0": torch.zeros(4, 1, 3, 3)}), r"conv3d.0 is \(4, 1, 3, 3\), not \(4, 1, 3, 3, 3\)"),
        (lambda state: state.update({"nobody.0": torch.zeros(1)}), "nobody.0 is of no node"),
        (lambda state: state.update({"conv3d.0": torch.full((4, 1, 3, 3, 3), torch.nan)}), "not finite"),
    ],
)  # fmt: skip
def test_weights_that_are_not_the_graphs_are_refused(change, why, program, tmp_path):
    """Before a worker computes with them."""
    checkpoint = import_network(program)
    change(checkpoint.state)
    save_checkpoint(tmp_path / "net.safetensors", checkpoint)
    with pytest.raises(ModelError, match=why):
        load_checkpoint(tmp_path / "net.safetensors")


def test_a_padding_that_the_graph_has_not_is_refused(program, tmp_path):
    """`model.padding` is for checkpoints that do not say."""
    save_checkpoint(tmp_path / "net.safetensors", import_network(program))
    assert load_checkpoint(tmp_path / "net.safetensors", padding="same").padding_known
    with pytest.raises(ModelError, match="graph says 'same'"):
        load_checkpoint(tmp_path / "net.safetensors", padding="valid")


def test_what_is_no_network_is_refused(tmp_path):
    """A file that is not there, a folder's name, and a checkpoint of ours."""
    with pytest.raises(ModelError, match="there is no such file"):
        import_network(tmp_path / "none.pt2")
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match="needs no import"):
        import_network(tmp_path / "weights.pt")

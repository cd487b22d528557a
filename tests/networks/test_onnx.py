"""Models of ONNX: exact as the network that was exported, proven by ONNX's own operators, and read without running what they say."""

import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from pipeline.core.geometry.box import Span
from pipeline.core.network.need import needs
from pipeline.core.network.receptive import lost_margin
from pipeline.errors import ModelError
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.networks.evaluate import evaluate
from pipeline.networks.importing import onnx_model
from pipeline.networks.importing.network import import_network, kind_of
from pipeline.networks.importing.onnx import is_onnx, read_onnx
from pipeline.networks.importing.onnx_operators import run_operator
from pipeline.networks.importing.proof import prove
from tests.e2e.test_run import command
from tests.networks.network_cases import NETWORKS, Residual, randomise

EQUAL = 1e-12


def exported(network, path, *, shape=None, open_extents=True, opset=17):
    """A model of a network, by torch's exporter; its values are of the network's type."""
    shape = shape or network.shape
    named = {0: "batch", **{axis: f"extent_{axis}" for axis in range(2, len(shape))}} if open_extents else {}
    dtype = next((p.dtype for p in network.parameters()), torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.zeros(shape, dtype=dtype),), str(path), dynamo=False, opset_version=opset,
            input_names=["image"], output_names=["prediction"], dynamic_axes={"image": named},
        )  # fmt: skip
    return path


def whole(network, image):
    """What the graph gives in one pass, 1 C Z Y X."""
    graph = network.graph
    axes = []
    for axis, (n, margin) in enumerate(zip(image.shape[2:], lost_margin(graph), strict=True)):
        ends = Span(0, n)
        axes.append(needs(graph, axis, Span(0, n - 2 * margin), ends if graph.is_padded else None))
    weights = {name: tuple(w.double() for w in tensors) for name, tensors in network.weights.items()}
    return evaluate(graph, weights, image, tuple(axes))


@pytest.mark.parametrize("opset", [pytest.param(11, marks=pytest.mark.network), 17])
@pytest.mark.parametrize(
    "name", ["planar", *(pytest.param(name, marks=pytest.mark.network) for name in ("residual", "valid", "aligned"))]
)
def test_a_model_is_the_network_that_was_exported(name, opset, tmp_path):
    """In one pass of another size than any that was exported or read; and ONNX's own operators say so."""
    network = randomise(NETWORKS[name]())
    imported = read_onnx(exported(network, tmp_path / "net", opset=opset))
    proof = prove(imported)
    assert max(proof.graph, proof.tile, proof.origin) < EQUAL
    assert "against the file's own operators" in str(proof)
    image = torch.rand(network.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected, solid = network(image), image
    if imported.ndim == 2:
        expected, solid = expected[:, :, None], image[:, :, None]
    torch.testing.assert_close(whole(imported, solid), expected, rtol=0, atol=1e-9)  # 0.1 is of float32 in ONNX


@pytest.mark.network
def test_open_extents_are_chosen_so_that_a_tile_with_its_halo_fits(tmp_path):
    """And one stride less of halo differs. The reference has few voxels: numpy runs it."""
    imported = read_onnx(exported(randomise(Residual()), tmp_path / "net"))
    assert imported.program.image[1] == (1, 1, 18, 18, 18)
    assert imported.origin.image[1] == (1, 1, 8, 8, 8)
    assert prove(imported).short > 1e-6


def test_extents_that_are_fixed_are_those_of_the_model(tmp_path):
    """The same network at others is taken for its proof; one that is another there is not."""
    path = exported(randomise(Residual()), tmp_path / "net", open_extents=False)
    assert read_onnx(path).program.image[1] == (1, 1, 18, 18, 18)
    path = of_nodes(
        tmp_path / "fixed", [["Resize", ["x", "", "", "sizes"], {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}]],
        {"sizes": np.array([1, 2, 8, 8])}, before="MaxPool", shape=(1, 2, 8, 8),
    )  # fmt: skip
    imported = read_onnx(path)
    assert imported.program.image[1] == imported.origin.image[1] == (1, 2, 8, 8)


def test_the_command_makes_a_checkpoint_of_a_model(tmp_path, capsys):
    """And says what was proven; what has no rule ends with 2 before anything is written."""
    path = exported(randomise(Residual()).float(), tmp_path / "net.onnx")
    assert command("import", path, tmp_path / "net.safetensors") == 0
    assert "against the file's own operators" in capsys.readouterr().out
    checkpoint, imported = load_checkpoint(str(tmp_path / "net.safetensors")), read_onnx(path)
    assert checkpoint.architecture.graph == imported.graph
    path = of_nodes(tmp_path / "bad.onnx", [["DepthToSpace", ["x"], {"blocksize": 2}]])
    assert command("import", path, tmp_path / "bad.safetensors") == 2
    assert "DepthToSpace" in capsys.readouterr().err
    assert not (tmp_path / "bad.safetensors").exists()


# --- operators ------------------------------------------------------------------------------------------------------------


def of_nodes(path, nodes, constants=(), *, shape=(1, 4, None, None), opset=18, before="Conv", outputs=None):
    """A model of a convolution (or a pooling) and nodes behind it: kind, inputs (`x` is what was given before), attributes."""
    made = (
        [conv(shape)]
        if before == "Conv"
        else [helper.make_node("MaxPool", ["image"], ["v0"], "v0", kernel_shape=[2, 2], strides=[2, 2])]
    )
    for number, (kind, inputs, attributes) in enumerate(nodes):
        given = [f"v{number}" if name == "x" else name for name in inputs]
        made.append(helper.make_node(kind, given, [f"v{number + 1}"], f"node {number + 1}", **attributes))
    kept = {"kernel": kernel(shape[1], len(shape) - 2), **dict(constants)}
    used = {name for node in made for name in node.input}
    graph = helper.make_graph(
        made, "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [n or f"n{i}" for i, n in enumerate(shape)])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs or [f"v{len(nodes)}"]],
        [numpy_helper.from_array(value, name) for name, value in kept.items() if name in used],
    )  # fmt: skip
    return saved(path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))


def conv(shape):
    """The first operator of such a model."""
    ones = [1] * 2 * (len(shape) - 2)
    return helper.make_node("Conv", ["image", "kernel"], ["v0"], "v0", pads=ones)


def kernel(channels, ndim):
    """Values of a 3-convolution, always the same."""
    return np.random.default_rng(0).uniform(-0.4, 0.4, (channels, channels, *[3] * ndim)).astype(np.float32)


def saved(path, model):
    """The file of a model."""
    path.write_bytes(model.SerializeToString())
    return path


def numbers(*values, dtype=np.float32):
    """A constant."""
    return np.array(values, dtype=dtype)


HALF = ["MaxPool", ["x"], {"kernel_shape": [2, 2], "strides": [2, 2]}]
SCALES = {"s": numbers(1, 1, 2, 2)}
WIDE = np.random.default_rng(1).uniform(-1, 1, (4, 2, 5, 5)).astype(np.float32)
FOUR = np.array([1.0, 2.0, 0.5, -1.0], dtype=np.float32)

RULES = {
    "padding at one end": ([["Conv", ["x", "k"], {"pads": [0, 1, 2, 1]}]], {"k": kernel(4, 2)}),
    "same, upper": ([["Conv", ["x", "k"], {"auto_pad": "SAME_UPPER", "dilations": [2, 1]}]], {"k": kernel(4, 2)}),
    "groups": ([["Conv", ["x", "k"], {"pads": [1] * 4, "group": 2}]], {"k": kernel(4, 2)[:, :2]}),
    "strided and transposed": (
        [["Conv", ["x", "k"], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}],
         ["ConvTranspose", ["x", "w", "b"], {"strides": [2, 2], "pads": [2, 1, 1, 2], "group": 2}]],
        {"k": kernel(4, 2), "w": WIDE, "b": FOUR},
    ),
    "transposed with more at the end": (
        [HALF, ["ConvTranspose", ["x", "w"], {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}]], {"w": kernel(4, 2)}
    ),
    "mean that counts": ([["AveragePool", ["x"], {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}]], {}),
    "mean of groups": ([["AveragePool", ["x"], {"kernel_shape": [2, 2], "strides": [2, 2]}], ["Upsample", ["x", "s"], {}]], SCALES, 9),
    "nearest by halves": ([HALF, ["Resize", ["x", "", "s"], {}]], SCALES),
    "nearest, floor": (
        [HALF, ["Resize", ["x", "", "s"], {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}]], SCALES
    ),
    "linear": ([HALF, ["Resize", ["x", "", "s"], {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}]], SCALES),
    "mirrored": ([["Pad", ["x", "p"], {"mode": "reflect"}], ["Conv", ["x", "k"], {}]], {"p": np.array([0, 0, 1, 1] * 2), "k": kernel(4, 2)}),
    "at the edge, axes named": (
        [["Pad", ["x", "p", "", "a"], {"mode": "edge"}], ["Conv", ["x", "k"], {}]],
        {"p": np.array([1, 1] * 2), "a": np.array([-2, -1]), "k": kernel(4, 2)},
    ),
    "slices": (
        [["Pad", ["x", "p"], {}], ["Slice", ["x", "a", "b", "c"], {}]],
        {"p": np.array([0, 0, 2, 0] * 2), "a": np.array([1, 0]), "b": np.array([-3, 3]), "c": np.array([2, 1])},
    ),
    "constants": ([["Mul", ["c", "x"], {}], ["Sub", ["one", "x"], {}], ["Div", ["x", "c"], {}]], {"c": FOUR.reshape(4, 1, 1), "one": numbers(1)}),
    "powers and limits": ([["Pow", ["x", "two"], {}], ["Max", ["x", "c"], {}], ["Min", ["x", "v0"], {}]], {"two": numbers(2), "c": numbers(0.1)}),
    "sum of several": ([["Sum", ["x", "v0", "v0"], {}]], {}),
    "slopes": ([["PRelu", ["x", "c"], {}]], {"c": FOUR.reshape(4, 1, 1)}),
    "leaky": ([["LeakyRelu", ["x"], {}], ["Elu", ["x"], {"alpha": 0.7}], ["Selu", ["x"], {}]], {}),
    "hard": ([["HardSigmoid", ["x"], {"alpha": 0.3}], ["HardSwish", ["x"], {}], ["Softplus", ["x"], {}], ["Mish", ["x"], {}]], {}),
    "smooth": ([["Tanh", ["x"], {}], ["Exp", ["x"], {}], ["Sqrt", ["x"], {}], ["Log", ["x"], {}], ["Erf", ["x"], {}]], {}),
    "gelu": ([["Gelu", ["x"], {"approximate": "tanh"}], ["Gelu", ["x"], {}]], {}, 20),
    "limits": ([["Clip", ["x", "", "c"], {}], ["Clip", ["x", "d"], {}]], {"c": numbers(0.3), "d": numbers(-0.2)}),
    "limits of old": ([["Clip", ["x"], {"min": -0.1, "max": 0.2}]], {}, 10),
    "batch norm": ([["BatchNormalization", ["x", "a", "b", "c", "d"], {}]], {"a": FOUR, "b": FOUR, "c": FOUR, "d": np.abs(FOUR)}),
    "soft-max": ([["Softmax", ["x"], {"axis": 1}]], {}),
    "soft-max of old": (
        [["Transpose", ["x"], {"perm": [0, 2, 3, 1]}], ["Softmax", ["x"], {"axis": 3}], ["Transpose", ["x"], {"perm": [0, 3, 1, 2]}]], {}, 11
    ),
    "extents that are computed": (
        [["Shape", ["v0"], {}], ["Cast", ["x"], {"to": 7}], ["Reshape", ["v0", "x"], {}], ["Dropout", ["x"], {}], ["Identity", ["x"], {}],
         ["Cast", ["x"], {"to": 1}]], {},
    ),
    "a run of channels": ([["Gather", ["x", "i"], {"axis": 1}]], {"i": np.array([1, 2])}),
    "joined": ([["Concat", ["v0", "x"], {"axis": 1}], ["ReduceMean", ["c"], {}], ["Mul", ["v1", "x"], {}]], {"c": FOUR}),
}  # fmt: skip
"""Nodes behind a convolution, constants, and the version where another matters."""


USUAL = frozenset(
    [
        "padding at one end",
        "strided and transposed",
        "nearest by halves",
        "linear",
        "mirrored",
        "slices",
        "constants",
        "soft-max of old",
        "extents that are computed",
        "gelu",
    ]
)
"""Those of the quick tests."""


@pytest.mark.parametrize(
    "name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.network) for name in RULES]
)
def test_an_operator_is_what_onnx_says(name, tmp_path):
    """The graph against ONNX's own operators, at two sizes; a tile against the whole."""
    nodes, constants, *opset = RULES[name]
    imported = read_onnx(of_nodes(tmp_path / "net", nodes, constants, opset=(opset or [18])[0]))
    proof = prove(imported)
    assert max(proof.graph, proof.origin, proof.tile or 0.0) < EQUAL
    assert len(imported.graph.nodes) > 1


POOLED = [["GlobalAveragePool", ["x"], {}], ["Conv", ["x", "w"], {}], ["Sigmoid", ["x"], {}], ["Mul", ["v0", "x"], {}]]
SHAPE = [["Shape", ["v0"], {}], ["Reshape", ["v0", "g"], {}]]

WHOLE = {
    "instance norm": ([["InstanceNormalization", ["x", "a", "b"], {"epsilon": 0.01}]], {"a": FOUR, "b": FOUR}),
    "group norm": ([["GroupNormalization", ["x", "a", "b"], {"num_groups": 2}]], {"a": FOUR, "b": FOUR}, 21),
    "group norm of old": ([["GroupNormalization", ["x", "a", "b"], {"num_groups": 2}]], {"a": FOUR[:2], "b": FOUR[:2]}, 18),
    "group norm as three": (
        [*SHAPE, ["InstanceNormalization", ["x", "a", "b"], {}], ["Reshape", ["x", "v1"], {}], ["Mul", ["x", "c"], {}]],
        {"a": FOUR[:2], "b": FOUR[:2], "g": np.array([0, 2, -1]), "c": FOUR.reshape(4, 1, 1)},
    ),
    "largest": ([["GlobalMaxPool", ["x"], {}], ["Add", ["v0", "x"], {}]], {}),
    "squeeze and excite": (POOLED, {"w": kernel(4, 2)[:, :, :1, :1]}),
    "mean": ([["ReduceMean", ["x", "a"], {}], ["Sub", ["v0", "x"], {}]], {"a": np.array([2, 3])}),
}  # fmt: skip
"""What looks at its whole input."""


@pytest.mark.parametrize("name", WHOLE)
def test_what_looks_at_its_whole_input_is_what_onnx_says_and_named(name, tmp_path):
    """Proven over the whole image; a plan refuses it as such, or has its statistics."""
    nodes, constants, *opset = WHOLE[name]
    imported = read_onnx(of_nodes(tmp_path / "net", nodes, constants, opset=(opset or [18])[0]))
    proof = prove(imported)
    assert not imported.graph.is_local
    assert max(proof.graph, proof.origin) < EQUAL


def test_a_rule_that_is_wrong_is_found_by_the_reference(tmp_path, monkeypatch):
    """The negative control: calls and graph agree with one another, and not with ONNX."""
    from pipeline.networks.importing import onnx_rules  # noqa: PLC0415 - to be changed

    wrong = {**onnx_rules.RULES, "Relu": onnx_rules.RULES["Abs"]}
    monkeypatch.setattr(onnx_rules, "RULES", wrong)
    with pytest.raises(ModelError, match="does not compute what the network does"):
        prove(read_onnx(of_nodes(tmp_path / "net", [["Relu", ["x"], {}]])))


@pytest.mark.parametrize("shape", [(9, 8), (6, 5, 7)])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_our_convolutions_are_those_of_the_package(kind, shape):
    """In numpy, tap by tap: strides, dilations, groups, unlike padding at either end."""
    generator, n = np.random.default_rng(0), len(shape)
    groups = (
        4 if kind == "ConvTranspose" else 2
    )  # the package's transposed one errs in groups of several channels, and with bias
    x, b = generator.random((1, 4, *shape)), generator.random(4)
    low, high = list(range(n)), [1] * n
    for given in (
        {},
        {"group": groups, "strides": [2] * n, "pads": low + high},
        {"group": groups, "dilations": [1, *[2] * (n - 1)]},
    ):
        w = generator.random((4, 4 // given.get("group", 1), *range(2, 2 + n)))
        arrays = {"x": x, "w": w, "b": b}
        given_names = ["x", "w"] if groups == 4 and "group" in given else ["x", "w", "b"]
        node = helper.make_node(kind, given_names, ["y"], **given)
        graph = helper.make_graph(
            [node], "graph", [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in given_names],
            [helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)],
        )  # fmt: skip
        (expected,) = ReferenceEvaluator(helper.make_model(graph)).run(
            None, {name: arrays[name] for name in given_names}
        )
        np.testing.assert_allclose(
            run_operator(node, [arrays[name] for name in given_names], 18)[0], expected, rtol=0, atol=EQUAL
        )


REFUSED = {
    "no rule": ([["MatMul", ["x", "x"], {}]], {}, "MatMul", "no rule here"),
    "depth to space": ([["DepthToSpace", ["x"], {"blocksize": 2}]], {}, "DepthToSpace", "no rule here"),
    "unknown operator": ([["Explode", ["x"], {}]], {}, "Explode", "no rule here"),
    "unknown attribute": ([["Relu", ["x"], {"twice": 1}]], {}, "Relu", "'twice' has no rule"),
    "cubic": ([HALF, ["Resize", ["x", "", "s"], {"mode": "cubic"}]], SCALES, "Resize", "cubic interpolation"),
    "linear, elsewhere": (
        [HALF, ["Resize", ["x", "", "s"], {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}]], SCALES, "Resize", "asymmetric"
    ),
    "nearest, off the groups": (
        [HALF, ["Resize", ["x", "", "s"], {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil"}]],
        SCALES, "Resize", "no whole groups",
    ),
    "wrapped": ([["Pad", ["x", "p"], {"mode": "wrap"}]], {"p": np.array([0, 0, 1, 1] * 2)}, "Pad", "circular"),
    "padded channels": ([["Pad", ["x", "p"], {}]], {"p": np.array([0, 1, 0, 0] * 2)}, "Pad", "pads channels"),
    "other axes": ([["Transpose", ["x"], {"perm": [0, 1, 3, 2]}]], {}, "", "axes in another order"),
    "axes exchanged": ([["Transpose", ["x"], {"perm": [0, 1, 3, 2]}], ["Relu", ["x"], {}]], {}, "Relu", "axes in another order"),
    "whole numbers": ([["Cast", ["x"], {"to": 7}]], {}, "Cast", "no floating point"),
    "soft-max over all": ([["Softmax", ["x"], {"axis": 1}]], {}, "Softmax", "not over channels", 11),
    "for training": ([["Dropout", ["x", "r", "t"], {}]], {"r": numbers(0.5), "t": np.array(True)}, "Dropout", "exported for training"),
    "kernel of the image": ([["Conv", ["x", "x"], {}]], {}, "Conv", "comes from the image"),
    "huge constant": ([["ConstantOfShape", ["c"], {}], ["Add", ["v0", "x"], {}]], {"c": np.array([2**40])}, "ConstantOfShape", "values of no image"),
    "huge grid": ([["Add", ["c", "d"], {}], ["Add", ["v0", "x"], {}]], {"c": np.zeros((2**15, 1)), "d": np.zeros((1, 2**15))}, "Add", "values of no image"),
    "huge output": ([["Resize", ["x", "", "s"], {}]], {"s": numbers(1, 1, 1e9, 1)}, "Resize", "it makes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_by_its_node_and_operator(name, tmp_path):
    """And why."""
    nodes, constants, kind, why, *opset = REFUSED[name]
    with pytest.raises(ModelError) as refused:
        prove(read_onnx(of_nodes(tmp_path / "net", nodes, constants, opset=(opset or [18])[0])))
    assert why in str(refused.value)
    assert kind in str(refused.value)
    assert not kind or "node " in str(refused.value)


def test_doubling_again_and_again_is_refused(tmp_path):
    """A chain of 40 nodes that asks for 2^40 values."""
    with pytest.raises(ModelError, match="values of no image"):
        read_onnx(
            of_nodes(
                tmp_path / "net",
                [["Concat", ["c", "c"], {"axis": 0}], *[["Concat", ["x", "x"], {"axis": 0}]] * 40],
                {"c": FOUR},
            )
        )


# --- hostile files --------------------------------------------------------------------------------------------------------


class Marker:
    """Pickled, it makes a file of whoever unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def model_of(path):
    """What a file says, to be changed."""
    return onnx.load_model(str(path), load_external_data=False)


def test_what_runs_code_elsewhere_runs_nothing_here(tmp_path):
    """A pickle as a tensor's bytes, as text, as metadata, and as a file beside; the control goes off."""
    marker = tmp_path / "marker"
    bomb = pickle.dumps(Marker(marker))
    bomb += b"\0" * (-len(bomb) % 4)
    pickle.loads(bomb)
    assert marker.exists()
    marker.unlink()
    path = of_nodes(tmp_path / "net.onnx", [["Add", ["x", "c"], {}]], {"c": numbers(0)})
    model = model_of(path)
    model.doc_string = model.graph.doc_string = bomb.decode("latin-1")
    model.metadata_props.add(key="pickle", value=bomb.decode("latin-1"))
    helper.set_model_props(model, {"__reduce__": f"__import__('pathlib').Path({str(marker)!r}).touch()"})
    tensor = next(one for one in model.graph.initializer if one.name == "c")
    tensor.CopyFrom(TensorProto(name="c", data_type=TensorProto.UINT8, dims=[len(bomb)], raw_data=bomb))
    saved(path, model)
    with pytest.raises(ModelError, match=r"cannot be: .*broadcast"):
        import_network(path)
    (tmp_path / "beside").write_bytes(bomb)
    beside(model, "beside", sizes=[len(bomb)], kind=TensorProto.UINT8)
    saved(path, model)
    with pytest.raises(ModelError):
        import_network(path)
    saved(tmp_path / "bomb.onnx", model).write_bytes(bomb)
    assert not is_onnx(tmp_path / "bomb.onnx")
    with pytest.raises(ModelError, match="no network that can be imported"):
        import_network(tmp_path / "bomb.onnx")
    assert not marker.exists()


def beside(model, location, *, sizes=(4, 1, 1), kind=TensorProto.FLOAT, **more):
    """The constant `c` of a model, in a file."""
    tensor = next(one for one in model.graph.initializer if one.name == "c")
    tensor.CopyFrom(TensorProto(name="c", data_type=kind, dims=sizes, data_location=TensorProto.EXTERNAL))
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))


@pytest.fixture
def with_constant(tmp_path):
    """A model with a constant of one number a channel."""
    (tmp_path / "folder").mkdir()
    return of_nodes(tmp_path / "folder" / "net.onnx", [["Add", ["x", "c"], {}]], {"c": FOUR.reshape(4, 1, 1)})


def test_a_file_beside_the_model_is_read(with_constant):
    """The control of what is refused below."""
    expected, model = read_onnx(with_constant), model_of(with_constant)
    (with_constant.parent / "weights").write_bytes(b"skip" + FOUR.tobytes() + b"rest")
    beside(model, "weights", offset=4, length=16)
    imported = read_onnx(saved(with_constant, model))
    assert imported.graph == expected.graph
    assert torch.equal(imported.weights["node 1"][1], expected.weights["node 1"][1])
    assert prove(imported).origin < EQUAL


@pytest.mark.parametrize(
    ("location", "more", "why"),
    [
        ("../secret", {}, "not beside the model"),
        ("a/../../secret", {}, "not beside the model"),
        ("ABSOLUTE", {}, "not beside the model"),
        ("link", {}, "a link to what is not beside"),
        ("", {}, "not beside the model"),
        ("missing", {}, "no such file"),
        ("short", {"length": 16}, "which has 3"),
        ("short", {"offset": -4, "length": 3}, "which has 3"),
        ("short", {"offset": 10**30}, "which has 3"),
    ],
)
def test_a_file_elsewhere_is_never_read(location, more, why, with_constant, tmp_path):
    """Up, by an absolute path, or over a link; and no byte beyond its end."""
    (tmp_path / "secret").write_bytes(FOUR.tobytes())
    (with_constant.parent / "short").write_bytes(b"abc")
    (with_constant.parent / "link").symlink_to(tmp_path / "secret")
    model = model_of(with_constant)
    beside(model, str(tmp_path / "secret") if location == "ABSOLUTE" else location, **more)
    with pytest.raises(ModelError, match=why):
        import_network(saved(with_constant, model))


def test_an_operator_of_another_domain_is_refused_by_name(with_constant):
    """It may be anybody's code."""
    model = model_of(with_constant)
    model.graph.node[1].domain = "com.evil"
    with pytest.raises(ModelError, match=r"'node 1' is a Add of the domain 'com\.evil'"):
        import_network(saved(with_constant, model))


def test_a_graph_within_a_graph_is_refused_by_name(with_constant):
    """As of loops and conditions."""
    model = model_of(with_constant)
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["", "", "v1"], ["v2"], "loop", body=body))
    with pytest.raises(ModelError, match="'loop' is a Loop with 'body', a graph"):
        import_network(saved(with_constant, model))


def test_functions_of_a_model_are_refused(with_constant):
    """Each may use the next twice."""
    model = model_of(with_constant)
    model.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], [], []))
    with pytest.raises(ModelError, match=r"functions of its own \('Twice'\)"):
        import_network(saved(with_constant, model))


def test_a_million_nodes_are_refused_before_they_are_read(tmp_path, monkeypatch):
    """They are counted in the file; no message is made of them."""
    node = helper.make_node("Relu", ["a"], ["b"]).SerializeToString()
    nodes = (b"\x0a" + bytes([len(node)]) + node) * 10**6
    length, sizes = len(nodes), b""
    while length >= 128:
        sizes, length = sizes + bytes([length & 127 | 128]), length >> 7
    path = tmp_path / "net.onnx"
    path.write_bytes(b"\x08\x08\x3a" + sizes + bytes([length]) + nodes)
    assert is_onnx(path)

    def read(*_, **__):
        raise AssertionError("It is read.")

    monkeypatch.setattr(onnx_model, "onnx_package", read)
    with pytest.raises(ModelError, match="more than 20,000 operators"):
        import_network(path)


def test_a_model_without_the_package_says_what_to_install(with_constant, monkeypatch):
    """It is an extra."""
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    monkeypatch.setitem(__import__("sys").modules, "onnx.reference", None)
    with pytest.raises(ModelError, match=r"which is not installed: .*\[onnx\]"):
        import_network(with_constant)


def test_other_files_are_no_models(tmp_path):
    """Text, zeros, a cut model; folders."""
    path = of_nodes(tmp_path / "net", [])
    content = path.read_bytes()
    assert kind_of(path).name == "a model of ONNX"
    for number, other in enumerate((b"", b"hello", b"\0" * 99, content[:-3], content + b"\x99", os.urandom(999))):
        path.write_bytes(other)
        assert not is_onnx(path), number
    assert not is_onnx(tmp_path)


@pytest.mark.network
def test_a_damaged_model_is_refused_in_words_or_read(tmp_path):
    """Whatever byte of it is another: never another error than ours."""
    path = of_nodes(tmp_path / "net", [["Relu", ["x"], {}]])
    content, refused = path.read_bytes(), 0
    kept = content.index(kernel(4, 2).tobytes())  # values of the kernel may be any
    for byte in [*range(kept), *range(kept + 4 * 4 * 9 * 4, len(content))]:
        path.write_bytes(content[:byte] + bytes([content[byte] ^ 0x55]) + content[byte + 1 :])
        try:
            read_onnx(path)
        except ModelError:
            refused += 1
    assert refused > 100


def test_inputs_that_are_no_image_are_refused(tmp_path):
    """Three axes; open channels; two images."""
    for shape, why in (((1, 4, None), "3 axes"), ((1, None, 8, 8), "how many channels")):
        message = helper.make_tensor_value_info("image", TensorProto.FLOAT, [n or f"n{i}" for i, n in enumerate(shape)])
        graph = helper.make_graph([helper.make_node("Relu", ["image"], ["y"])], "graph", [message], [message])
        with pytest.raises(ModelError, match=why):
            read_onnx(saved(tmp_path / "net", helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])))
    model = model_of(of_nodes(tmp_path / "two", []))
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, (1, 4, 8, 8)))
    with pytest.raises(ModelError, match=r"takes 2 inputs \('image', 'other'\)"):
        read_onnx(saved(tmp_path / "two", model))


def test_one_of_several_outputs_is_predicted(tmp_path):
    """The first, or the one that is named by its number."""
    path = of_nodes(tmp_path / "net", [["Sigmoid", ["x"], {}]], outputs=["v0", "v1"])
    assert [len(read_onnx(path, output=n).graph.nodes) for n in (0, 1)] == [2, 3]
    assert prove(read_onnx(path, output=1)).origin < EQUAL
    with pytest.raises(ModelError, match="gives 2 maps, and output 2 was asked for"):
        read_onnx(path, output=2)

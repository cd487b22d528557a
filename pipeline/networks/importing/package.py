"""A package of bioimage.io to a checkpoint: its network, its rule and its activation, proven by the test that was published with it.

    PackageFiles -description-> Description -weights-> Network -processing-> Checkpoint -published test-> proven

Nothing of a package is run but the architecture of a state dict, in a child process, and only where somebody trusts it.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from pipeline.core.geometry.box import triple
from pipeline.core.network.graph import Graph
from pipeline.core.network.imported import Imported
from pipeline.core.network.receptive import receptive_radius, voxel_reach
from pipeline.core.normalization import Normalization, finite
from pipeline.core.printable import one_line
from pipeline.core.statistics import Parts, known, measure, most_passes
from pipeline.errors import ModelError
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.evaluate import one_pass
from pipeline.networks.importing import description as described
from pipeline.networks.importing.description import Description, WeightsEntry, read_description
from pipeline.networks.importing.library import LibraryClass, build_network
from pipeline.networks.importing.lowering import Network
from pipeline.networks.importing.package_files import PackageFiles
from pipeline.networks.importing.processing import Tensors, after, before, with_nodes
from pipeline.networks.predictor import activated

AGREED = 1e-5
"""Of the published output's range: what rounding to float32 leaves, in whatever order sums were taken."""

SPACE = ("z", "y", "x")

ARCHITECTURE = "halotile_package_architecture"
"""What the code of a package is called where it is run: no module that is installed has this name."""

READABLE = ("onnx", "torchscript", "pytorch_state_dict")
"""Forms of weights that there are readers for."""


class Prove(Protocol):
    """The checkpoint of a network, compared with what it was read from."""

    def __call__(self, network: Network, *, source: str, facts: Mapping[str, str] | None = None) -> Checkpoint: ...


@dataclass(frozen=True)
class Importer:
    """How a package is imported.

    Args:
        read: The network of a file that holds one, such as ONNX; raises where nobody knows it.
        prove: The checkpoint of a network.
        output: Which of the outputs is predicted, where there are several.
        trust: Whether code of the package may be run, in a process of its own.
    """

    read: Callable[[Path], Network]
    prove: Prove
    output: int = 0
    trust: bool = False


def import_package(path: Path, importer: Importer) -> Checkpoint:
    """The network of a package.

    Args:
        path: A folder, a zip, or the description.
        importer: How.

    Raises:
        ModelError: The package is damaged or hostile, needs what has no equal here, or does not give what was published with it.
    """
    with PackageFiles(path) as files:
        return _Package(files, read_description(files.text(), str(path)), importer).checkpoint()


class _Package:
    """An open package, of which one output is wanted."""

    def __init__(self, files: PackageFiles, description: Description, importer: Importer) -> None:
        self.files, self.description, self.importer = files, description, importer
        output = importer.output
        inputs, outputs = description.inputs, description.outputs
        if len(inputs) != 1:
            named = ", ".join(tensor.name for tensor in inputs)
            raise self._refused(f"its network takes {len(inputs)} inputs ({named}), and a run has one image")
        if not 0 <= output < len(outputs):
            named = ", ".join(tensor.name for tensor in outputs)
            raise self._refused(f"output {output} was asked for, and it has {len(outputs)} ({named}), counted from 0")
        self.input, self.output = inputs[0], outputs[output]
        self.ndim = self._ndim(self.input)
        if self._ndim(self.output) != self.ndim:
            raise self._refused(
                f"its output has the axes {', '.join(self.output.axes)}, and its input {', '.join(self.input.axes)}"
            )

    def _ndim(self, tensor: described.Tensor) -> int:
        for ndim in (2, 3):
            if tensor.axes == ("batch", "channel", *SPACE[3 - ndim :]):
                return ndim
        raise self._refused(
            f"its tensor '{tensor.name}' has the axes {', '.join(tensor.axes)}; expected batch, channel, then y, x or z, y, x"
        )

    def _refused(self, why: str) -> ModelError:
        return ModelError(f"Package '{self.files.path}' cannot be run: {why}.")

    # --- weights ------------------------------------------------------------------------------------------------------

    def _network(self) -> tuple[Network, dict[str, str]]:
        """The first of the package's weights that can be read; and which, and why not others."""
        reasons = dict[str, str]()
        with tempfile.TemporaryDirectory(prefix="halotile-package-") as folder:
            for entry in self.description.weights:
                if reason := self._unread(entry):
                    reasons[entry.format] = reason
                    continue
                weights = self.files.copy(entry.file.source, entry.file.sha256, Path(folder) / entry.format)
                self._copy_code(entry.code, Path(folder))
                try:
                    network, facts = self._read(entry, weights, Path(folder))
                except ModelError as error:
                    reasons[entry.format] = one_line(str(error).replace(str(weights), entry.file.source))
                    continue
                rest = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
                taken = f"{entry.format}, '{entry.file.source}'"
                return network, {"weights taken": taken, "weights not taken": rest, **facts}
        listed = "".join(f"\n  {name}: {reason}" for name, reason in reasons.items())
        raise ModelError(f"Of package '{self.files.path}' no weights can be read:{listed}")

    def _unread(self, entry: WeightsEntry) -> str:
        """Why weights are not tried; empty where they are."""
        source, code = entry.file.source, entry.code
        if entry.format not in READABLE:
            return "is not read here: expected ONNX, TorchScript, or a state dict of torch"
        if "://" in source:
            return f"its file lies at the address {source}, and nothing is downloaded: put it beside the description, and name it there"
        if not self.files.has(source):
            return f"its file '{source}' is not there"
        if entry.format != "pytorch_state_dict":
            return ""
        if code is None:
            return "the package names no architecture for it"
        if code.file and not self.importer.trust:
            return (
                f"its architecture, '{code.name}' in '{code.file.source}', is code of the package, which somebody must trust. If you do, say "
                "--trust, or model.trust: true: it is run in a process of its own"
            )
        return ""

    def _copy_code(self, code: described.Code | None, folder: Path) -> None:
        if code and code.file:
            self.files.copy(code.file.source, code.file.sha256, folder / f"{ARCHITECTURE}.py")

    def _read(self, entry: WeightsEntry, weights: Path, folder: Path) -> tuple[Network, dict[str, str]]:
        """A network, and facts of its making."""
        code, importer = entry.code, self.importer
        if code is None:
            return importer.read(weights), {}
        try:
            json.dumps(dict(code.arguments), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ModelError(f"'{code.name}' is given what JSON has not ({error}).") from error
        if code.file:
            source = LibraryClass(f"{ARCHITECTURE}.{code.name}", code.arguments, folder)
            facts = {"architecture": f"{code.name} of '{code.file.source}', trusted"}
        else:
            source, facts = (
                LibraryClass(f"{code.module}.{code.name}", code.arguments),
                {"class": f"{code.module}.{code.name}"},
            )
        built = build_network(source, weights, trust=importer.trust, output=importer.output)
        return built.network, {**facts, "library": built.library}

    # --- what it is run with ------------------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """The network with the package's processing, proven by the published test."""
        network, facts = self._network()
        self._check(network)
        graph = network.graph
        rule, first = before(self.input.steps, Tensors(self.ndim, graph.input.channels))
        activation, last = after(self.output.steps, Tensors(self.ndim, graph.output.channels))
        facts = {"kind": "a package of bioimage.io", **facts}
        proven = self.importer.prove(network, source=self.files.path.name, facts=facts)
        complete = with_nodes(network, first, last)
        added = complete.weights.keys() - network.weights.keys()
        state = {f"{node}.{n}": w.float() for node in added for n, w in enumerate(complete.weights[node])}
        checkpoint = replace(
            proven,
            architecture=Imported(complete.graph, complete.ndim),
            state=proven.state | state,
            normalization=rule,
            activation=activation,
        )
        about = self.description
        declared = {
            "package": f"{about.name}, format {about.format}, licence {about.license or 'not told'}",
            "cite": "; ".join(about.cite),
            "published test": self._published(checkpoint),
            "halo": _halo(self.output, graph),
            "extents": _extents(self.input, graph),
            "before": ", ".join(step.name for step in self.input.steps),
            "after": ", ".join(step.name for step in self.output.steps),
        }
        return replace(checkpoint, provenance=proven.provenance | declared)

    def _check(self, network: Network) -> None:
        """The network must be what is declared.

        Raises:
            ModelError: It has other axes or channels.
        """
        if network.ndim != self.ndim:
            raise self._refused(f"it declares {self.ndim} spatial axes, and its network has {network.ndim}")
        for tensor, node in ((self.input, network.graph.input), (self.output, network.graph.output)):
            if tensor.sizes.get("channel") not in (None, node.channels):
                raise self._refused(
                    f"its tensor '{tensor.name}' is declared with {tensor.sizes['channel']} channels, and its network has {node.channels}"
                )

    def _published(self, checkpoint: Checkpoint) -> str:
        """Compare with what was published, by one pass over the test's input.

        Raises:
            ModelError: There is no test, or it comes out otherwise.
        """
        given, expected = self._test(self.input), self._test(self.output)
        rule = _numbers(checkpoint.normalization or Normalization(), given if _of_all(self.input) else given[:1])
        image = torch.from_numpy(rule.apply(given[:1])).double()
        window = image if self.ndim == 3 else image[:, :, None]
        weights = {node: tuple(w.double() for w in tensors) for node, tensors in checkpoint.weights.items()}
        with torch.inference_mode():
            found = activated(
                one_pass(checkpoint.architecture.graph, weights, window)[0], checkpoint.activation or "none"
            ).numpy()
        wanted = expected[0] if self.ndim == 3 else expected[0][:, None]
        if found.shape != wanted.shape:
            raise self._refused(
                f"over its published input the network gives {found.shape} values (channels, z, y, x), and {wanted.shape} were published"
            )
        wanted = wanted.astype(np.float64)
        extent = float(wanted.max() - wanted.min()) or 1.0
        difference = float(np.abs(found - wanted).max()) / extent
        if not difference <= AGREED:
            raise self._refused(
                f"over its published input the network is {difference:.2e} of the range off the published output ({AGREED:g} is allowed). Its "
                "weights are others, or what it declares is not what was done"
            )
        return f"{difference:.1e} of the range off the published output, over {' x '.join(map(str, given.shape[2:]))} voxels"

    def _test(self, tensor: described.Tensor) -> np.ndarray:
        """The published array of a tensor, finite.

        Raises:
            ModelError: There is none, or it is no array of the tensor's axes.
        """
        if tensor.test is None:
            raise self._refused(
                f"no test is published for its tensor '{tensor.name}', so nothing tells whether it is read rightly"
            )
        name = tensor.test.source
        array = _array(self.files.read(name, tensor.test.sha256), name)
        if array.ndim != len(tensor.axes) or not array.size or array.dtype.kind not in "biuf":
            raise self._refused(
                f"its test '{name}' has shape {array.shape} and type {array.dtype}; its axes are {', '.join(tensor.axes)}"
            )
        return finite(
            array,
            "fail",
            lambda count, _: self._refused(f"its test '{name}' holds {count} values that are not finite"),
        )


def _of_all(tensor: described.Tensor) -> bool:
    """Whether statistics are of all samples of a batch."""
    return any(
        "batch" in (step.arguments.get("axes") or ()) or step.arguments.get("mode") == "per_dataset"
        for step in tensor.steps
    )


def _numbers(rule: Normalization, array: np.ndarray) -> Normalization:
    """`rule` with the numbers of an array, (B, C, Z, Y, X) or (B, C, Y, X), as a run measures a volume."""
    dtype = str(array.dtype)
    if not most_passes(rule, dtype):
        return known(rule, dtype)
    flat = array.reshape(-1, *array.shape[-2:])
    shape = triple(flat.shape)
    return measure(rule, dtype, array.size, Parts(shape, shape), lambda _: flat)


def _array(content: bytes, name: str) -> np.ndarray:
    """An array of numpy's format, no larger than its file.

    Raises:
        ModelError: It is none.
    """
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        if dtype.hasobject or prod(shape) * dtype.itemsize != len(content) - stream.tell():
            raise ValueError(f"shape {shape} of {dtype} in {len(content)} bytes")
        stream.seek(0)
        return np.asarray(np.load(stream, allow_pickle=False))
    except (ValueError, TypeError, SyntaxError, EOFError, OverflowError, MemoryError, RecursionError) as error:
        raise ModelError(f"The package's test '{name}' is no array ({one_line(str(error))[:200]}).") from error


def _halo(output: described.Tensor, graph: Graph) -> str:
    """What is declared beside what is needed."""
    if not graph.is_padded or not graph.is_local:
        return ""
    names = [axis for axis in output.axes if axis in SPACE]
    told = {axis: output.halo.get(axis, 0) for axis in names}
    sides = dict(zip(SPACE, voxel_reach(graph), strict=True))
    least = dict(zip(SPACE, receptive_radius(graph), strict=True))
    short = {axis: max(sides[axis]) - told[axis] for axis in names if max(sides[axis]) > told[axis]}
    needed = {
        axis: before if before == after else f"{before} before, {after} after"
        for axis, (before, after) in sides.items()
    }
    words = f"declared {_by(told)}; needed {_by({a: needed[a] for a in names})}"
    lattice = f" (on the stride lattice, where tiles are here, {_by({a: least[a] for a in names})})"
    return f"{words}: {_by(short)} more than declared{lattice}" if short else words + lattice


def _by(numbers: Mapping[str, object]) -> str:
    return ", ".join(f"{axis} {number}" for axis, number in numbers.items())


def _extents(given: described.Tensor, graph: Graph) -> str:
    """Extents that are declared beside those that the graph takes in one pass."""
    stride = dict(zip(SPACE, graph.stride, strict=True))
    return "; ".join(_extent(axis, given.sizes.get(axis), stride[axis]) for axis in given.axes if axis in SPACE)


def _extent(axis: str, told: int | tuple[int, int] | None, stride: int) -> str:
    taken = f"multiples of {stride} by the graph" if stride > 1 else "any by the graph"
    if told is None:
        return f"{axis} {taken}"
    if isinstance(told, int):
        return f"{axis} declared {told}, {taken}"
    least, step = told
    is_mirrored = least % stride or step % stride
    return f"{axis} declared {least} + n {step}, {taken}" + (": others are mirrored to them" if is_mirrored else "")

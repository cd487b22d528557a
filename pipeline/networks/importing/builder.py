"""Build a network of another library, load its weights, and save its programs: a script that a process of its own runs.

    python -P builder.py     (the job is one line of JSON on the standard input)

The class is somebody else's code. So it runs here, in an environment of its own, and nothing of it comes back but `answer.json` and
files that are read as `pipeline.networks.importing.archive` reads them. Nothing of Halotile is imported. The process ends, with all
that it started, when the one that asked closes the standard input.

The job: `class`, `arguments`, `weights` (a path), `sizes` (voxels an axis, tried in order), `steps` (to a second size), `trust`, `path`
(folders to import from besides), `folder` (where `first.pt2`, `second.pt2` and `answer.json` go). Or, of a file of TorchScript:
`torchscript` (a path), `allowed` (operations that it may have), `sizes`, `steps`, `folder` (where `check.safetensors` goes besides).
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram, export, save
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils import _pytree

LONGEST = 2000
"""Characters of an error that are told."""


def main() -> NoReturn:
    """Do the job on the standard input; what the library prints goes nowhere that is read."""
    asked = os.fdopen(os.dup(0), "rb", buffering=0)
    job = json.loads(_line(asked))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(asked,), daemon=True).start()
    sys.path += job["path"]
    answer = json.dumps(built(job), allow_nan=False)
    Path(job["folder"], "answer.json").write_text(answer)
    sys.stderr.flush()
    os._exit(0)  # nor does the library do more at its end


def _line(asked: Any) -> bytes:
    found = b""
    while not found.endswith(b"\n"):
        part = asked.read(2**16)
        if not part:
            break
        found += part
    return found


def _end_with(asked: Any) -> None:
    """End this process and what it started, when nobody waits for its answer any more."""
    while asked.read(2**10):
        pass
    os.killpg(0, signal.SIGKILL)


def built(job: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a job: `library`, `under` (where the weights stood in their file); or `error`, and `missing`, a package."""
    if "torchscript" in job:
        return _converted(job)
    try:
        kind = _class(job["class"], job["class"], trust=job["trust"])
        network = kind(**_arguments(job["arguments"], job))
        under = _load(network, Path(job["weights"]), trust=job["trust"])
        _export(network.eval().requires_grad_(False).float(), job)
    except ModuleNotFoundError as error:
        return {"error": _told(error), "missing": error.name}
    except Exception as error:  # noqa: BLE001 - somebody else's code raises anything
        return {"error": _told(error)}
    package = job["class"].partition(".")[0]
    version = getattr(sys.modules.get(package), "__version__", "")
    return {"library": f"{package} {version}".strip()[:100], "under": under[:200]}


def _told(error: Exception) -> str:
    text = str(error).strip()
    return (text if isinstance(error, _RefusedError) else f"{type(error).__name__}: {text}")[:LONGEST]


class _RefusedError(Exception):
    """Of this script, in words of its own."""


def _class(name: str, of: str, *, trust: bool) -> type[nn.Module]:
    """A class of networks by its dotted name, looked at before it is called.

    Args:
        name: Of the class; its module is imported as a module, so that nothing that a module merely holds is walked through.
        of: The class that is built, whose package is the one that classes may come from.
        trust: Whether what it is may come from anywhere.
    """
    module, _, last = name.rpartition(".")
    if not module:
        raise _RefusedError(f"'{name}' names no package. Expected one such as 'monai.networks.nets.UNet'")
    packages = {of.partition(".")[0], "torch"} if of != name else {of.partition(".")[0]}
    if not trust and name.partition(".")[0] not in packages:
        raise _RefusedError(f"'{name}' is of neither torch nor the package of '{of}', and needs trust")
    found = getattr(importlib.import_module(module), last, None)
    if found is None:
        raise _RefusedError(f"module '{module}' has nothing called '{last}'")
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise _RefusedError(f"'{name}' is no class of networks (torch.nn.Module), so it is not called")
    return found


def _arguments(given: Any, job: Mapping[str, Any]) -> Any:
    """Arguments as the library takes them: what is `{"class": NAME}` becomes that class, and so does what nnU-Net's plans say to import."""
    if isinstance(given, list):
        return [_arguments(value, job) for value in given]
    if not isinstance(given, dict):
        return given
    if [*given] == ["class"]:
        return _class(given["class"], job["class"], trust=job["trust"])
    names = given.get("_kw_requires_import", ())
    return {
        key: _class(value, job["class"], trust=job["trust"])
        if key in names and value is not None
        else _arguments(value, job)
        for key, value in given.items()
        if key != "_kw_requires_import"
    }


def _load(network: nn.Module, path: Path, *, trust: bool) -> str:
    """Give a network its weights; says where in the file they stood.

    Nothing is unpickled but tensors and plain values, unless that is trusted.
    """
    if not isinstance(network, nn.Module):
        raise _RefusedError(f"the class gave a {type(network).__name__}, which is no network of torch")
    wanted = _shapes(network.state_dict())
    found = [*_states(_content(path, trust=trust))]
    if not found:
        raise _RefusedError(f"'{path.name}' holds no state dict, which is a mapping of names to tensors")
    for under, state in found:
        for named in _prefixes(state):
            if _shapes(named) == wanted:
                network.load_state_dict(named, strict=False)  # but for counters, it is
                return under
    _, state = max(found, key=lambda one: len(one[1]))
    state = max(_prefixes(state), key=lambda named: len(wanted.keys() & named.keys()))
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(_shapes(state).keys() - wanted.keys())
    shapes = [
        f"{name} is {tuple(state[name].shape)} and not {shape}"
        for name, shape in wanted.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    raise _RefusedError(
        f"the weights in '{path.name}' do not fit it. Missing: {_few(missing)}. Unknown: {_few(unknown)}. Other shapes: {_few(shapes)}. "
        "Were they trained with these arguments?"
    )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Of all tensors but the counters of batch norms, which change no value and which some leave out."""
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:4]) or "none"
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def _content(path: Path, *, trust: bool) -> Any:
    with path.open("rb") as file:
        if file.read(9)[8:] == b"{":  # a header of JSON
            from safetensors.torch import load_file  # noqa: PLC0415 - only where it is one

            return load_file(str(path))
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if trust:
            return torch.load(path, map_location="cpu", weights_only=False)
        telling = next((line for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line), "")
        raise _RefusedError(
            f"'{path.name}' holds more than tensors and plain values, or is damaged, and nothing else is unpickled without trust "
            f"({type(error).__name__} {telling.strip()[:160]}). Save the state dict alone"
        ) from error


def _states(content: Any, under: str = "", depth: int = 2) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Mappings of names to tensors in what a file holds, with the keys that lead there."""
    if not isinstance(content, Mapping):
        if isinstance(content, nn.Module):  # a whole module that was pickled
            yield under, content.state_dict()
        return
    if content and all(isinstance(value, Tensor) and isinstance(name, str) for name, value in content.items()):
        yield under, dict(content)
    elif depth:
        for key, value in content.items():
            yield from _states(value, f"{under}.{key}".lstrip("."), depth - 1)


def _prefixes(state: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """A state dict by its own names, and without what all of them begin with: `module.` of parallel training, `model.` of Lightning."""
    yield state
    while len(first := {name.partition(".")[0] for name in state}) == 1 and all("." in name for name in state):
        state = {name.removeprefix(f"{next(iter(first))}."): tensor for name, tensor in state.items()}
        yield state


class _Seen(BaseException):
    """The first convolution is called: no more is needed of this pass."""


def _input(network: nn.Module, sizes: list[int]) -> tuple[int, int]:
    """Channels and spatial axes of what a network takes: those of the convolution that it calls first, at a size that it takes."""
    convolutions = [module for module in network.modules() if isinstance(module, _ConvNd)]
    axes = {len(conv.kernel_size) for conv in convolutions} & {2, 3}
    if not axes:
        raise _RefusedError("it has no 2D or 3D convolution")
    ndim, seen = max(axes), list[_ConvNd]()

    def look(module: nn.Module, _: Any) -> None:
        if isinstance(module, _ConvNd):
            seen.append(module)
            raise _Seen

    handle = register_module_forward_pre_hook(look)
    try:
        for size in sizes:
            with (
                suppress(_Seen, Exception),
                torch.inference_mode(),
            ):  # before a convolution it may refuse the size, or one channel
                network(torch.zeros(1, 1, *[size] * ndim))
            if seen:
                break
    finally:
        handle.remove()
    first = (seen or [conv for conv in convolutions if len(conv.kernel_size) == ndim])[0]
    return first.in_channels, len(first.kernel_size)


def _export(network: nn.Module, job: Mapping[str, Any]) -> None:
    """Save its programs at two sizes, the first that it takes and one further on along each axis, of which no two are alike."""
    channels, ndim = _input(network, job["sizes"])

    def program_of(example: Tensor) -> ExportedProgram:
        return export(network, (example,), strict=False)

    why = "it takes no image"
    first = _first_that_works(job, "first", [[1, channels, *[n] * ndim] for n in job["sizes"]], program_of, why)
    n = first[-1]
    steps = [*job["steps"], n]
    shapes = [[1, channels, *[n + step, n + 2 * step, n + step][:ndim]] for step in steps]
    _first_that_works(job, "second", shapes, program_of, why)


def _first_that_works(
    job: Mapping[str, Any],
    name: str,
    shapes: list[list[int]],
    program_of: Callable[[Tensor], ExportedProgram],
    why: str,
) -> list[int]:
    """Save the program of the first example that works; its shape.

    Args:
        job: Says where to.
        name: Of the file.
        shapes: Of examples, tried in order.
        program_of: Makes the program of an example. What it refuses in words of this script is refused for every other, too.
        why: What is told, where none works.
    """
    refused: Exception | None = None
    for shape in shapes:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                save(program_of(torch.zeros(shape)), Path(job["folder"], f"{name}.pt2"))
        except _RefusedError:
            raise
        except Exception as error:  # noqa: BLE001 - somebody else's code raises anything
            refused = refused or error
        else:
            return shape
    sizes = ", ".join("x".join(map(str, shape[2:])) for shape in shapes[:8])
    raise _RefusedError(f"{why} of {shapes[0][1]} channel(s) and {sizes} ... voxels ({_told(refused or ValueError())})")


# --- TorchScript --------------------------------------------------------------------------------------------------------


PRIMITIVES = frozenset(
    [
        "Constant", "GetAttr", "If", "ListConstruct", "ListUnpack", "Loop", "NumToTensor", "RaiseException", "TupleConstruct", "TupleIndex",
        "TupleUnpack", "Uninitialized", "device", "dtype", "max", "min", "unchecked_cast", "unchecked_unwrap_optional",
    ]
)  # fmt: skip
"""Of TorchScript itself: none of them reads or writes anything but values."""

UNWANTED = ("__setstate__", "torch.classes", "__torch__.torch.classes")
"""What has code run as soon as a file is loaded, before anything can be looked at."""


def _converted(job: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a job of TorchScript: nothing; or `error`."""
    try:
        path = Path(job["torchscript"])
        _look_at_code(path)
        module = torch.jit.load(str(path), map_location="cpu").eval()
        _look_at_operations(module.inlined_graph, frozenset(job["allowed"]))
        _convert(module, job)
    except Exception as error:  # noqa: BLE001 - somebody else's code raises anything
        return {"error": _told(error)}
    return {}


def _look_at_code(path: Path) -> None:
    """Refuse what runs code when it is loaded. Loading itself runs none: pickles are read by torch's own reader, without Python."""
    with zipfile.ZipFile(path) as file:
        for member in file.infolist():
            parts = member.filename.split("/")
            if member.filename.endswith((".py", ".pkl")) and "data" not in parts[1:-1]:
                content = file.read(member)
                for word in UNWANTED:
                    if word.encode() in content:
                        raise _RefusedError(
                            f"its part '{member.filename[:200]}' has '{word}', which would run as it is loaded"
                        )


def _look_at_operations(block: Any, allowed: frozenset[str]) -> None:
    """Refuse operations that do more than compute: TorchScript has some that write files."""
    for node in block.nodes():
        space, _, name = node.kind().partition("::")
        known = name in PRIMITIVES if space == "prim" else space == "aten" and name.rstrip("_").lstrip("_") in allowed
        if not known:
            raise _RefusedError(f"it has the operation {node.kind()[:100]}, which has no rule here")
        for inner in node.blocks():
            _look_at_operations(inner, allowed)


def _convert(module: Any, job: Mapping[str, Any]) -> None:
    """Save its programs at two sizes, and what it gives itself at the first, in float64."""
    channels, ndim = _first_kernel(module)
    first = _first_converted(module, job, "first", [[1, channels, *[n] * ndim] for n in job["sizes"]])
    n = first[-1]
    steps = [*job["steps"], n]
    shapes = [[1, channels, *[n + step, n + 2 * step, n + step][:ndim]] for step in steps]
    _first_converted(module, job, "second", shapes)
    image = torch.rand(first, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        given = module.double()(image)
    leaves = [leaf for leaf in _pytree.tree_leaves(given) if isinstance(leaf, Tensor)]
    from safetensors.torch import save_file  # noqa: PLC0415 - only here

    results = {f"output {number}": leaf.contiguous().clone() for number, leaf in enumerate(leaves)}
    save_file({"image": image, **results}, Path(job["folder"], "check.safetensors"))


def _first_kernel(module: Any) -> tuple[int, int]:
    """Channels and spatial axes of what a network takes: those of its first convolution."""
    frozen = torch.jit.freeze(module, optimize_numerics=False)
    for node in frozen.inlined_graph.nodes():
        if node.kind().startswith("aten::") and "conv" in node.kind():
            inputs = [*node.inputs()]
            kernel = inputs[1].toIValue()
            if isinstance(kernel, Tensor) and kernel.ndim in (4, 5):
                groups = inputs[-1].toIValue() if node.kind() != "aten::_convolution" else inputs[8].toIValue()
                return kernel.shape[1] * int(groups or 1), kernel.ndim - 2
    raise _RefusedError("it has no 2D or 3D convolution")


def _first_converted(module: Any, job: Mapping[str, Any], name: str, shapes: list[list[int]]) -> list[int]:
    """Convert it at the first of some shapes that it takes."""
    try:
        from torch._export.converter import TS2EPConverter  # noqa: PLC0415 - private: not in every torch
    except ImportError as error:
        raise _RefusedError(
            f"this torch ({torch.__version__}) has no converter of TorchScript. Export the network with torch.export, or import it with another torch"
        ) from error

    class AtOneSize(TS2EPConverter):
        """Exports what it converted at the very size of its example: what follows from sizes are numbers then."""

        def retrace_as_exported_program(self, gm: fx.GraphModule, name_to_constant: dict[str, Any]) -> Any:  # noqa: ARG002 - as it is called
            numbers = _Numbers(gm)
            numbers.run(*self.sample_args)
            numbers.replace()
            return export(gm, self.sample_args, strict=False)

    return _first_that_works(
        job,
        name,
        shapes,
        lambda example: AtOneSize(module, (example,)).convert(),
        "it cannot be converted for an image",
    )


class _Numbers(fx.Interpreter):
    """Runs a graph, and then has what were numbers in it as such."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.graph_module, self.found = module, dict[fx.Node, Any]()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, (int, float, bool)):
            self.found[n] = result
        return result

    def replace(self) -> None:
        """Put them where they are used, and leave out what made them."""
        for node, value in self.found.items():
            for user in [*node.users]:

                def known(other: fx.Node, node: fx.Node = node, value: Any = value) -> Any:
                    return value if other is node else other

                user.args = fx.node.map_arg(user.args, known)
                user.kwargs = fx.node.map_arg(user.kwargs, known)
        for node in reversed([*self.graph_module.graph.nodes]):
            schema = getattr(node.target, "_schema", None)
            if node.op == "call_function" and not node.users and not getattr(schema, "is_mutable", False):
                self.graph_module.graph.erase_node(node)
        self.graph_module.recompile()


if __name__ == "__main__":
    main()

"""The network as code and as TorchScript that need nothing of ours."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pipeline import __version__
from pipeline.export.extents import Extents
from pipeline.networks.checkpoint import Checkpoint
from pipeline.networks.model import UNet

CALLABLE = "unet"
"""What the packaged source calls the function that builds the network."""


def architecture_source() -> str:
    """Source of a module that builds the network and needs nothing but torch: our own definitions, gathered."""
    gathered = _Gathered()
    gathered.add(UNet.__module__, UNet.__name__)
    header = f'"""The UNet of Halotile {__version__} (BSD-3-Clause), gathered from its source for this package."""'
    builder = (
        f"def {CALLABLE}(**architecture: object) -> UNet:\n"
        '    """The network of an architecture; see `Architecture`."""\n'
        "    return UNet(Architecture(**architecture))"
    )
    imports = "\n".join(sorted(gathered.imports))
    head = f"{header}\n\nfrom __future__ import annotations\n\n{imports}"
    return "\n\n\n".join([head, *gathered.pieces, builder]) + "\n"


@dataclass
class _Gathered:
    """Definitions in the order in which they need one another, and what they import from elsewhere."""

    imports: set[str] = field(default_factory=set)
    pieces: list[str] = field(default_factory=list)
    seen: set[tuple[str, str]] = field(default_factory=set)

    def add(self, module: str, name: str) -> None:
        """Add what `name` means in a module of ours, and all that it needs; names of no definition are passed over."""
        if (module, name) in self.seen:
            return
        self.seen.add((module, name))
        source = inspect.getsource(importlib.import_module(module))
        node = _definitions(ast.parse(source)).get(name)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline."):
            self.add(node.module or "", node.names[0].name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self.imports.add(ast.unparse(node))
        elif node is not None:
            for used in sorted({n.id for n in ast.walk(node) if isinstance(n, ast.Name)}):
                self.add(module, used)
            decorators = [d.lineno for d in getattr(node, "decorator_list", [])]
            lines = source.splitlines()[min([node.lineno, *decorators]) - 1 : node.end_lineno]
            self.pieces.append("\n".join(lines))


def _definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """What a module binds at its top level, by name; an import of several is one a name."""
    definitions: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign):
            definitions.update({t.id: node for t in node.targets if isinstance(t, ast.Name)})
        elif isinstance(node, ast.Import):
            definitions.update({a.asname or a.name.partition(".")[0]: ast.Import([a]) for a in node.names})
        elif isinstance(node, ast.ImportFrom):
            definitions.update({a.asname or a.name: ast.ImportFrom(node.module, [a], node.level) for a in node.names})
    return definitions


def save_trace(checkpoint: Checkpoint, path: Path) -> None:
    """The network as TorchScript, general in batch and extents: a trace that bakes an extent in is an error."""
    extents = Extents(checkpoint.unet)
    shape = (1, checkpoint.unet.in_channels, *(extents.least(axis) for axis in extents.axes))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)  # the format knows nothing newer
        warnings.filterwarnings("error", category=torch.jit.TracerWarning)
        trace = torch.jit.trace(checkpoint.build(), torch.zeros(shape), check_trace=False)
        content = io.BytesIO()
        torch.jit.save(trace, content)
    _without_paths(content, path)


def _without_paths(content: io.BytesIO, path: Path) -> None:
    """A TorchScript archive without its debug records, which name files of the machine that made it."""
    with zipfile.ZipFile(content) as taken, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as given:
        for record in taken.infolist():
            if not record.filename.endswith(".debug_pkl"):
                given.writestr(record.filename, taken.read(record))

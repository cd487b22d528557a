"""The network that a run names: one of ours is read; one of another library is imported, or taken from where its run keeps what came of it."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from functools import lru_cache
from pathlib import Path

from pipeline.config.run import ModelConfig
from pipeline.core.network.document import digest
from pipeline.core.plan import Model
from pipeline.errors import ConfigError, ModelError
from pipeline.networks.checkpoint import Checkpoint, load_checkpoint
from pipeline.networks.importing.library import LibraryClass
from pipeline.networks.importing.network import import_network, is_foreign
from pipeline.networks.importing.package_files import is_package

log = logging.getLogger("pipeline")

MOST_KEPT = 8
"""Imports that a process remembers: as many networks as ensembles have."""


def open_network(asked: ModelConfig, earlier: Model, kept: Path) -> Checkpoint:
    """A network of a run. What an earlier plan's run keeps is not imported again, where its source is as it was: that needs no library.

    Args:
        asked: What names it, alone.
        earlier: What the plan has of it.
        kept: Where what came of its import is kept, if it was imported.

    Raises:
        ModelError: It cannot be read or imported, or is none that can be exact.
    """
    source = source_digest(asked)
    found = kept_network(kept, earlier) if source and earlier.source == source else None
    return named_network(asked) if found is None else found


def named_network(model: ModelConfig) -> Checkpoint:
    """The network that a model's keys name, imported where it is another library's.

    Raises:
        ModelError, ConfigError: As of `open_network`.
    """
    if not is_imported(model):
        if model.output:
            raise ConfigError(
                f"model.output is {model.output}, but checkpoint '{model.checkpoint}' has one output. Leave model.output out: it is "
                "for networks that are imported, and of several outputs."
            )
        return load_checkpoint(model.checkpoint, padding=model.padding)
    arguments = json.dumps(model.architecture.arguments, allow_nan=False) if model.architecture else ""
    name = model.architecture.class_ if model.architecture else ""
    checkpoint = _imported(
        Path(model.checkpoint), name, arguments, model.output, _state(Path(model.checkpoint)), trust=model.trust
    )
    if model.padding not in (None, checkpoint.architecture.padding):
        raise ModelError(
            f"model.padding is '{model.padding}', but '{model.checkpoint}' is an imported network, whose graph says "
            f"'{checkpoint.architecture.padding}'. Leave model.padding out."
        )
    return checkpoint


def is_imported(model: ModelConfig) -> bool:
    """Whether a model is another library's, by its keys and the content of its file; a checkpoint that holds a graph is ours."""
    return model.architecture is not None or is_foreign(Path(model.checkpoint))


def source_digest(model: ModelConfig) -> str:
    """Digest of all that an import depends on: the file or the package's files, the class, its arguments, the output; empty where nothing is imported."""
    if not is_imported(model):
        return ""
    path = Path(model.checkpoint)
    if not _files(path):
        raise ModelError(f"Network '{path}' was asked for, but there is no such file. Check model.checkpoint.")
    of = model.architecture.model_dump(mode="json") if model.architecture else None
    asked = json.dumps([_digest(path, _state(path)), of, model.output], sort_keys=True, allow_nan=False)
    return hashlib.sha256(asked.encode()).hexdigest()


def kept_network(path: Path, model: Model) -> Checkpoint | None:
    """What came of an import, where a run keeps it and it is what its plan says; None where it is lost, damaged, or another's."""
    if not path.is_file():
        return None
    try:
        kept = load_checkpoint(path)
    except ModelError as error:
        log.warning("'%s' is passed over, and made again: %s", path, error)
        return None
    network = kept.architecture
    is_same = model.frozen.graph == digest(network.graph) if model.frozen else network == model.architecture
    return kept if is_same and kept.sha256 == model.sha256 else None


def _files(path: Path) -> list[Path]:
    """The file, or all files of a package that is a folder."""
    if path.is_file() and (zipfile.is_zipfile(path) or not is_package(path)):
        return [path]
    folder = path.parent if path.is_file() else path
    return sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else []


def _state(path: Path) -> tuple[int, ...]:
    """What changes with the content of a file, or of a package."""
    found = [file.stat() for file in _files(path)]
    return tuple(n for s in found for n in (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns))


@lru_cache(maxsize=MOST_KEPT)
def _digest(path: Path, _: tuple[int, ...]) -> str:
    """Of one file, its own; of a package, of the names and digests of its files."""
    files = _files(path)
    digests = [_file_digest(file) for file in files]
    if files == [path]:
        return digests[0]
    folder = path.parent if path.is_file() else path
    named = [[str(file.relative_to(folder)), digest] for file, digest in zip(files, digests, strict=True)]
    return hashlib.sha256(json.dumps([path.name if path.is_file() else "", named]).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=MOST_KEPT)  # the runs of a dataset have the same networks, and a plan asks twice
def _imported(path: Path, name: str, arguments: str, output: int, state: tuple[int, ...], *, trust: bool) -> Checkpoint:
    of = LibraryClass(name, json.loads(arguments)) if name else None
    checkpoint = import_network(path, output=output, of=of, trust=trust)
    if _state(path) != state:
        raise ModelError(f"'{path}' changed while it was imported. Run again when it is done.")
    return checkpoint

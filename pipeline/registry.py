"""A folder of versioned checkpoints, and the index that says which there are.

    REGISTRY/
      index.json                       what there is; replaced whole
      .lock                            held by whoever registers
      em-membranes/1/checkpoint.safetensors, metrics.json, ...

A version is copied beside its place, synced and renamed; then the index is replaced. So a kill anywhere leaves an index
that is whole and names only whole versions: a folder that it does not name was never finished, or its index was lost; it
is left alone, and its number is not given again. Registering is exclusive, by a lock that ends with its process; reading needs none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar

from pipeline.config import MemberConfig, ModelConfig
from pipeline.core.strict_json import json_text
from pipeline.errors import ModelError
from pipeline.places.durable import make_folder, sync
from pipeline.places.locks import wait_for

FORMAT = 1
"""Of the index."""

INDEX, LOCK, CHECKPOINT, METRICS = "index.json", ".lock", "checkpoint.safetensors", "metrics.json"

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names of models: one folder each, never hidden, never above the registry."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of a model.

    Args:
        name: Of the model.
        version: From 1; later ones are larger.
        path: The checkpoint's file, absolute.
        sha256_file: Digest of that file's bytes.
        metrics: Figures given when it was registered.
        registered: When, ISO 8601, UTC.
        note: What was said of it.
    """

    name: str
    version: int
    path: Path
    sha256_file: str
    metrics: Mapping[str, Any]
    registered: str
    note: str = ""


def register(
    registry: Path,
    name: str,
    checkpoint: Path,
    *,
    metrics: Mapping[str, Any] | None = None,
    files: Sequence[Path] = (),
    note: str = "",
) -> Entry:
    """Copy a checkpoint into the registry as the next version of a model.

    A file whose bytes are a version of that model already returns that version, and adds nothing. Several may register
    at once: each waits its turn.

    Args:
        registry: The folder; made where there is none.
        name: Of the model: letters, digits, `.`, `_`, `-`, a letter or digit first.
        checkpoint: The file.
        metrics: Figures, as JSON can hold them; also written as `metrics.json`.
        files: More to keep beside it, such as `config.json`, by their own names.
        note: Of it, one line.

    Raises:
        ModelError: The name cannot be one, a file is missing or changes meanwhile, two files share a name, the metrics
            are no JSON, or the index is damaged.
    """
    registry = Path(registry).absolute()
    metrics_text = _metrics_text(metrics)
    sources = _sources(Path(checkpoint), metrics_text, [Path(file) for file in files])
    _check_name(name)
    with _locked(registry):
        index = _read(registry)
        _check_case(registry, name, index)
        _refuse_outside(registry, registry / name)
        known = index["models"].get(name, [])
        digest = _digest(sources[CHECKPOINT])
        same = next((record for record in known if record["sha256_file"] == digest), None)
        if same is not None:
            return _entry(registry, name, same)
        version = max([*(record["version"] for record in known), *_folders(registry / name)], default=0) + 1
        _place(registry / name, version, sources, metrics_text, digest)
        record = {
            "version": version,
            "checkpoint": f"{name}/{version}/{CHECKPOINT}",
            "sha256_file": digest,
            "registered": datetime.now(UTC).isoformat(timespec="seconds"),
            "metrics": dict(metrics or {}),
            "note": note,
        }
        index["models"][name] = [*known, record]
        _replace(registry / INDEX, json_text(index, indent=2, sort_keys=True) + "\n")
        return _entry(registry, name, record)


def resolve(registry: Path, name: str, version: int | Literal["latest"] = "latest") -> Entry:
    """The version of a model, its file read once and found to be what was registered.

    Raises:
        ModelError: There is no such model or version, or its file is missing or damaged.
    """
    there = versions(registry, name)
    entry = there[-1] if version == "latest" else next((e for e in there if e.version == version), None)
    if entry is None:
        listed = ", ".join(str(e.version) for e in there)
        raise ModelError(
            f"Version {version} of model '{name}' was asked for, but registry '{registry}' has versions {listed}. "
            "Name one of them, or 'latest'."
        )
    _refuse_outside(registry, entry.path)
    _check_file(entry)
    return entry


def versions(registry: Path, name: str | None = None) -> list[Entry]:
    """What the index names, by name and version, oldest first; files are not read.

    Args:
        registry: The folder; one that is not there holds nothing.
        name: Of one model; None for all.

    Raises:
        ModelError: There is no such model, or the index is damaged.
    """
    registry = Path(registry).absolute()
    models = _read(registry)["models"]
    if name is not None and name not in models:
        raise ModelError(_unknown(registry, name, sorted(models)))
    names = sorted(models) if name is None else [name]
    return [
        _entry(registry, n, record) for n in names for record in sorted(models[n], key=lambda record: record["version"])
    ]


# --- names ---------------------------------------------------------------------------------------------------------------


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name) or name == INDEX:
        raise ModelError(
            f"'{name}' cannot be the name of a model. Use letters, digits, '.', '_' and '-', a letter or digit first, "
            f"and not '{INDEX}'."
        )


def _check_case(registry: Path, name: str, index: dict[str, Any]) -> None:
    """Names that differ in case alone are one folder on some file systems."""
    alike = [other for other in index["models"] if other != name and other.lower() == name.lower()]
    if alike:
        raise ModelError(
            f"Model '{name}' differs from '{alike[0]}' of registry '{registry}' in case alone, and the two are one folder "
            f"on some file systems. Register it as '{alike[0]}', or under another name."
        )


def _unknown(registry: Path, name: str, there: list[str]) -> str:
    if not there:
        return f"Model '{name}' was asked for, but registry '{registry}' holds none. Check its path, or register one."
    near = get_close_matches(name, there, n=1)
    meant = f"Did you mean '{near[0]}'?" if near else "Name one of them."
    return f"Model '{name}' was asked for, but registry '{registry}' has {', '.join(there)}. {meant}"


# --- the index -----------------------------------------------------------------------------------------------------------


def _read(registry: Path) -> dict[str, Any]:
    path = registry / INDEX
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']}")
        for name, known in index["models"].items():
            for record in known:
                _entry(registry, name, record)
    except FileNotFoundError:
        return {"format": FORMAT, "models": {}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"Index '{path}' cannot be read ({type(error).__name__}: {error}): it was changed by hand, or written by a "
            f"newer version than this one, which reads format {FORMAT}. Restore it from a backup, or update Halotile."
        ) from error
    return index


def _entry(registry: Path, name: str, record: dict[str, Any]) -> Entry:
    version, digest = int(record["version"]), str(record["sha256_file"])
    place = f"{name}/{version}/{CHECKPOINT}"
    if not NAME.fullmatch(name) or version < 1 or record["checkpoint"] != place:
        raise ModelError(
            f"Index '{registry / INDEX}' names {record['checkpoint']!r} as version {version} of model {name!r}: a registry holds its "
            f"models itself, each at NAME/VERSION/{CHECKPOINT}. The index was changed by hand, or by somebody who wants another file "
            "used. Nothing of it is used; restore it from a backup, or register the model anew."
        )
    return Entry(
        name, version, registry / place, digest, dict(record["metrics"]), str(record["registered"]), str(record["note"])
    )


def _refuse_outside(registry: Path, path: Path) -> None:
    """Refuse what a link leads out of the registry to: whoever may write there is not whom the registry's users trust."""
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(registry)):
        raise ModelError(
            f"'{path}' of registry '{registry}' leads out of it, to '{real}', by a symbolic link: a registry holds its models itself. "
            "Replace the link by what it leads to, or register that file."
        )


def _replace(path: Path, text: str) -> None:
    """Replace a file atomically and durably."""
    part = path.with_name(f".{path.name}.part")  # one, as only the holder of the lock writes
    _write(part, text)
    part.replace(path)
    sync(path.parent)


@contextmanager
def _locked(registry: Path) -> Iterator[None]:
    """Be the only one who registers; the lock ends with the process, however it ends."""
    make_folder(registry)
    with (registry / LOCK).open("a") as file:
        wait_for(file)
        yield


# --- files ---------------------------------------------------------------------------------------------------------------


def _metrics_text(metrics: Mapping[str, Any] | None) -> str | None:
    if metrics is None:
        return None
    try:
        return json.dumps(dict(metrics), indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"The metrics cannot be kept as JSON ({error}). Give finite numbers, texts, lists and mappings of them."
        ) from error


def _sources(checkpoint: Path, metrics: str | None, files: list[Path]) -> dict[str, Path]:
    """What is copied, by the name that it gets."""
    sources = {CHECKPOINT: checkpoint}
    taken = {CHECKPOINT} | ({METRICS} if metrics is not None else set())
    for file in files:
        if file.name in taken:
            raise ModelError(
                f"File '{file}' would be the second '{file.name}' of its version. Rename it, or leave it out."
            )
        taken.add(file.name)
        sources[file.name] = file
    if checkpoint.is_dir():
        raise ModelError(
            f"'{checkpoint}' is a folder, and a registry holds files. Register a zip of it, or what `halotile import` makes of it."
        )
    missing = [str(path) for path in sources.values() if not path.is_file()]
    if missing:
        raise ModelError(f"To be registered, but not there: {', '.join(missing)}. Check the path.")
    return sources


def _folders(folder: Path) -> list[int]:
    """Versions whose folders are there, named by the index or not: an index that was lost must not cost them."""
    return [int(path.name) for path in folder.glob("*") if path.name.isdecimal()] if folder.is_dir() else []


def _place(folder: Path, version: int, sources: dict[str, Path], metrics: str | None, digest: str) -> None:
    """Make a version's folder, whole or not at all; what torn registrations left is removed."""
    folder.mkdir(exist_ok=True)
    for left in folder.glob(".part-*"):
        shutil.rmtree(left)
    part = folder / f".part-{uuid.uuid4().hex}"
    part.mkdir()
    try:
        for name, source in sources.items():
            _copy(source, part / name)
        if metrics is not None:
            _write(part / METRICS, metrics)
        if _digest(part / CHECKPOINT) != digest:
            raise ModelError(
                f"Checkpoint '{sources[CHECKPOINT]}' changed while it was copied. Register it when it is done."
            )
        sync(part)
        part.rename(folder / str(version))
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync(folder)
    sync(folder.parent)


def _check_file(entry: Entry) -> None:
    digest = _digest(entry.path) if entry.path.is_file() else None
    if digest != entry.sha256_file:
        fault = "is not there" if digest is None else f"has SHA-256 {digest[:12]}"
        raise ModelError(
            f"Checkpoint '{entry.path}' of model '{entry.name}', version {entry.version}, {fault}, but was registered with "
            f"{entry.sha256_file[:12]}: it is damaged or was changed. Restore it from a backup, or register it anew."
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as taken, target.open("wb") as given:
        shutil.copyfileobj(taken, given, 2**20)
        given.flush()
        os.fsync(given.fileno())


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


class _WithModel(Protocol):
    @property
    def model(self) -> ModelConfig: ...

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self: ...


AnyRun = TypeVar("AnyRun", bound=_WithModel)
AnyModel = TypeVar("AnyModel", ModelConfig, MemberConfig)


def with_model(config: AnyRun) -> AnyRun:
    """A run, or a dataset, whose model is a file: one that it names is looked up in its registry.

    Raises:
        ModelError: There is no such model or version, or its file is damaged.
    """
    model = config.model
    if model.ensemble:
        found: ModelConfig = model.model_copy(update={"ensemble": tuple(map(_looked_up, model.ensemble))})
    else:
        found = _looked_up(model)
    return config if found == model else config.model_copy(update={"model": found})


def _looked_up(model: AnyModel) -> AnyModel:
    if model.name is None or model.registry is None or model.checkpoint:
        return model
    entry = resolve(Path(model.registry), model.name, model.version)
    return model.model_copy(update={"checkpoint": str(entry.path), "version": entry.version})

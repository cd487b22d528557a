"""A dataset on disk for tests: small volumes of noise, a registry of random networks, and a YAML."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from pipeline.config import validated
from pipeline.core.network.unet import Architecture
from pipeline.dataset.settings import DatasetConfig
from pipeline.registry import register
from tests.pipeline_cases import one_pass, random_network, random_volume, save_array

SHAPE = (16, 24, 24)
ARCHITECTURE = Architecture(3, 1, 4)


@dataclass(frozen=True)
class DataSet:
    """Volumes, a registry and a YAML in one folder, and what comes of them in `output`."""

    folder: Path
    content: Mapping[str, Any]

    @property
    def yaml(self) -> Path:
        return self.folder / "dataset.yaml"

    @property
    def output(self) -> Path:
        return Path(self.content["output"]["url"])

    @property
    def config(self) -> DatasetConfig:
        return validated(DatasetConfig, self.content, source=str(self.yaml))

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.output / "summary.json").read_text())

    def states(self) -> dict[str, str]:
        """State by volume, as the summary has it."""
        return {outcome["name"]: outcome["state"] for outcome in self.summary["outcomes"]}

    def having(self, **keys: Any) -> DataSet:
        """The same with other keys; sections are updated."""
        content = {**self.content}
        for name, value in keys.items():
            content[name] = {**content.get(name, {}), **value} if isinstance(value, Mapping) else value
        self.yaml.write_text(json.dumps(content))
        return DataSet(self.folder, content)

    def volume(self, name: str) -> Path:
        return self.folder / "volumes" / f"{name}.zarr"

    def add(self, name: str, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Path:
        """One volume more."""
        return save_array(self.volume(name), random_volume(shape, seed=seed), (8, 12, 12))

    def add_again(self, name: str, seed: int) -> None:
        """The same volume, repaired."""
        shutil.rmtree(self.volume(name))
        self.add(name, seed)

    def corrupt(self, name: str) -> None:
        """Damage one stored chunk of a volume."""
        chunk = next(
            path for path in sorted(self.volume(name).rglob("*")) if path.is_file() and path.name != "zarr.json"
        )
        chunk.write_bytes(b"\x00damaged")

    def register(self, seed: int) -> int:
        """A network of random weights as the next version of the model; gives its number."""
        file = self.folder / f"weights-{seed}.pt"
        torch.save(random_network(ARCHITECTURE, seed).state_dict(), file)
        return register(self.folder / "models", "noise", file).version

    def expected(self, name: str, seed: int) -> np.ndarray:
        """One pass of the network of a seed over a whole volume, (Z, Y, X), as float32 logits."""
        volume = zarr.open_array(str(self.volume(name)), mode="r")[...]
        return one_pass(random_network(ARCHITECTURE, seed), volume[None] / np.float32(255))[0]

    def current(self, name: str) -> Path:
        """What readers of a volume are sent to, resolved once."""
        return (self.output / name / "current").resolve(strict=True)

    def array(self, name: str) -> np.ndarray:
        return zarr.open_group(str(self.current(name)), mode="r")["0"][...]


def make_dataset(folder: Path, *, volumes: int, **sections: Any) -> DataSet:
    """So many volumes of noise, version 1 of a model, and a YAML."""
    (folder / "volumes").mkdir(parents=True)
    content = {
        "volumes": str(folder / "volumes"),
        "output": {"url": str(folder / "output")},
        "model": {"name": "noise", "registry": str(folder / "models")},
        "normalize": {"mode": "minmax"},
        "compute": {"device": "cpu", "threads": 1},
        "cluster": {"workers": 2, "memory_gb": 2, "retries": 0},
    }
    made = DataSet(folder, content)
    for number in range(volumes):
        made.add(f"v{number:02}", seed=number)
    made.register(seed=1)
    return made.having(**sections)


@contextmanager
def shared_with(pool: Any, monkeypatch: Any) -> Iterator[None]:
    """Datasets take this pool instead of one of their own: a start costs more than small volumes do."""

    @contextmanager
    def lent(*_: object, **__: object) -> Iterator[Any]:
        yield pool

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.dataset.reprocess.open_pool", lent)
        yield

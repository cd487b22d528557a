"""What tests of stores, stages and doors are built of: random networks, small volumes, runs, and one pass over the whole."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from pipeline import stages
from pipeline.config import RunConfig, validated
from pipeline.core.geometry.box import Triple
from pipeline.core.ledger import Session, TileRecord
from pipeline.core.network.unet import Architecture
from pipeline.core.normalization import Normalization
from pipeline.core.plan import Compute, Cost, Model, OutputSpec, Plan
from pipeline.core.volume import Description, Space
from pipeline.networks.model import UNet, initialise
from pipeline.outputs.rundir import RunDirectory


def random_network(architecture: Architecture, seed: int = 0) -> UNet:
    """Weights of standard deviation sqrt(2 / fan-in), random biases and statistics: torch's defaults hide the halo."""
    network = initialise(UNet(architecture), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith(("running_var", ".1.weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith(("bias", "running_mean")):
                tensor.normal_(0.0, 0.2, generator=generator)
    return network.eval()


def random_volume(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """Noise: what lies anywhere in a receptive field changes the answer."""
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return random.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def save_array(path: Path, array: np.ndarray, chunks: tuple[int, ...] | None = None, **options: Any) -> Path:
    """A plain Zarr array at `path`."""
    zarr.create_array(str(path), data=array, chunks=chunks or array.shape, **options)
    return path


# --- the reference ------------------------------------------------------------------------------------------------------


def one_pass(network: UNet, volume: np.ndarray) -> np.ndarray:
    """The answer that stitched tiles must equal: one forward pass over the whole, as the promise defines it.

    Same padding: mirrored at the far ends to a multiple of the stride. Unpadded: mirrored by the margin in front, and
    behind by the margin and the least that makes every pooled extent even. A 2D network takes the slices as its batch.

    Args:
        network: In evaluation mode.
        volume: Normalised input, (C, Z, Y, X).

    Returns:
        Logits, (K, Z, Y, X), float32.
    """
    extents = volume.shape[1:]
    pads = [(0, 0), *(_pad(network.architecture, n, axis) for axis, n in enumerate(extents))]
    x_CZYX = torch.from_numpy(np.pad(volume.astype(np.float32), pads, mode="reflect"))
    with torch.inference_mode():
        if network.architecture.ndim == 2:
            y_KZYX = network(x_CZYX.transpose(0, 1)).transpose(0, 1)
        else:
            y_KZYX = network(x_CZYX[None])[0]
    return y_KZYX[(slice(None), *(slice(0, n) for n in extents))].numpy()


def _pad(architecture: Architecture, extent: int, axis: int) -> tuple[int, int]:
    if axis == 0 and architecture.ndim == 2:
        return (0, 0)
    if architecture.padding == "same":
        return (0, -extent % 2**architecture.depth)
    margin = 3 * 2 ** (architecture.depth + 1) - 4
    behind = margin
    while not _pools_evenly(architecture, margin + extent + behind):
        behind += 1
    return (margin, behind)


def _pools_evenly(architecture: Architecture, extent: int) -> bool:
    for _ in range(architecture.depth):
        extent -= 4
        if extent % 2:
            return False
        extent //= 2
    return extent > 4


# --- runs ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One run on disk: a volume, a checkpoint and a YAML, and the output that comes of them."""

    folder: Path
    content: Mapping[str, Any]
    network: UNet
    volume: np.ndarray

    @property
    def yaml(self) -> Path:
        return self.folder / "run.yaml"

    @property
    def output(self) -> Path:
        return Path(self.content["output"]["url"])

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.output)

    @property
    def config(self) -> RunConfig:
        return validated(RunConfig, self.content, source=str(self.yaml))

    @property
    def now(self) -> stages.Run:
        """The run as the stages take it, with nothing read of it yet."""
        return stages.Run(self.config)

    @property
    def plan(self) -> Plan:
        found = self.directory.load_plan()
        assert found is not None
        return found

    def array(self) -> np.ndarray:
        """The output, read with zarr alone."""
        return zarr.open_group(str(self.output), mode="r")["0"][...]

    def having(self, **sections: Mapping[str, Any]) -> Run:
        """The same run with other keys, its YAML rewritten."""
        content = {**self.content}
        for name, keys in sections.items():
            content[name] = {**content.get(name, {}), **keys}
        self.yaml.write_text(json.dumps(content))
        return Run(self.folder, content, self.network, self.volume)


def make_run(
    folder: Path,
    *,
    architecture: Architecture,
    shape: Triple | tuple[int, ...],
    dtype: str = "uint8",
    seed: int = 0,
    volume: np.ndarray | None = None,
    **sections: Mapping[str, Any],
) -> Run:
    """A run of a random network over noise, ready to be planned: `input.zarr`, `weights.pt` and `run.yaml`."""
    network = random_network(architecture, seed)
    volume = random_volume(shape, dtype, seed) if volume is None else volume
    chunks = tuple(min(n, 16) for n in shape)
    save_array(folder / "input.zarr", volume, chunks)
    torch.save(network.state_dict(), folder / "weights.pt")
    content = {
        "input": {"url": str(folder / "input.zarr")},
        "output": {"url": str(folder / "output.zarr")},
        "model": {"checkpoint": str(folder / "weights.pt"), "padding": architecture.padding},
        "normalize": {"mode": "minmax"},
        "compute": {"device": "cpu", "threads": 1},
        "cluster": {"workers": 2, "memory_gb": 4},
    }
    return Run(folder, content, network, volume).having(**sections)


def done_entries(directory: RunDirectory) -> list[int]:
    """The tiles that the ledger calls done, an entry for each time that one was computed."""
    return [r.tile for r in directory.records() if isinstance(r, TileRecord) and r.state == "done"]


def sessions(directory: RunDirectory) -> list[Session]:
    """The sittings that the ledger holds."""
    return [r for r in directory.records() if isinstance(r, Session)]


def stored_objects(output: Path) -> dict[str, bytes]:
    """Every file below a group's array, by its path: two outputs are the same bytes where these are equal."""
    root = output / "0"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def output_plan(
    url: Path,
    *,
    shape: Triple = (6, 12, 9),
    core: Triple = (4, 8, 8),
    chunks: Triple = (4, 4, 4),
    shards: Triple | None = (4, 8, 8),
    channels: int = 1,
    dtype: str = "float32",
    axes: str = "zyx",
    space: Space | None = None,
) -> Plan:
    """A plan made by hand, for what only writes: no volume and no checkpoint stand behind it."""
    architecture = Architecture(ndim=3 if "z" in axes else 2, depth=1, width=2, out_channels=channels)
    space = space or Space((40.0, 4.0, 4.0)[-len(axes) :], (0.0,) * len(axes), ("nanometer",) * len(axes))
    return Plan(
        source=Description("nowhere", 0, axes, 1, shape, "uint8", shape, space, "0" * 64),
        nonfinite="fail",
        output=OutputSpec(str(url), axes if channels == 1 else f"c{axes}", dtype, "none", chunks, shards),
        model=Model("nowhere", "0" * 64, architecture, 0),
        normalization=Normalization(),
        core=core,
        halo=(8, 8, 8),
        slab=2,
        compute=Compute("cpu", "float32", 1),
        cost=Cost(1, 1, 1, 1, 1, 1),
    )


# --- disks --------------------------------------------------------------------------------------------------------------


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """A file system of its own at `folder`; skips where this process may not mount one."""
    folder.mkdir()
    found = subprocess.run(
        ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if found.returncode:
        pytest.skip(f"NOT TESTED: this process may not mount a file system ({found.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a worker may still look at it


def fill_up(folder: Path, *, but: int = 0) -> Path:
    """Fill the file system of `folder` to the last byte, or to so many before; gives the file to delete."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "filler").write_bytes(bytes(max(free - but, 0)))
    return folder / "filler"

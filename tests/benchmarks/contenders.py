"""Those who are compared: each predicts one volume in a process of its own and says how long it took.

    python -m tests.benchmarks.contenders NAME FOLDER --threads N

`FOLDER` holds what `prepare` wrote: the volume as a Zarr and as .npy, and the weights. Peers start with the volume in
memory and end with the prediction in memory; ours reads its Zarr, and writes and checksums an OME-Zarr.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.core.network.receptive import least_halo
from pipeline.core.network.unet import Architecture
from pipeline.core.tiles.cost import one_pass_multiply_adds
from pipeline.engine import peak_bytes
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.networks.model import UNet
from tests.pipeline_cases import random_network, random_volume, save_array

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = Architecture(ndim=3, depth=3, width=16)
CHUNK = 64
CORE = 128
ROI = 96

ALLOCATOR = {
    # What our workers have (pipeline/cluster/pool.py): large arrays keep their pages, which are huge ones.
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**26),
    "THP_MEM_ALLOC_ENABLE": "1",
}

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Job:
    """One prediction of one contender.

    Args:
        folder: As `prepare` left it.
        dtype: Of the computation.
        threads: That compute.
    """

    folder: Path
    dtype: str
    threads: int

    def volume(self) -> np.ndarray:
        """Voxels as stored, Z Y X."""
        return np.load(self.folder / "volume.npy")


@dataclass(frozen=True)
class Found:
    """What came of a job.

    Args:
        seconds: From the stored input to the prediction.
        peak_bytes: Resident memory of the process that computed.
        output: The sigmoid in 8 bits, Z Y X; None where there is none.
    """

    seconds: float
    peak_bytes: int
    output: np.ndarray | None = None


@dataclass(frozen=True)
class Contender:
    """One row.

    Args:
        name: On the command line and in the JSON.
        title: In the table.
        dtype: Of the computation.
        predict: Does a job.
        package: What must be installed for it.
    """

    name: str
    title: str
    dtype: str
    predict: Callable[[Job], Found]
    package: str | None = None

    @property
    def installed(self) -> bool:
        return self.package is None or find_spec(self.package) is not None


# --- the common ground --------------------------------------------------------------------------------------------------


def prepare(folder: Path, shape: tuple[int, int, int]) -> None:
    """Write noise and a random network: whatever lies in a receptive field changes the answer."""
    volume = random_volume(shape)
    np.save(folder / "volume.npy", volume)
    save_array(folder / "volume.zarr", volume, tuple(min(CHUNK, n) for n in shape))
    torch.save(random_network(ARCHITECTURE).state_dict(), folder / "weights.pt")


def environment(folder: Path, threads: int) -> dict[str, str]:
    """Of every process that is measured: the same threads and allocator, and a Prefect that keeps to itself."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    own = {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    inherited = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    return inherited | ALLOCATOR | counts | own


def measured(module: str, *arguments: str, folder: Path, threads: int) -> dict[str, Any]:
    """What a module of this package prints, run in a process of its own.

    Raises:
        RuntimeError: It failed.
    """
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *arguments, str(folder), "--threads", str(threads)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(folder, threads), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def arguments(*names: str) -> argparse.Namespace:
    """The command line of a measured process."""
    parser = argparse.ArgumentParser()
    for name in names:
        parser.add_argument(name)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    found = parser.parse_args()
    torch.set_num_threads(found.threads)
    return found


def network(folder: Path) -> UNet:
    """The network as anyone would load it."""
    return load_checkpoint(folder / "weights.pt").build()


def plain(job: Job) -> Predict:
    """Sigmoid of the network as it comes: nothing folded, contiguous."""
    model = network(job.folder)
    return lambda x_BCZYX: torch.sigmoid(model(x_BCZYX))


def tuned(job: Job) -> Predict:
    """Sigmoid of the network with all that is known to help: batch norm folded, channels last, the job's dtype."""
    dtype = getattr(torch, job.dtype)
    model = network(job.folder).double()
    for block in model.modules():
        if isinstance(block, nn.Sequential):
            block[0], block[1] = fuse_conv_bn_eval(block[0], block[1]), nn.Identity()
    model = model.to(dtype, memory_format=torch.channels_last_3d)
    first = model.encoder1_1[0].weight
    first.data = _channels_last(first.data)
    return lambda x_BCZYX: torch.sigmoid(model(_channels_last(x_BCZYX.to(dtype))).float())


def _channels_last(x_BCZYX: Tensor) -> Tensor:
    """Not `contiguous(memory_format=...)`, which leaves a single channel as it is."""
    return x_BCZYX.movedim(1, -1).contiguous().movedim(-1, 1)


def scaled(volume: np.ndarray) -> Tensor:
    """What the network is given: 0 to 1, B C Z Y X."""
    return torch.from_numpy(volume)[None, None].float() / 255


def quantised(values_BCZYX: Tensor) -> np.ndarray:
    """rint(255 v), Z Y X."""
    return values_BCZYX[0, 0].mul(255).round().to(torch.uint8).numpy()


def timed(volume: np.ndarray, predict: Predict) -> Found:
    """One prediction, volume to 8 bits."""
    started = time.perf_counter()
    with torch.inference_mode():
        output = quantised(predict(scaled(volume)))
    return Found(time.perf_counter() - started, peak_bytes(), output)


# --- ours ---------------------------------------------------------------------------------------------------------------


def halotile(job: Job) -> Found:
    """`halotile run`: seconds are `stages.infer.seconds`, memory is the worker's."""
    with tempfile.TemporaryDirectory(dir=job.folder) as scratch:
        report, output = run_halotile(Path(scratch), job)
        infer = report["stages"]["infer"]
        return Found(infer["seconds"], infer["worker_peak_bytes"], output)


def run_halotile(scratch: Path, job: Job) -> tuple[dict[str, Any], np.ndarray]:
    """One run from the command line.

    Raises:
        RuntimeError: It failed.

    Returns:
        Its report, and its output.
    """
    output = scratch / "output.zarr"
    config = {
        "input": {"url": str(job.folder / "volume.zarr")},
        "output": {"url": str(output), "dtype": "uint8", "activation": "sigmoid"},
        "model": {"checkpoint": str(job.folder / "weights.pt")},
        "normalize": {"mode": "minmax"},
        "compute": {"device": "cpu", "dtype": job.dtype, "threads": job.threads},
        "cluster": {"workers": 1},
    }
    path = scratch / "run.yaml"
    path.write_text(json.dumps(config))
    command = [sys.executable, "-m", "halotile", "run", str(path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(job.folder, job.threads), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"halotile run failed:\n{done.stderr[-2000:]}")
    report = json.loads(Path(f"{output}.run", "report.json").read_text())
    return report, zarr.open_group(str(output), mode="r")["0"][...]


# --- the limit ----------------------------------------------------------------------------------------------------------


def one_pass(job: Job) -> Found:
    """One forward pass over the whole volume; the better of two, the second in memory that the first made warm."""
    volume, predict = job.volume(), tuned(job)
    return min((timed(volume, predict) for _ in range(2)), key=lambda found: found.seconds)


# --- peers --------------------------------------------------------------------------------------------------------------


def monai_plain(job: Job) -> Found:
    """MONAI's sliding window around the network as it comes."""
    return _monai(job, plain(job))


def monai_tuned(job: Job) -> Found:
    """MONAI's sliding window around the tuned network."""
    return _monai(job, tuned(job))


def _monai(job: Job, predict: Predict) -> Found:
    from monai.inferers import sliding_window_inference  # noqa: PLC0415 - may not be installed

    def slide(x_BCZYX: Tensor) -> Tensor:
        return sliding_window_inference(x_BCZYX, ROI, 1, predict, overlap=0.25, mode="gaussian")

    return timed(job.volume(), slide)


def dask_overlap(job: Job) -> Found:
    """`dask.array.map_overlap` with the exact halo, one block at a time.

    Boundary `none`: blocks end where the volume does, and there the network pads itself, as in one pass.
    """
    import dask.array  # noqa: PLC0415 - not needed by the others

    volume, predict = job.volume(), tuned(job)

    def block(part: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return quantised(predict(scaled(part)))

    started = time.perf_counter()
    blocks = dask.array.from_array(volume, chunks=tuple(min(CORE, n) for n in volume.shape))
    depth = tuple(h if n > CORE else 0 for h, n in zip(least_halo(ARCHITECTURE.graph), volume.shape, strict=True))
    found = dask.array.map_overlap(
        block, blocks, depth=depth, boundary="none", dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )
    output = found.compute(scheduler="threads", num_workers=1)
    return Found(time.perf_counter() - started, peak_bytes(), output)


def torchio_grid(job: Job) -> Found:
    """TorchIO's grid sampler and aggregator, its overlap twice the exact halo, so that what is kept is exact."""
    import torchio  # noqa: PLC0415 - may not be installed

    def aggregate(x_BCZYX: Tensor) -> Tensor:
        halo, extents = least_halo(ARCHITECTURE.graph), x_BCZYX.shape[2:]
        patch = tuple(min(CORE + h, n) for h, n in zip(halo, extents, strict=True))
        overlap = tuple(2 * h if p < n else 0 for h, p, n in zip(halo, patch, extents, strict=True))
        sampler = torchio.GridSampler(torchio.Subject(volume=torchio.ScalarImage(tensor=x_BCZYX[0])), patch, overlap)
        aggregator = torchio.GridAggregator(sampler, overlap_mode="crop")
        for batch in torchio.SubjectsLoader(sampler, batch_size=1):
            aggregator.add_batch(predict(batch["volume"][torchio.DATA]), batch[torchio.LOCATION])
        return aggregator.get_output_tensor()[None]

    predict = tuned(job)
    return timed(job.volume(), aggregate)


CONTENDERS = (
    Contender("halotile-bfloat16", "**halotile**, end to end", "bfloat16", halotile),
    Contender("halotile-float32", "**halotile**, end to end", "float32", halotile),
    Contender("limit-bfloat16", "one pass over the whole volume: the limit", "bfloat16", one_pass),
    Contender("limit-float32", "one pass over the whole volume: the limit", "float32", one_pass),
    Contender(
        "monai-plain", "MONAI sliding window 96³, 0.25, Gaussian; network as is", "float32", monai_plain, "monai"
    ),
    Contender(
        "monai-tuned", "MONAI sliding window, the same windows, our layout and dtype", "bfloat16", monai_tuned, "monai"
    ),
    Contender("dask", "dask map_overlap 128³ + 48, our layout and dtype", "bfloat16", dask_overlap),
    Contender(
        "torchio", "TorchIO grid 176³, overlap 96, crop, our layout and dtype", "bfloat16", torchio_grid, "torchio"
    ),
)


# --- what the processor could -------------------------------------------------------------------------------------------


def matmul(job: Job) -> Found:
    """The rate of large square products, as the seconds that the whole volume's arithmetic takes at it."""
    dtype = getattr(torch, job.dtype)
    best = max(_matmul_rate(extent, dtype) for extent in (2048, 4096))
    shape = np.load(job.folder / "volume.npy", mmap_mode="r").shape
    return Found(2 * one_pass_multiply_adds(ARCHITECTURE.graph, shape) / best, peak_bytes())


def _matmul_rate(extent: int, dtype: torch.dtype) -> float:
    """FLOP/s, the best of several products."""
    a, b = (torch.randn(extent, extent).to(dtype) for _ in range(2))
    out, seconds = torch.empty_like(a), []
    for _ in range(8):
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - started)
    return 2 * extent**3 / min(seconds)


BOUNDS = (
    Contender("matmul-bfloat16", "matrix products alone: the bound", "bfloat16", matmul),
    Contender("matmul-float32", "matrix products alone: the bound", "float32", matmul),
)


def main() -> None:
    """Do one job, leave its output as NAME.npy, and print what it took."""
    asked = arguments("name")
    contender = next(c for c in CONTENDERS + BOUNDS if c.name == asked.name)
    found = contender.predict(Job(asked.folder, contender.dtype, asked.threads))
    if found.output is not None:
        np.save(asked.folder / f"{asked.name}.npy", found.output)
    print(json.dumps({"seconds": found.seconds, "peak_bytes": found.peak_bytes}))


if __name__ == "__main__":
    main()

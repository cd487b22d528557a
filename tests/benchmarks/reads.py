"""Reading tiles with their halo from a Zarr: zarr's own codec pipeline beside `zarrs`.

python -m tests.benchmarks.reads
"""

from __future__ import annotations

import argparse
import tempfile
import time
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, ZstdCodec

from pipeline.core.geometry.box import Box
from pipeline.core.network.receptive import least_halo
from tests.benchmarks.contenders import ARCHITECTURE, CHUNK, CORE
from tests.pipeline_cases import save_array

REPEATS = 5
PIPELINES = {"zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs": "zarrs.ZarrsCodecPipeline"}
COMPRESSORS = {
    "none": None,
    "zstd, zarr's default": ZstdCodec(),
    "blosc, lz4 and bit shuffle": BloscCodec(typesize=1, cname="lz4", shuffle="bitshuffle"),
}


def texture(extent: int) -> np.ndarray:
    """Blobs under noise of four bits: compresses about as well as electron microscopy does."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 240, (-(-extent // 16),) * 3, dtype=np.uint8)
    for axis in range(3):
        coarse = coarse.repeat(16, axis)
    return coarse[:extent, :extent, :extent] + random.integers(0, 16, (extent,) * 3, dtype=np.uint8)


def boxes(extent: int) -> list[Box]:
    """Windows of all tiles, as far as they lie inside the volume."""
    halo, whole = least_halo(ARCHITECTURE.graph)[0], Box.of_shape((extent,) * 3)
    starts = product(range(0, extent, CORE), repeat=3)
    return [Box(tuple(a - halo for a in s), tuple(a + CORE + halo for a in s)).clipped(whole) for s in starts]  # type: ignore[arg-type]


def reads(extent: int, repeats: int, threads: int) -> list[dict[str, Any]]:
    """One row a compressor: MB/s of voxels asked for, by pipeline; None where it is not installed."""
    volume, rows = texture(extent), []
    wanted = boxes(extent)
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, compressor) in enumerate(COMPRESSORS.items()):
            path = save_array(Path(scratch) / f"{number}.zarr", volume, (CHUNK,) * 3, compressors=compressor)
            stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            rates = {which: _rate(path, PIPELINES[which], wanted, repeats, threads) for which in PIPELINES}
            rows.append({"compressor": name, "stored": stored / volume.size, "mb_per_s": rates})
    return rows


def _rate(path: Path, pipeline: str, wanted: list[Box], repeats: int, threads: int) -> float | None:
    if find_spec(pipeline.partition(".")[0]) is None:
        return None
    with zarr.config.set({"codec_pipeline.path": pipeline, "threading.max_workers": threads}):
        array = zarr.open_array(str(path), mode="r")
        whole = Box.of_shape(array.shape)
        seconds = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            for box in wanted:
                _ = array[box.within(whole)]
            seconds.append(time.perf_counter() - started)
    return sum(box.voxels for box in wanted) / median(seconds[1:]) / 1e6


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| compressor | stored | zarr, MB/s | zarrs, MB/s |", "|---|---:|---:|---:|"]
    for row in rows:
        zarr_rate, zarrs_rate = row["mb_per_s"]["zarr"], row["mb_per_s"]["zarrs"]
        told = "not installed: `pip install zarrs`" if zarrs_rate is None else f"{zarrs_rate:.0f}"
        lines.append(f"| {row['compressor']} | {row['stored']:.0%} | {zarr_rate:.0f} | {told} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Reading tiles with their halo from a Zarr.")
    parser.add_argument("--extent", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    print(table(reads(asked.extent, asked.repeats, asked.threads)))


if __name__ == "__main__":
    main()

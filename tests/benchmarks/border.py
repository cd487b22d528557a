"""What the border weights of a slice cost: 512 x 512 pixels, 150 cells, beside one distance transform a cell.

python -m tests.benchmarks.border
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np
from scipy import ndimage

from pipeline.training.border import border_weight

ROUNDS = 9


def slice_of(cells: int, extent: int = 512) -> np.ndarray:
    """Voronoi cells about random points, three pixels apart."""
    random = np.random.default_rng(0)
    seeds = np.zeros((extent, extent), dtype=np.int32)
    seeds.ravel()[random.choice(extent**2, cells, replace=False)] = np.arange(1, cells + 1)
    places = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    full = seeds[tuple(places)]
    return np.where(ndimage.maximum_filter(full, 3) != ndimage.minimum_filter(full, 3), 0, full)


def by_definition(cells: np.ndarray) -> np.ndarray:
    """Equation 2 of Ronneberger et al. 2015 as it stands, sigma 5."""
    distances = np.stack([ndimage.distance_transform_edt(cells != i) for i in np.unique(cells) if i])
    nearest, second = np.partition(distances, 1, axis=0)[:2]
    return np.exp(-((nearest + second) ** 2) / 50)


def main() -> None:
    """Print both times, and how far the two are apart."""
    cells, times = slice_of(150), []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        found = border_weight(cells, sigma=5.0, sampling=(1.0, 1.0))
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    expected = by_definition(cells)
    defined = time.perf_counter() - started
    count = len(np.unique(cells)) - 1
    print(
        f"{count} cells: {median(times):.3f} s; by the definition {defined:.2f} s; largest difference {np.abs(found - expected).max():.1e}"
    )


if __name__ == "__main__":
    main()

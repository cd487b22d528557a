"""How much each voxel weighs in the loss: more where two cells nearly touch.

Source: Ronneberger, Fischer and Brox 2015, arXiv 1505.04597, equation 2.
"""

from __future__ import annotations

import edt
import numpy as np

REACH = 6.0
"""Standard deviations beyond which the weight is nothing: exp(-18) is 1.5e-8."""


def border_weight(cells: np.ndarray, *, sigma: float, sampling: tuple[float, ...], threads: int = 1) -> np.ndarray:
    """exp(-(d1 + d2)^2 / (2 sigma^2)), d1 and d2 the distances to the nearest and the second nearest cell.

    A voxel inside a cell has d1 = 0. Exact, by as many distance transforms as there are bits in the number of cells,
    twice: number the cells in binary; for each bit the two distances to the cells that have it and to those that have
    it not. The larger of the two is never less than d2, since one of the two classes lacks the nearest cell; and it is
    d2 for a bit in which the nearest two differ.

    Args:
        cells: Instance ids of cells, 0 between them, (Z, Y, X) or (Y, X).
        sigma: Standard deviation, in the unit of `sampling`.
        sampling: Size of a voxel along each axis of `cells`.
        threads: Threads of the distance transforms.

    Returns:
        0 to 1, float32, the shape of `cells`; 0 everywhere where there are fewer than two cells.
    """
    values, places = np.unique(cells, return_inverse=True)
    numbering = np.cumsum(values != 0) * (values != 0)  # 0 stays the space between, whatever the ids are
    numbers = numbering.astype(np.int32)[places].reshape(cells.shape)
    if numbers.max(initial=0) < 2:
        return np.zeros(cells.shape, dtype=np.float32)
    nearest, second = _two_nearest(numbers, sampling, threads)
    weight: np.ndarray = np.exp(-((nearest + second) ** 2) / np.float32(2 * sigma * sigma))
    return weight.astype(np.float32)


def _two_nearest(numbers: np.ndarray, sampling: tuple[float, ...], threads: int) -> tuple[np.ndarray, np.ndarray]:
    between = numbers == 0
    nearest = second = np.full(numbers.shape, np.inf, dtype=np.float32)
    codes = numbers - 1
    for bit in range(int(codes.max()).bit_length()):
        has = (codes >> bit & 1).astype(bool)
        one, other = (_distance(between | away, sampling, threads) for away in (has, ~has))
        nearest = np.minimum(nearest, np.minimum(one, other))
        second = np.minimum(second, np.maximum(one, other))
    return nearest, second


def _distance(outside: np.ndarray, sampling: tuple[float, ...], threads: int) -> np.ndarray:
    """Of each voxel to the nearest that is not `outside`."""
    distances: np.ndarray = edt.edt(outside, anisotropy=sampling, black_border=False, parallel=threads)
    return distances

"""One tile: read with its halo, predict slab by slab, crop, write whole units, record.

    source --window--> mirror beyond the ends --> predictor --(box, array), z order--> sink --> record

The engine knows no zarr and no torch: it is given a source, a predictor and a sink.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.core.box import Box, Triple
from pipeline.core.grid import Tile
from pipeline.core.ledger import TileRecord, Units
from pipeline.core.mirror import shown, spread
from pipeline.errors import InferenceError, StorageError


class Source(Protocol):
    """A volume that is read in boxes."""

    @property
    def shape(self) -> Triple:
        """Voxels along z, y, x."""

    def read(self, box: Box) -> np.ndarray:
        """Voxels of a box inside the volume, (C, Z, Y, X), any real dtype."""


class Predictor(Protocol):
    """Owns normalisation, network, activation, crop and quantisation."""

    def predict(self, tile: Tile, array: np.ndarray) -> Iterator[tuple[Box, np.ndarray]]:
        """Predicted parts of the core in z order; `array` shows the tile's window, (C, Z, Y, X)."""


class Sink(Protocol):
    """Takes the parts of one core and writes whole units."""

    def add(self, box: Box, array: np.ndarray) -> None:
        """Take a part, (C, Z, Y, X)."""

    def finish(self) -> Units:
        """Checksums of what was written."""


def infer_tile(
    tile: Tile, *, source: Source, predictor: Predictor, sink: Sink, nonfinite: str, fingerprint: str
) -> TileRecord:
    """Predict the core of `tile` and write it.

    Idempotent: running a tile twice writes the same bytes, because it owns whole write units.

    Args:
        tile: What to read and what to own, voxels of the input's level.
        source: Input volume.
        predictor: The network, ready.
        sink: Output of this tile.
        nonfinite: What to do with input that is not finite: `fail`, or `zero` to put 0 in its place.
        fingerprint: Of the plan; goes into the record.

    Returns:
        The record for the ledger; seconds are wall time, `peak_bytes` is resident host memory.

    Raises:
        InferenceError: The input cannot be read or is not finite, or the prediction is not.
        StorageError: The output cannot be written.
    """
    started = time.perf_counter()
    array = _finite(_read(source, tile), tile, nonfinite)
    read_seconds = time.perf_counter() - started
    write_seconds = 0.0
    for box, part in predictor.predict(tile, array):
        began = time.perf_counter()
        _add(sink, tile, box, part)
        write_seconds += time.perf_counter() - began
    return TileRecord(
        tile=tile.index,
        state="done",
        fingerprint=fingerprint,
        units=sink.finish(),
        seconds=round(time.perf_counter() - started, 4),
        read_seconds=round(read_seconds, 4),
        write_seconds=round(write_seconds, 4),
        peak_bytes=peak_bytes(),
    )


def _read(source: Source, tile: Tile) -> np.ndarray:
    """The tile's window, mirrored where it lies beyond the volume."""
    inside, indices = shown(tile.window, source.shape)
    try:
        array = source.read(inside)
    except Exception as error:  # file systems and codecs raise anything, zlib.error and EOFError too
        raise InferenceError(
            f"{tile} could not be read: the input box {inside} gave {type(error).__name__}: {error}. "
            "The input is damaged or out of reach there; repair it, then run again: finished tiles are kept."
        ) from error
    return spread(array, indices)


def _finite(array: np.ndarray, tile: Tile, nonfinite: str) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    good = np.isfinite(array)
    if good.all():
        return array
    if nonfinite == "zero":
        return np.where(good, array, array.dtype.type(0))
    first = tuple(int(i) for i in np.argwhere(~good)[0][1:])
    place = tuple(a + i for a, i in zip(tile.window.start, first, strict=True))
    raise InferenceError(
        f"{tile} read input that is not finite: {int((~good).sum())} values in the box {tile.window}, the first at "
        f"z, y, x = {place}. Repair the volume, or set input.nonfinite to 'zero'."
    )


def _add(sink: Sink, tile: Tile, box: Box, part: np.ndarray) -> None:
    if part.shape[1:] != box.shape:
        raise InferenceError(
            f"{tile}: the network gave {part.shape[1:]} voxels for the box {box}; expected {box.shape}."
        )
    try:
        sink.add(box, part)
    except OSError as error:
        raise StorageError(
            f"{tile} could not be written ({error}). Make room or repair the file system, then run again: finished tiles "
            "are kept."
        ) from error


def peak_bytes() -> int:
    """Peak resident memory of this process. From /proc, since `ru_maxrss` also counts the parent before the exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0

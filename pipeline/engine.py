"""One tile: read ahead, predict slab by slab, write behind, record.

    source --blocks of whole chunks--> mirror beyond the ends --slabs--> predictor --(box, array)--> sink --> record
      reader thread                                          compute threads                     writer thread

A block is read while the one before it is computed, and a result is written while the next is: both a bounded number
ahead or behind, so memory does not grow with the tile's length, and the network waits for nobody but the slowest.
The engine knows no zarr and no torch: it is given a source, a predictor and a sink.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from pipeline.core.geometry.box import Box, Span, Triple, per_axis, triple
from pipeline.core.geometry.mirror import shown, spread
from pipeline.core.ledger import TileRecord, Units
from pipeline.core.normalization import finite
from pipeline.core.tiles.cost import read_spans
from pipeline.core.tiles.grid import Tile
from pipeline.errors import FileError, ForbiddenError, InferenceError, StorageError

BEHIND = 2
"""Results that wait for the writer, at most."""

Given = TypeVar("Given")
Made = TypeVar("Made")


class Source(Protocol):
    """A volume that is read in boxes."""

    @property
    def shape(self) -> Triple:
        """Voxels along z, y, x."""

    def read(self, box: Box) -> np.ndarray:
        """Voxels of a box inside the volume, (C, Z, Y, X), any real dtype."""


class Predictor(Protocol):
    """Owns normalisation, network, activation and quantisation."""

    def reads(self, tile: Tile) -> Iterable[Span]:
        """Slices of the tile's window in which it takes it, each from where the one before it stops."""

    def predict(self, tile: Tile, slabs: Iterable[np.ndarray]) -> Iterator[tuple[Box, np.ndarray]]:
        """Predicted parts of the core in z order; `slabs` show the tile's window in the slices that it `reads`."""


class Sink(Protocol):
    """Takes the parts of one core and writes whole units."""

    def add(self, box: Box, array: np.ndarray) -> None:
        """Take a part, (C, Z, Y, X)."""

    def finish(self) -> Units:
        """Checksums of what was written."""


def tile_slabs(
    tile: Tile, turns: Sequence[Span], *, source: Source, nonfinite: str, read_slices: int
) -> Iterator[np.ndarray]:
    """A tile's window in the slices of each turn, (C, Z, Y, X), as stored: the next block is read while one is in use.

    Args:
        tile: Whose window is shown, mirrored beyond the volume's ends.
        turns: Slices, each from where the one before it stops.
        source: Input volume.
        nonfinite: As of `infer_tile`.
        read_slices: As of `infer_tile`.

    Raises:
        InferenceError: The input cannot be read or is not finite.
    """
    with _one_thread("read") as reader:
        spans = read_spans(Span(turns[0].start, turns[-1].stop), source.shape[0], read_slices)
        blocks = _ahead(reader, lambda span: _read(source, tile, span, nonfinite), spans, _Clock(time.perf_counter))
        yield from _slabs(turns, blocks)


class _Clock:
    """Adds up the seconds of one activity; each is used by one thread."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.seconds = now, 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        started = self.now()
        try:
            yield
        finally:
            self.seconds += self.now() - started


def infer_tile(
    tile: Tile,
    *,
    source: Source,
    predictor: Predictor,
    sink: Sink,
    nonfinite: str,
    fingerprint: str,
    read_slices: int,
    now: Callable[[], float] = time.perf_counter,
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
        read_slices: Slices that are read at once; see `core.tiles.cost.read_slices`.
        now: What seconds are told by.

    Returns:
        The record for the ledger; seconds are wall time, `peak_bytes` is resident host memory.

    Raises:
        InferenceError: The input cannot be read or is not finite, or the prediction is not.
        StorageError: The output cannot be written.
    """
    whole, reading, writing, waiting = (_Clock(now) for _ in range(4))

    def read(span: Span) -> np.ndarray:
        with reading.running():
            return _read(source, tile, span, nonfinite)

    def write(part: tuple[Box, np.ndarray]) -> None:
        with writing.running():
            _add(sink, tile, *part)

    with whole.running(), _one_thread("read") as reader, _one_thread("write") as writer:
        turns = list(predictor.reads(tile))
        spans = read_spans(Span(turns[0].start, turns[-1].stop), source.shape[0], read_slices)
        slabs = _slabs(turns, _ahead(reader, read, spans, waiting))
        _behind(writer, write, predictor.predict(tile, slabs), waiting)
    return TileRecord(
        tile=tile.index,
        state="done",
        fingerprint=fingerprint,
        units=sink.finish(),
        seconds=round(whole.seconds, 4),
        read_seconds=round(reading.seconds, 4),
        write_seconds=round(writing.seconds, 4),
        wait_seconds=round(waiting.seconds, 4),
        peak_bytes=peak_bytes(),
    )


# --- ahead and behind ---------------------------------------------------------------------------------------------------


@contextmanager
def _one_thread(name: str) -> Iterator[ThreadPoolExecutor]:
    """A thread of its own; what it was not yet at when something failed is dropped."""
    executor = ThreadPoolExecutor(1, thread_name_prefix=name)
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _ahead(
    executor: ThreadPoolExecutor, make: Callable[[Given], Made], items: Iterable[Given], waiting: _Clock
) -> Iterator[Made]:
    """`make` of each item, in order; the next is under way while one is in use."""
    under_way: Future[Made] | None = None
    for item in items:
        following = executor.submit(make, item)
        if under_way is not None:
            with waiting.running():
                made = under_way.result()
            yield made
            del made  # else it would be held while the one after it is waited for
        under_way = following
    if under_way is not None:
        with waiting.running():
            made = under_way.result()
        yield made


def _behind(
    executor: ThreadPoolExecutor, take: Callable[[Given], None], items: Iterable[Given], waiting: _Clock
) -> None:
    """`take` each item, in order, while the next ones are made; at most `BEHIND` wait."""
    under_way: deque[Future[None]] = deque()
    for item in items:
        under_way.append(executor.submit(take, item))
        while len(under_way) > BEHIND or (under_way and under_way[0].done()):
            with waiting.running():
                under_way.popleft().result()
    with waiting.running():
        for future in under_way:
            future.result()


# --- reading ------------------------------------------------------------------------------------------------------------


def _slabs(spans: Iterable[Span], blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The slices of each span, (C, Z, Y, X), cut from blocks of other lengths."""
    left: list[np.ndarray] = []
    for span in spans:
        while sum(part.shape[1] for part in left) < span.extent:
            left.append(next(blocks))
        yield _taken(left, span.extent)


def _taken(left: list[np.ndarray], wanted: int) -> np.ndarray:
    """The first slices of what is left, which is shortened by them; no copy where one part has them all."""
    parts = []
    while wanted:
        parts.append(left[0][:, :wanted])
        wanted -= parts[-1].shape[1]
        left[0] = left[0][:, parts[-1].shape[1] :]
        if not left[0].shape[1]:
            del left[0]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _read(source: Source, tile: Tile, span: Span, nonfinite: str) -> np.ndarray:
    """Slices of the tile's window, mirrored where it lies beyond the volume."""
    window = tile.window
    part = Box((span.start, *window.start[1:]), (span.stop, *window.stop[1:]))
    inside, indices = shown(part, source.shape)
    try:
        array = source.read(inside)
    except ForbiddenError as error:
        raise InferenceError(f"{tile} could not be read: {error} Finished tiles are kept.") from None
    except Exception as error:  # file systems and codecs raise anything, zlib.error and EOFError too
        why = error.__cause__ if isinstance(error, StorageError) and error.__cause__ else error
        raise InferenceError(
            f"{tile} could not be read: the input box {inside} gave {type(why).__name__}: {why}. "
            "The input is damaged or out of reach there; repair it, then run again: finished tiles are kept."
        ) from error

    def refusal(count: int, first: tuple[int, ...]) -> InferenceError:
        place = per_axis(lambda a, i: a + i, inside.start, triple(first[1:]))
        return InferenceError(
            f"{tile} read input that is not finite: {count} values in the box {inside}, the first at "
            f"z, y, x = {place}. Repair the volume, or set input.nonfinite to 'zero'."
        )

    return spread(finite(array, nonfinite, refusal), indices)


# --- writing ------------------------------------------------------------------------------------------------------------


def _add(sink: Sink, tile: Tile, box: Box, part: np.ndarray) -> None:
    if part.shape[1:] != box.shape:
        raise InferenceError(
            f"{tile}: the network gave {part.shape[1:]} voxels for the box {box}; expected {box.shape}."
        )
    try:
        sink.add(box, part)
    except FileError as error:
        raise StorageError(f"{tile} could not be written ({error})") from error
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

"""One tile through the engine, with fakes: no zarr, no torch, no cluster."""

import json
import pickle
import threading
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from pipeline.core.geometry.box import Box, Span, Triple
from pipeline.core.ledger import Units, parse_lines
from pipeline.core.network.stream import Stream
from pipeline.core.network.unet import Architecture
from pipeline.core.tiles.grid import Tile, TileGrid
from pipeline.engine import infer_tile
from pipeline.errors import ForbiddenError, InferenceError, StorageError

SHAPE = (13, 22, 17)
SAME = Architecture(ndim=3, depth=1, width=2)
VALID = Architecture(ndim=3, depth=1, width=2, padding="valid")


@dataclass
class FakeSource:
    """A volume in memory that remembers what was read of it."""

    array: np.ndarray
    error: Exception | None = None
    boxes: list[Box] = field(default_factory=list)

    @property
    def shape(self) -> Triple:
        return self.array.shape[1:]

    def read(self, box: Box) -> np.ndarray:
        self.boxes.append(box)
        if self.error is not None:
            raise self.error
        assert Box.of_shape(self.shape).contains(box)
        return self.array[(slice(None), *box.within(Box.of_shape(self.shape)))]


@dataclass
class FakePredictor:
    """Predicts each voxel from itself alone, two slices at a time; keeps the windows that it was shown."""

    windows: list[np.ndarray] = field(default_factory=list)

    def reads(self, tile: Tile) -> list[Span]:
        first, last = tile.window.start[0], tile.window.stop[0]
        return [Span(z, min(z + 2, last)) for z in range(first, last, 2)]

    def predict(self, tile: Tile, slabs: Iterable[np.ndarray]) -> Iterator[tuple[Box, np.ndarray]]:
        seen, done, behind = [], tile.core.start[0], tile.window.stop[0] - tile.core.stop[0]
        for span, slab in zip(self.reads(tile), slabs, strict=True):
            assert slab.shape[1] == span.extent
            seen.append(slab)
            stop = min(span.stop - behind, tile.core.stop[0])
            if stop > done:
                box = Box((done, *tile.core.start[1:]), (stop, *tile.core.stop[1:]))
                yield box, 2 * np.concatenate(seen, axis=1)[(slice(None), *box.within(tile.window))]
                done = stop
        self.windows.append(np.concatenate(seen, axis=1))


@dataclass
class FakeSink:
    """Keeps the parts in the order in which they came."""

    parts: list[tuple[Box, np.ndarray]] = field(default_factory=list)
    error: Exception | None = None

    def add(self, box: Box, array: np.ndarray) -> None:
        if self.error is not None:
            raise self.error
        self.parts.append((box, array))

    def finish(self) -> Units:
        return {"0/c/0": "abc", "0/c/1": None}


def grid(architecture: Architecture = SAME) -> TileGrid:
    """Twelve tiles over a volume that is odd in two extents."""
    return Stream.over(architecture.graph, SHAPE, (8, 8, 8), (8, 8, 8), 2).grid


def volume(dtype: str = "uint8") -> np.ndarray:
    """Small random integers, one channel, as `dtype`."""
    return np.random.default_rng(0).integers(0, 100, (1, *SHAPE)).astype(dtype)


def infer(tile: Tile, source: FakeSource, *, predictor=None, sink=None, nonfinite="fail", read_slices=4, **clock):
    """`infer_tile` with fakes for what a test does not look at."""
    return infer_tile(
        tile,
        source=source,
        predictor=predictor or FakePredictor(),
        sink=sink or FakeSink(),
        nonfinite=nonfinite,
        fingerprint="f1",
        read_slices=read_slices,
        **clock,
    )


@pytest.mark.parametrize("architecture", [SAME, VALID], ids=["same", "valid"])
def test_the_predictor_sees_the_volume_mirrored_in_global_coordinates(architecture):
    """What lies beyond an end must be what one pass over the whole would see there, whichever tile asks."""
    array = volume()
    whole = np.pad(array, [(0, 0)] + [(40, 40)] * 3, mode="reflect")
    frame = Box((-40, -40, -40), tuple(n + 40 for n in SHAPE))
    for tile in grid(architecture):
        source, predictor = FakeSource(array), FakePredictor()
        infer(tile, source, predictor=predictor)
        expected = whole[(slice(None), *tile.window.within(frame))]
        np.testing.assert_array_equal(predictor.windows, [expected])


@pytest.mark.parametrize("read_slices", [1, 3, 4, 8, 100])
def test_a_tile_reads_its_window_once_and_no_voxel_beyond_it(read_slices):
    """Reads are the cost that grows with the halo; the plan's figure counts each window once."""
    for tile in grid():
        source, sink = FakeSource(volume()), FakeSink()
        infer(tile, source, sink=sink, read_slices=read_slices)
        inside = tile.window.clipped(Box.of_shape(SHAPE))
        assert {box.shape[1:] for box in source.boxes} == {inside.shape[1:]}
        seen = [z for box in source.boxes for z in range(box.start[0], box.stop[0])]
        assert sorted(set(seen)) == list(range(inside.start[0], inside.stop[0]))
        assert len(seen) - len(set(seen)) <= SAME.stride[0]  # what is mirrored behind the last slice may be read again


def test_reads_are_cut_where_chunks_are():
    """A block that began inside a chunk would have it decoded twice."""
    tall = TileGrid((64, 8, 8), core=(16, 8, 8), stride=(2, 2, 2), margin=(8, 8, 8))
    source = FakeSource(np.zeros((1, 64, 8, 8), np.uint8))
    infer(tall.tile(1), source, read_slices=12)
    assert [(box.start[0], box.stop[0]) for box in source.boxes] == [(8, 12), (12, 24), (24, 36), (36, 40)]


TALL = TileGrid((64, 8, 8), core=(64, 8, 8), stride=(2, 2, 2), margin=(8, 8, 8))
"""One tile of 32 turns."""

NEVER = 0.2
"""Seconds for what must not happen: it happens within, or the test sees less than it might; it never fails for them."""


class Count:
    """Counts what one thread does, for others to wait for."""

    def __init__(self) -> None:
        self.value, self._changed = 0, threading.Condition()

    def add(self, one: int = 1) -> int:
        with self._changed:
            self.value += one
            self._changed.notify_all()
            return self.value

    def reaches(self, value: int, seconds: float = 30) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.value >= value, seconds)


def test_the_next_block_is_read_while_one_is_computed_and_no_further():
    """A network that waits for a disk wastes a GPU; a reader that runs away fills the memory."""
    turns, begun, handed = [], Count(), Count()

    class Slow(FakeSource):
        def read(self, box: Box) -> np.ndarray:
            assert handed.reaches(begun.add() - 1)  # it ends while the network has the block before it
            return super().read(box)

    class Watchful(FakePredictor):
        def predict(self, tile: Tile, slabs: Iterable[np.ndarray]) -> Iterator[tuple[Box, np.ndarray]]:
            def watched() -> Iterator[np.ndarray]:
                for turn, slab in enumerate(slabs):
                    ahead = min(turn + 2, 32)  # those of this turn and before it, and the next one
                    turns.append((handed.add() == turn + 1, begun.reaches(ahead), begun.value == ahead))
                    if turn == 5:
                        assert not begun.reaches(ahead + 1, NEVER)
                    yield slab

            return super().predict(tile, watched())

    infer(TALL.tile(0), Slow(np.zeros((1, 64, 8, 8), np.uint8)), predictor=Watchful(), read_slices=2)
    assert turns == [(True, True, True)] * 32


def test_writing_goes_on_beside_the_network_and_only_a_few_results_wait():
    """A slow disk must hold the network back before results fill the memory."""
    made, waiting = Count(), []

    class SlowSink(FakeSink):
        def add(self, box: Box, array: np.ndarray) -> None:
            assert made.reaches(min(len(self.parts) + 3, 32))  # of which two wait
            if len(self.parts) == 5:
                assert not made.reaches(len(self.parts) + 4, NEVER)
            waiting.append(made.value - len(self.parts))
            super().add(box, array)

    class Counting(FakePredictor):
        def predict(self, tile: Tile, slabs: Iterable[np.ndarray]) -> Iterator[tuple[Box, np.ndarray]]:
            for part in super().predict(tile, slabs):
                made.add()
                yield part

    sink = SlowSink()
    infer(TALL.tile(0), FakeSource(np.zeros((1, 64, 8, 8), np.uint8)), sink=sink, predictor=Counting())
    assert max(waiting) == 3
    assert sum(box.shape[0] for box, _ in sink.parts) == 64


@pytest.mark.parametrize("activity", ["read", "write"])
def test_the_seconds_of_an_activity_are_its_own(activity):
    """They say what a run waits for; time that passes in the one must not be the other's."""
    clock = Count()

    class Slow(FakeSource, FakeSink):
        def read(self, box: Box) -> np.ndarray:
            clock.add(activity == "read")
            return super().read(box)

        def add(self, box: Box, array: np.ndarray) -> None:
            clock.add(activity == "write")
            self.parts.append((box, array))

    slow = Slow(np.zeros((1, 64, 8, 8), np.uint8))
    slow.parts = []
    record = infer(TALL.tile(0), slow, sink=slow, now=lambda: float(clock.value))
    spent = {"read": len(slow.boxes), "write": len(slow.parts)}[activity]
    assert spent > 8
    assert {"read": record.read_seconds, "write": record.write_seconds}[activity] == record.seconds == spent
    assert record.wait_seconds <= spent


def test_parts_reach_the_sink_as_predicted_and_in_z_order():
    """The sink writes a unit as soon as it is whole, so memory is bounded only if parts come in order."""
    array, result = volume("float32"), np.full((1, *SHAPE), np.nan, dtype=np.float32)
    for tile in grid():
        sink = FakeSink()
        infer(tile, FakeSource(array), sink=sink)
        assert [box.start[0] for box, _ in sink.parts[1:]] == [box.stop[0] for box, _ in sink.parts[:-1]]
        for box, part in sink.parts:
            result[(slice(None), *box.within(Box.of_shape(SHAPE)))] = part
    np.testing.assert_array_equal(result, 2 * array)


def test_the_record_holds_what_the_ledger_needs():
    """The record travels from the worker to the ledger's line and back on the next run."""
    record = infer(grid().tile(3), FakeSource(volume()))
    assert (record.tile, record.state, record.fingerprint) == (3, "done", "f1")
    assert record.units == {"0/c/0": "abc", "0/c/1": None}
    assert 0 <= record.wait_seconds <= record.seconds + 1e-3
    assert record.read_seconds > 0
    assert record.peak_bytes > 2**20
    assert list(parse_lines([record.to_line()])) == [record]
    assert json.loads(record.to_line())["units"] == record.units


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        ValueError("Stored checksum 1 and computed 2 do not match"),
        RuntimeError("Zstd decompression error: Src size is incorrect"),
        KeyError("no such codec"),
        zlib.error("Error -3 while decompressing data"),
        EOFError("Compressed file ended before the end-of-stream marker was reached"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_input_that_cannot_be_read_fails_the_tile_by_name_and_box(error):
    """Whoever repairs the input must learn where it is damaged; codecs raise errors of every kind."""
    tile, source = grid().tile(5), FakeSource(volume(), error=error)
    with pytest.raises(InferenceError) as raised:
        infer(tile, source)
    message = str(raised.value)
    assert message.startswith(f"{tile} could not be read")
    assert str(source.boxes[0]) in message
    assert type(error).__name__ in message
    assert raised.value.__cause__ is error


def because(error: Exception, cause: Exception | None) -> Exception:
    """An error with what it was raised from."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (because(StorageError("a chunk is damaged"), ValueError("bad magic")), "gave ValueError: bad magic"),
        (because(StorageError("a chunk is damaged"), None), "gave StorageError: a chunk is damaged"),
        (because(OSError("stale handle"), ValueError("bad magic")), "gave OSError: stale handle"),
        (
            ForbiddenError("'s3://b/c/0' is refused."),
            r"could not be read: 's3://b/c/0' is refused. Finished tiles are kept.$",
        ),
    ],
)
def test_a_tile_says_what_the_store_met_and_not_that_the_store_says_so(error, why):
    """What a store's error was raised from is nearer to the damage; of any other error, it is an inner matter."""
    with pytest.raises(InferenceError, match=why):
        infer(grid().tile(1), FakeSource(volume(), error=error))


def test_input_that_is_not_finite_fails_the_tile_that_reads_it_by_name_and_first_place():
    """A NaN anywhere in a window spoils the tile, and nobody finds one voxel in a terabyte without its place."""
    array = volume("float32")
    array[0, 9, 12, 5] = np.nan
    array[0, 9, 12, 6] = -np.inf
    tile = grid().tile(0)
    with pytest.raises(InferenceError) as raised:
        infer(tile, FakeSource(array))
    message = str(raised.value)
    assert message.startswith("tile 0 (core z 0:8, y 0:8, x 0:8)")
    assert "2 values" in message
    assert "in the box z 8:12, y 0:16, x 0:16" in message
    assert "z, y, x = (9, 12, 5)" in message


def test_a_tile_that_does_not_reach_the_bad_voxel_is_not_failed():
    """Only the tiles that read bad input fail; all others are kept."""
    array = volume("float32")
    array[0, 12, 0, 0] = np.inf
    small = TileGrid(SHAPE, core=(2, 2, 2), stride=(2, 2, 2), margin=(8, 8, 8))
    assert infer(small.tile(0), FakeSource(array)).state == "done"


def test_input_that_is_not_finite_is_zero_where_the_run_says_so():
    """`nonfinite: zero` puts 0 in place of NaN and infinities, and leaves the source as it was."""
    array = volume("float32")
    array[0, 1, 2, 3], array[0, 4, 5, 6] = np.nan, np.inf
    source, predictor = FakeSource(array), FakePredictor()
    infer(grid().tile(0), source, predictor=predictor, nonfinite="zero")
    expected = np.nan_to_num(array, nan=0, posinf=0)[(slice(None), *grid().tile(0).window.within(Box.of_shape(SHAPE)))]
    np.testing.assert_array_equal(predictor.windows[0][:, : expected.shape[1], :, : expected.shape[3]], expected)
    assert predictor.windows[0].dtype == np.float32
    assert np.isnan(array[0, 1, 2, 3])


def test_integers_are_never_searched_for_values_that_are_not_finite():
    """Integer input is finite by its type; a search would cost a pass over every window."""
    assert infer(grid().tile(0), FakeSource(volume("uint16")), nonfinite="fail").state == "done"


def test_a_prediction_of_another_shape_fails_the_tile():
    """A network that gives other voxels than its tile's would write them in the wrong place."""
    with pytest.raises(InferenceError, match=r"^tile 1 .* gave \(\d, 8, 4\) voxels .* expected \(\d, 8, 8\)"):
        infer(grid().tile(1), FakeSource(volume()), predictor=Halved())


class Halved(FakePredictor):
    """Loses half of each part along x."""

    def predict(self, tile: Tile, slabs: Iterable[np.ndarray]) -> Iterator[tuple[Box, np.ndarray]]:
        return ((box, part[..., :4]) for box, part in super().predict(tile, slabs))


def test_an_output_that_cannot_be_written_fails_the_tile_as_a_storage_error():
    """A full disk is the user's to mend; it must come by name, not as a traceback."""
    sink = FakeSink(error=OSError(28, "No space left on device"))
    with pytest.raises(StorageError, match=r"^tile 1 .*could not be written .*No space left"):
        infer(grid().tile(1), FakeSource(volume()), sink=sink)


def test_errors_of_a_tile_survive_the_way_from_worker_to_driver():
    """An exception that cannot be pickled reaches the driver as another error."""
    with pytest.raises(InferenceError) as raised:
        infer(grid().tile(1), FakeSource(volume(), error=OSError("gone")))
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (type(copy), str(copy)) == (InferenceError, str(raised.value))

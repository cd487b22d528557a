import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.ledger import Progress, Session, TileRecord, parse_lines

RECORD = TileRecord(7, "done", "ab" * 32, {"0/c/0/1": "cd" * 32, "0/c/0/2": None}, seconds=1.5, worker="w-0")
STATES = ("done", "failed", "invalid")

seconds = st.floats(0, 1e6)
records = st.builds(
    TileRecord,
    tile=st.integers(0, 9),
    state=st.sampled_from(STATES),
    fingerprint=st.sampled_from(("ours", "theirs")),
    units=st.dictionaries(st.text(), st.none() | st.text()),
    seconds=seconds,
    read_seconds=seconds,
    write_seconds=seconds,
    wait_seconds=seconds,
    peak_bytes=st.integers(0, 2**50),
    worker=st.text(),
    attempt=st.integers(1, 9),
    error=st.text(),
)


def session(**known):
    """A sitting of the driver."""
    usual = {"tiles": 3, "seconds": 2.0, "cluster_seconds": 1.0, "model_seconds": 0.5, "workers": 2}
    return Session(**{"fingerprint": "ours", **usual, "ended": "2026-01-01T00:00:00+00:00", **known})


# --- lines --------------------------------------------------------------------------------------------------------------


@given(st.lists(records | st.builds(session, tiles=st.integers(), ended=st.text())))
def test_records_round_trip_through_lines(entries):
    """Whatever an error message or an object key holds, one record stays one line, and comes back equal."""
    lines = "".join(entry.to_line() for entry in entries).splitlines(keepends=True)
    assert len(lines) == len(entries)
    assert list(parse_lines(lines)) == entries


@given(st.lists(records, max_size=3), records, st.data())
def test_a_torn_last_line_counts_for_nothing(entries, last, data):
    """A kill in the middle of a write tears the line: its tile is not vouched for, and the rest stands."""
    line = last.to_line()
    torn = line[: data.draw(st.integers(1, len(line) - 1))]
    assert list(parse_lines([*(entry.to_line() for entry in entries), torn])) == entries


def test_a_line_that_lacks_only_its_end_counts_for_nothing():
    """Its newline is what says that it was written whole."""
    assert list(parse_lines([RECORD.to_line(), RECORD.to_line().rstrip("\n")])) == [RECORD]


DAMAGED = {
    "no JSON": '{"tile": 3, "state": "do\n',
    "an empty line": "\n",
    "zeros, as a crash of the machine leaves": "\x00\x00\x00\n",
    "no object": "[1, 2]\n",
    "a number": "3\n",
    "a word": '"session"\n',
    "an unknown key": '{"tile": 3, "state": "done", "fingerprint": "ours", "colour": 1}\n',
    "a key that is missing": '{"tile": 3, "state": "done"}\n',
    "an unknown state": '{"tile": 3, "state": "dome", "fingerprint": "ours"}\n',
    "a tile that is no number": '{"tile": "3", "state": "done", "fingerprint": "ours"}\n',
    "a session that is none": '{"session": 3}\n',
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_in_the_middle_is_refused_by_its_number(line):
    """To skip it in silence would be to compute a tile again at best, and to trust a lost one at worst."""
    entries = parse_lines([RECORD.to_line(), line, RECORD.to_line()])
    assert next(entries) == RECORD
    with pytest.raises(ValueError, match="line 2 is no record"):
        next(entries)


def test_a_line_leaves_out_what_is_empty():
    """A ledger of a billion tiles is as long as its lines."""
    assert set(json.loads(TileRecord(0, "done", "ours").to_line())) == {
        *("tile", "state", "fingerprint", "seconds", "read_seconds", "write_seconds", "wait_seconds", "peak_bytes"),
        "attempt",
    }


def test_an_all_fill_unit_is_remembered_as_absent():
    """No object is stored for it: None says that nothing must be there, and a missing key would say nothing."""
    (found,) = parse_lines([RECORD.to_line()])
    assert found.units == {"0/c/0/1": "cd" * 32, "0/c/0/2": None}


# --- progress -----------------------------------------------------------------------------------------------------------


@given(st.lists(records))
def test_the_last_record_of_a_tile_counts(entries):
    """A tile that verify found invalid is to do again, and done when it is written again."""
    progress, last = Progress(10, "ours"), {}
    for entry in entries:
        progress.add(entry)
        if entry.fingerprint == "ours":
            last[entry.tile] = entry.state
    done = [tile for tile, state in last.items() if state == "done"]
    failed = sorted(tile for tile, state in last.items() if state == "failed")
    others = [tile for tile in range(10) if tile not in (*done, *failed)]
    assert progress.to_do().tolist() == [*others, *failed]  # what failed before must not keep others from their turn
    assert [tile for tile in range(10) if progress.is_done(tile)] == sorted(done)
    assert [progress.count(state) for state in STATES] == [list(last.values()).count(state) for state in STATES]
    assert progress.count("todo") == 10 - len(last)


def test_records_of_another_plan_are_passed_over():
    """Tiles of other bytes must not stand in for this plan's."""
    progress = Progress(10, "ours")
    progress.add(replace(RECORD, fingerprint="theirs"))
    assert progress.count("todo") == progress.total == 10
    progress.add(replace(RECORD, fingerprint="ours"))
    progress.add(replace(RECORD, fingerprint="theirs", state="failed"))
    assert progress.is_done(7)


@pytest.mark.parametrize("tile", [-1, 10, 10**12])
def test_a_tile_outside_the_plan_is_passed_over(tile):
    """-1 must not mark the last tile."""
    progress = Progress(10, "ours")
    progress.add(TileRecord(tile, "done", "ours"))
    assert progress.count("done") == 0


def test_progress_takes_a_byte_a_tile():
    """The driver's memory must not grow with the ledger, only ever so slowly with the volume."""
    tracemalloc.start()
    progress = Progress(10**7, "ours")
    for tile in range(0, 10**7, 10**3):
        progress.add(TileRecord(tile, "done", "ours", {"0/c/0": "ab" * 32}))
    now, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert progress.count("done") == 10**4
    assert 10**7 <= now < 10**7 + 10**5


def test_what_is_to_do_is_plain_indices_in_order():
    """They become Dask tasks in this order, and neighbours share input chunks in the page cache."""
    progress = Progress(5, "ours")
    progress.add(TileRecord(2, "done", "ours"))
    np.testing.assert_array_equal(progress.to_do(), [0, 1, 3, 4])

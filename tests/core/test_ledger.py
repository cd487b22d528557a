import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import ledger
from pipeline.core.ledger import (
    Progress,
    Session,
    StatisticsRecord,
    TileRecord,
    checked_content,
    checked_line,
    parse_lines,
    replay,
)

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
    "units that are none": '{"tile": 3, "state": "done", "fingerprint": "ours", "units": [1]}\n',
    "a checksum that is none": '{"tile": 3, "state": "done", "fingerprint": "ours", "units": {"0/c/0": 7}}\n',
    "a time that is none": '{"tile": 3, "state": "done", "fingerprint": "ours", "seconds": NaN}\n',
    "nested without end": '{"tile": ' + "[" * 100_000 + "\n",
}


def read(*lines):
    """The records of lines, and the numbers of those that are damaged."""
    damaged = []
    return list(parse_lines(lines, lambda number, why: damaged.append(number))), damaged


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_counts_for_nothing_and_is_told_by_its_number(line):
    """It costs its tile, which is computed again; a run that ended there would end there for ever."""
    assert read(RECORD.to_line(), line, RECORD.to_line()) == ([RECORD, RECORD], [2])


@given(st.integers(0, 10**6), st.sampled_from('x7"{}, \t\r\x00\x1b\ufffd'), records)
def test_one_changed_character_costs_the_line_that_it_is_in(place, character, entry):
    """`"tile": 3` that became `73` is well-formed, and speaks of another tile: the checksum tells."""
    line = entry.to_line()
    place %= len(line) - 1
    changed = line[:place] + character + line[place + 1 :]
    expected = ([RECORD, RECORD], [2]) if changed != line else ([RECORD, entry, RECORD], [])
    assert read(RECORD.to_line(), changed, RECORD.to_line()) == expected


@given(records, records, st.sampled_from(["", "x", '{"tile": 3, "state": "do', "\x00\x00"]))
def test_a_lost_end_of_line_costs_no_record(first, second, between):
    """Two records in one line are two records: neither was damaged."""
    found, damaged = read(RECORD.to_line(), first.to_line().rstrip("\n") + between + second.to_line(), RECORD.to_line())
    assert found == [RECORD, first, second, RECORD]
    assert damaged == ([2] if between else [])


def test_a_line_that_is_too_long_is_one_that_is_damaged():
    """It is read in pieces; what follows stands."""
    assert read("x" * 100, "y" * 100, "z\n", RECORD.to_line()) == ([RECORD], [3])


def test_lines_of_earlier_versions_have_no_checksum_and_are_read():
    """A run that began under an old version resumes under a new one."""
    content = json.loads(RECORD.to_line())
    del content["crc32"]
    line = json.dumps(content) + "\n"
    assert read(line, RECORD.to_line(), line) == ([RECORD] * 3, [])


def test_a_whole_line_of_a_newer_version_is_refused():
    """To pass over it would be to compute again what is done."""
    text = json.dumps({**json.loads(RECORD.to_line()[:-23] + "}"), "colour": 1})[:-1]
    with pytest.raises(ValueError, match=r"line 1 is whole, but no record that this version knows .*colour"):
        read(f'{text}, "crc32": "{crc32(text.encode()):08x}"}}\n')


def test_a_line_leaves_out_what_is_empty():
    """A ledger of a billion tiles is as long as its lines."""
    assert set(json.loads(TileRecord(0, "done", "ours").to_line())) == {
        *("tile", "state", "fingerprint", "seconds", "read_seconds", "write_seconds", "wait_seconds", "peak_bytes"),
        *("attempt", "crc32"),
    }


def test_an_all_fill_unit_is_remembered_as_absent():
    """No object is stored for it: None says that nothing must be there, and a missing key would say nothing."""
    (found,) = parse_lines([RECORD.to_line()])
    assert found.units == {"0/c/0/1": "cd" * 32, "0/c/0/2": None}


# --- stages -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_stages(monkeypatch):
    """A version that knows a second stage of tiles."""
    monkeypatch.setattr(ledger, "TILED", ("infer", "pyramid"))


def test_a_ledger_of_before_stages_is_read_and_would_be_written_the_same():
    """Finished work is not lost, and versions of before read what this one writes: a ledger of 0.1, line by line."""
    lines = (Path(__file__).parent / "ledger-0.1.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    found = list(parse_lines(lines))
    assert [(r.tile, r.state) for r in found if isinstance(r, TileRecord)] == [
        (0, "done"),
        (1, "failed"),
        (1, "done"),
        (0, "invalid"),
    ]
    assert {record.stage for record in found} == {"infer"}
    assert [record.to_line() for record in found] == lines
    progress = Progress(2, found[0].fingerprint)
    replay(found, progress)
    assert progress.to_do().tolist() == [0]


def test_a_stage_goes_by_its_own_records(two_stages):
    """Tile 3 of one array says nothing of tile 3 of another; one pass over the ledger is enough for both."""
    entries = [
        replace(RECORD, fingerprint="ours", stage="pyramid"),
        replace(RECORD, fingerprint="ours", tile=2),
        session(stage="pyramid"),
        replace(RECORD, fingerprint="ours", tile=2, state="failed", stage="pyramid"),
    ]
    found = list(parse_lines(entry.to_line() for entry in entries))
    assert found == entries
    infer, pyramid = Progress(10, "ours"), Progress(8, "ours", "pyramid")
    replay(found, infer, pyramid)
    assert np.flatnonzero(infer.done()).tolist() == [2]
    assert np.flatnonzero(pyramid.done()).tolist() == [7]
    assert pyramid.count("failed") == 1


def test_a_stage_that_this_version_does_not_know_is_refused(monkeypatch):
    """A newer version's tiles must not count for this one's, nor be passed over as damage."""
    monkeypatch.setattr(ledger, "TILED", ("infer", "pyramid"))
    line = replace(RECORD, stage="pyramid").to_line()
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"line 1 is whole, but no record that this version knows \(stage 'pyramid'\)"):
        list(parse_lines([line]))


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


# --- which numbers tiles stand by -----------------------------------------------------------------------------------------

SURVEYED = StatisticsRecord(
    "ours", "ef" * 32, {"mode": "zscore", "offset": 0.1, "scale": 3.0, "over": {"input.shape": [1, 2]}}
)


def test_the_statistics_of_a_plan_are_a_record_of_its_stage_and_its_own():
    """The first one of a ledger; those of another plan, or of another stage, say nothing of these tiles."""
    others = [replace(SURVEYED, fingerprint="theirs"), replace(SURVEYED, digest="00" * 32)]
    entries = [SURVEYED, others[0], replace(RECORD, fingerprint="ours", tile=2, survey=SURVEYED.digest)]
    found = list(parse_lines(entry.to_line() for entry in entries))
    assert found == entries
    progress, nobody = Progress(10, "ours"), Progress(10, "nobody's")
    replay(found, progress, nobody)
    assert progress.surveyed == SURVEYED
    assert nobody.surveyed is None
    assert np.flatnonzero(progress.done()).tolist() == [2]
    progress.add(others[1])
    assert progress.surveyed == others[1]
    assert not progress.done().any()  # they stood by the first


def test_no_damaged_line_leaves_tiles_of_two_statistics():
    """Computed, computed again by other numbers of another input, and one line after the other is lost: what counts as done is of one."""
    first, second = "11" * 32, "22" * 32
    by = {digest: [TileRecord(tile, "done", "ours", survey=digest) for tile in range(4)] for digest in (first, second)}
    void = StatisticsRecord("ours", "", {})
    lines = [
        *(replace(SURVEYED, digest=first), *by[first]),
        *(*(TileRecord(tile, "invalid", "ours") for tile in range(4)), void) * 2,
        *(replace(SURVEYED, digest=second), *by[second][:2]),
    ]
    for lost in range(len(lines) + 1):
        progress = Progress(4, "ours")
        replay((line for number, line in enumerate(lines) if number != lost), progress)
        expected = {0, 1} - {number - len(lines) + 2 for number in [lost]}
        assert (progress.stand_by, set(np.flatnonzero(progress.done()).tolist())) == (second, expected)
        assert progress.surveyed is None or progress.surveyed.digest == second
    before = Progress(4, "ours")
    replay([line for line in lines[: 5 + 10] if line is not lines[7]], before)  # a line of the ten that say so twice
    assert (before.count("done"), before.stand_by, before.surveyed) == (0, "", None)


def test_statistics_that_lost_the_end_of_their_line_count_for_nothing():
    """As any record: what is not whole is not there, and the line that it runs into is read."""
    whole = SURVEYED.to_line()
    torn = whole[:50] + RECORD.to_line()
    damaged = []
    assert list(parse_lines([torn], lambda number, _: damaged.append(number))) == [RECORD]
    assert damaged == [1]
    assert list(parse_lines([RECORD.to_line()[:50] + whole])) == [SURVEYED]


def test_a_line_is_read_back_only_as_it_was_written():
    """Records of other files have the same checksum at their end."""
    line = checked_line({"part": 3, "found": ["a"]})
    assert checked_content(line) == {"part": 3, "found": ["a"]}
    for broken in (line[:-1], line[:-9], line.replace("3", "4"), "", "\n", "{}\n"):
        assert checked_content(broken) is None

"""What was counted of a volume: names of its objects, what changed between two looks, and which tiles read it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.geometry.box import Box
from pipeline.core.geometry.mirror import shown
from pipeline.core.stored import (
    FORMS,
    SAMPLE,
    Change,
    Inventory,
    Stored,
    compare,
    digest,
    objects,
    place_of,
    sample,
    touched,
)
from pipeline.core.tiles.grid import TileGrid
from tests.core.core_cases import grids, triples

GRID = (2, 3, 4)


def inventory(places, *, signature="a", sizes=7, stamps=1, marks=1, **known):
    """Objects of 10 x 20 x 30 voxels that are there, each as large as the others."""
    count = len(places)
    usual = {
        "stored": Stored(count, 24, "chunk", signature),
        "grid": GRID,
        "extent": (10, 20, 30),
        "axes": "zyx",
        "start": "c/",
        "separator": "/",
        "places": np.array(places, dtype=np.int64),
        "sizes": np.full(count, sizes),
        "stamps": np.full(count, stamps, dtype=np.uint64),
        "marks": np.full(count, marks, dtype=np.uint64),
    }
    return Inventory(**{**usual, **known})


# --- names --------------------------------------------------------------------------------------------------------------


@given(triples(1, 30), st.data(), st.sampled_from(FORMS))
def test_an_object_is_known_by_its_name(grid, data, form):
    """And a name is that of one object: what is counted is never another array's, nor counted twice."""
    place = data.draw(st.integers(0, grid[0] * grid[1] * grid[2] - 1))
    name = inventory([], grid=grid, start=form[0], separator=form[1]).name(place)
    assert place_of(name, grid, *form) == place


@pytest.mark.parametrize(
    "name",
    [
        "c/1/2",
        "c/1/2/3/0",
        "c/2/0/0",
        "c/0/3/0",
        "c/0/0/4",
        "c/01/2/3",
        "c/-1/2/3",
        "c/1/2/",
        "1/2/3",
        "c/1.2.3",
        "zarr.json",
    ],
)
def test_what_is_no_object_of_the_array_has_no_place(name):
    """Metadata, another array's chunks, numbers that no writer writes so."""
    assert place_of("c/1/2/3", GRID, "c/", "/") == 23
    assert place_of(name, GRID, "c/", "/") is None


def test_the_last_objects_may_reach_beyond_the_volume():
    """Twenty-one slices in chunks of ten are three, and twenty are two."""
    assert objects((21, 20, 1), (10, 10, 10)) == (3, 2, 1)
    assert inventory([]).box(23) == Box((10, 40, 90), (20, 60, 120))


def test_an_axis_that_is_not_stored_is_one_voxel():
    """A picture lies in slice 0; a channel is no place."""
    flat = inventory([], axes="cyx")
    assert flat.box(23) == Box((0, 40, 90), (1, 60, 120))


def test_one_file_that_holds_all_is_named_by_itself():
    """An HDF5 file has chunks, and a person sees the file."""
    assert inventory([], coarse=True, start="volume.h5").name(5) == "volume.h5"


# --- how many -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (Stored(1200, 5000, "chunk", ""), "1,200 of 5,000 chunks"),
        (Stored(0, 1, "shard", ""), "0 of 1 shard"),
        (Stored(999, 1000, "chunk", "", sampled=True), "999 of 1,000 sampled"),
    ],
)
def test_what_was_counted_is_said_in_words(stored, words):
    """It stands in the plan and in the report."""
    assert str(stored) == words


def test_absent_objects_are_warned_of_and_a_whole_volume_is_not():
    """They are read as fill, which is right for a sparse volume alone."""
    assert Stored(5, 5, "chunk", "").warnings == ()
    (several,), (one,), (looked,) = (
        Stored(5000, 7000, "chunk", "").warnings,
        Stored(4, 5, "shard", "").warnings,
        Stored(998, 1000, "chunk", "", sampled=True).warnings,
    )
    assert several.startswith("2,000 of the 7,000 chunks of the input are absent")
    assert one.startswith("1 of the 5 shards of the input is absent")
    assert looked.startswith("2 of the 1,000 chunks that were sampled of the input are absent")


@pytest.mark.parametrize("total", [1, SAMPLE, 100 * SAMPLE, 10**9])
def test_a_sample_is_spread_evenly(total):
    """Each thousandth of the objects has one that is looked at; where they are few, all are."""
    places = sample(total)
    assert len(places) == min(total, SAMPLE)
    assert (np.diff(places) > 0).all()
    assert ((places * len(places)) // total == np.arange(len(places))).all()


def test_a_sample_lies_on_no_lattice():
    """Every fortieth object would be of one column, and say nothing of the others."""
    places = sample(40 * SAMPLE)
    assert len(set(places % 40)) == 40


def test_a_digest_tells_its_parts_apart():
    """A size of 1 and a time of 23 is not a size of 12 and a time of 3."""
    assert digest(["1", "23"]) != digest(["12", "3"])
    assert 0 <= digest(["1"]) < 2**64


# --- changes ------------------------------------------------------------------------------------------------------------


def found(change):
    """What is gone, new and written again."""
    return change.gone.tolist(), change.new.tolist(), change.written.tolist()


def test_what_is_gone_new_or_written_again_is_found():
    """By place, size and time; an object whose size alone is another was written, and so was one of another time."""
    before, now = inventory([0, 1, 2, 3, 9]), inventory([1, 2, 3, 4, 9], signature="b")
    now.sizes[1] = 8
    now.stamps[2] = 5
    change = compare(before, now)
    assert found(change) == ([0], [4], [2, 3])
    assert change
    assert not change.is_coarse
    assert not compare(before, replace(now, stored=before.stored))


def test_times_of_a_copy_tell_nothing():
    """It was written when it was copied; what a faithful copy keeps is compared instead."""
    before, now = inventory([0, 1]), inventory([0, 1], signature="b", stamps=2)
    now.marks[1] = 9
    assert found(compare(before, now)) == ([], [], [0, 1])
    assert found(compare(before, now, copied=True)) == ([], [], [1])


def test_objects_that_one_look_did_not_look_for_are_neither_gone_nor_new():
    """A sample says nothing of the rest; it tells that there may be more, so that any tile may be concerned."""
    before = inventory([0, 1, 2, 3], looked=np.array([0, 1, 2, 3, 7]))
    now = inventory([1, 5, 7], signature="b", looked=np.array([0, 1, 5, 7]))
    change = compare(before, now)
    assert found(change) == ([0], [7], [])
    assert change.is_coarse


@pytest.mark.parametrize("before", [None, inventory([0], grid=(2, 3, 5)), inventory([0], coarse=True)])
def test_looks_that_cannot_be_compared_may_differ_in_anything(before):
    """The earlier one is lost, or is of another form: all tiles are taken to be concerned."""
    change = compare(before, inventory([0]))
    assert (change.partial, change.is_coarse, bool(change)) == (True, True, True)
    grid = TileGrid((20, 60, 120), (20, 30, 60), (1, 1, 1), (0, 0, 0))
    assert change.tiles(grid).all()
    assert "which is not known" in str(change)


def test_a_change_names_three_objects_and_counts_the_rest():
    """A person looks into a few; a thousand names would hide what happened."""
    change = Change(inventory([]), gone=np.arange(5), new=np.array([23]), written=np.arange(3))
    assert str(change) == (
        "5 chunks are gone: c/0/0/0, c/0/0/1, c/0/0/2, and 2 more; 1 chunk is new: c/1/2/3; "
        "3 chunks are written again (another size, time or ETag): c/0/0/0, c/0/0/1, c/0/0/2"
    )
    whole = Change(inventory([], coarse=True, start="a.h5"), written=np.array([0]))
    assert str(whole) == "1 file is written again (another size, time or ETag): a.h5"


def test_tiles_that_read_a_changed_object_are_told():
    """Those alone are to be computed again: its own, and neighbours whose halo takes a slice of it."""
    grid = TileGrid((20, 60, 120), (20, 30, 30), (1, 1, 1), (0, 5, 5))
    change = Change(inventory([]), new=np.array([0]), written=np.array([4]))  # y 0:20, x 0:30, and y 20:40
    assert change.tiles(grid).reshape(grid.counts)[0].tolist() == [[True, True, False, False]] * 2
    assert not Change(inventory([])).tiles(grid).any()


@given(grids(), st.data())
def test_a_tile_is_touched_where_what_it_shows_shares_a_voxel(grid, data):
    """Windows are compared an axis at a time, mirrored voxels included; tile by tile must say the same."""
    boxes = []
    for _ in range(data.draw(st.integers(0, 2))):
        start = [data.draw(st.integers(0, n - 1)) for n in grid.volume]
        boxes.append(Box.of_spans((a, a + data.draw(st.integers(1, 4))) for a in start))
    expected = [any(shown(tile.window, grid.volume)[0].overlaps(box) for box in boxes) for tile in grid]
    assert touched(grid, iter(boxes)).tolist() == expected

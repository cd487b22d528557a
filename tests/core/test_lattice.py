"""Windows on a lattice: they cover the volume, their shares add up to one, and tiles find those that they need."""

from itertools import product

import numpy as np
import pytest

from pipeline.core.geometry.box import Span
from pipeline.core.network.blended import BlendedStream
from pipeline.core.network.unet import Architecture
from pipeline.core.tiles.lattice import BlendedWindow, WindowRow

BLENDS = ("gaussian", "linear", "none")
ROWS = [
    WindowRow(volume, step, step + overlap, blend)
    for volume, step, overlap, blend in product((1, 5, 17, 41), (1, 4, 7), (0, 3, 9), BLENDS)
]


@pytest.mark.parametrize("blend", BLENDS)
def test_shares_add_up_to_one_at_every_voxel(blend):
    """And a window has shares where it says, and nowhere else."""
    for row in (row for row in ROWS if row.blend == blend):
        total = np.zeros(max(row.volume, row.extent))
        for number in range(len(row)):
            window, kept = row.window(number), row.kept(number)
            total[window.start : window.stop] += row.shares(number)
            assert ((row.shares(number) > 0) == [place in range(*kept) for place in range(*window)]).all()
        np.testing.assert_allclose(total, 1, atol=1e-12)


def test_windows_are_those_of_sliding_windows_elsewhere():
    """The last one is shifted back to end with the volume; a short volume has one, which goes beyond it."""
    assert [WindowRow(20, 4, 8, "linear").window(i) for i in range(4)] == [(0, 8), (4, 12), (8, 16), (12, 20)]
    row = WindowRow(21, 4, 8, "none")
    assert [row.window(i) for i in range(len(row))] == [(0, 8), (4, 12), (8, 16), (12, 20), (13, 21)]
    assert [row.kept(i) for i in range(len(row))] == [(0, 6), (6, 10), (10, 14), (14, 17), (17, 21)]
    assert [WindowRow(5, 4, 8, "gaussian").window(i) for i in range(1)] == [(0, 8)]
    assert len(WindowRow(5, 4, 8, "gaussian")) == 1


def test_a_core_finds_the_windows_that_have_a_share_in_it():
    """All of them, and no other: one too few would be a seam."""
    for row in ROWS:
        for start in range(0, row.volume, 3):
            for stop in (start + 1, min(start + 6, row.volume), row.volume):
                wanted = [i for i in range(len(row)) if row.kept(i).clipped(Span(start, stop)).extent > 0]
                assert list(row.touching(Span(start, stop))) == wanted


@pytest.mark.parametrize("core", [3, 6, 8, 13, 200])
def test_what_tiles_compute_is_counted_as_if_they_were_listed(core):
    """The count looks at a few cores, of however many; those that lie alike to the lattice are alike."""
    for blend, volume, step, overlap in product(BLENDS, (5, 61, 140), (4, 6), (0, 4, 8)):
        window = BlendedWindow((step,) * 3, (overlap,) * 3, blend)
        stream = BlendedStream.of_windows(Architecture(3, 1, 1).graph, (volume,) * 3, (core,) * 3, window)
        spans = [Span(a, min(a + core, volume)) for a in range(0, volume, core)]
        row = stream.grid.rows[0]
        assert stream.computed(0) == sum(len(row.touching(span)) for span in spans)
        read = sum(times * window.extent for _, window, times in stream.grid.distinct_cores(0))
        assert read == sum(stream.grid.window(0, *span).extent for span in spans)


@pytest.mark.parametrize(
    "wrong", [((0, 4, 4), (0, 0, 0), "none"), ((4, 4, 4), (0, -1, 0), "none"), ((4,) * 3, (0,) * 3, "box")]
)
def test_what_are_no_windows_is_refused(wrong):
    """Plans are read from files."""
    with pytest.raises(ValueError, match="windows of core"):
        BlendedWindow(*wrong)

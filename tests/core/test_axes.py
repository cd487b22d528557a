"""Which axes an array has, by all who tell them: what is believed, what is said of it, and what is refused."""

import pytest

from pipeline.core.geometry.axes import Told, nothing_told, read_as, refuse_colours_last, why_no_axes
from pipeline.errors import StorageError

SHAPE = (5, 40, 50)


def told(names, by="names"):
    """A letter for each axis; `-` where nothing is told of it."""
    return Told(by, tuple(None if name == "-" else name for name in names))


@pytest.mark.parametrize(
    ("asked", "shape"),
    [
        ("zyx", (2, 5, 40, 50)),
        ("zyx", (40, 50)),
        ("zy", (5, 40)),
        ("zyx.", SHAPE),
        ("zzyx", (1, *SHAPE)),
        ("czyx", SHAPE),
    ],
)
def test_axes_that_are_asked_for_must_be_known_and_as_many(asked, shape):
    """Neither alone is enough: an order that nothing is read in, or a name for an axis that is not there."""
    with pytest.raises(StorageError, match=f"has {len(shape)} axes, .* read as '{asked}'"):
        read_as([], shape, asked, "v")


def test_axes_that_nobody_tells_and_that_are_five_are_asked_for():
    """A remedy that works, of axes; six of more than one voxel have none."""
    with pytest.raises(StorageError, match=r"Set input\.axes to how they are stored"):
        read_as([], (1, 2, 5, 40, 50), "auto", "v")
    assert read_as([], (1, 2, 5, 40, 50), "tczyx", "v").axes == "czyx"
    with pytest.raises(StorageError) as refused:
        read_as([], (2, 2, 2, 5, 40, 50), "auto", "v")
    assert "input.axes" not in str(refused.value)


@pytest.mark.parametrize("asked", ["auto", "tzyx"])
def test_one_time_point_is_passed_over_and_several_are_refused(asked):
    """What bioformats2raw writes has a time axis always."""
    assert read_as([told("tzyx")], (1, *SHAPE), asked, "v").axes == "zyx"
    with pytest.raises(StorageError, match="3 time points along t"):
        read_as([told("tzyx")], (3, *SHAPE), asked, "v")


@pytest.mark.parametrize(
    ("names", "shape", "asked", "stored"),
    [
        ("bzyx", (1, *SHAPE), "auto", ".zyx"),
        ("bzyx", (1, *SHAPE), "zyx", ".zyx"),
        ("----", (1, *SHAPE), "zyx", ".zyx"),
        ("----", (5, 40, 1, 50), "zyx", "zy.x"),
        ("zcyx", (5, 1, 40, 1), "zyx", "z.yx"),  # an x of one voxel stays x
        ("-----", (1, 5, 40, 50, 1), "zyx", ".zyx."),
    ],
)
def test_axes_of_one_voxel_that_are_too_many_are_passed_over(names, shape, asked, stored):
    """By their names, or where fewer axes are asked for than are stored; never one of y and x that is told."""
    assert read_as([told(names)], shape, asked, "v").stored == stored


@pytest.mark.parametrize("follows", [True, False])
def test_axes_in_the_usual_order_may_say_which_there_are(follows):
    """In HDF5 and TIFF the file's own names then say where each lies; other orders are as stored, wherever."""
    found = read_as([told("zcyx")], (5, 2, 40, 50), "czyx", "v", follows=follows)
    assert found.stored == ("zcyx" if follows else "czyx")
    assert bool(found.warnings) is not follows
    assert read_as([told("zcyx")], (5, 2, 40, 50), "czxy", "v", follows=follows).stored == "czxy"


@pytest.mark.parametrize("text", ["auto", "yx", "xy", "yxc", "tczyx", "xyzct", "tyx"])
def test_orders_that_can_be_asked_for(text):
    """Any, with y and x."""
    assert why_no_axes(text) == ""


@pytest.mark.parametrize("text", ["", "zy", "yxx", "ZYX", "zyxb", ".yx", "zy x"])
def test_texts_that_are_no_order(text):
    """Said with an example."""
    assert "such as yx" in why_no_axes(text)


@pytest.mark.parametrize(
    ("names", "warning"),
    [
        ("zyx", ()),
        ("-yx", ()),
        ("---", ()),
        ("cyx", ("input.axes 'zyx' governs, but the axes are told as 'cyx' (names)",)),
        ("yx", ()),  # of another number of axes, it is not of them
    ],
)
def test_what_is_asked_for_governs_and_is_compared_with_what_is_told(names, warning):
    """A person may know better than a file, and may have mistyped."""
    found = read_as([told(names)], SHAPE, "zyx", "v")
    assert (found.axes, found.is_told, found.warnings) == ("zyx", True, warning)


@pytest.mark.parametrize(
    ("names", "axes"), [("cyx", "cyx"), ("zyx", "zyx"), ("-yx", "zyx"), ("z--", "zyx"), ("c--", "cyx"), ("--x", "zyx")]
)
def test_names_that_are_missing_are_filled_in_and_that_is_said(names, axes):
    """By the usual reading of so many axes, where it agrees with the names that there are."""
    found = read_as([told(names)], SHAPE, "auto", "v")
    assert found.axes == axes
    assert found.warnings == ((f"axes are told in part, as '{names}' (names): read as {axes}",) if "-" in names else ())


@pytest.mark.parametrize(
    ("other", "is_warned"), [("zyx", False), ("-yx", False), ("z-x", False), ("cyx", True), ("zxy", True), ("yx", True)]
)
def test_the_first_who_tells_is_believed_and_another_who_differs_is_named(other, is_warned):
    """What is silent of an axis does not contradict; whoever says nothing at all is passed over."""
    found = read_as([told("---"), told("zyx", "image"), told(other)], SHAPE, "auto", "v")
    assert found.axes == "zyx"
    words = f"axes are told as 'zyx' (image), which is believed, and as '{other}' (names)"
    assert found.warnings == ((words,) if is_warned else ())


def test_arrays_of_which_nobody_tells_are_read_by_their_number_of_axes():
    """And that is said, beside the voxel size, which is not known either."""
    for shape, axes in [((40, 50), "yx"), (SHAPE, "zyx"), ((2, *SHAPE), "czyx")]:
        found = read_as([], shape, "auto", "v")
        assert (found.axes, found.is_told) == (axes, False)
        assert f"read as {axes}" in nothing_told(found)
    assert nothing_told(read_as([told("zyx")], SHAPE, "auto", "v")) == "voxel size unknown: nobody tells it"


def test_names_that_are_no_letters_stand_between_commas():
    """`heightwidth` would be no word of anybody's."""
    assert str(told(["z", "y", "x"])) == "'zyx' (names)"
    assert str(told(["depth", "y", "-"])) == "'depth, y, -' (names)"


@pytest.mark.parametrize(
    ("shape", "is_refused"),
    [
        ((17, 17, 3), True),
        ((17, 17, 4), True),
        ((17, 17, 2), False),
        ((17, 17, 5), False),
        ((16, 17, 3), False),
        ((17, 16, 3), False),
        ((2, 17, 17, 3), True),
        ((2, 2, 17, 17, 3), False),
        ((17, 3), False),
    ],
)
def test_a_last_axis_of_three_or_four_beside_wide_ones_may_be_colours(shape, is_refused):
    """Read as x it would be a stack three voxels wide, and every page green."""
    if not is_refused:
        refuse_colours_last(shape, "v")
        return
    with pytest.raises(StorageError, match=f"if it is channels, to '{'z' * (len(shape) - 3)}yxc'"):
        refuse_colours_last(shape, "v")

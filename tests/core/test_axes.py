"""Which axes an array has, by all who tell them: what is believed, what is said of it, and what is refused."""

import pytest

from pipeline.core.geometry.axes import Told, nothing_told, read_as, refuse_colours_last
from pipeline.errors import StorageError

SHAPE = (5, 40, 50)


def told(names, by="names"):
    """A letter for each axis; `-` where nothing is told of it."""
    return Told(by, tuple(None if name == "-" else name for name in names))


@pytest.mark.parametrize(
    ("asked", "shape"), [("zyx", (2, 5, 40, 50)), ("zyx", (40, 50)), ("xyz", SHAPE), ("tyx", SHAPE), ("czyx", SHAPE)]
)
def test_axes_that_are_asked_for_must_be_known_and_as_many(asked, shape):
    """Neither alone is enough: an order that nothing is read in, or a name for an axis that is not there."""
    with pytest.raises(StorageError, match=f"has {len(shape)} axes, .* read as '{asked}'"):
        read_as([], shape, asked, "v")


def test_a_time_axis_of_many_points_has_no_remedy_of_names():
    """Five axes are none that a setting could put right: one time point is to be named."""
    with pytest.raises(StorageError) as refused:
        read_as([], (2, 2, 5, 40, 50), "auto", "v")
    assert "one time point at a time." in str(refused.value)
    assert "input.axes" not in str(refused.value)
    with pytest.raises(StorageError, match=r"or set input\.axes to how they are stored"):
        read_as([told("tzyx")], (2, 5, 40, 50), "auto", "v")


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
    with pytest.raises(StorageError, match=r"must come first to be read: store it as \(" + str(shape[-1])):
        refuse_colours_last(shape, "v")

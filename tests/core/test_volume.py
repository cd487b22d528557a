"""Where voxels lie in space, and what of it can be believed."""

import json
from math import inf, nan

import pytest

from pipeline.core.volume import Description, Space

NANOMETERS = ("nanometer",) * 3


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (Space((40.0, 4.0, 4.5), (0.0,) * 3, NANOMETERS), "40 x 4 x 4.5 nanometer"),
        (
            Space((1.0, 4.0, 4.0), (0.0,) * 3, ("micrometer", "nanometer", None)),
            "1 micrometer x 4 nanometer x 4 (no unit)",
        ),
        (Space((2.0, 2.0), (0.0, 0.0), (None, None)), "2 x 2 (no unit)"),
        (Space((1.0, 1.0), (0.0, 0.0), ("nanometer", None)), "1 nanometer x 1 (no unit)"),
        (Space((1.0, 2.0), (0.0, 0.0), (None, None)), "1 x 2 (no unit)"),
        (Space.unknown(3), "unknown"),
    ],
)
def test_a_voxel_size_is_said_with_its_units(space, words):
    """One unit once, others each; ones in no unit say nothing, and are called unknown."""
    assert str(space) == words
    assert space.is_unknown == (words == "unknown")


def test_nobody_knows_means_ones_in_no_unit_at_the_origin():
    """As many as there are axes."""
    assert Space.unknown(3) == Space((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (None, None, None))


@pytest.mark.parametrize(
    ("units", "sizes"),
    [
        (NANOMETERS, (40.0, 4.0, 0.5)),
        (("micrometer", "nanometer", "nanometer"), (40_000.0, 4.0, 0.5)),
        (("nanometer", "nanometer", None), None),
        ((None, "nanometer", "pixel"), None),
    ],
)
def test_sizes_in_nanometers_are_known_where_all_units_are(units, sizes):
    """Two of three are no voxel."""
    assert Space((40.0, 4.0, 0.5), (0.0,) * 3, units).nanometers == sizes


@pytest.mark.parametrize(
    ("scale", "translation"),
    [
        ((nan, 4.0, 4.0), (0.0,) * 3),
        ((4.0, 4.0, inf), (0.0,) * 3),
        ((4.0, 4.0, 4.0), (0.0, -inf, 0.0)),
        ((4.0, 0.0, 4.0), (0.0,) * 3),
        ((-4.0, 4.0, 4.0), (0.0,) * 3),
    ],
)
def test_what_cannot_be_a_size_or_an_origin_leaves_all_unknown(scale, translation):
    """One of them that is damaged says that nobody looked at the others either."""
    assert Space(scale, translation, NANOMETERS).sound() == Space.unknown(3)


def test_sound_sizes_stay_and_units_get_their_names():
    """Spellings become the specification's; a unit that is none of length becomes unknown."""
    found = Space((0.5, 4.0, 4.0), (-1.0, 0.0, 2.0), ("um", "nm", "pixel")).sound()
    assert found == Space((0.5, 4.0, 4.0), (-1.0, 0.0, 2.0), ("micrometer", "nanometer", None))


def test_a_description_round_trips_through_json():
    """It lies in plans."""
    found = Description("v", 0, "czyx", 2, (3, 5, 7), "uint8", (1, 5, 7), Space.unknown(3), "a" * 64)
    assert Description.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.voxels == 105

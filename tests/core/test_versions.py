"""The rule by which old versions go."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.versions import Keep, Version, expired

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def ago(days):
    """So many days before the rule is applied."""
    return NOW - timedelta(days=days)


def published(name, days, begun=None):
    """A version that readers were sent to so many days ago."""
    return Version(name, ago(begun or days + 0.1), ago(days))


times = st.floats(0, 40, allow_nan=False).map(ago)
lists = st.lists(
    st.builds(Version, st.sampled_from("abcdefgh"), times, st.none() | times), unique_by=lambda v: v.fingerprint
)
rules = st.builds(Keep, st.integers(0, 5), st.floats(0, 40))
names = st.sets(st.sampled_from("abcdefgh"))


@given(lists, st.none() | st.sampled_from("abcdefgh"), rules, names)
def test_what_is_current_or_spared_never_goes(versions, current, keep, spare):
    """Readers are there, or a run is: whatever the rule says, and whatever the clocks said."""
    gone = expired(versions, current, keep, NOW, spare)
    assert current not in gone
    assert not spare & set(gone)
    assert set(gone) <= {v.fingerprint for v in versions}
    assert len(set(gone)) == len(gone)


@given(lists, st.none() | st.sampled_from("abcdefgh"), rules)
def test_so_many_of_the_newest_stay_beside_the_current_one(versions, current, keep):
    """One may always go back by so many versions."""
    gone = set(expired(versions, current, keep, NOW))
    others = sorted((v for v in versions if v.fingerprint != current), key=lambda v: v.dated, reverse=True)
    newest = [v.fingerprint for v in others[: keep.versions]]
    assert len(others) - len(gone) >= min(keep.versions, len(others))
    if len({v.dated for v in others}) == len(others):
        assert not gone & set(newest)


@given(lists, st.none() | st.sampled_from("abcdefgh"), rules)
def test_nothing_younger_than_the_days_goes(versions, current, keep):
    """A reader who resolved `current` just before a switch still reads."""
    young = {v.fingerprint for v in versions if NOW - v.dated < timedelta(days=keep.days)}
    assert not young & set(expired(versions, current, keep, NOW))


@given(lists, st.none() | st.sampled_from("abcdefgh"), rules, st.randoms())
def test_the_order_in_which_versions_are_listed_does_not_matter(versions, current, keep, chance):
    """File systems and stores list as they like."""
    shuffled = list(versions)
    chance.shuffle(shuffled)
    assert expired(versions, current, keep, NOW) == expired(shuffled, current, keep, NOW)


@given(lists, st.none() | st.sampled_from("abcdefgh"), rules)
def test_a_second_look_finds_nothing_to_remove(versions, current, keep):
    """Else repeated runs would nibble at what the rule keeps."""
    gone = expired(versions, current, keep, NOW)
    left = [v for v in versions if v.fingerprint not in gone]
    assert expired(left, current, keep, NOW) == []


@given(lists, st.none() | st.sampled_from("abcdefgh"))
def test_a_rule_that_keeps_nothing_removes_all_but_the_current_one(versions, current):
    """The negative control of the properties above: they would hold for a rule that never removes anything."""
    gone = expired(versions, current, Keep(0, 0), NOW)
    assert set(gone) == {v.fingerprint for v in versions} - {current}


def test_a_version_that_was_replaced_today_stays_however_old_it_is():
    """It was current for a month, and readers were at it a minute ago: what counts is when they were sent elsewhere."""
    versions = [published("old", 60), published("long", 30), published("new", 0.001)]
    assert expired(versions, "new", Keep(0, 7), NOW) == ["old"]
    assert expired(versions, "new", Keep(0, 0), NOW) == ["old", "long"]


def test_going_back_to_an_older_version_counts_as_publishing_it():
    """After `a, b, a` readers left b when a came back, and b is the newest of the others."""
    versions = [published("b", 20), published("a", 1), published("z", 50)]
    assert expired(versions, "a", Keep(0, 7), NOW) == ["z"]
    assert expired(versions, "a", Keep(1, 0), NOW) == ["z"]


def test_a_version_whose_current_successor_has_an_earlier_clock_stays_for_its_days():
    """Two machines, one of them slow: the younger of both times counts."""
    versions = [published("a", 2), published("b", 3)]
    assert expired(versions, "b", Keep(0, 2.5), NOW) == []
    assert expired(versions, "b", Keep(0, 1), NOW) == ["a"]


@pytest.mark.parametrize(("days", "gone"), [(5, ["dead"]), (20, [])])
def test_a_version_that_was_never_finished_counts_from_when_it_was_begun(days, gone):
    """A run that failed for good leaves one; its tiles may still be taken up for a while."""
    versions = [Version("dead", ago(10)), published("current", 1)]
    assert expired(versions, "current", Keep(0, days), NOW) == gone


def test_a_version_goes_as_its_days_are_over_and_not_before():
    """Of two that were published in one instant, neither sent readers away from the other."""
    versions = [published("a", 7), published("b", 7), published("c", 6)]
    assert expired(versions, "c", Keep(0, 6), NOW) == ["a", "b"]
    assert expired(versions, "c", Keep(0, 6.001), NOW) == []


def test_a_version_was_left_when_work_on_the_current_one_began_where_nobody_knows_better():
    """The switch to it was not dated: readers may have been at the old one until then."""
    versions = [published("a", 5), Version("current", ago(1))]
    assert expired(versions, "current", Keep(0, 3), NOW) == []
    assert expired(versions, "current", Keep(0, 0.5), NOW) == ["a"]

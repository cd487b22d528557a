"""When a volume counts as complete: never while it changed within the quiet time, whoever looks, by whatever clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.arrival import CLOCKS, Look, Observation, judged

QUIET = 10.0


def look_at(signature: str, now: float, clock: str = "a", took: float = 0.0) -> Look:
    """A look that ended `took` seconds after `now`."""
    return Look(signature, clock, now, now + took)


def watched(looks: list[Look], previous: Observation | None = None) -> list[bool]:
    """Whether each look of a row found the volume complete."""
    latest: dict[str, float] = {}
    found = []
    for one in looks:
        judgement = judged(previous, one, QUIET, latest.get(one.clock, one.ended))
        latest[one.clock] = max(one.ended, latest.get(one.clock, one.ended))
        previous = judgement.observation
        found.append(judgement.complete)
    return found


def test_a_volume_is_complete_at_the_second_of_two_looks_far_enough_apart():
    """The rule itself: one look is never enough, and exactly the quiet time is."""
    assert watched([look_at("x", 100), look_at("x", 109.9), look_at("x", 110)]) == [False, False, True]


def test_a_change_starts_the_wait_anew():
    """An upload that goes on after a pause is not done because of what was seen before the pause."""
    assert watched([look_at("x", 0), look_at("y", 9), look_at("y", 10), look_at("y", 18.9), look_at("y", 19)]) == [
        False,
        False,
        False,
        False,
        True,
    ]


def test_the_time_that_a_look_takes_does_not_count():
    """Listing a large volume takes minutes, in which a file that was listed first may change unseen."""
    first, second = look_at("x", 0, took=60), look_at("x", 65, took=60)
    assert watched([first, second, look_at("x", 70)]) == [False, False, True]
    assert judged(judged(None, first, QUIET).observation, second, QUIET).seconds_left == 5


def test_what_is_left_is_told():
    """A watcher may sleep for so long."""
    first = judged(None, look_at("x", 0), QUIET)
    assert (first.complete, first.seconds_left) == (False, QUIET)
    then = judged(first.observation, look_at("x", 4), QUIET)
    assert (then.complete, then.seconds_left) == (False, 6)
    assert judged(then.observation, look_at("x", 99), QUIET).seconds_left == 0


def test_a_change_that_one_watcher_saw_counts_for_all():
    """Times are each clock's own, what was seen is everybody's."""
    looks = [look_at("x", 0), look_at("y", 1e6, "b"), look_at("y", 11), look_at("y", 20.9), look_at("y", 21)]
    assert watched(looks) == [False, False, False, False, True]


def test_skewed_clocks_under_one_name_would_complete_early():
    """The negative control: a second watcher, an hour ahead, a moment later. Under its own name it waits for itself."""
    assert watched([look_at("x", 0, "site"), look_at("x", 3600.1, "site")]) == [False, True]
    assert watched([look_at("x", 0, "one"), look_at("x", 3600.1, "other")]) == [False, False]


def test_a_clock_that_is_set_back_makes_nothing_complete_early():
    """Neither a volume that was seen before, nor one that was first seen while the clock was behind and then corrected."""
    assert watched([look_at("x", 100), look_at("x", 40), look_at("x", 102)]) == [False, False, False]
    other = [look_at("old", 100), look_at("x", 40), look_at("x", 102), look_at("x", 109), look_at("x", 110)]
    assert watched(other) == [False, False, False, False, True]


def test_without_the_latest_reading_a_corrected_clock_would_complete_early():
    """The negative control: 62 seconds by the clock, one in truth."""
    first = judged(None, look_at("x", 40), QUIET)
    assert judged(first.observation, look_at("x", 102), QUIET).complete
    assert not judged(judged(None, look_at("x", 40), QUIET, 100).observation, look_at("x", 102), QUIET, 100).complete


def test_observations_keep_few_clocks():
    """An inbox that is watched for years, by machines that start again every day, keeps a small file."""
    previous = None
    for n in range(3 * CLOCKS):
        previous = judged(previous, look_at("x", 0, f"boot {n}"), QUIET).observation
    assert len(previous.since) == CLOCKS
    assert f"boot {3 * CLOCKS - 1}" in previous.since


EVENTS = st.lists(
    st.tuples(st.floats(0, 8), st.booleans(), st.sampled_from("abc"), st.floats(0, 3)), min_size=1, max_size=40
)
"""Seconds until a look, whether the volume changes before it, whose look it is, and how long it takes."""

SKEWS = st.fixed_dictionaries({name: st.floats(-1e6, 1e6) for name in "abc"})


@given(EVENTS, SKEWS)
def test_a_complete_volume_did_not_change_for_the_quiet_time(events, skews):
    """The guarantee, whatever the clocks' skew: some look at least the quiet time ago saw what is there now, and none since another."""
    looks, changes = [], []
    now, version = 0.0, 0
    for seconds, changed, watcher, took in events:
        now += seconds
        if changed:
            version, now = version + 1, now + 0.01
            changes.append(now)
        looks.append(
            (now, Look(str(version), watcher, now + skews[watcher], now + took + skews[watcher]), len(changes))
        )
        now += took
    for (began, _, seen), complete in zip(looks, watched([one for _, one, _ in looks]), strict=True):
        if complete:
            assert began - max(changes[:seen], default=0.0) >= QUIET - 1e-6


@given(EVENTS, SKEWS)
def test_what_stays_as_it_is_is_complete_in_the_end(events, skews):
    """Safety alone would be met by never saying so: any watcher that looks twice after the last change finds it."""
    looks = [look_at(str(i), 8.0 * i + skews[watcher], watcher) for i, (_, _, watcher, _) in enumerate(events)]
    end = 8.0 * len(events)
    for watcher in "abc":
        last = [
            look_at("end", end + skews[watcher], watcher),
            look_at("end", end + QUIET + 1 + skews[watcher], watcher),
        ]
        assert watched([*looks, *last])[-1]


@pytest.mark.parametrize("jumps", [(-50.0, 0.0), (-5.0, -60.0), (-1000.0, -1000.0)])
def test_a_clock_that_only_goes_back_delays_and_does_not_hurry(jumps):
    """Each look at the truth's minute, by a clock that is set back twice."""
    truth = [3.0 * n for n in range(12)]
    errors = [0.0 if t < 10 else jumps[0] if t < 20 else jumps[1] for t in truth]
    found = watched([look_at("x" if t >= 9 else "w", t + e) for t, e in zip(truth, errors, strict=True)])
    assert not any(complete for t, complete in zip(truth, found, strict=True) if t < 9 + QUIET)

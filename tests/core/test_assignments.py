"""The assignments, with every fault played: whoever leaves, whatever lands late, no tile is lost, doubled or wrongly blamed."""

import random

import pytest

from pipeline.core.assignments import MOST_AHEAD, TILES_AHEAD, Assignments, Attempt, Outcome
from pipeline.errors import PlanError, StorageError


def ready(assignments: Assignments, *workers: str) -> None:
    """Have workers that may be given tiles."""
    for worker in workers:
        assignments.join(worker)
        assignments.ready(worker)


def given(assignments: Assignments, now: float = 0.0) -> dict[str, list[int]]:
    """Tiles by worker, in the order in which they were given."""
    found: dict[str, list[int]] = {}
    for attempt in assignments.assign(now):
        found.setdefault(attempt.worker, []).append(attempt.index)
    return found


def test_each_worker_has_one_tile_that_runs_and_one_that_waits():
    """A worker never waits for the driver; and what it loses when it vanishes is little."""
    assignments = Assignments(range(10), retries=2)
    ready(assignments, "a", "b")
    assert given(assignments) == {"a": [0, 2], "b": [1, 3]}
    assert given(assignments) == {}


def test_a_worker_that_has_only_joined_gets_none():
    """It is loading the network."""
    assignments = Assignments(range(10), retries=2)
    assignments.join("a")
    assert given(assignments) == {}
    assert (assignments.fit, assignments.workers) == (0, {"a"})


def test_short_tiles_wait_in_longer_lines_but_bounded():
    """News of a tile takes milliseconds; a tile of less would leave its worker idle."""
    assignments = Assignments(range(1000), retries=2)
    ready(assignments, "a")
    first = list(assignments.assign(0.0))
    assert len(first) == TILES_AHEAD
    assignments.land(first[0], 0.001)
    assert assignments.in_flight + len(list(assignments.assign(0.001))) == MOST_AHEAD


def test_only_the_tile_that_ran_is_suspected():
    """Those that wait behind it are innocent, and must not be blamed for another's guilt."""
    assignments = Assignments(range(4), retries=2)
    ready(assignments, "a", "b")
    given(assignments)
    assignments.leave("a")
    ready(assignments, "c")
    assert given(assignments) == {"c": [0]}  # alone; 2, which waited behind it, is as it was
    ready(assignments, "d")
    assert [(a.index, a.number, a.alone) for a in assignments.assign(0.0)] == [(2, 1, False)]


def test_without_retries_a_suspect_still_is_tried_by_itself():
    """It may have been done, and only the news of it was lost with its worker."""
    assignments = Assignments(range(2), retries=0)
    ready(assignments, "a", "b")
    given(assignments)
    assert assignments.leave("a") == []
    ready(assignments, "c")
    assert given(assignments) == {"c": [0]}
    assert assignments.leave("c") == [Outcome(0, 2, vanished=True)]


def test_a_suspect_is_tried_with_a_worker_to_itself():
    """Should it end that worker too, nothing else is lost with it, and its guilt is certain."""
    assignments = Assignments(range(6), retries=1)
    ready(assignments, "a", "b")
    attempts = {a.index: a for a in assignments.assign(0.0)}
    assignments.leave("a")
    assert given(assignments) == {}  # b keeps what it has, and gets nothing besides
    assignments.land(attempts[1], 1.0)
    assignments.land(attempts[3], 2.0)
    (alone,) = assignments.assign(2.0)
    assert (alone.index, alone.number, alone.alone, alone.worker) == (0, 2, True, "b")
    assert given(assignments) == {}
    assert assignments.leave("b") == [Outcome(0, 2, vanished=True)]
    ready(assignments, "c")
    assert given(assignments) == {"c": [2, 4]}  # 2 waited behind 0, unblamed


def test_others_go_on_while_suspects_are_tried():
    """One poisoned tile must not make a hundred workers wait."""
    assignments = Assignments(range(100), retries=2)
    ready(assignments, *"abcd")
    given(assignments)
    assignments.leave("a")
    ready(assignments, "e")
    found = list(assignments.assign(1.0))
    assert [a.index for a in found if a.worker == "e"] == [0]
    attempts = [a for a in found if a.worker == "e"]
    assert attempts[0].alone


def test_where_every_tile_ends_its_worker_no_new_ones_are_begun():
    """A network that does not fit any more must be seen after a few workers, not after all tiles."""
    assignments = Assignments(range(1000), retries=1)
    begun: set[int] = set()
    outcomes: list[Outcome] = []
    for number in range(40):
        ready(assignments, f"w{number}")
        begun |= {a.index for a in assignments.assign(float(number))}
        outcomes += assignments.leave(f"w{number}")
    assert len(outcomes) >= 10
    assert all(o.vanished for o in outcomes)
    assert len(begun) <= len(outcomes) + 10


def test_a_failed_tile_is_tried_again_and_then_told():
    """A hiccup is no reason to fail a night's run; a bad voxel is."""
    assignments = Assignments([7], retries=1)
    ready(assignments, "a")
    (first,) = assignments.assign(0.0)
    assert assignments.land(first, 1.0, error=ValueError("once")) == []
    (second,) = assignments.assign(1.0)
    assert second.number == 2
    (outcome,) = assignments.land(second, 2.0, error=ValueError("twice"))
    assert (outcome.index, outcome.attempt, str(outcome.error), outcome.vanished) == (7, 2, "twice", False)
    assert assignments.finished


def test_what_lands_after_its_worker_was_given_up_counts_for_nothing():
    """The tile is with another by then; two outcomes of one tile would be two records."""
    assignments = Assignments(range(1), retries=2)
    ready(assignments, "a", "b")
    (first,) = assignments.assign(0.0)
    assignments.leave("a")
    assert assignments.land(first, 1.0, result="late") == []
    (second,) = assignments.assign(1.0)
    assert assignments.land(second, 2.0, result="right") == [Outcome(0, 2, "right")]
    assert assignments.land(second, 3.0, result="twice") == []


def test_what_is_taken_back_counts_for_nothing_and_a_suspect_stays_one():
    """The connection to all of them broke: no tile has failed, no worker has vanished."""
    assignments = Assignments(range(2), retries=0)
    ready(assignments, "a")
    for _ in range(5):
        for attempt in list(assignments.assign(0.0)):
            assert attempt.number == 1
            assignments.take_back(attempt, 0.0)
    list(assignments.assign(0.0))
    assert assignments.leave("a") == []
    ready(assignments, "a")
    (alone,) = assignments.assign(0.0)
    assignments.take_back(alone, 0.0)
    (again,) = assignments.assign(0.0)
    assert (again.index, again.number, again.alone) == (alone.index, 2, True)
    assignments.take_back(alone, 0.0)  # news of what is no longer so
    assert assignments.line("a") == [again.serial]


def test_a_worker_whose_time_runs_out_begins_no_tile_that_it_cannot_finish():
    """Hours before a walltime are lost when a tile is begun minutes before it."""
    assignments = Assignments(range(10), retries=2)
    assignments.join("a")
    assignments.ready("a", until=1000.0)
    first, second = assignments.assign(0.0)
    assignments.land(first, 300.0)
    assert list(assignments.assign(300.0)) == []  # two more of 300 s, a quarter longer at worst, would end after 1000
    assignments.land(second, 600.0)
    (third,) = assignments.assign(600.0)  # one more would not
    assignments.land(third, 900.0)
    assert list(assignments.assign(900.0)) == []


def test_a_worker_without_time_is_let_go_once_its_line_is_empty():
    """What it is at it may finish."""
    assignments = Assignments(range(10), retries=2)
    assignments.join("a")
    assignments.ready("a", until=100.0)
    first, second = assignments.assign(0.0)
    assignments.land(first, 40.0)
    assert list(assignments.assign(40.0)) == []
    assert assignments.spent(40.0) == []
    assignments.land(second, 80.0)
    assert list(assignments.assign(80.0)) == []
    assert assignments.spent(80.0) == ["a"]


def test_a_worker_that_has_done_nothing_yet_is_always_given_a_tile():
    """Where the walltime is shorter than a tile, jobs would else come and go for ever, and nobody would be told."""
    assignments = Assignments(range(3), retries=0)
    assignments.join("a")
    assignments.ready("a", until=1.0)
    assert given(assignments, now=100.0) == {"a": [0]}


def played(seed: int, *, breaks: bool) -> tuple[int, list[Outcome]]:
    """A number of tiles, and their outcomes after anything has happened; also broken connections."""
    chance = random.Random(seed)
    tiles = chance.randrange(1, 60)
    assignments = Assignments(range(tiles), retries=2)
    flying: list[Attempt] = []
    outcomes: list[Outcome] = []
    for step in range(20_000):
        if assignments.finished:
            break
        event = chance.random()
        if event < 0.1 and len(assignments.workers) < 5:
            ready(assignments, f"w{step}")
        elif event < 0.13 and assignments.workers:
            outcomes += assignments.leave(chance.choice(sorted(assignments.workers)))
        elif breaks and event < 0.15 and flying:
            assignments.take_back(flying.pop(chance.randrange(len(flying))), float(step))
        elif flying:
            attempt = flying.pop(chance.randrange(len(flying)))
            error = ValueError() if chance.random() < 0.1 else None
            outcomes += assignments.land(attempt, float(step), attempt.index, error)
        flying += assignments.assign(float(step))
        lines = [a.index for a in flying if a.serial in assignments.line(a.worker)]
        assert len(lines) == len(set(lines))
    assert assignments.finished
    return tiles, outcomes


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_every_tile_has_one_outcome(seed):
    """Workers join, vanish and come back in any order, tiles fail, news is late: none is lost and none told twice."""
    tiles, outcomes = played(seed, breaks=False)
    assert sorted(o.index for o in outcomes) == list(range(tiles))
    assert all(o.attempt <= 3 for o in outcomes)


@pytest.mark.parametrize("seed", range(30))
def test_whatever_breaks_every_tile_has_one_outcome(seed):
    """What is taken back at any time is neither lost nor told twice."""
    tiles, outcomes = played(seed, breaks=True)
    assert sorted(o.index for o in outcomes) == list(range(tiles))
    assert all(o.attempt <= 4 for o in outcomes)  # three, and one with a worker to itself


def test_indices_are_taken_no_sooner_than_there_is_room():
    """A plan of ten billion tiles costs nothing to dispatch."""
    taken = []
    assignments = Assignments((taken.append(i) or i for i in range(100)), retries=0)
    ready(assignments, "a")
    assert len(list(assignments.assign(0.0))) == TILES_AHEAD
    assert len(taken) == TILES_AHEAD + 1  # one more, to know whether there is one


def test_an_outcome_failed_where_either_says_so():
    """A tile whose worker vanished has no error, and one with an error has a worker."""
    assert Outcome(0, 1, vanished=True).failed
    assert Outcome(0, 1, error=ValueError()).failed
    assert not Outcome(0, 1).failed


def test_workers_that_could_have_a_tile_are_counted_with_those_that_have_one():
    """A run asks for so many of common workers: what failed, and what is suspected, is to be done too."""
    assignments = Assignments(range(5), retries=2)
    assert assignments.useful == 5
    ready(assignments, "a", "b")
    attempts = {attempt.index: attempt for attempt in assignments.assign(0.0)}  # 0 and 2 with a, 1 and 3 with b
    assert assignments.useful == 2 + 1  # those at work, and tile 4
    assignments.land(attempts[1], 1.0, error=ValueError())
    assignments.land(attempts[3], 1.0, error=ValueError())
    assert assignments.useful == 1 + 3
    assignments.leave("a")  # 0 is suspected, and 2 to be done again
    assert assignments.useful == 5
    assert assignments.idle() == []


def test_who_has_no_tile_and_gets_none_is_idle():
    """Other runs may have them; one that has not loaded the network yet may still be wanted."""
    assignments = Assignments(range(1), retries=2)
    ready(assignments, "a", "b")
    assignments.join("c")
    assert assignments.idle() == []  # a tile is left to give
    (attempt,) = assignments.assign(0.0)
    assert assignments.idle() == ["b"]
    assignments.land(attempt, 1.0)
    assert assignments.idle() == ["a", "b"]


def test_a_suspect_is_tried_by_itself_as_often_as_any_tile_is_tried_again():
    """What looked like its fault twice may have been a full machine."""
    assignments = Assignments(range(1), retries=2)
    for worker in "ab":
        ready(assignments, worker)
        list(assignments.assign(0.0))
        assert assignments.leave(worker) == []
    ready(assignments, "c")
    list(assignments.assign(0.0))
    assert assignments.leave("c") == [Outcome(0, 3, vanished=True)]


@pytest.mark.parametrize(("ends", "begun"), [(100.0, [2]), (99.9, [])])
def test_a_tile_is_begun_where_a_quarter_more_than_the_longest_and_ten_seconds_are_left(ends, begun):
    """To the second: 40 s and now 40 s more, a quarter of them, and ten."""
    assignments = Assignments(range(3), retries=0)
    assignments.join("a")
    assignments.ready("a", until=ends)
    first, second = assignments.assign(0.0)
    assignments.land(first, 40.0)
    assignments.land(second, 40.0)
    assert [attempt.index for attempt in assignments.assign(40.0)] == begun
    assert assignments.spent(40.0) == ([] if begun else ["a"])


def test_lines_hold_a_fifth_of_a_second_of_tiles_as_they_lately_were():
    """A worker must not wait for news; one slow tile makes no short line, nor a quick one a long one."""
    assignments = Assignments(range(1000), retries=0)
    ready(assignments, "a")
    first, second = assignments.assign(0.0)
    assignments.land(first, 0.02)
    assert len([*assignments.assign(0.02)]) + 1 == 10
    assignments.land(second, 0.14)  # 0.9 of 0.02 and 0.1 of 0.12 are 0.03
    ready(assignments, "b")
    assert given(assignments, now=0.14) == {"b": [*range(11, 18)]}


def test_a_run_is_not_finished_while_a_tile_is_to_be_tried_again():
    """It failed, or its worker vanished, when all others were done: the run would end without it."""
    assignments = Assignments(range(2), retries=1)
    ready(assignments, "a")
    failed, suspect = assignments.assign(0.0)
    assignments.land(failed, 1.0, error=ValueError())
    assert not assignments.finished
    assignments.leave("a")
    assert not assignments.finished
    ready(assignments, "a")
    (alone,) = assignments.assign(2.0)
    assert alone.index == suspect.index
    assignments.land(alone, 3.0)
    assert not assignments.finished  # the other still is to be tried
    (last,) = assignments.assign(3.0)
    assignments.land(last, 4.0)
    assert assignments.finished


def test_where_there_are_many_workers_a_few_suspects_keep_no_tile_from_being_begun():
    """Seven of fourteen were on a node that went down: the others have no reason to wait."""
    assignments = Assignments(range(100), retries=2)
    workers = "abcdefghijklmn"
    ready(assignments, *workers)
    attempts = list(assignments.assign(0.0))
    for worker in workers[:7]:
        assignments.leave(worker)
    for attempt in attempts:
        assignments.land(attempt, 1.0)
    found = list(assignments.assign(1.0))
    assert sum(attempt.alone for attempt in found) == 3
    assert sorted(attempt.index for attempt in found if not attempt.alone) == [*range(14, 21), 28]


def test_whoever_is_given_a_tile_later_has_a_higher_serial():
    """A worker takes what it has in this order; the tile that it is said to be at would else be another."""
    assignments = Assignments(range(6), retries=0)
    ready(assignments, "a", "b")
    first = list(assignments.assign(0.0))
    assignments.land(first[0], 1.0)
    assert [attempt.serial for attempt in [*first, *assignments.assign(1.0)]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("workers", "suspects", "is_begun"), [(2, 5, False), (2, 4, True), (6, 15, False), (6, 14, True)]
)
def test_no_tile_is_begun_while_two_a_worker_are_suspected(workers, suspects, is_begun):
    """Beside those that are being tried: where all tiles end their workers, more than this is learned from no other."""
    assignments = Assignments(range(100), retries=2)
    gone = [f"gone {number}" for number in range(suspects)]
    ready(assignments, *gone)
    for attempt in [*assignments.assign(0.0)][:suspects]:  # the first of each
        assignments.land(attempt, 1.0)
    for worker in gone:
        assignments.leave(worker)
    ready(assignments, *(f"worker {number}" for number in range(workers)))
    found = list(assignments.assign(1.0))
    assert sum(attempt.alone for attempt in found) == workers // 2
    assert any(not attempt.alone for attempt in found) == is_begun


def test_an_error_that_is_final_is_not_tried_again():
    """Values that are not finite are so at the next attempt; the negative control is a read that failed."""
    assignments = Assignments(range(2), retries=2)
    ready(assignments, "a")
    first, second = assignments.assign(now=0)
    error = PlanError("values that are not finite")
    assert assignments.land(first, 1, error=error) == [Outcome(0, 1, error=error)]
    assert assignments.land(second, 1, error=StorageError("cannot be read")) == []
    assert not assignments.finished

"""What becomes of workers, played on the pure machine: every order of joins, failures, breaks and waits in milliseconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.assignments import Assignments, Attempt, Outcome
from pipeline.core.foreman import BREAKS_LIMIT, SAY_SECONDS, UNFIT_LIMIT, Foreman, Landed, Prepared
from pipeline.errors import InferenceError

WAIT = 600.0


class Play:
    """A run without a cluster: what its shell would do, by hand.

    Args:
        tiles: How many.
        workers: That are wanted.
        retries: Of a tile.
    """

    def __init__(self, tiles: int = 10, workers: int = 2, retries: int = 2) -> None:
        self.said: list[str] = []
        self.assignments = Assignments(range(tiles), retries)
        self.foreman = Foreman(self.assignments, workers=workers, wait_seconds=WAIT, clock=0.0, warn=self.said.append)

    def look(self, *present: str, clock: float = 0.0, wanting: bool | None = None) -> list[Outcome]:
        """One look while there is a connection."""
        self.foreman.count_breaks()
        there = set(present)
        outcomes = [outcome for worker in sorted(self.foreman.gone(there)) for outcome in self.foreman.lose(worker)]
        self.foreman.meet(there)
        self.foreman.be_patient(clock, wanting=not there if wanting is None else wanting)
        return outcomes

    def ready(self, *workers: str) -> None:
        """They have loaded the network."""
        for worker in workers:
            self.foreman.prepare(Prepared(worker))


def of_its_own(error: BaseException | None = None) -> dict:
    """How a preparation ended that nothing disturbed."""
    return {"error": error, "cause": "itself"}


# --- fitness ------------------------------------------------------------------------------------------------------------


def test_a_worker_is_given_tiles_once_it_has_loaded_the_network():
    """Its first tile would else take as long as that, and fail with its error."""
    play = Play()
    assert play.foreman.meet({"a", "b"}) == {"a", "b"}
    assert list(play.assignments.assign(0.0)) == []
    assert not play.foreman.ever_ready
    play.ready("a")
    assert play.foreman.ever_ready
    assert {attempt.worker for attempt in play.assignments.assign(0.0)} == {"a"}
    assert play.foreman.meet({"a", "b"}) == set()  # it knows both


@pytest.mark.parametrize(("workers", "loads"), [(1, 1), (2, 2), (3, 3), (40, UNFIT_LIMIT)])
def test_what_no_worker_can_load_ends_the_run_as_it_is(workers, loads):
    """A damaged checkpoint is so everywhere: at most three tell, and all where there are fewer."""
    play = Play(workers=workers)
    names = [f"w{number}" for number in range(loads)]
    play.look(*names)
    for name in names[:-1]:
        play.foreman.prepare(Prepared(name, **of_its_own(ValueError("damaged"))))
    with pytest.raises(ValueError, match="damaged"):
        play.foreman.prepare(Prepared(names[-1], **of_its_own(ValueError("damaged"))))
    assert len(play.said) == loads - 1


def test_workers_that_die_while_they_load_are_three_also_where_one_is_wanted():
    """The first may have been ended by somebody, and its nanny starts another."""
    play = Play(workers=1)
    for number in range(UNFIT_LIMIT - 1):
        play.look(f"w{number}")
        play.foreman.lose(f"w{number}")
        assert play.assignments.workers == set()
    play.look("last")
    with pytest.raises(InferenceError, match="died while they loaded"):
        play.foreman.prepare(Prepared("last", cause="vanished"))


def test_while_one_is_fit_the_others_may_all_be_broken():
    """One good node of forty computes it all, slowly; and its loading starts the count anew."""
    play = Play(workers=2)
    play.look(*"abcdef")
    play.foreman.prepare(Prepared("a", **of_its_own(OSError("no card"))))
    play.ready("b")
    for worker in "cdef":
        play.foreman.prepare(Prepared(worker, **of_its_own(OSError("no card"))))
    assert len(play.said) == 5
    assert {attempt.worker for attempt in play.assignments.assign(0.0)} == {"b"}
    play.look(*"acdefg")  # b is gone
    with pytest.raises(OSError, match="no card"):
        play.foreman.prepare(Prepared("g", **of_its_own(OSError("no card"))))


def test_a_worker_that_comes_back_under_its_address_is_tried_anew():
    """Its nanny started another process, which may well load the network."""
    play = Play()
    play.look("a", "b")
    play.foreman.prepare(Prepared("a", **of_its_own(OSError("no card"))))
    play.look("b")
    assert play.foreman.meet({"a", "b"}) == {"a"}
    play.ready("a")
    assert {attempt.worker for attempt in play.assignments.assign(0.0)} == {"a"}


def test_news_of_a_preparation_that_was_given_up_counts_for_nothing():
    """It would count a worker as broken that is gone already, twice."""
    play = Play(workers=1)
    play.look("a")
    play.foreman.lose("a")
    for _ in range(UNFIT_LIMIT):
        play.foreman.prepare(Prepared("a", **of_its_own(OSError("no card"))))
    assert len(play.said) == 1
    play.ready("a")
    assert not play.foreman.ever_ready


# --- letting go ---------------------------------------------------------------------------------------------------------


def spent_worker() -> Play:
    """A run with a worker that has done a tile, and no time for another."""
    play = Play(tiles=3)
    play.look("a")
    play.foreman.prepare(Prepared("a", until=100.0))
    for attempt in list(play.assignments.assign(0.0)):
        play.foreman.land(Landed(attempt, "done"), 95.0)
    return play


def test_who_has_no_time_for_a_tile_is_let_go_once_and_nobody_wonders_that_it_is_gone():
    """Asked twice, the scheduler would be told of a worker that it does not know."""
    play = spent_worker()
    assert play.foreman.spent(95.0) == ["a"]
    play.foreman.let_go(["a"])
    assert play.foreman.spent(95.0) == []
    assert play.look() == []
    assert play.said == []


def test_who_could_not_be_told_to_go_is_told_again():
    """The connection was down: it is still there, without a tile."""
    play = spent_worker()
    assert play.foreman.spent(95.0) == play.foreman.spent(96.0) == ["a"]


def test_one_that_vanishes_without_being_let_go_is_told():
    """The negative control of the silence above."""
    play = spent_worker()
    play.look()
    assert play.said == ["worker a is gone; the tile that it was at is tried again by itself"]


def test_one_that_was_let_go_and_comes_back_may_be_let_go_again():
    """A queue gives the same address to the next job."""
    play = spent_worker()
    play.foreman.let_go(["a"])
    play.look()
    play.look("a")
    play.foreman.prepare(Prepared("a", until=200.0))
    for attempt in list(play.assignments.assign(100.0)):
        play.foreman.land(Landed(attempt, "done"), 195.0)
    assert play.assignments.finished
    assert play.foreman.spent(195.0) == ["a"]


# --- patience -----------------------------------------------------------------------------------------------------------


def test_without_any_worker_a_run_ends_after_its_patience_and_no_sooner():
    """It may wait for a queue, and shall not wait for ever."""
    play = Play()
    play.foreman.be_patient(WAIT, wanting=True)
    with pytest.raises(InferenceError, match=r"No worker was there for 10 minutes.*None came back in time"):
        play.foreman.be_patient(WAIT + 1, wanting=True)
    with pytest.raises(InferenceError, match="the queue is full"):
        play.foreman.be_patient(WAIT + 1, wanting=True, told="the queue is full.")


def test_patience_begins_anew_whenever_somebody_is_there():
    """A night's run may be without workers several times."""
    play = Play()
    play.look("a", clock=WAIT)
    play.look(clock=2 * WAIT)
    with pytest.raises(InferenceError, match="No worker"):
        play.look(clock=2 * WAIT + 1)


def test_workers_that_are_at_others_tiles_are_waited_for():
    """Runs share them; one that has none yet has lost nothing."""
    play = Play()
    for hour in range(10):
        play.look(clock=3600.0 * hour, wanting=False)


def test_where_all_that_are_there_are_broken_what_they_said_ends_the_run():
    """That they are there is no comfort, and their error is the reason."""
    play = Play(workers=3)
    play.look("a")
    play.foreman.prepare(Prepared("a", **of_its_own(OSError("no card"))))
    play.look("a", clock=WAIT)
    with pytest.raises(OSError, match="no card"):
        play.look("a", clock=WAIT + 1)


def test_that_nobody_is_there_is_said_now_and_then():
    """Every five minutes; a word a second would fill the log."""
    play = Play()
    for second in range(int(WAIT) + 1):
        play.foreman.be_patient(float(second), wanting=True, told="two jobs are queued")
    assert play.said == ["no worker for 5 minutes; two jobs are queued"]
    assert SAY_SECONDS == 300


# --- breaks -------------------------------------------------------------------------------------------------------------


def test_a_connection_that_breaks_again_and_again_ends_the_run_unless_tiles_are_done_meanwhile():
    """However many tiles it takes with it, a break counts once."""
    play = Play(tiles=100)
    play.look("a")
    play.ready("a")
    for _ in range(BREAKS_LIMIT - 1):
        for attempt in list(play.assignments.assign(0.0)):
            assert play.foreman.land(Landed(attempt, cause="broken"), 0.0) == []
        play.look("a")
    attempt, *others = play.assignments.assign(0.0)
    assert play.foreman.land(Landed(attempt, "done"), 0.0) == [Outcome(attempt.index, 1, "done")]
    for _ in range(BREAKS_LIMIT - 1):
        for attempt in [*others, *play.assignments.assign(0.0)]:
            play.foreman.land(Landed(attempt, cause="broken"), 0.0)
        others = []
        play.look("a")
    for attempt in list(play.assignments.assign(0.0)):
        play.foreman.land(Landed(attempt, cause="broken"), 0.0)
    with pytest.raises(InferenceError, match=f"broke {BREAKS_LIMIT} times"):
        play.look("a")


def test_a_preparation_that_a_break_took_is_no_worker_that_cannot_load():
    """It is met anew; only the breaks are counted."""
    play = Play(workers=1)
    for _ in range(BREAKS_LIMIT - 1):
        play.look("a")
        play.foreman.prepare(Prepared("a", cause="broken"))
        assert play.assignments.workers == set()
    assert play.said == []
    play.look("a")
    play.foreman.prepare(Prepared("a", cause="broken"))
    with pytest.raises(InferenceError, match="broke"):
        play.look("a")


# --- every order --------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from("abcd")
EVENTS = st.one_of(
    st.tuples(st.just("join"), NAMES),
    st.tuples(st.just("gone"), NAMES),
    st.tuples(st.just("ready"), NAMES),
    st.tuples(st.just("cannot"), NAMES),
    st.tuples(st.just("dies"), NAMES),
    st.tuples(st.just("done"), st.integers(0, 9)),
    st.tuples(st.just("fails"), st.integers(0, 9)),
    st.tuples(st.just("vanishes"), st.integers(0, 9)),
    st.tuples(st.just("broken"), st.integers(0, 9)),
    st.tuples(st.just("stale"), st.integers(0, 9)),
)


def played(play: Play, events: list[tuple[str, str | int]]) -> tuple[list[Outcome], set[str]]:
    """Outcomes after these events, and who is there then; a look after each, as a shell has it."""
    there: set[str] = set()
    flying: list[Attempt] = []
    landed: list[Attempt] = []
    outcomes: list[Outcome] = []
    for what, who in events:
        match what:
            case "join":
                there.add(who)
            case "gone":
                there.discard(who)
            case "ready":
                play.ready(who)
            case "cannot":
                play.foreman.prepare(Prepared(who, **of_its_own(OSError("no card"))))
            case "dies":
                play.foreman.prepare(Prepared(who, cause="vanished"))
            case "stale" if landed:
                assert play.foreman.land(Landed(landed[who % len(landed)], "again"), 0.0) == []
            case _ if flying:
                attempt = flying.pop(who % len(flying))
                told = {"error": ValueError()} if what == "fails" else {"result": attempt.index}
                cause = {"vanishes": "vanished", "broken": "broken"}.get(what, "itself")
                landed.append(attempt)
                outcomes += play.foreman.land(Landed(attempt, **told, cause=cause), 0.0)
        outcomes += play.look(*there, wanting=False)
        flying += play.assignments.assign(0.0)
        assert {
            attempt.worker for attempt in play.assignments.assign(0.0)
        } == set()  # one that is told twice runs twice
        flying = [attempt for attempt in flying if attempt.serial in play.assignments.line(attempt.worker)]
        assert {attempt.worker for attempt in flying} <= there
    return outcomes, there


@given(events=st.lists(EVENTS, max_size=80), tiles=st.integers(0, 12), retries=st.integers(0, 2))
def test_in_whatever_order_things_go_wrong_no_tile_is_lost_or_told_twice(events, tiles, retries):
    """Then the workers that are left do the rest, each tile once; unless the run has ended in words."""
    play = Play(tiles, workers=4, retries=retries)
    try:
        outcomes, there = played(play, events)
        for number in range(5 * tiles + 5):
            there.add(f"late{number}")
            outcomes += play.look(*there, wanting=False)
            play.ready(*there)
            for attempt in list(play.assignments.assign(0.0)):
                outcomes += play.foreman.land(Landed(attempt, attempt.index), 0.0)
            for worker in list(there):  # what was flying is lost with whoever had it
                if play.assignments.line(worker):
                    there.discard(worker)
    except (InferenceError, OSError):
        return
    assert play.assignments.finished
    assert sorted(outcome.index for outcome in outcomes) == list(range(tiles))


@given(events=st.lists(EVENTS, max_size=80))
def test_a_worker_that_cannot_load_the_network_has_no_tile(events):
    """Whatever came before: a tile there would fail as often as it is tried."""
    play = Play(tiles=50, workers=4)
    try:
        played(play, [("join", "z"), ("ready", "z"), *events, ("gone", "a"), ("join", "a"), ("cannot", "a")])
    except (InferenceError, OSError):
        return
    assert play.assignments.line("a") == []

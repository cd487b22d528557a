"""Real workers that are killed in the middle of a run: the run goes on without a hand, and its bytes are the same."""

import random
import time
from collections import Counter

import pytest

from tests.e2e.commands import Command, wait_until
from tests.e2e.test_kills import IN_FLIGHT, computing, slow, the_workers
from tests.pipeline_cases import done_entries, stored_objects

pytestmark = pytest.mark.fault

TILES, WIDTH, RUNS, KILLS = 48, 32, 3, 4


def test_twelve_kills_of_workers_cost_no_byte(tmp_path):
    """The out-of-memory killer takes workers, not drivers: others compute their tiles, and no hand is needed.

    Seeded; each kill comes after a drawn number of tiles and a drawn part of one, in whatever the worker is at.
    """
    (tmp_path / "calm").mkdir()
    calm = slow(tmp_path / "calm", tiles=TILES, width=WIDTH)
    command = Command(("run", calm.yaml, "--no-prefect"), tmp_path / "prefect")
    assert command.wait(600) == 0, command.error
    wanted = stored_objects(calm.output)
    choose = random.Random(20261130)
    for number in range(RUNS):
        (tmp_path / f"{number}").mkdir()
        run = slow(tmp_path / f"{number}", tiles=TILES, width=WIDTH)
        command = Command(("run", run.yaml, "--no-prefect"), tmp_path / "prefect")
        try:
            killed = [kill_one(command, run, choose) for _ in range(KILLS)]
            assert command.wait(600) == 0, command.error
        finally:
            if command.is_running():
                command.kill_all()
        assert len(set(killed)) == KILLS
        assert "Traceback" not in command.error
        assert stored_objects(run.output) == wanted
        assert set(done_entries(run.directory)) == set(range(TILES))
        assert max(Counter(done_entries(run.directory)).values()) == 1
        assert run.plan.fingerprint == calm.plan.fingerprint


def kill_one(command: Command, run, choose: random.Random) -> int:
    """Kill a worker that has a tile; gives its process.

    So many tiles after the last kill that what it hit is done: one that ends three workers is set aside, by design.
    """
    computing(command, run, tiles=len(done_entries(run.directory)) + IN_FLIGHT + choose.randrange(2, 6))
    time.sleep(choose.uniform(0, 0.5))
    wait_until(lambda: bool(the_workers(command)))
    victim = choose.choice(the_workers(command))
    victim.kill()
    return victim.pid

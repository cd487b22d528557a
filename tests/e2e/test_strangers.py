"""Another user of the machine, while a run goes on: no port lets it in, and nothing secret lies open."""

import os

from tests import strangers
from tests.e2e.test_kills import computing, held_up, slow, started  # noqa: F401 - the last is a fixture


def test_no_port_of_a_run_answers_a_stranger(started, tmp_path):  # noqa: F811 - the fixture
    """Whoever reaches a scheduler runs code as its owner; on a login node everybody reaches loopback."""
    run = slow(tmp_path, tiles=32)
    command = started("run", run.yaml)
    computing(command, run, tiles=1)
    with held_up(run, tile=16):
        family = command.family()
        found = strangers.let_in(family)
        lines = [" ".join(process.cmdline()) for process in family]
        if os.getuid() == 0:
            assert strangers.readable_environments(process.pid for process in family) == set()
        secrets = {value for process in family for name, value in process.environ().items() if "AUTH_STRING" in name}
        workers = [process for process in family if "spawn_main" in " ".join(process.cmdline())]
        assert len(workers) >= 2
        assert not any("AUTH_STRING" in name for process in workers for name in process.environ())
        assert len(secrets) == 1
        assert not any(secret in line or "PRIVATE KEY" in line for secret in secrets for line in lines)
    assert sorted(map(sorted, filter(None, found.values()))) == [["GET /api/health"]]
    assert len(found) == 1 + 1 + 2 * 2  # Prefect's server, the scheduler, a worker and its nanny twice

"""Another user of the machine, while a run goes on: no port lets it in, and nothing secret lies open."""

import os

import pytest

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


@pytest.mark.fault
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_a_run_that_says_none_is_open_and_its_pages_are_where_it_asked_for_them(started, tmp_path, host):  # noqa: F811
    """The control: the stranger finds an open door where there is one. The pages stay on loopback."""
    pytest.importorskip("bokeh")
    run = slow(tmp_path, tiles=32)
    keys = {"security": "none", "dashboard": "true", "host": host}
    command = started("run", run.yaml, "--no-prefect", *(f"--set=cluster.{key}={value}" for key, value in keys.items()))
    computing(command, run, tiles=1)
    with held_up(run, tile=16):
        found = strangers.let_in(command.family())
        listens = {c.laddr for process in command.family() for c in process.net_connections("tcp") if c.status == "LISTEN"}
    open_, pages = ([port for port, answers in found.items() if name in answers] for name in ("silence", "GET /status"))
    assert (len(open_), len(pages)) == (5, 1)
    assert {place.ip for place in listens if place.port in open_} == {host}
    assert {place.ip for place in listens if place.port in pages} == {"127.0.0.1"}

"""A run's own Prefect server that dies: it costs what Prefect's page shows, and neither the work nor the exit status."""

import pytest

from tests.e2e.commands import Command, wait_until
from tests.e2e.test_kills import computing, slow
from tests.pipeline_cases import done_entries

pytestmark = pytest.mark.fault


def end_server(command: Command) -> None:
    """As the kernel does that is out of memory: what `flows.supervisor` serves, and nothing else."""
    servers = [process for process in command.family() if process.cmdline()[-1:] == ["serve"]]
    assert servers
    for process in servers:
        process.kill()


@pytest.mark.parametrize("when", ["in mid-run", "once the report is written"])
def test_a_server_that_dies_costs_no_run(tmp_path, when):
    """The volume is done, verified and reported all the same; that its page is not is a warning."""
    run = slow(tmp_path, tiles=32)
    command = Command(("run", run.yaml), tmp_path / "prefect")
    try:
        computing(command, run, tiles=1)
        if when != "in mid-run":
            wait_until(run.directory.report_path.is_file, 240)
        end_server(command)
        assert command.wait(400) == 0, command.error
    finally:
        if command.is_running():
            command.kill_all()
    assert "Prefect's own server of this run has ended" in command.error
    assert "Traceback" not in command.error
    assert len(done_entries(run.directory)) == 32
    assert "32 of 32 verified" in command.out

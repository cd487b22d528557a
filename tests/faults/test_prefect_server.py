"""A Prefect server that dies: it costs what Prefect's page shows, and neither the work nor the exit status."""

from collections.abc import Iterator

import pytest

from tests.e2e.commands import Command, wait_until
from tests.e2e.test_kills import computing, slow
from tests.pipeline_cases import done_entries
from tests.sites.prefect_cases import Site

pytestmark = pytest.mark.fault


def end_server(command: Command) -> None:
    """As the kernel does that is out of memory: what `flows.server.supervisor` serves, and nothing else."""
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


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    """A server that somebody runs."""
    home = tmp_path / "prefect-home"
    home.mkdir()
    found = Site(home)
    found.start_server()
    yield found
    found.end()


@pytest.mark.parametrize("when", ["in mid-run", "once the report is written"])
def test_a_configured_server_that_dies_costs_no_run(site, tmp_path, when):
    """A colleague restarts it, its machine reboots: hours of tiles are done all the same, and the command says what is not known."""
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect/profiles.toml").write_text(
        f'active = "site"\n[profiles.site]\nPREFECT_API_URL = "{site.url}"\n'
        'PREFECT_CLIENT_MAX_RETRIES = "1"\n'  # in place of minutes
    )
    (tmp_path / "run").mkdir()
    run = slow(tmp_path / "run", tiles=32)
    command = Command(("run", run.yaml), tmp_path / "prefect")
    try:
        computing(command, run, tiles=1)
        assert not [process for process in command.family() if process.cmdline()[-1:] == ["serve"]]
        if when != "in mid-run":
            wait_until(run.directory.report_path.is_file, 240)
        site.end()
        assert command.wait(400) == 0, command.error
    finally:
        if command.is_running():
            command.kill_all()
    assert f"Prefect's server at '{site.url}' does not take this run's reports any more" in command.error
    assert "its page does not know the end" in command.error
    assert "Traceback" not in command.error
    assert len(done_entries(run.directory)) == 32
    assert "32 of 32 verified" in command.out

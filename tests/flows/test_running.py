"""A flow whose server dies: what is left is done without it, and whatever else goes wrong stays what it is."""

import contextlib
from types import SimpleNamespace

import httpx
import pytest

from flows.commands import running
from pipeline.errors import InferenceError


@pytest.fixture(autouse=True)
def api(monkeypatch):
    """No server is started."""
    monkeypatch.setattr(running, "prefect_api", lambda server=None: contextlib.nullcontext("http://127.0.0.1:1/api"))


def server(*, ended: bool) -> SimpleNamespace:
    """One of our own."""
    return SimpleNamespace(has_ended=lambda: ended, keep_log=lambda _: None)


def failing(error: BaseException):
    """A flow that raises."""

    def flow() -> str:
        raise error

    return flow


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), RuntimeError("Cannot set state"), ValueError("odd")])
def test_a_server_of_our_own_that_died_costs_no_work(tmp_path, capsys, error):
    """Whatever Prefect makes of it; and it is said once."""
    assert running.report_to(failing(error), tmp_path, server(ended=True), lambda: "the rest") == "the rest"
    assert capsys.readouterr().err.count("Prefect's own server of this run has ended") == 1


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("error", [InferenceError("3 tiles failed"), KeyboardInterrupt()])
def test_what_the_flow_itself_raises_is_not_done_again(tmp_path, error, ended):
    """The negative control: tiles that failed, and somebody who asked for an end."""
    with pytest.raises(type(error)):
        running.report_to(failing(error), tmp_path, server(ended=ended), lambda: pytest.fail("done again"))


def test_a_defect_beside_a_server_that_answers_stays_one(tmp_path):
    """Only a dead server is gone around."""
    with pytest.raises(ValueError, match="odd"):
        running.report_to(failing(ValueError("odd")), tmp_path, server(ended=False), lambda: pytest.fail("done again"))


def lost(kind: str) -> Exception:
    """What Prefect makes of a server that is gone."""
    if kind == "a cause":
        error = RuntimeError("Failed to reach API")
        error.__cause__ = httpx.ConnectError("refused")
        return error
    return httpx.ReadTimeout("late") if kind == "itself" else ValueError("whatever it makes of it")


@pytest.mark.parametrize("kind", ["a cause", "itself", "other"])
def test_a_configured_server_that_died_costs_no_work_either(tmp_path, capsys, kind):
    """It is somebody's, and it has no part in the arithmetic: the run says that its page does not know the end."""
    assert running.report_to(failing(lost(kind)), tmp_path, None, lambda: "the rest") == "the rest"
    said = capsys.readouterr().err
    assert said.count("does not take this run's reports any more") == 1
    assert "its page does not know the end" in said


@pytest.mark.parametrize("error", [ValueError("odd"), InferenceError("3 tiles failed"), KeyboardInterrupt()])
def test_a_defect_beside_a_configured_server_that_answers_stays_one(tmp_path, monkeypatch, error):
    """The negative control: only a dead server is gone around."""
    monkeypatch.setattr(running, "check_api", lambda _: None)
    with pytest.raises(type(error)):
        running.report_to(failing(error), tmp_path, None, lambda: pytest.fail("done again"))

"""What becomes of a volume whose sub-flow Prefect cannot record."""

from types import SimpleNamespace

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from flows import dataset
from pipeline.dataset.outcome import Outcome

DONE = Outcome("v00", "/data/v00.zarr", "done")


def unavailable(*_: object, **__: object) -> None:
    """As a server says whose database is locked for too long."""
    request = httpx.Request("POST", "http://127.0.0.1/api/task_runs/")
    raise PrefectHTTPStatusError(
        "503 Service Unavailable", request=request, response=httpx.Response(503, request=request)
    )


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_server_that_is_too_busy_costs_a_volume_its_place_on_the_page_and_nothing_else(monkeypatch, when):
    """Hundreds of volumes and SQLite: what cannot be recorded is still computed, once."""
    computed = []

    def segment(volume, team):
        computed.append(volume.name)
        return DONE

    def flow_of(volume, team, on_outcome):
        def sub_flow(*_: object, **__: object) -> None:
            if when == "after":
                on_outcome(segment(volume, team))
            unavailable()

        return sub_flow

    volume = SimpleNamespace(name="v00", entry=SimpleNamespace(url="/data/v00.zarr"))
    monkeypatch.setattr(dataset, "segment", segment)
    monkeypatch.setattr(dataset, "_volume_flow", flow_of)
    warnings = []  # not by handlers: Prefect, once it is set up, puts its own in place of all others in here
    monkeypatch.setattr(dataset.log, "warning", lambda text, *values: warnings.append(text % values))
    assert dataset._as_sub_flow(volume, None) == DONE
    assert computed == ["v00"]
    (warning,) = warnings
    assert "not shown as it is on Prefect's page" in warning

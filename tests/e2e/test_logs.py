"""`run.log` of whole stages with real workers: what it holds of a run, and what it does not."""

import json
import re
import socket
from collections import Counter

import pytest

from pipeline import stages
from pipeline.core.ledger import TileRecord
from pipeline.core.network.unet import Architecture
from pipeline.errors import InferenceError
from pipeline.logs import IN_FULL
from tests.pipeline_cases import Run, make_run


def small(folder, **sections) -> Run:
    """Eight tiles of a small network, logged in JSON."""
    keys = {"tiles": {"core": [8, 8, 8]}, "log": {"level": "debug", "format": "json"}, **sections}
    return make_run(folder, architecture=Architecture(3, 1, 2), shape=(9, 15, 16), **keys)


def logged(run: Run) -> list[dict]:
    """What the log holds, an object a line."""
    return [json.loads(line) for line in run.directory.log_path.read_text().splitlines()]


def do(run: Run) -> None:
    """The four stages."""
    stages.plan(run.now)
    stages.infer(run.now)
    stages.verify(run.now)
    stages.report(run.now)


def test_at_debug_begin_and_end_of_each_tile_are_told_with_run_stage_and_worker(pooled, tmp_path):
    """Which worker had which tile when: the first question to a run that was slow."""
    run = small(tmp_path)
    do(run)
    by_tile = [record for record in logged(run) if "tile" in record]
    assert Counter(r["tile"] for r in by_tile if r["message"] == "begins") == Counter(range(8))
    ends = {r["tile"]: r for r in by_tile if r["message"].startswith("done in ")}
    assert set(ends) == set(range(8))
    assert len(by_tile) == 16
    assert {(r["run"], r["stage"], r["level"]) for r in by_tile} == {("output.zarr", "infer", "DEBUG")}
    for record in run.directory.records():
        if isinstance(record, TileRecord):
            assert ends[record.tile]["worker"] == record.worker
            assert f"done in {record.seconds:.3f} s, read {record.read_seconds:.3f}" in ends[record.tile]["message"]


def test_at_info_the_log_is_as_long_for_a_million_tiles(pooled, tmp_path):
    """The negative control: workers and stages have lines, tiles that are done have none."""
    run = small(tmp_path, log={"level": "info", "format": "json"})
    do(run)
    found = logged(run)
    assert not [record for record in found if "tile" in record or record["level"] == "DEBUG"]
    ready = [record for record in found if record["message"].startswith("ready")]
    assert {record["message"] for record in ready} == {f"ready: a worker on {socket.gethostname()}, device cpu"}
    assert len({record["worker"] for record in ready}) == len(ready) == 2
    assert list(dict.fromkeys(r["stage"] for r in found)) == ["infer", "verify", "report"]
    assert len(found) < 12


def test_a_plan_that_is_confirmed_is_logged_and_a_first_one_makes_no_log(pooled, tmp_path):
    """A dry run leaves the plan and nothing else; what a resumed run found is part of its story."""
    run = small(tmp_path)
    plan = stages.plan(run.now)
    assert not run.directory.log_path.exists()
    stages.plan(run.now)
    found = logged(run)
    assert {record["stage"] for record in found} == {"plan"}
    assert found[0]["message"] == f"plan {plan.fingerprint[:12]} of 8 tiles"
    assert [record["message"].partition(" ")[0] for record in found[1:]] == ["stored:"]


def test_level_and_format_are_no_part_of_a_plan(pooled, tmp_path):
    """Who looks closer at a run that goes wrong must not have to start it over."""
    run = small(tmp_path, log={})
    before = stages.plan(run.now).fingerprint
    other = run.having(log={"level": "error", "format": "text"})
    assert stages.plan(other.now).fingerprint == before


def test_tiles_that_fail_are_logged_by_name_and_a_long_row_is_counted(pooled, tmp_path):
    """An input that is gone fails every tile; the log must not be as long as the ledger."""
    run = make_run(
        tmp_path,
        architecture=Architecture(2, 1, 2),
        shape=(IN_FULL + 5, 16, 16),
        tiles={"core": [1, 16, 16]},
        cluster={"retries": 0},
        log={"level": "info", "format": "json"},
    )
    stages.plan(run.now)
    for chunk in (tmp_path / "input.zarr" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"damaged")
    with pytest.raises(InferenceError, match=f"{IN_FULL + 5} tile"):
        stages.infer(run.now)
    found = [record for record in logged(run) if record["level"] == "ERROR"]
    assert len([record for record in found if "tile" in record]) == IN_FULL
    assert found[-2]["message"] == "5 more tiles failed in that row; the ledger names them"
    assert found[-1]["message"] == f"ended by InferenceError: {IN_FULL + 5} tile(s) failed:"


def test_a_failed_attempt_names_its_worker_at_debug(pooled, tmp_path):
    """One bad node among a hundred shows by its name; the driver tells only how a tile ended."""
    run = small(tmp_path, cluster={"retries": 1})
    stages.plan(run.now)
    next(path for path in (tmp_path / "input.zarr" / "c").rglob("*") if path.is_file()).write_bytes(b"damaged")
    with pytest.raises(InferenceError):
        stages.infer(run.now)
    failed = [record for record in logged(run) if record["message"].startswith("failed: ")]
    told = {record["tile"] for record in logged(run) if record["level"] == "ERROR" and "tile" in record}
    assert Counter(record["tile"] for record in failed) == dict.fromkeys(told, 2)
    assert all("worker" in record for record in failed)


def test_the_link_to_the_dashboard_is_told_and_logged(tmp_path):
    """Its port is another one each time; where nobody asked for pages there is none."""
    pytest.importorskip("bokeh")
    run, links = small(tmp_path, cluster={"dashboard": True}), []
    stages.plan(run.now)
    stages.infer(run.now, on_dashboard=links.append)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/status", *links)
    assert f"Dask's dashboard: {links[0]}" in {record["message"] for record in logged(run)}

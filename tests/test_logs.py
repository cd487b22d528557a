import json
import logging
import os
import re
import subprocess
import sys
import threading
from datetime import UTC, datetime

import pytest

from pipeline.config import LogConfig
from pipeline.errors import StorageError
from pipeline.logs import IN_FULL, FailedTiles, about, log, logged
from tests.pipeline_cases import fill_up, mounted

JSON = LogConfig(format="json")


def opened(folder, config=JSON, *, run="out.zarr", stage="infer"):
    """A log in a folder."""
    return logged(folder / "run.log", config, run=run, stage=stage)


def lines(folder):
    """What the log of a folder holds, a line each."""
    return (folder / "run.log").read_text(encoding="utf-8").splitlines()


def records(folder):
    """The objects of a log in JSON."""
    return [json.loads(line) for line in lines(folder)]


@pytest.fixture(autouse=True)
def untouched():
    """Whatever a test does, the process's logger is afterwards as it was."""
    before = (log.level, list(log.handlers))
    yield
    assert (log.level, log.handlers) == before


# --- lines --------------------------------------------------------------------------------------------------------------


def test_a_record_in_json_says_where_it_comes_from_and_nothing_that_it_does_not_know(tmp_path):
    """Programs filter by these keys; a key that is there and null is one more case for each of them."""
    with opened(tmp_path):
        log.info("%d workers", 3)
        about(tile=12, worker="n1-3").warning("it is %s", "slow")
    plain, of_a_tile = records(tmp_path)
    assert list(plain) == ["time", "level", "run", "stage", "message"]
    assert list(of_a_tile) == ["time", "level", "run", "stage", "tile", "worker", "message"]
    del of_a_tile["time"]
    assert of_a_tile == {
        "level": "WARNING",
        "run": "out.zarr",
        "stage": "infer",
        "tile": 12,
        "worker": "n1-3",
        "message": "it is slow",
    }


def test_tile_and_worker_zero_are_not_taken_for_none(tmp_path):
    """The first tile, and the first worker, have names like any other."""
    with opened(tmp_path):
        about(tile=0, worker="0").info("begins")
    assert (records(tmp_path)[0]["tile"], records(tmp_path)[0]["worker"]) == (0, "0")


def test_a_line_of_text_reads_from_the_general_to_the_special(tmp_path):
    """What a person greps for stands where it always stands, and what is not known takes no room."""
    with opened(tmp_path, LogConfig()):
        log.info("%d workers", 3)
        about(tile=12, worker="n1-3").info("done in 3.1 s")
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    plain, of_a_tile = lines(tmp_path)
    assert re.fullmatch(rf"{time} INFO infer: 3 workers", plain)
    assert re.fullmatch(rf"{time} INFO infer tile=12 worker=n1-3: done in 3\.1 s", of_a_tile)


def test_times_are_utc_to_the_millisecond(tmp_path, monkeypatch):
    """Nodes of a cluster, and summers, differ in their clocks' zones."""
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    before = datetime.now(UTC)
    with opened(tmp_path):
        log.info("now")
    (found,) = records(tmp_path)
    assert re.fullmatch(r".*T.*\.\d{3}Z", found["time"])
    assert abs((datetime.fromisoformat(found["time"]) - before).total_seconds()) < 5


def test_letters_of_all_languages_are_kept(tmp_path):
    """People read JSON too."""
    with opened(tmp_path):
        log.info("Gewebe µm 膜")
    assert "Gewebe µm 膜" in lines(tmp_path)[0]


def test_a_traceback_is_part_of_its_record(tmp_path):
    """A line a record, even for what nobody foresaw."""
    with opened(tmp_path):
        try:
            raise ValueError("odd")
        except ValueError:
            log.exception("unforeseen")
    (found,) = records(tmp_path)
    assert "ValueError: odd" in found["exc_info"]


@pytest.mark.parametrize("kind", ["text", "json"])
def test_secrets_of_somebody_elses_message_are_blotted_out(tmp_path, kind):
    """A storage library quotes the signed URL that it made of ours."""
    with opened(tmp_path, LogConfig(format=kind)):
        log.warning("403 of %s", "https://host/v?X-Amz-Signature=s3cr3t&x=1")
    (line,) = lines(tmp_path)
    assert "403 of https://host/v?***" in line
    assert "s3cr3t" not in line


# --- levels -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "held"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_a_level_holds_what_is_at_least_as_grave(tmp_path, level, held):
    """Four levels, whatever the process's logger let through before."""
    with opened(tmp_path, LogConfig(level=level)):
        for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            log.log(number, "said")
    assert len(lines(tmp_path)) == held


def test_nothing_logged_leaves_no_file(tmp_path):
    """A refused plan leaves a folder as it was."""
    with opened(tmp_path, LogConfig(level="error")):
        log.info("nobody asked")
    assert not list(tmp_path.iterdir())


def test_records_after_its_end_are_not_in_it(tmp_path):
    """The negative control of everything above: the log, and not something else, wrote the file."""
    with opened(tmp_path):
        log.info("inside")
    log.error("outside")
    assert [found["message"] for found in records(tmp_path)] == ["inside"]


# --- stages and runs ----------------------------------------------------------------------------------------------------


def test_stages_follow_one_another_in_one_file(tmp_path):
    """One file tells the whole run, those that were resumed included."""
    for stage in ("plan", "infer", "verify", "report"):
        with opened(tmp_path, stage=stage):
            log.info("said")
    assert [found["stage"] for found in records(tmp_path)] == ["plan", "infer", "verify", "report"]


def test_two_runs_in_two_threads_of_one_process_keep_apart(tmp_path):
    """A serving process runs two flows at once; neither's log is a mixture, and the first to end ends only its own."""
    both, first_ended = threading.Barrier(2), threading.Event()

    def work(name, level, wait):
        folder = tmp_path / name
        folder.mkdir()
        with opened(folder, LogConfig(format="json", level=level), run=name):
            both.wait(10)
            log.info("by %s", name)
            log.debug("by %s", name)
            both.wait(10)
            if wait:
                assert first_ended.wait(10)
                log.debug("by %s", name)

    one = threading.Thread(target=work, args=("one", "info", False))
    two = threading.Thread(target=work, args=("two", "debug", True))
    one.start()
    two.start()
    one.join(10)
    first_ended.set()
    two.join(10)
    assert [found["message"] for found in records(tmp_path / "one")] == ["by one"]
    assert [found["message"] for found in records(tmp_path / "two")] == ["by two"] * 3
    assert {found["run"] for found in records(tmp_path / "two")} == {"two"}


def test_a_thread_that_knows_nothing_logs_into_what_is_open(tmp_path):
    """Readers and writers are threads of pools; what they warn of must not be lost."""
    with opened(tmp_path):
        thread = threading.Thread(target=log.warning, args=("from a thread",))
        thread.start()
        thread.join(10)
    (found,) = records(tmp_path)
    assert (found["run"], found["stage"], found["message"]) == ("out.zarr", "infer", "from a thread")


def test_why_a_stage_ended_is_its_last_line(tmp_path, caplog):
    """Whoever finds the folder a week later sees it; the terminal is told by whoever catches the error."""
    with pytest.raises(StorageError), opened(tmp_path, LogConfig(level="error", format="json")):
        raise StorageError("The disk is gone.\nFind it.")
    (found,) = records(tmp_path)
    assert (found["level"], found["message"]) == ("ERROR", "ended by StorageError: The disk is gone.")
    assert not caplog.records


def test_an_interruption_is_told_too(tmp_path):
    """It has no text of its own."""
    with pytest.raises(KeyboardInterrupt), opened(tmp_path):
        raise KeyboardInterrupt
    assert records(tmp_path)[0]["message"] == "ended by KeyboardInterrupt"


# --- what must not fail -------------------------------------------------------------------------------------------------


def test_a_log_that_cannot_be_opened_costs_nothing_but_itself(tmp_path, capsys):
    """A folder that is gone, or another user's, is reported by what needs it."""
    with logged(tmp_path / "none" / "run.log", JSON, run="r", stage="infer"):
        log.error("said")
    (tmp_path / "run.log").mkdir()
    with opened(tmp_path):
        log.error("said")
    assert capsys.readouterr() == ("", "")


def test_a_full_disk_does_not_bury_what_it_causes_and_room_mends_the_log(tmp_path, capsys):
    """The stage's own error is the one to see."""

    def stage():
        log.info("before")
        filler = fill_up(tmp_path / "disk")
        for _ in range(50):
            log.info("x" * 1000)
        filler.unlink()
        log.info("after")
        raise StorageError("Tile 3 could not be written.")

    with mounted(tmp_path / "disk", "-o", "size=64k"):
        with pytest.raises(StorageError, match="could not be written"), opened(tmp_path / "disk"):
            stage()
        told = "\n".join(lines(tmp_path / "disk"))
    assert '"before"' in told
    assert '"after"' in told
    assert "ended by StorageError: Tile 3" in told
    assert capsys.readouterr() == ("", "")


def test_a_record_that_cannot_be_formatted_is_a_defect_that_shows(tmp_path, capsys):
    """The negative control: only the disk is forgiven."""
    with opened(tmp_path):
        log.handlers[-1].handle(
            logging.makeLogRecord({"msg": "%d", "args": ("no number",)})
        )  # pytest's own would raise
    assert "Logging error" in capsys.readouterr().err


def test_warnings_still_reach_a_terminal_where_nobody_else_takes_them(tmp_path):
    """Python shows warnings that no handler takes; the file is a handler, and would silence them."""
    script = """if True:
        from pathlib import Path
        from pipeline.config import LogConfig
        from pipeline.logs import log, logged
        with logged(Path("run.log"), LogConfig(), run="r", stage="plan"):
            log.warning("low bits may differ")
            log.info("nothing to see")
        """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert found.stderr == "low bits may differ\n"
    assert len(lines(tmp_path)) == 2


# --- failures -----------------------------------------------------------------------------------------------------------


def test_failures_in_a_row_are_told_by_name_and_then_counted(tmp_path):
    """An input that went away fails every tile; the ledger names them all, the log the first."""
    with opened(tmp_path):
        failed = FailedTiles()
        for tile in range(IN_FULL + 7):
            failed.tell(tile, f"tile {tile} failed")
        failed.end_row()
        failed.tell(99, "tile 99 failed")
        failed.end_row()
    found = records(tmp_path)
    assert [record.get("tile") for record in found] == [*range(IN_FULL), None, 99]
    assert found[IN_FULL]["message"] == "7 more tiles failed in that row; the ledger names them"


def test_failures_with_success_between_are_each_told(tmp_path):
    """The negative control: a row ends with the first tile that is done."""
    with opened(tmp_path):
        failed = FailedTiles()
        for tile in range(IN_FULL + 7):
            failed.tell(tile, f"tile {tile} failed")
            failed.end_row()
    assert len(records(tmp_path)) == IN_FULL + 7


# --- what is in names ---------------------------------------------------------------------------------------------------

FORGED = "2026-11-30T00:00:00.000Z INFO verify: 32 of 32 as written"
BREAKS = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
ACTING = [
    *BREAKS,
    "\x1b[2J",
    "\x9b2J",
    "\x07",
    "\x08",
    "\x00",
    "\x7f",
    "\t",
    "\u202e",
    "\u2066",
    "\u200f",
    "\ufeff",
    "\udcff",
    "\U000e0041",
]


@pytest.mark.parametrize("kind", ["text", "json"])
@pytest.mark.parametrize("sign", ACTING, ids=ascii)
def test_a_name_forges_no_line_and_acts_on_no_terminal(tmp_path, kind, sign):
    """Files are named by whoever uploads them; a log is read by people, with `cat`, and by programs, line by line."""
    name = f"a{sign}{FORGED}"
    with opened(tmp_path, LogConfig(format=kind)):
        log.warning("left out: '%s'", name)
        about(tile=1, worker=f"n{sign}1").info("begins")
    written = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert len(written.splitlines()) == 2
    assert written.count(sign) == 2 * (sign == "\n")
    assert all(line.startswith(("{", "2")) for line in written.splitlines())
    if kind == "json":
        assert records(tmp_path)[0]["message"] == f"left out: '{name}'"


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_traceback_forges_no_line_either(tmp_path, kind):
    """The last line of one is the message of an error, which quotes a name; and libraries raise with several lines."""
    with opened(tmp_path, LogConfig(format=kind)):
        try:
            raise OSError(f"no 'a\n{FORGED}\x1b[2J\r{FORGED}'")
        except OSError as error:
            log.exception("unforeseen: %s", error)
    told = lines(tmp_path)
    assert not any(line.startswith(FORGED) for line in told)
    assert "\x1b" not in "".join(told)
    assert sum(line.startswith(("2", "{")) for line in told) == 1


def test_warnings_reach_a_terminal_without_what_acts_on_it(tmp_path, capfd):
    """The same door as above, where a log is open and where none is."""
    handlers = logging.getLogger().handlers[:]
    try:
        logging.getLogger().handlers.clear()
        log.warning("a '%s' before, token=s3cr3t", "x\x1b[2J\nhalotile: done\r")
        with opened(tmp_path):
            log.warning("a '%s' within", "x\x1b[2J\nhalotile: done\r")
    finally:
        logging.getLogger().handlers[:] = handlers
    told = capfd.readouterr().err
    assert told == "a 'x\\x1b[2J\n  halotile: done\\r' before, token=***\na 'x\\x1b[2J\n  halotile: done\\r' within\n"


def test_why_a_stage_ended_is_told_without_what_acts(tmp_path):
    """It is the first line of the error, up to a real line's end."""
    with pytest.raises(StorageError), opened(tmp_path, LogConfig()):
        raise StorageError("'a\x1b[2J\u2028b' is gone.\nFind it.")
    (line,) = lines(tmp_path)
    assert line.endswith(r"ended by StorageError: 'a\x1b[2J\u2028b' is gone.")

"""What all tests share: the way to the real data, how long hypothesis looks, and how the suite runs side by side."""

import fcntl
import gc
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from pipeline.garbage import collect_seldom

ROOT = Path(__file__).resolve().parents[1]

# A suite that a script started in the background ignores Ctrl-C, and so would all commands that it starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

collect_seldom()  # of importing and collecting, a fifth was looking for garbage that they do not make

settings.register_profile("default", deadline=None, max_examples=25)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, print_blob=True)
settings.register_profile("many", settings.get_profile("default"), max_examples=1000)  # --hypothesis-profile=many
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real volumes, stores and models, which is too large or not free to ship with the code."""
    folder = Path(os.environ.get("HALOTILE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at '{folder}'; set HALOTILE_TEST_DATA to where they lie")
    return folder


# --- Prefect ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def migrated_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PREFECT_HOME whose database is migrated and empty, one for all processes of the suite: migrating takes ten seconds."""
    from flows.server.embedded import EmbeddedServer  # noqa: PLC0415 - few tests need one

    own = tmp_path_factory.getbasetemp()
    common = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    home = common / "prefect-migrated"
    with (common / "prefect-migrated.lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.is_dir():
            for name in [name for name in os.environ if name.startswith("PREFECT_")]:
                patch.delenv(name)
            patch.setenv("PREFECT_HOME", str(common / "prefect-begun"))
            server = EmbeddedServer()
            try:
                server.wait_healthy()
            finally:
                server.stop()
            (common / "prefect-begun").rename(home)  # so one that was interrupted is none
    return home


@pytest.fixture
def prefect_home(migrated_home: Path, tmp_path: Path) -> Path:
    """A PREFECT_HOME of a test's own, with nothing in it."""
    return shutil.copytree(migrated_home, tmp_path / "prefect-home")


# --- side by side: see tests/suite.sh -----------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a call of pytest be a part of the suite."""
    told = "beside (others) and alone make the suite; check is what is neither alone nor slow, and starts no process"
    parser.addoption("--part", choices=("all", "beside", "alone", "check"), default="all", help=told)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the part that was asked for."""
    if (part := config.getoption("part")) == "all":
        return
    kept, left = [], []
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        wanted = not marks & {"alone", "slow"} if part == "check" else ("alone" in marks) == (part == "alone")
        (kept if wanted else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


STARTS = {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "socket.bind", "subprocess.Popen"}
"""What no test of `make check` does: Python's audit events of processes and servers."""

_guarded = False


def _refuse(event: str, _: tuple[object, ...]) -> None:
    if _guarded and event in STARTS:
        raise RuntimeError(f"{event}: a test of `make check` starts no process and no server")


def pytest_configure(config: pytest.Config) -> None:
    """`make check` holds its word: a test in it that starts something fails."""
    if config.getoption("part") == "check":
        sys.addaudithook(_refuse)


def pytest_collection_finish() -> None:
    """What was imported and collected stays, and need not be looked through for garbage again and again."""
    gc.freeze()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """To collect all for the nine tests that run alone would take as long as some of them."""
    if config.getoption("part") != "alone" or collection_path.suffix != ".py":
        return None
    return "pytest.mark.alone" not in collection_path.read_text() or None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """See above; the processes of pytest itself are no test's."""
    global _guarded  # noqa: PLW0603 - an audit hook cannot be taken away again
    _guarded = item.config.getoption("part") == "check"
    try:
        return (yield)
    finally:
        _guarded = False


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process a core. Two share one core well, since many tests wait; five would need the memory of a server."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores, 2), 4)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Iterator[Any]:
    """A name that is no UTF-8, which some tests give to files, may stand in a captured log: xdist could not send it."""
    return encodable((yield))


def encodable(value: Any) -> Any:
    """The same dictionaries, lists and texts, with lone surrogates spelt out."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode("utf-8")
        case dict():
            return {encodable(key): encodable(each) for key, each in value.items()}
        case list() | tuple():
            return type(value)(map(encodable, value))
        case _:
            return value

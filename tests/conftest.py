"""What all tests share: the way to the real data, how long hypothesis looks, and how the suite runs side by side."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# A suite that a script started in the background ignores Ctrl-C, and so would all commands that it starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real volumes, stores and models, which is too large or not free to ship with the code."""
    folder = Path(os.environ.get("HALOTILE_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at '{folder}'; set HALOTILE_TEST_DATA to where they lie")
    return folder


# --- side by side: see tests/suite.sh -----------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a call of pytest be one of the two that make the suite."""
    parser.addoption(
        "--part",
        choices=("all", "beside", "alone"),
        default="all",
        help="tests that run beside others, tests marked `alone`, or (default) both",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the part that was asked for."""
    if (part := config.getoption("part")) == "all":
        return
    kept = [item for item in items if (item.get_closest_marker("alone") is not None) == (part == "alone")]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


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

"""What all tests share: the way to the real data, and how long hypothesis looks."""

import os
import signal
from pathlib import Path

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

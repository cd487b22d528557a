"""Being told to end, however this process was started."""

import os
import signal
import subprocess
import sys

import pytest

from tests.e2e.commands import ROOT

WAITS = """
import signal, sys, threading
from pipeline.stages import driven
from pipeline.storage.rundir import RunDirectory

def terminated(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, terminated)  # as the command does
with driven(sys.argv[1]):
    RunDirectory(sys.argv[1]).ask_to_cancel()
    try:
        threading.Event().wait(30)
    except KeyboardInterrupt:
        print("ended in order")
"""


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN], ids=["in the foreground", "in a script's background"])
def test_cancel_reaches_a_driver_that_ignores_ctrl_c_too(tmp_path, handler):
    """`nohup halotile run ... &` in a script: the shell has it ignore SIGINT, and `halotile cancel` must end it all the same."""
    found = subprocess.run(
        [sys.executable, "-c", WAITS, tmp_path / "output"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    )
    assert found.stdout == "ended in order\n", found.stderr

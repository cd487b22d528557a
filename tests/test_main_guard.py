"""A script that runs us without a `__main__` guard: one sentence, not sixty lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.main_guard import UnguardedError, _has_guard

ROOT = Path(__file__).parents[1]

SCRIPT = """
from pathlib import Path
from pipeline.cluster.kind import WorkerSpec
from pipeline.cluster.pool import open_pool
from pipeline.config import ClusterConfig
{guard}
with open_pool(ClusterConfig(), WorkerSpec(2, 1, 2 * 10**9), Path({folder!r})):
    print("workers")
"""


def outcome(tmp_path: Path, guard: str) -> subprocess.CompletedProcess[str]:
    """Of a script that starts two workers."""
    path = tmp_path / "script.py"
    text = SCRIPT.format(guard=guard, folder=str(tmp_path))
    head, _, tail = text.partition(guard + "\n")
    body = "".join(f"    {line}\n" for line in tail.splitlines()) if guard else tail
    path.write_text(f"{head}{guard}\n{body}")
    command = [sys.executable, path.name]
    return subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=250, check=False
    )


def test_a_script_without_a_guard_ends_in_one_sentence(tmp_path):
    """Each worker would run it again, find the run taken, and say so at length."""
    found = outcome(tmp_path, "")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.count("\n") == 1
    assert 'put what it does under `if __name__ == "__main__":`' in found.stderr


@pytest.mark.fault
def test_a_script_with_a_guard_runs(tmp_path):
    """The negative control."""
    found = outcome(tmp_path, 'if __name__ == "__main__":')
    assert (found.returncode, found.stdout, found.stderr) == (0, "workers\n", "")


@pytest.mark.parametrize(
    ("text", "guarded"),
    [
        ('if __name__ == "__main__":\n    run()', True),
        ("if __name__ != '__main__':\n    raise SystemExit", True),
        ("run()", False),
        ("'''if __name__'''\nrun()  # __name__", False),
        ("is no Python", True),
    ],
)
def test_a_guard_is_seen_in_a_script(text, guarded, tmp_path):
    """Only to tell why workers did not come: a script that cannot be read is not accused."""
    path = tmp_path / "script.py"
    path.write_text(text)
    assert _has_guard(path) == guarded


def test_who_catches_our_errors_catches_this_one():
    """It ends a script as `sys.exit("sentence")` does, and is an error of the configuration besides."""
    with pytest.raises(ConfigError) as caught:
        raise UnguardedError("put it under a guard")
    assert isinstance(caught.value, SystemExit)
    assert (caught.value.code, str(caught.value)) == ("put it under a guard", "put it under a guard")

"""A script that runs us without `if __name__ == "__main__":` is run again by each worker that it starts: told in a sentence."""

from __future__ import annotations

import ast
import multiprocessing
import sys
from pathlib import Path

from pipeline.errors import ConfigError

SENTENCE = (
    "The script '{script}' starts workers, and each of them runs the script again from its top: put what it does under "
    '`if __name__ == "__main__":`.'
)


class UnguardedError(ConfigError, SystemExit):
    """Ends a script in one sentence, and not in a traceback, where nobody catches it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text


def leave_if_run_again() -> None:
    """End a worker process that is still importing its parent's script, without a word: the parent tells."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise SystemExit(1)


def unguarded_script() -> UnguardedError | None:
    """What is wrong with the script of this process; None where it has a guard, or is none."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if path is None or getattr(main, "__spec__", None) is not None or not Path(path).is_file():
        return None
    return None if _has_guard(Path(path)) else UnguardedError(SENTENCE.format(script=path))


def _has_guard(path: Path) -> bool:
    """Whether anything in a script asks for `__name__`, or it cannot be read as Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return True
    return any(isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(tree))

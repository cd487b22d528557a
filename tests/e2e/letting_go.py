"""What a worker that tests share does at the end of a run, where a real one ends."""

import gc

from pipeline.cluster import worker


def let_go() -> None:
    """Close what it holds open for a run; a failed tile's traceback may keep it from being collected."""
    worker._bench.cache_clear()
    for found in gc.get_objects():
        if type(found) is worker._Bench:  # `isinstance` would ask lazy modules for their class
            found.lock.close()

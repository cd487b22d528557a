"""What a worker keeps between two tiles."""

from types import SimpleNamespace

from pipeline.cluster import worker


def test_a_worker_keeps_its_job_and_lets_it_go(monkeypatch):
    """A tile that opened network and input anew would take as long as many tiles; one that stays holds a card's memory."""
    here, there = SimpleNamespace(name="0"), SimpleNamespace(name="1")
    monkeypatch.setattr(worker, "get_worker", lambda: here)
    cache = worker._job_cache()
    cache._opened = "network and input"
    assert worker._job_cache() is cache
    worker.let_go(there)
    assert cache._opened == "network and input"
    worker.let_go(here)
    assert cache._opened is None

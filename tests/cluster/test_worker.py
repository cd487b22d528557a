"""What a worker keeps between two tiles."""

from types import SimpleNamespace

from pipeline.cluster import survey, worker


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


def test_a_worker_lets_go_of_the_input_of_a_survey_too(monkeypatch):
    """Workers of somebody else's scheduler live on: an input that stays open holds files, and its chunks' index, for ever."""
    here, opened = SimpleNamespace(), []
    monkeypatch.setattr(survey, "get_worker", lambda: here)
    monkeypatch.setattr(survey, "_opened", lambda job: opened.append(job) or "plan, input, parts")
    jobs = [survey.SurveyJob("out.zarr", "plan", None, "", token) for token in ("one", "one", "other")]
    for job in jobs:
        assert survey._open(job) == "plan, input, parts"
    assert opened == [jobs[0], jobs[2]]
    worker.let_go(here)
    survey._open(jobs[2])
    assert opened == [jobs[0], jobs[2], jobs[2]]

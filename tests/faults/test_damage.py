"""Every kind of damage to what a run left is seen by `verify`, and mended by `run` or refused by name."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core.network.unet import Architecture
from pipeline.inference import session
from tests.e2e.test_run import command
from tests.faults.damages import all_damages
from tests.pipeline_cases import Run, make_run, stored_objects

SHARE = 9
"""Damages of the everyday suite."""


@pytest.fixture(scope="module")
def finished(workers, tmp_path_factory) -> Iterator[Run]:
    """A finished run of four objects by surveyed numbers, one of them of fill alone, so that it is not there; and a copy to take it back from."""
    folder = tmp_path_factory.mktemp("finished")
    run = make_run(
        folder,
        architecture=Architecture(3, 1, 2),
        shape=(21, 16, 37),
        tiles={"core": [16, 16, 32]},
        normalize={"mode": "percentile"},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "open_pool", lambda *_, **__: Lent(workers))
        assert command("run", run.yaml, "--no-prefect") == 0
    shutil.copytree(run.output, folder / "output.kept")
    shutil.copytree(run.directory.path, folder / "run.kept")
    return run


class Lent:
    """The session's workers, for one run."""

    def __init__(self, pool):
        self.pool = pool

    def __enter__(self):
        return self.pool

    def __exit__(self, *_):
        return None


@pytest.fixture
def spoilt(finished, pooled) -> Iterator[Run]:
    """The finished run, to be damaged; as it was afterwards."""
    yield finished
    for kept, place in (("output.kept", finished.output), ("run.kept", finished.directory.path)):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(finished.folder / kept, place)


def seen_and_mended(run: Run, name: str, capsys) -> None:
    """One damage, from `verify` over `run` to `verify`."""
    damage = all_damages(run)[name]
    before, metadata = stored_objects(run.output), _ours(run.output / "zarr.json")
    damage.do(run)
    capsys.readouterr()
    status = command("verify", run.yaml)
    assert status in damage.verified, (status, capsys.readouterr().err)
    again = command("run", run.yaml, "--no-prefect")
    told = capsys.readouterr().err
    assert "Traceback" not in told
    if not damage.mended:
        assert again == 2, told
        assert str(run.output) in told
        return
    assert again == 0, told
    assert command("verify", run.yaml) == 0
    assert stored_objects(run.output) == before
    assert _ours(run.output / "zarr.json") == metadata
    for page in ("report.html", "slices.png", "thumbnail.png", "report.json"):
        assert (run.directory.path / page).stat().st_size > 100


def _ours(path: Path) -> dict:
    """A group's document, without the copy of others that somebody may have added to it."""
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "consolidated_metadata"}


def test_there_are_enough_damages(finished):
    """The campaign covers each key, field and artifact: fewer would mean that one got lost."""
    assert len(all_damages(finished)) > 150


def test_a_share_of_all_damages_is_seen_and_mended(finished, pooled, capsys, request):
    """Another one each day would be no test; these are drawn once, a few of each kind."""
    names = sorted(all_damages(finished))
    choose = random.Random(20261130)
    for name in choose.sample(names, SHARE):
        seen_and_mended(finished, name, capsys)
        for kept, place in (("output.kept", finished.output), ("run.kept", finished.directory.path)):
            shutil.rmtree(place)
            shutil.copytree(finished.folder / kept, place)


@pytest.mark.fault
def test_every_damage_is_seen_and_mended_or_refused(finished, pooled, capsys):
    """All of them; the ones that are not are told together."""
    failed = {}
    for name in all_damages(finished):
        try:
            seen_and_mended(finished, name, capsys)
        except Exception as error:  # noqa: BLE001 - the campaign goes on
            failed[name] = f"{type(error).__name__}: {error}"
        for kept, place in (("output.kept", finished.output), ("run.kept", finished.directory.path)):
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(finished.folder / kept, place)
    assert not failed, "\n".join(f"{name}: {why[:400]}" for name, why in failed.items())

"""Datasets whose network is another library's file: imported once, kept by each volume's run, and found done again."""

import json
from collections import Counter

import pytest

from pipeline.dataset.estimate import estimate
from pipeline.dataset.pass_ import volumes_of
from pipeline.outputs.rundir import RunDirectory
from pipeline.planning import network
from tests.dataset.dataset_cases import DataSet, make_dataset
from tests.dataset.test_reprocess import go
from tests.networks.network_cases import Residual, randomise, save_program
from tests.pipeline_cases import sessions


@pytest.mark.network
def test_a_dataset_of_an_imported_network_imports_it_once_and_is_found_done(tmp_path, pooled, monkeypatch):
    """All volumes have one network; a second go computes nothing, and a dry run needs no folder."""
    save_program(tmp_path / "net.pt2", randomise(Residual()).float())
    made = make_dataset(tmp_path, volumes=2)
    dataset = DataSet(made.folder, {**made.content, "model": {"checkpoint": str(tmp_path / "net.pt2")}})
    dataset.yaml.write_text(json.dumps(dataset.content))
    imports, read = [], network.import_network
    monkeypatch.setattr(network, "import_network", lambda *a, **k: imports.append(a) or read(*a, **k))
    network._imported.cache_clear()
    found = estimate(dataset.config, volumes_of(dataset.config)[0])
    assert not found.refused
    assert found.measured is not None
    assert Counter(go(dataset).values()) == {"done": 2}
    assert len(imports) == 1
    for name in ("v00", "v01"):
        assert RunDirectory(dataset.current(name)).network_path.is_file()
    network._imported.cache_clear()
    assert Counter(go(dataset).values()) == {"skipped": 2}
    assert [len(sessions(RunDirectory(dataset.current(name)))) for name in ("v00", "v01")] == [1, 1]

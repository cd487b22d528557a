"""The comparison over a volume so small that it says nothing of speed: all rows are there, and ours is exact."""

import json
import sys

import numpy as np
import pytest

from tests.benchmarks import compare, contenders, growth, reads, reference
from tests.benchmarks.contenders import BOUNDS, CONTENDERS, Job


def _in_this_process(module, *names, folder, threads):
    """As `contenders.measured`, without a process for each: their start is what takes long."""
    if module == "reference":
        return reference.reference(folder)
    if names[0].startswith("matmul"):
        return {"seconds": 1.0, "peak_bytes": 1}
    contender = next(c for c in CONTENDERS if c.name == names[0])
    found = contender.predict(Job(folder, contender.dtype, threads))
    np.save(folder / f"{contender.name}.npy", found.output)
    return {"seconds": found.seconds, "peak_bytes": found.peak_bytes}


@pytest.mark.slow  # two runs from the command line
@pytest.mark.filterwarnings("ignore")  # peers'
def test_all_rows_are_there_and_ours_is_exact(monkeypatch, tmp_path, prefect_home):
    """What speaks of time is not asserted."""
    monkeypatch.setattr(compare, "measured", _in_this_process)
    common = contenders.environment
    monkeypatch.setattr(contenders, "environment", lambda *of: common(*of) | {"PREFECT_HOME": str(prefect_home)})
    monkeypatch.setattr(contenders, "ROI", 24)
    monkeypatch.setattr(growth, "growth", lambda base, threads: [])
    monkeypatch.setattr(reads, "REPEATS", 1)
    out, table = tmp_path / "found.json", tmp_path / "page.md"
    asked = ["compare", "--extent", "32", "--repeats", "1", "--threads", "1", "--out", str(out), "--table", str(table)]
    monkeypatch.setattr(sys, "argv", asked)

    compare.main()

    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == [contender.name for contender in (*CONTENDERS, *BOUNDS)]
    assert all(row["title"] in table.read_text() for row in rows.values())
    exact = {name for name, row in rows.items() if row.get("exact")}
    measured = {name for name, row in rows.items() if row.get("error")}
    assert exact == {name for name in measured if not name.startswith("monai")}
    assert rows["halotile-float32"]["error"]["max"] < 0.5 / 255 + 1e-4

"""The summary's table: what is in a cell is text, whatever a volume, a model or an error is called."""

import csv

import pytest

from pipeline.dataset.outcome import Outcome
from pipeline.dataset.summary import COLUMNS, Summary


def table(folder, **keys) -> dict[str, str]:
    """The one row of a summary's table."""
    outcome = Outcome("v", "/data/v.zarr", "failed", **keys)
    Summary("/out", "/data", "now", 1, [outcome]).write(folder)
    with (folder / "summary.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    return row


@pytest.mark.parametrize(
    "sign",
    ["=", "+", "-", "@", "\t", "\r", "\n", " =", "\t=", "|", "%", "\uff1d", "\uff0b", "\uff0d", "\uff20"],
    ids=ascii,
)
@pytest.mark.parametrize("column", ["model", "reason"])
def test_no_cell_is_a_formula(tmp_path, column, sign):
    """A model called `=HYPERLINK(...)` would act in the spreadsheet of whoever opens the table."""
    said = f"{sign}cmd|'/C calc'!A0"
    found = table(tmp_path, **{column: said})[column]
    assert found.startswith("'")
    assert found.endswith("cmd|'/C calc'!A0")


def test_a_cell_is_one_line_without_signs_that_act(tmp_path):
    """A line of the table is a volume, for `grep` and `wc` too."""
    row = table(tmp_path, reason="two\nlines \x1b[2J\r\u202e")
    assert row["reason"] == r"two | lines \x1b[2J\r\u202e"
    assert (tmp_path / "summary.csv").read_text(encoding="utf-8").count("\n") == 2


def test_ordinary_cells_are_as_they_were(tmp_path):
    """The negative control."""
    row = table(tmp_path, model="em version 3, weights 0a1b", voxels=5, seconds=1.5)
    assert (row["model"], row["voxels"], row["seconds"], row["url"]) == (
        "em version 3, weights 0a1b",
        "5",
        "1.5",
        "/data/v.zarr",
    )
    assert tuple(row) == COLUMNS

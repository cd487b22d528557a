"""What is advised to be installed: extras of this very checkout, and no name that anybody may take on a package index."""

import re
import subprocess
from pathlib import Path

import pytest

from pipeline import installation
from pipeline.installation import how_to_install

ROOT = Path(__file__).parents[1]

ADVICE = re.compile(
    r"""pip3?\s+install\b[^\n`]*?\s['"]?halotile\b|uv\s+(pip\s+install|add|tool\s+install)\s+['"]?halotile\b|pipx\s+install\s+['"]?halotile\b"""
)
"""An installation by the name alone."""


def files() -> list[Path]:
    """All that the checkout holds as text."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    found = [ROOT / name for name in listed.stdout.splitlines()] or [
        *ROOT.rglob("*.py"),
        *ROOT.rglob("*.md"),
        *ROOT.rglob("*.yaml"),
    ]
    return [path for path in found if path.is_file() and path.suffix not in (".png", ".npz", ".safetensors")]


def test_nothing_advises_to_install_halotile_by_its_name():
    """The name is not ours on the package index: whoever takes it would be run by all who follow such advice."""
    wrong = [
        path
        for path in files()
        if path != Path(__file__) and ADVICE.search(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert wrong == []
    quoted = re.compile(r"['\"]halotile\[[a-z]+\]")
    wrong = [
        path
        for path in files()
        if path.suffix == ".py" and path != Path(__file__) and quoted.search(path.read_text(encoding="utf-8"))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "advice",
    ["pip install 'halotile[s3]'", "pip install halotile", "pip install -U halotile[export]", "pipx install halotile"],
)
def test_such_advice_would_be_found(advice):
    """The negative control."""
    assert ADVICE.search(f"Run: {advice}.")


def test_what_is_advised_installs_this_checkout():
    """It can be pasted into a shell."""
    told = how_to_install("s3")
    assert told == f"run: cd {ROOT} && pip install -c deploy/constraints.txt -e '.[s3]'"
    assert "s3 = [" in (ROOT / "pyproject.toml").read_text()


def test_an_installation_whose_sources_are_elsewhere_names_them_and_one_without_says_so(tmp_path, monkeypatch):
    """A wheel that was built of a checkout knows where that was; in an image it may be gone."""
    monkeypatch.setattr(installation, "_HERE", tmp_path / "site-packages")
    sources = tmp_path / "it's here"
    sources.mkdir()
    monkeypatch.setattr(installation, "_installed_from", lambda: sources)
    assert "from the sources that Halotile was installed from" in how_to_install("train")
    (sources / "pyproject.toml").touch()
    assert how_to_install("train") == f"run: cd '{tmp_path}/it'\"'\"'s here' && pip install -e '.[train]'"


@pytest.mark.parametrize("record", [None, "", "{}", "[]", '{"url": 5}', '{"url": "https://host/x"}', "{"])
def test_an_installation_that_says_nothing_of_its_sources_is_no_error(monkeypatch, record):
    """The advice stands inside another message."""

    class Told:
        def read_text(self, _: str) -> str | None:
            return record

    monkeypatch.setattr(installation, "distribution", lambda _: Told())
    assert installation._installed_from() is None

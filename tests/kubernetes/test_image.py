"""The image's recipe, as a linter sees it. docs/operations.md, "An image", says how it is built and tried."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kubernetes.manifest_cases import ROOT

DOCKERFILE = ROOT / "deploy/Dockerfile"


def lint(path: Path) -> str:
    """What hadolint says; empty where it has nothing to say."""
    tool = Path(sys.executable).parent / "hadolint"
    found = subprocess.run([tool, "--no-color", path], capture_output=True, text=True, check=False, timeout=60)
    assert (found.returncode == 0) == (not found.stdout), found.stderr
    return found.stdout


def test_the_dockerfile_has_no_fault_that_a_linter_knows():
    """Nothing is silenced in it either."""
    assert lint(DOCKERFILE) == ""
    assert "hadolint ignore" not in DOCKERFILE.read_text()


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ("FROM python:latest", "DL3007"),
        ("FROM python:3.11\nUSER root", "DL3002"),
        ("FROM python:3.11\nRUN cd /tmp", "DL3003"),
    ],
)
def test_the_linter_finds_faults(tmp_path, wrong, rule):
    """The control: an unpinned base, root, a lost directory."""
    (tmp_path / "Dockerfile").write_text(f"{wrong}\n")
    assert rule in lint(tmp_path / "Dockerfile")


def test_the_image_is_pinned_labelled_and_runs_as_a_number_that_is_not_root():
    """Kubernetes can tell that a number is not root; of a name it cannot."""
    text = DOCKERFILE.read_text()
    assert re.search(r"^ARG BASE_IMAGE=\S+:3\.11\.\d+-\S+$", text, re.MULTILINE)
    assert text.count("\nFROM ${BASE_IMAGE}") == 2
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["10001:10001"]
    assert re.search(r'^ENTRYPOINT \["halotile"\]$', text, re.MULTILINE)
    for label in ("title", "description", "licenses", "version", "revision", "base.name"):
        assert f"org.opencontainers.image.{label}=" in text
    for variable in ("DO_NOT_TRACK=1", "PREFECT_SERVER_ANALYTICS_ENABLED=false", "PIP_NO_CACHE_DIR=1"):
        assert variable in text


def test_the_image_is_made_of_what_it_needs_and_nothing_else():
    """What is not named stays out: tests, histories, environments, and whatever lies about in a checkout."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        name
        for found in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
        for name in found.split()
    }
    assert kept == copied

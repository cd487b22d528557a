"""The demo's checkpoint: an honest product of the recipe that ships."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.config import read_config
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.training.recipe import TrainConfig

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo"
DEMO_SLICES = (127, 175)


def test_the_demo_s_network_never_saw_the_demo_s_slices() -> None:
    """What the demo shows is honest: its crop is disjoint from training and validation."""
    path = DEMO / "em-membranes-3d.safetensors"
    assert path.stat().st_size <= 4_000_000
    (volume,) = load_checkpoint(path).provenance["recipe"]["data"]["volumes"]
    for box in [*volume["train"], *volume["validation"]]:
        assert box["stop"][0] <= DEMO_SLICES[0] or box["start"][0] >= DEMO_SLICES[1]


def test_the_demo_s_network_is_that_of_the_recipe_beside_it(monkeypatch) -> None:
    """The command in its README makes it: every key that changes what is learnt is the recipe's of today."""
    monkeypatch.setenv("HALOTILE_TEST_DATA", "/data")
    now = read_config(TrainConfig, ROOT / "configs" / "train-em-3d.yaml").model_dump(mode="json")
    then = load_checkpoint(DEMO / "em-membranes-3d.safetensors").provenance
    for key in ("network", "normalize", "patch", "batch", "steps", "augment", "loss", "optimiser", "seed"):
        assert then["recipe"][key] == now[key]
    assert then["recipe"]["data"]["target"] == now["data"]["target"]
    assert json.loads((DEMO / "metrics.json").read_text()) == then["validation"]

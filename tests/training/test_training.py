"""The recipe that made the demo's network, on data small enough to follow by hand."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pipeline.config import validated
from pipeline.errors import ConfigError
from pipeline.training.losses import balanced_cross_entropy
from pipeline.training.patches import Pair, membranes, random_patches, read_pair
from pipeline.training.recipe import TrainConfig
from pipeline.training.trainer import scores, train
from pipeline.unet.checkpoint import load_checkpoint

DEMO = Path(__file__).parents[2] / "configs" / "demo"
DEMO_SLICES = (127, 175)


@pytest.fixture
def recipe(tmp_path: Path) -> TrainConfig:
    """A tiny recipe over two cells that meet in a dark plane."""
    ids = np.ones((24, 16, 16), dtype=np.uint16)
    ids[:, :, 8:] = 2
    image = np.where(membranes(ids), 40, 180) + np.random.default_rng(0).integers(0, 20, ids.shape)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["raw"], file["neuron_ids"] = image.astype(np.uint8), ids
    data = {
        "url": str(tmp_path / "data.h5"),
        "train_slices": [0, 16],
        "validation_slices": [16, 24],
        "voxel_size_nm": [10, 10, 10],
    }
    content = {"data": data, "output": str(tmp_path / "out"), "network": {"depth": 1, "width": 4}, "steps": 30}
    return validated(TrainConfig, {**content, "patch": [8, 16, 16], "threads": 1}, source="test")


def test_a_voxel_is_membrane_where_one_of_six_neighbours_has_another_id() -> None:
    """The stated rule, against a loop over all voxels."""
    ids = np.random.default_rng(1).integers(0, 3, (4, 5, 6))
    expected = np.zeros(ids.shape, dtype=np.uint8)
    for place in np.ndindex(ids.shape):
        for axis in range(3):
            for step in (-1, 1):
                other = list(place)
                other[axis] += step
                if 0 <= other[axis] < ids.shape[axis] and ids[tuple(other)] != ids[place]:
                    expected[place] = 1
    assert np.array_equal(membranes(ids), expected)


def test_only_the_slices_asked_for_are_read(recipe: TrainConfig) -> None:
    """Validation slices that leaked into training would make its figure a lie."""
    pair = read_pair(recipe.data, (3, 7))
    with h5py.File(recipe.data.url) as file:
        assert np.array_equal(pair.image, file["raw"][3:7])


def test_training_and_validation_that_share_slices_are_refused(recipe: TrainConfig) -> None:
    """A figure on slices that were trained on says nothing."""
    content = recipe.model_dump()
    content["data"]["validation_slices"] = [15, 24]
    with pytest.raises(ConfigError, match="must be apart"):
        validated(TrainConfig, content, source="test")


@pytest.mark.parametrize(
    ("section", "key", "value", "match"),
    [
        ("data", "train_slices", [-24, -8], "greater than or equal to 0"),  # HDF5 would count from the end
        (None, "patch", [7, 16, 16], "multiples of 2"),
    ],
)
def test_a_recipe_that_cannot_train_is_refused_when_it_is_read(recipe, section, key, value, match) -> None:
    """What fails in the first step, or trains on other slices than it says, is told before."""
    content = recipe.model_dump()
    (content[section] if section else content)[key] = value
    with pytest.raises(ConfigError, match=match):
        validated(TrainConfig, content, source="test")


def test_an_image_of_other_than_eight_bits_is_refused(recipe: TrainConfig) -> None:
    """Training divides by 255, and the checkpoint's rule would divide a wider type by its own range."""
    with h5py.File(recipe.data.url, "a") as file:
        file["wide"] = file["raw"][:].astype(np.uint16)
    with pytest.raises(ConfigError, match="uint16"):
        read_pair(recipe.data.model_copy(update={"image": "wide"}), (0, 16))


def test_validation_slices_without_membrane_are_refused_before_the_training(recipe: TrainConfig) -> None:
    """Found afterwards, it would cost the training."""
    with h5py.File(recipe.data.url, "a") as file:
        file["neuron_ids"][16:24] = 1
    with pytest.raises(ConfigError, match="both classes"):
        train(recipe, lambda _step, _loss: pytest.fail("it trained"))


def test_few_steps_and_thin_validation_slices_train(recipe: TrainConfig) -> None:
    """Ten steps once divided by zero in the schedule, and one slice was too thin to be mirrored."""
    data = recipe.data.model_copy(update={"validation_slices": (16, 17)})
    for steps in (1, 10):
        assert train(recipe.model_copy(update={"data": data, "steps": steps})).is_file()


def test_patches_follow_from_the_seed() -> None:
    """A checkpoint can be made again only if its patches can."""
    rng = np.random.default_rng(2)
    pair = Pair(rng.integers(0, 255, (9, 20, 20), dtype=np.uint8), rng.integers(0, 2, (9, 20, 20), dtype=np.uint8))
    one, two, other = (random_patches(pair, (4, 8, 8), np.random.default_rng(seed)) for seed in (5, 5, 6))
    first, again, different = next(one), next(two), next(other)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], different[0])


def test_the_target_turns_with_its_image() -> None:
    """A target that is flipped otherwise than its image teaches nothing."""
    membrane = (np.random.default_rng(3).random((9, 20, 20)) < 0.3).astype(np.uint8)
    patches = random_patches(Pair(membrane * 255, membrane), (4, 8, 8), np.random.default_rng(0))
    for _, (image, target) in zip(range(20), patches, strict=False):
        assert image[target == 1].mean() > image[target == 0].mean() + 0.5


def test_the_loss_weighs_both_classes_alike() -> None:
    """One membrane voxel in four counts as much as the three others together; worked by hand at logit 0."""
    logits, target = torch.zeros(4), torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert float(balanced_cross_entropy(logits, target)) == pytest.approx(np.log(2))
    wrong_about_one = torch.tensor([-2.0, 0.0, 0.0, 0.0])
    expected = (2.0 * np.log1p(np.exp(2.0)) + 3 * (2 / 3) * np.log(2)) / 4
    assert float(balanced_cross_entropy(wrong_about_one, target)) == pytest.approx(expected, rel=1e-5)


def test_scores_are_those_of_their_definitions() -> None:
    """AUC is the share of pairs in the right order; Dice is twice the overlap over the sum."""
    rng = np.random.default_rng(4)
    membrane = (rng.random(400) < 0.3).astype(np.uint8)
    probability = np.clip(0.4 * membrane + 0.6 * rng.random(400), 0, 0.999)
    pairs = probability[membrane == 1][:, None] - probability[membrane == 0][None]
    auc = float((pairs > 0).mean() + 0.5 * (pairs == 0).mean())
    dice = max(
        2 * (membrane & (probability >= t)).sum() / (membrane.sum() + (probability >= t).sum()) for t in probability
    )
    found = scores(probability, membrane)
    assert found["auc"] == pytest.approx(auc, abs=2e-3)
    assert found["dice"] == pytest.approx(dice, abs=2e-2)


def test_training_lowers_the_loss_and_its_checkpoint_says_all_that_a_run_needs(recipe: TrainConfig) -> None:
    """`halotile run` is given nothing but this file."""
    losses: list[float] = []
    path = train(recipe, lambda _step, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    checkpoint = load_checkpoint(path)
    assert checkpoint.architecture.depth == 1
    assert checkpoint.normalization is not None
    assert checkpoint.normalization.mode == "minmax"
    assert checkpoint.voxel_size_nm == (10, 10, 10)
    assert checkpoint.provenance["validation"]["auc"] > 0.9


def test_the_same_seed_gives_the_same_weights(recipe: TrainConfig) -> None:
    """The command beside the checkpoint would otherwise make another."""
    short = recipe.model_copy(update={"steps": 3})
    one = load_checkpoint(train(short)).sha256
    assert load_checkpoint(train(short)).sha256 == one
    assert load_checkpoint(train(short.model_copy(update={"seed": 1}))).sha256 != one


def test_the_demo_s_network_never_saw_the_demo_s_slices() -> None:
    """What the demo shows is honest: its crop is disjoint from training and validation."""
    path = DEMO / "em-membranes-3d.safetensors"
    assert path.stat().st_size <= 4_000_000
    told = load_checkpoint(path).provenance
    for first, last in (told["train_slices"], told["validation_slices"]):
        assert last <= DEMO_SLICES[0] or first >= DEMO_SLICES[1]
    assert json.loads((DEMO / "metrics.json").read_text()) == told["validation"]

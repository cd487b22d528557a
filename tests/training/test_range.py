"""The 16-bit trap: values that span so little that a network learns nothing, and says nothing of it."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
import zarr

from pipeline.errors import ConfigError
from pipeline.networks.checkpoint import load_checkpoint, save_checkpoint
from pipeline.training.range import default_rule
from pipeline.training.state import FORCED
from pipeline.training.trainer import train
from tests.training.training_cases import cells, image_of, recipe


class StopError(Exception):
    """Ends a run from within."""


def stopping(advance):
    """Ends a run after its first steps."""
    if advance.phase == "training":
        raise StopError


def never(advance):
    """No step may be made."""
    assert advance.phase != "training", "it trained"


def of(folder, image, **changed):
    """A recipe over the same cells, of another image."""
    config = recipe(folder, **changed)
    zarr.create_array(str(folder / "image.zarr"), data=image, chunks=(8, 16, 16), overwrite=True)
    return config


PLAIN = {"ndim": 3, "depth": 1, "width": 4, "norm": "none"}
"""A network without batch norm, which on so easy a task would mend the range by itself."""


def twelve_bits():
    """What a camera of 12 bits stores in 16: 0 to 0.06 of their range."""
    noise = np.random.default_rng(1).integers(0, 16, cells().shape)
    return (image_of(cells()).astype(np.uint16) * 16 + noise).astype(np.uint16)


# --- the default ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtypes", "mode"),
    [
        (["uint8"], "minmax"),
        (["int8", "bool"], "minmax"),
        (["float32", "float64"], "minmax"),
        (["uint16"], "percentile"),
        (["int16"], "percentile"),
        (["uint32"], "percentile"),
        (["uint8", "uint16"], "percentile"),
    ],
)
def test_the_default_is_by_the_voxels_type(dtypes, mode):
    """8 bits as they were; integers of more never by their type's range. One rule, as a run will know one volume alone."""
    assert default_rule(dtypes).mode == mode


def test_twelve_bits_train_by_default_and_the_checkpoint_says_what_they_looked_like(tmp_path):
    """The recipe says nothing; so do most."""
    checkpoint = load_checkpoint(train(of(tmp_path, twelve_bits(), steps=40, network=PLAIN)))
    assert checkpoint.normalization.mode == "percentile"
    assert checkpoint.learned is True
    assert checkpoint.provenance["validation"]["auc"] > 0.9
    assert checkpoint.provenance["validation"]["learned"] is True
    (seen,) = checkpoint.training_data
    assert (seen.dtype, seen.voxel_size_nm) == ("uint16", (10, 10, 10))
    assert seen.channels[0].range == pytest.approx((0, 1), abs=0.1)
    assert json.loads((tmp_path / "out" / "recipe.json").read_text())["normalize"]["mode"] == "percentile"
    assert checkpoint.provenance["recipe"]["normalize"]["mode"] == "percentile"


def test_by_their_type_s_range_the_same_voxels_teach_nothing(tmp_path):
    """Negative control, and what every page was green about: forced, the network ends no better than a constant."""
    config = of(tmp_path, twelve_bits(), steps=40, network=PLAIN, normalize={"mode": "minmax"})
    checkpoint = load_checkpoint(train(config, any_range=True))
    assert checkpoint.training_data[0].channels[0].range[1] < 0.07
    assert checkpoint.learned is False


def test_eight_bits_are_trained_on_as_they_were(tmp_path):
    """Same recipe, same weights: nothing of the default has changed for them."""
    by_default = load_checkpoint(train(recipe(tmp_path, output=str(tmp_path / "default"), steps=5)))
    said = {"mode": "minmax"}
    as_asked = load_checkpoint(train(recipe(tmp_path, output=str(tmp_path / "asked"), steps=5, normalize=said)))
    assert by_default.sha256 == as_asked.sha256
    assert by_default.normalization == as_asked.normalization
    assert by_default.provenance["recipe"] == as_asked.provenance["recipe"]


# --- the refusal ---------------------------------------------------------------------------------------------------------

NARROW = {
    "12 bits by their type's range": (twelve_bits(), "minmax", "'percentile'"),
    "8 bits that are hardly used": (100 + image_of(cells()) // 16, "minmax", "'percentile'"),
    "floats with one hot voxel": (
        np.where(np.indices(cells().shape).sum(0) == 0, 1e6, image_of(cells())).astype(np.float32),
        None,
        "'percentile'",
    ),
    "deviations of floats with one hot voxel": (
        np.where(np.indices(cells().shape).sum(0) == 0, 1e6, image_of(cells())).astype(np.float32),
        "zscore",
        "'percentile'",
    ),
    "one value": (np.full(cells().shape, 7, dtype=np.uint16), None, "name boxes that show more"),
}


@pytest.mark.parametrize(("image", "mode", "remedy"), NARROW.values(), ids=NARROW)
def test_values_that_span_too_little_are_refused_before_a_step_is_made(tmp_path, image, mode, remedy):
    """The volume, its percentiles as stored and as the network sees them, and what to set."""
    changed = {"normalize": {"mode": mode}} if mode else {}
    with pytest.raises(ConfigError) as refused:
        train(of(tmp_path, image, **changed), never)
    told = str(refused.value)
    first, last = (f"{value:.6g}" for value in np.percentile(image[:16], (1, 99)))
    assert str(tmp_path / "image.zarr") in told
    assert f"{first} and {last}" in told
    assert remedy in told
    assert "halotile train --force-range" in told
    assert not (tmp_path / "out" / "recipe.json").exists()


def test_every_volume_that_spans_too_little_is_named(tmp_path):
    """Found one by one, they would cost a start each."""
    config = of(tmp_path, twelve_bits(), normalize={"mode": "minmax"})
    zarr.create_array(str(tmp_path / "other.zarr"), data=twelve_bits() // 2, chunks=(8, 16, 16))
    volume = config.data.volumes[0].model_dump()
    both = [volume, volume | {"image": str(tmp_path / "other.zarr"), "validation": []}]
    with pytest.raises(ConfigError) as refused:
        train(recipe(tmp_path, data={"volumes": both}, normalize={"mode": "minmax"}), never)
    assert "image.zarr" in str(refused.value)
    assert "other.zarr" in str(refused.value)


def test_what_was_refused_trains_once_it_is_mended(tmp_path):
    """Nothing of a refused run stands in the way."""
    with pytest.raises(ConfigError):
        train(of(tmp_path, twelve_bits(), steps=3, normalize={"mode": "minmax"}))
    assert train(recipe(tmp_path, steps=3)).is_file()


def test_a_forced_run_goes_on_without_being_forced_again(tmp_path):
    """A scheduler starts it again by the same command, or a person by a shorter one."""
    config = of(tmp_path, twelve_bits(), steps=12, normalize={"mode": "minmax"})
    with pytest.raises(StopError):
        train(config, stopping, any_range=True)
    assert (tmp_path / "out" / FORCED).is_file()
    assert train(config).is_file()


def test_a_run_of_an_older_version_goes_on(tmp_path):
    """Its recipe names the rule that was the default, and its state knows nothing of a recent loss."""
    config = recipe(tmp_path, steps=22)
    with pytest.raises(StopError):
        train(config, lambda advance: stopping(advance) if advance.done > 10 else None)
    said = json.loads((tmp_path / "out" / "recipe.json").read_text())["normalize"]
    assert said == {"mode": "minmax", "low": 1.0, "high": 99.0}
    path = tmp_path / "out" / "state.pt"
    state = torch.load(path, weights_only=True)
    del state["recent"], state["best"]["training_loss"], state["best"]["training_constant_loss"]
    torch.save(state, path)
    assert train(config).is_file()


def test_the_rule_of_a_run_that_was_begun_is_kept_where_the_recipe_names_none(tmp_path):
    """A run that was begun by percentiles does not end by something else."""
    config = of(tmp_path, twelve_bits(), steps=12)
    with pytest.raises(StopError):
        train(config, stopping)
    with pytest.raises(ConfigError, match="percentile then, zscore now"):
        train(recipe(tmp_path, steps=12, normalize={"mode": "zscore"}))
    assert load_checkpoint(train(config)).normalization.mode == "percentile"


def test_integers_of_many_bits_are_trained_on_and_told_of(tmp_path, caplog):
    """Above 2^24 float32 does not tell all of them apart."""
    image = image_of(cells()).astype(np.uint32) * 2**24
    with caplog.at_level(logging.WARNING):
        train(of(tmp_path, image, steps=1))
    assert "loses bits" in caplog.text
    assert "2^24" in caplog.text


# --- learned -------------------------------------------------------------------------------------------------------------


def test_a_network_that_does_not_move_has_learned_nothing(tmp_path):
    """Status 0, as a training may fail; but the checkpoint says so for ever."""
    still = {"name": "adam", "learning_rate": 1e-12, "momentum": 0.9}
    path = train(recipe(tmp_path, steps=10, optimiser=still))
    checkpoint = load_checkpoint(path)
    assert checkpoint.learned is False
    assert json.loads((path.parent / "metrics.json").read_text())["learned"] is False


def test_without_boxes_held_back_the_loss_alone_says_whether_it_learned(tmp_path):
    """Of a training on all there is, nothing else is known."""
    volume = recipe(tmp_path).data.volumes[0].model_dump() | {"validation": []}
    data = {"volumes": [volume]}
    still = {"name": "adam", "learning_rate": 1e-12, "momentum": 0.9}
    moved = load_checkpoint(train(recipe(tmp_path, output=str(tmp_path / "a"), data=data)))
    stayed = load_checkpoint(train(recipe(tmp_path, output=str(tmp_path / "b"), steps=10, data=data, optimiser=still)))
    assert (moved.learned, stayed.learned) == (True, False)
    metrics = moved.provenance["validation"]
    assert metrics["training_loss"] < 0.6 < metrics["training_constant_loss"] <= 0.6932


def test_what_a_checkpoint_says_of_its_training_is_no_part_of_its_identity(tmp_path):
    """The same tensors are the same network, and a plan's fingerprint does not change."""
    path = train(recipe(tmp_path, steps=1))
    checkpoint = load_checkpoint(path)
    bare = replace(checkpoint, training_data=(), learned=None)
    save_checkpoint(tmp_path / "bare.safetensors", bare)
    found = load_checkpoint(tmp_path / "bare.safetensors")
    assert found.sha256 == checkpoint.sha256
    assert (found.training_data, found.learned) == ((), None)

from dataclasses import replace

import numpy as np
import pytest
import zarr

from pipeline.core.normalization import Normalization
from pipeline.core.targets import membranes
from pipeline.training.dataset import gather
from pipeline.training.preparation import IGNORED
from pipeline.training.recipe import AugmentConfig
from pipeline.training.samples import read_ahead
from tests.training.training_cases import cells, recipe, write_pair

STILL = {"flip": False, "rotate": False, "elastic_sigma": 0, "contrast": 0, "brightness": 0, "noise": 0}


@pytest.fixture
def samples(tmp_path):
    """Of the tiny volume, with everything that varies."""
    return gather(recipe(tmp_path)).samples


def test_a_sample_is_a_function_of_the_seed_and_its_number(samples):
    """What makes a resumed run equal: any sample can be made again, in any order."""
    later = samples[7]
    first = samples[0]
    again = samples[7]
    assert np.array_equal(later.image, again.image)
    assert np.array_equal(later.weight, again.weight)
    assert not np.array_equal(first.image, later.image)
    other = replace(samples, seed=1)[7]
    assert not np.array_equal(other.image, later.image)


def test_samples_read_ahead_are_the_same_in_the_same_order(samples):
    """Threads finish as they like."""
    numbers = [3, 1, 4, 1, 5, 9, 2, 6]
    for number, sample in zip(numbers, read_ahead(samples, iter(numbers), threads=3, ahead=4), strict=True):
        assert np.array_equal(sample.image, samples[number].image)


def test_reading_ahead_is_bounded(samples):
    """Otherwise a slow device would fill the memory with samples."""
    asked = []

    def numbers():
        for n in range(100):
            asked.append(n)
            yield n

    ahead = read_ahead(samples, numbers(), threads=1, ahead=3)
    next(ahead)
    assert len(asked) <= 5
    ahead.close()


def test_a_failing_sample_fails_the_one_that_asks_for_it(samples):
    """An error in a thread must not become a hang, or a batch that is short."""
    broken = replace(samples, regions=())
    with pytest.raises(ValueError):
        next(read_ahead(broken, iter([0]), threads=1, ahead=1))


def test_patches_that_nothing_varies_are_cut_from_the_volume(tmp_path):
    """Image, target and weight of a patch belong to the same voxels, and these to the training box."""
    config = recipe(tmp_path, augment=STILL, loss={"border_weight": 0.0, "balance": False})
    image = zarr.open_array(str(tmp_path / "image.zarr"))[:16] / 255
    target = membranes(cells()[:16])
    windows = np.lib.stride_tricks.sliding_window_view(image, config.patch)
    for number in range(5):
        sample = gather(config).samples[number]
        distance = np.abs(windows - sample.image[0]).max(axis=(3, 4, 5))
        place = np.unravel_index(distance.argmin(), distance.shape)
        assert distance[place] < 1e-3
        box = tuple(slice(a, a + n) for a, n in zip(place, config.patch, strict=True))
        assert np.array_equal(sample.target, target[box])
        assert (sample.weight == 1).all()


def test_the_target_moves_with_its_image(tmp_path):
    """Deformed otherwise than its image, a target teaches nothing: the dark voxels must stay the membranes."""
    augment = {"elastic_sigma": 0.8, "zoom": 0.1, "contrast": 0, "brightness": 0, "noise": 0}
    samples = gather(recipe(tmp_path, augment=augment, patch=[8, 32, 32])).samples
    for number in range(10):
        sample = samples[number]
        inside, membrane = (sample.image[0][sample.target == value].mean() for value in (0, 1))
        assert membrane < inside - 0.25


def test_an_unpadded_network_sees_real_context_and_beyond_the_box_its_mirror(tmp_path):
    """The window is larger than the patch by the margin, and the target is its middle."""
    network = {"ndim": 3, "depth": 1, "width": 4, "padding": "valid"}
    config = recipe(tmp_path, network=network, patch=[8, 16, 16], augment=STILL)
    assert config.window == (24, 32, 32)
    box = zarr.open_array(str(tmp_path / "image.zarr"))[:16].astype(np.float32) / 255
    mirrored = np.pad(box, [(8, 8)] * 3, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, config.window)
    for number in range(5):
        sample = gather(config).samples[number]
        assert sample.image.shape == (1, 24, 32, 32)
        assert sample.target.shape == (8, 16, 16)
        assert np.abs(windows - sample.image[0]).max(axis=(3, 4, 5)).min() < 1e-3


def test_weights_balance_the_classes_and_add_the_border(tmp_path):
    """Over the whole box both classes weigh alike; between cells there is up to `border_weight` more."""
    data = gather(recipe(tmp_path, augment=STILL, patch=[16, 40, 40], loss={"border_weight": 0.0}))
    sample = data.samples[0]
    sums = [sample.weight[sample.target == value].sum() for value in (0, 1)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-4)
    bordered = gather(recipe(tmp_path, augment=STILL, patch=[16, 40, 40])).samples[0]
    more = bordered.weight - sample.weight
    assert more[sample.target == 1].mean() > 3.0
    assert 0 <= more.min() < more.max() <= 10.0


def test_ignored_voxels_weigh_nothing(tmp_path):
    """A volume that is labelled in part teaches by that part alone."""
    ids = cells()
    ids[:, :20] = 9999
    write_pair(tmp_path, ids)
    config = recipe(tmp_path, augment=STILL, patch=[16, 40, 40])
    content = config.model_dump()
    content["data"]["ignore"] = 9999
    sample = gather(type(config).model_validate(content)).samples[0]
    assert (sample.target[:, :20] == IGNORED).all()
    assert not sample.weight[:, :20].any()
    assert (sample.weight[:, 20:] > 0).all()
    alone = cells()
    alone[:, :20] = 0
    assert np.array_equal(sample.target[:, 20:], membranes(alone[:16])[:, 20:])  # nor is there membrane beside them


def test_volumes_are_chosen_by_their_weights(tmp_path):
    """A volume of weight 3 is seen three times as often, whatever its size."""
    one, other = write_pair(tmp_path / "one"), write_pair(tmp_path / "other", cells((12, 40, 40)))
    config = recipe(tmp_path, data={"volumes": [{**one, "weight": 3}, other]})
    samples = gather(config).samples
    assert [region.share for region in samples.regions] == [3.0, 1.0]
    marked = [
        replace(region, normalization=Normalization(offset=1000.0 * n)) for n, region in enumerate(samples.regions)
    ]
    still = replace(samples, regions=tuple(marked), augment=AugmentConfig(**STILL))
    assert np.mean([still[n].image.mean() < 0 for n in range(400)]) == pytest.approx(0.25, abs=0.06)


def test_only_the_patch_is_read(samples, monkeypatch):
    """The volume may be larger than any machine."""
    read = []
    volume = samples.regions[0].image
    original = type(volume).read
    monkeypatch.setattr(type(volume), "read", lambda self, box: read.append(box) or original(self, box))
    still = replace(samples, augment=AugmentConfig(**STILL))
    _ = still[0]
    assert len(read) == 1
    assert read[0].voxels <= (8 + 2) * (16 + 2) * (16 + 2)

"""The promise: what the stages write equals one forward pass over the whole, whatever the network and the tiles."""

import numpy as np
import pytest

from pipeline import stages
from pipeline.core.network.unet import Architecture
from pipeline.core.tiles.cost import PROCESS_BYTES
from pipeline.core.tiles.tiling import MEMORY_SHARE
from tests.pipeline_cases import Run, make_run, one_pass

EXACT = 1e-5
"""Of the output's range: float32's round-off over some twenty layers."""

CASES = {
    "3D, odd extents": (Architecture(3, 2, 4), (21, 37, 30), {"tiles": {"core": [8, 16, 12]}}),
    "3D, automatic core": (Architecture(3, 1, 4), (37, 50, 41), {"cluster": {"memory_gb": 1.2}}),
    "3D, thinner than its halo": (Architecture(3, 2, 4), (3, 29, 1), {"tiles": {"core": [4, 8, 4]}}),
    "3D, depth 3": (Architecture(3, 3, 2), (9, 130, 17), {"tiles": {"core": [16, 64, 24]}}),
    "3D, a halo larger than needed": (
        Architecture(3, 1, 2),
        (17, 50, 49),
        {"tiles": {"core": [8, 16, 24], "halo": [16, 8, 10]}},
    ),
    "3D, unpadded": (Architecture(3, 1, 4, padding="valid"), (13, 18, 21), {"tiles": {"core": [4, 10, 8]}}),
    "3D, unpadded, depth 2, thin": (Architecture(3, 2, 2, padding="valid"), (2, 18, 7), {"tiles": {"core": [4, 8, 4]}}),
    "3D, no norm, no bias": (
        Architecture(3, 1, 4, norm="none", bias=False),
        (9, 14, 11),
        {"tiles": {"core": [4, 4, 6]}},
    ),
    "two channels in": (Architecture(3, 1, 4, in_channels=2), (2, 9, 14, 11), {"tiles": {"core": [4, 6, 8]}}),
    "2D over a stack": (Architecture(2, 2, 4), (5, 45, 38), {"tiles": {"core": [3, 16, 20]}}),
    "2D over a stack, automatic core": (Architecture(2, 2, 4), (5, 145, 38), {}),
    "2D, unpadded, over a stack": (
        Architecture(2, 2, 4, padding="valid"),
        (3, 45, 38),
        {"tiles": {"core": [2, 16, 8]}},
    ),
    "a picture": (Architecture(2, 3, 4), (93, 61), {"tiles": {"core": [1, 32, 16]}}),
    "a picture of three channels": (
        Architecture(2, 2, 4, in_channels=3),
        (3, 43, 61),
        {"tiles": {"core": [1, 16, 16]}, "input": {"axes": "cyx"}},
    ),
    "tiles cut along z": (Architecture(3, 1, 4), (24, 21, 17), {"tiles": {"core": [16, 16, 16]}}),
}


def computed(run: Run) -> np.ndarray:
    """The output of all stages, (K, Z, Y, X)."""
    stages.plan(run.now)
    stages.survey(run.now)
    stages.infer(run.now)
    assert stages.verify(run.now).complete
    found = run.array()
    return found.reshape(run.network.architecture.out_channels, *run.plan.source.shape)


def as_volume(run: Run) -> np.ndarray:
    """The stored input, (C, Z, Y, X)."""
    return run.volume.reshape(run.network.architecture.in_channels, *run.plan.source.shape)


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal to `EXACT` of the expected range."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= EXACT * np.ptp(expected)


@pytest.mark.parametrize(("architecture", "shape", "sections"), CASES.values(), ids=CASES.keys())
def test_stitched_tiles_equal_one_pass(tmp_path, pooled, architecture, shape, sections):
    """Random weights of full variance reach as far as the network can: any seam would show."""
    run = make_run(tmp_path, architecture=architecture, shape=shape, **sections)
    found = computed(run)
    assert len(run.plan.grid) > 1
    assert_equal(found, one_pass(run.network, as_volume(run) / np.float32(255)))


def test_slabs_smaller_than_their_tile_leave_no_seam(tmp_path, pooled):
    """Where memory is short a column takes in fewer slices at a time; where one ends must not show either."""
    run = make_run(tmp_path, architecture=Architecture(3, 1, 16), shape=(40, 61, 60), tiles={"core": [40, 64, 64]})
    ample = stages.plan(run.now)
    growth = ample.cost.worker_bytes - PROCESS_BYTES
    run = run.having(cluster={"memory_gb": (PROCESS_BYTES + 0.8 * growth) / MEMORY_SHARE / 1e9})
    found = computed(run)
    assert run.plan.slab < ample.slab
    assert_equal(found, one_pass(run.network, as_volume(run) / np.float32(255)))


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        ("none", "uint8"),
        ("minmax", "int16"),
        ("minmax", "float32"),
        ("zscore", "uint16"),
        ("zscore", "float64"),
        ("percentile", "uint8"),
    ],
)
def test_one_set_of_statistics_normalises_the_whole_volume(tmp_path, pooled, mode, dtype):
    """Statistics of a tile would differ from tile to tile, and be a seam of their own."""
    tile = {"core": [8, 8, 16]}
    run = make_run(
        tmp_path,
        architecture=Architecture(3, 1, 2),
        shape=(9, 17, 22),
        dtype=dtype,
        tiles=tile,
        normalize={"mode": mode},
    )
    found = computed(run)
    volume = as_volume(run).astype(np.float64)
    low, high = (
        (np.iinfo(dtype).min, np.iinfo(dtype).max) if np.dtype(dtype).kind != "f" else (volume.min(), volume.max())
    )
    first, last = np.percentile(volume, (1, 99))
    normalised = {
        "none": volume,
        "minmax": (volume - low) / (high - low),
        "zscore": (volume - volume.mean()) / volume.std(),
        "percentile": (volume - first) / (last - first),
    }[mode]
    assert_equal(found, one_pass(run.network, normalised))


def test_two_channels_as_softmax_in_eight_bits(tmp_path, pooled):
    """`uint8` is rint(255 * clip(v, 0, 1)): at most one step off where round-off meets a half, and the channels sum to one."""
    run = make_run(
        tmp_path,
        architecture=Architecture(3, 1, 4, out_channels=2),
        shape=(9, 17, 22),
        tiles={"core": [8, 8, 16]},
        output={"dtype": "uint8", "activation": "softmax"},
    )
    found = computed(run).astype(int)
    logits = one_pass(run.network, as_volume(run) / np.float32(255)).astype(np.float64)
    powers = np.exp(logits - logits.max(axis=0))
    expected = np.rint(255 * powers / powers.sum(axis=0)).astype(int)
    assert run.array().dtype == np.uint8
    assert np.abs(found - expected).max() <= 1
    assert (found != expected).mean() < 1e-3


def test_sigmoid_comes_after_the_crop(tmp_path, pooled):
    """An activation is a voxel's own affair and leaves no seam."""
    run = make_run(
        tmp_path,
        architecture=Architecture(2, 1, 4),
        shape=(35, 41),
        tiles={"core": [1, 16, 16]},
        output={"activation": "sigmoid"},
    )
    assert_equal(computed(run), 1 / (1 + np.exp(-one_pass(run.network, as_volume(run) / np.float32(255)))))


def test_level_one_of_an_image_is_predicted_and_placed_where_it_lies(tmp_path, pooled, shared_data):
    """The output carries the voxel size of the level that was read."""
    run = make_run(
        tmp_path,
        architecture=Architecture(3, 1, 2, in_channels=2),
        shape=(2, 3, 32, 32),
        input={"url": str(shared_data / "zarr/ngio/test_image_czyx.zarr"), "level": 1, "missing": "fill"},  # all zeros
        tiles={"core": [2, 16, 16]},
    )
    found = computed(run)
    assert run.plan.source.space.scale == (2.0, 1.0, 1.0)
    assert_equal(found, one_pass(run.network, np.zeros((2, 3, 32, 32))))

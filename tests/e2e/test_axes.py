"""The order in which axes are stored changes nothing of an output: same bytes, axes, voxel sizes."""

import random

import numpy as np
import pytest
import zarr

from pipeline.core.network.unet import Architecture
from tests.axes_cases import EXTENTS, ORDERS, SIZES, WRITERS, volume_of
from tests.e2e.test_exact import computed
from tests.pipeline_cases import Run, make_run, one_pass

ANY = random.Random(17)

CAMPAIGN = [(writer, order) for writer in WRITERS for order in ANY.sample(ORDERS, 20)]
SHARE = [("by_zarr", "xtcyz"), ("by_hand", "yxc"), ("by_h5py", "zxcy")]


def run_of(folder, writer: str, order: str, **keys) -> Run:
    """A run over a volume that is stored in an order; its network reads all channels, or those that are chosen."""
    folder.mkdir()
    channels = len(keys.get("channels", ())) or (EXTENTS["c"] if "c" in order else 1)
    architecture = Architecture(3 if "z" in order else 2, 1, 4, in_channels=channels, out_channels=2)
    sections = {"tiles": {"core": [2 if "z" in order else 1, 4, 4]}, "normalize": {"mode": "percentile"}}
    run = make_run(folder, architecture=architecture, shape=(2, 2), **sections)
    return run.having(input={"url": WRITERS[writer](folder / "v", order), **keys})


def check(folder, writer: str, order: str) -> None:
    """The output of a run over stored axes is that over the same voxels in the usual order, and lies where these do."""
    usual = "".join(axis for axis in "czyx" if axis in order)
    run, plain = run_of(folder / "run", writer, order), run_of(folder / "plain", writer, usual)
    found, expected = computed(run), computed(plain)
    assert found.tobytes() == expected.tobytes()
    assert np.ptp(expected) > 0
    group = zarr.open_group(str(run.output), mode="r")
    (image,) = group.attrs["ome"]["multiscales"]
    spatial = [axis for axis in "zyx" if axis in order]
    assert [axis["name"] for axis in image["axes"]] == ["c", *spatial]
    scale = image["datasets"][0]["coordinateTransformations"][0]["scale"]
    assert scale == [1.0, *(SIZES[axis] for axis in spatial)] or writer == "by_tifffile"
    assert group["0"].metadata.dimension_names == ("c", *spatial)


@pytest.mark.parametrize(("writer", "order"), SHARE)
def test_an_output_does_not_depend_on_the_order_of_the_stored_axes(tmp_path, pooled, writer, order):
    """Planned, surveyed, inferred and verified by workers, who open the input by what the plan keeps."""
    check(tmp_path, writer, order)


@pytest.mark.fault
@pytest.mark.parametrize(("writer", "order"), CAMPAIGN)
def test_outputs_of_many_orders_do_not_depend_on_them(tmp_path, pooled, writer, order):
    """Twenty orders of each writer."""
    check(tmp_path, writer, order)


def test_a_network_reads_the_channels_that_are_chosen_in_their_order(tmp_path, pooled):
    """By one pass over these; the order that is stored gives another output, and another fingerprint."""
    run = run_of(tmp_path / "run", "by_zarr", "zcyx", channels=[1, 0])
    found = computed(run)
    stored = volume_of("zcyx")
    low, high = np.percentile(stored, (1, 99))
    values = ((stored[[1, 0]] - low) / (high - low)).astype(np.float32)
    expected = one_pass(run.network, values)
    assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)
    other = run_of(tmp_path / "other", "by_zarr", "zcyx")
    assert np.abs(computed(other) - expected).max() > 1e-2 * np.ptp(expected)
    assert other.plan.fingerprint != run.plan.fingerprint
    assert run.plan.differences(other.plan) == ["input.channels: [1, 0] here, nothing there"]


def test_the_command_reads_axes_and_channels_that_are_told(tmp_path, halotile):
    """`input.axes` and `input.channels` of a YAML, from the terminal to the output; one channel of two for a network of one."""
    run = run_of(tmp_path / "run", "by_hand", "ytcxz", axes="ytcxz", channels=[1])
    done = halotile("run", run.yaml)
    assert done.wait() == 0, done.error
    said = " ".join(done.out.split())
    assert "1 channel(s) (1 of those stored)" in said
    assert "stored as ytcxz" in said
    values = volume_of("czyx")[1:]
    assert run.array().shape == (2, *values.shape[1:])
